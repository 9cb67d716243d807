//! Stream capture: begun and ended by the driver, remembered here.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::c_void;

use emuv_cuda::{CUresult, types::*};

use crate::{entry::entries, moves, pools, session::Session, streams};

entries! {
    /// The first form of the call.
    fn cuStreamBeginCapture(hStream: CUstream) |session, driver| {
        // SAFETY: the program's own arguments.
        begin(session, key(hStream, false), || unsafe { driver.cuStreamBeginCapture(hStream) })
    }

    /// The first form, for the per-thread default stream.
    fn cuStreamBeginCapture_ptsz(hStream: CUstream) |session, driver| {
        // SAFETY: the program's own arguments.
        begin(session, key(hStream, true), || unsafe { driver.cuStreamBeginCapture_ptsz(hStream) })
    }

    /// A capture begins.
    fn cuStreamBeginCapture_v2(hStream: CUstream, mode: CUstreamCaptureMode) |session, driver| {
        // SAFETY: the program's own arguments.
        begin(session, key(hStream, false), || unsafe { driver.cuStreamBeginCapture_v2(hStream, mode) })
    }

    /// A capture begins.
    fn cuStreamBeginCapture_v2_ptsz(hStream: CUstream, mode: CUstreamCaptureMode) |session, driver| {
        // SAFETY: the program's own arguments.
        begin(session, key(hStream, true), || unsafe { driver.cuStreamBeginCapture_v2_ptsz(hStream, mode) })
    }

    /// A capture into an existing graph begins.
    fn cuStreamBeginCaptureToGraph(
        hStream: CUstream, hGraph: CUgraph, dependencies: *const CUgraphNode,
        dependencyData: *const CUgraphEdgeData, numDependencies: usize, mode: CUstreamCaptureMode,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        begin(session, key(hStream, false), || unsafe {
            driver.cuStreamBeginCaptureToGraph(hStream, hGraph, dependencies, dependencyData, numDependencies, mode)
        })
    }

    /// A capture into an existing graph begins.
    fn cuStreamBeginCaptureToGraph_ptsz(
        hStream: CUstream, hGraph: CUgraph, dependencies: *const CUgraphNode,
        dependencyData: *const CUgraphEdgeData, numDependencies: usize, mode: CUstreamCaptureMode,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        begin(session, key(hStream, true), || unsafe {
            driver.cuStreamBeginCaptureToGraph_ptsz(hStream, hGraph, dependencies, dependencyData, numDependencies, mode)
        })
    }

    /// A capture that changes an existing graph begins.
    fn cuStreamBeginRecaptureToGraph(
        hStream: CUstream, mode: CUstreamCaptureMode, hGraph: CUgraph, callbackFunc: CUgraphRecaptureCallback,
        userData: *mut c_void,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        begin(session, key(hStream, false), || unsafe {
            driver.cuStreamBeginRecaptureToGraph(hStream, mode, hGraph, callbackFunc, userData)
        })
    }

    /// A capture that changes an existing graph begins.
    fn cuStreamBeginRecaptureToGraph_ptsz(
        hStream: CUstream, mode: CUstreamCaptureMode, hGraph: CUgraph, callbackFunc: CUgraphRecaptureCallback,
        userData: *mut c_void,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        begin(session, key(hStream, true), || unsafe {
            driver.cuStreamBeginRecaptureToGraph_ptsz(hStream, mode, hGraph, callbackFunc, userData)
        })
    }

    /// A capture ends, also when it was broken.
    fn cuStreamEndCapture(hStream: CUstream, phGraph: *mut CUgraph) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuStreamEndCapture(hStream, phGraph) };
        session.captures.ended(key(hStream, false));
        Some(result)
    }

    /// A capture ends, also when it was broken.
    fn cuStreamEndCapture_ptsz(hStream: CUstream, phGraph: *mut CUgraph) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuStreamEndCapture_ptsz(hStream, phGraph) };
        session.captures.ended(key(hStream, true));
        Some(result)
    }

    /// A stream that goes while it is captured takes its capture along.
    fn cuStreamDestroy(hStream: CUstream) |session, _driver| { gone(session, hStream) }

    /// A stream that goes while it is captured takes its capture along.
    fn cuStreamDestroy_v2(hStream: CUstream) |session, _driver| { gone(session, hStream) }
}

/// Before a stream is destroyed: it takes its capture along, and what it freed gets a last fence.
fn gone(session: &Session, stream: CUstream) -> Option<CUresult> {
    session.captures.ended(key(stream, false));
    session.stream_going();
    moves::stream_going(session, stream);
    if let Some(on) = pools::on(session, stream, false) {
        for device in session.devices() {
            device.pools.stream_gone(session, on);
        }
    }
    None
}

fn begin(session: &Session, stream: u64, call: impl FnOnce() -> CUresult) -> Option<CUresult> {
    moves::capture_beginning(session);
    let result = call();
    if result == CUresult::SUCCESS {
        session.captures.began(stream);
    }
    moves::capture_begun(session);
    Some(result)
}

/// Names a stream. The per-thread default stream has one handle for all threads (2, or 0 in a per-thread
/// form), so there the thread makes the difference.
fn key(stream: CUstream, per_thread: bool) -> u64 {
    const PER_THREAD: u64 = 2;
    /// No handle above 1 is odd, so threads' numbers cannot be taken for handles.
    const ODD: u64 = 1;
    let handle = stream as u64;
    if handle == PER_THREAD || (per_thread && handle == 0) {
        return (streams::thread_number() << 1) | ODD;
    }
    handle
}
