//! What GPUs there are, asked of NVML, or of the driver where NVML is missing.
//!
//! # Safety
//! The unsafe steps are calls into NVML and the driver: every pointer given is to a live local that is as
//! large as the length given with it, and every text returned is read only if its function succeeded. One
//! more is setting a variable of the own environment; see [`simulate`].
#![allow(unsafe_code)]

pub mod live;

use std::{
    env,
    ffi::{CStr, CString, c_char},
    path::Path,
};

use emuv_cuda::{
    Driver, Nvml,
    nvml_types::{
        nvmlDevice_t, nvmlGetMemoryLimits_v1_t, nvmlMemory_t, nvmlPciInfo_t, nvmlReturn_t, nvmlSetMemoryLimits_v1_t,
    },
    types::CUuuid,
};
use emuv_policy::Bytes;
use emuv_state::{env as variables, uuid_text};

use crate::libs::RealLibraries;

/// The oldest interface version that emuV works with: CUDA 12.2, whose drivers map host memory by NUMA node.
pub const OLDEST_CUDA: u32 = 12_020;

/// The driver and its GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The driver's release, e.g. `580.65.06`; only NVML knows it.
    pub driver_version: Option<String>,
    /// The interface version, e.g. 13000 for CUDA 13.0.
    pub cuda_version: u32,
    /// In NVML's order, which is that of nvidia-smi.
    pub gpus: Vec<GpuFacts>,
}

/// One GPU. `None`: unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuFacts {
    /// As in nvidia-smi.
    pub index: u32,
    /// The product's name.
    pub name: Option<String>,
    /// E.g. `GPU-9b1d…`.
    pub uuid: Option<String>,
    /// All of its memory.
    pub vram_total: Option<Bytes>,
    /// What nobody uses now.
    pub vram_free: Option<Bytes>,
    /// The link to the host, now and at most.
    pub link: Link,
}

/// A PCIe link. An idle card may show a lower generation than it reaches under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Link {
    pub generation: Option<u32>,
    pub width: Option<u32>,
    pub generation_max: Option<u32>,
    pub width_max: Option<u32>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoMachine {
    /// The driver's library is missing.
    NoLibrary(String),
    /// The library is there, the kernel's part is not.
    NotLoaded(String),
    /// NVML is missing and the driver did not answer in its place.
    NoNvml(String),
    /// Anything else.
    Other(String),
}

impl NoMachine {
    /// What went wrong.
    pub fn words(&self) -> &str {
        let (Self::NoLibrary(words) | Self::NotLoaded(words) | Self::NoNvml(words) | Self::Other(words)) = self;
        words
    }
}

impl Machine {
    /// Asks NVML; where that is missing or does not answer, the driver.
    ///
    /// # Errors
    /// Neither answered.
    pub fn look(real: &RealLibraries) -> Result<Self, NoMachine> {
        let Some(nvml) = &real.nvml else {
            return from_driver(&real.cuda).map_err(|error| match error {
                NoMachine::Other(words) => NoMachine::NoNvml(format!("no libnvidia-ml.so.1, and {words}")),
                missing => missing,
            });
        };
        match from_nvml(nvml) {
            Err(error @ NoMachine::NotLoaded(_)) => Err(error),
            Err(error) => from_driver(&real.cuda).map_err(|_| error),
            found => found,
        }
    }
}

/// Configures the simulated GPU for this process. It must be called before the library is loaded and before
/// there is a second thread, which is to say: first.
pub fn simulate(settings: &str) {
    // SAFETY: no other thread exists yet (the caller's part), so none reads the environment meanwhile.
    unsafe { env::set_var(variables::SIM, settings) };
}

fn from_nvml(path: &Path) -> Result<Machine, NoMachine> {
    let nvml = Nvml::open(path).map_err(|error| NoMachine::Other(error.to_string()))?;
    let session = NvmlSession::start(&nvml)?;
    let mut cuda_version = 0;
    // SAFETY: see the module's head.
    session.check("the CUDA version", unsafe { nvml.nvmlSystemGetCudaDriverVersion_v2(&raw mut cuda_version) })?;
    let mut count = 0;
    // SAFETY: see the module's head.
    session.check("the number of GPUs", unsafe { nvml.nvmlDeviceGetCount_v2(&raw mut count) })?;
    Ok(Machine {
        // SAFETY: see the module's head.
        driver_version: text(|buffer, length| unsafe { nvml.nvmlSystemGetDriverVersion(buffer, length) }.is_ok()),
        cuda_version: u32::try_from(cuda_version).unwrap_or(0),
        gpus: (0..count).map(|index| nvml_gpu(&nvml, index)).collect(),
    })
}

struct NvmlSession<'n>(&'n Nvml);

impl<'n> NvmlSession<'n> {
    fn start(nvml: &'n Nvml) -> Result<Self, NoMachine> {
        // SAFETY: no arguments.
        let result = unsafe { nvml.nvmlInit_v2() };
        if result == nvmlReturn_t::NVML_ERROR_DRIVER_NOT_LOADED {
            return Err(NoMachine::NotLoaded("the NVIDIA driver is installed but not loaded".to_owned()));
        }
        let session = Self(nvml);
        if let Err(error) = session.check("start", result) {
            // Not started, so there is nothing to end.
            std::mem::forget(session);
            return Err(error);
        }
        Ok(session)
    }

    fn check(&self, what: &str, result: nvmlReturn_t) -> Result<(), NoMachine> {
        if result.is_ok() {
            return Ok(());
        }
        // SAFETY: NVML returns a text that lives as long as the library, which is never unloaded.
        let words = unsafe {
            let words = self.0.nvmlErrorString(result);
            if words.is_null() { c"unknown error" } else { CStr::from_ptr(words) }
        };
        Err(NoMachine::Other(format!("NVML, {what}: {} ({})", words.to_string_lossy(), result.0)))
    }
}

impl Drop for NvmlSession<'_> {
    fn drop(&mut self) {
        // SAFETY: no arguments; started before.
        unsafe { self.0.nvmlShutdown() };
    }
}

fn nvml_gpu(nvml: &Nvml, index: u32) -> GpuFacts {
    let mut facts =
        GpuFacts { index, name: None, uuid: None, vram_total: None, vram_free: None, link: Link::default() };
    let mut device: nvmlDevice_t = std::ptr::null_mut();
    // SAFETY: see the module's head.
    if !unsafe { nvml.nvmlDeviceGetHandleByIndex_v2(index, &raw mut device) }.is_ok() {
        return facts;
    }
    // SAFETY: see the module's head; the handle is valid, here and below.
    facts.name = text(|buffer, length| unsafe { nvml.nvmlDeviceGetName(device, buffer, length) }.is_ok());
    // SAFETY: as above.
    facts.uuid = text(|buffer, length| unsafe { nvml.nvmlDeviceGetUUID(device, buffer, length) }.is_ok());
    let mut memory = nvmlMemory_t { total: 0, free: 0, used: 0 };
    // SAFETY: as above.
    if unsafe { nvml.nvmlDeviceGetMemoryInfo(device, &raw mut memory) }.is_ok() {
        facts.vram_total = Some(Bytes(memory.total));
        facts.vram_free = Some(Bytes(memory.free));
    }
    facts.link = Link {
        // SAFETY: as above.
        generation: number(|out| unsafe { nvml.nvmlDeviceGetCurrPcieLinkGeneration(device, out) }),
        // SAFETY: as above.
        width: number(|out| unsafe { nvml.nvmlDeviceGetCurrPcieLinkWidth(device, out) }),
        // SAFETY: as above.
        generation_max: number(|out| unsafe { nvml.nvmlDeviceGetMaxPcieLinkGeneration(device, out) }),
        // SAFETY: as above.
        width_max: number(|out| unsafe { nvml.nvmlDeviceGetMaxPcieLinkWidth(device, out) }),
    };
    facts
}

/// What the driver says of limits of one GPU's memory.
#[derive(Debug)]
pub struct DriverLimits {
    nvml: Nvml,
    uuid: CString,
    /// E.g. `0000:01:00.0`.
    pub pci_address: Option<String>,
}

impl DriverLimits {
    /// Asks NVML about the GPU with this UUID; `None` where that does not answer.
    pub fn of(real: &RealLibraries, uuid: &str) -> Option<Self> {
        let nvml = Nvml::open(real.nvml.as_deref()?).ok()?;
        let mut found = Self { nvml, uuid: CString::new(uuid).ok()?, pci_address: None };
        found.pci_address = found.with_device(|nvml, device| {
            // SAFETY: plain numbers and texts, for which zero is a value.
            let mut info: nvmlPciInfo_t = unsafe { std::mem::zeroed() };
            // SAFETY: see the module's head; the handle is valid.
            let result = unsafe { nvml.nvmlDeviceGetPciInfo_v3(device, &raw mut info) };
            let text: String =
                info.busId.iter().take_while(|c| **c != 0).map(|c| char::from(c.cast_unsigned())).collect();
            // NVML writes eight digits of the domain, the kernel four.
            let short = text.get(text.len().checked_sub(12)?..)?;
            result.is_ok().then(|| short.to_ascii_lowercase())
        });
        Some(found)
    }

    /// Whether the driver keeps limits of control groups (of which `group` is one).
    pub fn can_limit(&self, group: &Path) -> bool {
        let name = CString::new(group.as_os_str().as_encoded_bytes()).unwrap_or_default();
        let asked = self.with_device(|nvml, device| {
            let mut limits =
                nvmlGetMemoryLimits_v1_t { nameSpace: name.as_ptr(), softLimit: 0, hardLimit: 0, currentUsed: 0 };
            // SAFETY: see the module's head; the text lives as long as the call.
            let result = unsafe { nvml.nvmlDeviceGetMemoryLimits_v1(device, &raw mut limits) };
            result.is_ok().then_some(())
        });
        asked.is_some()
    }

    /// Has the driver keep a limit of a control group.
    ///
    /// # Errors
    /// One line.
    pub fn limit(&self, group: &Path, most: Bytes) -> Result<(), String> {
        let name = CString::new(group.as_os_str().as_encoded_bytes()).unwrap_or_default();
        let said = self.with_device(|nvml, device| {
            let mut limits = nvmlSetMemoryLimits_v1_t { nameSpace: name.as_ptr(), softLimit: 0, hardLimit: most.0 };
            // SAFETY: see the module's head; the text lives as long as the call.
            Some(unsafe { nvml.nvmlDeviceSetMemoryLimits_v1(device, &raw mut limits) })
        });
        match said {
            Some(result) if result.is_ok() => Ok(()),
            Some(result) => Err(format!("NVML refuses a memory limit for {} ({})", group.display(), result.0)),
            None => Err("NVML does not answer".to_owned()),
        }
    }

    fn with_device<T>(&self, ask: impl FnOnce(&Nvml, nvmlDevice_t) -> Option<T>) -> Option<T> {
        let _session = NvmlSession::start(&self.nvml).ok()?;
        let mut device: nvmlDevice_t = std::ptr::null_mut();
        // SAFETY: see the module's head; the text lives as long as the call.
        let found = unsafe { self.nvml.nvmlDeviceGetHandleByUUID(self.uuid.as_ptr(), &raw mut device) };
        if found.is_ok() { ask(&self.nvml, device) } else { None }
    }
}

fn number(ask: impl FnOnce(*mut u32) -> nvmlReturn_t) -> Option<u32> {
    let mut value = 0;
    ask(&raw mut value).is_ok().then_some(value)
}

/// A text from a call that fills a buffer of a given length and says whether it did.
fn text(ask: impl FnOnce(*mut c_char, u32) -> bool) -> Option<String> {
    let mut buffer = [0_u8; 128];
    // One byte fewer than there is, so that a text that is not ended by its writer is ended all the same.
    if !ask(buffer.as_mut_ptr().cast(), 127) {
        return None;
    }
    let text = CStr::from_bytes_until_nul(&buffer).ok()?;
    Some(text.to_string_lossy().into_owned()).filter(|text| !text.is_empty())
}

/// As far as the driver knows: it sees only what `CUDA_VISIBLE_DEVICES` lets it see, in its own order.
fn from_driver(path: &Path) -> Result<Machine, NoMachine> {
    let driver = Driver::open(path).map_err(|error| NoMachine::NoLibrary(format!("no NVIDIA driver: {error}")))?;
    let other = |error: emuv_cuda::CuError| NoMachine::Other(format!("the driver says {error}"));
    let cuda_version = driver.version().map_err(other)?;
    // SAFETY: no pointers.
    unsafe { driver.cuInit(0) }.ok().map_err(other)?;
    let mut count = 0;
    // SAFETY: see the module's head.
    unsafe { driver.cuDeviceGetCount(&raw mut count) }.ok().map_err(other)?;
    let gpus = (0..count).map(|ordinal| driver_gpu(&driver, ordinal)).collect();
    Ok(Machine { driver_version: None, cuda_version, gpus })
}

fn driver_gpu(driver: &Driver, ordinal: i32) -> GpuFacts {
    let index = u32::try_from(ordinal).unwrap_or(0);
    let mut device = 0;
    // SAFETY: see the module's head. A failure leaves an invalid device, which the calls below refuse.
    if unsafe { driver.cuDeviceGet(&raw mut device, ordinal) }.ok().is_err() {
        device = -1;
    }
    let mut uuid = CUuuid { bytes: [0; 16] };
    // SAFETY: as above.
    let has_uuid = unsafe { driver.cuDeviceGetUuid_v2(&raw mut uuid, device) }.ok().is_ok();
    let mut total = 0_usize;
    // SAFETY: as above.
    let has_total = unsafe { driver.cuDeviceTotalMem_v2(&raw mut total, device) }.ok().is_ok();
    GpuFacts {
        index,
        name: text(|buffer, length| {
            let length = i32::try_from(length).unwrap_or(0);
            // SAFETY: as above.
            unsafe { driver.cuDeviceGetName(buffer, length, device) }.ok().is_ok()
        }),
        uuid: uuid_text(&uuid.bytes.map(c_char::cast_unsigned)).filter(|_| has_uuid),
        vram_total: has_total.then_some(Bytes(total as u64)),
        vram_free: None,
        link: Link::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_fills_its_buffer_is_still_ended() {
        let full = text(|buffer, length| {
            // SAFETY: the buffer has that many bytes.
            unsafe { std::ptr::write_bytes(buffer, b'x', length as usize) };
            true
        });
        assert_eq!(full.map(|text| text.len()), Some(127));
        assert_eq!(text(|_, _| false), None);
        assert_eq!(text(|_, _| true), None, "an empty text is unknown");
    }
}
