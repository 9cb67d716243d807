//! Filling memory with a pattern.

use std::ffi::{c_uchar, c_uint, c_ushort};

use emuv_cuda::{
    CUresult, CuResult,
    types::{CUdeviceptr, CUstream},
};

use super::{abi::entries, call::Call};
use crate::{
    graph::step::Step,
    memory::{physical::error, rows::Fill},
};

/// A fill of elements of 1, 2 or 4 bytes; `None` where there is nothing to fill.
pub(super) fn step(what: Fill, pattern: &[u8]) -> CuResult<Option<Step>> {
    let size = pattern.len();
    if !what.address.is_multiple_of(size as u64) || (what.height > 1 && !what.pitch_bytes.is_multiple_of(size)) {
        return Err(error(CUresult::INVALID_VALUE));
    }
    let is_nothing = what.width == 0 || what.height == 0;
    Ok((!is_nothing).then(|| Step::Fill(what, pattern.to_vec())))
}

fn fill(call: &Call, stream: u64, what: Fill, pattern: &[u8]) -> CuResult {
    let target = call.stream(stream)?;
    step(what, pattern)?.map_or(Ok(()), |step| target.enqueue(step))
}

fn line(address: u64, width: usize) -> Fill {
    Fill { address, pitch_bytes: 0, width, height: 1 }
}

entries! {
    fn cuMemsetD8_v2 / cuMemsetD8_v2_ptds(address: CUdeviceptr, value: c_uchar, count: usize) |call| {
        fill(call, 0, line(address, count), &[value])
    }

    fn cuMemsetD16_v2 / cuMemsetD16_v2_ptds(address: CUdeviceptr, value: c_ushort, count: usize) |call| {
        fill(call, 0, line(address, count), &value.to_le_bytes())
    }

    fn cuMemsetD32_v2 / cuMemsetD32_v2_ptds(address: CUdeviceptr, value: c_uint, count: usize) |call| {
        fill(call, 0, line(address, count), &value.to_le_bytes())
    }

    fn cuMemsetD8Async / cuMemsetD8Async_ptsz(address: CUdeviceptr, value: c_uchar, count: usize, stream: CUstream) |call| {
        fill(call, stream.address(), line(address, count), &[value])
    }

    fn cuMemsetD16Async / cuMemsetD16Async_ptsz(
        address: CUdeviceptr, value: c_ushort, count: usize, stream: CUstream,
    ) |call| {
        fill(call, stream.address(), line(address, count), &value.to_le_bytes())
    }

    fn cuMemsetD32Async / cuMemsetD32Async_ptsz(
        address: CUdeviceptr, value: c_uint, count: usize, stream: CUstream,
    ) |call| {
        fill(call, stream.address(), line(address, count), &value.to_le_bytes())
    }

    fn cuMemsetD2D8_v2 / cuMemsetD2D8_v2_ptds(
        address: CUdeviceptr, pitch_bytes: usize, value: c_uchar, width: usize, height: usize,
    ) |call| {
        fill(call, 0, Fill { address, pitch_bytes, width, height }, &[value])
    }

    fn cuMemsetD2D16_v2 / cuMemsetD2D16_v2_ptds(
        address: CUdeviceptr, pitch_bytes: usize, value: c_ushort, width: usize, height: usize,
    ) |call| {
        fill(call, 0, Fill { address, pitch_bytes, width, height }, &value.to_le_bytes())
    }

    fn cuMemsetD2D32_v2 / cuMemsetD2D32_v2_ptds(
        address: CUdeviceptr, pitch_bytes: usize, value: c_uint, width: usize, height: usize,
    ) |call| {
        fill(call, 0, Fill { address, pitch_bytes, width, height }, &value.to_le_bytes())
    }

    fn cuMemsetD2D8Async / cuMemsetD2D8Async_ptsz(
        address: CUdeviceptr, pitch_bytes: usize, value: c_uchar, width: usize, height: usize, stream: CUstream,
    ) |call| {
        fill(call, stream.address(), Fill { address, pitch_bytes, width, height }, &[value])
    }

    fn cuMemsetD2D16Async / cuMemsetD2D16Async_ptsz(
        address: CUdeviceptr, pitch_bytes: usize, value: c_ushort, width: usize, height: usize, stream: CUstream,
    ) |call| {
        fill(call, stream.address(), Fill { address, pitch_bytes, width, height }, &value.to_le_bytes())
    }

    fn cuMemsetD2D32Async / cuMemsetD2D32Async_ptsz(
        address: CUdeviceptr, pitch_bytes: usize, value: c_uint, width: usize, height: usize, stream: CUstream,
    ) |call| {
        fill(call, stream.address(), Fill { address, pitch_bytes, width, height }, &value.to_le_bytes())
    }
}
