//! Which allocations were moved most: a bounded list of all that were.

use crate::{Tier, hash::FastMap};

/// Allocations that are told apart.
const MOST_ALLOCATIONS: usize = 4096;

/// An allocation, or those that were one after the other at the same place and of the same size, and what was copied of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Where it lies in the arena.
    pub offset: u64,
    /// Its size.
    pub bytes: u64,
    /// Into VRAM, in bytes, each time that it was.
    pub in_bytes: u64,
    /// Out of it.
    pub out_bytes: u64,
}

impl Cost {
    /// Both ways.
    pub fn moved_bytes(&self) -> u64 {
        self.in_bytes.saturating_add(self.out_bytes)
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Costs(FastMap<(u64, u64), (u64, u64)>);

impl Costs {
    /// So much was copied of an allocation: where it begins, and its size.
    pub fn add(&mut self, extent: (u64, u64), bytes: u64, to: Tier) {
        let (in_bytes, out_bytes) = self.0.entry(extent).or_default();
        *(if to == Tier::Vram { in_bytes } else { out_bytes }) += bytes;
        if self.0.len() > MOST_ALLOCATIONS {
            let mean = self.0.values().map(|(into, out)| into + out).sum::<u64>() / self.0.len() as u64;
            self.0.retain(|_, (into, out)| *into + *out > mean);
        }
    }

    /// The `count` of which most was copied, most first.
    pub fn most(&self, count: usize) -> Vec<Cost> {
        let cost = |((offset, bytes), (into, out)): (&(u64, u64), &(u64, u64))| Cost {
            offset: *offset,
            bytes: *bytes,
            in_bytes: *into,
            out_bytes: *out,
        };
        let mut most: Vec<Cost> = self.0.iter().map(cost).collect();
        most.sort_unstable_by_key(|cost| (std::cmp::Reverse(cost.moved_bytes()), cost.offset));
        most.truncate(count);
        most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_moved_come_first_and_stay_however_many_there_are() {
        let mut costs = Costs::default();
        for round in 0..3 {
            costs.add((7, 100), 1000, if round == 0 { Tier::Ram } else { Tier::Vram });
            for other in 0..10_000 {
                costs.add((1000 + other, 10), 1 + other % 3, Tier::Ram);
            }
        }
        assert_eq!(costs.most(1), [Cost { offset: 7, bytes: 100, in_bytes: 2000, out_bytes: 1000 }]);
        assert!(costs.most(usize::MAX).len() <= MOST_ALLOCATIONS);
        assert!(Costs::default().most(3).is_empty());
    }
}
