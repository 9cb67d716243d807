//! Which chunks are to come to VRAM by plan, and which are to leave it. The executor asks at every look, so both are kept up to
//! date as chunks change. To look for them among all takes long, under a lock that works wait for, and brings the state of
//! every chunk to the executor's cache, from where works have to fetch it again.

use super::{
    ChunkState, Residency,
    history::{Decision, NEVER},
};
use crate::Tier;

/// So many changes are noted, and so many chunks that leave (of those that are gone some may be among them); more means that
/// nobody asks any more.
const MOST_CHANGED: usize = 1 << 12;
const MOST_LEAVING: usize = 1 << 16;

/// A chunk that is to come. The greatest is needed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Want {
    /// The position at which it will be needed.
    pub(super) next: u64,
    pub(super) index: u32,
    pub(super) bytes: u64,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Outlook {
    /// Chunks that are to come, the soonest last.
    wants: Vec<Want>,
    /// All of them, as seen after so many turns, but for what has `changed`; `None`: they are to be looked for among all.
    wants_at: Option<u64>,
    changed: Vec<u32>,
    /// All chunks in VRAM that are planned to be out (these have [`ChunkState::listed`]), and some that were.
    leaving: Vec<u32>,
    leaving_is_known: bool,
}

impl Outlook {
    /// Nothing is foreseen.
    pub fn nothing_to_come(&mut self) {
        self.wants.clear();
        self.wants_at = None;
    }

    /// Anything may have changed.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// What is to come, the soonest last, as of the last [`Residency::look_ahead`].
    pub fn wants(&self) -> &[Want] {
        &self.wants
    }

    /// This chunk has changed: where it lies or goes, or when it will be used.
    pub fn changed(&mut self, index: u32, chunk: &mut ChunkState) {
        if chunk.tier == Tier::Ram {
            self.moved_or_gone(index);
        }
        if self.leaving_is_known && !chunk.listed && chunk.history.decision != Decision::Keep {
            chunk.listed = true;
            self.leaving.push(index);
            if self.leaving.len() > MOST_LEAVING {
                (self.leaving_is_known, self.leaving) = (false, Vec::new());
            }
        }
    }

    /// This chunk may have been in RAM.
    pub fn moved_or_gone(&mut self, index: u32) {
        if self.wants_at.is_none() {
            return;
        }
        self.changed.push(index);
        if self.changed.len() > MOST_CHANGED {
            (self.wants_at, self.changed) = (None, Vec::new());
        }
    }
}

impl Residency {
    /// The position of the last work, the one that corresponds to it, and the number of turns.
    pub(super) fn now(&self) -> (u64, Option<u64>, u64) {
        (self.foresight.position().saturating_sub(1), self.foresight.place(), self.foresight.turns())
    }

    /// Sees which chunks are to come to VRAM ([`Outlook::wants`]). Gives how many bytes they have.
    pub(super) fn look_ahead(&mut self) -> u64 {
        let (position, _, turns) = self.now();
        let mut outlook = std::mem::take(&mut self.outlook);
        if outlook.wants_at != Some(turns) {
            outlook.wants.clear();
            outlook.changed = (0..super::index_of(self.chunks.len())).collect();
            outlook.wants_at = Some(turns);
        }
        while let Some(passed) = outlook.wants.pop_if(|want| want.next <= position) {
            outlook.changed.push(passed.index);
        }
        if !outlook.changed.is_empty() {
            outlook.changed.sort_unstable();
            outlook.changed.dedup();
            outlook.wants.retain(|want| outlook.changed.binary_search(&want.index).is_err());
            outlook.wants.extend(outlook.changed.drain(..).filter_map(|index| self.want(index)));
            // Not `sort_unstable`: most of it is in order already, and this makes use of that.
            outlook.wants.sort_by(|a, b| b.cmp(a));
        }
        self.outlook = outlook;
        self.outlook.wants.iter().map(|want| want.bytes).sum()
    }

    fn want(&mut self, index: u32) -> Option<Want> {
        let (position, place, turns) = self.now();
        let chunk = self.chunk_mut(index)?;
        let is_out = chunk.tier == Tier::Ram && chunk.moving.is_none() && chunk.is_planned();
        if !is_out || chunk.history.decision == Decision::Stay {
            return None;
        }
        let (next, bytes) = (chunk.history.next(position, place, turns), chunk.bytes);
        (next != NEVER).then_some(Want { next, index, bytes })
    }

    /// The chunks that are planned to leave VRAM, and perhaps some that move already; to be given back by [`Self::still_leaving`].
    pub(super) fn leaving(&mut self) -> Vec<u32> {
        let mut leaving = std::mem::take(&mut self.outlook.leaving);
        if !std::mem::replace(&mut self.outlook.leaving_is_known, true) {
            leaving = (0..super::index_of(self.chunks.len())).collect();
        }
        leaving.retain(|index| {
            self.chunk_mut(*index).is_some_and(|chunk| {
                chunk.listed = chunk.tier == Tier::Vram && chunk.history.decision != Decision::Keep;
                chunk.listed
            })
        });
        leaving
    }

    /// See [`Self::leaving`].
    pub(super) fn still_leaving(&mut self, leaving: Vec<u32>) {
        self.outlook.leaving = leaving;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        GRANULE, StreamId,
        hash::mix,
        residency::{Begin, Heat, Hint, MoveRoom, Policy, Step, Work},
    };

    const STREAM: StreamId = StreamId(1);
    const EXTENTS: u64 = 30;
    const LOOP: usize = 50;

    /// A loop that changes now and then, on a device with room for two thirds of it, and moves that take their time.
    struct Play {
        residency: Residency,
        state: u64,
        budget_bytes: u64,
        moving: Vec<(u64, u64, Tier)>,
    }

    impl Play {
        fn random(&mut self, below: u64) -> u64 {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(self.state) % below
        }

        fn new(seed: u64) -> (Self, Vec<u64>) {
            let residency = Residency::new(Policy::Dynamic { safe: false });
            let mut play = Self { residency, state: seed, budget_bytes: 0, moving: Vec::new() };
            play.residency.set_link(50_000.0);
            let sizes: Vec<u64> = (0..EXTENTS).map(|_| (1 + play.random(4)) * GRANULE).collect();
            play.budget_bytes = sizes.iter().sum::<u64>() * 2 / 3;
            let (mut offset, mut offsets) = (0, Vec::new());
            for bytes in sizes {
                let tier = if offset + bytes <= play.budget_bytes { Tier::Vram } else { Tier::Ram };
                play.residency.add_chunk(offset, bytes, tier, false);
                play.residency.add_extent(offset, bytes);
                offsets.push(offset);
                offset += bytes;
            }
            play.residency.quiesced();
            (play, offsets)
        }

        /// The executor looks once: a move ends, or another begins.
        fn step(&mut self) {
            if !self.moving.is_empty() && self.random(2) == 0 {
                let at = usize::try_from(self.random(self.moving.len() as u64)).unwrap();
                let (offset, ..) = self.moving.swap_remove(at);
                let moved = self.random(20) > 0;
                self.residency.finish(offset, moved);
            }
            let coming = self.moving.iter().filter(|(.., to)| *to == Tier::Vram).map(|(_, bytes, _)| bytes);
            let taken = self.residency.bytes_in(0, u64::MAX / 2, Tier::Vram) + coming.sum::<u64>();
            let leaving = self.moving.iter().filter(|(.., to)| *to == Tier::Ram).map(|(_, bytes, _)| bytes);
            let room = MoveRoom {
                vram_bytes: self.budget_bytes.saturating_sub(taken),
                ram_bytes: u64::MAX,
                vram_coming_bytes: leaving.sum(),
                vram_excess_bytes: 0,
            };
            match self.residency.next_step(room) {
                Step::Move { offset, bytes, to, .. } => self.moving.push((offset, bytes, to)),
                Step::Show { offset, bytes } => self.moving.push((offset, bytes, Tier::Ram)),
                Step::Search(_) => self.residency.searched_all(Some(&[])),
                _ => {}
            }
            self.check();
        }

        fn check(&mut self) {
            if self.residency.foresight.place().is_none() {
                return;
            }
            self.residency.look_ahead();
            let all = 0..super::super::index_of(self.residency.chunks.len());
            let mut wants: Vec<Want> = all.filter_map(|index| self.residency.want(index)).collect();
            wants.sort_unstable_by(|a, b| b.cmp(a));
            assert_eq!(self.residency.outlook.wants(), wants, "what is to come");
            let leaving = self.residency.leaving();
            let leaves = |chunk: &ChunkState| chunk.tier == Tier::Vram && chunk.history.decision != Decision::Keep;
            let mut expected: Vec<u32> =
                self.residency.live().filter(|(_, chunk)| leaves(chunk)).map(|(index, _)| index).collect();
            let mut found = leaving.clone();
            found.sort_unstable();
            found.dedup();
            expected.sort_unstable();
            assert_eq!(found, expected, "what is to leave");
            self.residency.still_leaving(leaving);
        }

        fn run(&mut self, offsets: &[u64], kind: u64) {
            let work = Work { kind, patient: true, ..Work::naming(STREAM, offsets) };
            let mut hold = None;
            for patience in (0..200).rev() {
                match self.residency.begin(&Work { patient: patience > 100, ..work }, hold) {
                    Begin::Go(begun) => {
                        self.residency.issued(&begun);
                        let behind = self.random(4);
                        self.residency.completed(STREAM, begun.number.saturating_sub(behind));
                        return;
                    }
                    Begin::Hold(id) => hold = Some(id),
                }
                self.residency.completed(STREAM, u64::MAX);
                self.step();
            }
            panic!("held for ever");
        }

        /// Something happens that is not of the loop.
        fn disturb(&mut self, offset: u64) {
            let bytes = self.residency.extent_at(offset).map_or(0, |(_, bytes)| bytes);
            match self.random(60) {
                0..3 => {
                    self.residency.remove_extent(offset);
                    let is_still = !self.moving.iter().any(|(other, ..)| *other == offset);
                    if is_still && self.random(2) == 0 && self.residency.remove_chunk(offset) {
                        self.residency.add_chunk(offset, bytes, Tier::Ram, false);
                    }
                    self.residency.add_extent(offset, bytes);
                }
                3 => self.residency.hint(offset, bytes, Hint::Heat(Heat::Cold)),
                4 => self.residency.hint(offset, bytes, Hint::Heat(Heat::Hot)),
                5 => self.residency.hint(offset, bytes, Hint::Heat(Heat::Usual)),
                6 if self.random(4) == 0 => self.residency.escape(offset),
                _ => {}
            }
        }
    }

    #[test]
    fn what_is_to_come_and_to_leave_is_what_a_look_at_all_chunks_finds() {
        let mut planned = 0;
        for seed in 0..40 {
            println!("seed {seed}");
            let (mut play, extents) = Play::new(seed);
            let any = |play: &mut Play| extents[usize::try_from(play.random(EXTENTS)).unwrap()];
            let works: Vec<[u64; 2]> = (0..LOOP).map(|_| [any(&mut play), any(&mut play)]).collect();
            for _ in 0..20 {
                for (work, kind) in works.iter().zip(1..) {
                    let mut named = *work;
                    if play.random(30) == 0 {
                        named[0] = any(&mut play);
                    }
                    play.run(&named, kind);
                    if seed % 2 == 0 {
                        let offset = any(&mut play);
                        play.disturb(offset);
                    }
                    (0..play.random(4)).for_each(|_| play.step());
                    planned += play.residency.outlook.wants().len();
                }
            }
        }
        assert!(planned > 1000, "{planned}: nothing was ever foreseen");
    }
}
