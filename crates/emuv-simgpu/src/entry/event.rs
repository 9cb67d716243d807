//! Events.

use std::ffi::c_uint;

use emuv_cuda::{
    CUresult, CuError, CuResult,
    types::{CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING, CU_EVENT_INTERPROCESS, CUevent, CUstream},
};

use super::{
    abi::{Out, entries, pointer},
    call::{Call, Target},
};
use crate::{
    graph::capture::Mark,
    handles::was_given,
    memory::physical::error,
    stream::{event::Event, queue::Op},
};
use std::sync::Arc;

fn event(call: &Call, handle: u64) -> CuResult<Arc<Event>> {
    call.simulator.events.get(handle).ok_or_else(|| no_event(handle))
}

/// A driver may not notice that an event was destroyed, and then reads memory that is no more its own: better the end of the
/// process at the first use than at some later one.
fn no_event(handle: u64) -> CuError {
    if was_given(handle) {
        eprintln!(
            "emuv-simgpu: event {handle:#x} is used after it was destroyed (or is no event); a real driver may crash"
        );
        std::process::abort();
    }
    error(CUresult::CUDA_ERROR_INVALID_HANDLE)
}

fn record(call: &Call, handle: u64, stream: u64) -> CuResult {
    let event = event(call, handle)?;
    let target = call.stream(stream)?;
    if event.engine.context != target.context.handle() {
        return Err(error(CUresult::CUDA_ERROR_INVALID_HANDLE));
    }
    if let Some(mark) = call.simulator.graphs.captures.mark(target.stream.id)? {
        event.set_captured(mark);
        return Ok(());
    }
    target.forbid_capture()?;
    target.context.streams.record(&target.stream, &event)
}

/// An event that the host may ask for.
fn reachable(call: &Call, handle: u64) -> CuResult<Arc<Event>> {
    let event = event(call, handle)?;
    if event.captured().is_some() {
        return Err(error(CUresult::CUDA_ERROR_CAPTURED_EVENT));
    }
    Ok(event)
}

fn elapsed(call: &Call, out: Out<f32>, start: u64, end: u64) -> CuResult {
    out.required()?;
    let (start, end) = (reachable(call, start)?, reachable(call, end)?);
    start.engine.status.ok()?;
    out.write(start.elapsed_ms(&end)?)
}

/// A stream that waits for a captured event is captured too; the legacy stream cannot be.
fn wait_in_capture(call: &Call, target: &Target, mark: &Mark) -> CuResult {
    if target.stream.is_legacy() {
        return Err(error(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED));
    }
    call.simulator.graphs.captures.join(target.member(), mark)
}

entries! {
    fn cuEventCreate(out: *mut CUevent, flags: c_uint) |call| {
        out.required()?;
        if flags & !(CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS) != 0 {
            return Err(error(CUresult::INVALID_VALUE));
        }
        let context = call.current()?;
        let event = Event::new(Arc::clone(&context.engine), flags & CU_EVENT_DISABLE_TIMING == 0);
        out.write(pointer(call.simulator.events.insert(event)))
    }

    fn cuEventDestroy / cuEventDestroy_v2(handle: CUevent) |call| {
        let removed = call.simulator.events.remove(handle.address());
        removed.map(|_| ()).ok_or_else(|| no_event(handle.address()))
    }

    fn cuEventRecord / cuEventRecord_ptsz(handle: CUevent, stream: CUstream) |call| {
        record(call, handle.address(), stream.address())
    }

    fn cuEventRecordWithFlags / cuEventRecordWithFlags_ptsz(handle: CUevent, stream: CUstream, flags: c_uint) |call| {
        if flags > 1 {
            return Err(error(CUresult::INVALID_VALUE));
        }
        record(call, handle.address(), stream.address())
    }

    fn cuEventQuery(handle: CUevent) |call| {
        let event = reachable(call, handle.address())?;
        call.unsafe_in_capture()?;
        let is_done = event.is_done();
        event.engine.status.ok()?;
        if is_done { Ok(()) } else { Err(error(CUresult::CUDA_ERROR_NOT_READY)) }
    }

    fn cuEventSynchronize(handle: CUevent) |call| {
        let event = reachable(call, handle.address())?;
        call.unsafe_in_capture()?;
        event.wait();
        event.engine.status.ok()
    }

    fn cuEventElapsedTime / cuEventElapsedTime_v2(out: *mut f32, start: CUevent, end: CUevent) |call| {
        elapsed(call, out, start.address(), end.address())
    }

    fn cuStreamWaitEvent / cuStreamWaitEvent_ptsz(stream: CUstream, handle: CUevent, flags: c_uint) |call| {
        if flags > 1 {
            return Err(error(CUresult::INVALID_VALUE));
        }
        let event = event(call, handle.address())?;
        let target = call.stream(stream.address())?;
        if let Some(mark) = event.captured() {
            return wait_in_capture(call, &target, &mark);
        }
        let Some(record) = event.record() else { return Ok(()) };
        call.simulator.graphs.captures.forbid_outside(target.stream.id)?;
        let op = Op { after: vec![record.ticket], ..Op::always(|_| {}) };
        target.submit(op).map(|_| ())
    }
}
