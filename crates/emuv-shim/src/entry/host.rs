//! Memory of the host that kernels can reach.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::{c_uint, c_void};

use emuv_cuda::{CUresult, types::*};

use crate::{entry::entries, session::Session};

/// `CU_MEMHOSTALLOC_WRITECOMBINED`: reading it takes ages.
const WRITE_COMBINED: c_uint = 4;

/// `CU_MEMHOSTREGISTER_IOMEMORY`: reading it may have effects.
const IO_MEMORY: c_uint = 4;

entries! {
    /// Remembered.
    fn cuMemHostAlloc(pp: *mut *mut c_void, bytesize: usize, Flags: c_uint) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemHostAlloc(pp, bytesize, Flags) };
        // SAFETY: the driver has written it where it succeeded.
        Some(unsafe { remember(session, result, pp, bytesize, Flags & WRITE_COMBINED == 0) })
    }

    /// Remembered.
    fn cuMemAllocHost_v2(pp: *mut *mut c_void, bytesize: usize) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemAllocHost_v2(pp, bytesize) };
        // SAFETY: the driver has written it where it succeeded.
        Some(unsafe { remember(session, result, pp, bytesize, true) })
    }

    /// Forgotten.
    fn cuMemFreeHost(p: *mut c_void) |session, driver| {
        // SAFETY: the program's own argument.
        Some(forget(session, p as u64, || unsafe { driver.cuMemFreeHost(p) }))
    }

    /// Remembered.
    fn cuMemHostRegister_v2(p: *mut c_void, bytesize: usize, Flags: c_uint) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemHostRegister_v2(p, bytesize, Flags) };
        if result == CUresult::SUCCESS && Flags & IO_MEMORY == 0 {
            session.host_ranges.add_pinned(p as u64, bytesize as u64);
        } else if result == CUresult::SUCCESS {
            session.host_ranges.add(p as u64, bytesize as u64);
        }
        Some(result)
    }

    /// Forgotten.
    fn cuMemHostUnregister(p: *mut c_void) |session, driver| {
        // SAFETY: the program's own argument.
        Some(forget(session, p as u64, || unsafe { driver.cuMemHostUnregister(p) }))
    }

    /// Where the host may touch a mapping of the program's own, pointers may be written without a call.
    fn cuMemSetAccess(ptr: CUdeviceptr, size: usize, desc: *const CUmemAccessDesc, count: usize) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemSetAccess(ptr, size, desc, count) };
        if result == CUresult::SUCCESS && !desc.is_null() {
            // SAFETY: as many as the program says.
            let given = unsafe { std::slice::from_raw_parts(desc, count) };
            if given.iter().any(|access| is_host(access.location.type_) && access.flags != CU_MEM_ACCESS_FLAGS_PROT_NONE) {
                session.host_ranges.add(ptr, size as u64);
            }
        }
        Some(result)
    }
}

/// Functions of the host that run in a stream's order: what they write, the works behind them see.
macro_rules! in_order {
    ($(fn $name:ident($($arg:ident: $ty:ty),*);)*) => {
        entries! {
            $(
                /// Noted, and passed on.
                fn $name($($arg: $ty),*) |session, _driver| {
                    session.host_ranges.changes_later();
                    None
                }
            )*
        }
    };
}

in_order! {
    fn cuLaunchHostFunc(hStream: CUstream, fn_: CUhostFn, userData: *mut c_void);
    fn cuLaunchHostFunc_ptsz(hStream: CUstream, fn_: CUhostFn, userData: *mut c_void);
    fn cuLaunchHostFunc_v2(hStream: CUstream, fn_: CUhostFn, userData: *mut c_void, syncMode: c_uint);
    fn cuLaunchHostFunc_v2_ptsz(hStream: CUstream, fn_: CUhostFn, userData: *mut c_void, syncMode: c_uint);
    fn cuStreamAddCallback(hStream: CUstream, callback: CUstreamCallback, userData: *mut c_void, flags: c_uint);
    fn cuStreamAddCallback_ptsz(hStream: CUstream, callback: CUstreamCallback, userData: *mut c_void, flags: c_uint);
}

fn is_host(location: CUmemLocationType) -> bool {
    matches!(
        location,
        CU_MEM_LOCATION_TYPE_HOST | CU_MEM_LOCATION_TYPE_HOST_NUMA | CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT
    )
}

/// Memory of the host goes: forgotten before, because its address may be somebody else's right after.
pub(crate) fn forget(session: &Session, start: u64, call: impl FnOnce() -> CUresult) -> CUresult {
    let bytes = session.host_ranges.remove(start);
    let result = call();
    if let (Some(bytes), false) = (bytes, result == CUresult::SUCCESS) {
        session.host_ranges.add(start, bytes);
    }
    result
}

/// # Safety
/// `start` is valid if the call succeeded.
unsafe fn remember(
    session: &Session,
    result: CUresult,
    start: *mut *mut c_void,
    bytes: usize,
    readable: bool,
) -> CUresult {
    if result == CUresult::SUCCESS {
        // SAFETY: the caller's word.
        let start = unsafe { *start } as u64;
        if readable {
            session.host_ranges.add_pinned(start, bytes as u64);
        } else {
            session.host_ranges.add(start, bytes as u64);
        }
    }
    result
}
