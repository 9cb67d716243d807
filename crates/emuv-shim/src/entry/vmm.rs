//! The program's own virtual memory management. Handles of plain device memory are virtualised
//! (`handles.rs`), so that they may lie in RAM. Others (compressed, for fabrics, tile pools) are the
//! driver's, charged against the VRAM budget from creation until they are neither held nor mapped.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::{c_ulonglong, c_void};

use emuv_cuda::{CUresult, CuResult, types::*};
use emuv_policy::Tier;

use crate::{
    account::Kind,
    arena::Refusal,
    device::Device,
    entry::entries,
    handles::{Backing, Handles},
    moves,
    session::Session,
};

entries! {
    /// In VRAM while there is room, then in RAM.
    fn cuMemCreate(
        handle: *mut CUmemGenericAllocationHandle,
        size: usize,
        prop: *const CUmemAllocationProp,
        flags: c_ulonglong,
    ) |session, driver| {
        // SAFETY: null or valid by the driver's contract.
        let properties = *unsafe { prop.as_ref() }?;
        if properties.location.type_ != CU_MEM_LOCATION_TYPE_DEVICE || handle.is_null() || !session.places() {
            return None;
        }
        // SAFETY: a device location has an id.
        let device = session.device(unsafe { properties.location.__bindgen_anon_1.id })?;
        let bytes = size as u64;
        let create = |properties: &CUmemAllocationProp| -> CuResult<u64> {
            let mut real = 0;
            // SAFETY: live locals, else the program's own arguments.
            unsafe { driver.cuMemCreate(&raw mut real, size, properties, flags) }.ok().map(|()| real)
        };
        if !is_plain(&properties) || flags != 0 {
            // It cannot lie in RAM.
            return Some(device.create_accounted(session, Kind::Handle, bytes, || {
                let real = create(&properties)?;
                // SAFETY: not null, so valid by the driver's contract.
                unsafe { handle.write(real) };
                Ok(real)
            }));
        }
        let made = device.make_handle(session, bytes, || create(&properties), || in_ram(device, &properties, create));
        Some(match made {
            Ok((real, tier)) => {
                let handle_types = properties.requestedHandleTypes;
                let rdma_capable = properties.allocFlags.gpuDirectRDMACapable != 0;
                let backing = Backing { real, tier, bytes, device: device.ordinal, handle_types, rdma_capable };
                // SAFETY: not null, so valid by the driver's contract.
                unsafe { handle.write(session.handles.add(backing)) };
                CUresult::SUCCESS
            }
            Err(Refusal::NoRoom) => CUresult::OUT_OF_MEMORY,
            Err(Refusal::Driver(error)) => error.code(),
        })
    }

    /// One holder less.
    fn cuMemRelease(handle: CUmemGenericAllocationHandle) |session, driver| {
        if Handles::is_ours(handle) {
            let Some(gone) = session.handles.release(handle) else { return Some(CUresult::INVALID_VALUE) };
            gone.iter().for_each(|backing| give_back(session, backing));
            return Some(CUresult::SUCCESS);
        }
        // SAFETY: the program's own argument.
        let result = unsafe { driver.cuMemRelease(handle) };
        if result == CUresult::SUCCESS {
            session.release_account(Kind::Handle, handle);
        }
        Some(result)
    }

    /// One holder more of what is mapped there.
    fn cuMemRetainAllocationHandle(handle: *mut CUmemGenericAllocationHandle, addr: *mut c_void) |session, driver| {
        if handle.is_null() {
            return None;
        }
        if let Some(name) = session.handles.retain_at(addr as u64) {
            // SAFETY: not null, so valid by the driver's contract.
            unsafe { handle.write(name) };
            return Some(CUresult::SUCCESS);
        }
        moves::in_reach(session);
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemRetainAllocationHandle(handle, addr) };
        if result == CUresult::SUCCESS {
            // SAFETY: the driver has written it.
            retain(session, unsafe { *handle });
        }
        Some(result)
    }

    /// Maps what is behind the name.
    fn cuMemMap(ptr: CUdeviceptr, size: usize, offset: usize, handle: CUmemGenericAllocationHandle, flags: c_ulonglong)
    |session, driver| {
        if Handles::is_ours(handle) {
            let Some(backing) = session.handles.get_for_use(handle) else { return Some(CUresult::INVALID_VALUE) };
            // SAFETY: the program's own arguments; the handle is the one behind its name.
            let result = unsafe { driver.cuMemMap(ptr, size, offset, backing.real, flags) };
            if result == CUresult::SUCCESS {
                session.handles.mapped(handle, ptr, size as u64);
            }
            return Some(result);
        }
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemMap(ptr, size, offset, handle, flags) };
        if result == CUresult::SUCCESS && retain(session, handle) {
            session.mappings.add(ptr, size as u64, handle);
        }
        Some(result)
    }

    /// What is then neither held nor mapped is given back.
    fn cuMemUnmap(ptr: CUdeviceptr, size: usize) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemUnmap(ptr, size) };
        if result == CUresult::SUCCESS {
            for backing in session.handles.unmapped(ptr, size as u64) {
                give_back(session, &backing);
            }
            for handle in session.mappings.take(ptr, size as u64) {
                session.release_account(Kind::Handle, handle);
            }
        }
        Some(result)
    }

    /// What the program asked for, wherever it lies.
    fn cuMemGetAllocationPropertiesFromHandle(prop: *mut CUmemAllocationProp, handle: CUmemGenericAllocationHandle)
    |session, _driver| {
        let Some(backing) = behind(session, handle)?.filter(|_| !prop.is_null()) else {
            return Some(CUresult::INVALID_VALUE);
        };
        // SAFETY: not null, so valid by the driver's contract.
        unsafe { prop.write(wanted(&backing)) };
        Some(CUresult::SUCCESS)
    }

    /// Exports what is behind the name, for another process to import.
    fn cuMemExportToShareableHandle(
        shareableHandle: *mut c_void,
        handle: CUmemGenericAllocationHandle,
        handleType: CUmemAllocationHandleType,
        flags: c_ulonglong,
    ) |session, driver| {
        let Some(backing) = made_known(session, handle)? else { return Some(CUresult::INVALID_VALUE) };
        // SAFETY: the program's own arguments; the handle is the one behind its name.
        Some(unsafe { driver.cuMemExportToShareableHandle(shareableHandle, backing.real, handleType, flags) })
    }

    /// Binds what is behind the name to a multicast object.
    fn cuMulticastBindMem(
        mcHandle: CUmemGenericAllocationHandle,
        mcOffset: usize,
        memHandle: CUmemGenericAllocationHandle,
        memOffset: usize,
        size: usize,
        flags: c_ulonglong,
    ) |session, driver| {
        let Some(backing) = made_known(session, memHandle)? else { return Some(CUresult::INVALID_VALUE) };
        // SAFETY: the program's own arguments; the handle is the one behind its name.
        Some(unsafe { driver.cuMulticastBindMem(mcHandle, mcOffset, backing.real, memOffset, size, flags) })
    }

    /// Binds what is behind the name to a multicast object, on one device.
    fn cuMulticastBindMem_v2(
        mcHandle: CUmemGenericAllocationHandle,
        dev: CUdevice,
        mcOffset: usize,
        memHandle: CUmemGenericAllocationHandle,
        memOffset: usize,
        size: usize,
        flags: c_ulonglong,
    ) |session, driver| {
        let Some(backing) = made_known(session, memHandle)? else { return Some(CUresult::INVALID_VALUE) };
        // SAFETY: the program's own arguments; the handle is the one behind its name.
        Some(unsafe { driver.cuMulticastBindMem_v2(mcHandle, dev, mcOffset, backing.real, memOffset, size, flags) })
    }
}

/// What is behind a name of ours, if the program holds it. `None`: the handle is one of the driver's.
#[allow(clippy::option_option)]
fn behind(session: &Session, handle: CUmemGenericAllocationHandle) -> Option<Option<Backing>> {
    Handles::is_ours(handle).then(|| session.handles.get(handle))
}

/// The same for a handle that others are about to know: memory in VRAM. Where it has been used in RAM already it stays
/// there, because nobody can hold the work that touches it, and where VRAM has no room as well: importers reach it too.
#[allow(clippy::option_option)]
fn made_known(session: &Session, handle: CUmemGenericAllocationHandle) -> Option<Option<Backing>> {
    if let Some(backing) = behind(session, handle)?.filter(|backing| backing.tier == Tier::Ram)
        && session.handles.is_unused(handle)
    {
        to_vram(session, handle, &backing);
    }
    Some(session.handles.get_for_use(handle))
}

/// Plain device memory: what may lie in RAM without the program noticing. Handles that can be exported as
/// file descriptors are (PyTorch asks for that, just in case); RDMA capability is wished for, not needed.
fn is_plain(properties: &CUmemAllocationProp) -> bool {
    properties.type_ == CU_MEM_ALLOCATION_TYPE_PINNED
        && matches!(properties.requestedHandleTypes, CU_MEM_HANDLE_TYPE_NONE | CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        && properties.allocFlags.compressionType == 0
        && properties.allocFlags.usage == 0
}

/// The same memory in RAM; without the ability to be exported where the driver has that only for VRAM.
fn in_ram(
    device: &Device,
    wanted: &CUmemAllocationProp,
    create: impl Fn(&CUmemAllocationProp) -> CuResult<u64>,
) -> CuResult<u64> {
    let mut properties = device.arena.ram_properties()?;
    properties.requestedHandleTypes = wanted.requestedHandleTypes;
    create(&properties).or_else(|error| {
        if error.is_out_of_memory() || properties.requestedHandleTypes == CU_MEM_HANDLE_TYPE_NONE {
            return Err(error);
        }
        create(&device.arena.ram_properties()?)
    })
}

/// Puts memory in VRAM behind a name whose memory in RAM nobody has used, if there is room.
fn to_vram(session: &Session, name: u64, backing: &Backing) {
    let Some(device) = session.device(backing.device) else { return };
    let (properties, Ok(bytes)) = (wanted(backing), usize::try_from(backing.bytes)) else { return };
    let made = device.make_vram_handle(session, backing.bytes, || {
        let mut real = 0;
        // SAFETY: live locals.
        let made = unsafe { session.real.driver.cuMemCreate(&raw mut real, bytes, &raw const properties, 0) };
        made.ok().map(|()| real)
    });
    if let Ok(real) = made {
        let before = session.handles.exchange(name, Backing { real, tier: Tier::Vram, ..*backing });
        give_back(session, &before);
    }
}

/// What the program asked for.
fn wanted(backing: &Backing) -> CUmemAllocationProp {
    // SAFETY: a plain C structure; zero is a valid value of it.
    let mut properties: CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.requestedHandleTypes = backing.handle_types;
    properties.location.type_ = CU_MEM_LOCATION_TYPE_DEVICE;
    properties.location.__bindgen_anon_1.id = backing.device;
    properties.allocFlags.gpuDirectRDMACapable = u8::from(backing.rdma_capable);
    properties
}

fn give_back(session: &Session, backing: &Backing) {
    // SAFETY: made by `cuMemCreate` above; neither held nor mapped any more.
    let _ = unsafe { session.real.driver.cuMemRelease(backing.real) };
    if let Some(device) = session.device(backing.device) {
        device.arena.with_memory(|memory| memory.credit_whole(backing.bytes, backing.tier));
        device.publish(session);
    }
}

fn retain(session: &Session, handle: u64) -> bool {
    session.devices().any(|device| device.accounts.retain(Kind::Handle, handle))
}
