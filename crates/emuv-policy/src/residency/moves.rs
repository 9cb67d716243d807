//! One chunk's move: when it may begin, and what holds when it is over.

use super::{ChunkState, Mode, NONE, Obstacle, Residency, Step, foresight::Traffic};
use crate::{Tier, Why, trace::Event};

impl Residency {
    /// Whether every work that may touch the chunk is known to be done.
    pub(super) fn is_idle(&self, index: u32) -> bool {
        let Some(chunk) = self.chunk(index) else { return false };
        if chunk.escaped {
            return self.all_idle();
        }
        self.quiesced && self.are_done(&self.everything) && self.are_done(&chunk.uses)
    }

    /// Whether only works that name the chunk can touch it.
    fn is_named(&self, chunk: &ChunkState) -> bool {
        !chunk.escaped && !self.pointers.may_lead_anywhere() && !self.is_suspect(chunk)
    }

    /// How the chunk may move now.
    pub(super) fn may_move(&self, index: u32) -> Result<Mode, Obstacle> {
        let Some(chunk) = self.chunk(index) else { return Err(Obstacle::Fixed) };
        let held_in_place = chunk.claims > 0 && self.held.iter().any(|h| !h.promote && h.chunks.contains(&index));
        if chunk.fixed
            || self.lent > 0
            || chunk.going
            || chunk.moving.is_some()
            || held_in_place
            || self.held.iter().any(|h| h.everything)
        {
            return Err(Obstacle::Fixed);
        }
        if !self.policy.only_when_idle() && self.is_named(chunk) && !self.exclusive && self.is_idle(index) {
            return Ok(Mode::Beside);
        }
        if self.is_free_for_exclusive() { Ok(Mode::Exclusive) } else { Err(Obstacle::Busy) }
    }

    /// Whether what moves only while nothing runs may begin to.
    pub(super) fn is_free_for_exclusive(&self) -> bool {
        // Works that wait for moves to end are not to be kept waiting for ever.
        self.all_idle() && !self.pointers.searching && !self.held.iter().any(|held| !held.promote)
    }

    pub(super) fn start(&mut self, index: u32, to: Tier, mode: Mode, why: Why) -> Option<Step> {
        let leave = to == Tier::Ram && mode == Mode::Beside && self.may_leave_unmapped(index, why);
        let chunk = self.chunk_mut(index)?;
        chunk.moving = Some(to);
        chunk.leave = leave;
        let (offset, bytes, copy) = (chunk.offset, chunk.bytes, !chunk.dead);
        self.reconsider(index);
        self.tell(|| Event::Start { offset, to, copy, exclusive: mode == Mode::Exclusive });
        self.under_way(to, bytes);
        self.exclusive |= mode == Mode::Exclusive;
        Some(Step::Move { offset, bytes, to, copy, map: !leave, why })
    }

    /// A move is over: the chunk at `offset` lies where it was to go, or (`moved` false) where it was.
    pub fn finish(&mut self, offset: u64, moved: bool) {
        let Some(index) = self.at(offset) else { return };
        let Some(chunk) = self.chunk_mut(index) else { return };
        let Some(to) = chunk.moving.take() else { return };
        let leave = std::mem::take(&mut chunk.leave);
        let (offset, bytes) = (chunk.offset, chunk.bytes);
        if moved {
            self.change(index, |chunk| {
                chunk.tier = to;
                chunk.came = to == Tier::Vram && chunk.extent == NONE;
                chunk.mapped = !leave;
            });
        }
        self.reconsider(index);
        self.tell(|| Event::Finish { offset, moved });
        self.over(to, bytes);
        if self.moving() == 0 && !self.pointers.searching {
            self.exclusive = false;
        }
    }

    /// Where the chunk lies or goes has changed.
    pub(super) fn reconsider(&mut self, index: u32) {
        if let Some(Some(chunk)) = self.chunks.get_mut(index as usize) {
            self.outlook.changed(index, chunk);
        }
    }

    /// One more chunk moves (or is being mapped).
    pub(super) fn under_way(&mut self, to: Tier, bytes: u64) {
        self.brought += u64::from(to == Tier::Vram);
        let flight = self.flight(to);
        *flight = (flight.0 + 1, flight.1 + bytes);
    }

    /// What uses the link's way in.
    pub(super) fn traffic(&self) -> Traffic {
        Traffic { begun: self.brought, under_way: self.into_vram.0 }
    }

    fn over(&mut self, to: Tier, bytes: u64) {
        let flight = self.flight(to);
        *flight = (flight.0 - 1, flight.1 - bytes);
    }

    fn flight(&mut self, to: Tier) -> &mut (usize, u64) {
        if to == Tier::Vram { &mut self.into_vram } else { &mut self.into_ram }
    }

    /// Chunks that are moving now.
    pub fn moving(&self) -> usize {
        self.into_vram.0 + self.into_ram.0
    }
}
