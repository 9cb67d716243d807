//! What the live figure ([`crate::figure`]) wants to know of the state machine: how far the program is, whether the GPU waits
//! for data, what is read in place, and what the last round of the loop touched.

use super::{Manner, Residency};
use crate::{Tier, hash::FastMap};

/// A loop that is foreseen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Looped {
    /// Works of a round.
    pub works: u64,
    /// Raised whenever what was foreseen does not hold any more.
    pub turns: u64,
}

/// What works have read in place (or written), from the beginning. A work counts when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ReadInPlace {
    /// What they touched in RAM.
    pub bytes: u64,
    /// How long works took for that, in microseconds, of kinds that read each byte about once: nearly all of it is spent
    /// on the link.
    pub micros: f64,
    /// The same of other kinds, at most: how much of it they would have taken with their data in VRAM is not known.
    pub unsure_micros: f64,
    /// Works that read in place of which it is not known how long they took.
    pub untimed: u64,
}

/// What there is to see at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sight {
    /// Works that have begun, from the beginning.
    pub begun: u64,
    /// Those of them that are known to be done.
    pub done: u64,
    /// The loop, if one is foreseen.
    pub looped: Option<Looped>,
    /// A work is held and the GPU has nothing else to do.
    pub starved: bool,
    /// The GPU has something to do. [`Residency::sight`] says so of whatever is not known to be done; who looks may know
    /// better.
    pub busy: bool,
    /// What is read in place.
    pub in_place: ReadInPlace,
}

/// A chunk in a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundChunk {
    /// Its size.
    pub bytes: u64,
    /// What it holds is made in each round.
    pub made_anew: bool,
    /// How fast the slowest work that touches it reads from RAM, in bytes per microsecond, if that is known of all.
    pub rate: Option<f64>,
}

/// A use of a chunk in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touch {
    /// Number of the work in the round.
    pub work: u32,
    /// Number of the chunk in the round.
    pub chunk: u32,
    /// What the chunk held before is nobody's.
    pub fresh: bool,
}

/// What the last round of a loop touched.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LastRound {
    /// What chunks have of VRAM, in bytes, free room not counted.
    pub vram_bytes: u64,
    /// What is touched.
    pub chunks: Vec<RoundChunk>,
    /// When: chunk by chunk.
    pub touches: Vec<Touch>,
}

/// Keeps account of what is read in place.
#[derive(Debug, Default)]
pub(super) struct InPlace {
    sum: ReadInPlace,
    /// By kind: bytes in RAM and microseconds, when it was timed.
    timed: FastMap<u64, (f64, f64)>,
}

impl InPlace {
    #[allow(clippy::cast_precision_loss)] // Times are estimates.
    pub fn begun(&mut self, kind: u64, ram_bytes: u64, manner: Option<Manner>) {
        self.sum.bytes += ram_bytes;
        let Some((then, micros)) = self.timed.get(&kind) else {
            self.sum.untimed += 1;
            return;
        };
        let times = ram_bytes as f64 / then;
        if manner == Some(Manner::InPlace) {
            self.sum.micros += micros * times;
        } else {
            // With less in RAM it may do something else for most of its time.
            self.sum.unsure_micros += micros * times.max(1.0);
        }
    }

    #[allow(clippy::cast_precision_loss)]
    pub fn timed(&mut self, kind: u64, ram_bytes: u64, micros: f64) {
        self.timed.insert(kind, (ram_bytes.max(1) as f64, micros));
    }
}

impl Residency {
    /// What there is to see now.
    pub fn sight(&self) -> Sight {
        let works = self.foresight.period();
        Sight {
            begun: self.foresight.position(),
            done: self.lanes.iter().map(|lane| lane.done).sum(),
            looped: works.map(|works| Looped { works, turns: self.foresight.turns() }),
            starved: !self.held.is_empty() && self.all_idle(),
            busy: !self.all_idle(),
            in_place: self.in_place.sum,
        }
    }

    /// What the last round touched, if a loop is foreseen. This takes a while with many chunks.
    pub fn last_round(&self) -> Option<LastRound> {
        let place = self.foresight.place()?;
        let is_in_vram = |tier: Tier, moving: Option<Tier>| tier == Tier::Vram || moving == Some(Tier::Vram);
        let in_vram = self.live().filter(|(_, chunk)| is_in_vram(chunk.tier, chunk.moving));
        let mut round = LastRound { vram_bytes: in_vram.map(|(_, chunk)| chunk.bytes).sum(), ..LastRound::default() };
        for (_, chunk) in self.live() {
            let number = super::index_of(round.chunks.len());
            let (mut made_anew, mut rate) = (false, Some(f64::INFINITY));
            let before = round.touches.len();
            for used in chunk.history.since(place) {
                let Ok(work) = u32::try_from(used.position - place - 1) else { break };
                made_anew |= used.fresh;
                rate = rate.and_then(|rate| Some(self.foresight.rate_at(used.position)?.min(rate)));
                round.touches.push(Touch { work, chunk: number, fresh: used.fresh });
            }
            if round.touches.len() > before {
                round.chunks.push(RoundChunk { bytes: chunk.bytes, made_anew, rate });
            }
        }
        Some(round)
    }

    /// Where the extent that `offset` lies in begins, and its size.
    pub fn extent_at(&self, offset: u64) -> Option<(u64, u64)> {
        let chunk = self.chunk(self.at(offset)?)?;
        let extent = self.extents.get(chunk.extent as usize)?.as_ref()?;
        Some((extent.offset, extent.bytes))
    }
}
