//! Modules and libraries: their globals may hold pointers, their functions' handles go with them, and their code lies
//! in VRAM, which is charged against the budget. So are the memory for stacks, heap and print buffers (limits).
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::{c_char, c_uint, c_void};

use emuv_cuda::{CUresult, types::*};

use crate::{
    account::Kind, calls, context_charges, device::Device, entry::entries, globals::Global, moves, session::Session,
};

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

    /// Managed memory, which the host may write at any time.
    fn cuLibraryGetManaged(dptr: *mut CUdeviceptr, bytes: *mut usize, library: CUlibrary, name: *const c_char)
    |session, driver| {
        let (mut address, mut size) = (0, 0);
        // SAFETY: live locals and the program's own arguments.
        let result = unsafe { driver.cuLibraryGetManaged(&raw mut address, &raw mut size, library, name) };
        // SAFETY: each is null or valid by the driver's contract.
        Some(unsafe { found(session, library as usize, result, (address, size), dptr, bytes) })
    }

    /// Charged.
    fn cuModuleLoad(module: *mut CUmodule, fname: *const c_char) |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuModuleLoad(module, fname) };
        // SAFETY: read only after success: the driver has written it.
        load(session, call, || unsafe { *module } as u64)
    }

    /// Charged.
    fn cuModuleLoadData(module: *mut CUmodule, image: *const c_void) |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuModuleLoadData(module, image) };
        // SAFETY: as above.
        load(session, call, || unsafe { *module } as u64)
    }

    /// Charged.
    fn cuModuleLoadDataEx(
        module: *mut CUmodule, image: *const c_void, numOptions: c_uint, options: *mut CUjit_option,
        optionValues: *mut *mut c_void,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuModuleLoadDataEx(module, image, numOptions, options, optionValues) };
        // SAFETY: as above.
        load(session, call, || unsafe { *module } as u64)
    }

    /// Charged.
    fn cuModuleLoadFatBinary(module: *mut CUmodule, fatCubin: *const c_void) |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuModuleLoadFatBinary(module, fatCubin) };
        // SAFETY: as above.
        load(session, call, || unsafe { *module } as u64)
    }

    /// Charged.
    fn cuLibraryLoadData(
        library: *mut CUlibrary, code: *const c_void, jitOptions: *mut CUjit_option,
        jitOptionsValues: *mut *mut c_void, numJitOptions: c_uint, libraryOptions: *mut CUlibraryOption,
        libraryOptionValues: *mut *mut c_void, numLibraryOptions: c_uint,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe {
            driver.cuLibraryLoadData(
                library, code, jitOptions, jitOptionsValues, numJitOptions, libraryOptions, libraryOptionValues,
                numLibraryOptions,
            )
        };
        // SAFETY: as above.
        load(session, call, || unsafe { *library } as u64)
    }

    /// Charged.
    fn cuLibraryLoadFromFile(
        library: *mut CUlibrary, fileName: *const c_char, jitOptions: *mut CUjit_option,
        jitOptionsValues: *mut *mut c_void, numJitOptions: c_uint, libraryOptions: *mut CUlibraryOption,
        libraryOptionValues: *mut *mut c_void, numLibraryOptions: c_uint,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe {
            driver.cuLibraryLoadFromFile(
                library, fileName, jitOptions, jitOptionsValues, numJitOptions, libraryOptions, libraryOptionValues,
                numLibraryOptions,
            )
        };
        // SAFETY: as above.
        load(session, call, || unsafe { *library } as u64)
    }

    /// Its functions and globals go.
    fn cuModuleUnload(hmod: CUmodule) |session, driver| {
        // SAFETY: the program's own argument.
        Some(unload(session, hmod as usize, || unsafe { driver.cuModuleUnload(hmod) }))
    }

    /// Its functions and globals go.
    fn cuLibraryUnload(library: CUlibrary) |session, driver| {
        // SAFETY: the program's own argument.
        Some(unload(session, library as usize, || unsafe { driver.cuLibraryUnload(library) }))
    }

    /// Charged.
    fn cuCtxSetLimit(limit: CUlimit, value: usize) |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuCtxSetLimit(limit, value) };
        let Some((context, device)) = session.here() else { return Some(call()) };
        let most = context_charges::most_of_limit(limit, value as u64);
        let (result, taken) = taken_by(session, device, most, call);
        session.context_charges.limit_set(session, device, context, limit, taken);
        Some(result)
    }
}

/// Loads code: what the driver takes for it is charged to the current device.
fn load(session: &Session, call: impl FnOnce() -> CUresult, handle: impl FnOnce() -> u64) -> Option<CUresult> {
    // A library may be loaded without a context; then its code is put into VRAM later, and is not seen.
    let Some((context, device)) = session.here() else { return Some(call()) };
    let most = context_charges::most_of_image(calls::loads_lazily(session.real));
    let (result, taken) = taken_by(session, device, most, call);
    if result == CUresult::SUCCESS {
        session.context_charges.loaded(session, device, context, handle(), taken);
    }
    Some(result)
}

fn unload(session: &Session, handle: usize, call: impl FnOnce() -> CUresult) -> CUresult {
    session.host_ranges.forget_library(handle);
    // Before the call: the handle may come again right after it.
    session.context_charges.gone(session, Kind::Image, handle as u64);
    let result = moves::code_going(session, handle, call);
    session.functions.forget();
    result
}

/// Makes a call, and says by how many bytes the driver's free memory fell meanwhile, apart from what emuV itself charged.
/// It is no more than `most_bytes`. In a slice nothing is measured: others of the GPU allocate meanwhile, and what they take
/// would be charged to this slice, again and again.
fn taken_by(session: &Session, device: &Device, most_bytes: u64, call: impl FnOnce() -> CUresult) -> (CUresult, i64) {
    if device.slice(session).is_some() {
        return (call(), 0);
    }
    let look = || {
        let free = calls::memory_info(session.real).ok()?.0;
        Some((free, device.arena.with_memory(|memory| memory.budgets().vram.used_bytes())))
    };
    let before = look();
    let result = call();
    let taken = match (before, look()) {
        (Some(before), Some(after)) => context_charges::taken(before, after, most_bytes),
        _ => 0,
    };
    (result, taken)
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
        if calls::is_managed(session.real, address) {
            session.host_ranges.add_managed(module, address, size as u64);
        } else {
            let context = calls::current_context(session.real).map(calls::owner).ok();
            session.globals.add(Global { module, context, address, bytes: size as u64 });
        }
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
