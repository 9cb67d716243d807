//! What a pointer points to.

use std::ffi::{c_uint, c_void};

use emuv_cuda::{
    CUresult, CuResult,
    types::{self, CU_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_HOST, CUdeviceptr, CUpointer_attribute},
};

use super::{
    abi::{Out, entries},
    call::Call,
};
use crate::memory::{
    physical::{Place, error},
    region::Access,
};

/// Ordinal that `cuPointerGetAttributes` gives for a pointer that CUDA does not know.
const NO_DEVICE: i32 = -2;

/// What is known about a pointer.
struct Found {
    is_host: bool,
    context: u64,
    ordinal: i32,
    base: u64,
    bytes: u64,
    id: u64,
    handle_types: u32,
    pool: u64,
    mapping: (u64, u64),
    access: u32,
    can_be_shared: bool,
}

fn find(call: &Call, address: u64) -> Option<Found> {
    let machine = &call.simulator.machine;
    let mapped = machine.space.mapped(address);
    let mapping = mapped.as_ref().map_or((0, 0), |mapped| (mapped.base, mapped.physical.bytes()));
    let of_device = |context, ordinal, base, bytes, id| Found {
        is_host: false,
        context,
        ordinal,
        base,
        bytes,
        id,
        handle_types: 0,
        pool: 0,
        mapping,
        access: types::CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE,
        can_be_shared: false,
    };
    if let Some(a) = machine.heap.find(address) {
        let found = of_device(a.context, a.ordinal, a.base, a.bytes, a.id);
        return Some(Found { pool: a.pool, can_be_shared: a.pool == 0, ..found });
    }
    if let Some(a) = machine.imports.find(address) {
        return Some(of_device(a.context, a.ordinal, a.base, a.bytes, a.id));
    }
    if let Some(mapped) = mapped.filter(|mapped| !machine.owns(mapped.base)) {
        // Memory mapped by the program belongs to no context. Host memory has the device that may use it.
        let granted = mapped.access.iter().find(|(ordinal, _)| *ordinal >= 0).copied();
        let ordinal = match mapped.physical.place() {
            Place::Vram(ordinal) => ordinal,
            Place::Host(_) => granted.map_or(0, |(ordinal, _)| ordinal),
        };
        return Some(Found {
            is_host: matches!(mapped.physical.place(), Place::Host(_)),
            context: 0,
            ordinal,
            base: mapped.base,
            bytes: mapped.physical.bytes(),
            id: mapped.physical.inode(),
            handle_types: mapped.physical.handle_types,
            pool: 0,
            mapping,
            access: match granted.map(|(_, access)| access).unwrap_or_default() {
                Access::None => types::CU_POINTER_ATTRIBUTE_ACCESS_FLAG_NONE,
                Access::Read => types::CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READ,
                Access::ReadWrite => types::CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE,
            },
            can_be_shared: false,
        });
    }
    machine.space.with_host(address, |base, host| Found {
        is_host: true,
        context: host.context,
        ordinal: call.simulator.contexts.get(host.context).map_or(0, |context| context.engine.ordinal),
        base,
        bytes: host.bytes,
        id: host.id,
        handle_types: 0,
        pool: 0,
        mapping: (base, host.bytes),
        access: types::CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE,
        can_be_shared: false,
    })
}

/// Whether it is the host's memory that lies at an address.
pub(super) fn is_host(call: &Call, address: u64) -> bool {
    find(call, address).is_none_or(|found| found.is_host)
}

/// An attribute's value as the bytes that the caller gets. Truth values take one byte.
fn value(found: Option<&Found>, address: u64, which: CUpointer_attribute) -> CuResult<Vec<u8>> {
    let word = |value: u64| Ok(value.to_le_bytes().to_vec());
    let half = |value: u32| Ok(value.to_le_bytes().to_vec());
    let truth = |value: bool| Ok(vec![u8::from(value)]);
    let get = |pick: fn(&Found) -> u64| found.map_or(0, pick);
    match which {
        types::CU_POINTER_ATTRIBUTE_CONTEXT => word(get(|f| f.context)),
        types::CU_POINTER_ATTRIBUTE_MEMORY_TYPE => {
            half(found.map_or(0, |f| if f.is_host { CU_MEMORYTYPE_HOST } else { CU_MEMORYTYPE_DEVICE }))
        }
        types::CU_POINTER_ATTRIBUTE_DEVICE_POINTER => word(if found.is_some() { address } else { 0 }),
        types::CU_POINTER_ATTRIBUTE_HOST_POINTER => match found {
            Some(f) if !f.is_host => Err(error(CUresult::INVALID_VALUE)),
            Some(_) => word(address),
            None => word(0),
        },
        types::CU_POINTER_ATTRIBUTE_BUFFER_ID | types::CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID => word(get(|f| f.id)),
        types::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL => Ok(found.map_or(NO_DEVICE, |f| f.ordinal).to_le_bytes().to_vec()),
        types::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR => word(get(|f| f.base)),
        types::CU_POINTER_ATTRIBUTE_RANGE_SIZE => word(get(|f| f.bytes)),
        types::CU_POINTER_ATTRIBUTE_MAPPED => truth(found.is_some()),
        types::CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES => word(get(|f| u64::from(f.handle_types))),
        types::CU_POINTER_ATTRIBUTE_ACCESS_FLAGS => half(found.map_or(0, |f| f.access)),
        types::CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE => word(get(|f| f.pool)),
        types::CU_POINTER_ATTRIBUTE_MAPPING_SIZE => word(get(|f| f.mapping.1)),
        types::CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR => word(get(|f| f.mapping.0)),
        types::CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE => truth(found.is_some_and(|f| f.can_be_shared)),
        types::CU_POINTER_ATTRIBUTE_SYNC_MEMOPS
        | types::CU_POINTER_ATTRIBUTE_IS_MANAGED
        | types::CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE
        | types::CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE => truth(false),
        types::CU_POINTER_ATTRIBUTE_P2P_TOKENS => Err(error(CUresult::NOT_SUPPORTED)),
        _ => Err(error(CUresult::INVALID_VALUE)),
    }
}

fn write(out: Out<c_void>, bytes: &[u8]) -> CuResult {
    out.required()?;
    for (index, byte) in bytes.iter().enumerate() {
        out.cast::<u8>().write_at(index, *byte)?;
    }
    Ok(())
}

entries! {
    fn cuPointerGetAttribute(data: *mut c_void, which: CUpointer_attribute, address: CUdeviceptr) |call| {
        call.current()?;
        let found = find(call, address).ok_or(error(CUresult::INVALID_VALUE))?;
        write(data, &value(Some(&found), address, which)?)
    }

    fn cuPointerGetAttributes(
        count: c_uint, which: *mut CUpointer_attribute, data: *mut *mut c_void, address: CUdeviceptr,
    ) |call| {
        call.current()?;
        let found = find(call, address);
        for index in 0..usize::try_from(count).unwrap_or(0) {
            let at = data.cast::<u64>().read_at(index)?;
            // An attribute that the pointer does not have reads as null, it does not fail the others.
            let bytes = match value(found.as_ref(), address, which.read_at(index)?) {
                Ok(bytes) => bytes,
                Err(failure) if failure.code() == CUresult::NOT_SUPPORTED => continue,
                Err(failure) if which.read_at(index)? != types::CU_POINTER_ATTRIBUTE_HOST_POINTER => return Err(failure),
                Err(_) => vec![0; 8],
            };
            write(Out::at(at), &bytes)?;
        }
        Ok(())
    }

    fn cuPointerSetAttribute(value: *const c_void, which: CUpointer_attribute, address: CUdeviceptr) |call| {
        call.current()?;
        if value.address() == 0 || which != types::CU_POINTER_ATTRIBUTE_SYNC_MEMOPS || find(call, address).is_none() {
            return Err(error(CUresult::INVALID_VALUE));
        }
        Ok(())
    }
}
