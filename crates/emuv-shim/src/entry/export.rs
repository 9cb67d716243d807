//! Memory of emuV's that others come to know by its physical place: it stays where it is from then on.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::{c_ulonglong, c_void};

use emuv_cuda::types::*;

use crate::{entry::entries, moves};

entries! {
    /// A descriptor of the memory behind an address, for another device or process.
    fn cuMemGetHandleForAddressRange(
        handle: *mut c_void, dptr: CUdeviceptr, size: usize, handleType: CUmemRangeHandleType, flags: c_ulonglong,
    ) |session, _driver| {
        moves::pinned(session, dptr);
        None
    }

    /// The memory behind an address becomes part of a multicast object.
    fn cuMulticastBindAddr(
        mcHandle: CUmemGenericAllocationHandle, mcOffset: usize, memptr: CUdeviceptr, size: usize, flags: c_ulonglong,
    ) |session, _driver| {
        moves::pinned(session, memptr);
        None
    }

    /// The memory behind an address becomes part of a multicast object.
    fn cuMulticastBindAddr_v2(
        mcHandle: CUmemGenericAllocationHandle, dev: CUdevice, mcOffset: usize, memptr: CUdeviceptr, size: usize,
        flags: c_ulonglong,
    ) |session, _driver| {
        moves::pinned(session, memptr);
        None
    }
}
