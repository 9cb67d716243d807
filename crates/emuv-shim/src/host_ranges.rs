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
    /// Start -> size in bytes.
    ranges: RwLock<BTreeMap<u64, u64>>,
    /// All ranges lie in here, so that most words are answered without the lock.
    least: AtomicU64,
    most: AtomicU64,
}

impl Default for HostRanges {
    fn default() -> Self {
        Self { ranges: RwLock::default(), least: AtomicU64::new(u64::MAX), most: AtomicU64::new(0) }
    }
}

impl HostRanges {
    /// Kernels can reach `bytes` at `start` from now on.
    pub fn add(&self, start: u64, bytes: u64) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.insert(start, bytes);
        self.least.fetch_min(start, Ordering::Release);
        self.most.fetch_max(start.saturating_add(bytes), Ordering::Release);
    }

    /// The range that starts there is gone.
    pub fn remove(&self, start: u64) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.remove(&start);
        if ranges.is_empty() {
            self.least.store(u64::MAX, Ordering::Release);
            self.most.store(0, Ordering::Release);
        }
    }

    /// Whether `address` lies in one of them.
    pub fn contains(&self, address: u64) -> bool {
        if address < self.least.load(Ordering::Acquire) || address >= self.most.load(Ordering::Acquire) {
            return false;
        }
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        ranges.range(..=address).next_back().is_some_and(|(start, bytes)| address - start < *bytes)
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
}
