//! NVML's view of memory: the same totals as CUDA's, in every process of the run (`nvidia-smi` too).
#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use core::ffi::{CStr, c_char};

use emuv_cuda::{Nvml, nvml_types::*};

use crate::{
    real,
    view::{self, Card, Seen},
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
