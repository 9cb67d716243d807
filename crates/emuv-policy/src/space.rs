//! Which parts of the arena are taken: a best-fit allocator of address ranges (no memory involved).
//!
//! Searches for pointers take data for addresses that look like some. Two 32-bit whole numbers side by side look like an address
//! whose lower half is the first of them, and small numbers, also negative ones, are the most frequent: addresses whose lower
//! half is small are *loud*, and are given only to what has no room between them.

use std::collections::{BTreeMap, BTreeSet};

/// What one lower half of an address spans.
const HALF: u64 = 1 << 32;

/// Lower halves below this, or as far below zero, are loud.
const LOUD: u64 = 1 << 26;

/// Free ranges of `0..bytes`, coalesced.
#[derive(Debug, Clone)]
pub(crate) struct AddressSpace {
    /// The address of 0.
    base: u64,
    /// start -> length
    by_start: BTreeMap<u64, u64>,
    /// (length, start)
    by_length: BTreeSet<(u64, u64)>,
}

impl AddressSpace {
    /// `bytes` of address space from the address `base` on.
    pub fn new(base: u64, bytes: u64) -> Self {
        let mut space = Self { base, by_start: BTreeMap::new(), by_length: BTreeSet::new() };
        if bytes > 0 {
            space.insert(0, bytes);
        }
        space
    }

    /// Takes `bytes` from the smallest free range that holds them, outside loud addresses if they fit there; the lowest of those.
    pub fn take(&mut self, bytes: u64) -> Option<u64> {
        let large_enough = || self.by_length.range((bytes, 0)..).copied();
        let quiet = |(length, start)| {
            let at = self.next_quiet(start, bytes);
            (at + bytes <= start + length).then_some((length, start, at))
        };
        let any = || large_enough().next().map(|(length, start)| (length, start, start));
        let (length, start, at) = large_enough().find_map(quiet).or_else(any)?;
        self.remove(start, length);
        if at > start {
            self.insert(start, at - start);
        }
        if length > at - start + bytes {
            self.insert(at + bytes, length - (at - start) - bytes);
        }
        Some(at)
    }

    /// From `start` on, where `bytes` may lie between loud addresses; `start` if they are more than that.
    fn next_quiet(&self, start: u64, bytes: u64) -> u64 {
        let low = (self.base + start) % HALF;
        if bytes > HALF - 2 * LOUD {
            start
        } else if low < LOUD {
            start + LOUD - low
        } else if low + bytes > HALF - LOUD {
            start + HALF - low + LOUD
        } else {
            start
        }
    }

    /// Gives a range back.
    pub fn give(&mut self, start: u64, bytes: u64) {
        let (mut start, mut bytes) = (start, bytes);
        if let Some((&before, &length)) = self.by_start.range(..start).next_back() {
            debug_assert!(before + length <= start, "range given back twice");
            if before + length == start {
                self.remove(before, length);
                start = before;
                bytes += length;
            }
        }
        if let Some(&length) = self.by_start.get(&(start + bytes)) {
            self.remove(start + bytes, length);
            bytes += length;
        }
        self.insert(start, bytes);
    }

    fn insert(&mut self, start: u64, length: u64) {
        self.by_start.insert(start, length);
        self.by_length.insert((length, start));
    }

    fn remove(&mut self, start: u64, length: u64) {
        self.by_start.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_given_back_grow_together_again() {
        let mut space = AddressSpace::new(LOUD, 100);
        let taken: Vec<u64> = (0..10).map(|_| space.take(10).unwrap()).collect();
        assert_eq!(space.take(1), None);
        for start in [taken[3], taken[5], taken[4], taken[0], taken[9]] {
            space.give(start, 10);
        }
        assert_eq!(space.by_start.iter().map(|(&s, &l)| (s, l)).collect::<Vec<_>>(), [(0, 10), (30, 30), (90, 10)]);
    }

    #[test]
    fn the_tightest_range_is_used() {
        let mut space = AddressSpace::new(LOUD, 100);
        let a = space.take(30).unwrap();
        let _keep = space.take(10).unwrap();
        let b = space.take(20).unwrap();
        let _keep = space.take(40).unwrap();
        space.give(a, 30);
        space.give(b, 20);
        assert_eq!(space.take(20), Some(b));
    }

    #[test]
    fn small_numbers_side_by_side_are_no_addresses() {
        let (base, gib) = (0x7d00 << 32, 1 << 30);
        let mut space = AddressSpace::new(base, 16 * gib);
        let taken: Vec<u64> = (0..7).map(|_| space.take(gib).unwrap()).collect();
        for at in taken {
            let low = (base + at) % HALF;
            assert!(low >= LOUD && low + gib <= HALF - LOUD, "{at:x}");
        }
        // What is larger than what lies between loud addresses lies anywhere, and what has no other room.
        assert!(space.take(4 * gib).is_some());
        while space.take(LOUD).is_some() {}
        assert_eq!(space.by_start, BTreeMap::new());
    }
}
