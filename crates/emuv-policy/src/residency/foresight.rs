//! What comes next, and how well each kind of work reads from RAM: learned from what has happened.
//!
//! Programs repeat: training steps, tokens, layers. The log of works is followed at the place of the past that
//! corresponds to now; what came after that place is the forecast (which chunks come next: `history.rs`).
//!
//! A work that uses what it used long ago (weights) says where the place is; works on what has just been made (activations)
//! do not, so they only confirm it. How long "long ago" is follows from the length of the loop.
//!
//! The forecast is believed while it comes true, by bytes. A loop is foreseen from its second round on, a change of phase
//! is noticed soon, and what never repeats is never foreseen. What repeats in part (layers whose experts nobody can foresee) begins to
//! come true again and again, and then does not: each time the next beginning must come true for longer before it is believed.

use std::{collections::VecDeque, ops::Range};

use super::seen::Seen;
use crate::hash::{FastMap, mix};

/// A work identifies its place in the loop if it touches what the same kind of work touched at least this part (one in
/// so many) of the loop's length ago.
const IDENTIFIES: f64 = 2.0;

/// Works on both sides of the expected place among which one that comes early or late is looked for.
pub(super) const NEAR: u64 = 8;

/// How much of the past a work leaves in the averages: what came a few hundred works ago does not count.
const DECAY: f64 = 1.0 - 1.0 / 64.0;

/// The same for the length of the loop.
const SLOW_DECAY: f64 = 1.0 - 1.0 / 4096.0;

/// The part of the bytes that must have been foreseen for the forecast to be believed.
const BELIEVED: f64 = 0.6;

/// For so many works a beginning must come true, once one has disappointed.
const LEAST_PATIENCE: u64 = 4;

/// Works that are remembered.
const LOG_WORKS: usize = 1 << 16;

/// So many works are noted together ([`Foresight::catch_up`]) at the latest.
const NOTED_TOGETHER: u64 = 128;

/// The link's speed until it has been measured: PCIe 4 x16, in bytes per microsecond.
const USUAL_LINK: f64 = 25_000.0;

/// The part of the link's speed from which on a work is taken to read each byte about once.
const READ_ONCE: f64 = 0.6;

/// The same where nothing is foreseen: what is brought may be gone before it is used again, and pushes something else out.
const READ_ONCE_UNFORESEEN: f64 = 0.3;

/// A kind that was only timed beside copies is timed again where there are none, or after so many runs.
const RUNS_UNSURE: u32 = 16;

/// A work that seems so much faster than the link has not read all of its data in RAM. (Optimizers seem a quarter faster: they take several
/// works for one tensor, each of which touches all of it.)
const FASTER_THAN_LINK: f64 = 1.4;

/// What a work takes at least, and what it does in VRAM: for estimates of when things happen in a round.
const WORK_US: f64 = 5.0;
const WORK_BYTES_PER_US: f64 = 2.0e6;

/// How a kind of work does with data in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// About as fast as the link: it reads each byte about once, so moving the data first gains nothing.
    InPlace,
    /// Slower: it is better off with its data in VRAM.
    Move,
}

/// Numbers extents in the order in which they are made; none comes twice.
pub type ExtentId = u64;

#[derive(Debug, Clone, Copy)]
struct Entry {
    kind: u64,
    /// Number of its first touch, counted from the beginning.
    first_touch: u64,
    touches: u32,
    /// How many extents had been made when it began.
    made: u64,
    bytes: u64,
}

/// How works of a kind do that began with data in RAM.
#[derive(Debug, Default, Clone, Copy)]
struct Timing {
    runs: u32,
    /// Of those that were timed.
    read: Read,
    /// Of those beside which data was copied to VRAM, which took its part of the link.
    shared: Read,
    /// The traffic when the one that is being timed began.
    began: Traffic,
}

impl Timing {
    /// It was only timed beside copies.
    fn is_unsure(&self) -> bool {
        self.read.micros == 0.0 && self.shared.micros > 0.0
    }
}

/// Copies to VRAM so far: how many have begun, and how many of those are under way.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Ever.
    pub begun: u64,
    /// Now.
    pub under_way: usize,
}

/// Bytes, and the microseconds that they took.
#[derive(Debug, Default, Clone, Copy)]
struct Read {
    bytes: f64,
    micros: f64,
}

impl Read {
    fn rate(self) -> Option<f64> {
        (self.micros > 0.0).then(|| self.bytes / self.micros)
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Foresight {
    log: VecDeque<Entry>,
    /// Position of the log's first entry, counted from the beginning.
    base: u64,
    touches: VecDeque<ExtentId>,
    touches_base: u64,
    next_extent: ExtentId,
    /// By kind of work and extent: where they were seen together last, of the works before `noted`.
    seen: Seen,
    noted: u64,
    /// The position in the past that corresponds to the last work.
    follow: Option<u64>,
    /// How often the forecast has begun, ended, or gone on elsewhere.
    turns: u64,
    /// Where it began to come true, and for how many works it must before it is believed.
    begun: u64,
    patience: u64,
    /// Averages: bytes that were foreseen, bytes touched; how long ago works' likes came, its square.
    foreseen: f64,
    touched: f64,
    gaps: f64,
    squared_gaps: f64,
    /// By kind of work.
    timings: FastMap<u64, Timing>,
    link: Option<f64>,
}

impl Foresight {
    /// An extent has been made.
    pub fn born(&mut self) -> ExtentId {
        let id = self.next_extent;
        self.next_extent += 1;
        id
    }

    /// How many works have begun: the position of the next one.
    pub fn position(&self) -> u64 {
        self.base + self.log.len() as u64
    }

    /// A work begins that touches these extents, `bytes` of them.
    pub fn note(&mut self, kind: u64, extents: &[ExtentId], bytes: u64) {
        let position = self.position();
        let first_touch = self.touches_base + self.touches.len() as u64;
        let touches = u32::try_from(extents.len()).unwrap_or(u32::MAX);
        self.log.push_back(Entry { kind, first_touch, touches, made: self.next_extent, bytes });
        self.touches.extend(extents);
        let expected = self.place().map(|place| place + 1);
        let held_works = expected.map(|_| position - self.begun);
        self.advance(position, kind, bytes);
        if let Some(works) = held_works {
            self.learn_patience(works, position);
        }
        self.turns += u64::from(match (expected, self.place()) {
            (Some(expected), Some(place)) => place.abs_diff(expected) > NEAR,
            (expected, place) => expected.is_some() != place.is_some(),
        });
        if self.log.len() > LOG_WORKS {
            self.drop_oldest();
        }
    }

    #[allow(clippy::cast_precision_loss)] // Averages.
    fn advance(&mut self, position: u64, kind: u64, bytes: u64) {
        let next = self.follow.map(|follow| follow + 1).filter(|next| *next < position);
        let hit = next.is_some_and(|next| self.agrees(next, position));
        // Where the works' likes were is only asked for where the forecast has failed.
        let is_asked = !hit || self.noted + NOTED_TOGETHER <= position;
        let befores = if is_asked { self.catch_up() } else { Vec::new() };
        self.foreseen = self.foreseen * DECAY + if hit { bytes as f64 } else { 0.0 };
        self.touched = self.touched * DECAY + bytes as f64;
        if hit {
            self.follow = next;
            return;
        }
        // Where it came last, but not in this round already.
        let long_ago = |before: &u64| (position - before) as f64 * IDENTIFIES >= self.length();
        let identified = befores.into_iter().filter(long_ago).max();
        // A work more or less than last time.
        let near = next.and_then(|next| {
            let places = (1..=NEAR).flat_map(|by| [Some(next + by), next.checked_sub(by)]).flatten();
            places.filter(|place| *place < position).find(|place| self.agrees(*place, position))
        });
        self.follow = if self.place().is_some() {
            // The same on other memory: it goes on here all the same.
            let same = next.filter(|next| self.entry(*next).is_some_and(|entry| entry.kind == kind));
            near.or(same).or(identified).or(next)
        } else {
            if identified.is_some() {
                // Another beginning: to be judged by what comes now.
                (self.foreseen, self.touched) = (0.0, 0.0);
                self.begun = position;
            }
            identified.or(near).or(next)
        };
    }

    /// Notes where the last works were seen. Many at a time: what that needs is not in the caches, and then is. Gives where the last one's
    /// likes were before.
    #[allow(clippy::cast_precision_loss)] // Averages.
    pub fn catch_up(&mut self) -> Vec<u64> {
        let mut befores = Vec::new();
        let now = self.position();
        for position in std::mem::replace(&mut self.noted, now)..now {
            befores.clear();
            let Some(&entry) = self.entry(position) else { continue };
            for at in self.touches_of(&entry) {
                let Some(extent) = self.touches.get(at) else { break };
                let before = self.seen.insert(mix(entry.kind ^ mix(*extent)), position);
                let Some(before) = before.filter(|before| *before >= self.base) else { continue };
                let gap = (position - before) as f64;
                self.gaps = self.gaps * SLOW_DECAY + gap;
                self.squared_gaps = self.squared_gaps * SLOW_DECAY + gap * gap;
                befores.push(before);
            }
        }
        befores
    }

    /// A forecast was believed that had come true for so many works, and this is how it went on: one that does not hold for a round makes
    /// what comes next wait for longer, one that does is forgiven.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Numbers of works.
    fn learn_patience(&mut self, works: u64, position: u64) {
        let is_over = self.place().is_none();
        if !is_over && self.patience == 0 {
            return;
        }
        // How long a round is has to be known as of now.
        self.catch_up();
        let round = self.length() as u64;
        if is_over {
            self.begun = position;
        }
        if is_over && works < round {
            self.patience = (2 * self.patience).clamp(LEAST_PATIENCE, (round / 4).max(LEAST_PATIENCE));
        } else if !is_over && works >= round {
            self.patience = 0;
        }
    }

    /// Whether the work at `then` is the one at `now`, a round earlier: of the same kind, on the same extents as far as
    /// those lived then. One may name some that the other does not: in what a program passes to a kernel there may be places that
    /// it does not use, with addresses that happen to be left there.
    fn agrees(&self, then: u64, now: u64) -> bool {
        let (Some(a), Some(b)) = (self.entry(then), self.entry(now)) else { return false };
        if a.kind != b.kind || (a.touches == 0) != (b.touches == 0) {
            return false;
        }
        let same = |before: ExtentId, after: ExtentId| before == after || after >= a.made;
        let (mut before, mut after) = (self.extents(a), self.extents(b));
        if a.touches <= b.touches {
            before.all(|before| after.any(|after| same(before, after)))
        } else {
            after.all(|after| before.any(|before| same(before, after)))
        }
    }

    fn extents(&self, entry: &Entry) -> impl Iterator<Item = ExtentId> {
        self.touches_of(entry).filter_map(|at| self.touches.get(at).copied())
    }

    /// Which of the touches are the entry's.
    fn touches_of(&self, entry: &Entry) -> Range<usize> {
        let from = usize::try_from(entry.first_touch.saturating_sub(self.touches_base)).unwrap_or(usize::MAX);
        from..from.saturating_add(entry.touches as usize)
    }

    /// About how many works the loop has: the mean distance of a work to its like, by distance. A work that comes once a
    /// round counts as much as all those together that come many times.
    fn length(&self) -> f64 {
        if self.gaps > 0.0 { self.squared_gaps / self.gaps } else { 0.0 }
    }

    /// Where to read the forecast, if it is to be believed: the position in the past that corresponds to the last work.
    pub fn place(&self) -> Option<u64> {
        let is_due = self.position() >= self.begun + self.patience;
        self.follow.filter(|_| is_due && self.foreseen > 0.0 && self.foreseen >= self.touched * BELIEVED)
    }

    fn drop_oldest(&mut self) {
        let Some(entry) = self.log.pop_front() else { return };
        self.touches.drain(..entry.touches as usize);
        self.touches_base += u64::from(entry.touches);
        self.base += 1;
        if self.follow.is_some_and(|follow| follow < self.base) {
            self.follow = None;
        }
    }

    fn entry(&self, position: u64) -> Option<&Entry> {
        self.log.get(usize::try_from(position.checked_sub(self.base)?).ok()?)
    }

    /// How many works the loop that is foreseen has.
    pub fn period(&self) -> Option<u64> {
        self.place().map(|place| self.position() - 1 - place)
    }

    /// How often the forecast has begun, ended, or gone on elsewhere: what was foreseen before that does not hold.
    pub fn turns(&self) -> u64 {
        self.turns
    }

    /// When the works behind `place` began, up to the next one to come: estimated with everything in VRAM, in microseconds.
    #[allow(clippy::cast_precision_loss)] // An estimate.
    pub fn times(&self, place: u64) -> Vec<f64> {
        let first = usize::try_from((place + 1).saturating_sub(self.base)).unwrap_or(usize::MAX);
        let mut now = 0.0;
        let mut times = vec![now];
        for entry in self.log.iter().skip(first) {
            now += WORK_US + entry.bytes as f64 / WORK_BYTES_PER_US;
            times.push(now);
        }
        times
    }

    /// What a work of the log did.
    pub fn kind_at(&self, position: u64) -> Option<u64> {
        Some(self.entry(position)?.kind)
    }

    /// How fast a work of the log reads from RAM, in bytes per microsecond, if that is known.
    pub fn rate_at(&self, position: u64) -> Option<f64> {
        self.rate(self.kind_at(position)?)
    }

    /// The link's speed as far as it is known, in bytes per microsecond.
    pub fn link(&self) -> f64 {
        self.link.unwrap_or(USUAL_LINK)
    }

    /// The link's speed into VRAM, in bytes per microsecond.
    pub fn set_link(&mut self, bytes_per_micro: f64) {
        self.link = Some(bytes_per_micro);
    }

    /// How a kind of work does with data in RAM; `None`: not known yet.
    pub fn manner(&self, kind: u64) -> Option<Manner> {
        let part = if self.place().is_some() { READ_ONCE } else { READ_ONCE_UNFORESEEN };
        let read_once = part * self.link();
        Some(if self.rate(kind)? >= read_once { Manner::InPlace } else { Manner::Move })
    }

    fn rate(&self, kind: u64) -> Option<f64> {
        let timing = self.timings.get(&kind)?;
        // Alone it might have had twice as much of the link. By a plan that will be seen: what it reads in place needs no copies.
        let most = if self.place().is_some() { 2.0 } else { 1.0 };
        timing.read.rate().or_else(|| Some((most * timing.shared.rate()?).min(self.link())))
    }

    /// A work of that kind begins with data in RAM. Whether it is to be timed: ever more rarely, but what lies in RAM today need not
    /// be what lay there when the kind was timed first.
    pub fn is_to_be_timed(&mut self, kind: u64, traffic: Traffic) -> bool {
        let timing = self.timings.entry(kind).or_default();
        timing.runs = timing.runs.saturating_add(1);
        let worth = traffic.under_way == 0 || timing.runs.is_multiple_of(RUNS_UNSURE);
        let timed = timing.runs.is_power_of_two() || timing.is_unsure() && worth;
        if timed {
            timing.began = traffic;
        }
        timed
    }

    /// A work of that kind took `micros` with `ram_bytes` of what it touches in RAM; `traffic`: behind it. One that was faster than
    /// the link has not read all that lay there (a workspace, say), which tells nothing. Whether the kind was unknown before, or only guessed at.
    pub fn measured(&mut self, kind: u64, ram_bytes: u64, micros: f64, traffic: Traffic) -> bool {
        #[allow(clippy::cast_precision_loss)] // A rate: the first digits count.
        let (bytes, micros) = (ram_bytes as f64, micros.max(1.0));
        if self.link.is_some_and(|link| bytes > micros * link * FASTER_THAN_LINK) {
            return false;
        }
        let timing = self.timings.entry(kind).or_default();
        let shared = timing.began.under_way > 0 || traffic.begun > timing.began.begun;
        let news = timing.read.micros == 0.0 && (!shared || timing.shared.micros == 0.0);
        let read = if shared { &mut timing.shared } else { &mut timing.read };
        read.bytes += bytes;
        read.micros += micros;
        news
    }
}

#[cfg(test)]
mod tests;
