//! Memory of emuV's that others come to know by its physical place: it comes to VRAM and stays there.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::{c_ulonglong, c_void};

use emuv_cuda::{CUresult, types::*};

use crate::{entry::entries, moves, session::Session};

entries! {
    /// A descriptor of the memory behind an address, for another device or process.
    fn cuMemGetHandleForAddressRange(
        handle: *mut c_void, dptr: CUdeviceptr, size: usize, handleType: CUmemRangeHandleType, flags: c_ulonglong,
    ) |session, _driver| {
        stays_in_vram(session, dptr)
    }

    /// The memory behind an address becomes part of a multicast object.
    fn cuMulticastBindAddr(
        mcHandle: CUmemGenericAllocationHandle, mcOffset: usize, memptr: CUdeviceptr, size: usize, flags: c_ulonglong,
    ) |session, _driver| {
        stays_in_vram(session, memptr)
    }

    /// The memory behind an address becomes part of a multicast object.
    fn cuMulticastBindAddr_v2(
        mcHandle: CUmemGenericAllocationHandle, dev: CUdevice, mcOffset: usize, memptr: CUdeviceptr, size: usize,
        flags: c_ulonglong,
    ) |session, _driver| {
        stays_in_vram(session, memptr)
    }
}

/// `None`: the driver may have its address.
fn stays_in_vram(session: &Session, address: u64) -> Option<CUresult> {
    moves::pinned(session, address).err().map(emuv_cuda::CuError::code)
}
