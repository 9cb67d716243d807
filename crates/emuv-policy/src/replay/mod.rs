//! A recorded program, to be run again on the machine in virtual time: what it allocated, freed and gave the GPU, in
//! order, apart from where its memory lay.

mod reader;

use std::collections::{HashMap, HashSet};

use crate::{
    GRANULE, PoolId, StreamId, StreamPools, Waste, block_bytes,
    chunk::{Rooms, place},
    machine::{GpuWork, Op},
    trace::Event,
};

use reader::Reader;

const POOL: PoolId = PoolId(1);
const STREAM: StreamId = StreamId(1);

/// How much slower than the link a kind of work reads RAM of which nothing is known.
const UNKNOWN_SLOWNESS: f64 = 6.0;

/// A work takes at least so long, in microseconds.
const WORK_US: f64 = 3.0;

/// Works of a round that are compared to find how long a round is.
const COMPARED: usize = 400;

/// So many works in a row that differ end a loop.
const FEW: usize = 8;

/// Names an allocation of the program.
type Name = u32;

#[derive(Debug, Clone, PartialEq)]
enum Call {
    Allocate(Name, u64),
    Free(Name),
    Work { kind: u64, touches: Vec<Name>, everything: bool },
}

/// A program's loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounds {
    /// The first work of the first round.
    pub first_work: usize,
    /// Works of a round.
    pub works: usize,
    /// How many rounds there are.
    pub count: usize,
}

impl Rounds {
    fn begins_at(&self, work: usize) -> bool {
        work.checked_sub(self.first_work)
            .is_some_and(|since| since.is_multiple_of(self.works) && since <= self.count * self.works)
    }
}

/// See the module's head.
#[derive(Debug, Clone, Default)]
pub struct Program {
    calls: Vec<Call>,
    /// By kind: how much slower than the link it reads RAM.
    slowness: HashMap<u64, f64>,
    /// Allocations that hold the same from when they are filled until they are freed, whatever works do.
    constant: HashSet<Name>,
    /// Of each work.
    times: Vec<Times>,
    rounds: Option<Rounds>,
}

/// How long a work takes, in microseconds.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// The GPU, with everything in VRAM.
    micros: f64,
    /// The program's host, until it is ready to issue the next one.
    issue_us: f64,
}

impl Program {
    /// Reads the events of a trace.
    pub fn from_trace(events: impl Iterator<Item = (u64, Event)>) -> Self {
        let mut reader = Reader::default();
        for (time, event) in events {
            reader.event(time, event);
        }
        let (micros, issue_us) = (reader.durations(), reader.issue_us());
        let mut program = Self {
            slowness: reader.slowness(&micros),
            constant: reader.constant(),
            times: micros.into_iter().map(|micros| Times { micros, issue_us }).collect(),
            calls: std::mem::take(&mut reader.calls),
            rounds: None,
        };
        program.rounds = program.find_rounds();
        if let Some(rounds) = program.rounds {
            let works =
                |round: usize| rounds.first_work + round * rounds.works..rounds.first_work + (round + 1) * rounds.works;
            let mut took: Vec<f64> =
                (0..rounds.count).filter_map(|round| reader.undisturbed_micros(works(round))).collect();
            took.sort_by(f64::total_cmp);
            if let Some(took) = took.get(took.len() / 2).filter(|took| **took > 0.0) {
                let factor = took / program.round_micros();
                program.times.iter_mut().for_each(|times| times.micros *= factor);
                let issue_us = reader.issue_us_of(rounds);
                // The host takes no longer than the round: what is more was waiting.
                let factor = (took / issue_us.iter().sum::<f64>()).min(1.0);
                for round in 0..rounds.count {
                    let there = program.times[works(round)].iter_mut().zip(&issue_us);
                    there.for_each(|(times, issue_us)| times.issue_us = issue_us * factor);
                }
            }
        }
        program
    }

    /// How long a round takes with everything in VRAM, as far as the works go, in microseconds.
    pub fn round_micros(&self) -> f64 {
        let sum = |times: &[Times]| times.iter().map(|times| times.micros).sum();
        let Some(rounds) = self.rounds else { return sum(&self.times) };
        let end = rounds.first_work + rounds.count * rounds.works;
        sum(&self.times[end - rounds.works..end])
    }

    /// How many works it gives the GPU.
    pub fn works(&self) -> usize {
        self.times.len()
    }

    /// Kinds of work of which it is known how they read from RAM, and all kinds.
    pub fn kinds_measured(&self) -> (usize, usize) {
        let kind = |call: &Call| if let Call::Work { kind, .. } = call { Some(*kind) } else { None };
        let kinds: HashSet<u64> = self.calls.iter().filter_map(kind).collect();
        (kinds.iter().filter(|kind| self.slowness.contains_key(kind)).count(), kinds.len())
    }

    /// The most memory that it held at once, in bytes, as emuV cuts it.
    pub fn peak_bytes(&self) -> u64 {
        let (mut live, mut peak) = (0_u64, 0);
        let mut sizes = HashMap::new();
        for call in &self.calls {
            match call {
                Call::Allocate(name, bytes) => {
                    let size = block_bytes(*bytes).max(GRANULE);
                    sizes.insert(*name, size);
                    live = live.saturating_add(size);
                    peak = peak.max(live);
                }
                Call::Free(name) => live = live.saturating_sub(sizes.remove(name).unwrap_or(0)),
                Call::Work { .. } => {}
            }
        }
        peak
    }

    /// Where it repeats itself: its works do the same, on the same memory as far as that was there before. `None`: nowhere.
    pub fn rounds(&self) -> Option<Rounds> {
        self.rounds
    }

    fn find_rounds(&self) -> Option<Rounds> {
        let works = self.signatures();
        // The last works of a program often belong to no round.
        let end = works.len() - works.len() / 16;
        let compared = COMPARED.min(end / 3);
        let like = |now: usize, period: usize| works[now].is_like(&works[now - period], now - period);
        let repeats = |period: &usize| {
            let alike = (1..=compared).filter(|back| like(end - back, *period)).count();
            alike * 100 >= compared * 95
        };
        // From there as far as it goes, over a few works that differ.
        let extent = |period: usize| {
            let mut last = end;
            while last < works.len() && (last..works.len().min(last + FEW)).any(|now| like(now, period)) {
                last += 1;
            }
            let mut first = end;
            while first > period && (first.saturating_sub(FEW).max(period)..first).any(|now| like(now, period)) {
                first -= 1;
            }
            let count = (last - (first - period)) / period;
            Rounds { first_work: last - count * period, works: period, count }
        };
        // A part of a round may resemble another part. The loop is what makes up half of the program, or else as much as any.
        let covers = |rounds: &Rounds| rounds.count * rounds.works;
        let mut longest: Option<Rounds> = None;
        for period in ((compared / 4).max(1)..end - compared).filter(|period| compared > 0 && repeats(period)) {
            let rounds = extent(period);
            if covers(&rounds) * 2 >= works.len() {
                return Some(rounds);
            }
            longest = longest.filter(|longest| covers(longest) >= covers(&rounds)).or(Some(rounds));
        }
        longest
    }

    fn signatures(&self) -> Vec<Signature> {
        let mut made: HashMap<Name, usize> = HashMap::new();
        let mut works = Vec::new();
        for call in &self.calls {
            match call {
                Call::Allocate(name, _) => {
                    made.insert(*name, works.len());
                }
                Call::Free(_) => {}
                // Names are given in order, so the smallest one is what has been there for longest.
                Call::Work { kind, touches, .. } => {
                    let oldest = touches.iter().min().copied();
                    let made = oldest.and_then(|oldest| made.get(&oldest).copied());
                    works.push(Signature { kind: *kind, oldest, made });
                }
            }
        }
        works
    }

    /// The same program with its loop run so many times, and what comes behind the loop left out. Rounds are the recorded
    /// ones as far as they go, then the last of them over and over. `None`: there is no loop, or its rounds differ in what
    /// they allocate.
    pub fn repeated(&self, count: usize) -> Option<Self> {
        let rounds = self.rounds?;
        let starts = self.call_of_works();
        let start_of = |round: usize| starts[rounds.first_work + round * rounds.works];
        let mut program = self.clone();
        program.rounds = Some(Rounds { count, ..rounds });
        if count <= rounds.count {
            program.calls.truncate(start_of(count));
            program.times.truncate(rounds.first_work + count * rounds.works);
            return Some(program);
        }
        // The last of two rounds that do alike: the very last often ends otherwise.
        let calls = |round: usize| &self.calls[start_of(round)..start_of(round + 1)];
        let alike = |round: &usize| {
            let (last, before) = (calls(*round), calls(*round - 1));
            last.len() == before.len() && last.iter().zip(before).all(|(a, b)| a.is_like(b))
        };
        let round = (1..rounds.count).rev().find(alike)?;
        let (last, last_but_one) = (calls(round), calls(round - 1));
        let last_work = rounds.first_work + (round + 1) * rounds.works;
        program.calls.truncate(start_of(round + 1));
        program.times.truncate(last_work);
        let mut next = self.calls.iter().filter_map(|call| call.made()).max().map_or(0, |name| name + 1);
        // What each call of the round before, and of this one, has made.
        let made = |calls: &[Call]| calls.iter().map(Call::made).collect::<Vec<_>>();
        let (here, there) = (at(&made(last)), at(&made(last_but_one)));
        let mut previous = made(last);
        for _ in round + 1..count {
            let mut now = Vec::with_capacity(last.len());
            for call in last {
                now.push(call.made().map(|_| next));
                next += Name::from(call.made().is_some());
                let renamed = |name: &Name| match (here.get(name), there.get(name)) {
                    (Some(at), _) => now.get(*at).copied().flatten().unwrap_or(*name),
                    (None, Some(at)) => previous[*at].unwrap_or(*name),
                    (None, None) => *name,
                };
                program.calls.push(call.renamed(renamed));
            }
            program.times.extend(&self.times[last_work - rounds.works..last_work]);
            previous = now;
        }
        Some(program)
    }

    /// For each work, and the end: which call it is.
    fn call_of_works(&self) -> Vec<usize> {
        let is_work = |(_, call): &(usize, &Call)| matches!(call, Call::Work { .. });
        let works = self.calls.iter().enumerate().filter(is_work).map(|(at, _)| at);
        works.chain([self.calls.len()]).collect()
    }

    /// What the machine is to do, with rounds marked: the program's calls, with memory from a pool like emuV's own that
    /// may hold `most_bytes` (VRAM and RAM).
    pub fn ops(&self, most_bytes: u64) -> Vec<Op> {
        let mut memory = Memory { most_bytes, ..Memory::default() };
        memory.pools.keep_tight();
        let mut ops = Vec::new();
        let mut work = 0;
        for call in &self.calls {
            match call {
                Call::Allocate(name, bytes) => {
                    let at = memory.allocate(*name, *bytes, &mut ops);
                    if self.constant.contains(name) {
                        ops.push(Op::Constant { offset: at });
                    }
                }
                Call::Free(name) => memory.free(*name, &mut ops),
                Call::Work { kind, touches, everything } => {
                    if self.rounds.is_some_and(|rounds| rounds.begins_at(work)) {
                        ops.push(Op::Round);
                    }
                    let Times { micros, issue_us } = self.times[work];
                    ops.push(Op::Work(GpuWork {
                        chunks: touches.iter().filter_map(|name| memory.places.get(name)).copied().collect(),
                        micros,
                        issue_us,
                        kind: *kind,
                        everything: *everything,
                        slowness: self.slowness_of(*kind),
                    }));
                    work += 1;
                }
            }
        }
        if self.rounds.is_some_and(|rounds| rounds.begins_at(work)) {
            ops.push(Op::Round);
        }
        ops
    }

    /// How much slower than the link a kind of work reads RAM.
    fn slowness_of(&self, kind: u64) -> f64 {
        // A copy, or memory that is set: the link's own business.
        if kind == 0 { 1.0 } else { self.slowness.get(&kind).copied().unwrap_or(UNKNOWN_SLOWNESS) }
    }
}

/// What tells whether two works do the same.
#[derive(Debug, Clone, Copy)]
struct Signature {
    kind: u64,
    /// What it touches that has been there for longest, and how many works came before that was made.
    oldest: Option<Name>,
    made: Option<usize>,
}

impl Signature {
    /// Whether it does what the earlier work `then` does.
    fn is_like(&self, then: &Self, position: usize) -> bool {
        let was_there = self.made.is_some_and(|made| made <= position);
        self.kind == then.kind && (self.oldest == then.oldest || (self.oldest.is_some() && !was_there))
    }
}

impl Call {
    fn made(&self) -> Option<Name> {
        if let Self::Allocate(name, _) = self { Some(*name) } else { None }
    }

    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            // A pool gives a little more now and then.
            (Self::Allocate(_, bytes), Self::Allocate(_, others)) => bytes.abs_diff(*others) <= bytes / 8,
            (Self::Free(_), Self::Free(_)) => true,
            (Self::Work { kind, .. }, Self::Work { kind: others, .. }) => kind == others,
            _ => false,
        }
    }

    fn renamed(&self, renamed: impl Fn(&Name) -> Name) -> Self {
        match self {
            Self::Allocate(name, bytes) => Self::Allocate(renamed(name), *bytes),
            Self::Free(name) => Self::Free(renamed(name)),
            Self::Work { kind, touches, everything } => {
                Self::Work { kind: *kind, touches: touches.iter().map(renamed).collect(), everything: *everything }
            }
        }
    }
}

/// Where each of these is.
fn at(names: &[Option<Name>]) -> HashMap<Name, usize> {
    names.iter().enumerate().filter_map(|(at, name)| name.map(|name| (name, at))).collect()
}

/// The program's memory when it is run again.
#[derive(Default)]
struct Memory {
    /// VRAM and RAM.
    most_bytes: u64,
    mapped_bytes: u64,
    next: u64,
    pools: StreamPools,
    places: HashMap<Name, u64>,
    sizes: HashMap<u64, u64>,
}

impl Memory {
    /// Gives where it is.
    fn allocate(&mut self, name: Name, bytes: u64, ops: &mut Vec<Op>) -> u64 {
        let size = block_bytes(bytes).max(GRANULE);
        let fits = self.mapped_bytes.saturating_add(size) <= self.most_bytes;
        let mut taken = self.pools.take(POOL, STREAM, size, Waste::Little, &|_| true);
        if taken.is_none() && !fits {
            taken = self.pools.take(POOL, STREAM, size, Waste::Any, &|_| true).or_else(|| {
                let freed = self.pools.clocks.freed(STREAM);
                self.pools.clocks.settled(STREAM, freed);
                for gone in self.pools.trim_bytes(size) {
                    self.mapped_bytes -= self.sizes.remove(&gone).unwrap_or(0);
                    ops.push(Op::Unmap { offset: gone });
                }
                None
            });
        }
        let at = taken.unwrap_or_else(|| {
            let rooms = Rooms { vram: u64::MAX, ram: 0, vram_reserve: 0 };
            let chunks = place(self.next, size, rooms).unwrap_or_default();
            let chunks: Vec<(u64, u64)> = chunks.iter().map(|chunk| (chunk.offset, chunk.bytes)).collect();
            let start = self.next;
            for &(offset, bytes) in &chunks {
                ops.push(Op::Map { offset, bytes });
                self.sizes.insert(offset, bytes);
                self.mapped_bytes += bytes;
                self.next = offset + bytes;
            }
            self.pools.add(POOL, start, size, &chunks);
            start
        });
        self.places.insert(name, at);
        ops.push(Op::Allocate { offset: at, bytes: size });
        at
    }

    fn free(&mut self, name: Name, ops: &mut Vec<Op>) {
        if let Some(at) = self.places.remove(&name) {
            ops.push(Op::Free { offset: at });
            self.pools.give(at, Some(STREAM));
        }
    }
}

/// Sizes and times as numbers to calculate with.
#[allow(clippy::cast_precision_loss)] // Far below 2^52.
fn precise(number: u64) -> f64 {
    number as f64
}
