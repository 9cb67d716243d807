//! Memory of the host that kernels can reach: pinned by the driver, or managed. A program may write pointers there
//! at any time without a call, so work that can reach it may touch everything.

use std::{
    collections::BTreeMap,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// See the module's head. One per process.
#[derive(Debug)]
pub(crate) struct HostRanges {
    /// By start. None overlaps another.
    ranges: RwLock<BTreeMap<u64, Range>>,
    /// All ranges lie in here, so that most words are answered without the lock.
    least: AtomicU64,
    most: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Range {
    bytes: u64,
    /// The library that it goes with.
    library: Option<usize>,
}

impl Default for HostRanges {
    fn default() -> Self {
        Self { ranges: RwLock::default(), least: AtomicU64::new(u64::MAX), most: AtomicU64::new(0) }
    }
}

impl HostRanges {
    /// Kernels can reach `bytes` at `start` from now on.
    pub fn add(&self, start: u64, bytes: u64) {
        self.insert(start, Range { bytes, library: None });
    }

    /// Kernels can reach `bytes` at `start` until the library (or module) is unloaded.
    pub fn add_managed(&self, library: usize, start: u64, bytes: u64) {
        self.insert(start, Range { bytes, library: Some(library) });
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

    /// Whether `address` lies in one of them.
    pub fn contains(&self, address: u64) -> bool {
        if address < self.least.load(Ordering::Acquire) || address >= self.most.load(Ordering::Acquire) {
            return false;
        }
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        ranges.range(..=address).next_back().is_some_and(|(start, range)| address - start < range.bytes)
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
}
