//! Takes the hash of chunks, on the GPU (`contents.rs` says what for), and learns of which chunks that is worth while.
//!
//! # Safety
//! Each block is one driver call on a module, a stream and memory that were made here, in the context that the mover has made
//! current, and are used only while it lives, as those of [`super::copies`]; or it reads sums from that memory, which the kernel
//! has written before the event behind it was reached. The kernel only reads the chunk, which lies still and mapped meanwhile.
#![allow(unsafe_code)]

use std::hash::BuildHasher as _;

use emuv_cuda::{CUresult, CuError, CuResult, types::*};
use emuv_policy::hash::FastMap;

use super::copies::high_priority_stream;
use crate::{calls, contents::Hash, real::Real};

/// The kernel, as PTX source.
const PTX: &str = include_str!("../../kernels/hash.ptx");

/// Threads a block, blocks, and the sums that each block leaves.
const BLOCK: u32 = 256;
const BLOCKS: usize = 128;
const SUMS: usize = 2;

/// What the kernel takes at a time: chunks are multiples of it.
const STEP_BYTES: u64 = BLOCK as u64 * BLOCKS as u64 * 4 * 8;

/// Hashes that are being taken at most.
const SLOTS: usize = 16;

/// A chunk whose bytes were others each time is left alone for ever more of its moves, up to this.
const MOST_SKIPPED: u32 = 63;

/// What hashes of a chunk have been good for.
#[derive(Debug, Default, Clone, Copy)]
struct Trial {
    /// Moves for which it is left alone.
    skip: u32,
    /// For how many it was, the last time.
    skipped: u32,
    /// What it held when it was looked at last.
    last: Option<Hash>,
}

/// See the module's head. One per mover; it lives as long as its streams.
#[derive(Debug)]
pub(super) struct Hasher {
    function: usize,
    stream: usize,
    /// In pinned memory, at the same address for the host and the GPU.
    sums: usize,
    seed: u64,
    free: Vec<usize>,
    trials: FastMap<u64, Trial>,
}

impl Hasher {
    /// Loads the kernel in the current context.
    ///
    /// # Errors
    /// The driver's own.
    pub fn new(real: &Real) -> CuResult<Self> {
        Ok(Self {
            function: calls::load_kernel(real, PTX, c"emuv_hash")?,
            stream: high_priority_stream(real)? as usize,
            sums: calls::pinned_memory(real, SLOTS * BLOCKS * SUMS * 8)?,
            seed: std::hash::RandomState::new().hash_one(std::process::id()),
            free: (0..SLOTS).collect(),
            trials: FastMap::default(),
        })
    }

    /// Whether the chunk at `offset`, which is about to go, may well hold what it held when it went last, and can be looked at.
    pub fn is_promising(&mut self, offset: u64, bytes: u64) -> bool {
        if self.free.is_empty() {
            return false;
        }
        let trial = self.trials.entry(offset).or_default();
        let leave = trial.skip > 0;
        trial.skip = trial.skip.saturating_sub(1);
        !leave && bytes.is_multiple_of(STEP_BYTES)
    }

    /// Whether the chunk holds what it held when it was looked at before; `None`: it never was. (Whether RAM still has that is another
    /// matter.)
    pub fn learn(&mut self, offset: u64, hash: Hash) -> Option<bool> {
        let trial = self.trials.entry(offset).or_default();
        let same = trial.last.replace(hash).map(|last| last == hash);
        trial.skipped = if same == Some(false) { (4 * trial.skipped + 3).min(MOST_SKIPPED) } else { 0 };
        trial.skip = trial.skipped;
        same
    }

    /// Begins to take the hash of a chunk that [`Self::is_promising`]: under which name, and the event behind it.
    ///
    /// # Errors
    /// The driver's own; `CUDA_ERROR_INVALID_VALUE` where enough are being taken.
    pub fn take(&mut self, real: &Real, address: u64, bytes: u64, event: Option<usize>) -> CuResult<(usize, usize)> {
        let slot = self.free.pop().ok_or(CuError::INVALID_VALUE)?;
        let at = self.sums + slot * BLOCKS * SUMS * 8;
        let arguments = [address, bytes / 8, self.seed, at as u64];
        let stream = self.stream as CUstream;
        let blocks = u32::try_from(BLOCKS).unwrap_or(1);
        // SAFETY: see the module's head; the arguments are those of the kernel, in order.
        let launched = unsafe {
            // What another hash has left there is not to be taken for this one's.
            std::ptr::with_exposed_provenance_mut::<u64>(at).write_bytes(0, BLOCKS * SUMS);
            calls::launch_kernel(real, self.function, stream, (blocks, BLOCK), arguments)
        };
        let taken = launched.and_then(|()| calls::record_event(real, event, stream));
        taken.map(|event| (slot, event)).inspect_err(|_| {
            // The chunk is about to be used otherwise.
            let _ = calls::synchronize_stream(real, stream);
            self.free.push(slot);
        })
    }

    /// Waits for what is being taken. When that fails the context is at its end, and so is that.
    pub fn wait(&self, real: &Real) {
        let _ = calls::synchronize_stream(real, self.stream as CUstream);
    }

    /// The event behind it has been reached, with this result: the hash.
    pub fn read(&mut self, slot: usize, result: CUresult) -> CuResult<Hash> {
        self.free.push(slot);
        result.ok()?;
        let at = self.sums + slot * BLOCKS * SUMS * 8;
        // SAFETY: see the module's head.
        let sums = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u64>(at), BLOCKS * SUMS) };
        let sum = |which: usize| sums.iter().skip(which).step_by(SUMS).fold(0_u64, |sum, part| sum.wrapping_add(*part));
        Ok([sum(0), sum(1)])
    }
}
