//! Ways in: initialisation and the look-up of functions.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::{c_char, c_int, c_uint, c_void};

use emuv_cuda::{CUresult, types::*};

use crate::{entry::entries, real};

entries! {
    /// The first call of every program.
    fn cuInit(Flags: c_uint) |_session, _driver| { None }

    /// The driver answers; a function that emuV handles is swapped by its address.
    fn cuGetProcAddress(symbol: *const c_char, pfn: *mut *mut c_void, driverVersion: c_int, flags: cuuint64_t)
    |_session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuGetProcAddress(symbol, pfn, driverVersion, flags) };
        // SAFETY: after success the driver has written `pfn`, if it is not null.
        unsafe { swap_found(result, pfn) };
        Some(result)
    }

    /// The driver answers (its `symbolFound` stays as it is); a function that emuV handles is swapped by
    /// its address.
    fn cuGetProcAddress_v2(
        symbol: *const c_char,
        pfn: *mut *mut c_void,
        driverVersion: c_int,
        flags: cuuint64_t,
        symbolFound: *mut CUdriverProcAddressQueryResult,
    ) |_session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuGetProcAddress_v2(symbol, pfn, driverVersion, flags, symbolFound) };
        // SAFETY: after success the driver has written `pfn`, if it is not null.
        unsafe { swap_found(result, pfn) };
        Some(result)
    }
}

/// Puts our entry in place of the driver's function, if we have one.
///
/// # Safety
/// `pfn` is null or valid.
unsafe fn swap_found(result: CUresult, pfn: *mut *mut c_void) {
    if result != CUresult::SUCCESS || pfn.is_null() {
        return;
    }
    // SAFETY: not null, so valid by the contract above.
    let found = unsafe { &mut *pfn };
    if let Some(ours) = real::swap(found.cast_const()) {
        *found = ours.cast_mut();
    }
}
