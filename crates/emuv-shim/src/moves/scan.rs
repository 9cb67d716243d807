//! Searching GPU memory for pointers into the arena, on the GPU, as a conservative garbage collector does: any
//! aligned word whose value lies in the arena's address range is taken for one. At VRAM's speed this costs 0.25 ms
//! per GiB; of memory in RAM, the link's.
//!
//! # Safety
//! Each block is one driver call on a module, a stream and memory that were made here in the mover's context.
//! The kernel only reads the ranges that it is given, which are mapped and not moving while a scan is under way
//! (`Residency::scan`), and writes the bitmap.
#![allow(unsafe_code)]

use core::ffi::c_void;

use emuv_cuda::{CuResult, types::*};
use emuv_policy::GRANULE;

use crate::real::Real;

/// The kernel, as PTX source: compiled by the driver for the GPU at hand.
const PTX: &str = concat!(include_str!("../../kernels/scan.ptx"), "\0");

/// Threads per block, and blocks at most.
const BLOCK: u32 = 256;
const MOST_BLOCKS: u64 = 2048;

/// See the module's head.
pub(crate) struct Scanner {
    function: CUfunction,
    bitmap: CUdeviceptr,
    /// One bit per granule of the arena, in 64-bit words.
    found: Vec<u64>,
}

impl Scanner {
    /// Loads the kernel for an arena of `arena_bytes`, in the current context.
    ///
    /// # Errors
    /// The driver's own.
    pub fn new(real: &Real, arena_bytes: u64) -> CuResult<Self> {
        let words = usize::try_from(arena_bytes / GRANULE / 64).unwrap_or(0) + 1;
        let mut module = std::ptr::null_mut();
        let mut function = std::ptr::null_mut();
        let mut bitmap = 0;
        // SAFETY: see the module's head; a text that ends with a zero, live locals.
        unsafe {
            real.driver.cuModuleLoadData(&raw mut module, PTX.as_ptr().cast()).ok()?;
            real.driver.cuModuleGetFunction(&raw mut function, module, c"emuv_scan".as_ptr()).ok()?;
            real.driver.cuMemAlloc_v2(&raw mut bitmap, words * 8).ok()?;
        }
        Ok(Self { function, bitmap, found: vec![0; words] })
    }

    /// Searches ranges (address, bytes) for words from `base` on, `arena_bytes` wide; gives the offsets of the
    /// granules that are pointed to. Waits for the GPU.
    ///
    /// # Errors
    /// The driver's own.
    pub fn scan(
        &mut self,
        real: &Real,
        stream: CUstream,
        ranges: &[(u64, u64)],
        (base, arena_bytes): (u64, u64),
    ) -> CuResult<Vec<u64>> {
        let bitmap_bytes = self.found.len() * 8;
        // SAFETY: see the module's head.
        unsafe { real.driver.cuMemsetD8Async(self.bitmap, 0, bitmap_bytes, stream) }.ok()?;
        for &(address, bytes) in ranges {
            self.launch(real, stream, address, bytes, base, arena_bytes)?;
        }
        // SAFETY: see the module's head; as large as the bitmap.
        unsafe {
            real.driver.cuMemcpyDtoHAsync_v2(self.found.as_mut_ptr().cast(), self.bitmap, bitmap_bytes, stream).ok()?;
            real.driver.cuStreamSynchronize(stream).ok()?;
        }
        let mut offsets = Vec::new();
        for (index, &word) in self.found.iter().enumerate() {
            let mut bits = word;
            while bits != 0 {
                offsets.push((index as u64 * 64 + u64::from(bits.trailing_zeros())) * GRANULE);
                bits &= bits - 1;
            }
        }
        Ok(offsets)
    }

    #[allow(clippy::cast_possible_truncation)] // At most MOST_BLOCKS.
    fn launch(&self, real: &Real, stream: CUstream, address: u64, bytes: u64, base: u64, arena_bytes: u64) -> CuResult {
        let (mut start, mut words) =
            (address.next_multiple_of(8), (bytes - (address.next_multiple_of(8) - address).min(bytes)) / 8);
        if words == 0 {
            return Ok(());
        }
        let (mut base, mut size, mut bitmap) = (base, arena_bytes, self.bitmap);
        let mut parameters: [*mut c_void; 5] = [
            (&raw mut start).cast(),
            (&raw mut words).cast(),
            (&raw mut base).cast(),
            (&raw mut size).cast(),
            (&raw mut bitmap).cast(),
        ];
        let blocks = words.div_ceil(u64::from(BLOCK)).clamp(1, MOST_BLOCKS) as u32;
        // SAFETY: see the module's head; the parameters are those of the kernel, in order.
        unsafe {
            real.driver.cuLaunchKernel(
                self.function,
                blocks,
                1,
                1,
                BLOCK,
                1,
                1,
                0,
                stream,
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .ok()
    }
}
