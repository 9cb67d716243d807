//! The driver for this test: the calls that the session makes, over [`crate::gpu`]. What is not here the session takes
//! for missing, as with an old driver. Each call lets the GPU go on, and is a point at which the scheduler may choose
//! another thread.
//!
//! # Safety
//! Pointers come from the session or the scenarios under the contracts of the driver functions; each is written or read
//! as the function of that name would. Pinned memory is leaked, so notes may be written into it at any time; it is used by
//! one real thread.
#![allow(unsafe_code, non_snake_case, unused_variables)]
#![allow(clippy::cast_possible_truncation)] // 64-bit only.

use core::ffi::*;
use std::{cell::Cell, ptr::NonNull};

use emuv_cuda::{signatures, types::*};
use emuv_policy::Tier;
use shuttle::sync::atomic::{AtomicU32, Ordering};

use crate::gpu::{self, Gpu, Notes, Span, Work};

/// The one context.
const CONTEXT: usize = 0xC0;

/// Kernels, by their handles, with the number of their parameters (all of 8 bytes).
pub const ADD: usize = 0x110;
pub const POINT: usize = 0x120;
pub const ADD_THROUGH: usize = 0x130;
const SEARCH: usize = 0x140;
const SEARCH_NAMED: usize = 8;
const HASH: usize = 0x150;
const COPY: usize = 0x160;
const KERNELS: [(usize, usize); 4] = [(ADD, 3), (POINT, 4), (ADD_THROUGH, 3), (SEARCH, 6 + 2 * SEARCH_NAMED)];

/// Driver calls that a thread makes before others have their turn.
const MOST_CALLS: u32 = 200;

const GRANULARITY_BYTES: usize = 2 << 20;

shuttle::thread_local! {
    static CURRENT: Cell<usize> = Cell::new(CONTEXT);
}

/// Lets the scheduler choose.
fn switch() {
    static POINT_OF_CHOICE: AtomicU32 = AtomicU32::new(0);
    POINT_OF_CHOICE.load(Ordering::SeqCst);
}

fn call<T>(act: impl FnOnce(&mut Gpu) -> T) -> T {
    switch();
    let caller = shuttle::current::me();
    if gpu::with(|gpu| gpu.calls_in_a_row(usize::from(caller))) > MOST_CALLS {
        // A scheduler by priorities would let who polls (or the mover, which always finds something to do under torture)
        // keep the others from ever running.
        gpu::with(|gpu| gpu.calls_in_a_row(usize::MAX));
        shuttle::thread::yield_now();
    }
    let result = gpu::with(|gpu| {
        gpu.go_on();
        act(gpu)
    });
    note_down();
    switch();
    result
}

/// Lets the GPU go on until a stream (`None`: each) has no work.
fn wait_for(stream: Option<usize>) {
    while gpu::with(|gpu| gpu.is_busy(stream)) {
        call(|_| ());
    }
}

/// Writes down what searches and hashes have found.
fn note_down() {
    for (notes, target) in gpu::with(|gpu| std::mem::take(&mut gpu.found)) {
        let granule = gpu::granule(target);
        // SAFETY: see the module's head; the search's own memory, as it was told.
        unsafe {
            *(notes.bitmap as *mut u64).add(usize::try_from(granule / 64).expect("small")) |= 1 << (granule % 64);
            if notes.flag != 0 && notes.named.iter().any(|(start, bytes)| target.wrapping_sub(*start) < *bytes) {
                *(notes.flag as *mut u32) = 1;
            }
        }
    }
    for (at, words) in gpu::with(|gpu| std::mem::take(&mut gpu.hashed)) {
        // SAFETY: see the module's head; the hasher's own memory, as it was told.
        unsafe { *(at as *mut [u64; 2]) = words };
    }
}

macro_rules! functions {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {
        $(unsafe extern "C" fn $name($($arg: $ty),*) -> CUresult { $body })*

        /// The function of that name.
        pub fn function(name: &CStr) -> Option<NonNull<c_void>> {
            match name.to_bytes() {
                $(name if name == stringify!($name).as_bytes() => {
                    let function: signatures::$name = $name;
                    NonNull::new(function as *mut c_void)
                })*
                _ => None,
            }
        }
    };
}

/// Writes through an out-pointer of the caller's.
macro_rules! give {
    ($to:expr, $what:expr) => {{
        let what = $what;
        // SAFETY: see the module's head.
        unsafe { $to.write(what) };
        CUresult::SUCCESS
    }};
}

const OK: CUresult = CUresult::SUCCESS;

functions! {
    fn cuInit(Flags: c_uint) { OK }
    fn cuDeviceGetCount(count: *mut c_int) { give!(count, 1) }
    fn cuDeviceGetName(name: *mut c_char, len: c_int, dev: CUdevice_v1) { give!(name, 0) }
    fn cuDeviceGetUuid_v2(uuid: *mut CUuuid, dev: CUdevice_v1) { give!(uuid, CUuuid { bytes: [7; 16] }) }
    fn cuDeviceTotalMem_v2(bytes: *mut usize, dev: CUdevice_v1) { give!(bytes, call(|gpu| gpu.total_bytes() as usize)) }

    fn cuDeviceGetAttribute(pi: *mut c_int, attrib: CUdevice_attribute, dev: CUdevice_v1) {
        let has = [
            CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
            CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        ];
        give!(pi, c_int::from(has.contains(&attrib)))
    }

    fn cuCtxGetCurrent(pctx: *mut CUcontext) { give!(pctx, CURRENT.with(Cell::get) as CUcontext) }
    fn cuCtxGetDevice(device: *mut CUdevice_v1) { give!(device, 0) }
    fn cuCtxSetCurrent(ctx: CUcontext) { CURRENT.with(|current| current.set(ctx as usize)); OK }
    fn cuCtxPushCurrent_v2(ctx: CUcontext) { CURRENT.with(|current| current.set(ctx as usize)); OK }
    fn cuCtxPopCurrent_v2(pctx: *mut CUcontext) { CURRENT.with(|current| current.set(0)); give!(pctx, CONTEXT as CUcontext) }
    fn cuDevicePrimaryCtxGetState(dev: CUdevice_v1, flags: *mut c_uint, active: *mut c_int) { give!(active, 1) }
    fn cuDevicePrimaryCtxRetain(pctx: *mut CUcontext, dev: CUdevice_v1) { give!(pctx, CONTEXT as CUcontext) }
    fn cuDevicePrimaryCtxRelease_v2(dev: CUdevice_v1) { OK }
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) { OK }
    fn cuThreadExchangeStreamCaptureMode(mode: *mut CUstreamCaptureMode) { OK }

    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let (left, all) = call(|gpu| (gpu.free_bytes() as usize, gpu.total_bytes() as usize));
        give!(free, left);
        give!(total, all)
    }

    fn cuMemGetAllocationGranularity(granularity: *mut usize, prop: *const CUmemAllocationProp_v1, option: CUmemAllocationGranularity_flags) {
        give!(granularity, GRANULARITY_BYTES)
    }

    fn cuMemAddressReserve(ptr: *mut CUdeviceptr_v2, size: usize, alignment: usize, addr: CUdeviceptr_v2, flags: c_ulonglong) {
        // No wish is granted.
        match (addr == 0).then(|| call(|gpu| gpu.reserve(size as u64))).flatten() {
            Some(address) => give!(ptr, address),
            None => CUresult::OUT_OF_MEMORY,
        }
    }

    fn cuMemCreate(handle: *mut CUmemGenericAllocationHandle_v1, size: usize, prop: *const CUmemAllocationProp_v1, flags: c_ulonglong) {
        // SAFETY: see the module's head.
        let on_card = unsafe { (*prop).location.type_ } == CU_MEM_LOCATION_TYPE_DEVICE;
        match call(|gpu| gpu.create(if on_card { Tier::Vram } else { Tier::Ram }, size as u64)) {
            Some(made) => give!(handle, made),
            None => CUresult::OUT_OF_MEMORY,
        }
    }

    fn cuMemRelease(handle: CUmemGenericAllocationHandle_v1) { call(|gpu| gpu.release(handle)); OK }

    fn cuMemMap(ptr: CUdeviceptr_v2, size: usize, offset: usize, handle: CUmemGenericAllocationHandle_v1, flags: c_ulonglong) {
        if call(|gpu| gpu.map(ptr, size as u64, handle)) { OK } else { CUresult::NOT_SUPPORTED }
    }

    fn cuMemSetAccess(ptr: CUdeviceptr_v2, size: usize, desc: *const CUmemAccessDesc_v1, count: usize) { call(|_| OK) }
    fn cuMemUnmap(ptr: CUdeviceptr_v2, size: usize) { call(|gpu| gpu.unmap(ptr, size as u64)); OK }
    fn cuDeviceGetDefaultMemPool(pool: *mut CUmemoryPool, dev: CUdevice_v1) { give!(pool, 0xB0 as CUmemoryPool) }
    fn cuDeviceGetMemPool(pool: *mut CUmemoryPool, dev: CUdevice_v1) { give!(pool, 0xB0 as CUmemoryPool) }

    fn cuMemHostAlloc(pp: *mut *mut c_void, bytesize: usize, Flags: c_uint) {
        give!(pp, vec![0_u64; bytesize.div_ceil(8)].leak().as_mut_ptr().cast())
    }

    fn cuModuleLoadData(module: *mut CUmodule, image: *const c_void) { give!(module, 0xD0 as CUmodule) }
    fn cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char) {
        // SAFETY: see the module's head; a name ends with a zero.
        let kernel = match unsafe { CStr::from_ptr(name) } {
            name if name == c"emuv_hash" => HASH,
            name if name == c"emuv_copy" => COPY,
            _ => SEARCH,
        };
        give!(function, kernel as CUfunction)
    }

    fn cuFuncGetParamInfo(func: CUfunction, paramIndex: usize, paramOffset: *mut usize, paramSize: *mut usize) {
        let count = KERNELS.iter().find(|(kernel, _)| *kernel == func as usize).map_or(0, |(_, count)| *count);
        if paramIndex >= count {
            return CUresult::INVALID_VALUE;
        }
        give!(paramOffset, 8 * paramIndex);
        give!(paramSize, 8)
    }

    fn cuLaunchKernel(
        f: CUfunction, gridDimX: c_uint, gridDimY: c_uint, gridDimZ: c_uint, blockDimX: c_uint, blockDimY: c_uint,
        blockDimZ: c_uint, sharedMemBytes: c_uint, hStream: CUstream, kernelParams: *mut *mut c_void, extra: *mut *mut c_void,
    ) {
        // SAFETY: see the module's head; as many as the kernel has.
        let p = |index: usize| unsafe { (*kernelParams.add(index)).cast::<u64>().read() };
        let work = match f as usize {
            ADD => Work::Add((p(0), p(1)), p(2)),
            POINT => Work::Point((p(0), p(1)), (p(2), p(3))),
            ADD_THROUGH => Work::AddThrough((p(0), p(1)), p(2)),
            SEARCH => {
                let named = (0..SEARCH_NAMED).map(|i| (p(6 + 2 * i), p(7 + 2 * i))).collect();
                Work::Search((p(0), 8 * p(1)), Notes { window: (p(2), p(3)), bitmap: p(4), flag: p(5), named })
            }
            HASH => Work::Hash((p(0), 8 * p(1)), p(3)),
            COPY => Work::Copy((p(0), p(2)), (p(1), p(2))),
            other => panic!("no kernel {other:#x}"),
        };
        call(|gpu| gpu.issue(hStream as usize, work));
        OK
    }

    fn cuMemcpyAsync(dst: CUdeviceptr_v2, src: CUdeviceptr_v2, ByteCount: usize, hStream: CUstream) {
        let (to, from): (Span, Span) = ((dst, ByteCount as u64), (src, ByteCount as u64));
        call(|gpu| gpu.issue(hStream as usize, Work::Copy(to, from)));
        OK
    }

    fn cuMemcpyHtoDAsync_v2(dstDevice: CUdeviceptr_v2, srcHost: *const c_void, ByteCount: usize, hStream: CUstream) {
        // SAFETY: see the module's head; pageable memory is read before the call returns.
        let sum = unsafe { srcHost.cast::<u64>().read() };
        call(|gpu| gpu.issue(hStream as usize, Work::Set((dstDevice, ByteCount as u64), sum)));
        OK
    }

    fn cuMemcpyDtoH_v2(dstHost: *mut c_void, srcDevice: CUdeviceptr_v2, ByteCount: usize) {
        wait_for(None);
        give!(dstHost.cast::<u64>(), call(|gpu| gpu.data((srcDevice, ByteCount as u64)).sum))
    }

    fn cuCtxSynchronize() { wait_for(None); OK }
    fn cuStreamSynchronize(hStream: CUstream) { wait_for(Some(hStream as usize)); OK }

    fn cuStreamQuery(hStream: CUstream) {
        if call(|gpu| gpu.is_busy(Some(hStream as usize))) { CUresult::CUDA_ERROR_NOT_READY } else { OK }
    }

    fn cuStreamCreateWithPriority(phStream: *mut CUstream, flags: c_uint, priority: c_int) {
        give!(phStream, call(|gpu| gpu.event()) as CUstream)
    }

    fn cuStreamWaitEvent(hStream: CUstream, hEvent: CUevent, flags: c_uint) {
        // Stricter than asked: everything waits.
        while gpu::with(|gpu| gpu.is_reached(hEvent as usize)) == Some(false) {
            call(|_| ());
        }
        OK
    }

    fn cuEventCreate(phEvent: *mut CUevent, Flags: c_uint) { give!(phEvent, call(|gpu| gpu.event()) as CUevent) }
    fn cuEventRecord(hEvent: CUevent, hStream: CUstream) {
        call(|gpu| gpu.issue(hStream as usize, Work::Event(hEvent as usize)));
        OK
    }

    fn cuEventQuery(hEvent: CUevent) {
        match call(|gpu| gpu.is_reached(hEvent as usize)) {
            Some(true) => OK,
            Some(false) => CUresult::CUDA_ERROR_NOT_READY,
            None => CUresult::INVALID_VALUE,
        }
    }

    fn cuEventSynchronize(hEvent: CUevent) {
        while gpu::with(|gpu| gpu.is_reached(hEvent as usize)) == Some(false) {
            call(|_| ());
        }
        OK
    }

    fn cuEventDestroy_v2(hEvent: CUevent) { call(|gpu| gpu.drop_event(hEvent as usize)); OK }

    fn cuEventElapsedTime(pMilliseconds: *mut f32, hStart: CUevent, hEnd: CUevent) {
        // Long: data in RAM is read slowly, and better brought.
        give!(pMilliseconds, 1e4)
    }
}
