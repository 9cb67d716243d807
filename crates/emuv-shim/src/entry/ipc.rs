//! Memory that processes share by the driver's memory IPC, for what emuV placed (`ipc/`).
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::c_uint;

use emuv_cuda::{CUresult, CuResult, types::*};

use crate::{entry::entries, session::Session};

entries! {
    /// A token for placed memory, which then lies still in VRAM.
    fn cuIpcGetMemHandle(pHandle: *mut CUipcMemHandle, dptr: CUdeviceptr) |session, _driver| {
        if pHandle.is_null() {
            return None;
        }
        match session.ipc.export(session, dptr) {
            Ok(token) => {
                let reserved = token?.map(u8::cast_signed);
                // SAFETY: not null, so valid by the driver's contract.
                unsafe { pHandle.write(CUipcMemHandle { reserved }) };
                Some(CUresult::SUCCESS)
            }
            Err(error) => Some(error.code()),
        }
    }

    /// Maps what a token stands for.
    fn cuIpcOpenMemHandle(pdptr: *mut CUdeviceptr, handle: CUipcMemHandle, Flags: c_uint) |session, _driver| {
        // SAFETY: null or valid by the driver's contract.
        answer(unsafe { open(session, pdptr, handle, Flags) })
    }

    /// Maps what a token stands for.
    fn cuIpcOpenMemHandle_v2(pdptr: *mut CUdeviceptr, handle: CUipcMemHandle, Flags: c_uint) |session, _driver| {
        // SAFETY: null or valid by the driver's contract.
        answer(unsafe { open(session, pdptr, handle, Flags) })
    }

    /// Unmaps it when it has been closed as often as opened.
    fn cuIpcCloseMemHandle(dptr: CUdeviceptr) |session, _driver| {
        answer(session.ipc.close(session, dptr))
    }
}

/// `None` is the driver's to answer.
fn answer(result: CuResult<Option<()>>) -> Option<CUresult> {
    match result {
        Ok(done) => done.map(|()| CUresult::SUCCESS),
        Err(error) => Some(error.code()),
    }
}

/// # Safety
/// `address` is null or valid.
unsafe fn open(
    session: &Session,
    address: *mut CUdeviceptr,
    handle: CUipcMemHandle,
    flags: c_uint,
) -> CuResult<Option<()>> {
    // The driver says what is wrong with a wrong call.
    if address.is_null() || flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS {
        return Ok(None);
    }
    let Some(opened) = session.ipc.open(session, &handle.reserved.map(i8::cast_unsigned))? else { return Ok(None) };
    // SAFETY: the caller's word, and not null.
    unsafe { address.write(opened) };
    Ok(Some(()))
}
