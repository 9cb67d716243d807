//! Streams, and words in memory that they write or wait for.

use std::{
    ffi::{c_int, c_uint, c_ulonglong, c_void},
    thread,
    time::Duration,
};

use emuv_cuda::{
    CUresult, CuResult,
    types::{
        CU_STREAM_NON_BLOCKING, CU_STREAM_WAIT_VALUE_AND, CU_STREAM_WAIT_VALUE_EQ, CU_STREAM_WAIT_VALUE_GEQ,
        CU_STREAM_WAIT_VALUE_NOR, CUcontext, CUdevice, CUdeviceptr_v2, CUhostFn, CUstream, CUstreamCallback,
        cuuint32_t, cuuint64_t,
    },
};

use super::{
    abi::{HostCall, Out, StreamCall, entries, pointer},
    call::{Call, Target},
    context::PRIORITIES,
};
use crate::{
    graph::step::Step,
    memory::{
        physical::error,
        view::{Stop, View},
    },
    stream::queue::Op,
};

/// Pause between two looks at a word that a stream waits for.
const POLL_INTERVAL: Duration = Duration::from_micros(20);

fn create(call: &Call, out: Out<CUstream>, flags: c_uint, priority: c_int) -> CuResult {
    out.required()?;
    if flags & !CU_STREAM_NON_BLOCKING != 0 {
        return Err(error(CUresult::INVALID_VALUE));
    }
    let context = call.current()?;
    // As the driver does, a priority out of range is moved into it.
    let stream = context.streams.create(flags, priority.clamp(PRIORITIES.1, PRIORITIES.0));
    out.write(pointer(call.simulator.streams.insert_shared(stream)))
}

fn compare(flags: c_uint) -> CuResult<fn(u64, u64, bool) -> bool> {
    // The third argument says whether the words have 32 bits.
    Ok(match flags & 3 {
        CU_STREAM_WAIT_VALUE_GEQ => |found, wanted, is_short| {
            let ahead = found.wrapping_sub(wanted);
            // The difference as a signed number of the word's size is not negative.
            ahead & (if is_short { 1 << 31 } else { 1 << 63 }) == 0
        },
        CU_STREAM_WAIT_VALUE_EQ => |found, wanted, _| found == wanted,
        CU_STREAM_WAIT_VALUE_AND => |found, wanted, _| found & wanted != 0,
        CU_STREAM_WAIT_VALUE_NOR => |found, wanted, is_short| {
            let mask = if is_short { u64::from(u32::MAX) } else { u64::MAX };
            !(found | wanted) & mask != 0
        },
        _ => return Err(error(CUresult::INVALID_VALUE)),
    })
}

fn load(view: &mut View<'_>, address: u64, is_short: bool) -> Result<u64, Stop> {
    if is_short { view.load_u32(address).map(u64::from) } else { view.load_u64(address) }
}

fn wait_value(target: &Target, address: u64, wanted: u64, is_short: bool, flags: c_uint) -> CuResult {
    let reached = compare(flags)?;
    aligned(address, is_short)?;
    let wait = move |view: &mut View<'_>| {
        while !reached(load(view, address, is_short)?, wanted, is_short) {
            view.check()?;
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    };
    target.enqueue(Step::Words(Box::new(wait)))
}

fn write_value(target: &Target, address: u64, value: &[u8]) -> CuResult {
    aligned(address, value.len() == 4)?;
    let value = value.to_vec();
    target.enqueue(Step::Words(Box::new(move |view| view.store(address, &value))))
}

fn aligned(address: u64, is_short: bool) -> CuResult {
    let size = if is_short { 4 } else { 8 };
    if address != 0 && address.is_multiple_of(size) { Ok(()) } else { Err(error(CUresult::INVALID_VALUE)) }
}

fn host_function(call: &Call, stream: u64, function: CUhostFn, argument: Out<c_void>) -> CuResult {
    let host = HostCall::new(function, argument)?;
    call.stream(stream)?.enqueue(Step::Host(Box::new(move || host.run())))
}

entries! {
    fn cuStreamCreate(out: *mut CUstream, flags: c_uint) |call| { create(call, out, flags, 0) }

    fn cuStreamCreateWithPriority(out: *mut CUstream, flags: c_uint, priority: c_int) |call| {
        create(call, out, flags, priority)
    }

    fn cuStreamDestroy / cuStreamDestroy_v2(stream: CUstream) |call| {
        let target = call.stream(stream.address())?;
        if target.is_captured() {
            target.forbid_capture()?;
        }
        let removed = call.simulator.streams.remove(stream.address());
        removed.map(|_| ()).ok_or(error(CUresult::CUDA_ERROR_INVALID_HANDLE))
    }

    fn cuStreamQuery / cuStreamQuery_ptsz(stream: CUstream) |call| {
        let target = call.stream(stream.address())?;
        target.forbid_capture()?;
        call.unsafe_in_capture()?;
        if target.context.streams.unfinished(&target.stream).is_empty() {
            // The last operation may have broken the context since.
            target.context.engine.status.ok()
        } else {
            Err(error(CUresult::CUDA_ERROR_NOT_READY))
        }
    }

    fn cuStreamSynchronize / cuStreamSynchronize_ptsz(stream: CUstream) |call| {
        let target = call.stream(stream.address())?;
        target.forbid_capture()?;
        call.unsafe_in_capture()?;
        target.synchronize()
    }

    fn cuStreamGetCtx / cuStreamGetCtx_ptsz(stream: CUstream, out: *mut CUcontext) |call| {
        out.write(pointer(call.stream(stream.address())?.context.handle()))
    }

    fn cuStreamGetFlags / cuStreamGetFlags_ptsz(stream: CUstream, out: *mut c_uint) |call| {
        out.write(call.stream(stream.address())?.stream.flags)
    }

    fn cuStreamGetPriority / cuStreamGetPriority_ptsz(stream: CUstream, out: *mut c_int) |call| {
        out.write(call.stream(stream.address())?.stream.priority)
    }

    fn cuStreamGetId / cuStreamGetId_ptsz(stream: CUstream, out: *mut c_ulonglong) |call| {
        out.write(call.stream(stream.address())?.stream.id)
    }

    fn cuStreamGetDevice / cuStreamGetDevice_ptsz(stream: CUstream, out: *mut CUdevice) |call| {
        out.write(call.stream(stream.address())?.context.engine.ordinal)
    }

    fn cuLaunchHostFunc / cuLaunchHostFunc_ptsz(stream: CUstream, function: CUhostFn, argument: *mut c_void) |call| {
        host_function(call, stream.address(), function, argument)
    }

    fn cuLaunchHostFunc_v2 / cuLaunchHostFunc_v2_ptsz(
        stream: CUstream, function: CUhostFn, argument: *mut c_void, mode: c_uint,
    ) |call| {
        let _ = mode;
        host_function(call, stream.address(), function, argument)
    }

    fn cuStreamAddCallback / cuStreamAddCallback_ptsz(
        stream: CUstream, callback: CUstreamCallback, argument: *mut c_void, flags: c_uint,
    ) |call| {
        if flags != 0 {
            return Err(error(CUresult::INVALID_VALUE));
        }
        let callback = StreamCall::new(callback, stream.address(), argument)?;
        call.stream(stream.address())?.submit(Op::always(move |status| callback.run(status))).map(|_| ())
    }

    fn cuStreamWaitValue32 / cuStreamWaitValue32_ptsz / cuStreamWaitValue32_v2 / cuStreamWaitValue32_v2_ptsz(
        stream: CUstream, address: CUdeviceptr_v2, value: cuuint32_t, flags: c_uint,
    ) |call| {
        wait_value(&call.stream(stream.address())?, address, u64::from(value), true, flags)
    }

    fn cuStreamWaitValue64 / cuStreamWaitValue64_ptsz / cuStreamWaitValue64_v2 / cuStreamWaitValue64_v2_ptsz(
        stream: CUstream, address: CUdeviceptr_v2, value: cuuint64_t, flags: c_uint,
    ) |call| {
        wait_value(&call.stream(stream.address())?, address, value, false, flags)
    }

    fn cuStreamWriteValue32 / cuStreamWriteValue32_ptsz / cuStreamWriteValue32_v2 / cuStreamWriteValue32_v2_ptsz(
        stream: CUstream, address: CUdeviceptr_v2, value: cuuint32_t, flags: c_uint,
    ) |call| {
        let _ = flags;
        write_value(&call.stream(stream.address())?, address, &value.to_le_bytes())
    }

    fn cuStreamWriteValue64 / cuStreamWriteValue64_ptsz / cuStreamWriteValue64_v2 / cuStreamWriteValue64_v2_ptsz(
        stream: CUstream, address: CUdeviceptr_v2, value: cuuint64_t, flags: c_uint,
    ) |call| {
        let _ = flags;
        write_value(&call.stream(stream.address())?, address, &value.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_compared_as_the_flags_say() {
        let geq = compare(CU_STREAM_WAIT_VALUE_GEQ).unwrap();
        assert!(geq(5, 5, true) && geq(6, 5, true) && !geq(4, 5, true));
        // A counter that wrapped around is ahead, in its own width.
        assert!(geq(1, u64::from(u32::MAX), true) && !geq(1, u64::from(u32::MAX), false));
        let and = compare(CU_STREAM_WAIT_VALUE_AND).unwrap();
        assert!(and(6, 2, false) && !and(4, 2, false));
        let nor = compare(CU_STREAM_WAIT_VALUE_NOR).unwrap();
        assert!(!nor(0xffff_0000, 0xffff, true) && nor(0xffff_0000, 0xfff, true));
        assert!(compare(CU_STREAM_WAIT_VALUE_EQ).unwrap()(7, 7, true));
    }
}
