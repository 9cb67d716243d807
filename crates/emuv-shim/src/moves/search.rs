//! Searching GPU memory for pointers into the arena, on the GPU, as a conservative garbage collector does: any
//! aligned word whose value lies in the arena's address range is taken for one. At VRAM's speed this costs 0.25 ms
//! per GiB; of memory in RAM, the link's.
//!
//! What is found stays marked in a bitmap of the arena's granules: a pointer that was there once may have been copied
//! elsewhere. The bitmaps lie in pinned memory of the host (16 KiB for 256 GiB): finds are rare, it costs no VRAM, and
//! what a search found can be read as soon as the search is known to be done. Behind each bitmap lie flags, one for each
//! piece of code: it has left a pointer to what it was given ([`STORES`], if no search had seen one to the same granule before; else
//! [`DOUBTED`]). Behind the flags lies a second bitmap, of what the host is known to have brought pointers to: the GPU only reads
//! it, and what stands there counts as seen before.
//!
//! # Safety
//! Each block is one driver call on a module and memory that were made here, in the context that the caller has made
//! current, on a stream of that context; or it reads a bitmap, which lives as long as its context, and contexts go only
//! while nobody is in here (the mover keeps still, and [`Searcher::forget`] comes before it goes on). The kernel only
//! reads the ranges that it is given, which are mapped when it runs (they are a work's own, right behind it, or nothing
//! is unmapped meanwhile), and sets bits in the bitmap and flags behind it.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};

use emuv_cuda::{CuResult, types::*};
use emuv_policy::{GRANULE, Owner};

use crate::{arena::lock, calls, real::Real, sync::Mutex};

/// The kernel, as PTX source.
const PTX: &str = include_str!("../../kernels/search.ptx");

/// Threads per block, and blocks at most.
const BLOCK: u32 = 256;
const MOST_BLOCKS: u64 = 2048;

/// The arena that pointers are searched for: address and size in bytes.
pub(crate) type Arena = (u64, u64);

/// Flags. The code that comes after so many others shares the last one.
const FLAGS: usize = 1 << 14;

/// Bits of a flag.
const STORES: u32 = 1;
const DOUBTED: u32 = 2;

/// Ranges that a search tells apart as a work's own.
const NAMED: usize = 8;

/// What was made in one context.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    function: usize,
    /// In pinned memory, at the same address for the host and the GPU.
    bitmap: CUdeviceptr,
    /// The bitmap of what the host has brought.
    known: CUdeviceptr,
}

/// See the module's head. One per device.
#[derive(Debug, Default)]
pub(crate) struct Searcher(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    kernels: HashMap<Owner, Kernel>,
    /// Code -> its flag.
    flags: HashMap<u64, usize>,
    /// Words of the bitmap of what the host has brought.
    known: BTreeMap<usize, u64>,
    /// Storers that the log has been told of.
    told: HashSet<u64>,
}

/// What to search: addresses and sizes in bytes.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// What the work before it may have written to.
    pub ranges: Vec<(u64, u64)>,
    /// The code that ran, and the parts of the arena (offset, bytes) to which it may have stored pointers.
    pub by: Option<(u64, Vec<(u64, u64)>)>,
}

/// What searches have found so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Offsets of granules that are pointed to.
    pub offsets: Vec<u64>,
    /// Code that has stored pointers to what it was given.
    pub storers: Vec<u64>,
    /// Code behind which pointers to what it was given were found that had been found before.
    pub doubted: Vec<u64>,
}

fn bitmap_words(arena: Arena) -> usize {
    usize::try_from(arena.1 / GRANULE / 64).unwrap_or(0) + 1
}

impl Searcher {
    /// Loads the kernel in `context`, which is current, if it is not there yet.
    ///
    /// # Errors
    /// The driver's own.
    pub fn prepare(&self, real: &Real, context: Owner, arena: Arena) -> CuResult {
        if self.is_ready(context) {
            return Ok(());
        }
        let function = calls::load_kernel(real, PTX, c"emuv_search")?;
        let before = bitmap_words(arena) * 8 + FLAGS * 4;
        let bitmap = calls::pinned_memory(real, before + bitmap_words(arena) * 8)? as u64;
        let kernel = Kernel { function, bitmap, known: bitmap + before as u64 };
        let mut state = lock(&self.0);
        state.known.iter().for_each(|(index, word)| kernel.set_known(*index, *word));
        state.kernels.insert(context, kernel);
        Ok(())
    }

    /// The host brings pointers to these offsets: a search that finds one there has found nothing new.
    pub fn know(&self, offsets: &[u64]) {
        let mut state = lock(&self.0);
        for offset in offsets {
            let granule = offset / GRANULE;
            let index = usize::try_from(granule / 64).unwrap_or(0);
            let word = state.known.entry(index).or_default();
            let bit = 1 << (granule % 64);
            if std::mem::replace(word, *word | bit) & bit == 0 {
                let word = *word;
                state.kernels.values().for_each(|kernel| kernel.set_known(index, word));
            }
        }
    }

    /// Whether the kernel is loaded in a context.
    pub fn is_ready(&self, context: Owner) -> bool {
        lock(&self.0).kernels.contains_key(&context)
    }

    /// Contexts have gone, and what was made in them.
    pub fn forget(&self, contexts: &[Owner]) {
        lock(&self.0).kernels.retain(|context, _| !contexts.contains(context));
    }

    /// Issues a search on a stream of `context`, which is current.
    ///
    /// # Errors
    /// The driver's own; `CUDA_ERROR_INVALID_VALUE` where the kernel is not loaded.
    pub fn issue(&self, real: &Real, context: Owner, stream: CUstream, search: &Search, arena: Arena) -> CuResult {
        let (kernel, flag) = {
            let mut state = lock(&self.0);
            let kernel = *state.kernels.get(&context).ok_or(emuv_cuda::CuError::INVALID_VALUE)?;
            let next = state.flags.len().min(FLAGS - 1);
            (kernel, search.by.as_ref().map(|(maker, _)| *state.flags.entry(*maker).or_insert(next)))
        };
        let flag = flag.map_or(0, |index| kernel.bitmap + (bitmap_words(arena) * 8 + index * 4) as u64);
        let named = named(search, arena);
        let aim = Aim { arena, bitmap: kernel.bitmap, known: kernel.known, flag, named };
        joined(&search.ranges).into_iter().try_for_each(|range| launch(real, kernel.function, stream, range, aim))
    }

    /// Those of these storers that were not asked for here before.
    pub fn untold(&self, storers: &[u64]) -> Vec<u64> {
        let mut state = lock(&self.0);
        storers.iter().copied().filter(|maker| state.told.insert(*maker)).collect()
    }

    /// Code that has stored pointers to what it was given, as [`Self::findings`] has it.
    pub fn storers(&self, arena: Arena) -> Vec<u64> {
        let state = lock(&self.0);
        state.flags(bitmap_words(arena)).filter(|(_, flag)| flag & STORES != 0).map(|(maker, _)| maker).collect()
    }

    /// What searches that are done have found, in all contexts.
    pub fn findings(&self, arena: Arena) -> Findings {
        let state = lock(&self.0);
        let words = bitmap_words(arena);
        let mut bits = vec![0_u64; words];
        let mut findings = Findings::default();
        for kernel in state.kernels.values() {
            for (index, bits) in bits.iter_mut().enumerate() {
                // SAFETY: see the module's head; within the bitmap, which the GPU may be writing to.
                *bits |= unsafe { (kernel.bitmap as *const u64).add(index).read_volatile() };
            }
        }
        for (maker, flag) in state.flags(words) {
            if flag & STORES != 0 {
                findings.storers.push(maker);
            } else if flag & DOUBTED != 0 {
                findings.doubted.push(maker);
            }
        }
        for (index, &word) in bits.iter().enumerate() {
            let mut rest = word;
            while rest != 0 {
                findings.offsets.push((index as u64 * 64 + u64::from(rest.trailing_zeros())) * GRANULE);
                rest &= rest - 1;
            }
        }
        findings
    }
}

impl Kernel {
    /// Writes one word of the bitmap of what the host has brought.
    fn set_known(&self, index: usize, word: u64) {
        // SAFETY: see the module's head; within that bitmap, as its offsets are the arena's. The GPU may be reading it.
        unsafe { (self.known as *mut u64).add(index).write_volatile(word) };
    }
}

impl State {
    /// The flags of all code, in each context; `words`: how long the bitmaps before them are.
    fn flags(&self, words: usize) -> impl Iterator<Item = (u64, u32)> {
        let kernels = self.kernels.values();
        kernels.flat_map(move |kernel| {
            let flags = (kernel.bitmap as *const u64).wrapping_add(words).cast::<u32>();
            // SAFETY: see the module's head; within the flags, which the GPU may be writing to.
            self.flags.iter().map(move |(maker, index)| (*maker, unsafe { flags.add(*index).read_volatile() }))
        })
    }
}

/// Ranges without those parts that others have as well; what lies side by side is one: each is a launch.
fn joined(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut joined = ranges.to_vec();
    joined.sort_unstable();
    joined.dedup_by(|next, before| {
        let joins = next.0 <= before.0 + before.1;
        if joins {
            before.1 = before.1.max(next.0 + next.1 - before.0);
        }
        joins
    });
    joined
}

/// The parts of the arena whose pointers make the search raise its flag. Where there are too many: all of it.
fn named(search: &Search, arena: Arena) -> [(u64, u64); NAMED] {
    let ranges = search.by.as_ref().map_or_else(Vec::new, |(_, named)| joined(named));
    let mut named = [(0, 0); NAMED];
    if ranges.len() > NAMED {
        named[0] = (0, arena.1);
    } else {
        named[..ranges.len()].copy_from_slice(&ranges);
    }
    named
}

/// What a search looks for and where it notes it down.
#[derive(Clone, Copy)]
struct Aim {
    arena: Arena,
    bitmap: u64,
    known: u64,
    /// Null: none.
    flag: u64,
    named: [(u64, u64); NAMED],
}

#[allow(clippy::cast_possible_truncation)] // At most MOST_BLOCKS.
fn launch(real: &Real, function: usize, stream: CUstream, (address, bytes): (u64, u64), aim: Aim) -> CuResult {
    let start = address.next_multiple_of(8);
    let words = (address + bytes).saturating_sub(start) / 8;
    if words == 0 {
        return Ok(());
    }
    let mut arguments = [0_u64; 7 + 2 * NAMED];
    arguments[..7].copy_from_slice(&[start, words, aim.arena.0, aim.arena.1, aim.bitmap, aim.known, aim.flag]);
    for (pair, (first, bytes)) in arguments[7..].as_chunks_mut::<2>().0.iter_mut().zip(aim.named) {
        *pair = [first, bytes];
    }
    let blocks = words.div_ceil(u64::from(BLOCK)).clamp(1, MOST_BLOCKS) as u32;
    // SAFETY: see the module's head; the arguments are those of the kernel, in order.
    unsafe { calls::launch_kernel(real, function, stream, (blocks, BLOCK), arguments) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_side_by_side_is_one_range_and_too_many_are_everything() {
        let of = |ranges: &[(u64, u64)]| {
            named(&Search { by: Some((1, ranges.to_vec())), ..Search::default() }, (0, 1 << 40))
        };
        assert_eq!(of(&[(64, 32), (0, 32), (32, 32)])[..2], [(0, 96), (0, 0)]);
        assert_eq!(of(&[(64, 32), (0, 32)])[..3], [(0, 32), (64, 32), (0, 0)]);
        let many: Vec<(u64, u64)> = (0..9).map(|i| (i * 100, 10)).collect();
        assert_eq!(of(&many)[..2], [(0, 1 << 40), (0, 0)]);
    }
}
