//! Copies: what they touch is told exactly. One from the host may bring pointers along.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract. Descriptions of copies are null
//! or valid by it, arrays have as many elements as the call says.
#![allow(unsafe_code)]

use core::ffi::{c_uint, c_ulonglong, c_void};

use emuv_cuda::types::*;

use crate::{
    entry::{entries, memset::transfers},
    moves, peers,
    session::{self, Session},
    touch::Touch,
};

/// A copy of what was searched where it lies: what it points to is known, on the same device.
fn within(addresses: &[CUdeviceptr]) -> Touch {
    let mut touch = Touch::nothing();
    addresses.iter().for_each(|address| touch.add(*address));
    touch
}

/// A copy from memory that is not searched.
fn from_elsewhere(addresses: &[CUdeviceptr]) -> Touch {
    let mut touch = within(addresses);
    touch.brings_pointers();
    touch
}

/// A copy from the host.
fn from_host(to: CUdeviceptr, from: u64, bytes: usize) -> Touch {
    let Some(session) = session::current() else { return Touch::everything() };
    let mut touch = within(&[to]);
    touch.brings(session, to, from, bytes);
    touch
}

/// A copy between any two kinds of memory.
fn unified(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) -> Touch {
    let Some(session) = session::current() else { return Touch::everything() };
    match is_searched(session, CU_MEMORYTYPE_UNIFIED, from) {
        true if peers::crosses(session, to, from) => from_elsewhere(&[to, from]),
        true => within(&[to, from]),
        false => from_host(to, from, bytes),
    }
}

/// Whether a copy's source is memory that is searched for pointers: what lies in an arena.
pub(crate) fn is_searched(session: &Session, kind: CUmemorytype, from: CUdeviceptr) -> bool {
    matches!(kind, CU_MEMORYTYPE_DEVICE | CU_MEMORYTYPE_UNIFIED) && session.device_at(from).is_some()
}

/// What a described copy touches. Addresses that do not apply are none of ours, or harmless.
macro_rules! described {
    ($($name:ident $description:ty;)*) => {
        $(
            /// # Safety
            /// Null or a valid description.
            unsafe fn $name(copy: *const $description) -> Touch {
                // SAFETY: the caller's word.
                let Some(copy) = (unsafe { copy.as_ref() }) else { return Touch::nothing() };
                let Some(session) = session::current() else { return Touch::everything() };
                let mut touch =
                    within(&[copy.srcDevice, copy.dstDevice, copy.srcHost as u64, copy.dstHost as u64]);
                if !is_searched(session, copy.srcMemoryType, copy.srcDevice)
                    || peers::crosses(session, copy.dstDevice, copy.srcDevice)
                {
                    touch.brings_pointers();
                }
                touch
            }
        )*
    };
}

described! {
    flat CUDA_MEMCPY2D;
    boxed CUDA_MEMCPY3D;
    peer_box CUDA_MEMCPY3D_PEER;
}

/// # Safety
/// Both arrays have `count` elements.
unsafe fn batch(to: *mut CUdeviceptr, from: *mut CUdeviceptr, count: usize) -> Touch {
    let mut touch = from_elsewhere(&[]);
    if !to.is_null() && !from.is_null() {
        for index in 0..count {
            // SAFETY: the caller's word.
            unsafe {
                touch.add(*to.add(index));
                touch.add(*from.add(index));
            }
        }
    }
    touch
}

transfers! { peers::launch:
    fn cuFabricCpyBatchAsync(numOps: usize, opList: *mut CUDA_FABRIC_COPY_BATCH_OP_v1, flags: c_ulonglong, hStream: CUstream) on hStream, false touches Touch::everything();
    fn cuFabricCpyBatchAsync_ptsz(numOps: usize, opList: *mut CUDA_FABRIC_COPY_BATCH_OP_v1, flags: c_ulonglong, hStream: CUstream) on hStream, true touches Touch::everything();
    fn cuMemBatchDecompressAsync(paramsArray: *mut CUmemDecompressParams, count: usize, flags: c_uint, errorIndex: *mut usize, stream: CUstream) on stream, false touches Touch::everything();
    fn cuMemBatchDecompressAsync_ptsz(paramsArray: *mut CUmemDecompressParams, count: usize, flags: c_uint, errorIndex: *mut usize, stream: CUstream) on stream, true touches Touch::everything();
    fn cuMemcpy2DAsync_v2(pCopy: *const CUDA_MEMCPY2D_v2, hStream: CUstream) on hStream, false touches flat(pCopy);
    fn cuMemcpy2DAsync_v2_ptsz(pCopy: *const CUDA_MEMCPY2D_v2, hStream: CUstream) on hStream, true touches flat(pCopy);
    fn cuMemcpy2DUnaligned_v2(pCopy: *const CUDA_MEMCPY2D_v2) on std::ptr::null_mut(), false touches flat(pCopy);
    fn cuMemcpy2DUnaligned_v2_ptds(pCopy: *const CUDA_MEMCPY2D_v2) on std::ptr::null_mut(), true touches flat(pCopy);
    fn cuMemcpy2D_v2(pCopy: *const CUDA_MEMCPY2D_v2) on std::ptr::null_mut(), false touches flat(pCopy);
    fn cuMemcpy2D_v2_ptds(pCopy: *const CUDA_MEMCPY2D_v2) on std::ptr::null_mut(), true touches flat(pCopy);
    fn cuMemcpy3DAsync_v2(pCopy: *const CUDA_MEMCPY3D_v2, hStream: CUstream) on hStream, false touches boxed(pCopy);
    fn cuMemcpy3DAsync_v2_ptsz(pCopy: *const CUDA_MEMCPY3D_v2, hStream: CUstream) on hStream, true touches boxed(pCopy);
    fn cuMemcpy3DBatchAsync(numParams: usize, opList: *mut CUDA_MEMCPY3D_BATCH_OP_v1, failIdx: *mut usize, flags: c_ulonglong, hStream: CUstream) on hStream, false touches Touch::everything();
    fn cuMemcpy3DBatchAsync_ptsz(numParams: usize, opList: *mut CUDA_MEMCPY3D_BATCH_OP_v1, failIdx: *mut usize, flags: c_ulonglong, hStream: CUstream) on hStream, true touches Touch::everything();
    fn cuMemcpy3DBatchAsync_v2(numParams: usize, opList: *mut CUDA_MEMCPY3D_BATCH_OP_v1, flags: c_ulonglong, hStream: CUstream) on hStream, false touches Touch::everything();
    fn cuMemcpy3DBatchAsync_v2_ptsz(numParams: usize, opList: *mut CUDA_MEMCPY3D_BATCH_OP_v1, flags: c_ulonglong, hStream: CUstream) on hStream, true touches Touch::everything();
    fn cuMemcpy3DWithAttributesAsync(op: *mut CUDA_MEMCPY3D_BATCH_OP_v1, flags: c_ulonglong, hStream: CUstream) on hStream, false touches Touch::everything();
    fn cuMemcpy3DWithAttributesAsync_ptsz(op: *mut CUDA_MEMCPY3D_BATCH_OP_v1, flags: c_ulonglong, hStream: CUstream) on hStream, true touches Touch::everything();
    fn cuMemcpy3D_v2(pCopy: *const CUDA_MEMCPY3D_v2) on std::ptr::null_mut(), false touches boxed(pCopy);
    fn cuMemcpy3D_v2_ptds(pCopy: *const CUDA_MEMCPY3D_v2) on std::ptr::null_mut(), true touches boxed(pCopy);
    fn cuMemcpyAtoD_v2(dstDevice: CUdeviceptr, srcArray: CUarray, srcOffset: usize, ByteCount: usize) on std::ptr::null_mut(), false touches from_elsewhere(&[dstDevice]);
    fn cuMemcpyAtoD_v2_ptds(dstDevice: CUdeviceptr, srcArray: CUarray, srcOffset: usize, ByteCount: usize) on std::ptr::null_mut(), true touches from_elsewhere(&[dstDevice]);
    fn cuMemcpyBatchAsync(dsts: *mut CUdeviceptr, srcs: *mut CUdeviceptr, sizes: *mut usize, count: usize, attrs: *mut CUmemcpyAttributes_v1, attrIdxs: *mut usize, numAttrs: usize, failIdx: *mut usize, hStream: CUstream) on hStream, false touches batch(dsts, srcs, count);
    fn cuMemcpyBatchAsync_ptsz(dsts: *mut CUdeviceptr, srcs: *mut CUdeviceptr, sizes: *mut usize, count: usize, attrs: *mut CUmemcpyAttributes_v1, attrIdxs: *mut usize, numAttrs: usize, failIdx: *mut usize, hStream: CUstream) on hStream, true touches batch(dsts, srcs, count);
    fn cuMemcpyBatchAsync_v2(dsts: *mut CUdeviceptr, srcs: *mut CUdeviceptr, sizes: *mut usize, count: usize, attrs: *mut CUmemcpyAttributes_v1, attrIdxs: *mut usize, numAttrs: usize, hStream: CUstream) on hStream, false touches batch(dsts, srcs, count);
    fn cuMemcpyBatchAsync_v2_ptsz(dsts: *mut CUdeviceptr, srcs: *mut CUdeviceptr, sizes: *mut usize, count: usize, attrs: *mut CUmemcpyAttributes_v1, attrIdxs: *mut usize, numAttrs: usize, hStream: CUstream) on hStream, true touches batch(dsts, srcs, count);
    fn cuMemcpyDtoA_v2(dstArray: CUarray, dstOffset: usize, srcDevice: CUdeviceptr, ByteCount: usize) on std::ptr::null_mut(), false touches within(&[srcDevice]);
    fn cuMemcpyDtoA_v2_ptds(dstArray: CUarray, dstOffset: usize, srcDevice: CUdeviceptr, ByteCount: usize) on std::ptr::null_mut(), true touches within(&[srcDevice]);
    fn cuMemcpyDtoHAsync_v2(dstHost: *mut c_void, srcDevice: CUdeviceptr, ByteCount: usize, hStream: CUstream) on hStream, false touches within(&[srcDevice]);
    fn cuMemcpyDtoHAsync_v2_ptsz(dstHost: *mut c_void, srcDevice: CUdeviceptr, ByteCount: usize, hStream: CUstream) on hStream, true touches within(&[srcDevice]);
    fn cuMemcpyDtoH_v2(dstHost: *mut c_void, srcDevice: CUdeviceptr, ByteCount: usize) on std::ptr::null_mut(), false touches within(&[srcDevice]);
    fn cuMemcpyDtoH_v2_ptds(dstHost: *mut c_void, srcDevice: CUdeviceptr, ByteCount: usize) on std::ptr::null_mut(), true touches within(&[srcDevice]);
    fn cuMemcpyHtoDAsync_v2(dstDevice: CUdeviceptr, srcHost: *const c_void, ByteCount: usize, hStream: CUstream) on hStream, false touches from_host(dstDevice, srcHost as u64, ByteCount);
    fn cuMemcpyHtoDAsync_v2_ptsz(dstDevice: CUdeviceptr, srcHost: *const c_void, ByteCount: usize, hStream: CUstream) on hStream, true touches from_host(dstDevice, srcHost as u64, ByteCount);
    fn cuMemcpyHtoD_v2(dstDevice: CUdeviceptr, srcHost: *const c_void, ByteCount: usize) on std::ptr::null_mut(), false touches from_host(dstDevice, srcHost as u64, ByteCount);
    fn cuMemcpyHtoD_v2_ptds(dstDevice: CUdeviceptr, srcHost: *const c_void, ByteCount: usize) on std::ptr::null_mut(), true touches from_host(dstDevice, srcHost as u64, ByteCount);
    fn cuMemcpyWithAttributesAsync(dst: CUdeviceptr, src: CUdeviceptr, size: usize, attr: *mut CUmemcpyAttributes_v1, hStream: CUstream) on hStream, false touches unified(dst, src, size);
    fn cuMemcpyWithAttributesAsync_ptsz(dst: CUdeviceptr, src: CUdeviceptr, size: usize, attr: *mut CUmemcpyAttributes_v1, hStream: CUstream) on hStream, true touches unified(dst, src, size);
}

/// Copies that name the contexts, of what lies in one piece, or, where the driver makes no such copies of mapped memory, as between addresses.
macro_rules! lines_between_contexts {
    ($(fn $name:ident($to:ident, $to_context:ident, $from:ident, $from_context:ident, $bytes:ident $(, $stream:ident)?)
        or $unnamed:ident, $per_thread:literal;)*) => {
        entries! {
            $(
                /// Tracked.
                fn $name(
                    $to: CUdeviceptr, $to_context: CUcontext, $from: CUdeviceptr, $from_context: CUcontext,
                    $bytes: usize $(, $stream: CUstream)?
                ) |session, driver| {
                    let call = || {
                        if peers::needs_plain_copy(session, &within(&[$to, $from])) {
                            // SAFETY: the program's own arguments.
                            return unsafe { driver.$unnamed($to, $from, $bytes $(, $stream)?) };
                        }
                        // SAFETY: the program's own arguments.
                        let result = unsafe { driver.$name($to, $to_context, $from, $from_context, $bytes $(, $stream)?) };
                        if !peers::opened_after(session, result, &within(&[$to, $from])) {
                            return result;
                        }
                        // SAFETY: as above.
                        unsafe { driver.$unnamed($to, $from, $bytes $(, $stream)?) }
                    };
                    let stream: &[CUstream] = &[$($stream)?];
                    let stream = stream.first().copied().unwrap_or(std::ptr::null_mut());
                    Some(moves::launch(session, stream, $per_thread, || unified($to, $from, $bytes), call))
                }
            )*
        }
    };
}

lines_between_contexts! {
    fn cuMemcpyPeer(dstDevice, dstContext, srcDevice, srcContext, ByteCount) or cuMemcpyDtoD_v2, false;
    fn cuMemcpyPeer_ptds(dstDevice, dstContext, srcDevice, srcContext, ByteCount) or cuMemcpyDtoD_v2_ptds, true;
    fn cuMemcpyPeerAsync(dstDevice, dstContext, srcDevice, srcContext, ByteCount, hStream) or cuMemcpyDtoDAsync_v2, false;
    fn cuMemcpyPeerAsync_ptsz(dstDevice, dstContext, srcDevice, srcContext, ByteCount, hStream) or cuMemcpyDtoDAsync_v2_ptsz, true;
}

// Copies that name the contexts: nothing has to be opened for them, but they are to find no memory in RAM.
transfers! { peers::launch_in_vram:
    fn cuMemcpy3DPeer(pCopy: *const CUDA_MEMCPY3D_PEER_v1) on std::ptr::null_mut(), false touches peer_box(pCopy);
    fn cuMemcpy3DPeerAsync(pCopy: *const CUDA_MEMCPY3D_PEER_v1, hStream: CUstream) on hStream, false touches peer_box(pCopy);
    fn cuMemcpy3DPeerAsync_ptsz(pCopy: *const CUDA_MEMCPY3D_PEER_v1, hStream: CUstream) on hStream, true touches peer_box(pCopy);
    fn cuMemcpy3DPeer_ptds(pCopy: *const CUDA_MEMCPY3D_PEER_v1) on std::ptr::null_mut(), true touches peer_box(pCopy);
}

/// Copies between addresses of any kind; between two devices, where the current one may not touch one of them, by the form
/// that names the contexts.
macro_rules! between_addresses {
    ($(fn $name:ident($to:ident, $from:ident, $bytes:ident $(, $stream:ident)?) or $named:ident, $per_thread:literal;)*) => {
        entries! {
            $(
                /// Tracked.
                fn $name($to: CUdeviceptr, $from: CUdeviceptr, $bytes: usize $(, $stream: CUstream)?) |session, driver| {
                    // SAFETY: the program's own arguments.
                    let plain = || unsafe { driver.$name($to, $from, $bytes $(, $stream)?) };
                    let call = || match peers::between(session, $to, $from) {
                        None => plain(),
                        Some(_) if peers::needs_plain_copy(session, &within(&[$to, $from])) => plain(),
                        // SAFETY: as above; contexts of the devices on which emuV placed them.
                        Some((to, from)) => match unsafe { driver.$named($to, to, $from, from, $bytes $(, $stream)?) } {
                            result if peers::opened_after(session, result, &within(&[$to, $from])) => plain(),
                            result => result,
                        },
                    };
                    let stream: &[CUstream] = &[$($stream)?];
                    let stream = stream.first().copied().unwrap_or(std::ptr::null_mut());
                    Some(moves::launch(session, stream, $per_thread, || unified($to, $from, $bytes), call))
                }
            )*
        }
    };
}

between_addresses! {
    fn cuMemcpy(dst, src, ByteCount) or cuMemcpyPeer, false;
    fn cuMemcpy_ptds(dst, src, ByteCount) or cuMemcpyPeer_ptds, true;
    fn cuMemcpyAsync(dst, src, ByteCount, hStream) or cuMemcpyPeerAsync, false;
    fn cuMemcpyAsync_ptsz(dst, src, ByteCount, hStream) or cuMemcpyPeerAsync_ptsz, true;
    fn cuMemcpyDtoD_v2(dstDevice, srcDevice, ByteCount) or cuMemcpyPeer, false;
    fn cuMemcpyDtoD_v2_ptds(dstDevice, srcDevice, ByteCount) or cuMemcpyPeer_ptds, true;
    fn cuMemcpyDtoDAsync_v2(dstDevice, srcDevice, ByteCount, hStream) or cuMemcpyPeerAsync, false;
    fn cuMemcpyDtoDAsync_v2_ptsz(dstDevice, srcDevice, ByteCount, hStream) or cuMemcpyPeerAsync_ptsz, true;
}
