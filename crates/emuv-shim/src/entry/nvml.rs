//! NVML's view of memory: the same totals as CUDA's, in every process of the run (`nvidia-smi` too).
#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use core::ffi::{CStr, c_char, c_uint};
use std::ffi::CString;

use emuv_cuda::{Nvml, nvml_types::*};

use crate::{
    real,
    slice::{self, Slice},
    view::{self, Card, Running, Seen},
};

/// Total, free and used bytes, the first form.
///
/// # Safety
/// The contract of the NVML function of this name.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[allow(non_snake_case)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetMemoryInfo(
    device: nvmlDevice_t,
    memory: *mut nvmlMemory_t,
) -> nvmlReturn_t {
    let Some(real) = real::nvml() else { return nvmlReturn_t::NVML_ERROR_LIBRARY_NOT_FOUND };
    // SAFETY: the program's own arguments.
    let result = unsafe { real.nvml.nvmlDeviceGetMemoryInfo(device, memory) };
    // SAFETY: null or valid by NVML's contract.
    let Some(memory) = unsafe { memory.as_mut() }.filter(|_| result.is_ok()) else { return result };
    let total = memory.total.saturating_sub(reserved(&real.nvml, device));
    if let Some(seen) = seen(&real.nvml, device, Card { total, free: memory.free }) {
        (memory.total, memory.free, memory.used) = (seen.total, seen.free, seen.total - seen.free);
    }
    result
}

/// Total, reserved, free and used bytes. What NVML calls reserved is no part of CUDA's total, so under emuV
/// it is none of this one either.
///
/// # Safety
/// The contract of the NVML function of this name.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[allow(non_snake_case)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: nvmlDevice_t,
    memory: *mut nvmlMemory_v2_t,
) -> nvmlReturn_t {
    let Some(real) = real::nvml() else { return nvmlReturn_t::NVML_ERROR_LIBRARY_NOT_FOUND };
    // SAFETY: the program's own arguments.
    let result = unsafe { real.nvml.nvmlDeviceGetMemoryInfo_v2(device, memory) };
    // SAFETY: null or valid by NVML's contract.
    let Some(memory) = unsafe { memory.as_mut() }.filter(|_| result.is_ok()) else { return result };
    let card = Card { total: memory.total.saturating_sub(memory.reserved), free: memory.free };
    if let Some(seen) = seen(&real.nvml, device, card) {
        (memory.total, memory.free, memory.used) = (seen.total, seen.free, seen.total - seen.free);
        memory.reserved = 0;
    }
    result
}

/// One form of the processes that NVML lists, older ones without the last two fields.
trait Listed {
    fn of(process: &Running) -> Self;
}

impl Listed for nvmlProcessInfo_v1_t {
    fn of(process: &Running) -> Self {
        Self { pid: process.pid, usedGpuMemory: process.used_bytes }
    }
}

impl Listed for nvmlProcessInfo_t {
    fn of(process: &Running) -> Self {
        // No part of a card that is cut into such.
        let none = c_uint::MAX;
        Self { pid: process.pid, usedGpuMemory: process.used_bytes, gpuInstanceId: none, computeInstanceId: none }
    }
}

/// The entries of a function in all its versions, one line each: programs take any of them.
macro_rules! versions {
    ($($body:ident { $($name:ident($($arg:ident: $ty:ty),*);)* })*) => {
        $($(
            /// In a slice: the slice's.
            ///
            /// # Safety
            /// The contract of the NVML function of this name.
            #[cfg_attr(not(test), unsafe(no_mangle))]
            #[allow(non_snake_case)]
            pub(crate) unsafe extern "C" fn $name($($arg: $ty),*) -> nvmlReturn_t {
                let Some(real) = real::nvml() else { return nvmlReturn_t::NVML_ERROR_LIBRARY_NOT_FOUND };
                // SAFETY: the program's own arguments, here and there.
                unsafe { $body(&real.nvml, $($arg,)* || real.nvml.$name($($arg),*)) }
            }
        )*)*
    };
}

versions! {
    compute {
        nvmlDeviceGetComputeRunningProcesses(device: nvmlDevice_t, count: *mut c_uint, infos: *mut nvmlProcessInfo_v1_t);
        nvmlDeviceGetComputeRunningProcesses_v2(device: nvmlDevice_t, count: *mut c_uint, infos: *mut nvmlProcessInfo_v2_t);
        nvmlDeviceGetComputeRunningProcesses_v3(device: nvmlDevice_t, count: *mut c_uint, infos: *mut nvmlProcessInfo_t);
    }
    graphics {
        nvmlDeviceGetGraphicsRunningProcesses(device: nvmlDevice_t, count: *mut c_uint, infos: *mut nvmlProcessInfo_v1_t);
        nvmlDeviceGetGraphicsRunningProcesses_v2(device: nvmlDevice_t, count: *mut c_uint, infos: *mut nvmlProcessInfo_v2_t);
        nvmlDeviceGetGraphicsRunningProcesses_v3(device: nvmlDevice_t, count: *mut c_uint, infos: *mut nvmlProcessInfo_t);
    }
    cards {
        nvmlDeviceGetCount(count: *mut c_uint);
        nvmlDeviceGetCount_v2(count: *mut c_uint);
    }
    by_index {
        nvmlDeviceGetHandleByIndex(index: c_uint, device: *mut nvmlDevice_t);
        nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut nvmlDevice_t);
    }
}

/// The processes that use the card.
///
/// # Safety
/// The contract of `nvmlDeviceGetComputeRunningProcesses`.
unsafe fn compute<T: Listed>(
    nvml: &Nvml,
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut T,
    plain: impl FnOnce() -> nvmlReturn_t,
) -> nvmlReturn_t {
    let running = catch_unwind(|| view::running(&uuid(nvml, device)?)).ok().flatten();
    // SAFETY: null or valid by NVML's contract.
    let (Some(running), Some(count)) = (running, unsafe { count.as_mut() }) else { return plain() };
    let room = *count as usize;
    *count = c_uint::try_from(running.len()).unwrap_or(c_uint::MAX);
    if running.len() > room || (infos.is_null() && !running.is_empty()) {
        return nvmlReturn_t::NVML_ERROR_INSUFFICIENT_SIZE;
    }
    for (index, process) in running.iter().enumerate() {
        // SAFETY: `infos` has room for what `count` said, by NVML's contract, and `index` is less.
        unsafe { infos.add(index).write(T::of(process)) };
    }
    nvmlReturn_t::NVML_SUCCESS
}

/// Nobody draws in a slice.
///
/// # Safety
/// The contract of `nvmlDeviceGetGraphicsRunningProcesses`.
unsafe fn graphics<T>(
    _nvml: &Nvml,
    _device: nvmlDevice_t,
    count: *mut c_uint,
    _infos: *mut T,
    plain: impl FnOnce() -> nvmlReturn_t,
) -> nvmlReturn_t {
    // SAFETY: null or valid by NVML's contract.
    let (Some(_), Some(count)) = (joined(), unsafe { count.as_mut() }) else { return plain() };
    *count = 0;
    nvmlReturn_t::NVML_SUCCESS
}

/// In a slice there are its GPUs.
///
/// # Safety
/// The contract of `nvmlDeviceGetCount`.
unsafe fn cards(_nvml: &Nvml, count: *mut c_uint, plain: impl FnOnce() -> nvmlReturn_t) -> nvmlReturn_t {
    let result = plain();
    if let Some(slice) = joined().filter(|_| result.is_ok()) {
        // One that cannot be opened has one all the same, which nothing finds.
        let gpus = slice.gpu_uuids().count().max(1);
        // SAFETY: NVML has just written it.
        unsafe { count.write(c_uint::try_from(gpus).unwrap_or(1)) };
    }
    result
}

/// In a slice they have the slice's order.
///
/// # Safety
/// The contract of `nvmlDeviceGetHandleByIndex`.
unsafe fn by_index(
    nvml: &Nvml,
    index: c_uint,
    device: *mut nvmlDevice_t,
    plain: impl FnOnce() -> nvmlReturn_t,
) -> nvmlReturn_t {
    let Some(slice) = joined() else { return plain() };
    let uuid = usize::try_from(index).ok().and_then(|index| slice.gpu_uuids().nth(index));
    let Some(uuid) = uuid.and_then(|uuid| CString::new(uuid).ok()) else {
        return nvmlReturn_t::NVML_ERROR_INVALID_ARGUMENT;
    };
    // SAFETY: the program's own argument, and a text that lives as long as the call.
    unsafe { nvml.nvmlDeviceGetHandleByUUID(uuid.as_ptr(), device) }
}

/// As [`by_index`] counts.
///
/// # Safety
/// The contract of the NVML function of this name.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[allow(non_snake_case)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut c_uint) -> nvmlReturn_t {
    let Some(real) = real::nvml() else { return nvmlReturn_t::NVML_ERROR_LIBRARY_NOT_FOUND };
    // SAFETY: the program's own arguments.
    let result = unsafe { real.nvml.nvmlDeviceGetIndex(device, index) };
    if let Some(slice) = joined().filter(|_| result.is_ok()) {
        let uuid = uuid(&real.nvml, device);
        let place = uuid.and_then(|uuid| slice.gpu_uuids().position(|own| own == uuid));
        // SAFETY: NVML has just written it.
        unsafe { index.write(place.and_then(|place| c_uint::try_from(place).ok()).unwrap_or(0)) };
    }
    result
}

/// The slice that this process is in.
fn joined() -> Option<&'static Slice> {
    catch_unwind(slice::current).ok().flatten()
}

fn seen(nvml: &Nvml, device: nvmlDevice_t, card: Card) -> Option<Seen> {
    catch_unwind(AssertUnwindSafe(|| view::seen(card, &uuid(nvml, device)?))).ok().flatten()
}

/// The device's UUID as NVML writes it, `GPU-…`.
fn uuid(nvml: &Nvml, device: nvmlDevice_t) -> Option<String> {
    let mut text: [c_char; 96] = [0; 96];
    // SAFETY: the buffer and its length belong together.
    let result = unsafe { nvml.nvmlDeviceGetUUID(device, text.as_mut_ptr(), 95) };
    // SAFETY: the last byte is still zero, so the text ends within the buffer.
    result.is_ok().then(|| unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
}

/// What NVML counts in its first form's total and CUDA does not.
fn reserved(nvml: &Nvml, device: nvmlDevice_t) -> u64 {
    let version = u32::try_from(size_of::<nvmlMemory_v2_t>()).unwrap_or(0) | (2 << 24);
    let mut memory = nvmlMemory_v2_t { version, total: 0, reserved: 0, free: 0, used: 0 };
    // SAFETY: a live local of the version that it says.
    let result = unsafe { nvml.nvmlDeviceGetMemoryInfo_v2(device, &raw mut memory) };
    if result.is_ok() { memory.reserved } else { 0 }
}
