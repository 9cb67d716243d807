//! Memory that is set, and words that a stream writes or waits for: exactly what they name.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::{c_uchar, c_uint, c_ushort};

use emuv_cuda::types::*;

use crate::{entry::entries, peers, session, touch::Touch};

/// Defines entries of transfers: the call as it is, the stream (null: the default one), whether the form is
/// per-thread, and what it touches. `$launch` makes the call.
macro_rules! transfers {
    ($launch:path: $(fn $name:ident($($arg:ident: $ty:ty),*) on $stream:expr, $per_thread:literal touches $touch:expr;)*) => {
        entries! {
            $(
                /// Tracked.
                fn $name($($arg: $ty),*) |session, driver| {
                    // SAFETY: the program's own arguments.
                    let call = || unsafe { driver.$name($($arg),*) };
                    // SAFETY: as above, where descriptions are read.
                    #[allow(unused_unsafe)]
                    let touch = || unsafe { $touch };
                    Some($launch(session, $stream, $per_thread, touch, call))
                }
            )*
        }
    };
}
pub(crate) use transfers;

fn written(address: CUdeviceptr) -> Touch {
    let mut touch = Touch::nothing();
    touch.add(address);
    touch
}

/// A stream waits for a word: before it comes, the host may write elsewhere.
fn host_may_write_first() {
    if let Some(session) = session::current() {
        session.host_ranges.changes_later();
    }
}

/// A word that a stream waits for.
fn awaited(address: CUdeviceptr) -> Touch {
    host_may_write_first();
    written(address)
}

/// A word that may itself be an address.
fn signalled(address: CUdeviceptr, value: cuuint64_t) -> Touch {
    let mut touch = written(address);
    if session::current().is_none_or(|session| session.device_at(value).is_some()) {
        touch.brings_pointers();
    }
    touch
}

/// # Safety
/// The array has `count` elements.
unsafe fn batch(operations: *const CUstreamBatchMemOpParams, count: c_uint) -> Touch {
    host_may_write_first();
    let mut touch = Touch::nothing();
    touch.brings_pointers();
    // SAFETY: the caller's word.
    let readable = unsafe { operands(operations, count, |address| touch.add(address)) };
    if readable { touch } else { Touch::everything() }
}

/// Gives the addresses of operations on memory. False: there is one of an unknown kind.
///
/// # Safety
/// The array is null or has `count` elements.
pub(crate) unsafe fn operands(
    operations: *const CUstreamBatchMemOpParams,
    count: c_uint,
    mut each: impl FnMut(CUdeviceptr),
) -> bool {
    if operations.is_null() {
        return count == 0;
    }
    for index in 0..count as usize {
        // SAFETY: the caller's word. Every kind of operation begins with its number.
        let operation = unsafe { &*operations.add(index) };
        // SAFETY: as above, and the number says which kind it is.
        unsafe {
            match operation.operation {
                CU_STREAM_MEM_OP_WAIT_VALUE_32 | CU_STREAM_MEM_OP_WAIT_VALUE_64 => each(operation.waitValue.address),
                CU_STREAM_MEM_OP_WRITE_VALUE_32 | CU_STREAM_MEM_OP_WRITE_VALUE_64 => each(operation.writeValue.address),
                CU_STREAM_MEM_OP_ATOMIC_REDUCTION => each(operation.atomicReduction.address),
                CU_STREAM_MEM_OP_BARRIER | CU_STREAM_MEM_OP_FLUSH_REMOTE_WRITES => {}
                _ => return false,
            }
        }
    }
    true
}

transfers! { peers::launch:
    fn cuMemsetD16Async(dstDevice: CUdeviceptr, us: c_ushort, N: usize, hStream: CUstream) on hStream, false touches written(dstDevice);
    fn cuMemsetD16Async_ptsz(dstDevice: CUdeviceptr, us: c_ushort, N: usize, hStream: CUstream) on hStream, true touches written(dstDevice);
    fn cuMemsetD16_v2(dstDevice: CUdeviceptr, us: c_ushort, N: usize) on std::ptr::null_mut(), false touches written(dstDevice);
    fn cuMemsetD16_v2_ptds(dstDevice: CUdeviceptr, us: c_ushort, N: usize) on std::ptr::null_mut(), true touches written(dstDevice);
    fn cuMemsetD2D16Async(dstDevice: CUdeviceptr, dstPitch: usize, us: c_ushort, Width: usize, Height: usize, hStream: CUstream) on hStream, false touches written(dstDevice);
    fn cuMemsetD2D16Async_ptsz(dstDevice: CUdeviceptr, dstPitch: usize, us: c_ushort, Width: usize, Height: usize, hStream: CUstream) on hStream, true touches written(dstDevice);
    fn cuMemsetD2D16_v2(dstDevice: CUdeviceptr, dstPitch: usize, us: c_ushort, Width: usize, Height: usize) on std::ptr::null_mut(), false touches written(dstDevice);
    fn cuMemsetD2D16_v2_ptds(dstDevice: CUdeviceptr, dstPitch: usize, us: c_ushort, Width: usize, Height: usize) on std::ptr::null_mut(), true touches written(dstDevice);
    fn cuMemsetD2D32Async(dstDevice: CUdeviceptr, dstPitch: usize, ui: c_uint, Width: usize, Height: usize, hStream: CUstream) on hStream, false touches written(dstDevice);
    fn cuMemsetD2D32Async_ptsz(dstDevice: CUdeviceptr, dstPitch: usize, ui: c_uint, Width: usize, Height: usize, hStream: CUstream) on hStream, true touches written(dstDevice);
    fn cuMemsetD2D32_v2(dstDevice: CUdeviceptr, dstPitch: usize, ui: c_uint, Width: usize, Height: usize) on std::ptr::null_mut(), false touches written(dstDevice);
    fn cuMemsetD2D32_v2_ptds(dstDevice: CUdeviceptr, dstPitch: usize, ui: c_uint, Width: usize, Height: usize) on std::ptr::null_mut(), true touches written(dstDevice);
    fn cuMemsetD2D8Async(dstDevice: CUdeviceptr, dstPitch: usize, uc: c_uchar, Width: usize, Height: usize, hStream: CUstream) on hStream, false touches written(dstDevice);
    fn cuMemsetD2D8Async_ptsz(dstDevice: CUdeviceptr, dstPitch: usize, uc: c_uchar, Width: usize, Height: usize, hStream: CUstream) on hStream, true touches written(dstDevice);
    fn cuMemsetD2D8_v2(dstDevice: CUdeviceptr, dstPitch: usize, uc: c_uchar, Width: usize, Height: usize) on std::ptr::null_mut(), false touches written(dstDevice);
    fn cuMemsetD2D8_v2_ptds(dstDevice: CUdeviceptr, dstPitch: usize, uc: c_uchar, Width: usize, Height: usize) on std::ptr::null_mut(), true touches written(dstDevice);
    fn cuMemsetD32Async(dstDevice: CUdeviceptr, ui: c_uint, N: usize, hStream: CUstream) on hStream, false touches written(dstDevice);
    fn cuMemsetD32Async_ptsz(dstDevice: CUdeviceptr, ui: c_uint, N: usize, hStream: CUstream) on hStream, true touches written(dstDevice);
    fn cuMemsetD32_v2(dstDevice: CUdeviceptr, ui: c_uint, N: usize) on std::ptr::null_mut(), false touches written(dstDevice);
    fn cuMemsetD32_v2_ptds(dstDevice: CUdeviceptr, ui: c_uint, N: usize) on std::ptr::null_mut(), true touches written(dstDevice);
    fn cuMemsetD8Async(dstDevice: CUdeviceptr, uc: c_uchar, N: usize, hStream: CUstream) on hStream, false touches written(dstDevice);
    fn cuMemsetD8Async_ptsz(dstDevice: CUdeviceptr, uc: c_uchar, N: usize, hStream: CUstream) on hStream, true touches written(dstDevice);
    fn cuMemsetD8_v2(dstDevice: CUdeviceptr, uc: c_uchar, N: usize) on std::ptr::null_mut(), false touches written(dstDevice);
    fn cuMemsetD8_v2_ptds(dstDevice: CUdeviceptr, uc: c_uchar, N: usize) on std::ptr::null_mut(), true touches written(dstDevice);
    fn cuStreamWaitValue32(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, false touches awaited(addr);
    fn cuStreamWaitValue32_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, true touches awaited(addr);
    fn cuStreamWaitValue32_v2(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, false touches awaited(addr);
    fn cuStreamWaitValue32_v2_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, true touches awaited(addr);
    fn cuStreamWaitValue64(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, false touches awaited(addr);
    fn cuStreamWaitValue64_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, true touches awaited(addr);
    fn cuStreamWaitValue64_v2(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, false touches awaited(addr);
    fn cuStreamWaitValue64_v2_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, true touches awaited(addr);
    fn cuStreamWriteValue32(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, false touches written(addr);
    fn cuStreamWriteValue32_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, true touches written(addr);
    fn cuStreamWriteValue32_v2(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, false touches written(addr);
    fn cuStreamWriteValue32_v2_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, true touches written(addr);
    fn cuStreamWriteValue64(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, false touches signalled(addr, value);
    fn cuStreamWriteValue64_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, true touches signalled(addr, value);
    fn cuStreamWriteValue64_v2(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, false touches signalled(addr, value);
    fn cuStreamWriteValue64_v2_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, true touches signalled(addr, value);
    fn cuStreamBatchMemOp(stream: CUstream, count: c_uint, paramArray: *mut CUstreamBatchMemOpParams, flags: c_uint) on stream, false touches batch(paramArray, count);
    fn cuStreamBatchMemOp_ptsz(stream: CUstream, count: c_uint, paramArray: *mut CUstreamBatchMemOpParams, flags: c_uint) on stream, true touches batch(paramArray, count);
    fn cuStreamBatchMemOp_v2(stream: CUstream, count: c_uint, paramArray: *mut CUstreamBatchMemOpParams, flags: c_uint) on stream, false touches batch(paramArray, count);
    fn cuStreamBatchMemOp_v2_ptsz(stream: CUstream, count: c_uint, paramArray: *mut CUstreamBatchMemOpParams, flags: c_uint) on stream, true touches batch(paramArray, count);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_operations_are_seen_and_an_unknown_one_is_said_to_be_so() {
        let operation = |kind| {
            let mut operation = CUstreamBatchMemOpParams { pad: [0; 6] };
            operation.operation = kind;
            operation
        };
        let mut wait = operation(CU_STREAM_MEM_OP_WAIT_VALUE_64);
        let mut write = operation(CU_STREAM_MEM_OP_WRITE_VALUE_32);
        let mut add = operation(CU_STREAM_MEM_OP_ATOMIC_REDUCTION);
        wait.waitValue.address = 0x1000;
        write.writeValue.address = 0x2000;
        add.atomicReduction.address = 0x3000;
        let seen = |operations: &[CUstreamBatchMemOpParams]| {
            let mut seen = Vec::new();
            let count = c_uint::try_from(operations.len()).unwrap();
            // SAFETY: as many as there are.
            unsafe { operands(operations.as_ptr(), count, |address| seen.push(address)) }.then_some(seen)
        };
        let flush = operation(CU_STREAM_MEM_OP_FLUSH_REMOTE_WRITES);
        assert_eq!(seen(&[wait, flush, write, add]), Some(vec![0x1000, 0x2000, 0x3000]));
        assert_eq!(seen(&[wait, operation(77)]), None);
        assert_eq!(seen(&[]), Some(vec![]));
    }
}
