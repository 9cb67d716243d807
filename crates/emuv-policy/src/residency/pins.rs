//! Memory that others come to know by its physical place (another process, another device, a multicast object): it lies
//! in VRAM and never moves again.
//!
//! Until all of an allocation lies there, what has come stays: each chunk is fixed as soon as it lies still in VRAM. A
//! slab's chunk, which otherwise never moves, may lie in RAM too. Pointers into it are in nobody's books, so it moves like
//! one that has escaped: while nothing runs.

use super::{ChunkState, HoldId, Mode, MoveRoom, NONE, Residency, Step, Why};
use crate::Tier;

impl Residency {
    /// Fixes what lies still in VRAM of the allocation at `offset` (of its slab, if it shares one). Whether that is all.
    #[must_use]
    pub fn pin(&mut self, offset: u64) -> bool {
        self.saw_pins = true;
        self.each_of(offset, |chunk| {
            let in_place = chunk.tier == Tier::Vram && chunk.moving.is_none() && chunk.mapped;
            chunk.fixed |= in_place;
            in_place
        })
    }

    /// Has the rest of it brought to VRAM; to be asked again, under the same name, until [`Self::pin`] is content, then
    /// [`Self::release`]. Whether there is hope.
    #[must_use]
    pub fn bring_to_pin(&mut self, offset: u64, hold: Option<HoldId>) -> (HoldId, bool) {
        let mut slab = false;
        self.each_of(offset, |chunk| {
            // Fixed, and yet not in VRAM: many small allocations.
            slab |= chunk.tier == Tier::Ram && std::mem::take(&mut chunk.fixed);
            true
        });
        if slab {
            self.escape(offset);
        }
        let mut touched = Vec::new();
        self.resolve(&[offset], false, &mut touched);
        let hope = !self.has_no_hope(hold);
        (self.insist(hold, &touched, true), hope)
    }

    /// Brings a slab that found no room in VRAM when it was made, at the first moment at which nothing runs: every kernel of a
    /// program may touch it, so all of it would be slow for good.
    pub(super) fn house_slab(&mut self, room: MoveRoom, needs_progress: &mut bool) -> Option<Step> {
        if !self.saw_slab_out {
            return None;
        }
        let is_out = |chunk: &ChunkState| chunk.fixed && chunk.tier == Tier::Ram;
        let any = self.live().any(|(_, chunk)| is_out(chunk));
        self.saw_slab_out = any;
        let fits = |chunk: &ChunkState| !chunk.going && chunk.moving.is_none() && chunk.bytes <= room.vram_bytes;
        let now = self.lent == 0 && self.is_free_for_exclusive();
        if !now && !self.held.is_empty() {
            // What is held is not to wait for it.
            return None;
        }
        let index = self.live().find(|(_, chunk)| is_out(chunk) && fits(chunk)).map(|(index, _)| index)?;
        if now {
            return self.start(index, Tier::Vram, Mode::Exclusive, Why::Demand);
        }
        *needs_progress = true;
        None
    }

    /// It could not be brought: all of it may move again as before.
    pub fn unpin(&mut self, offset: u64) {
        self.outlook.forget();
        self.saw_slab_out = true;
        self.each_of(offset, |chunk| {
            chunk.fixed = chunk.extent == NONE;
            true
        });
    }

    /// Whether `look` says so of every chunk of the allocation at `offset`; each is looked at.
    fn each_of(&mut self, offset: u64, mut look: impl FnMut(&mut ChunkState) -> bool) -> bool {
        let mut touched = Vec::new();
        self.resolve(&[offset], false, &mut touched);
        let mut all = true;
        for index in touched {
            if let Some(chunk) = self.chunk_mut(index) {
                all &= look(chunk);
            }
        }
        all
    }
}
