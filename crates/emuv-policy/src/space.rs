//! Which parts of the arena are taken: a best-fit allocator of address ranges (no memory involved).

use std::collections::{BTreeMap, BTreeSet};

/// Free ranges of `0..bytes`, coalesced.
#[derive(Debug, Clone)]
pub(crate) struct AddressSpace {
    /// start -> length
    by_start: BTreeMap<u64, u64>,
    /// (length, start)
    by_length: BTreeSet<(u64, u64)>,
}

impl AddressSpace {
    pub fn new(bytes: u64) -> Self {
        let mut space = Self { by_start: BTreeMap::new(), by_length: BTreeSet::new() };
        if bytes > 0 {
            space.insert(0, bytes);
        }
        space
    }

    /// Takes `bytes` from the smallest free range that holds them; the lowest of those.
    pub fn take(&mut self, bytes: u64) -> Option<u64> {
        let &(length, start) = self.by_length.range((bytes, 0)..).next()?;
        self.remove(start, length);
        if length > bytes {
            self.insert(start + bytes, length - bytes);
        }
        Some(start)
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
        let mut space = AddressSpace::new(100);
        let taken: Vec<u64> = (0..10).map(|_| space.take(10).unwrap()).collect();
        assert_eq!(space.take(1), None);
        for start in [taken[3], taken[5], taken[4], taken[0], taken[9]] {
            space.give(start, 10);
        }
        assert_eq!(space.by_start.iter().map(|(&s, &l)| (s, l)).collect::<Vec<_>>(), [(0, 10), (30, 30), (90, 10)]);
    }

    #[test]
    fn the_tightest_range_is_used() {
        let mut space = AddressSpace::new(100);
        let a = space.take(30).unwrap();
        let _keep = space.take(10).unwrap();
        let b = space.take(20).unwrap();
        let _keep = space.take(40).unwrap();
        space.give(a, 30);
        space.give(b, 20);
        assert_eq!(space.take(20), Some(b));
    }
}
