//! The program's own virtual memory management: the driver's, its device memory charged against the VRAM
//! budget from creation until it is neither held nor mapped.
#![allow(unsafe_code)]

use core::ffi::{c_ulonglong, c_void};

use emuv_cuda::{CUresult, types::*};

use crate::{
    account::{Accounts, Kind},
    entry::entries,
    session::Session,
};

entries! {
    /// Device memory is charged, then the driver's.
    fn cuMemCreate(
        handle: *mut CUmemGenericAllocationHandle,
        size: usize,
        prop: *const CUmemAllocationProp,
        flags: c_ulonglong,
    ) |session, driver| {
        // SAFETY: null or valid by the driver's contract.
        let location = unsafe { prop.as_ref() }?.location;
        if location.type_ != CU_MEM_LOCATION_TYPE_DEVICE {
            return None;
        }
        // SAFETY: a device location has an id.
        let device = session.device(unsafe { location.__bindgen_anon_1.id })?;
        let bytes = size as u64;
        if !Accounts::charge(device, bytes) {
            return Some(device.refuse(session));
        }
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemCreate(handle, size, prop, flags) };
        if result == CUresult::SUCCESS {
            // SAFETY: the driver has written it.
            device.accounts.book(Kind::Handle, unsafe { *handle }, bytes);
        } else {
            Accounts::credit(device, bytes);
        }
        device.publish(session);
        Some(result)
    }

    /// One reference less.
    fn cuMemRelease(handle: CUmemGenericAllocationHandle) |session, driver| {
        // SAFETY: the program's own argument.
        let result = unsafe { driver.cuMemRelease(handle) };
        if result == CUresult::SUCCESS {
            release(session, handle);
        }
        Some(result)
    }

    /// One reference more.
    fn cuMemRetainAllocationHandle(handle: *mut CUmemGenericAllocationHandle, addr: *mut c_void) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemRetainAllocationHandle(handle, addr) };
        if result == CUresult::SUCCESS {
            // SAFETY: the driver has written it.
            retain(session, unsafe { *handle });
        }
        Some(result)
    }

    /// A mapping is a reference too.
    fn cuMemMap(ptr: CUdeviceptr, size: usize, offset: usize, handle: CUmemGenericAllocationHandle, flags: c_ulonglong)
    |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemMap(ptr, size, offset, handle, flags) };
        if result == CUresult::SUCCESS && retain(session, handle) {
            session.mappings.add(ptr, size as u64, handle);
        }
        Some(result)
    }

    /// The mappings' references go.
    fn cuMemUnmap(ptr: CUdeviceptr, size: usize) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemUnmap(ptr, size) };
        if result == CUresult::SUCCESS {
            for handle in session.mappings.take(ptr, size as u64) {
                release(session, handle);
            }
        }
        Some(result)
    }
}

fn retain(session: &Session, handle: u64) -> bool {
    session.devices().any(|device| device.accounts.retain(Kind::Handle, handle))
}

fn release(session: &Session, handle: u64) {
    for device in session.devices() {
        if device.accounts.release(device, Kind::Handle, handle) {
            device.publish(session);
        }
    }
}
