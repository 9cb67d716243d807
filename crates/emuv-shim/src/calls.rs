//! The driver calls that the session itself makes, as safe functions, but for the launch of a kernel.
//!
//! # Safety
//! Each block is one driver call whose out-pointers are live locals and whose handles came from the driver
//! or the program.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_void};
use std::ffi::CString;

use emuv_cuda::{CUresult, CuError, CuResult, types::*};
use emuv_policy::Owner;

use crate::real::Real;

/// A CUDA context by its handle; never dereferenced by us.
pub(crate) fn owner(context: CUcontext) -> Owner {
    Owner(context as u64)
}

/// The calling thread's current context.
pub(crate) fn current_context(real: &Real) -> CuResult<CUcontext> {
    let mut context = std::ptr::null_mut();
    // SAFETY: see the module's head.
    unsafe { real.driver.cuCtxGetCurrent(&raw mut context) }.ok()?;
    if context.is_null() {
        CUresult::INVALID_CONTEXT.ok()?;
    }
    Ok(context)
}

/// The context of a stream that the program created; an error for the default streams, whose context is the
/// current one.
pub(crate) fn stream_context(real: &Real, stream: CUstream) -> CuResult<CUcontext> {
    const PER_THREAD: usize = 2;
    if stream as usize <= PER_THREAD {
        return Err(CuError::INVALID_VALUE);
    }
    let mut context = std::ptr::null_mut();
    // SAFETY: see the module's head; the stream is the program's own argument.
    unsafe { real.driver.cuStreamGetCtx(stream, &raw mut context) }.ok()?;
    Ok(context)
}

/// How many devices the program sees.
pub(crate) fn device_count(real: &Real) -> CuResult<i32> {
    let mut count = 0;
    // SAFETY: see the module's head.
    unsafe { real.driver.cuDeviceGetCount(&raw mut count) }.ok()?;
    Ok(count)
}

/// Whether the driver loads each kernel when it is first used, and not with its module.
pub(crate) fn loads_lazily(real: &Real) -> bool {
    let mut mode = 0;
    // SAFETY: see the module's head.
    let result = unsafe { real.driver.cuModuleGetLoadingMode(&raw mut mode) };
    result == CUresult::SUCCESS && mode == CU_MODULE_LAZY_LOADING
}

/// The device of the calling thread's current context.
pub(crate) fn current_device(real: &Real) -> CuResult<CUdevice> {
    let mut device = 0;
    // SAFETY: see the module's head.
    unsafe { real.driver.cuCtxGetDevice(&raw mut device) }.ok()?;
    Ok(device)
}

/// Whether a device can touch memory of another one.
pub(crate) fn can_access(real: &Real, device: CUdevice, peer: CUdevice) -> bool {
    let mut can = 0;
    // SAFETY: see the module's head.
    unsafe { real.driver.cuDeviceCanAccessPeer(&raw mut can, device, peer) }.ok().is_ok() && can != 0
}

/// The context that the driver's own memory at an address belongs to; `None` for memory of the host.
pub(crate) fn pointer_context(real: &Real, address: u64) -> Option<CUcontext> {
    let mut context: CUcontext = std::ptr::null_mut();
    // SAFETY: see the module's head; the attribute is a context.
    let told =
        unsafe { real.driver.cuPointerGetAttribute((&raw mut context).cast(), CU_POINTER_ATTRIBUTE_CONTEXT, address) };
    (told == CUresult::SUCCESS && !context.is_null()).then_some(context)
}

/// Free and total bytes of the current context's device, by the driver's word.
pub(crate) fn memory_info(real: &Real) -> CuResult<(u64, u64)> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: see the module's head.
    unsafe { real.driver.cuMemGetInfo_v2(&raw mut free, &raw mut total) }.ok()?;
    Ok((free as u64, total as u64))
}

/// The device's memory in bytes.
pub(crate) fn total_memory(real: &Real, device: CUdevice) -> CuResult<u64> {
    let mut total = 0;
    // SAFETY: see the module's head.
    unsafe { real.driver.cuDeviceTotalMem_v2(&raw mut total, device) }.ok()?;
    Ok(total as u64)
}

/// The device's UUID.
pub(crate) fn uuid(real: &Real, device: CUdevice) -> CuResult<[u8; 16]> {
    let mut uuid = CUuuid { bytes: [0; 16] };
    // SAFETY: see the module's head.
    let result = unsafe { real.driver.cuDeviceGetUuid_v2(&raw mut uuid, device) };
    if result == CUresult::NOT_FOUND {
        // SAFETY: see the module's head.
        unsafe { real.driver.cuDeviceGetUuid(&raw mut uuid, device) }.ok()?;
    } else {
        result.ok()?;
    }
    Ok(uuid.bytes.map(i8::cast_unsigned))
}

/// The device's name.
pub(crate) fn name(real: &Real, device: CUdevice) -> CuResult<String> {
    let mut text = [0; 128];
    // SAFETY: the buffer and its length belong together.
    unsafe { real.driver.cuDeviceGetName(text.as_mut_ptr(), 127, device) }.ok()?;
    // SAFETY: the last byte is still zero, so the text ends within the buffer.
    Ok(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
}

/// Calls `work` with `context` current, whatever the calling thread's current context is.
pub(crate) fn in_context<T>(real: &Real, context: Owner, work: impl FnOnce() -> CuResult<T>) -> CuResult<T> {
    let wanted = context.0 as CUcontext;
    if current_context(real).is_ok_and(|current| current == wanted) {
        return work();
    }
    // SAFETY: see the module's head; the context is alive as long as something of ours belongs to it.
    unsafe { real.driver.cuCtxPushCurrent_v2(wanted) }.ok()?;
    let result = work();
    let mut popped = std::ptr::null_mut();
    // SAFETY: see the module's head.
    unsafe { real.driver.cuCtxPopCurrent_v2(&raw mut popped) }.ok()?;
    result
}

/// Waits until `context` has no work left, whatever the calling thread's current context is.
pub(crate) fn synchronize(real: &Real, context: Owner) -> CuResult {
    // SAFETY: see the module's head.
    in_context(real, context, || unsafe { real.driver.cuCtxSynchronize() }.ok())
}

/// Waits for everything on a stream of the current context.
pub(crate) fn synchronize_stream(real: &Real, stream: CUstream) -> CuResult {
    // SAFETY: see the module's head.
    unsafe { real.driver.cuStreamSynchronize(stream) }.ok()
}

/// Whether the device's primary context exists now.
pub(crate) fn primary_is_active(real: &Real, device: CUdevice) -> bool {
    let (mut flags, mut active) = (0, 0);
    // SAFETY: see the module's head.
    let result = unsafe { real.driver.cuDevicePrimaryCtxGetState(device, &raw mut flags, &raw mut active) };
    result.ok().is_ok() && active != 0
}

/// Whether `context` is the device's primary context. Asking neither creates nor keeps one.
pub(crate) fn is_primary(real: &Real, device: CUdevice, context: CUcontext) -> bool {
    if !primary_is_active(real, device) {
        return false;
    }
    let mut primary = std::ptr::null_mut();
    // SAFETY: see the module's head; given back right below.
    if unsafe { real.driver.cuDevicePrimaryCtxRetain(&raw mut primary, device) }.ok().is_err() {
        return false;
    }
    // SAFETY: see the module's head.
    let released = unsafe { real.driver.cuDevicePrimaryCtxRelease_v2(device) };
    debug_assert!(released.ok().is_ok());
    primary == context
}

/// A 64-bit attribute of a memory pool.
pub(crate) fn pool_attribute(real: &Real, pool: CUmemoryPool, which: CUmemPool_attribute) -> CuResult<u64> {
    let mut value = 0_u64;
    // SAFETY: the attributes asked for here are 64-bit integers.
    unsafe { real.driver.cuMemPoolGetAttribute(pool, which, (&raw mut value).cast()) }.ok()?;
    Ok(value)
}

/// The device's default pool.
pub(crate) fn default_pool(real: &Real, device: CUdevice) -> CuResult<CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: see the module's head.
    unsafe { real.driver.cuDeviceGetDefaultMemPool(&raw mut pool, device) }.ok()?;
    Ok(pool)
}

/// The pool that `cuMemAllocAsync` takes from on a device.
pub(crate) fn current_pool(real: &Real, device: CUdevice) -> CuResult<CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: see the module's head.
    unsafe { real.driver.cuDeviceGetMemPool(&raw mut pool, device) }.ok()?;
    Ok(pool)
}

/// Bytes that graphs' memory nodes hold on a device.
pub(crate) fn graph_memory(real: &Real, device: CUdevice) -> CuResult<u64> {
    let mut value = 0_u64;
    let which = CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT;
    // SAFETY: the attribute is a 64-bit integer.
    unsafe { real.driver.cuDeviceGetGraphMemAttribute(device, which, (&raw mut value).cast()) }.ok()?;
    Ok(value)
}

/// Whether a stream is being captured. Cheap, and asked only while some capture runs.
pub(crate) fn is_capturing(real: &Real, stream: CUstream, per_thread: bool) -> bool {
    let mut status = CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: see the module's head; the stream is the program's own argument.
    let result = unsafe {
        if per_thread {
            real.driver.cuStreamIsCapturing_ptsz(stream, &raw mut status)
        } else {
            real.driver.cuStreamIsCapturing(stream, &raw mut status)
        }
    };
    result.ok().is_ok() && status != CU_STREAM_CAPTURE_STATUS_NONE
}

/// A new event behind everything issued on a stream so far.
pub(crate) fn event_behind(real: &Real, stream: CUstream, per_thread: bool) -> CuResult<usize> {
    let mut event = std::ptr::null_mut();
    // SAFETY: see the module's head.
    unsafe { real.driver.cuEventCreate(&raw mut event, CU_EVENT_DISABLE_TIMING) }.ok()?;
    // SAFETY: the event was just made; the stream is the program's own argument.
    let recorded = unsafe {
        if per_thread {
            real.driver.cuEventRecord_ptsz(event, stream)
        } else {
            real.driver.cuEventRecord(event, stream)
        }
    };
    match recorded.ok() {
        Ok(()) => Ok(event as usize),
        Err(error) => {
            drop_event(real, event as usize);
            Err(error)
        }
    }
}

/// Whether an event has been reached.
pub(crate) fn event_reached(real: &Real, event: usize) -> bool {
    // SAFETY: made by `event_behind`.
    unsafe { real.driver.cuEventQuery(event as CUevent) == CUresult::SUCCESS }
}

/// Destroys an event of [`event_behind`].
pub(crate) fn drop_event(real: &Real, event: usize) {
    // SAFETY: made by `event_behind`, destroyed once.
    let _ = unsafe { real.driver.cuEventDestroy_v2(event as CUevent) };
}

/// Records `event` (a new one if there is none) behind what has been issued on a stream of the current context.
pub(crate) fn record_event(real: &Real, event: Option<usize>, stream: CUstream) -> CuResult<usize> {
    let event = match event {
        Some(event) => event as CUevent,
        None => {
            let mut event = std::ptr::null_mut();
            // SAFETY: see the module's head.
            unsafe { real.driver.cuEventCreate(&raw mut event, CU_EVENT_DISABLE_TIMING) }.ok()?;
            event
        }
    };
    // SAFETY: the event is ours; the stream is alive (the caller's word).
    unsafe { real.driver.cuEventRecord(event, stream) }.ok()?;
    Ok(event as usize)
}

/// The state of an event: `SUCCESS`, `CUDA_ERROR_NOT_READY`, or what went wrong.
pub(crate) fn query_event(real: &Real, event: usize) -> CUresult {
    // SAFETY: an event of ours that has not been destroyed.
    unsafe { real.driver.cuEventQuery(event as CUevent) }
}

/// Loads a kernel from PTX source, which the driver compiles for the GPU at hand, in the current context: its function.
pub(crate) fn load_kernel(real: &Real, source: &str, name: &CStr) -> CuResult<usize> {
    let source = CString::new(source).map_err(|_| CuError::INVALID_VALUE)?;
    let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: see the module's head; a text that ends with a zero.
    unsafe { real.driver.cuModuleLoadData(&raw mut module, source.as_ptr().cast()) }.ok()?;
    // SAFETY: see the module's head; the module was just loaded.
    unsafe { real.driver.cuModuleGetFunction(&raw mut function, module, name.as_ptr()) }.ok()?;
    Ok(function as usize)
}

/// Launches a kernel whose parameters have 64 bits each, with so many blocks of so many threads.
///
/// # Safety
/// The kernel is of the current context, as the stream is, and has as many parameters; the memory that it uses is mapped until it is done.
pub(crate) unsafe fn launch_kernel<const N: usize>(
    real: &Real,
    function: usize,
    stream: CUstream,
    (blocks, threads): (u32, u32),
    mut arguments: [u64; N],
) -> CuResult {
    let mut parameters = arguments.each_mut().map(|argument| std::ptr::from_mut(argument).cast::<c_void>());
    let (function, parameters, none) = (function as CUfunction, parameters.as_mut_ptr(), std::ptr::null_mut());
    // SAFETY: the caller's word; the driver has copied the arguments when the call is over.
    unsafe { real.driver.cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, parameters, none) }.ok()
}

/// Memory of the host's that the GPU reaches at the same address, full of zeros, for as long as the current context lives.
pub(crate) fn pinned_memory(real: &Real, bytes: usize) -> CuResult<usize> {
    /// `CU_MEMHOSTALLOC_DEVICEMAP`.
    const DEVICE_MAP: u32 = 2;
    let mut memory = std::ptr::null_mut();
    // SAFETY: see the module's head.
    unsafe { real.driver.cuMemHostAlloc(&raw mut memory, bytes, DEVICE_MAP) }.ok()?;
    // SAFETY: the new memory's own size; nobody else has it yet.
    unsafe { memory.cast::<u8>().write_bytes(0, bytes) };
    Ok(memory as usize)
}

/// A new event that takes the time, behind everything issued on a stream so far.
pub(crate) fn timed_event(real: &Real, stream: CUstream, per_thread: bool) -> CuResult<usize> {
    let mut event = std::ptr::null_mut();
    // SAFETY: see the module's head.
    unsafe { real.driver.cuEventCreate(&raw mut event, CU_EVENT_DEFAULT) }.ok()?;
    // SAFETY: the event was just made; the stream is the program's own argument.
    let recorded = unsafe {
        if per_thread {
            real.driver.cuEventRecord_ptsz(event, stream)
        } else {
            real.driver.cuEventRecord(event, stream)
        }
    };
    if let Err(error) = recorded.ok() {
        drop_event(real, event as usize);
        return Err(error);
    }
    Ok(event as usize)
}

/// Microseconds between two events that have been reached.
pub(crate) fn elapsed_micros(real: &Real, before: usize, after: usize) -> CuResult<f64> {
    let mut milliseconds = 0.0_f32;
    // SAFETY: see the module's head; both events are ours.
    unsafe { real.driver.cuEventElapsedTime(&raw mut milliseconds, before as CUevent, after as CUevent) }.ok()?;
    Ok(f64::from(milliseconds) * 1e3)
}

/// What a function (or a kernel in a function's place) is called, mangled as in its module; `?` where the driver does not
/// say.
pub(crate) fn function_name(real: &Real, function: CUfunction) -> String {
    let mut name = std::ptr::null();
    // SAFETY: see the module's head; the driver refuses a handle of the other sort.
    let found = unsafe { real.driver.cuKernelGetName(&raw mut name, function.cast()) }.ok().is_ok()
        // SAFETY: as above.
        || unsafe { real.driver.cuFuncGetName(&raw mut name, function) }.ok().is_ok();
    if !found || name.is_null() {
        return "?".to_owned();
    }
    // SAFETY: a text that lives as long as the function.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

/// Whether an address lies in managed memory.
pub(crate) fn is_managed(real: &Real, address: CUdeviceptr) -> bool {
    let mut managed: core::ffi::c_uint = 0;
    let which = CU_POINTER_ATTRIBUTE_IS_MANAGED;
    // SAFETY: see the module's head; the attribute is a flag of at most 32 bits.
    let result = unsafe { real.driver.cuPointerGetAttribute((&raw mut managed).cast(), which, address) };
    result.ok().is_ok() && managed != 0
}
