//! Which chunks have escaped: a pointer to them lies in memory that the GPU can read, so that work may touch them
//! without naming them.
//!
//! Work that may store pointers (the program says which: copies from the host, and each function's first, second,
//! fourth, eighth... launch) is followed, on its own stream, by a search through everything that it may have written.
//! What comes later on that stream, or waits for it, comes after the search, so nothing can be carried away unseen.
//! What was found is collected once the search is known to be done; from the work's beginning until then nothing that it
//! may have stored a pointer to moves beside other work: what it names, or, where it brings pointers from memory that
//! is not searched, anything. That a pointer was found somewhere is never forgotten as long as the chunk lives.
//!
//! Code that has been seen to store a pointer to what it was given is a *storer*: from then on whatever it is given
//! escapes, as it can store no pointers but those and such as it found in memory. What its launches are given between a
//! search and the verdict escapes with the verdict.
//!
//! A pointer that was known before proves nothing of the code whose launch a search comes behind: small allocations share memory, and
//! another one's table of pointers may lie beside what the launch was given. Such code is *doubted*, and so is code whose launch
//! should have been searched behind and was not: its launches are searched behind whenever they are given something that nothing
//! points to and that none of its searched launches was given. So is the first launch that is given anything that may move: which
//! one that is differs between devices.
//!
//! Where no search can follow (the work may have written anything; it was there before works were told), all memory is
//! searched when nothing runs, and works that come meanwhile are held.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Begun, ChunkState, NONE, Policy, Residency, Use, Work};
use crate::{hash::FastMap, trace::Event};

/// (offset, bytes) of chunks.
type Ranges = Vec<(u64, u64)>;

/// A piece of code, and what is known of it.
#[derive(Debug, Default)]
struct Maker {
    /// It has stored a pointer to what it was given.
    stores: bool,
    /// Behind it there were pointers to what it was given that were known before.
    doubted: bool,
    /// Chunks that launches were given behind which there was, or will be, a search; and whether any of them may move.
    searched: BTreeSet<u64>,
    tried: bool,
    /// Searches behind it that have not been collected.
    searches: u32,
    /// Chunks that it was given meanwhile.
    given: BTreeSet<u64>,
}

/// What a search behind a work has to look through, (offset, bytes) each.
#[derive(Debug, Default)]
pub struct SearchRanges {
    /// Chunks that the work may have written to: that it names, or that have escaped.
    pub written: Ranges,
    /// How many of those, from the first on, it names.
    pub own: usize,
    /// What it names and what may move: a pointer to it makes the work's code a storer.
    pub named: Ranges,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Pointers {
    /// Works whose search has not been collected, by stream: their numbers and their code.
    followed: BTreeMap<u32, VecDeque<(u64, u64)>>,
    /// Those of them that may have brought pointers to anything.
    bringing: Vec<Use>,
    makers: FastMap<u64, Maker>,
    /// A pointer was found at some time.
    any_found: bool,
    /// All memory has to be searched; `stop` means at once, and new works wait for it.
    all: bool,
    stop: bool,
    /// All memory is being searched.
    pub searching: bool,
}

impl Pointers {
    /// Whether there may be pointers to anything that have not been found yet.
    pub fn may_lead_anywhere(&self) -> bool {
        !self.bringing.is_empty() || self.all || self.searching
    }

    /// Whether works are held until all memory has been searched.
    pub fn stops_works(&self) -> bool {
        self.stop || self.searching
    }

    /// All memory has to be searched before anything moves.
    pub fn search_all_now(&mut self) {
        self.all = true;
        self.stop = true;
    }

    /// Whether all memory is to be searched, for which it has to be mapped.
    pub fn want_everything(&self) -> bool {
        self.all
    }

    /// Nothing is searched any more.
    pub fn give_up(&mut self) {
        *self = Self::default();
    }
}

impl Residency {
    /// A work begins. Says whether a search for pointers is to follow it.
    pub(super) fn may_store(&mut self, work: &Work<'_>, touched: &[u32], (lane, number): Use) -> bool {
        if self.policy == Policy::Static {
            return false;
        }
        if work.everything {
            self.pointers.all |= work.may_store_pointers;
            return false;
        }
        self.give(work.maker, touched);
        if work.may_bring_pointers {
            self.pointers.bringing.push((lane, number));
        }
        let search = work.may_store_pointers || self.is_worth_a_search(work.maker, touched);
        if search {
            self.pointers.followed.entry(lane).or_default().push_back((number, work.maker));
            if work.maker != 0 {
                self.tried(work.maker, touched);
                self.pointers.makers.entry(work.maker).or_default().searches += 1;
            }
        }
        search
    }

    /// Whether a launch of code that is doubted, or may be soon, is given something of which a search behind it would tell more;
    /// or of code that was given nothing here yet of which one could tell.
    fn is_worth_a_search(&self, maker: u64, touched: &[u32]) -> bool {
        if maker == 0 {
            return false;
        }
        let none = Maker::default();
        let known = self.pointers.makers.get(&maker).unwrap_or(&none);
        let may_be_doubted = known.searches > 0 && (self.pointers.any_found || !self.pointers.bringing.is_empty());
        !known.stores
            && (known.doubted || may_be_doubted || !known.tried)
            && touched
                .iter()
                .filter_map(|index| self.chunk(*index))
                .any(|chunk| !chunk.fixed && !chunk.escaped && !known.searched.contains(&chunk.offset))
    }

    /// The same for a work that runs outside these rules (`emuv verify`); if so, it is searched behind.
    pub fn is_to_be_searched(&mut self, maker: u64, offsets: &[u64]) -> bool {
        let mut touched = Vec::new();
        self.resolve(offsets, false, &mut touched);
        let worth = self.is_worth_a_search(maker, &touched);
        if worth {
            self.tried(maker, &touched);
        }
        worth
    }

    /// A launch of this code is searched behind that is given these chunks.
    fn tried(&mut self, maker: u64, chunks: &[u32]) {
        let offsets = self.offsets(chunks);
        let any = chunks.iter().filter_map(|index| self.chunk(*index)).any(|chunk| !chunk.fixed);
        let known = self.pointers.makers.entry(maker).or_default();
        known.searched.extend(offsets);
        known.tried |= any;
    }

    /// Whether code that may turn out to be a storer has been given the chunk.
    pub(super) fn is_suspect(&self, chunk: &ChunkState) -> bool {
        // While it is searched behind none of it, none has been given anything.
        let is_given = || self.pointers.makers.values().any(|known| known.given.contains(&chunk.offset));
        self.is_under_search(chunk) || !self.pointers.followed.is_empty() && is_given()
    }

    /// Code is given these chunks.
    fn give(&mut self, maker: u64, chunks: &[u32]) {
        let Some(known) = self.pointers.makers.get(&maker).filter(|known| known.stores || known.searches > 0) else {
            return;
        };
        let (stores, offsets) = (known.stores, self.offsets(chunks));
        if stores {
            offsets.iter().for_each(|offset| self.escape(*offset));
        } else if let Some(known) = self.pointers.makers.get_mut(&maker) {
            known.given.extend(offsets);
        }
    }

    /// The same for a work that runs outside these rules, and alone (`emuv verify`).
    pub fn given(&mut self, maker: u64, offsets: &[u64]) {
        let mut touched = Vec::new();
        self.resolve(offsets, false, &mut touched);
        self.give(maker, &touched);
    }

    /// What a search behind a work that names `offsets` has to look through; `begun`: and it stays mapped until then.
    pub fn ranges(&mut self, offsets: &[u64], begun: Option<&Begun>) -> SearchRanges {
        let mut touched = Vec::new();
        self.resolve(offsets, false, &mut touched);
        let mut ranges = SearchRanges::default();
        for chunk in touched.iter().filter_map(|index| self.chunk(*index)) {
            // What has no mapping has not been written to; whatever is held for it waits for this search.
            if chunk.mapped {
                ranges.written.push((chunk.offset, chunk.bytes));
            }
            if !chunk.fixed {
                ranges.named.push((chunk.offset, chunk.bytes));
            }
        }
        ranges.own = ranges.written.len();
        touched.sort_unstable();
        let others = self.live().filter(|(index, _)| touched.binary_search(index).is_err());
        ranges.written.extend(others.filter(|(_, c)| c.escaped && c.mapped).map(|(_, c)| (c.offset, c.bytes)));
        if let Some(begun) = begun {
            for (offset, _) in &ranges.written {
                let index = self.at(*offset).unwrap_or(NONE);
                if let Some(chunk) = self.chunk_mut(index) {
                    chunk.searches.note(begun.lane, begun.number);
                }
            }
        }
        ranges
    }

    /// All chunks as a work sees them, (offset, bytes) each: those that it may touch by these rules or that never
    /// move, and the others.
    pub fn access_set(&mut self, offsets: &[u64], everything: bool) -> (Ranges, Ranges) {
        let mut touched = Vec::new();
        self.resolve(offsets, everything, &mut touched);
        touched.sort_unstable();
        let (mut within, mut outside) = (Vec::new(), Vec::new());
        for (index, chunk) in self.live() {
            let may_touch = chunk.escaped || chunk.fixed || touched.binary_search(&index).is_ok();
            let side = if may_touch { &mut within } else { &mut outside };
            side.push((chunk.offset, chunk.bytes));
        }
        (within, outside)
    }

    /// A search that was to follow a work of `maker` could not be issued, or not through all that it was to look at; or pointers
    /// have come where none were searched for.
    pub fn search_failed(&mut self, maker: u64) {
        self.pointers.all = true;
        // What was stored is found by the search through everything; whether this code stores is not known by that.
        if let Some(known) = self.pointers.makers.get_mut(&maker) {
            known.doubted = true;
            known.searched.clear();
        }
    }

    /// Whether the chunk at `offset` is being looked through behind some work that is not known to be done. One that never
    /// moves is many small allocations, which come and go without it.
    pub fn is_searched(&self, offset: u64) -> bool {
        let chunk = self.at(offset).and_then(|index| self.chunk(index)).filter(|chunk| !chunk.fixed);
        chunk.is_some_and(|chunk| self.is_under_search(chunk))
    }

    pub(super) fn is_under_search(&self, chunk: &ChunkState) -> bool {
        !self.are_done(&chunk.searches)
    }

    /// Whether there is memory that has not been searched: before works were told, or where no search could follow.
    pub fn is_unsearched(&self) -> bool {
        !self.quiesced || self.pointers.all || self.pointers.searching
    }

    /// Whether there are searches behind works whose findings have not been collected.
    pub fn awaits_findings(&self) -> bool {
        !self.pointers.followed.is_empty()
    }

    /// Whether searches are done whose findings have not been collected.
    pub(super) fn has_findings(&self) -> bool {
        self.pointers.followed.iter().any(|(lane, works)| works.front().is_some_and(|(n, _)| self.is_done((*lane, *n))))
    }

    /// Before the findings are read: what they will cover, for [`Self::collected`].
    pub fn collecting(&self) -> Vec<(u32, u64)> {
        let last = |(lane, works): (&u32, &VecDeque<(u64, u64)>)| {
            let done = works.partition_point(|(number, _)| self.is_done((*lane, *number)));
            Some((*lane, works.get(done.checked_sub(1)?)?.0))
        };
        self.pointers.followed.iter().filter_map(last).collect()
    }

    /// Behind launches of this code there were pointers to what they were given that were known before. To be told before the
    /// findings of those searches.
    pub fn doubted(&mut self, makers: &[u64]) {
        for maker in makers {
            let known = self.pointers.makers.entry(*maker).or_default();
            if !std::mem::replace(&mut known.doubted, true) {
                // What it was given meanwhile, unsearched, is not known.
                let given = std::mem::take(&mut known.given);
                let unknown: Vec<u64> = given.difference(&known.searched).copied().collect();
                unknown.into_iter().for_each(|offset| self.escape(offset));
            }
        }
    }

    /// A copy that is about to be made brings pointers to these offsets; nothing else that it brings is one.
    pub fn brought(&mut self, offsets: &[u64]) {
        self.pointers.any_found |= !offsets.is_empty();
        offsets.iter().for_each(|offset| self.escape(*offset));
    }

    /// The findings of these searches: offsets that are pointed to, and code that has stored pointers to what it was given.
    pub fn collected(&mut self, searches: &[(u32, u64)], found: &[u64], storers: &[u64]) {
        for maker in storers {
            self.pointers.makers.entry(*maker).or_default().stores = true;
        }
        let mut escaped: Vec<u64> = found.to_vec();
        self.pointers.any_found |= !found.is_empty();
        for &(lane, last) in searches {
            let Some(works) = self.pointers.followed.get_mut(&lane) else { continue };
            while let Some((_, maker)) = works.pop_front_if(|(number, _)| *number <= last) {
                let Some(known) = self.pointers.makers.get_mut(&maker) else { continue };
                known.searches = known.searches.saturating_sub(1);
                if known.stores {
                    escaped.extend(std::mem::take(&mut known.given));
                } else if known.searches == 0 {
                    known.given.clear();
                }
            }
            if works.is_empty() {
                self.pointers.followed.remove(&lane);
            }
            self.pointers.bringing.retain(|(other, number)| *other != lane || *number > last);
        }
        escaped.iter().for_each(|offset| self.escape(*offset));
    }

    /// Begins a search through all memory, if one is wanted and nothing runs: (offset, bytes) of each chunk.
    pub(super) fn search_all(&mut self) -> Option<Vec<(u64, u64)>> {
        if !self.pointers.all || self.pointers.searching || self.moving() + self.unmapped_owned > 0 || !self.all_idle()
        {
            return None;
        }
        self.pointers.searching = true;
        self.tell(|| Event::SearchAll { over: false });
        self.exclusive = true;
        // What nobody has written holds no pointers of this program's.
        let alive = self.live().filter(|(_, chunk)| !chunk.dead);
        Some(alive.map(|(_, chunk)| (chunk.offset, chunk.bytes)).collect())
    }

    /// The search through all memory that was to begin cannot begin yet.
    pub fn search_put_off(&mut self) {
        self.pointers.searching = false;
        self.exclusive = self.moving() > 0;
        self.tell(|| Event::SearchAll { over: true });
    }

    /// Other devices may touch this one's memory from now on: pointers to it may lie in theirs.
    pub fn opened_to_others(&mut self) {
        if self.quiesced {
            self.pointers.search_all_now();
        }
    }

    /// Works have been held for long, while nothing moved, until all memory is searched. What the GPU is doing may be waiting
    /// for one of them: they go on, and the search comes when nothing runs.
    pub fn search_later(&mut self) {
        self.pointers.stop = false;
    }

    /// The search through all memory is over: these offsets are pointed to. `None`: it failed, so anything may be.
    pub fn searched_all(&mut self, found: Option<&[u64]>) {
        (self.pointers.all, self.pointers.stop, self.pointers.searching) = (false, false, false);
        if self.moving() == 0 {
            self.exclusive = false;
        }
        self.tell(|| Event::SearchAll { over: true });
        match found {
            Some(offsets) => {
                self.pointers.any_found |= !offsets.is_empty();
                offsets.iter().for_each(|offset| self.escape(*offset));
            }
            None => {
                self.pointers.any_found = true;
                self.chunks.iter_mut().flatten().for_each(|chunk| {
                    (chunk.escaped, chunk.dead) = (true, false);
                });
                self.escaped = self.live().count();
                self.outlook.forget();
            }
        }
    }

    /// Bytes that pointers in GPU-visible memory lead to.
    pub fn escaped_bytes(&self) -> u64 {
        self.live().filter(|(_, chunk)| chunk.escaped).map(|(_, chunk)| chunk.bytes).sum()
    }

    /// A pointer into the extent that `offset` lies in is kept where the GPU may find it.
    pub fn escape(&mut self, offset: u64) {
        let mut touched = Vec::new();
        self.resolve(&[offset], false, &mut touched);
        let before = self.escaped;
        for index in touched {
            if let Some(chunk) = self.chunk_mut(index) {
                let news = !std::mem::replace(&mut chunk.escaped, true);
                // Who writes there by the pointer does not say so.
                chunk.dead = false;
                self.escaped += usize::from(news);
            }
        }
        if self.escaped > before {
            self.outlook.forget();
            self.tell(|| Event::Escaped { offset });
        }
    }
}
