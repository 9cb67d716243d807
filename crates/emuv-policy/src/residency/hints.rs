//! What the program itself says of its memory. A hint changes what moves, and when; never what a program computes, except that
//! the contents of discarded memory are undefined until they are written.
//!
//! *Hot* memory stays in VRAM as long as anything else can go, and is brought when there is room. *Cold* memory goes before
//! anything else. What is *discarded* is nobody's, as if it had just been allocated: it is exchanged without a copy until a work
//! may have touched it again. So all that holds for new memory holds for it: works that are in flight go on with what is there
//! (it does not move under them), and whatever begins later makes it somebody's. It is not believed where somebody may write
//! without naming it: what has escaped, what never moves, and before works are told.

use super::{ChunkState, NONE, Obstacle, Residency, Step, Why};
use crate::Tier;

/// What the program says of a piece of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// This much is it to be cared for, from now on.
    Heat(Heat),
    /// What it holds is not needed any more.
    Discard,
}

/// How much a chunk is to be in VRAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Heat {
    /// Stays there as long as anything else can go.
    Hot,
    /// Nothing was said.
    #[default]
    Usual,
    /// Goes first.
    Cold,
}

impl Residency {
    /// The program says this of the allocation that `offset` lies in, as far as it lies in these bytes. Heat is of whole chunks:
    /// those of which any part lies there. Only chunks that lie there wholly are discarded.
    pub fn hint(&mut self, offset: u64, bytes: u64, hint: Hint) {
        let Some((start, size)) = self.extent_at(offset) else { return };
        let end = offset.saturating_add(bytes).min(start + size);
        // A chunk may be larger than what of it is the allocation's.
        let bytes = end.saturating_sub(offset);
        match hint {
            Hint::Heat(heat) => {
                let mut news = false;
                self.saw_hot |= heat == Heat::Hot;
                self.saw_cold |= heat == Heat::Cold;
                self.each_in(offset, bytes, |chunk| {
                    news |= chunk.heat != heat;
                    chunk.heat = heat;
                    if heat == Heat::Hot {
                        chunk.history.keep();
                    }
                });
                if news {
                    self.outlook.forget();
                    self.plan_soon();
                }
            }
            Hint::Discard if self.quiesced => {
                let is_inside = |chunk: &ChunkState| chunk.offset >= offset && chunk.offset + chunk.bytes <= end;
                self.each_in(offset, bytes, |chunk| {
                    chunk.dead |= is_inside(chunk) && chunk.extent != NONE && !chunk.fixed && !chunk.escaped;
                });
            }
            Hint::Discard => {}
        }
    }

    /// Brings what the program said is hot, into room that nothing else wants.
    pub(super) fn bring_hot(&mut self, spare_bytes: u64, needs_progress: &mut bool) -> Option<Step> {
        let is_out = |chunk: &ChunkState| {
            chunk.heat == Heat::Hot
                && chunk.tier == Tier::Ram
                && chunk.moving.is_none()
                && !chunk.fixed
                && !chunk.escaped
        };
        let hot = self.live().filter(|(_, chunk)| is_out(chunk) && chunk.bytes <= spare_bytes);
        let hot: Vec<u32> = hot.map(|(index, _)| index).collect();
        for index in hot {
            match self.may_move(index) {
                Ok(mode) => return self.start(index, Tier::Vram, mode, Why::Hint),
                Err(obstacle) => *needs_progress |= obstacle == Obstacle::Busy,
            }
        }
        None
    }
}
