//! Allocations of a loop: what the one to come got a round ago, and who else gets memory while it lives.
//!
//! A program that repeats itself asks for the same sizes in the same order. So the log of sizes is followed, as works are
//! (`residency/foresight.rs`): at the entry behind the last one's like, as long as the sizes agree; else where the sizes
//! before it were the same last time.

use std::collections::VecDeque;

use crate::hash::{FastMap, mix};

/// Allocations that are remembered.
const LOG_SLOTS: usize = 1 << 14;

/// By so many sizes before it an allocation is found again: more than a layer has, fewer than a round.
const CONTEXT_SLOTS: usize = 48;

/// Not given back yet.
const NEVER: u64 = u64::MAX;

/// Base of the polynomial by which sizes in a row are told apart: sizes before the last count times powers of it.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// The power by which the oldest of the context's sizes counts.
const OLDEST: u64 = {
    let (mut power, mut slots) = (1_u64, 1);
    while slots < CONTEXT_SLOTS {
        power = power.wrapping_mul(BASE);
        slots += 1;
    }
    power
};

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// What was asked for; and what was given, which may be more.
    size: u64,
    address: u64,
    bytes: u64,
    /// How many allocations had been made when it was given back.
    freed: u64,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    log: VecDeque<Slot>,
    /// Position of the log's first entry, counted from the beginning.
    base: u64,
    /// The position of the last allocation's like in the round before.
    follow: Option<u64>,
    /// By a size and those before it: where that was last.
    seen: FastMap<u64, u64>,
    /// What is not given back: positions by address.
    held: FastMap<u64, u64>,
    /// The last sizes, as one number.
    context: u64,
    /// By chunk: the positions at which it was given. Those before `base` may be among them.
    given: FastMap<u64, VecDeque<u64>>,
}

/// The like, a round ago, of the allocation to come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Like<'a> {
    slots: &'a Slots,
    place: u64,
    slot: Slot,
}

impl Like<'_> {
    /// The address and size of what it got.
    pub fn block(&self) -> (u64, u64) {
        (self.slot.address, self.slot.bytes)
    }

    /// Whether nobody got this chunk while it lived.
    pub fn had_to_itself(&self, chunk: u64) -> bool {
        let Some(given) = self.slots.given.get(&chunk) else { return true };
        let next = given.get(given.partition_point(|position| *position <= self.place));
        next.is_none_or(|next| *next >= self.slot.freed)
    }
}

impl Slots {
    fn position(&self) -> u64 {
        self.base + self.log.len() as u64
    }

    fn at(&self, position: u64) -> Option<Slot> {
        self.log.get(usize::try_from(position.checked_sub(self.base)?).ok()?).copied()
    }

    fn context(&self, size: u64) -> u64 {
        self.context.wrapping_mul(BASE).wrapping_add(mix(size))
    }

    /// Where the log is followed to, if the size agrees.
    fn next(&self, size: u64) -> Option<u64> {
        let next = self.follow.map(|follow| follow + 1);
        next.filter(|next| self.at(*next).is_some_and(|slot| slot.size == size))
    }

    /// The like of an allocation of `size` that is about to be made, if there is one.
    pub fn like(&self, size: u64) -> Option<Like<'_>> {
        let place = self.next(size).or_else(|| self.seen.get(&self.context(size)).copied())?;
        Some(Like { slots: self, place, slot: self.at(place)? })
    }

    /// `size` was asked for, and these `bytes` at `address` were given, which are made up of `chunks`.
    pub fn note(&mut self, size: u64, address: u64, bytes: u64, chunks: impl Iterator<Item = u64>) {
        let (position, next) = (self.position(), self.next(size));
        let before = self.seen.insert(self.context(size), position);
        self.follow = next.or(before);
        self.held.insert(address, position);
        let oldest = self.log.len().checked_sub(CONTEXT_SLOTS).and_then(|at| self.log.get(at));
        let leaves = oldest.map_or(0, |slot| mix(slot.size).wrapping_mul(OLDEST));
        self.context = self.context.wrapping_sub(leaves).wrapping_mul(BASE).wrapping_add(mix(size));
        self.log.push_back(Slot { size, address, bytes, freed: NEVER });
        if self.log.len() > LOG_SLOTS {
            self.log.pop_front();
            self.base += 1;
        }
        for chunk in chunks {
            let given = self.given.entry(chunk).or_default();
            while given.front().is_some_and(|position| *position < self.base) {
                given.pop_front();
            }
            given.push_back(position);
        }
        if self.seen.len() > 4 * LOG_SLOTS {
            let base = self.base;
            self.seen.retain(|_, position| *position >= base);
        }
    }

    /// The chunk is no more.
    pub fn forget(&mut self, chunk: u64) {
        self.given.remove(&chunk);
    }

    /// What was given at `address` has been given back.
    pub fn freed(&mut self, address: u64) {
        let now = self.position();
        let position = self.held.remove(&address).and_then(|position| position.checked_sub(self.base));
        if let Some(slot) = position.and_then(|at| self.log.get_mut(usize::try_from(at).ok()?)) {
            slot.freed = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::iter::once;

    use super::*;

    /// A round of layers that are alike: each gets two blocks and gives the first back; at the end all others are given back.
    fn round(slots: &mut Slots, base: u64) {
        let mut kept = Vec::new();
        for layer in 0..100 {
            let at = base + layer * 10;
            slots.note(3, at, 3, once(at));
            slots.note(5, at + 5, 5, once(at + 5));
            slots.freed(at);
            kept.push(at + 5);
        }
        slots.note(7, base + 5000, 7, once(base + 5000));
        kept.push(base + 5000);
        kept.into_iter().for_each(|address| slots.freed(address));
    }

    #[test]
    fn a_round_later_the_like_is_found_among_layers_that_are_all_alike() {
        let mut slots = Slots::default();
        round(&mut slots, 0);
        round(&mut slots, 10_000);
        for layer in 0..100 {
            let at = 20_000 + layer * 10;
            assert_eq!(slots.like(3).map(|like| like.block()), Some((at - 10_000, 3)), "layer {layer}");
            slots.note(3, at, 3, once(at));
            slots.note(5, at + 5, 5, once(at + 5));
        }
    }

    #[test]
    fn what_is_new_has_no_like() {
        let mut slots = Slots::default();
        assert!(slots.like(3).is_none());
        round(&mut slots, 0);
        assert!(slots.like(4).is_none());
    }

    #[test]
    fn memory_that_others_get_while_it_lives_is_not_its_own() {
        let mut slots = Slots::default();
        round(&mut slots, 0);
        round(&mut slots, 0);
        // The first block of a round lives until the second is there; the second until the end of the round.
        let first = slots.like(3).unwrap();
        assert!(!first.had_to_itself(5) && first.had_to_itself(10));
        slots.note(3, 0, 3, once(0));
        let second = slots.like(5).unwrap();
        assert!(!second.had_to_itself(10) && !second.had_to_itself(5000) && second.had_to_itself(6000));
        assert!(second.had_to_itself(0), "given back before");
    }

    #[test]
    fn what_is_long_past_is_forgotten() {
        let mut slots = Slots::default();
        for number in 0..10 * LOG_SLOTS as u64 {
            slots.note(mix(number) % 1000, number, 1, once(number % 10));
        }
        assert_eq!(slots.log.len(), LOG_SLOTS);
        assert!(slots.seen.len() <= 4 * LOG_SLOTS);
        assert!(slots.given.values().map(VecDeque::len).sum::<usize>() <= LOG_SLOTS + 10);
    }
}
