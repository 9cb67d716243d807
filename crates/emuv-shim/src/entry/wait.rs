//! The program waits for the GPU: what pools hold beyond their release thresholds is given back then.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use emuv_cuda::{CUresult, types::*};

use crate::{
    calls,
    entry::entries,
    pools::{self, Wait},
    session::Session,
};

entries! {
    /// Waits for a stream.
    fn cuStreamSynchronize(hStream: CUstream) |session, driver| {
        // SAFETY: the program's own argument.
        wait(session, |session| pools::on(session, hStream, false).map(Wait::Stream), || unsafe {
            driver.cuStreamSynchronize(hStream)
        })
    }

    /// Waits for a stream.
    fn cuStreamSynchronize_ptsz(hStream: CUstream) |session, driver| {
        // SAFETY: the program's own argument.
        wait(session, |session| pools::on(session, hStream, true).map(Wait::Stream), || unsafe {
            driver.cuStreamSynchronize_ptsz(hStream)
        })
    }

    /// Waits for the current context.
    fn cuCtxSynchronize() |session, driver| {
        let context = |session: &Session| calls::current_context(session.real).ok();
        // SAFETY: no argument.
        wait(session, |session| context(session).map(calls::owner).map(Wait::Context), || unsafe {
            driver.cuCtxSynchronize()
        })
    }

    /// Waits for a context.
    fn cuCtxSynchronize_v2(ctx: CUcontext) |session, driver| {
        // SAFETY: the program's own argument.
        wait(session, |_| Some(Wait::Context(calls::owner(ctx))), || unsafe { driver.cuCtxSynchronize_v2(ctx) })
    }
}

fn wait(
    session: &Session,
    what: impl Fn(&Session) -> Option<Wait>,
    call: impl FnOnce() -> CUresult,
) -> Option<CUresult> {
    if !session.devices().any(|device| device.pools.has_surplus()) {
        return Some(call());
    }
    let what = what(session)?;
    let before: Vec<_> =
        session.devices().filter_map(|device| Some((device, device.pools.before_wait(what)?))).collect();
    let result = call();
    if result == CUresult::SUCCESS {
        for (device, waited) in before {
            device.pools.synchronized(session, device, &waited);
        }
    }
    Some(result)
}
