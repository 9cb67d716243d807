//! Where in the program allocations are made, for the report of a run (`emuv run --report`): the functions that are running,
//! native and Python's. Without a report, or with `--no-call-sites`, each call here is a look at an option.
//!
//! It costs what a program does not notice:
//! - only allocations above some size are looked at, and each place and size once: in a loop, whose memory comes to the same
//!   places again, that is one look-up;
//! - a stack that was seen before is not looked into again;
//! - all of it together takes at most a two-hundredth of the time, and [`FIRST_NANOS`] before that counts. What does not fit
//!   in there is asked again at the next allocation of that size at that place.
//!
//! It never fails a program: nothing of the interpreter's is called but for the calling thread's own state (which needs no lock
//! of Python's), its structures are read by a call that cannot fault (`stack.rs`), and none of our locks is held meanwhile.

mod python;
mod stack;

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use emuv_policy::hash::{FastMap, Scatter};
use emuv_state::Site;

use crate::{
    arena::lock,
    sync::{Instant, Mutex},
};

/// Allocations below this are not looked at: they are not what costs.
const LEAST_BYTES: u64 = 1 << 20;

/// Places that are remembered: the first ones.
const MOST_PLACES: usize = 1 << 14;

/// Places that are known without a lock.
const SETTLED: usize = 1 << 12;

/// Stacks that are told apart.
const MOST_STACKS: usize = 1 << 12;

/// What all of it may take in any case, and what part of the time beyond that.
const FIRST_NANOS: u64 = 20_000_000;
const PART_OF_THE_TIME: u64 = 200;

/// See the module's head. One per device.
#[derive(Default)]
pub(crate) struct Sites {
    kept: Option<Kept>,
}

struct Kept {
    began: Instant,
    spent_nanos: AtomicU64,
    looker: stack::Looker,
    /// Places and sizes that need not be looked at again, each where its hash says: a later one may take an earlier one's place.
    settled: Vec<AtomicU64>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// By where an allocation begins in the arena, and its size.
    places: BTreeMap<(u64, u64), Arc<Site>>,
    stacks: FastMap<u64, Arc<Site>>,
}

impl Sites {
    /// They are kept from now on. Called where the program is in its first call that concerns this device.
    pub fn keep() -> Self {
        let kept = Kept {
            began: Instant::now(),
            spent_nanos: AtomicU64::new(0),
            looker: stack::Looker::new(),
            settled: (0..SETTLED).map(|_| AtomicU64::new(0)).collect(),
            known: Mutex::default(),
        };
        Self { kept: Some(kept) }
    }

    /// The program has made an allocation, and it is still in that call.
    #[inline]
    pub fn note(&self, offset: u64, bytes: u64) {
        if let Some(kept) = self.kept.as_ref().filter(|_| bytes >= LEAST_BYTES) {
            kept.note(offset, bytes);
        }
    }

    /// Where an allocation was made that begins at `offset` and takes up so much.
    pub fn of(&self, offset: u64, bytes: u64) -> Option<Site> {
        let known = lock(&self.kept.as_ref()?.known);
        let site = known.at(offset, bytes)?;
        Some(Site::clone(site))
    }
}

impl Known {
    /// What takes up `bytes` was asked for as no more than that: the largest such, as blocks are as tight as they can be.
    fn at(&self, offset: u64, bytes: u64) -> Option<&Arc<Site>> {
        self.places.range((offset, 0)..=(offset, bytes)).next_back().map(|(_, site)| site)
    }
}

impl Kept {
    fn note(&self, offset: u64, bytes: u64) {
        // All that is done in a loop: no lock.
        let hash = hash(&[offset, bytes]);
        let settled = usize::try_from(hash).ok().and_then(|hash| self.settled.get(hash % SETTLED));
        if settled.is_none_or(|settled| settled.load(Relaxed) == hash) {
            return;
        }
        let is_settled = {
            let known = lock(&self.known);
            known.places.contains_key(&(offset, bytes)) || known.places.len() >= MOST_PLACES
        };
        if is_settled || self.look(offset, bytes) {
            settled.into_iter().for_each(|settled| settled.store(hash, Relaxed));
        }
    }

    /// Looks where the program is. False: there was no time.
    fn look(&self, offset: u64, bytes: u64) -> bool {
        let began = Instant::now();
        if !may_spend(self.spent_nanos.load(Relaxed), nanos(self.began.elapsed())) {
            return false;
        }
        let seen = self.looker.look();
        let stack = hash(&seen.words());
        let same = lock(&self.known).stacks.get(&stack).cloned();
        let site =
            same.or_else(|| (lock(&self.known).stacks.len() < MOST_STACKS).then(|| Arc::new(self.looker.name(&seen))));
        if let Some(site) = site {
            let mut known = lock(&self.known);
            known.stacks.insert(stack, site.clone());
            known.places.insert((offset, bytes), site);
        }
        self.spent_nanos.fetch_add(nanos(began.elapsed()), Relaxed);
        true
    }
}

/// Of numbers; the same for the same.
fn hash(numbers: &[u64]) -> u64 {
    let mut hasher = BuildHasherDefault::<Scatter>::default().build_hasher();
    numbers.iter().for_each(|number| hasher.write_u64(*number));
    // Nothing has 0, which is nobody's.
    hasher.finish() | 1 << 63
}

fn nanos(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether there is time left for another look, when so much of it was spent.
fn may_spend(spent_nanos: u64, elapsed_nanos: u64) -> bool {
    spent_nanos <= FIRST_NANOS + elapsed_nanos / PART_OF_THE_TIME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_its_part_of_the_time_is_spent() {
        assert!(may_spend(0, 0) && may_spend(FIRST_NANOS, 0));
        assert!(!may_spend(FIRST_NANOS + 1, 0));
        assert!(may_spend(FIRST_NANOS + 1, 1000) && !may_spend(FIRST_NANOS + 6, 1000));
    }

    #[test]
    fn an_allocation_is_known_by_what_it_takes_up() {
        let sites = Sites::keep();
        assert_eq!(sites.of(0, 64 << 20), None);
        sites.note(0, 3 << 20);
        sites.note(0, 60 << 20);
        sites.note(2 << 20, LEAST_BYTES - 1);
        let site = sites.of(0, 4 << 20).expect("this very function");
        assert!(!site.native.is_empty(), "{site:?}");
        assert!(sites.of(0, 64 << 20).is_some(), "rounded up");
        assert_eq!(sites.of(2 << 20, 2 << 20), None, "too small to be looked at");
        assert_eq!(Sites::default().of(0, 64 << 20), None);
    }
}
