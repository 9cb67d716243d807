//! Copies. Arrays have no contents here: a copy that names one is not supported.

use std::{cell::RefCell, ffi::c_void};

use emuv_cuda::{
    CUresult, CuResult,
    types::{
        CU_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_HOST, CU_MEMORYTYPE_UNIFIED, CUDA_MEMCPY2D_v2, CUDA_MEMCPY3D_v2, CUcontext,
        CUdeviceptr, CUmemorytype, CUstream,
    },
};

use super::{
    abi::entries,
    call::{Call, Target},
    pointer::is_host,
};
use crate::{
    graph::step::{Sides, Step},
    memory::{
        physical::error,
        rows::{Box3, Plane},
        scratch::{Scratch, Unreachable},
        view::Side,
    },
    stream::queue::Op,
};

/// Where rows lie, as the copy structures say it.
struct Position {
    kind: CUmemorytype,
    host: u64,
    device: u64,
    x_bytes: usize,
    y: usize,
    z: usize,
    pitch_bytes: usize,
    height: usize,
}

fn plane(at: &Position, width_bytes: usize, rows: usize) -> CuResult<Plane> {
    let invalid = || error(CUresult::INVALID_VALUE);
    let (side, base) = match at.kind {
        CU_MEMORYTYPE_HOST => (Side::Host, at.host),
        CU_MEMORYTYPE_DEVICE => (Side::Device, at.device),
        CU_MEMORYTYPE_UNIFIED => (Side::Host, at.device),
        _ => return Err(error(CUresult::NOT_SUPPORTED)),
    };
    // Without a pitch the rows follow each other; with one they must fit into it.
    let pitch = if at.pitch_bytes == 0 { width_bytes } else { at.pitch_bytes };
    let row_end = at.x_bytes.checked_add(width_bytes).ok_or_else(invalid)?;
    if rows > 1 && row_end > pitch {
        return Err(invalid());
    }
    let height = if at.height == 0 { rows } else { at.height };
    let slice = pitch.checked_mul(height).ok_or_else(invalid)? as u64;
    let offset = slice
        .checked_mul(at.z as u64)
        .and_then(|sum| sum.checked_add((pitch as u64).checked_mul(at.y as u64)?))
        .and_then(|sum| sum.checked_add(at.x_bytes as u64))
        .ok_or_else(invalid)?;
    let address = base.checked_add(offset).ok_or_else(invalid)?;
    Ok(Plane { side, address, pitch_bytes: pitch as u64, slice_bytes: slice })
}

fn box2(copy: &CUDA_MEMCPY2D_v2) -> CuResult<Box3> {
    let from = Position {
        kind: copy.srcMemoryType,
        host: copy.srcHost.expose_provenance() as u64,
        device: copy.srcDevice,
        x_bytes: copy.srcXInBytes,
        y: copy.srcY,
        z: 0,
        pitch_bytes: copy.srcPitch,
        height: 0,
    };
    let to = Position {
        kind: copy.dstMemoryType,
        host: copy.dstHost.expose_provenance() as u64,
        device: copy.dstDevice,
        x_bytes: copy.dstXInBytes,
        y: copy.dstY,
        z: 0,
        pitch_bytes: copy.dstPitch,
        height: 0,
    };
    let (width_bytes, rows) = (copy.WidthInBytes, copy.Height);
    Ok(Box3 {
        to: plane(&to, width_bytes, rows)?,
        from: plane(&from, width_bytes, rows)?,
        width_bytes,
        height: rows as u64,
        depth: 1,
    })
}

pub(super) fn box3(copy: &CUDA_MEMCPY3D_v2) -> CuResult<Box3> {
    let from = Position {
        kind: copy.srcMemoryType,
        host: copy.srcHost.expose_provenance() as u64,
        device: copy.srcDevice,
        x_bytes: copy.srcXInBytes,
        y: copy.srcY,
        z: copy.srcZ,
        pitch_bytes: copy.srcPitch,
        height: copy.srcHeight,
    };
    let to = Position {
        kind: copy.dstMemoryType,
        host: copy.dstHost.expose_provenance() as u64,
        device: copy.dstDevice,
        x_bytes: copy.dstXInBytes,
        y: copy.dstY,
        z: copy.dstZ,
        pitch_bytes: copy.dstPitch,
        height: copy.dstHeight,
    };
    let (width_bytes, rows) = (copy.WidthInBytes, copy.Height);
    Ok(Box3 {
        to: plane(&to, width_bytes, rows)?,
        from: plane(&from, width_bytes, rows)?,
        width_bytes,
        height: rows as u64,
        depth: copy.Depth as u64,
    })
}

/// A copy as a node of a graph.
pub(super) fn described(call: &Call, copy: Box3) -> Step {
    let sides = [copy.from.address, copy.to.address].map(|address| is_host(call, address));
    Step::Copy(copy, sides)
}

/// Copies planes. With a pageable host side, the call returns when the copy is through.
fn planes(call: &Call, target: &Target, copy: Box3, wait: bool) -> CuResult {
    if wait {
        call.unsafe_in_capture()?;
    }
    if target.is_captured() {
        return target.enqueue(described(call, copy));
    }
    let waits = wait || copy.has_host_side();
    let step = Step::Copy(copy, Sides::default());
    if waits { target.carry_out(step.into_op()) } else { target.enqueue(step) }
}

/// Whether the GPU could not reach host memory by itself.
fn is_pageable(call: &Call, address: u64) -> bool {
    let space = &call.simulator.machine.space;
    !space.is_reserved(address) && space.with_host(address, |_, _| ()).is_none()
}

/// Who brings an address of device memory to a copy. The driver copies what `cuMemAlloc` gave between any two devices,
/// through the host if it must; what a program has mapped itself only a device with access reaches, except in a copy
/// between peers.
fn device_side(call: &Call, address: u64) -> Side {
    if call.simulator.machine.heap.find(address).is_some() { Side::Host } else { Side::Device }
}

thread_local! {
    static SCRATCH: RefCell<Option<Scratch>> = const { RefCell::new(None) };
}

/// Takes bytes out of the program's memory.
fn stage(address: u64, bytes: usize) -> CuResult<Vec<u8>> {
    let mut staged = vec![0; bytes];
    SCRATCH.with_borrow_mut(|kept| {
        let scratch = match kept {
            Some(scratch) => scratch,
            None => kept.insert(Scratch::new().map_err(|_| error(CUresult::OUT_OF_MEMORY))?),
        };
        scratch.load(address, &mut staged).map_err(|Unreachable| error(CUresult::INVALID_VALUE))
    })?;
    Ok(staged)
}

fn sync(call: &Call, to: (Side, u64), from: (Side, u64), bytes: usize) -> CuResult {
    let target = call.default_stream()?;
    call.unsafe_in_capture()?;
    if bytes == 0 {
        return Ok(());
    }
    target.carry_out(Step::Copy(Box3::line(to, from, bytes), Sides::default()).into_op())
}

/// Pageable memory is read when the call is made, and written before it returns, as the driver does.
fn asynchronous(call: &Call, to: (Side, u64), from: (Side, u64), bytes: usize, stream: u64) -> CuResult {
    let target = call.stream(stream)?;
    if bytes == 0 {
        return Ok(());
    }
    let copy = Box3::line(to, from, bytes);
    // A graph reads and writes pageable memory each time that it runs.
    if target.is_captured() {
        return target.enqueue(described(call, copy));
    }
    if from.0 == Side::Host && is_pageable(call, from.1) && to.0 == Side::Device {
        let staged = stage(from.1, bytes)?;
        return target.submit(Op::device(move |view| view.store_staged(to.1, &staged))).map(|_| ());
    }
    let step = Step::Copy(copy, Sides::default());
    if to.0 == Side::Host && is_pageable(call, to.1) { target.carry_out(step.into_op()) } else { target.enqueue(step) }
}

entries! {
    fn cuMemcpy / cuMemcpy_ptds(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) |call| {
        let side = |address| if is_pageable(call, address) { Side::Host } else { device_side(call, address) };
        sync(call, (side(to), to), (side(from), from), bytes)
    }

    fn cuMemcpyAsync / cuMemcpyAsync_ptsz(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) |call| {
        let side = |address| if is_pageable(call, address) { Side::Host } else { device_side(call, address) };
        asynchronous(call, (side(to), to), (side(from), from), bytes, stream.address())
    }

    fn cuMemcpyHtoD_v2 / cuMemcpyHtoD_v2_ptds(to: CUdeviceptr, from: *const c_void, bytes: usize) |call| {
        sync(call, (Side::Device, to), (Side::Host, from.address()), bytes)
    }

    fn cuMemcpyDtoH_v2 / cuMemcpyDtoH_v2_ptds(to: *mut c_void, from: CUdeviceptr, bytes: usize) |call| {
        sync(call, (Side::Host, to.address()), (Side::Device, from), bytes)
    }

    fn cuMemcpyDtoD_v2 / cuMemcpyDtoD_v2_ptds(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) |call| {
        sync(call, (device_side(call, to), to), (device_side(call, from), from), bytes)
    }

    fn cuMemcpyHtoDAsync_v2 / cuMemcpyHtoDAsync_v2_ptsz(
        to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream,
    ) |call| {
        asynchronous(call, (Side::Device, to), (Side::Host, from.address()), bytes, stream.address())
    }

    fn cuMemcpyDtoHAsync_v2 / cuMemcpyDtoHAsync_v2_ptsz(
        to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream,
    ) |call| {
        asynchronous(call, (Side::Host, to.address()), (Side::Device, from), bytes, stream.address())
    }

    fn cuMemcpyDtoDAsync_v2 / cuMemcpyDtoDAsync_v2_ptsz(
        to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream,
    ) |call| {
        asynchronous(call, (device_side(call, to), to), (device_side(call, from), from), bytes, stream.address())
    }

    fn cuMemcpyPeer / cuMemcpyPeer_ptds(
        to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize,
    ) |call| {
        call.context(to_context.address())?;
        call.context(from_context.address())?;
        // Memory of another device is reached through the host.
        sync(call, (Side::Host, to), (Side::Host, from), bytes)
    }

    fn cuMemcpyPeerAsync / cuMemcpyPeerAsync_ptsz(
        to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize,
        stream: CUstream,
    ) |call| {
        call.context(to_context.address())?;
        call.context(from_context.address())?;
        asynchronous(call, (Side::Host, to), (Side::Host, from), bytes, stream.address())
    }

    fn cuMemcpy2D_v2 / cuMemcpy2D_v2_ptds / cuMemcpy2DUnaligned_v2 / cuMemcpy2DUnaligned_v2_ptds(
        copy: *const CUDA_MEMCPY2D_v2,
    ) |call| {
        planes(call, &call.default_stream()?, box2(&copy.read()?)?, true)
    }

    fn cuMemcpy2DAsync_v2 / cuMemcpy2DAsync_v2_ptsz(copy: *const CUDA_MEMCPY2D_v2, stream: CUstream) |call| {
        planes(call, &call.stream(stream.address())?, box2(&copy.read()?)?, false)
    }

    fn cuMemcpy3D_v2 / cuMemcpy3D_v2_ptds(copy: *const CUDA_MEMCPY3D_v2) |call| {
        planes(call, &call.default_stream()?, box3(&copy.read()?)?, true)
    }

    fn cuMemcpy3DAsync_v2 / cuMemcpy3DAsync_v2_ptsz(copy: *const CUDA_MEMCPY3D_v2, stream: CUstream) |call| {
        planes(call, &call.stream(stream.address())?, box3(&copy.read()?)?, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(kind: CUmemorytype) -> Position {
        Position { kind, host: 1000, device: 2000, x_bytes: 4, y: 2, z: 1, pitch_bytes: 64, height: 10 }
    }

    #[test]
    fn a_plane_begins_where_its_offsets_say() {
        let plane = plane(&at(CU_MEMORYTYPE_DEVICE), 16, 5).unwrap();
        assert_eq!(plane.address, 2000 + 64 * 10 + 2 * 64 + 4);
        assert_eq!((plane.pitch_bytes, plane.slice_bytes, plane.side), (64, 640, Side::Device));
    }

    #[test]
    fn rows_longer_than_the_pitch_and_arrays_are_refused() {
        let code = |at: &Position, width| plane(at, width, 2).unwrap_err().code();
        assert_eq!(code(&at(CU_MEMORYTYPE_HOST), 61), CUresult::INVALID_VALUE);
        assert_eq!(code(&at(emuv_cuda::types::CU_MEMORYTYPE_ARRAY), 8), CUresult::NOT_SUPPORTED);
        assert_eq!(plane(&at(CU_MEMORYTYPE_HOST), 60, 2).unwrap().side, Side::Host);
    }
}
