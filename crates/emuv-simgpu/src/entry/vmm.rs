//! Virtual memory management. None of these calls needs a context, waits for a stream or cares about one.

use std::{
    ffi::{c_ulonglong, c_void},
    os::fd::IntoRawFd,
};

use emuv_cuda::{
    CUresult, CuResult,
    types::{
        self, CUdeviceptr, CUmemAccessDesc, CUmemAllocationGranularity_flags, CUmemAllocationHandleType,
        CUmemAllocationProp, CUmemGenericAllocationHandle, CUmemLocation,
    },
};

use super::{
    abi::{descriptor, entries, location_id, zeroed},
    call::Call,
};
use crate::memory::{
    GRANULARITY_BYTES, length,
    physical::{Physical, Place, error},
    region::Access,
};

/// What the space calls the CPU when access is granted to it.
const CPU: i32 = -1;

fn invalid() -> emuv_cuda::CuError {
    error(CUresult::INVALID_VALUE)
}

/// What comes first in every call here.
fn begin(call: &Call) -> CuResult {
    let machine = &call.simulator.machine;
    machine.jitter.pause();
    if machine.gpus.iter().any(|gpu| gpu.has_vmm()) { Ok(()) } else { Err(error(CUresult::NOT_SUPPORTED)) }
}

/// The device, if it can do this.
fn managed(call: &Call, ordinal: i32) -> CuResult<i32> {
    if call.device(ordinal)?.gpu.has_vmm() { Ok(ordinal) } else { Err(error(CUresult::NOT_SUPPORTED)) }
}

fn place(call: &Call, properties: &CUmemAllocationProp) -> CuResult<Place> {
    let numa = call.simulator.machine.config.numa;
    if properties.type_ != types::CU_MEM_ALLOCATION_TYPE_PINNED {
        return Err(invalid());
    }
    if !matches!(
        properties.requestedHandleTypes,
        types::CU_MEM_HANDLE_TYPE_NONE | types::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    ) {
        return Err(error(CUresult::NOT_SUPPORTED));
    }
    let id = location_id(&properties.location);
    match properties.location.type_ {
        types::CU_MEM_LOCATION_TYPE_DEVICE => Ok(Place::Vram(managed(call, id)?)),
        types::CU_MEM_LOCATION_TYPE_HOST if numa => Ok(Place::Host(None)),
        // The machine has one node.
        types::CU_MEM_LOCATION_TYPE_HOST_NUMA if numa && id == 0 => Ok(Place::Host(Some(0))),
        _ => Err(invalid()),
    }
}

fn location(place: Place) -> CUmemLocation {
    let mut location: CUmemLocation = zeroed();
    let (kind, id) = match place {
        Place::Vram(ordinal) => (types::CU_MEM_LOCATION_TYPE_DEVICE, ordinal),
        Place::Host(None) => (types::CU_MEM_LOCATION_TYPE_HOST, 0),
        Place::Host(Some(node)) => (types::CU_MEM_LOCATION_TYPE_HOST_NUMA, node),
    };
    location.type_ = kind;
    location.__bindgen_anon_1.id = id;
    location
}

/// Whose access a location means.
fn accessor(call: &Call, location: &CUmemLocation) -> CuResult<i32> {
    match location.type_ {
        types::CU_MEM_LOCATION_TYPE_DEVICE => managed(call, location_id(location)),
        types::CU_MEM_LOCATION_TYPE_HOST | types::CU_MEM_LOCATION_TYPE_HOST_NUMA => Ok(CPU),
        _ => Err(invalid()),
    }
}

entries! {
    fn cuMemGetAllocationGranularity(
        out: *mut usize, properties: *const CUmemAllocationProp, option: CUmemAllocationGranularity_flags,
    ) |call| {
        begin(call)?;
        if option > types::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED {
            return Err(invalid());
        }
        place(call, &properties.read()?)?;
        out.write(length(GRANULARITY_BYTES))
    }

    fn cuMemAddressReserve(
        out: *mut CUdeviceptr, bytes: usize, alignment: usize, hint: CUdeviceptr, flags: c_ulonglong,
    ) |call| {
        begin(call)?;
        out.required()?;
        if flags != 0 {
            return Err(invalid());
        }
        out.write(call.simulator.machine.space.reserve(bytes as u64, alignment as u64, hint)?)
    }

    fn cuMemAddressFree(address: CUdeviceptr, bytes: usize) |call| {
        begin(call)?;
        if call.simulator.machine.heap.find(address).is_some() || call.simulator.machine.imports.owns(address) {
            return Err(invalid());
        }
        call.simulator.machine.space.unreserve(address, bytes as u64)
    }

    fn cuMemCreate(
        out: *mut CUmemGenericAllocationHandle, bytes: usize, properties: *const CUmemAllocationProp,
        flags: c_ulonglong,
    ) |call| {
        begin(call)?;
        out.required()?;
        let properties = properties.read()?;
        let place = place(call, &properties)?;
        let bytes = bytes as u64;
        if bytes == 0 || !bytes.is_multiple_of(GRANULARITY_BYTES) || flags != 0 {
            return Err(invalid());
        }
        let machine = &call.simulator.machine;
        let account = match place {
            Place::Vram(ordinal) => &call.device(ordinal)?.gpu.vram,
            Place::Host(_) => &machine.pinned,
        };
        let physical = Physical::create(account, place, bytes, properties.requestedHandleTypes)?;
        out.write(machine.space.adopt(physical))
    }

    fn cuMemRelease(handle: CUmemGenericAllocationHandle) |call| {
        begin(call)?;
        call.simulator.machine.space.release(handle)
    }

    fn cuMemMap(
        address: CUdeviceptr, bytes: usize, offset: usize, handle: CUmemGenericAllocationHandle, flags: c_ulonglong,
    ) |call| {
        begin(call)?;
        if flags != 0 {
            return Err(invalid());
        }
        call.simulator.machine.space.map(address, bytes as u64, offset as u64, handle)
    }

    fn cuMemUnmap(address: CUdeviceptr, bytes: usize) |call| {
        begin(call)?;
        let machine = &call.simulator.machine;
        if machine.owns(address) {
            return Err(invalid());
        }
        machine.space.unmap(address, bytes as u64)
    }

    fn cuMemSetAccess(address: CUdeviceptr, bytes: usize, grants: *const CUmemAccessDesc, count: usize) |call| {
        begin(call)?;
        if count == 0 {
            return Err(invalid());
        }
        let mut wanted = Vec::new();
        for grant in grants.read_all(count)? {
            let access = match grant.flags {
                types::CU_MEM_ACCESS_FLAGS_PROT_NONE => Access::None,
                types::CU_MEM_ACCESS_FLAGS_PROT_READ => Access::Read,
                types::CU_MEM_ACCESS_FLAGS_PROT_READWRITE => Access::ReadWrite,
                _ => return Err(invalid()),
            };
            wanted.push((accessor(call, &grant.location)?, access));
        }
        let machine = &call.simulator.machine;
        let place = machine.space.mapped(address).map(|mapped| mapped.physical.place());
        let is_far = |&(who, _): &(i32, Access)| matches!(place, Some(Place::Vram(ordinal)) if who != ordinal && who != CPU);
        if !machine.config.p2p && wanted.iter().any(is_far) {
            return Err(error(CUresult::CUDA_ERROR_INVALID_DEVICE));
        }
        machine.space.set_access(address, bytes as u64, &wanted)
    }

    fn cuMemGetAccess(flags: *mut c_ulonglong, location: *const CUmemLocation, address: CUdeviceptr) |call| {
        begin(call)?;
        let who = accessor(call, &location.read()?)?;
        let mapped = call.simulator.machine.space.mapped(address).ok_or_else(invalid)?;
        let access = mapped.access.iter().find(|(ordinal, _)| *ordinal == who).map(|(_, access)| *access);
        flags.write(match access.unwrap_or_default() {
            Access::None => u64::from(types::CU_MEM_ACCESS_FLAGS_PROT_NONE),
            Access::Read => u64::from(types::CU_MEM_ACCESS_FLAGS_PROT_READ),
            Access::ReadWrite => u64::from(types::CU_MEM_ACCESS_FLAGS_PROT_READWRITE),
        })
    }

    fn cuMemRetainAllocationHandle(out: *mut CUmemGenericAllocationHandle, address: *mut c_void) |call| {
        begin(call)?;
        out.required()?;
        let machine = &call.simulator.machine;
        if machine.heap.find(address.address()).is_some() || machine.imports.find(address.address()).is_some() {
            return Err(invalid());
        }
        out.write(machine.space.retain(address.address())?)
    }

    fn cuMemGetAllocationPropertiesFromHandle(
        out: *mut CUmemAllocationProp, handle: CUmemGenericAllocationHandle,
    ) |call| {
        begin(call)?;
        let physical = call.simulator.machine.space.physical(handle)?;
        let mut properties: CUmemAllocationProp = zeroed();
        properties.type_ = types::CU_MEM_ALLOCATION_TYPE_PINNED;
        properties.requestedHandleTypes = physical.handle_types;
        properties.location = location(physical.place());
        out.write(properties)
    }

    fn cuMemExportToShareableHandle(
        out: *mut c_void, handle: CUmemGenericAllocationHandle, kind: CUmemAllocationHandleType, flags: c_ulonglong,
    ) |call| {
        begin(call)?;
        out.required()?;
        let physical = call.simulator.machine.space.physical(handle)?;
        let posix = types::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
        if kind != posix || physical.handle_types & posix == 0 || flags != 0 {
            return Err(invalid());
        }
        let file = physical.share().map_err(|_| error(CUresult::CUDA_ERROR_OPERATING_SYSTEM))?;
        out.cast::<i32>().write(file.into_raw_fd())
    }

    fn cuMemImportFromShareableHandle(
        out: *mut CUmemGenericAllocationHandle, file: *mut c_void, kind: CUmemAllocationHandleType,
    ) |call| {
        begin(call)?;
        out.required()?;
        if kind != types::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR {
            return Err(invalid());
        }
        // Memory of another process counts as that of the first device; its creator pays for it.
        out.write(call.simulator.machine.space.import(descriptor(file)?, Place::Vram(0))?)
    }
}
