//! NVML's view of the same cards. It ignores `CUDA_VISIBLE_DEVICES`, as NVML does.

use std::{
    ffi::{c_char, c_int, c_uint},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use emuv_cuda::nvml_types::{
    nvmlBAR1Memory_t, nvmlDevice_t, nvmlMemory_t, nvmlMemory_v2_t, nvmlPciInfo_t, nvmlProcessInfo_t, nvmlReturn_t,
    nvmlTemperatureSensors_t, nvmlUtilization_t,
};

use super::{
    abi::{Out, nvml_entries, pointer, zeroed},
    device::parse_bus,
};
use crate::{
    machine::{Gpu, NAME},
    process,
};

/// Initialisations that were not shut down.
static USERS: AtomicU32 = AtomicU32::new(0);

/// The version that NVML says it has.
const NVML_VERSION: &str = "13.580.0";
/// The version of the kernel driver: no number, so that nobody takes it for a real one.
const DRIVER_VERSION: &str = "simulated";
/// A card's handle is this plus its index.
const HANDLE_BASE: u64 = 0x51_0000;

type Outcome = Result<(), nvmlReturn_t>;

fn bad() -> nvmlReturn_t {
    nvmlReturn_t::NVML_ERROR_INVALID_ARGUMENT
}

fn initialize() -> Outcome {
    let setup = process::setup();
    if !setup.is_valid {
        return Err(bad());
    }
    setup.claim();
    if setup.is_forked_child() {
        return Err(nvmlReturn_t::NVML_ERROR_UNINITIALIZED);
    }
    USERS.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

fn ready() -> Outcome {
    if USERS.load(Ordering::Relaxed) == 0 || process::setup().is_forked_child() {
        return Err(nvmlReturn_t::NVML_ERROR_UNINITIALIZED);
    }
    if process::setup().machine.is_lost() {
        return Err(nvmlReturn_t::NVML_ERROR_GPU_IS_LOST);
    }
    Ok(())
}

fn gpus() -> Result<&'static [Arc<Gpu>], nvmlReturn_t> {
    ready()?;
    Ok(&process::setup().machine.gpus)
}

fn gpu(device: Out<emuv_cuda::nvml_types::nvmlDevice_st>) -> Result<&'static Arc<Gpu>, nvmlReturn_t> {
    let index = device.address().checked_sub(HANDLE_BASE).and_then(|index| usize::try_from(index).ok());
    index.and_then(|index| gpus().map(|all| all.get(index)).transpose()).unwrap_or_else(|| {
        ready()?;
        Err(bad())
    })
}

fn write<T>(out: Out<T>, value: T) -> Outcome {
    out.write(value).map_err(|_| bad())
}

fn text(out: Out<c_char>, room: c_uint, text: &str) -> Outcome {
    let room = usize::try_from(room).unwrap_or(0);
    if room <= text.len() {
        return Err(nvmlReturn_t::NVML_ERROR_INSUFFICIENT_SIZE);
    }
    out.text(text, room).map_err(|_| bad())
}

fn handle(out: Out<nvmlDevice_t>, found: Option<&Arc<Gpu>>) -> Outcome {
    let gpu = found.ok_or(nvmlReturn_t::NVML_ERROR_NOT_FOUND)?;
    write(out, pointer(HANDLE_BASE + gpu.index as u64))
}

fn by_index(index: c_uint, out: Out<nvmlDevice_t>) -> Outcome {
    let found = usize::try_from(index).ok().and_then(|index| gpus().map(|all| all.get(index)).transpose());
    handle(out, Some(found.unwrap_or(Err(bad()))?))
}

fn by_bus(id: &str, out: Out<nvmlDevice_t>) -> Outcome {
    let bus = parse_bus(id).ok_or_else(bad)?;
    handle(out, gpus()?.iter().find(|gpu| gpu.bus() == bus))
}

fn characters<const N: usize>(text: &str) -> [c_char; N] {
    let mut characters = [0; N];
    for (character, byte) in characters.iter_mut().zip(text.bytes().take(N - 1)) {
        *character = byte.cast_signed();
    }
    characters
}

fn pci(gpu: &Gpu, out: Out<nvmlPciInfo_t>) -> Outcome {
    let mut info: nvmlPciInfo_t = zeroed();
    info.busIdLegacy = characters(&gpu.pci_bus_id());
    info.busId = characters(&format!("0000{}", gpu.pci_bus_id()));
    info.bus = gpu.bus();
    write(out, info)
}

fn processes(gpu: &Gpu, count: Out<c_uint>, list: Out<nvmlProcessInfo_t>) -> Outcome {
    let room = count.read().map_err(|_| bad())?;
    let running = u32::from(gpu.contexts.load(Ordering::Relaxed) > 0);
    write(count, running)?;
    if running == 0 {
        return Ok(());
    }
    if room == 0 || list.is_null() {
        return Err(nvmlReturn_t::NVML_ERROR_INSUFFICIENT_SIZE);
    }
    let mut info: nvmlProcessInfo_t = zeroed();
    info.pid = std::process::id();
    info.usedGpuMemory = gpu.vram.used().0;
    info.gpuInstanceId = u32::MAX;
    info.computeInstanceId = u32::MAX;
    write(list, info)
}

fn interface_version(out: Out<c_int>) -> Outcome {
    write(out, c_int::try_from(process::setup().machine.config.driver).unwrap_or(0))
}

nvml_entries! {
    fn nvmlInit_v2() { initialize() }

    untyped fn nvmlInit() { initialize() }

    untyped fn nvmlInitWithFlags(flags: c_uint) {
        let _ = flags;
        initialize()
    }

    fn nvmlShutdown() {
        let left = USERS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |users| users.checked_sub(1));
        left.map(|_| ()).map_err(|_| nvmlReturn_t::NVML_ERROR_UNINITIALIZED)
    }

    fn nvmlSystemGetDriverVersion(out: *mut c_char, room: c_uint) {
        ready()?;
        text(out, room, DRIVER_VERSION)
    }

    fn nvmlSystemGetNVMLVersion(out: *mut c_char, room: c_uint) { text(out, room, NVML_VERSION) }

    fn nvmlSystemGetCudaDriverVersion_v2(out: *mut c_int) { interface_version(out) }

    untyped fn nvmlSystemGetCudaDriverVersion(out: *mut c_int) { interface_version(out) }

    fn nvmlDeviceGetCount_v2(out: *mut c_uint) { write(out, c_uint::try_from(gpus()?.len()).unwrap_or(0)) }

    untyped fn nvmlDeviceGetCount(out: *mut c_uint) { write(out, c_uint::try_from(gpus()?.len()).unwrap_or(0)) }

    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, out: *mut nvmlDevice_t) { by_index(index, out) }

    untyped fn nvmlDeviceGetHandleByIndex(index: c_uint, out: *mut nvmlDevice_t) { by_index(index, out) }

    fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, out: *mut nvmlDevice_t) {
        let uuid = uuid.text().map_err(|_| bad())?;
        handle(out, gpus()?.iter().find(|gpu| gpu.uuid_text() == uuid))
    }

    untyped fn nvmlDeviceGetHandleByPciBusId(id: *const c_char, out: *mut nvmlDevice_t) {
        by_bus(&id.text().map_err(|_| bad())?, out)
    }

    untyped fn nvmlDeviceGetHandleByPciBusId_v2(id: *const c_char, out: *mut nvmlDevice_t) {
        by_bus(&id.text().map_err(|_| bad())?, out)
    }

    fn nvmlDeviceGetName(device: nvmlDevice_t, out: *mut c_char, room: c_uint) {
        gpu(device)?;
        text(out, room, NAME)
    }

    fn nvmlDeviceGetUUID(device: nvmlDevice_t, out: *mut c_char, room: c_uint) {
        text(out, room, &gpu(device)?.uuid_text())
    }

    fn nvmlDeviceGetIndex(device: nvmlDevice_t, out: *mut c_uint) {
        write(out, c_uint::try_from(gpu(device)?.index).unwrap_or(0))
    }

    fn nvmlDeviceGetMinorNumber(device: nvmlDevice_t, out: *mut c_uint) {
        write(out, c_uint::try_from(gpu(device)?.index).unwrap_or(0))
    }

    fn nvmlDeviceGetMemoryInfo(device: nvmlDevice_t, out: *mut nvmlMemory_t) {
        let vram = &gpu(device)?.vram;
        let (total, used) = (vram.limit().0, vram.used().0);
        write(out, nvmlMemory_t { total, free: total - used, used })
    }

    fn nvmlDeviceGetMemoryInfo_v2(device: nvmlDevice_t, out: *mut nvmlMemory_v2_t) {
        let vram = &gpu(device)?.vram;
        let asked = out.read().map_err(|_| bad())?.version;
        // Version 2 in the top byte, the size of the structure below it.
        if asked != version_word::<nvmlMemory_v2_t>(2) {
            return Err(nvmlReturn_t::NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        let (total, used) = (vram.limit().0, vram.used().0);
        write(out, nvmlMemory_v2_t { version: asked, total, reserved: 0, free: total - used, used })
    }

    fn nvmlDeviceGetBAR1MemoryInfo(device: nvmlDevice_t, out: *mut nvmlBAR1Memory_t) {
        let bar1 = gpu(device)?.vram.limit().0;
        write(out, nvmlBAR1Memory_t { bar1Total: bar1, bar1Free: bar1, bar1Used: 0 })
    }

    fn nvmlDeviceGetPciInfo_v3(device: nvmlDevice_t, out: *mut nvmlPciInfo_t) { pci(gpu(device)?, out) }

    untyped fn nvmlDeviceGetPciInfo_v2(device: nvmlDevice_t, out: *mut nvmlPciInfo_t) { pci(gpu(device)?, out) }

    fn nvmlDeviceGetCurrPcieLinkGeneration(device: nvmlDevice_t, out: *mut c_uint) {
        gpu(device)?;
        write(out, 4)
    }

    fn nvmlDeviceGetMaxPcieLinkGeneration(device: nvmlDevice_t, out: *mut c_uint) {
        gpu(device)?;
        write(out, 4)
    }

    fn nvmlDeviceGetCurrPcieLinkWidth(device: nvmlDevice_t, out: *mut c_uint) {
        gpu(device)?;
        write(out, 16)
    }

    fn nvmlDeviceGetMaxPcieLinkWidth(device: nvmlDevice_t, out: *mut c_uint) {
        gpu(device)?;
        write(out, 16)
    }

    fn nvmlDeviceGetUtilizationRates(device: nvmlDevice_t, out: *mut nvmlUtilization_t) {
        gpu(device)?;
        write(out, nvmlUtilization_t { gpu: 0, memory: 0 })
    }

    fn nvmlDeviceGetTemperature(device: nvmlDevice_t, sensor: nvmlTemperatureSensors_t, out: *mut c_uint) {
        let _ = (gpu(device)?, sensor, out);
        Err(nvmlReturn_t::NVML_ERROR_NOT_SUPPORTED)
    }

    fn nvmlDeviceGetPowerUsage(device: nvmlDevice_t, out: *mut c_uint) {
        let _ = (gpu(device)?, out);
        Err(nvmlReturn_t::NVML_ERROR_NOT_SUPPORTED)
    }

    fn nvmlDeviceGetComputeRunningProcesses_v3(
        device: nvmlDevice_t, count: *mut c_uint, list: *mut nvmlProcessInfo_t,
    ) { processes(gpu(device)?, count, list) }

    untyped fn nvmlDeviceGetComputeRunningProcesses_v2(
        device: nvmlDevice_t, count: *mut c_uint, list: *mut nvmlProcessInfo_t,
    ) { processes(gpu(device)?, count, list) }

    fn nvmlDeviceGetGraphicsRunningProcesses_v3(
        device: nvmlDevice_t, count: *mut c_uint, list: *mut nvmlProcessInfo_t,
    ) {
        let _ = (gpu(device)?, list);
        write(count, 0)
    }

    untyped fn nvmlDeviceGetCudaComputeCapability(device: nvmlDevice_t, major: *mut c_int, minor: *mut c_int) {
        gpu(device)?;
        write(major, 9)?;
        write(minor, 0)
    }
}

/// The version word of a structure: the number in the top byte, the size below.
fn version_word<T>(number: u32) -> c_uint {
    (number << 24) | u32::try_from(size_of::<T>()).unwrap_or(0)
}

/// A result code in words; this one function returns no code.
pub mod words {
    use std::ffi::{CStr, c_char};

    use emuv_cuda::nvml_types::nvmlReturn_t;

    fn describe(code: nvmlReturn_t) -> &'static CStr {
        match code {
            nvmlReturn_t::NVML_SUCCESS => c"Success",
            nvmlReturn_t::NVML_ERROR_UNINITIALIZED => c"Uninitialized",
            nvmlReturn_t::NVML_ERROR_INVALID_ARGUMENT => c"Invalid Argument",
            nvmlReturn_t::NVML_ERROR_NOT_SUPPORTED => c"Not Supported",
            nvmlReturn_t::NVML_ERROR_NOT_FOUND => c"Not Found",
            nvmlReturn_t::NVML_ERROR_INSUFFICIENT_SIZE => c"Insufficient Size",
            nvmlReturn_t::NVML_ERROR_FUNCTION_NOT_FOUND => c"Function Not Found",
            nvmlReturn_t::NVML_ERROR_GPU_IS_LOST => c"GPU is lost",
            nvmlReturn_t::NVML_ERROR_ARGUMENT_VERSION_MISMATCH => c"Argument version mismatch",
            _ => c"Unknown Error",
        }
    }

    crate::entry::abi::nvml_text_entry! {
        fn nvmlErrorString(code: nvmlReturn_t) -> *const c_char { describe(code).as_ptr() }
    }
}
