//! One pool: which of its free memory serves a request.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    PoolUse, Waste,
    slots::{Like, Slots},
};
use crate::{hash::FastMap, memory::SMALL_BYTES, stream_clock::Freed};

/// Whether a free chunk, by its address, has stayed in VRAM since it was last used.
pub type Stayed<'a> = &'a dyn Fn(u64) -> bool;

#[derive(Debug, Default)]
pub(super) struct Pool {
    /// All of its chunks: sizes by address.
    pub chunks: BTreeMap<u64, u64>,
    /// Those of them that are free: size, and who freed it (`None`: nobody's work can touch it). Most are not, where a program holds
    /// much for long.
    pub free: BTreeMap<u64, (u64, Option<Freed>)>,
    /// Free small pieces by size; the most recently freed last.
    pub small: BTreeMap<u64, Vec<(u64, Option<Freed>)>>,
    /// Addresses at which blocks of a size were freed. Only hints: the chunks there may have been used otherwise since.
    /// The lowest is taken first: so what a program gets depends on what is free, not on the order in which it was
    /// freed, and one that repeats itself gets the same addresses again, which is what moving ahead of need lives on.
    pub hints: FastMap<u64, BTreeSet<u64>>,
    pub usage: PoolUse,
    pub release_threshold: u64,
}

impl Pool {
    /// The runs of adjacent free chunks that are all `usable`, from each chunk on as far as is needed for `need` bytes: address and
    /// size, the lowest first.
    fn runs(&self, need: u64, usable: &impl Fn(u64, Option<Freed>) -> bool) -> impl Iterator<Item = (u64, u64)> {
        // The run in hand: chunks (address, size) that join, and their sum.
        let mut run = VecDeque::new();
        let (mut sum, mut end) = (0, 0);
        let mut free = self.free.iter();
        std::iter::from_fn(move || {
            while sum < need {
                let (&address, &(bytes, freed)) = free.next()?;
                let usable = usable(address, freed);
                if !usable || address != end {
                    run.clear();
                    sum = 0;
                }
                if usable {
                    run.push_back((address, bytes));
                    sum += bytes;
                }
                end = address + bytes;
            }
            let found = run.front().map(|(start, _)| (*start, sum));
            sum -= run.pop_front().map_or(0, |(_, bytes)| bytes);
            found
        })
    }

    /// The tightest of those of at most `most` bytes, of these the lowest.
    fn find_run(&self, need: u64, most: u64, usable: &impl Fn(u64, Option<Freed>) -> bool) -> Option<(u64, u64)> {
        let mut best: Option<(u64, u64)> = None;
        for (address, bytes) in self.runs(need, usable).filter(|(_, bytes)| *bytes <= most) {
            if best.is_none_or(|(_, size)| bytes < size) {
                best = Some((address, bytes));
            }
            if bytes == need {
                break;
            }
        }
        best
    }

    /// For an allocation of a loop: what its like got a round ago, or, if that has not stayed in VRAM, other memory that has,
    /// the tightest, as long as nobody else got that while the like lived. So memory that is not in VRAM is avoided where a loop
    /// allows it, everybody else gets what they got a round ago, and after some rounds nothing changes any more.
    fn find_stayed(
        &self,
        need: u64,
        most: u64,
        usable: &impl Fn(Option<Freed>) -> bool,
        like: Like<'_>,
        stayed: Stayed<'_>,
    ) -> Option<(u64, u64)> {
        let (address, bytes) = like.block();
        let same = ((need..=most).contains(&bytes) && self.is_run(address, bytes, usable)).then_some((address, bytes));
        let all_stayed =
            |(address, bytes): (u64, u64)| self.free.range(address..address + bytes).all(|(at, _)| stayed(*at));
        if same.is_some_and(all_stayed) {
            return same;
        }
        let free = |at, freed| usable(freed) && stayed(at) && like.had_to_itself(at);
        self.find_run(need, most, &free).or(same)
    }

    /// Whether the chunks from `address` on are free, `usable`, and make up exactly `bytes`.
    fn is_run(&self, address: u64, bytes: u64, usable: &impl Fn(Option<Freed>) -> bool) -> bool {
        let mut end = address;
        for (&start, &(bytes, freed)) in self.free.range(address..address + bytes) {
            if start != end || !usable(freed) {
                return false;
            }
            end += bytes;
        }
        end == address + bytes
    }

    fn take_small(&mut self, size: u64, usable: &impl Fn(Option<Freed>) -> bool) -> Option<u64> {
        let free = self.small.get_mut(&size)?;
        let index = free.iter().rposition(|(_, freed)| usable(*freed))?;
        Some(free.swap_remove(index).0)
    }

    fn take_hinted(&mut self, size: u64, usable: &impl Fn(Option<Freed>) -> bool) -> Option<u64> {
        let (mut found, mut stale) = (None, Vec::new());
        for &address in self.hints.get(&size)? {
            if self.is_run(address, size, usable) {
                found = Some(address);
                break;
            }
            // What others have freed may be usable later; what is used otherwise comes back with a hint of its own.
            if !self.is_run(address, size, &|_| true) {
                stale.push(address);
            }
        }
        let hints = self.hints.get_mut(&size)?;
        stale.iter().chain(&found).for_each(|address| {
            hints.remove(address);
        });
        found
    }

    /// Memory for a block of `size`: its address and size. `tight`: what is known of the loop where VRAM is short.
    pub fn take(
        &mut self,
        size: u64,
        waste: Waste,
        tight: Option<(&Slots, Stayed<'_>)>,
        usable: &impl Fn(Option<Freed>) -> bool,
    ) -> Option<(u64, u64)> {
        if size <= SMALL_BYTES {
            return self.take_small(size, usable).map(|address| (address, size));
        }
        let most = if waste == Waste::Any { u64::MAX } else { size + size / 8 };
        let wanted = match tight {
            Some((slots, stayed)) => {
                slots.like(size).and_then(|like| self.find_stayed(size, most, usable, like, stayed))
            }
            None => self.take_hinted(size, usable).map(|address| (address, size)),
        };
        let (address, bytes) = wanted.or_else(|| self.find_run(size, most, &|_, freed| usable(freed)))?;
        for start in self.chunks.range(address..address + bytes).map(|(start, _)| start) {
            self.free.remove(start);
        }
        Some((address, bytes))
    }
}
