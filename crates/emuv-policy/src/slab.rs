//! Packing of small allocations into one granule, in units of 512 bytes (the alignment that the driver
//! gives its own small allocations).

use crate::chunk::GRANULE;

/// The alignment of every allocation, in bytes.
pub(crate) const UNIT: u64 = 512;
const WORDS: usize = (GRANULE / UNIT / 64) as usize;

/// A granule that holds small allocations; a set bit is a taken unit.
#[derive(Debug, Clone)]
pub(crate) struct Slab {
    taken: [u64; WORDS],
    used_units: u64,
    /// No free run is longer than this; exact only after a search has failed.
    longest_free_units: u64,
}

impl Slab {
    pub fn new() -> Self {
        Self { taken: [0; WORDS], used_units: 0, longest_free_units: GRANULE / UNIT }
    }

    /// Units that an allocation of `bytes` takes.
    pub fn units(bytes: u64) -> u64 {
        bytes.div_ceil(UNIT)
    }

    /// An upper bound of the allocations that fit, in units.
    pub fn fits_units(&self) -> u64 {
        self.longest_free_units.min(GRANULE / UNIT - self.used_units)
    }

    pub fn is_empty(&self) -> bool {
        self.used_units == 0
    }

    /// Takes room for `bytes`; gives the offset within the slab.
    pub fn take(&mut self, bytes: u64) -> Option<u64> {
        let units = Self::units(bytes);
        let total = GRANULE / UNIT;
        if units == 0 || units > self.fits_units() {
            return None;
        }
        let (mut start, mut run) = (0, 0);
        let mut unit = 0;
        while unit < total {
            if unit % 64 == 0 && self.word(unit) == u64::MAX {
                run = 0;
                unit += 64;
                start = unit;
                continue;
            }
            if self.is_taken(unit) {
                run = 0;
                start = unit + 1;
            } else {
                run += 1;
                if run == units {
                    self.mark(start, units, true);
                    return Some(start * UNIT);
                }
            }
            unit += 1;
        }
        self.longest_free_units = units - 1;
        None
    }

    /// Gives the room for `bytes` at `offset` back.
    pub fn give(&mut self, offset: u64, bytes: u64) {
        self.mark(offset / UNIT, Self::units(bytes), false);
        self.longest_free_units = GRANULE / UNIT;
    }

    fn mark(&mut self, start: u64, units: u64, taken: bool) {
        for unit in start..start + units {
            debug_assert_ne!(self.is_taken(unit), taken, "unit {unit} marked twice");
            let bit = 1 << (unit % 64);
            let word = &mut self.taken[Self::index(unit)];
            *word = if taken { *word | bit } else { *word & !bit };
        }
        self.used_units = if taken { self.used_units + units } else { self.used_units - units };
    }

    fn is_taken(&self, unit: u64) -> bool {
        self.word(unit) & (1 << (unit % 64)) != 0
    }

    fn word(&self, unit: u64) -> u64 {
        self.taken[Self::index(unit)]
    }

    #[allow(clippy::cast_possible_truncation)] // A granule has 4096 units.
    fn index(unit: u64) -> usize {
        (unit / 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_start_on_the_next_unit() {
        let mut slab = Slab::new();
        assert_eq!(slab.take(1), Some(0));
        assert_eq!(slab.take(513), Some(512));
        assert_eq!(slab.take(512), Some(1536));
    }

    #[test]
    fn a_full_slab_has_no_room_until_something_is_given_back() {
        let mut slab = Slab::new();
        assert_eq!(slab.take(GRANULE / 2), Some(0));
        assert_eq!(slab.take(GRANULE / 2), Some(GRANULE / 2));
        assert_eq!(slab.take(1), None);
        slab.give(0, GRANULE / 2);
        assert_eq!(slab.take(GRANULE / 2 + 1), None);
        assert_eq!(slab.take(5000), Some(0));
        slab.give(0, 5000);
        slab.give(GRANULE / 2, GRANULE / 2);
        assert!(slab.is_empty());
    }
}
