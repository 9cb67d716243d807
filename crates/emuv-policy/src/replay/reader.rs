//! What is where, and how long works take, while a trace is read.
//!
//! A trace says when works were known to be done, some of them at a time, and they may have waited for data or read it in
//! place. So how long a work takes with everything in VRAM is estimated: works between two moments of completion share
//! the time between by what they touch; of works of a kind that touch as much, the lower quartile counts of those that
//! came with nothing in RAM and nothing held (or of all, where there are none): what disturbs only ever adds. Where whole
//! rounds went undisturbed, all is scaled to how long those took; and how long the program's host takes from one work to the next is
//! what it took there.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use super::{Call, Name, Rounds, WORK_US, precise};
use crate::{StreamId, Tier, trace::Event};

/// Bytes that a work touches in a microsecond, when it has to be guessed.
const BYTES_PER_US: f64 = 2e6;

/// Between two works of the program, in microseconds, at least, and at most: what takes longer waits for the GPU, or happens once.
const LEAST_ISSUE_US: f64 = 2.0;
const MOST_ISSUE_US: f64 = 100.0;

#[derive(Debug, Clone, Copy)]
struct ReadChunk {
    bytes: u64,
    tier: Tier,
    to: Tier,
    owner: Option<Name>,
}

#[derive(Debug, Clone, Copy)]
struct ReadWork {
    kind: u64,
    bytes: u64,
    number: u64,
    began: u64,
    done: Option<u64>,
    /// Something that it touches lay in RAM, or it was held.
    disturbed: bool,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Reader {
    chunks: HashMap<u64, ReadChunk>,
    /// Start of an allocation -> its name and its chunks.
    allocations: HashMap<u64, (Name, Vec<u64>)>,
    next: Name,
    works: Vec<ReadWork>,
    not_done: HashMap<StreamId, Vec<usize>>,
    held: bool,
    /// Its speed into VRAM, in bytes per microsecond.
    link: Option<f64>,
    /// By kind: bytes and microseconds of what was read in place.
    measured: HashMap<u64, (f64, f64)>,
    /// By allocation: bytes that were the same when they left VRAM again, and bytes that were not.
    compared: HashMap<Name, (u64, u64)>,
    /// By allocation: how many works had begun when it was made, and when it was freed.
    lives: HashMap<Name, (usize, Option<usize>)>,
    pub calls: Vec<Call>,
}

impl Reader {
    pub fn event(&mut self, time: u64, event: Event) {
        match event {
            Event::Chunk { offset, bytes, tier, .. } => {
                self.chunks.insert(offset, ReadChunk { bytes, tier, to: tier, owner: None });
            }
            Event::Removed { offset } => {
                self.chunks.remove(&offset);
            }
            Event::Extent { offset, bytes } => self.allocate(offset, bytes),
            Event::Freed { offset } => self.free(offset),
            Event::Begun { kind, flags, chunks, number, stream } => {
                let touched: Vec<ReadChunk> = chunks.iter().filter_map(|at| self.chunks.get(at).copied()).collect();
                self.not_done.entry(stream).or_default().push(self.works.len());
                self.works.push(ReadWork {
                    kind,
                    bytes: touched.iter().map(|chunk| chunk.bytes).sum(),
                    number,
                    began: time,
                    done: None,
                    disturbed: std::mem::take(&mut self.held) || touched.iter().any(|chunk| chunk.tier == Tier::Ram),
                });
                let mut seen = HashSet::new();
                let owners = touched.iter().filter_map(|chunk| chunk.owner);
                let touches = owners.filter(|name| seen.insert(*name)).collect();
                self.calls.push(Call::Work { kind, touches, everything: flags.everything });
            }
            Event::Held { .. } => self.held = true,
            Event::Start { offset, to, .. } => {
                if let Some(chunk) = self.chunks.get_mut(&offset) {
                    chunk.to = to;
                }
            }
            Event::Finish { offset, moved } => {
                if let Some(chunk) = self.chunks.get_mut(&offset).filter(|_| moved) {
                    chunk.tier = chunk.to;
                }
            }
            Event::Completed { stream, number } => self.completed(time, stream, number),
            Event::Link { bytes_per_milli } => self.link = Some(precise(bytes_per_milli) / 1e3),
            Event::Measured { kind, ram_bytes, micros } => {
                self.measured.insert(kind, (precise(ram_bytes), precise(micros)));
            }
            Event::Compared { offset, same } => {
                if let Some(ReadChunk { bytes, owner: Some(owner), .. }) = self.chunks.get(&offset) {
                    let (unchanged, changed) = self.compared.entry(*owner).or_default();
                    *(if same { unchanged } else { changed }) += bytes;
                }
            }
            Event::Unheld { .. } | Event::SearchAll { .. } | Event::Escaped { .. } => {}
        }
    }

    fn allocate(&mut self, offset: u64, bytes: u64) {
        let name = self.next;
        self.next += 1;
        let mut chunks = Vec::new();
        let mut at = offset;
        while at < offset.saturating_add(bytes) {
            let Some(chunk) = self.chunks.get_mut(&at) else { break };
            chunk.owner = Some(name);
            chunks.push(at);
            at += chunk.bytes;
        }
        self.allocations.insert(offset, (name, chunks));
        self.lives.insert(name, (self.works.len(), None));
        self.calls.push(Call::Allocate(name, bytes));
    }

    fn free(&mut self, offset: u64) {
        let Some((name, chunks)) = self.allocations.remove(&offset) else { return };
        self.lives.entry(name).and_modify(|(_, freed)| *freed = Some(self.works.len()));
        for chunk in chunks {
            if let Some(chunk) = self.chunks.get_mut(&chunk).filter(|chunk| chunk.owner == Some(name)) {
                chunk.owner = None;
            }
        }
        self.calls.push(Call::Free(name));
    }

    fn completed(&mut self, time: u64, stream: StreamId, number: u64) {
        let works = &mut self.works;
        self.not_done.entry(stream).or_default().retain(|work| {
            let work = &mut works[*work];
            let is_done = work.number <= number;
            work.done = is_done.then_some(time);
            !is_done
        });
    }

    /// Of the allocations that last for half of the program, those of which most was the same whenever it left VRAM again; and,
    /// if that is most of what is known of them, those of which nothing is: what never left is like what did.
    pub fn constant(&self) -> HashSet<Name> {
        let works = self.works.len();
        let lasts = |name: &Name| {
            self.lives.get(name).is_some_and(|(made, freed)| (freed.unwrap_or(works) - made) * 2 >= works)
        };
        let lasting: Vec<Name> = (0..self.next).filter(lasts).collect();
        let known = lasting.iter().filter_map(|name| self.compared.get(name));
        let all = known.fold((0, 0), |sum, these| (sum.0 + these.0, sum.1 + these.1));
        let is_constant = |name: &Name| {
            let (same, other) = self.compared.get(name).unwrap_or(&all);
            same > other
        };
        lasting.into_iter().filter(is_constant).collect()
    }

    /// By kind: how much slower than the link it read RAM. What the work took longer than with everything in VRAM counts
    /// (`durations`): little of what it touches may have been in RAM.
    pub fn slowness(&self, durations: &[f64]) -> HashMap<u64, f64> {
        let link = self.link.unwrap_or(25_000.0);
        let mut usual: HashMap<u64, f64> = HashMap::new();
        for (work, micros) in self.works.iter().zip(durations) {
            let longest = usual.entry(work.kind).or_default();
            *longest = longest.max(*micros);
        }
        let slowness = |kind: &u64, (bytes, micros): &(f64, f64)| {
            let longer = micros - usual.get(kind).copied().unwrap_or(0.0);
            (longer * link / bytes.max(1.0)).max(1.0)
        };
        self.measured.iter().map(|(kind, measured)| (*kind, slowness(kind, measured))).collect()
    }

    /// How long each work takes with everything in VRAM, in microseconds.
    pub fn durations(&self) -> Vec<f64> {
        let shares = self.shares();
        let mut alike: HashMap<(u64, u64), [Vec<f64>; 2]> = HashMap::new();
        for (work, (share, disturbed)) in self.works.iter().zip(&shares) {
            alike.entry((work.kind, work.bytes)).or_default()[usize::from(*disturbed)].push(*share);
        }
        let usual: HashMap<(u64, u64), f64> = alike
            .into_iter()
            .map(|(alike, [undisturbed, disturbed])| {
                let usual = lower_quartile(undisturbed).or_else(|| lower_quartile(disturbed));
                (alike, usual.unwrap_or(WORK_US))
            })
            .collect();
        self.works.iter().map(|work| usual[&(work.kind, work.bytes)]).collect()
    }

    /// Of each work: its share of the time between two moments of completion, and whether that was disturbed.
    fn shares(&self) -> Vec<(f64, bool)> {
        let weight = |work: &ReadWork| WORK_US + precise(work.bytes) / BYTES_PER_US;
        let mut shares: Vec<(f64, bool)> = self.works.iter().map(|work| (weight(work), true)).collect();
        let mut first = 0;
        let mut before: Option<u64> = None;
        while let Some(work) = self.works.get(first) {
            let count = self.works[first..].iter().take_while(|next| next.done == work.done).count();
            let together = first..first + count;
            if let (Some(time), Some(before)) = (work.done, before) {
                let disturbed = self.works[together.clone()].iter().any(|work| work.disturbed);
                let sum: f64 = shares[together.clone()].iter().map(|(weight, _)| weight).sum();
                // From when the first of them was there to be worked on.
                let factor = precise(time.saturating_sub(before.max(work.began))) / sum;
                shares[together].iter_mut().for_each(|share| *share = ((share.0 * factor).max(WORK_US), disturbed));
            }
            before = work.done.or(before);
            first += count;
        }
        shares
    }

    /// How long these works took together, in microseconds; `None`: they were disturbed, or it is not known.
    pub fn undisturbed_micros(&self, works: Range<usize>) -> Option<f64> {
        let before = self.works.get(works.start.checked_sub(1)?)?.done?;
        let works = &self.works[works];
        let is_disturbed = works.iter().any(|work| work.disturbed);
        (!is_disturbed).then_some(precise(works.last()?.done?.saturating_sub(before)))
    }

    /// How long it takes from one work to the next while the program is not held, in microseconds.
    pub fn issue_us(&self) -> f64 {
        let between = (0..self.works.len()).filter_map(|work| self.until_next(work)).collect();
        lower_quartile(between).unwrap_or(0.0).max(LEAST_ISSUE_US)
    }

    /// The same behind each work of a round: the lower quartile of what it takes at that place of all rounds.
    pub fn issue_us_of(&self, rounds: Rounds) -> Vec<f64> {
        let at = |place: usize| (0..rounds.count).map(move |round| rounds.first_work + round * rounds.works + place);
        let between = |place: usize| at(place).filter_map(|work| self.until_next(work)).collect();
        let here = |place: usize| lower_quartile(between(place)).unwrap_or(0.0).clamp(LEAST_ISSUE_US, MOST_ISSUE_US);
        (0..rounds.works).map(here).collect()
    }

    fn until_next(&self, work: usize) -> Option<f64> {
        let (work, next) = (self.works.get(work)?, self.works.get(work + 1)?);
        (!next.disturbed).then_some(precise(next.began.saturating_sub(work.began)))
    }
}

/// The number that a quarter of them are smaller than.
fn lower_quartile(mut numbers: Vec<f64>) -> Option<f64> {
    let at = numbers.len() / 4;
    (!numbers.is_empty()).then(|| *numbers.select_nth_unstable_by(at, f64::total_cmp).1)
}
