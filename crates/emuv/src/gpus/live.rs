//! The GPUs as NVML sees them, again and again: for whoever watches.
//!
//! # Safety
//! As in `gpus.rs`: calls into NVML with pointers to live locals, of the length that is given with them. A device's handle is
//! valid as long as the session is, and is asked for anew at each look.
#![allow(unsafe_code)]

use emuv_cuda::{
    Nvml,
    nvml_types::{nvmlDevice_t, nvmlMemory_t, nvmlProcessInfo_t, nvmlReturn_t, nvmlUtilization_t},
};
use emuv_watch::{GpuProcess, GpuReading, Gpus};

use super::{NvmlSession, text};
use crate::libs::RealLibraries;

/// Processes of a GPU that are looked at.
const MOST_PROCESSES: usize = 4096;

/// NVML, loaded once and started as soon as the driver is.
#[derive(Debug)]
pub struct LiveGpus {
    nvml: Result<Nvml, String>,
    started: bool,
}

impl LiveGpus {
    /// The driver of this machine, or of the environment.
    pub fn find() -> Self {
        let nvml = RealLibraries::find(None).map_err(|error| format!("no NVIDIA driver: {error}"));
        let nvml = nvml.and_then(|real| {
            let path = real.nvml.ok_or_else(|| "NVML is missing (libnvidia-ml.so.1)".to_owned())?;
            Nvml::open(&path).map_err(|error| error.to_string())
        });
        Self { nvml, started: false }
    }
}

impl Gpus for LiveGpus {
    fn look(&mut self) -> Result<Vec<GpuReading>, String> {
        let nvml = self.nvml.as_ref().map_err(Clone::clone)?;
        if !self.started {
            // It stays started until this process ends: starting it takes longer than all looks together.
            std::mem::forget(NvmlSession::start(nvml).map_err(|error| error.words().to_owned())?);
            self.started = true;
        }
        let mut count = 0;
        // SAFETY: see the module's head.
        let counted = unsafe { nvml.nvmlDeviceGetCount_v2(&raw mut count) };
        if !counted.is_ok() {
            // The driver was unloaded, or is gone: perhaps it comes again.
            self.started = false;
            return Err(format!("NVML does not answer ({})", counted.0));
        }
        Ok((0..count).map(|index| reading(nvml, index)).collect())
    }
}

fn reading(nvml: &Nvml, index: u32) -> GpuReading {
    let mut found = GpuReading { index, ..GpuReading::default() };
    let mut device: nvmlDevice_t = std::ptr::null_mut();
    // SAFETY: see the module's head.
    if !unsafe { nvml.nvmlDeviceGetHandleByIndex_v2(index, &raw mut device) }.is_ok() {
        return found;
    }
    // SAFETY: see the module's head; the handle is valid, here and below.
    found.name = text(|buffer, length| unsafe { nvml.nvmlDeviceGetName(device, buffer, length) }.is_ok());
    // SAFETY: as above.
    found.uuid = text(|buffer, length| unsafe { nvml.nvmlDeviceGetUUID(device, buffer, length) }.is_ok());
    let mut memory = nvmlMemory_t { total: 0, free: 0, used: 0 };
    // SAFETY: as above.
    if unsafe { nvml.nvmlDeviceGetMemoryInfo(device, &raw mut memory) }.is_ok() {
        found.vram_total_bytes = Some(memory.total);
        found.vram_used_bytes = Some(memory.used);
    }
    let mut busy = nvmlUtilization_t { gpu: 0, memory: 0 };
    // SAFETY: as above.
    if unsafe { nvml.nvmlDeviceGetUtilizationRates(device, &raw mut busy) }.is_ok() {
        found.busy_percent = Some(busy.gpu);
    }
    // SAFETY: as above; the list has as many places as the count says.
    let compute = processes(|count, list| unsafe { nvml.nvmlDeviceGetComputeRunningProcesses_v3(device, count, list) });
    // SAFETY: as above.
    let graphics =
        processes(|count, list| unsafe { nvml.nvmlDeviceGetGraphicsRunningProcesses_v3(device, count, list) });
    for process in compute.into_iter().chain(graphics) {
        // One that does both is in both lists.
        if found.processes.iter().all(|known| known.pid != process.pid) {
            found.processes.push(process);
        }
    }
    found
}

/// A list from a call that says how long it is when there is no room for it.
fn processes(mut ask: impl FnMut(*mut u32, *mut nvmlProcessInfo_t) -> nvmlReturn_t) -> Vec<GpuProcess> {
    let empty = nvmlProcessInfo_t { pid: 0, usedGpuMemory: 0, gpuInstanceId: 0, computeInstanceId: 0 };
    let mut room = 32;
    while room <= MOST_PROCESSES {
        let mut list = vec![empty; room];
        let mut count = u32::try_from(room).unwrap_or(0);
        let answer = ask(&raw mut count, list.as_mut_ptr());
        if answer == nvmlReturn_t::NVML_ERROR_INSUFFICIENT_SIZE {
            room *= 4;
            continue;
        }
        list.truncate(if answer.is_ok() { count as usize } else { 0 });
        // All ones: the driver does not say.
        let used = |bytes: u64| Some(bytes).filter(|bytes| *bytes != u64::MAX);
        return list.iter().map(|p| GpuProcess { pid: p.pid, vram_bytes: used(p.usedGpuMemory) }).collect();
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_longer_than_its_room_is_asked_for_again() {
        let mut asked = 0;
        let found = processes(|count, list| {
            asked += 1;
            // SAFETY: the count is a live number, the list has as many places.
            unsafe {
                let room = *count;
                *count = 100;
                if room < 100 {
                    return nvmlReturn_t::NVML_ERROR_INSUFFICIENT_SIZE;
                }
                for index in 0..100 {
                    (*list.add(index)).pid = 7;
                    (*list.add(index)).usedGpuMemory = u64::MAX;
                }
            }
            nvmlReturn_t::NVML_SUCCESS
        });
        assert_eq!((asked, found.len(), found[99]), (2, 100, GpuProcess { pid: 7, vram_bytes: None }));
        assert!(processes(|_, _| nvmlReturn_t::NVML_ERROR_UNKNOWN).is_empty());
    }
}
