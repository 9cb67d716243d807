//! Memory of the host that kernels can reach.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::{c_uint, c_void};

use emuv_cuda::CUresult;

use crate::{entry::entries, session::Session};

entries! {
    /// Remembered.
    fn cuMemHostAlloc(pp: *mut *mut c_void, bytesize: usize, Flags: c_uint) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemHostAlloc(pp, bytesize, Flags) };
        // SAFETY: the driver has written it where it succeeded.
        Some(unsafe { remember(session, result, pp, bytesize) })
    }

    /// Remembered.
    fn cuMemAllocHost_v2(pp: *mut *mut c_void, bytesize: usize) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemAllocHost_v2(pp, bytesize) };
        // SAFETY: the driver has written it where it succeeded.
        Some(unsafe { remember(session, result, pp, bytesize) })
    }

    /// Forgotten.
    fn cuMemFreeHost(p: *mut c_void) |session, _driver| {
        session.host_ranges.remove(p as u64);
        None
    }

    /// Remembered.
    fn cuMemHostRegister_v2(p: *mut c_void, bytesize: usize, Flags: c_uint) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemHostRegister_v2(p, bytesize, Flags) };
        if result == CUresult::SUCCESS {
            session.host_ranges.add(p as u64, bytesize as u64);
        }
        Some(result)
    }

    /// Forgotten.
    fn cuMemHostUnregister(p: *mut c_void) |session, _driver| {
        session.host_ranges.remove(p as u64);
        None
    }
}

/// # Safety
/// `start` is valid if the call succeeded.
unsafe fn remember(session: &Session, result: CUresult, start: *mut *mut c_void, bytes: usize) -> CUresult {
    if result == CUresult::SUCCESS {
        // SAFETY: the caller's word.
        session.host_ranges.add(unsafe { *start } as u64, bytes as u64);
    }
    result
}
