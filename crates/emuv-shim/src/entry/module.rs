//! Modules and libraries: their globals may hold pointers, and their functions' handles go with them.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::c_char;

use emuv_cuda::{CUresult, types::*};

use crate::{calls, entry::entries, globals::Global, moves, session::Session};

entries! {
    /// Where the global lies is remembered.
    fn cuModuleGetGlobal_v2(dptr: *mut CUdeviceptr, bytes: *mut usize, hmod: CUmodule, name: *const c_char)
    |session, driver| {
        let (mut address, mut size) = (0, 0);
        // SAFETY: live locals and the program's own arguments.
        let result = unsafe { driver.cuModuleGetGlobal_v2(&raw mut address, &raw mut size, hmod, name) };
        // SAFETY: each is null or valid by the driver's contract.
        Some(unsafe { found(session, hmod as usize, result, (address, size), dptr, bytes) })
    }

    /// Where the global lies is remembered.
    fn cuLibraryGetGlobal(dptr: *mut CUdeviceptr, bytes: *mut usize, library: CUlibrary, name: *const c_char)
    |session, driver| {
        let (mut address, mut size) = (0, 0);
        // SAFETY: live locals and the program's own arguments.
        let result = unsafe { driver.cuLibraryGetGlobal(&raw mut address, &raw mut size, library, name) };
        // SAFETY: each is null or valid by the driver's contract.
        Some(unsafe { found(session, library as usize, result, (address, size), dptr, bytes) })
    }

    /// Its functions and globals go.
    fn cuModuleUnload(hmod: CUmodule) |session, driver| {
        // SAFETY: the program's own argument.
        let result = moves::code_going(session, hmod as usize, || unsafe { driver.cuModuleUnload(hmod) });
        session.functions.forget();
        Some(result)
    }

    /// Its functions and globals go.
    fn cuLibraryUnload(library: CUlibrary) |session, driver| {
        // SAFETY: the program's own argument.
        let result = moves::code_going(session, library as usize, || unsafe { driver.cuLibraryUnload(library) });
        session.functions.forget();
        Some(result)
    }
}

/// # Safety
/// The out-pointers are null or valid.
unsafe fn found(
    session: &Session,
    module: usize,
    result: CUresult,
    (address, size): (CUdeviceptr, usize),
    dptr: *mut CUdeviceptr,
    bytes: *mut usize,
) -> CUresult {
    if result == CUresult::SUCCESS {
        let context = calls::current_context(session.real).map(calls::owner).ok();
        session.globals.add(Global { module, context, address, bytes: size as u64 });
        // SAFETY: the caller's word.
        unsafe {
            if !dptr.is_null() {
                dptr.write(address);
            }
            if !bytes.is_null() {
                bytes.write(size);
            }
        }
    }
    result
}
