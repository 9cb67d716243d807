//! Managed memory: the driver's, charged against the VRAM budget and never beyond it (a program that
//! oversubscribes managed memory can take the whole host down).
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::c_uint;

use emuv_cuda::{CUresult, types::*};

use crate::{
    account::{Accounts, Kind},
    calls,
    entry::entries,
};

entries! {
    /// Charged, then the driver's.
    fn cuMemAllocManaged(dptr: *mut CUdeviceptr, bytesize: usize, flags: c_uint) |session, driver| {
        let device = session.device(calls::current_device(session.real).ok()?)?;
        let bytes = bytesize as u64;
        if !Accounts::charge(device, bytes) {
            return Some(device.refuse(session));
        }
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemAllocManaged(dptr, bytesize, flags) };
        if result == CUresult::SUCCESS {
            // SAFETY: the driver has written it.
            device.accounts.book(Kind::Managed, unsafe { *dptr }, bytes);
        } else {
            Accounts::credit(device, bytes);
        }
        device.publish(session);
        Some(result)
    }
}
