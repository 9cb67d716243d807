//! Allocations that emuV places.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::c_uint;

use emuv_cuda::{CUresult, types::*};

use crate::{
    account::Kind,
    arena::Refusal,
    entry::{entries, host},
    log,
    session::Session,
};

/// The pitch that the driver gives: rows start on 512 bytes (measured).
const PITCH_BYTES: usize = 512;

entries! {
    /// Placed in VRAM first, then in RAM.
    fn cuMemAlloc_v2(dptr: *mut CUdeviceptr, bytesize: usize) |session, _driver| {
        if dptr.is_null() {
            return None;
        }
        allocate(session, bytesize).map(|result| match result {
            Ok(address) => {
                // SAFETY: not null, so valid by the driver's contract.
                unsafe { dptr.write(address) };
                CUresult::SUCCESS
            }
            Err(code) => code,
        })
    }

    /// As `cuMemAlloc`, with rows on 512-byte boundaries.
    fn cuMemAllocPitch_v2(
        dptr: *mut CUdeviceptr,
        pPitch: *mut usize,
        WidthInBytes: usize,
        Height: usize,
        ElementSizeBytes: c_uint,
    ) |session, _driver| {
        // The driver says what is wrong with a wrong call.
        if dptr.is_null() || pPitch.is_null() || !matches!(ElementSizeBytes, 4 | 8 | 16) {
            return None;
        }
        let pitch = WidthInBytes.checked_next_multiple_of(PITCH_BYTES)?;
        let bytes = pitch.checked_mul(Height)?;
        allocate(session, bytes).map(|result| match result {
            Ok(address) => {
                // SAFETY: neither is null, so both are valid by the driver's contract.
                unsafe {
                    dptr.write(address);
                    pPitch.write(pitch);
                }
                CUresult::SUCCESS
            }
            Err(code) => code,
        })
    }

    /// Waits for the allocation's context as the driver does, then gives the memory back.
    fn cuMemFree_v2(dptr: CUdeviceptr) |session, driver| {
        if let Some(device) = session.device_at(dptr) {
            return Some(device.free(session, dptr).into());
        }
        // SAFETY: the program's own argument.
        let result = host::forget(session, dptr, || unsafe { driver.cuMemFree_v2(dptr) });
        if result == CUresult::SUCCESS {
            session.release_account(Kind::Managed, dptr);
        }
        Some(result)
    }
}

/// An address for `bytes` on the current device; `None` where the driver is to answer instead.
fn allocate(session: &Session, bytes: usize) -> Option<Result<u64, CUresult>> {
    if bytes == 0 || !session.places() {
        return None;
    }
    let Some((context, device)) = session.here() else { return session.unplaced().map(Err) };
    match device.allocate(session, context, bytes as u64) {
        Ok(address) => Some(Ok(address)),
        Err(Refusal::NoRoom) => Some(Err(CUresult::OUT_OF_MEMORY)),
        Err(Refusal::Driver(error)) if session.slice.is_some() => Some(Err(error.code())),
        Err(Refusal::Driver(error)) => {
            log::error(format_args!("placing {bytes} bytes: {error}; left to the driver"));
            None
        }
    }
}
