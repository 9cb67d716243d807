//! Memory that is set, and words that a stream writes or waits for: exactly what they name.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::{c_uchar, c_uint, c_ushort};

use emuv_cuda::types::*;

use crate::{entry::entries, touch::Touch};

/// Defines entries of transfers: the call as it is, the stream (null: the default one), whether the form is
/// per-thread, and what it touches.
macro_rules! transfers {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) on $stream:expr, $per_thread:literal touches $touch:expr;)*) => {
        entries! {
            $(
                /// Tracked.
                fn $name($($arg: $ty),*) |session, driver| {
                    // SAFETY: the program's own arguments.
                    let call = || unsafe { driver.$name($($arg),*) };
                    // SAFETY: as above, where descriptions are read.
                    #[allow(unused_unsafe)]
                    let touch = || unsafe { $touch };
                    Some($crate::moves::launch(session, $stream, $per_thread, touch, call))
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

transfers! {
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
    fn cuStreamWaitValue32(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, false touches written(addr);
    fn cuStreamWaitValue32_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, true touches written(addr);
    fn cuStreamWaitValue32_v2(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, false touches written(addr);
    fn cuStreamWaitValue32_v2_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, true touches written(addr);
    fn cuStreamWaitValue64(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, false touches written(addr);
    fn cuStreamWaitValue64_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, true touches written(addr);
    fn cuStreamWaitValue64_v2(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, false touches written(addr);
    fn cuStreamWaitValue64_v2_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, true touches written(addr);
    fn cuStreamWriteValue32(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, false touches written(addr);
    fn cuStreamWriteValue32_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, true touches written(addr);
    fn cuStreamWriteValue32_v2(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, false touches written(addr);
    fn cuStreamWriteValue32_v2_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint32_t, flags: c_uint) on stream, true touches written(addr);
    fn cuStreamWriteValue64(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, false touches written(addr);
    fn cuStreamWriteValue64_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, true touches written(addr);
    fn cuStreamWriteValue64_v2(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, false touches written(addr);
    fn cuStreamWriteValue64_v2_ptsz(stream: CUstream, addr: CUdeviceptr, value: cuuint64_t, flags: c_uint) on stream, true touches written(addr);
}
