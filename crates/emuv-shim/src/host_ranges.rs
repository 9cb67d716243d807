//! Memory of the host that kernels can reach: pinned by the driver, or managed. A program may write pointers there
//! without a call, so work that can reach such memory may touch everything. Only where all of it can be looked through
//! at each launch (ordinary pinned memory, not much of it: flags and counters of libraries, tables of pointers) the work
//! touches what the pointers lead to that are there then, as if it had been given them. That matters even to kernels that
//! never read there: what was on the stack before stands in the rest of a structure of which a launch fills a part, and
//! PyTorch's copies of many tensors have such. What kernels store there is found by the search behind them.
//! And only as long as the program has not arranged to write there between a launch and its turn: in a function of the
//! host that a stream runs, or behind a word that a stream waits for.
//!
//! # Safety
//! The one block reads memory that the driver has pinned for the program, inside a range that is known: it is forgotten,
//! which waits for readers, before the driver is asked to free it.
#![allow(unsafe_code)]

use std::{collections::BTreeMap, ops};

use crate::sync::{
    PoisonError, RwLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// See the module's head. One per process.
#[derive(Debug)]
pub(crate) struct HostRanges {
    /// By start. None overlaps another.
    ranges: RwLock<BTreeMap<u64, Range>>,
    /// All ranges lie in here, so that most words are answered without the lock.
    least: AtomicU64,
    most: AtomicU64,
    /// What is there at a launch may be something else when the work's turn comes.
    changes_later: AtomicBool,
}

/// More is not looked through at each launch.
const MOST_LOOKED_THROUGH: u64 = 64 << 10;

/// Of a larger copy not all words are looked at.
const MOST_BROUGHT: u64 = 16 << 10;

/// What a word leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Not to memory of the host.
    Nothing,
    /// To this memory (address, bytes), all words of which have been shown.
    Shown(u64, u64),
    /// To memory that leads anywhere.
    Anything,
}

#[derive(Debug)]
struct Range {
    bytes: u64,
    /// Ordinary memory, which the host can read.
    readable: bool,
    /// The library that it goes with.
    library: Option<usize>,
}

impl Default for HostRanges {
    fn default() -> Self {
        Self {
            ranges: RwLock::default(),
            least: AtomicU64::new(u64::MAX),
            most: AtomicU64::new(0),
            changes_later: AtomicBool::new(false),
        }
    }
}

impl HostRanges {
    /// Kernels can reach `bytes` at `start` from now on.
    pub fn add(&self, start: u64, bytes: u64) {
        self.insert(start, Range { bytes, readable: false, library: None });
    }

    /// Kernels can reach `bytes` of ordinary pinned memory at `start`, which the host can read quickly.
    pub fn add_pinned(&self, start: u64, bytes: u64) {
        self.insert(start, Range { bytes, readable: true, library: None });
    }

    /// Kernels can reach `bytes` at `start` until the library (or module) is unloaded.
    pub fn add_managed(&self, library: usize, start: u64, bytes: u64) {
        self.insert(start, Range { bytes, readable: false, library: Some(library) });
    }

    /// From now on the host may write there between a launch and its turn.
    pub fn changes_later(&self) {
        self.changes_later.store(true, Ordering::Release);
    }

    fn insert(&self, start: u64, range: Range) {
        if range.bytes == 0 {
            return;
        }
        let end = start.saturating_add(range.bytes);
        self.change(|ranges| {
            // What lies where something new is has gone unseen, with its context.
            let overlaps = |(from, old): (&u64, &Range)| from.saturating_add(old.bytes) > start;
            let gone: Vec<u64> =
                ranges.range(..end).rev().take_while(|entry| overlaps(*entry)).map(|(from, _)| *from).collect();
            for from in gone {
                ranges.remove(&from);
            }
            ranges.insert(start, range);
        });
    }

    /// The range that starts there is gone. Gives its size in bytes, if there was one.
    pub fn remove(&self, start: u64) -> Option<u64> {
        if !self.contains(start) {
            return None;
        }
        self.change(|ranges| ranges.remove(&start)).map(|range| range.bytes)
    }

    /// A library is unloaded.
    pub fn forget_library(&self, library: usize) {
        self.change(|ranges| ranges.retain(|_, range| range.library != Some(library)));
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<u64, Range>) -> T) -> T {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut ranges);
        let least = ranges.first_key_value().map_or(u64::MAX, |(start, _)| *start);
        let most = ranges.last_key_value().map_or(0, |(start, range)| start.saturating_add(range.bytes));
        self.least.store(least, Ordering::Release);
        self.most.store(most, Ordering::Release);
        result
    }

    /// All ranges lie in here.
    pub fn span(&self) -> ops::Range<u64> {
        self.least.load(Ordering::Acquire)..self.most.load(Ordering::Acquire)
    }

    /// What a word of a kernel's arguments leads to; shows `each` word of memory that is looked through.
    pub fn reach(&self, word: u64, mut each: impl FnMut(u64)) -> Reach {
        if !self.span().contains(&word) {
            return Reach::Nothing;
        }
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let Some((start, range)) = around(&ranges, word) else { return Reach::Nothing };
        if !range.readable || range.bytes > MOST_LOOKED_THROUGH || self.changes_later.load(Ordering::Acquire) {
            return Reach::Anything;
        }
        let first = start.next_multiple_of(8);
        // SAFETY: see the module's head; the aligned part of the range.
        unsafe { show(first, (start + range.bytes).saturating_sub(first), &mut each) };
        Reach::Shown(start, range.bytes)
    }

    /// Shows `each` whole word of `bytes` at `start`, from which a copy is about to be made to `to`. False: not all that the copy
    /// will bring can be seen so; it is to be searched behind.
    pub fn brought(&self, to: u64, start: u64, bytes: u64, mut each: impl FnMut(u64)) -> bool {
        if !(to | start).is_multiple_of(8) || bytes > MOST_BROUGHT || self.changes_later.load(Ordering::Acquire) {
            return false;
        }
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        if !around(&ranges, start).is_some_and(|(from, range)| range.readable && start - from + bytes <= range.bytes) {
            return false;
        }
        // SAFETY: see the module's head; aligned and inside the range.
        unsafe { show(start, bytes, &mut each) };
        // A piece of a word may complete a pointer whose other piece is there already.
        bytes.is_multiple_of(8)
    }

    fn contains(&self, address: u64) -> bool {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        around(&ranges, address).is_some()
    }
}

/// The range that an address lies in, and where it starts.
fn around(ranges: &BTreeMap<u64, Range>, address: u64) -> Option<(u64, &Range)> {
    let (start, range) = ranges.range(..=address).next_back()?;
    (address - start < range.bytes).then_some((*start, range))
}

/// Gives the words of `bytes` at `first`.
///
/// # Safety
/// `first` is aligned, and so many bytes there can be read, which perhaps are being written to.
unsafe fn show(first: u64, bytes: u64, each: &mut impl FnMut(u64)) {
    for at in (first..first + bytes / 8 * 8).step_by(8) {
        // SAFETY: the caller's word.
        each(unsafe { (at as *const u64).read_volatile() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_in_its_range_only() {
        let ranges = HostRanges::default();
        ranges.add(1000, 10);
        ranges.add(2000, 10);
        assert!(ranges.contains(1000) && ranges.contains(1009) && ranges.contains(2005));
        assert!(!ranges.contains(999) && !ranges.contains(1010) && !ranges.contains(1500));
        ranges.remove(1000);
        assert!(!ranges.contains(1005) && ranges.contains(2000));
        ranges.remove(2000);
        assert!(!ranges.contains(2000));
    }

    #[test]
    fn what_is_new_replaces_what_was_there() {
        let ranges = HostRanges::default();
        ranges.add(1000, 10);
        ranges.add(1100, 10);
        ranges.add(2000, 10);
        ranges.add(500, 605);
        assert!(ranges.contains(500) && ranges.contains(1050) && ranges.contains(1104));
        assert!(!ranges.contains(1105), "the range that reached beyond has gone as a whole");
        assert!(ranges.contains(2009));
        assert_eq!(ranges.remove(1000), None, "it is not there any more");
        assert_eq!(ranges.remove(500), Some(605));
        assert!(!ranges.contains(1050) && ranges.contains(2000));
    }

    #[test]
    fn a_range_of_no_bytes_is_none() {
        let ranges = HostRanges::default();
        ranges.add(1000, 0);
        assert!(!ranges.contains(1000));
        assert_eq!(ranges.remove(1000), None);
    }

    #[test]
    fn managed_globals_go_with_their_library() {
        let ranges = HostRanges::default();
        ranges.add_managed(1, 1000, 10);
        ranges.add_managed(2, 2000, 10);
        ranges.add(3000, 10);
        ranges.forget_library(1);
        assert!(!ranges.contains(1000) && ranges.contains(2000) && ranges.contains(3000));
    }

    #[test]
    fn pinned_memory_is_looked_through_each_time() {
        let ranges = HostRanges::default();
        let mut memory = vec![0_u64; 64];
        let start = memory.as_ptr() as u64;
        ranges.add_pinned(start, 512);
        let found = |word| {
            let mut found = Vec::new();
            (ranges.reach(word, |word| found.extend((word != 0).then_some(word))), found)
        };
        assert_eq!(found(start + 100), (Reach::Shown(start, 512), vec![]));
        assert_eq!(found(start + 512), (Reach::Nothing, vec![]));
        // SAFETY: inside the vector; written as the program would, behind everybody's back.
        unsafe { memory.as_mut_ptr().add(63).write_volatile(77) };
        assert_eq!(found(start + 511), (Reach::Shown(start, 512), vec![77]));
        memory[63] = 0;
        assert_eq!(found(start), (Reach::Shown(start, 512), vec![]));
    }

    #[test]
    fn what_a_copy_brings_is_seen_where_all_of_it_can_be() {
        let ranges = HostRanges::default();
        let memory: Vec<u64> = (100..164).collect();
        let start = memory.as_ptr() as u64;
        ranges.add_pinned(start, 512);
        let brought = |to, from, bytes| {
            let mut seen = Vec::new();
            let all = ranges.brought(to, from, bytes, |word| seen.push(word));
            if all { Ok(seen) } else { Err(seen) }
        };
        assert_eq!(brought(1 << 40, start + 16, 24), Ok(vec![102, 103, 104]));
        assert_eq!(brought(1 << 40, start + 488, 24).map(|seen| seen.len()), Ok(3));
        assert_eq!(brought(1 << 40, start + 496, 24), Err(vec![]), "it goes beyond what is known");
        assert_eq!(brought(1 << 40, start + 4096, 8), Err(vec![]), "not pinned");
        assert_eq!(brought(1 << 40, start, 12), Err(vec![100]), "a piece of a word at the end");
        assert_eq!(brought((1 << 40) + 4, start, 8), Err(vec![]), "pieces of words");
        assert_eq!(brought(1 << 40, start + 4, 8), Err(vec![]), "pieces of words");
        ranges.changes_later();
        assert_eq!(brought(1 << 40, start, 8), Err(vec![]));
    }

    #[test]
    fn what_may_change_before_a_works_turn_is_not_looked_through() {
        let ranges = HostRanges::default();
        let memory = vec![0_u64; 64];
        let start = memory.as_ptr() as u64;
        ranges.add_pinned(start, 512);
        assert_eq!(ranges.reach(start, drop), Reach::Shown(start, 512));
        ranges.changes_later();
        assert_eq!(ranges.reach(start, drop), Reach::Anything);
    }

    #[test]
    fn memory_that_cannot_be_looked_through_leads_anywhere() {
        let ranges = HostRanges::default();
        ranges.add(1 << 30, 4096);
        ranges.add_pinned(1 << 31, MOST_LOOKED_THROUGH + 1);
        assert_eq!(ranges.reach(1 << 30, drop), Reach::Anything);
        assert_eq!(ranges.reach(1 << 31, drop), Reach::Anything);
        assert_eq!(ranges.reach(1 << 29, drop), Reach::Nothing);
    }
}
