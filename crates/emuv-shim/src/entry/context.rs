//! The end of contexts: what a program allocated in one goes with it. And which may touch another's memory.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::c_uint;

use emuv_cuda::{CUresult, CuError, types::*};

use crate::{
    calls,
    device::{Device, Doomed, doomed_with_primary},
    entry::entries,
    log,
    peers::{self, Reason},
    session::Session,
};

entries! {
    /// The first form of the call.
    fn cuCtxDestroy(ctx: CUcontext) |session, driver| {
        // SAFETY: the program's own argument.
        Some(destroy(session, ctx, || unsafe { driver.cuCtxDestroy(ctx) }))
    }

    /// The driver destroys the context, then its memory is given back.
    fn cuCtxDestroy_v2(ctx: CUcontext) |session, driver| {
        // SAFETY: the program's own argument.
        Some(destroy(session, ctx, || unsafe { driver.cuCtxDestroy_v2(ctx) }))
    }

    /// The first form of the call.
    fn cuDevicePrimaryCtxRelease(dev: CUdevice) |session, driver| {
        // SAFETY: the program's own argument.
        Some(release_primary(session, dev, || unsafe { driver.cuDevicePrimaryCtxRelease(dev) }))
    }

    /// With the last reference the primary context goes, and its memory with it.
    fn cuDevicePrimaryCtxRelease_v2(dev: CUdevice) |session, driver| {
        // SAFETY: the program's own argument.
        Some(release_primary(session, dev, || unsafe { driver.cuDevicePrimaryCtxRelease_v2(dev) }))
    }

    /// The first form of the call.
    fn cuDevicePrimaryCtxReset(dev: CUdevice) |session, driver| {
        // SAFETY: the program's own argument.
        Some(reset_primary(session, dev, || unsafe { driver.cuDevicePrimaryCtxReset(dev) }))
    }

    /// The primary context's memory goes, whoever holds it.
    fn cuDevicePrimaryCtxReset_v2(dev: CUdevice) |session, driver| {
        // SAFETY: the program's own argument.
        Some(reset_primary(session, dev, || unsafe { driver.cuDevicePrimaryCtxReset_v2(dev) }))
    }
}

entries! {
    /// What emuV has placed for that context is opened as well.
    fn cuCtxEnablePeerAccess(peerContext: CUcontext, Flags: c_uint) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuCtxEnablePeerAccess(peerContext, Flags) };
        let grant = grant(session, peerContext).filter(|_| result == CUresult::SUCCESS);
        let Some(Err(error)) = grant.map(|grant| session.peers.open(session, grant)) else { return Some(result) };
        // SAFETY: as above.
        let _ = unsafe { driver.cuCtxDisablePeerAccess(peerContext) };
        log::error(format_args!("placed memory cannot be opened to another GPU: {error}"));
        Some(if error == CuError::NOT_SUPPORTED { CUresult::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED } else { error.code() })
    }

    /// What emuV has placed for that context is closed again, unless something else keeps it open.
    fn cuCtxDisablePeerAccess(peerContext: CUcontext) |session, driver| {
        // SAFETY: the program's own argument.
        let result = unsafe { driver.cuCtxDisablePeerAccess(peerContext) };
        if result == CUresult::SUCCESS && let Some(grant) = grant(session, peerContext) {
            session.peers.close(session, grant);
        }
        Some(result)
    }
}

/// That the current context may touch what `peer` allocates.
fn grant(session: &Session, peer: CUcontext) -> Option<(CUdevice, CUdevice, Reason)> {
    let context = calls::current_context(session.real).ok()?;
    let who = calls::current_device(session.real).ok()?;
    let whose = peers::device_of(session, peer).ok()?;
    Some((who, whose, Reason::Contexts(calls::owner(context), calls::owner(peer))))
}

fn destroy(session: &Session, context: CUcontext, call: impl FnOnce() -> CUresult) -> CUresult {
    // Collected before the call: the driver may give the same handle to a new context right after it.
    let owner = calls::owner(context);
    let doomed: Vec<_> = session.devices().map(|device| (device, device.doomed(Some(owner)))).collect();
    end(session, &doomed, call, || true)
}

fn release_primary(session: &Session, ordinal: CUdevice, call: impl FnOnce() -> CUresult) -> CUresult {
    end(session, &doomed_with_primary(session, ordinal), call, || !calls::primary_is_active(session.real, ordinal))
}

fn reset_primary(session: &Session, ordinal: CUdevice, call: impl FnOnce() -> CUresult) -> CUresult {
    end(session, &doomed_with_primary(session, ordinal), call, || true)
}

/// Makes a call that may end contexts; if it has, what was theirs is given back.
fn end(
    session: &Session,
    doomed: &[(&Device, Doomed)],
    call: impl FnOnce() -> CUresult,
    gone: impl FnOnce() -> bool,
) -> CUresult {
    let result = call();
    if result == CUresult::SUCCESS && gone() {
        for (device, doomed) in doomed {
            device.bury(session, doomed);
        }
    }
    doomed.iter().for_each(|(device, _)| device.moves.contexts_settled(session));
    result
}
