//! Which chunks have escaped: a pointer to them lies in memory that the GPU can read, so that work may touch them
//! without naming them.
//!
//! Work that may store pointers (the program says which: copies from the host, and each function's first, second,
//! fourth, eighth... launch) is followed, on its own stream, by a search through everything that it may have written.
//! What comes later on that stream, or waits for it, comes after the search, so nothing can be carried away unseen.
//! What was found is collected once the search is known to be done; from the work's beginning until then nothing
//! moves beside other work. That a pointer was found somewhere is never forgotten as long as the chunk lives.
//!
//! Where no search can follow (the work may have written anything; it was there before works were told), all memory is
//! searched when nothing runs, and works that come meanwhile are held.

use super::{Residency, Use, works::note_use};
use crate::trace::Event;

/// (offset, bytes) of chunks.
type Ranges = Vec<(u64, u64)>;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Pointers {
    /// Works whose search has not been collected: the last of each stream.
    followed: Vec<Use>,
    /// All memory has to be searched; `stop` means at once, and new works wait for it.
    all: bool,
    stop: bool,
    /// All memory is being searched.
    pub searching: bool,
}

impl Pointers {
    /// Whether it is known what has escaped.
    pub fn are_known(&self) -> bool {
        self.followed.is_empty() && !self.all && !self.searching
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
    /// A work begins that may store pointers. Says whether a search is to follow it.
    pub(super) fn stores(&mut self, everything: bool, work: Use) -> bool {
        if everything {
            self.pointers.all = true;
        } else {
            note_use(&mut self.pointers.followed, work.0, work.1);
        }
        !everything
    }

    /// What a search behind a work that names `offsets` has to look through: (offset, bytes) of each chunk, those that
    /// have escaped among them.
    pub fn ranges(&mut self, offsets: &[u64]) -> Vec<(u64, u64)> {
        let mut touched = Vec::new();
        self.resolve(offsets, false, &mut touched);
        for (index, chunk) in self.live() {
            if chunk.escaped && !touched.contains(&index) {
                touched.push(index);
            }
        }
        // What has no mapping has not been written to; whatever is held for it waits for this search.
        let mapped = touched.iter().filter_map(|index| self.chunk(*index)).filter(|chunk| chunk.mapped);
        mapped.map(|chunk| (chunk.offset, chunk.bytes)).collect()
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

    /// A search that was to follow a work could not be issued.
    pub fn search_failed(&mut self) {
        self.pointers.all = true;
    }

    /// Whether searches are done whose findings have not been collected.
    pub(super) fn has_findings(&self) -> bool {
        self.pointers.followed.iter().any(|work| self.is_done(*work))
    }

    /// Before the findings are read: what they will cover, for [`Self::collected`].
    pub fn collecting(&self) -> Vec<(u32, u64)> {
        self.pointers.followed.iter().copied().filter(|work| self.is_done(*work)).collect()
    }

    /// The findings of these searches: offsets that are pointed to.
    pub fn collected(&mut self, searches: &[(u32, u64)], found: &[u64]) {
        self.pointers.followed.retain(|work| !searches.contains(work));
        found.iter().for_each(|offset| self.escape(*offset));
    }

    /// Begins a search through all memory, if one is wanted and nothing runs: (offset, bytes) of each chunk.
    pub(super) fn search_all(&mut self) -> Option<Vec<(u64, u64)>> {
        if !self.pointers.all || self.pointers.searching || self.moving + self.unmapped > 0 || !self.all_idle() {
            return None;
        }
        self.pointers.searching = true;
        self.tell(|| Event::SearchAll { over: false });
        self.exclusive = true;
        // What nobody has written holds no pointers of this program's.
        let alive = self.live().filter(|(_, chunk)| !chunk.dead);
        Some(alive.map(|(_, chunk)| (chunk.offset, chunk.bytes)).collect())
    }

    /// The search through all memory is over: these offsets are pointed to. `None`: it failed, so anything may be.
    pub fn searched_all(&mut self, found: Option<&[u64]>) {
        self.pointers = Pointers { followed: std::mem::take(&mut self.pointers.followed), ..Pointers::default() };
        if self.moving == 0 {
            self.exclusive = false;
        }
        self.tell(|| Event::SearchAll { over: true });
        match found {
            Some(offsets) => offsets.iter().for_each(|offset| self.escape(*offset)),
            None => self.chunks.iter_mut().flatten().for_each(|chunk| chunk.escaped = true),
        }
    }

    /// A pointer into the extent that `offset` lies in is kept where the GPU may find it.
    pub fn escape(&mut self, offset: u64) {
        let mut touched = Vec::new();
        self.resolve(&[offset], false, &mut touched);
        let mut news = false;
        for index in touched {
            if let Some(chunk) = self.chunk_mut(index) {
                news |= !std::mem::replace(&mut chunk.escaped, true);
            }
        }
        if news {
            self.tell(|| Event::Escaped { offset });
        }
    }
}
