//! Searching GPU memory for pointers into the arena, on the GPU, as a conservative garbage collector does: any
//! aligned word whose value lies in the arena's address range is taken for one. At VRAM's speed this costs 0.25 ms
//! per GiB; of memory in RAM, the link's.
//!
//! What is found stays marked in a bitmap of the arena's granules: a pointer that was there once may have been copied
//! elsewhere. The bitmaps lie in pinned memory of the host (16 KiB for 256 GiB): finds are rare, it costs no VRAM, and
//! what a search found can be read as soon as the search is known to be done.
//!
//! # Safety
//! Each block is one driver call on a module and memory that were made here, in the context that the caller has made
//! current, on a stream of that context; or it reads a bitmap, which lives as long as its context, and contexts go only
//! while nobody is in here (the mover keeps still, and [`Searcher::forget`] comes before it goes on). The kernel only
//! reads the ranges that it is given, which are mapped when it runs (they are a work's own, right behind it, or nothing
//! is unmapped meanwhile), and sets bits in the bitmap.
#![allow(unsafe_code)]

use core::ffi::c_void;
use std::{collections::HashMap, sync::Mutex};

use emuv_cuda::{CuResult, types::*};
use emuv_policy::{GRANULE, Owner};

use crate::{arena::lock, real::Real};

/// The kernel, as PTX source: compiled by the driver for the GPU at hand.
const PTX: &str = concat!(include_str!("../../kernels/search.ptx"), "\0");

/// `CU_MEMHOSTALLOC_DEVICEMAP`.
const DEVICE_MAP: u32 = 2;

/// Threads per block, and blocks at most.
const BLOCK: u32 = 256;
const MOST_BLOCKS: u64 = 2048;

/// The arena that pointers are searched for: address and size in bytes.
pub(crate) type Arena = (u64, u64);

/// What was made in one context.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    function: usize,
    /// In pinned memory, at the same address for the host and the GPU.
    bitmap: CUdeviceptr,
}

/// See the module's head. One per device.
#[derive(Debug, Default)]
pub(crate) struct Searcher(Mutex<HashMap<Owner, Kernel>>);

fn bitmap_words(arena: Arena) -> usize {
    usize::try_from(arena.1 / GRANULE / 64).unwrap_or(0) + 1
}

impl Searcher {
    /// Loads the kernel in `context`, which is current, if it is not there yet.
    ///
    /// # Errors
    /// The driver's own.
    pub fn prepare(&self, real: &Real, context: Owner, arena: Arena) -> CuResult {
        if lock(&self.0).contains_key(&context) {
            return Ok(());
        }
        let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        let mut bitmap = std::ptr::null_mut();
        // SAFETY: see the module's head; a text that ends with a zero, live locals, and the new memory's own size.
        unsafe {
            real.driver.cuModuleLoadData(&raw mut module, PTX.as_ptr().cast()).ok()?;
            real.driver.cuModuleGetFunction(&raw mut function, module, c"emuv_search".as_ptr()).ok()?;
            real.driver.cuMemHostAlloc(&raw mut bitmap, bitmap_words(arena) * 8, DEVICE_MAP).ok()?;
            bitmap.cast::<u8>().write_bytes(0, bitmap_words(arena) * 8);
        }
        lock(&self.0).insert(context, Kernel { function: function as usize, bitmap: bitmap as u64 });
        Ok(())
    }

    /// Whether the kernel is loaded in a context.
    pub fn is_ready(&self, context: Owner) -> bool {
        lock(&self.0).contains_key(&context)
    }

    /// Contexts have gone, and what was made in them.
    pub fn forget(&self, contexts: &[Owner]) {
        lock(&self.0).retain(|context, _| !contexts.contains(context));
    }

    /// Issues a search through these ranges (address, bytes) on a stream of `context`, which is current.
    ///
    /// # Errors
    /// The driver's own; `CUDA_ERROR_INVALID_CONTEXT` where the kernel is not loaded.
    pub fn issue(
        &self,
        real: &Real,
        context: Owner,
        stream: CUstream,
        ranges: &[(u64, u64)],
        arena: Arena,
    ) -> CuResult {
        let kernel = lock(&self.0).get(&context).copied().ok_or(emuv_cuda::CuError::INVALID_VALUE)?;
        ranges.iter().try_for_each(|range| launch(real, kernel, stream, *range, arena))
    }

    /// What searches that are done have found, in all contexts: offsets of granules that are pointed to.
    pub fn findings(&self, arena: Arena) -> Vec<u64> {
        let mut bits = vec![0_u64; bitmap_words(arena)];
        for kernel in lock(&self.0).values() {
            for (index, bits) in bits.iter_mut().enumerate() {
                // SAFETY: see the module's head; within the bitmap, which the GPU may be writing to.
                *bits |= unsafe { (kernel.bitmap as *const u64).add(index).read_volatile() };
            }
        }
        let mut offsets = Vec::new();
        for (index, &word) in bits.iter().enumerate() {
            let mut rest = word;
            while rest != 0 {
                offsets.push((index as u64 * 64 + u64::from(rest.trailing_zeros())) * GRANULE);
                rest &= rest - 1;
            }
        }
        offsets
    }
}

#[allow(clippy::cast_possible_truncation)] // At most MOST_BLOCKS.
fn launch(real: &Real, kernel: Kernel, stream: CUstream, (address, bytes): (u64, u64), arena: Arena) -> CuResult {
    let mut start = address.next_multiple_of(8);
    let mut words = (address + bytes).saturating_sub(start) / 8;
    if words == 0 {
        return Ok(());
    }
    let (mut base, mut size, mut bitmap) = (arena.0, arena.1, kernel.bitmap);
    let mut parameters: [*mut c_void; 5] = [
        (&raw mut start).cast(),
        (&raw mut words).cast(),
        (&raw mut base).cast(),
        (&raw mut size).cast(),
        (&raw mut bitmap).cast(),
    ];
    let blocks = words.div_ceil(u64::from(BLOCK)).clamp(1, MOST_BLOCKS) as u32;
    let function = kernel.function as CUfunction;
    let none = std::ptr::null_mut();
    // SAFETY: see the module's head; the parameters are those of the kernel, in order.
    unsafe { real.driver.cuLaunchKernel(function, blocks, 1, 1, BLOCK, 1, 1, 0, stream, parameters.as_mut_ptr(), none) }
        .ok()
}
