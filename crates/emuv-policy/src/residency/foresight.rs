//! What comes next, and how well each kind of work reads from RAM: learned from what has happened.
//!
//! Programs repeat: training steps, tokens, layers. The log of works is followed at the place of the past that
//! corresponds to now; what came after that place is the forecast. A work that comes once in a round of the loop (one
//! that reads a weight, say) says where that place is; works that come many times a round (element by element, in the
//! same few buffers) do not, so they only confirm it. Which is which is seen from how long ago the same work came last,
//! compared with the length of the loop.
//!
//! The forecast is believed while it comes true, by bytes. A loop is foreseen from its second round on, a change of phase
//! is noticed soon, and what never repeats is never foreseen.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};

/// A work identifies its place in the loop if its like came last at least this part of the loop's length ago.
const IDENTIFIES: u64 = 2;

/// Works on both sides of the expected place among which one that comes early or late is looked for.
const NEAR: u64 = 8;

/// How much of the past a work leaves in the averages: what came a few hundred works ago does not count.
const DECAY: f64 = 1.0 - 1.0 / 64.0;

/// The same for the length of the loop.
const SLOW_DECAY: f64 = 1.0 - 1.0 / 4096.0;

/// The part of the bytes that must have been foreseen for the forecast to be believed.
const BELIEVED: f64 = 0.6;

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
    /// Where each signature was seen last.
    seen: HashMap<u64, u64, BuildHasherDefault<AsIs>>,
    /// The position in the past that corresponds to the last work.
    follow: Option<u64>,
    /// Averages: bytes that were foreseen, bytes touched; how long ago works' likes came, its square.
    foreseen: f64,
    touched: f64,
    gaps: f64,
    squared_gaps: f64,
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
    /// A work has begun that touches these chunks, `bytes` of them.
    pub fn note(&mut self, signature: u64, kind: u64, chunks: &[u32], bytes: u64) {
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
        self.advance(signature, position, bytes);
        if self.log.len() > LOG_WORKS {
            self.drop_oldest();
        }
    }

    #[allow(clippy::cast_precision_loss)] // Averages.
    fn advance(&mut self, signature: u64, position: u64, bytes: u64) {
        let same = self.seen.insert(signature, position).filter(|same| *same >= self.base);
        if let Some(same) = same {
            let gap = (position - same) as f64;
            self.gaps = self.gaps * SLOW_DECAY + gap;
            self.squared_gaps = self.squared_gaps * SLOW_DECAY + gap * gap;
        }
        let next = self.follow.map(|follow| follow + 1).filter(|next| *next < position);
        let hit = next.is_some_and(|next| self.is(next, signature));
        self.foreseen = self.foreseen * DECAY + if hit { bytes as f64 } else { 0.0 };
        self.touched = self.touched * DECAY + bytes as f64;
        if hit {
            self.follow = next;
            return;
        }
        let identifies = |same: &u64| (position - same) as f64 * IDENTIFIES as f64 >= self.length();
        // A work more or less than last time.
        let near = next.and_then(|next| {
            let places = (1..=NEAR).flat_map(|by| [Some(next + by), next.checked_sub(by)]).flatten();
            places.filter(|place| *place < position).find(|place| self.is(*place, signature))
        });
        let identified = same.filter(identifies);
        if identified.is_some() && self.place().is_none() {
            // Another beginning: to be judged by what comes now.
            (self.foreseen, self.touched) = (0.0, 0.0);
        }
        self.follow = identified.or(near).or(next);
    }

    fn is(&self, position: u64, signature: u64) -> bool {
        self.entry(position).is_some_and(|entry| entry.signature == signature)
    }

    /// About how many works the loop has: the mean distance of a work to its like, by distance. A work that comes once a
    /// round counts as much as all those together that come many times.
    pub fn length(&self) -> f64 {
        if self.gaps > 0.0 { self.squared_gaps / self.gaps } else { 0.0 }
    }

    /// Where to read the forecast, if it is to be believed.
    fn place(&self) -> Option<u64> {
        self.follow.filter(|_| self.foreseen > 0.0 && self.foreseen >= self.touched * BELIEVED)
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
        let follow = self.place().unwrap_or(u64::MAX - 1);
        (1..=most as u64).map_while(move |ahead| {
            let entry = self.entry(follow.checked_add(ahead)?)?;
            let from = usize::try_from(entry.first_touch - self.touches_base).ok()?;
            let chunks = (from..from + entry.touches as usize).filter_map(|at| self.touches.get(at).copied());
            Some((ahead, entry.kind, chunks))
        })
    }

    /// How many works the loop that is foreseen has.
    pub fn period(&self) -> Option<u64> {
        self.place().map(|follow| self.base + self.log.len() as u64 - 1 - follow)
    }

    /// In how many works the chunk will be touched next; `None`: not within what is foreseen.
    pub fn next_use(&self, chunk: u32) -> Option<u64> {
        let follow = self.place()?;
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
                foresight.note(u64::from(work) + 100, 1, &[work], 1);
            }
        }
    }

    #[test]
    fn a_loop_is_foreseen_in_its_second_round() {
        let mut foresight = Foresight::default();
        rounds(&mut foresight, 10, 1);
        assert!(foresight.place().is_none());
        rounds(&mut foresight, 10, 1);
        assert!(foresight.place().is_some());
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
                foresight.note(signature, 1, &[work], 1);
            }
        }
        assert_eq!(foresight.next_use(5), Some(6));
    }

    #[test]
    fn another_phase_is_noticed_and_the_first_one_found_again() {
        let mut foresight = Foresight::default();
        rounds(&mut foresight, 10, 2);
        for work in 50..70 {
            foresight.note(u64::from(work) + 100, 1, &[work], 1);
        }
        assert!(foresight.place().is_none());
        rounds(&mut foresight, 4, 1);
        assert_eq!(foresight.next_use(5), Some(2));
    }

    #[test]
    fn the_log_is_bounded_and_old_chunks_are_forgotten() {
        let mut foresight = Foresight::default();
        foresight.note(7, 1, &[3], 1);
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
