//! Managed memory: the driver's, charged against the VRAM budget and never beyond it (a program that
//! oversubscribes managed memory can take the whole host down).
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::c_uint;

use emuv_cuda::types::*;

use crate::{account::Kind, calls, entry::entries};

entries! {
    /// Charged, then the driver's.
    fn cuMemAllocManaged(dptr: *mut CUdeviceptr, bytesize: usize, flags: c_uint) |session, driver| {
        let device = session.device(calls::current_device(session.real).ok()?)?;
        Some(device.create_accounted(session, Kind::Managed, bytesize as u64, || {
            // SAFETY: the program's own arguments.
            unsafe { driver.cuMemAllocManaged(dptr, bytesize, flags) }.ok()?;
            // SAFETY: the driver has written it.
            let address = unsafe { *dptr };
            session.host_ranges.add(address, bytesize as u64);
            Ok(address)
        }))
    }
}
