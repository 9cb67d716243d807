//! Where things were seen last: a table of fixed size that every launch looks into, for each extent that it names.
//!
//! Between two launches the program has used the caches for itself, so what counts is how many lines a look needs: one. A key
//! has one place of eight entries; where those are taken, what was seen longest ago is forgotten.

/// Places, and entries of each: twice as many as a log of 65,536 works with two extents each has.
const PLACES: usize = 1 << 15;
const ENTRIES: usize = 8;

/// See the module's head. An entry is 32 bits of the key, never zero, above 32 of the position.
#[derive(Debug, Default)]
pub(super) struct Seen {
    entries: Vec<u64>,
    /// The first entry at the beginning of a cache line.
    first: usize,
}

impl Seen {
    /// What the hash `key` names is seen at `position`. Gives where it was seen before, if that is known. Positions rise; those
    /// 2^32 apart are the same.
    #[allow(clippy::cast_possible_truncation)] // Parts of a hash, and of a position.
    pub fn insert(&mut self, key: u64, position: u64) -> Option<u64> {
        if self.entries.is_empty() {
            // Pages of it come when they are used.
            self.entries = vec![0; (PLACES + 1) * ENTRIES];
            self.first = self.entries.as_ptr().align_offset(64).min(ENTRIES);
        }
        let (tag, now) = ((key >> 32) as u32 | 1, position as u32);
        let start = self.first + key as usize % PLACES * ENTRIES;
        let place = &mut self.entries[start..start + ENTRIES];
        let (mut at, mut oldest, mut before) = (0, 0, None);
        for (other, &entry) in place.iter().enumerate() {
            let age = if entry == 0 { u32::MAX } else { now.wrapping_sub(entry as u32) };
            if (entry >> 32) as u32 == tag {
                (at, before) = (other, position.checked_sub(u64::from(age)));
                break;
            }
            if age >= oldest {
                (at, oldest) = (other, age);
            }
        }
        place[at] = u64::from(tag) << 32 | u64::from(now);
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::mix;

    #[test]
    fn what_was_seen_is_found_where_it_was_seen_last() {
        let mut seen = Seen::default();
        for round in 0..3 {
            for number in 0..20_000 {
                let before = seen.insert(mix(number), round * 20_000 + number);
                assert_eq!(before, (round > 0).then(|| (round - 1) * 20_000 + number));
            }
        }
    }

    #[test]
    fn of_too_much_the_oldest_is_forgotten() {
        let mut seen = Seen::default();
        let key = |number: u64| number << 32;
        (1..=9).for_each(|number| assert_eq!(seen.insert(key(2 * number), number), None));
        assert_eq!(seen.insert(key(2 * 9), 10), Some(9));
        assert_eq!(seen.insert(key(2 * 2), 11), Some(2));
        assert_eq!(seen.insert(key(2), 12), None, "the ninth has its entry");
    }

    #[test]
    fn positions_may_be_greater_than_what_an_entry_holds() {
        let mut seen = Seen::default();
        let late = (7 << 32) - 3;
        assert_eq!(seen.insert(mix(1), late), None);
        assert_eq!(seen.insert(mix(1), late + 5), Some(late));
    }
}
