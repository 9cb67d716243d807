//! Filling memory with a pattern.

use std::ffi::{c_uchar, c_uint, c_ushort};

use emuv_cuda::{
    CUresult, CuResult,
    types::{CUdeviceptr, CUstream},
};

use super::{abi::entries, call::Call};
use crate::{
    memory::{
        physical::error,
        scratch::BLOCK_BYTES,
        view::{Stop, View},
    },
    stream::queue::Op,
};

/// What to fill: `height` rows of `width` elements.
#[derive(Debug, Clone, Copy)]
pub struct Fill {
    /// Where the first row begins.
    pub address: u64,
    /// Bytes from one row to the next.
    pub pitch_bytes: usize,
    /// Elements of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Fill {
    /// Fills with a pattern of 1, 2 or 4 bytes.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn run(&self, view: &mut View<'_>, pattern: &[u8]) -> Result<(), Stop> {
        let row_bytes = self.width.checked_mul(pattern.len()).ok_or(Stop::IllegalAddress(self.address))?;
        let block = pattern.repeat(row_bytes.min(BLOCK_BYTES) / pattern.len());
        for row in 0..self.height as u64 {
            let mut at = self.address.wrapping_add(row.wrapping_mul(self.pitch_bytes as u64));
            let mut rest = row_bytes;
            while rest > 0 {
                view.check()?;
                let part = rest.min(block.len());
                view.store(at, &block[..part])?;
                at = at.wrapping_add(part as u64);
                rest -= part;
            }
        }
        Ok(())
    }
}

fn fill(call: &Call, stream: u64, what: Fill, pattern: &[u8]) -> CuResult {
    let target = call.stream(stream)?;
    let size = pattern.len();
    if !what.address.is_multiple_of(size as u64) || (what.height > 1 && !what.pitch_bytes.is_multiple_of(size)) {
        return Err(error(CUresult::INVALID_VALUE));
    }
    if what.width == 0 || what.height == 0 {
        return Ok(());
    }
    let pattern = pattern.to_vec();
    target.submit(Op::device(move |view| what.run(view, &pattern))).map(|_| ())
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
