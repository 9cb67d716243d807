//! What the live figure ([`crate::figure`]) wants to know of the state machine: how far the program is, whether the GPU waits
//! for data, what is read in place, and what the last round of the loop touched.

use super::{ChunkState, Residency};
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
    /// How much longer works took for that than with their data in VRAM, in microseconds, of kinds of which that is known.
    pub micros: f64,
    /// The same of other kinds, at most.
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
    /// What is read in place.
    pub in_place: ReadInPlace,
    /// What emuV's part of the program's calls has taken its host, from the beginning, in microseconds. The state machine does not know: 0.
    pub overhead_micros: f64,
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

/// How long a kind of work took with so much in RAM.
#[derive(Debug, Clone, Copy)]
struct Timing {
    ram_bytes: f64,
    micros: f64,
}

/// Two timings of a kind: the first, and one with less in RAM.
#[derive(Debug, Clone, Copy)]
struct Timings {
    first: Timing,
    less: Option<Timing>,
    /// It is to be timed again when it comes with so much in RAM at most.
    wanted: Option<u64>,
}

/// Keeps account of what is read in place. What that costs follows from two timings of a kind; so each kind that was timed
/// once is timed again when it comes with less in RAM, best with nothing.
#[derive(Debug, Default)]
pub(super) struct InPlace {
    sum: ReadInPlace,
    kinds: FastMap<u64, Timings>,
    /// How many are to be timed again: while there are none, a work without anything in RAM costs nothing.
    wanted: usize,
    /// Kinds that are being timed again.
    again: Vec<u64>,
}

impl InPlace {
    /// A work of that kind has begun. True: it is to be timed, for this account.
    #[allow(clippy::cast_precision_loss)] // Times are estimates.
    pub fn begun(&mut self, kind: u64, ram_bytes: u64) -> bool {
        if ram_bytes == 0 && self.wanted == 0 {
            return false;
        }
        self.sum.bytes += ram_bytes;
        let Some(timings) = self.kinds.get_mut(&kind) else {
            self.sum.untimed += u64::from(ram_bytes > 0);
            return false;
        };
        let (bytes, first) = (ram_bytes as f64, timings.first);
        match timings.less {
            _ if ram_bytes == 0 => {}
            Some(less) => {
                let each = (first.micros - less.micros) / (first.ram_bytes - less.ram_bytes);
                self.sum.micros += (bytes * each).max(0.0);
            }
            // With less in RAM it may do something else for most of its time.
            None => self.sum.unsure_micros += first.micros * (bytes / first.ram_bytes).max(1.0),
        }
        if timings.wanted.is_none_or(|most| ram_bytes > most) {
            return false;
        }
        timings.wanted = None;
        self.wanted -= 1;
        self.again.push(kind);
        true
    }

    /// A work has begun that may read up to so many bytes there: how many is not known.
    pub fn unknown(&mut self, most_ram_bytes: u64) {
        self.sum.untimed += u64::from(most_ram_bytes > 0);
    }

    /// A work of that kind was timed. True: it was for this account.
    #[allow(clippy::cast_precision_loss)]
    pub fn timed(&mut self, kind: u64, ram_bytes: u64, micros: f64) -> bool {
        let timing = Timing { ram_bytes: ram_bytes as f64, micros };
        // Others time it for purposes of their own, too.
        let first = self.kinds.get(&kind).map(|timings| timings.first);
        let again = first.is_some_and(|first| 2.0 * timing.ram_bytes <= first.ram_bytes) && self.end(kind);
        let is_new = first.is_none();
        let timings = self.kinds.entry(kind).or_insert(Timings { first: timing, less: None, wanted: None });
        if again {
            timings.less = Some(timing);
        }
        if ram_bytes > 0 && (again || is_new) {
            // Nothing is better than half.
            self.wanted += usize::from(timings.wanted.is_none());
            timings.wanted = Some(if again { 0 } else { ram_bytes / 2 });
        }
        again
    }

    /// The timing is over, whatever came of it. True: it was for this account.
    pub fn end(&mut self, kind: u64) -> bool {
        let at = self.again.iter().position(|other| *other == kind);
        at.map(|at| self.again.swap_remove(at)).is_some()
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
            in_place: self.in_place.sum,
            overhead_micros: 0.0,
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

    /// The tier of the chunk that `offset` lies in.
    pub fn tier(&self, offset: u64) -> Option<Tier> {
        self.chunk(self.at(offset)?).map(|chunk| chunk.tier)
    }

    /// Whether the chunk that `offset` lies in has been in VRAM all the time since it was last somebody's.
    pub fn has_stayed(&self, offset: u64) -> bool {
        let chunk = self.at(offset).and_then(|index| self.chunk(index));
        chunk.is_some_and(|chunk| chunk.tier == Tier::Vram && chunk.moving.is_none() && !chunk.came)
    }

    /// How much of `bytes` at `offset` lies in chunks in that tier.
    pub fn bytes_in(&self, offset: u64, bytes: u64, tier: Tier) -> u64 {
        let chunks = self.live().map(|(_, chunk)| chunk).filter(|chunk| chunk.tier == tier);
        let common = |chunk: &ChunkState| {
            let end = (offset + bytes).min(chunk.offset + chunk.bytes);
            end.saturating_sub(offset.max(chunk.offset))
        };
        chunks.map(common).sum()
    }

    /// Where the extent that `offset` lies in begins, and its size.
    pub fn extent_at(&self, offset: u64) -> Option<(u64, u64)> {
        let chunk = self.chunk(self.at(offset)?)?;
        let extent = self.extents.get(chunk.extent as usize)?.as_ref()?;
        Some((extent.offset, extent.bytes))
    }
}
