//! Which chunks are to come to VRAM by plan, and which are to leave it. The executor asks at every look, so both are kept up to
//! date as chunks change. To look for them among all takes long, under a lock that works wait for, and brings the state of
//! every chunk to the executor's cache, from where works have to fetch it again.

use super::{
    ChunkState, Residency,
    history::{Decision, NEVER},
};
use crate::Tier;

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
        }
    }

    /// This chunk may have been in RAM.
    pub fn moved_or_gone(&mut self, index: u32) {
        if self.wants_at.is_none() {
            return;
        }
        self.changed.push(index);
        if self.changed.len() > MOST_CHANGED {
            // Nobody asks any more.
            (self.wants_at, self.changed) = (None, Vec::new());
        }
    }
}

/// So many changes are noted.
const MOST_CHANGED: usize = 4096;

impl Residency {
    /// The position of the last work, the one that corresponds to it, and the number of turns.
    pub(super) fn now(&self) -> (u64, Option<u64>, u64) {
        (self.foresight.position().saturating_sub(1), self.foresight.place(), self.foresight.turns())
    }

    /// Sees which chunks are to come to VRAM ([`Outlook::wants`]). Gives how many bytes they have.
    pub(super) fn look_ahead(&mut self) -> u64 {
        let (position, _, turns) = self.now();
        let mut outlook = std::mem::take(&mut self.outlook);
        if outlook.wants_at == Some(turns) {
            while let Some(passed) = outlook.wants.pop_if(|want| want.next <= position) {
                outlook.changed.push(passed.index);
            }
            if !outlook.changed.is_empty() {
                outlook.changed.sort_unstable();
                outlook.changed.dedup();
                outlook.wants.retain(|want| outlook.changed.binary_search(&want.index).is_err());
                for index in outlook.changed.drain(..) {
                    let Some(want) = self.want(index) else { continue };
                    let at = outlook.wants.partition_point(|other| *other > want);
                    outlook.wants.insert(at, want);
                }
            }
        } else {
            outlook.changed.clear();
            outlook.wants.clear();
            outlook.wants.extend((0..super::index_of(self.chunks.len())).filter_map(|index| self.want(index)));
            outlook.wants.sort_unstable_by(|a, b| b.cmp(a));
            outlook.wants_at = Some(turns);
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
        let leaves = |chunk: &ChunkState| chunk.tier == Tier::Vram && chunk.history.decision != Decision::Keep;
        if self.outlook.leaving_is_known {
            leaving.retain(|index| {
                self.chunk_mut(*index).is_some_and(|chunk| {
                    chunk.listed = leaves(chunk);
                    chunk.listed
                })
            });
        } else {
            leaving.clear();
            for (chunk, index) in self.chunks.iter_mut().zip(0..) {
                let Some(chunk) = chunk else { continue };
                chunk.listed = leaves(chunk);
                if chunk.listed {
                    leaving.push(index);
                }
            }
            self.outlook.leaving_is_known = true;
        }
        leaving
    }

    /// See [`Self::leaving`].
    pub(super) fn still_leaving(&mut self, leaving: Vec<u32>) {
        self.outlook.leaving = leaving;
    }
}
