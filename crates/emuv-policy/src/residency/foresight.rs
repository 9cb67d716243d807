//! What comes next, and how well each kind of work reads from RAM: learned from what has happened.
//!
//! Programs repeat: training steps, tokens, layers. The log of works is followed at the place where the same
//! works came before: once the last [`CONTEXT`] of them are found earlier in the log, what followed them there
//! is the forecast, as long as it keeps coming true. So a loop is foreseen from its second round on, a change
//! of phase is noticed at once, and what never repeats is never foreseen.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};

/// Works that must agree before the past is taken for the future.
const CONTEXT: usize = 3;

/// How many of the last [`WINDOW`] works may differ from the forecast (a counter among the arguments makes a
/// work differ each time) before it is given up.
const SLIPS: u32 = 4;
const WINDOW: u32 = 16;

/// Works that are remembered.
const LOG_WORKS: usize = 1 << 16;

/// The link's speed until it has been measured: PCIe 4 x16, in bytes per microsecond.
const USUAL_LINK: f64 = 25_000.0;

/// The part of the link's speed from which on a work is taken to read each byte about once.
const READ_ONCE: f64 = 0.6;

/// How a kind of work does with data in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// About as fast as the link: it reads each byte about once, so moving the data first gains nothing.
    InPlace,
    /// Slower: it is better off with its data in VRAM.
    Move,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    signature: u64,
    kind: u64,
    /// Number of its first touch, counted from the beginning.
    first_touch: u64,
    touches: u32,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Foresight {
    log: VecDeque<Entry>,
    /// Position of the log's first entry, counted from the beginning.
    base: u64,
    touches: VecDeque<u32>,
    touches_base: u64,
    /// By chunk: positions of the works that touched it.
    positions: Vec<VecDeque<u64>>,
    /// Where the last works that end here were seen last.
    seen: HashMap<u64, u64, BuildHasherDefault<AsIs>>,
    recent: [u64; CONTEXT],
    /// The position in the past that corresponds to the last work.
    follow: Option<u64>,
    slips: u32,
    since: u32,
    /// By kind of work: bytes per microsecond that it read from RAM.
    rates: HashMap<u64, f64, BuildHasherDefault<AsIs>>,
    link: Option<f64>,
}

/// For keys that are hashes already.
#[derive(Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = mix(self.0 ^ u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = mix(value);
    }
}

/// A bijection that scatters (the finaliser of SplitMix64).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Foresight {
    /// A work has begun that touches these chunks.
    pub fn note(&mut self, signature: u64, kind: u64, chunks: &[u32]) {
        let position = self.base + self.log.len() as u64;
        let signature =
            if signature == 0 { chunks.iter().fold(1, |sum, c| mix(sum ^ u64::from(*c))) } else { signature };
        let first_touch = self.touches_base + self.touches.len() as u64;
        let touches = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
        self.log.push_back(Entry { signature, kind, first_touch, touches });
        self.touches.extend(chunks);
        for &chunk in chunks {
            if self.positions.len() <= chunk as usize {
                self.positions.resize(chunk as usize + 1, VecDeque::new());
            }
            self.positions[chunk as usize].push_back(position);
        }
        self.advance(signature, position);
        if self.log.len() > LOG_WORKS {
            self.drop_oldest();
        }
    }

    fn advance(&mut self, signature: u64, position: u64) {
        self.recent.rotate_left(1);
        self.recent[CONTEXT - 1] = signature;
        let key = self.recent.iter().fold(0, |sum, part| mix(sum ^ *part));
        let before = self.seen.insert(key, position);
        let next = self.follow.map(|follow| follow + 1).filter(|next| *next < position);
        self.since += 1;
        if self.since >= WINDOW {
            self.since = 0;
            self.slips = 0;
        }
        let Some(next) = next else {
            self.follow = before;
            return;
        };
        self.follow = Some(next);
        if self.entry(next).is_none_or(|entry| entry.signature != signature) {
            self.slips += 1;
            if let Some(before) = before {
                // The past has another place that fits better.
                self.follow = Some(before);
                self.slips = 0;
            } else if self.slips > SLIPS {
                self.follow = None;
                self.slips = 0;
            }
        }
    }

    fn drop_oldest(&mut self) {
        let Some(entry) = self.log.pop_front() else { return };
        for _ in 0..entry.touches {
            let Some(chunk) = self.touches.pop_front() else { break };
            if let Some(positions) = self.positions.get_mut(chunk as usize)
                && positions.front() == Some(&self.base)
            {
                positions.pop_front();
            }
        }
        self.touches_base += u64::from(entry.touches);
        self.base += 1;
        if self.follow.is_some_and(|follow| follow < self.base) {
            self.follow = None;
        }
        if self.seen.len() > 2 * LOG_WORKS {
            let base = self.base;
            self.seen.retain(|_, position| *position >= base);
        }
    }

    fn entry(&self, position: u64) -> Option<&Entry> {
        self.log.get(usize::try_from(position.checked_sub(self.base)?).ok()?)
    }

    /// The works to come, at most `most`: how many works ahead, of which kind, and the chunks that each will
    /// touch. Nothing without a forecast.
    pub fn upcoming(&self, most: usize) -> impl Iterator<Item = (u64, u64, impl Iterator<Item = u32>)> {
        let follow = self.follow.unwrap_or(u64::MAX - 1);
        (1..=most as u64).map_while(move |ahead| {
            let entry = self.entry(follow.checked_add(ahead)?)?;
            let from = usize::try_from(entry.first_touch - self.touches_base).ok()?;
            let chunks = (from..from + entry.touches as usize).filter_map(|at| self.touches.get(at).copied());
            Some((ahead, entry.kind, chunks))
        })
    }

    /// How many works the loop that is foreseen has.
    pub fn period(&self) -> Option<u64> {
        self.follow.map(|follow| self.base + self.log.len() as u64 - 1 - follow)
    }

    /// In how many works the chunk will be touched next; `None`: not within what is foreseen.
    pub fn next_use(&self, chunk: u32) -> Option<u64> {
        let follow = self.follow?;
        let positions = self.positions.get(chunk as usize)?;
        let after = positions.partition_point(|position| *position <= follow);
        positions.get(after).map(|position| position - follow)
    }

    /// The chunk is gone; its number will name another one.
    pub fn forget_chunk(&mut self, chunk: u32) {
        if let Some(positions) = self.positions.get_mut(chunk as usize) {
            positions.clear();
        }
    }

    /// The link's speed into VRAM, in bytes per microsecond.
    pub fn set_link(&mut self, bytes_per_micro: f64) {
        self.link = Some(bytes_per_micro);
    }

    /// How a kind of work does with data in RAM; `None`: not known yet.
    pub fn manner(&self, kind: u64) -> Option<Manner> {
        let read_once = READ_ONCE * self.link.unwrap_or(USUAL_LINK);
        self.rates.get(&kind).map(|rate| if *rate >= read_once { Manner::InPlace } else { Manner::Move })
    }

    /// A work of that kind took `micros` with `ram_bytes` of what it touches in RAM.
    pub fn measured(&mut self, kind: u64, ram_bytes: u64, micros: f64) {
        #[allow(clippy::cast_precision_loss)] // A rate: the first digits count.
        let rate = ram_bytes as f64 / micros.max(1.0);
        self.rates.insert(kind, rate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop of `works` works, each with a chunk of its own.
    fn rounds(foresight: &mut Foresight, works: u32, rounds: u32) {
        for _ in 0..rounds {
            for work in 0..works {
                foresight.note(u64::from(work) + 100, 1, &[work]);
            }
        }
    }

    #[test]
    fn a_loop_is_foreseen_in_its_second_round() {
        let mut foresight = Foresight::default();
        rounds(&mut foresight, 10, 1);
        assert!(foresight.follow.is_none());
        rounds(&mut foresight, 10, 1);
        assert!(foresight.follow.is_some());
        assert_eq!(foresight.next_use(0), Some(1));
        assert_eq!(foresight.next_use(9), Some(10));
        let next: Vec<u32> = foresight.upcoming(3).flat_map(|(_, _, chunks)| chunks).collect();
        assert_eq!(next, [0, 1, 2]);
    }

    #[test]
    fn a_counter_among_the_arguments_does_not_end_the_forecast() {
        let mut foresight = Foresight::default();
        for round in 0..3_u64 {
            for work in 0..10_u32 {
                let signature = if work == 4 { 5000 + round } else { u64::from(work) + 100 };
                foresight.note(signature, 1, &[work]);
            }
        }
        assert_eq!(foresight.next_use(5), Some(6));
    }

    #[test]
    fn another_phase_is_noticed_and_the_first_one_found_again() {
        let mut foresight = Foresight::default();
        rounds(&mut foresight, 10, 2);
        for work in 50..70 {
            foresight.note(u64::from(work) + 100, 1, &[work]);
        }
        assert!(foresight.follow.is_none());
        rounds(&mut foresight, 4, 1);
        assert_eq!(foresight.next_use(5), Some(2));
    }

    #[test]
    fn the_log_is_bounded_and_old_chunks_are_forgotten() {
        let mut foresight = Foresight::default();
        foresight.note(7, 1, &[3]);
        rounds(&mut foresight, 2, u32::try_from(LOG_WORKS).unwrap());
        assert_eq!(foresight.log.len(), LOG_WORKS);
        assert!(foresight.positions[3].is_empty());
        assert!(foresight.seen.len() <= 2 * LOG_WORKS);
    }

    #[test]
    fn a_work_that_reads_at_the_links_speed_stays_where_it_is() {
        let mut foresight = Foresight::default();
        foresight.measured(1, 86 << 20, 1700.0);
        foresight.measured(2, 86 << 20, 60_000.0);
        assert_eq!(foresight.manner(1), Some(Manner::InPlace));
        assert_eq!(foresight.manner(2), Some(Manner::Move));
        assert_eq!(foresight.manner(3), None);
        // Nothing reads each byte once at half the link's speed.
        foresight.set_link(100_000.0);
        assert_eq!(foresight.manner(1), Some(Manner::Move));
    }
}
