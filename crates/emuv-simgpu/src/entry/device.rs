//! Devices: what there is and what it can do.

use std::ffi::{c_char, c_int, c_uint};

use emuv_cuda::{
    CUresult, CuResult,
    types::{self, CUdevice, CUdevice_P2PAttribute, CUdevice_attribute, CUdevprop_v1, CUexecAffinityType, CUuuid},
};

use super::abi::{entries, zeroed};
use crate::{
    machine::{Gpu, NAME},
    memory::physical::error,
    simulator::Device,
};

/// Multiprocessors of the simulated GPU.
pub const MULTIPROCESSORS: i32 = 16;
/// Threads that one block may have.
pub const MAX_THREADS_PER_BLOCK: i32 = 1024;
/// Threads that one multiprocessor runs at a time.
pub const MAX_THREADS_PER_MULTIPROCESSOR: i32 = 2048;
/// Shared memory of one block.
pub const SHARED_BYTES_PER_BLOCK: i32 = 48 << 10;
/// Shared memory of one block that asks for more.
pub const SHARED_BYTES_PER_BLOCK_OPTIN: i32 = 227 << 10;
const MAX_GRID: [i32; 3] = [i32::MAX, 65_535, 65_535];
const MAX_BLOCK: [i32; 3] = [1024, 1024, 64];
const REGISTERS: i32 = 65_536;
const CLOCK_KHZ: i32 = 1_500_000;

fn attribute(device: &Device, which: CUdevice_attribute) -> CuResult<c_int> {
    let config = &device.gpu.config;
    if !(1..types::CU_DEVICE_ATTRIBUTE_MAX).contains(&which) {
        return Err(error(CUresult::INVALID_VALUE));
    }
    Ok(match which {
        types::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK => MAX_THREADS_PER_BLOCK,
        types::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X => MAX_BLOCK[0],
        types::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y => MAX_BLOCK[1],
        types::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z => MAX_BLOCK[2],
        types::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X => MAX_GRID[0],
        types::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y => MAX_GRID[1],
        types::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z => MAX_GRID[2],
        types::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK => SHARED_BYTES_PER_BLOCK,
        types::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN => SHARED_BYTES_PER_BLOCK_OPTIN,
        types::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR => 228 << 10,
        types::CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK => 1 << 10,
        types::CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY => 64 << 10,
        types::CU_DEVICE_ATTRIBUTE_WARP_SIZE => 32,
        types::CU_DEVICE_ATTRIBUTE_MAX_PITCH => i32::MAX,
        types::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK
        | types::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR => REGISTERS,
        types::CU_DEVICE_ATTRIBUTE_CLOCK_RATE | types::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE => CLOCK_KHZ,
        types::CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT | types::CU_DEVICE_ATTRIBUTE_SURFACE_ALIGNMENT => 512,
        types::CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT => 32,
        types::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT => MULTIPROCESSORS,
        types::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID => c_int::try_from(device.gpu.bus()).unwrap_or(0),
        types::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH => 256,
        types::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE => 4 << 20,
        types::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR => MAX_THREADS_PER_MULTIPROCESSOR,
        types::CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR => 32,
        types::CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT => 2,
        types::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => 9,
        types::CU_DEVICE_ATTRIBUTE_SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO => 2,
        types::CU_DEVICE_ATTRIBUTE_GPU_OVERLAP
        | types::CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY
        | types::CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS
        | types::CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING
        | types::CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED
        | types::CU_DEVICE_ATTRIBUTE_GLOBAL_L1_CACHE_SUPPORTED
        | types::CU_DEVICE_ATTRIBUTE_LOCAL_L1_CACHE_SUPPORTED
        | types::CU_DEVICE_ATTRIBUTE_COMPUTE_PREEMPTION_SUPPORTED
        | types::CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM
        | types::CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_MEM_OPS_V1
        | types::CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS_V1
        | types::CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS
        | types::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH
        | types::CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED
        | types::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED
        | types::CU_DEVICE_ATTRIBUTE_UNIFIED_FUNCTION_POINTERS
        | types::CU_DEVICE_ATTRIBUTE_MEM_SYNC_DOMAIN_COUNT => 1,
        types::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
        | types::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED => c_int::from(device.gpu.has_vmm()),
        types::CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
        | types::CU_DEVICE_ATTRIBUTE_HOST_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED => {
            c_int::from(device.gpu.has_vmm() && config.numa)
        }
        // No NUMA node of its own.
        types::CU_DEVICE_ATTRIBUTE_NUMA_ID => -1,
        // Host node 0, compute capability x.0, PCI domain and device 0, and all that is not there.
        _ => 0,
    })
}

fn uuid(gpu: &Gpu) -> CUuuid {
    CUuuid { bytes: gpu.uuid().map(u8::cast_signed) }
}

entries! {
    fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int) |call| {
        device.required()?;
        device.write(call.device(ordinal)?.ordinal)
    }

    fn cuDeviceGetCount(count: *mut c_int) |call| {
        count.write(c_int::try_from(call.simulator.devices.len()).unwrap_or(0))
    }

    fn cuDeviceGetName(name: *mut c_char, length: c_int, device: CUdevice) |call| {
        call.device(device)?;
        name.text(NAME, usize::try_from(length).unwrap_or(0))
    }

    fn cuDeviceGetUuid / cuDeviceGetUuid_v2(out: *mut CUuuid, device: CUdevice) |call| {
        out.write(uuid(&call.device(device)?.gpu))
    }

    fn cuDeviceGetLuid(luid: *mut c_char, mask: *mut c_uint, device: CUdevice) |call| {
        // A Windows notion.
        let _ = (luid, mask, call.device(device)?);
        Err(error(CUresult::NOT_SUPPORTED))
    }

    fn cuDeviceTotalMem(bytes: *mut c_uint, device: CUdevice) |call| {
        let total = call.device(device)?.gpu.vram.limit().0;
        bytes.write(c_uint::try_from(total).unwrap_or(c_uint::MAX))
    }

    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice) |call| {
        bytes.write(crate::memory::length(call.device(device)?.gpu.vram.limit().0))
    }

    fn cuDeviceGetAttribute(value: *mut c_int, which: CUdevice_attribute, device: CUdevice) |call| {
        value.required()?;
        value.write(attribute(call.device(device)?, which)?)
    }

    fn cuDeviceGetPCIBusId(id: *mut c_char, length: c_int, device: CUdevice) |call| {
        let text = call.device(device)?.gpu.pci_bus_id();
        let room = usize::try_from(length).unwrap_or(0);
        if room <= text.len() {
            return Err(error(CUresult::INVALID_VALUE));
        }
        id.text(&text, room)
    }

    fn cuDeviceGetByPCIBusId(device: *mut CUdevice, id: *const c_char) |call| {
        device.required()?;
        let id = id.text()?;
        let bus = parse_bus(&id).ok_or(error(CUresult::INVALID_VALUE))?;
        let found = call.simulator.devices.iter().find(|device| device.gpu.bus() == bus);
        device.write(found.ok_or(error(CUresult::CUDA_ERROR_INVALID_DEVICE))?.ordinal)
    }

    fn cuDeviceGetProperties(properties: *mut CUdevprop_v1, device: CUdevice) |call| {
        call.device(device)?;
        let mut filled: CUdevprop_v1 = zeroed();
        filled.maxThreadsPerBlock = MAX_THREADS_PER_BLOCK;
        filled.maxThreadsDim = MAX_BLOCK;
        filled.maxGridSize = MAX_GRID;
        filled.sharedMemPerBlock = SHARED_BYTES_PER_BLOCK;
        filled.totalConstantMemory = 64 << 10;
        filled.SIMDWidth = 32;
        filled.memPitch = i32::MAX;
        filled.regsPerBlock = REGISTERS;
        filled.clockRate = CLOCK_KHZ;
        filled.textureAlign = 512;
        properties.write(filled)
    }

    fn cuDeviceComputeCapability(major: *mut c_int, minor: *mut c_int, device: CUdevice) |call| {
        call.device(device)?;
        major.write(9)?;
        minor.write(0)
    }

    fn cuDeviceCanAccessPeer(can: *mut c_int, device: CUdevice, peer: CUdevice) |call| {
        let _ = (call.device(device)?, call.device(peer)?);
        can.write(c_int::from(device != peer && call.simulator.machine.config.p2p))
    }

    fn cuDeviceGetP2PAttribute(value: *mut c_int, which: CUdevice_P2PAttribute, from: CUdevice, to: CUdevice) |call| {
        let _ = (call.device(from)?, call.device(to)?);
        if from == to || !(1..=types::CU_DEVICE_P2P_ATTRIBUTE_ONLY_PARTIAL_NATIVE_ATOMIC_SUPPORTED).contains(&which) {
            return Err(error(CUresult::INVALID_VALUE));
        }
        let is_there = [
            types::CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED,
            types::CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED,
        ];
        value.write(c_int::from(is_there.contains(&which) && call.simulator.machine.config.p2p))
    }

    fn cuDeviceGetExecAffinitySupport(value: *mut c_int, kind: CUexecAffinityType, device: CUdevice) |call| {
        let _ = (kind, call.device(device)?);
        value.write(0)
    }
}

/// The bus of `[domain:]bus:device.function`, in hexadecimal; only what the simulator has, else `None`.
pub fn parse_bus(id: &str) -> Option<u32> {
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    let id = id.strip_suffix(".0").unwrap_or(id);
    let mut parts = id.rsplit(':');
    let (device, bus, domain) = (hex(parts.next()?)?, hex(parts.next()?)?, parts.next().map_or(Some(0), hex)?);
    (device == 0 && domain == 0 && parts.next().is_none()).then_some(bus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bus_address_is_read_in_every_usual_form() {
        for id in ["0000:02:00.0", "02:00.0", "00000000:02:00.0", "0:2:0"] {
            assert_eq!(parse_bus(id), Some(2), "{id}");
        }
        for id in ["", "02", "0001:02:00.0", "02:01.0", "zz:00.0", "1:0000:02:00.0"] {
            assert_eq!(parse_bus(id), None, "{id}");
        }
    }
}
