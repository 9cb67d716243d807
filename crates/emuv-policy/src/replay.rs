//! A recorded program, to be run again on the machine in virtual time: what it allocated, freed and gave the GPU, in
//! order, apart from where its memory lay.

use std::collections::{HashMap, HashSet};

use crate::{
    Block, GRANULE, PoolId, StreamId, StreamPools, Waste, block_bytes,
    chunk::{Rooms, place},
    machine::{GpuWork, Op},
    trace::Event,
};

const POOL: PoolId = PoolId(1);
const STREAM: StreamId = StreamId(1);

/// How much slower than the link a kind of work reads RAM of which nothing is known.
const UNKNOWN_SLOWNESS: f64 = 6.0;

/// A work takes at least so long, in microseconds.
const WORK_US: f64 = 3.0;

/// Works of a round that are compared to find how long a round is.
const COMPARED: usize = 400;

/// Names an allocation of the program.
type Name = u32;

#[derive(Debug, Clone, PartialEq)]
enum Call {
    Allocate(Name, u64),
    Free(Name),
    Work { kind: u64, touches: Vec<Name>, everything: bool },
}

/// See the module's head.
#[derive(Debug, Clone, Default)]
pub struct Program {
    calls: Vec<Call>,
    /// By kind: how much slower than the link it reads RAM.
    slowness: HashMap<u64, f64>,
    /// How long each work takes with everything in VRAM, in microseconds.
    micros: Vec<f64>,
}

impl Program {
    /// Reads the events of a trace.
    pub fn from_trace(events: impl Iterator<Item = (u64, Event)>) -> Self {
        let mut program = Self::default();
        let mut reader = Reader::default();
        let mut link = 25_000.0;
        for (time, event) in events {
            match event {
                Event::Chunk { offset, bytes, .. } => {
                    reader.chunks.insert(offset, bytes);
                }
                Event::Removed { offset } => {
                    reader.chunks.remove(&offset);
                }
                Event::Extent { offset, bytes } => {
                    let name = reader.allocate(offset, bytes);
                    program.calls.push(Call::Allocate(name, bytes));
                }
                Event::Freed { offset } => {
                    if let Some(name) = reader.free(offset) {
                        program.calls.push(Call::Free(name));
                    }
                }
                Event::Begun { kind, flags, chunks, number, stream } => {
                    let mut seen = HashSet::new();
                    let names = chunks.iter().filter_map(|offset| reader.owner.get(offset).copied());
                    let touches: Vec<Name> = names.filter(|name| seen.insert(*name)).collect();
                    reader.begun(stream, number, chunks.iter().filter_map(|chunk| reader.chunks.get(chunk)).sum());
                    program.calls.push(Call::Work { kind, touches, everything: flags.everything });
                }
                Event::Completed { stream, number } => reader.completed(time, stream, number),
                Event::Link { bytes_per_milli } => link = precise(bytes_per_milli) / 1e3,
                Event::Measured { kind, ram_bytes, micros } => {
                    program.slowness.insert(kind, (precise(micros) * link / precise(ram_bytes.max(1))).max(1.0));
                }
                _ => {}
            }
        }
        program.micros = reader.durations();
        program
    }

    /// How long a round takes with everything in VRAM, as far as the works go, in microseconds.
    pub fn round_micros(&self) -> f64 {
        let period = self.period().unwrap_or(self.micros.len());
        self.micros[self.micros.len() - period..].iter().sum()
    }

    /// How many works make a round at the end of the program: they do the same, on the same memory as far as that was there
    /// before. `None`: it does not repeat itself.
    pub fn period(&self) -> Option<usize> {
        let mut made: HashMap<Name, usize> = HashMap::new();
        let mut works: Vec<(u64, Option<Name>)> = Vec::new();
        for call in &self.calls {
            match call {
                Call::Allocate(name, _) => {
                    made.insert(*name, works.len());
                }
                Call::Free(_) => {}
                // Names are given in order, so the smallest one is what has been there for longest.
                Call::Work { kind, touches, .. } => works.push((*kind, touches.iter().min().copied())),
            }
        }
        // The last works of a program often belong to no round.
        let end = works.len() - works.len() / 16;
        let compared = COMPARED.min(end / 3);
        let like = |now: usize, then: usize| {
            let ((kind, old), (kind_then, old_then)) = (works[now], works[then]);
            kind == kind_then
                && (old == old_then || old.is_some_and(|old| made.get(&old).is_none_or(|made| *made > then)))
        };
        let repeats = |period: &usize| {
            let alike = (1..=compared).filter(|back| like(end - back, end - back - period)).count();
            alike * 100 >= compared * 95
        };
        (compared > 0).then(|| (compared / 4..end - compared).find(repeats)).flatten()
    }

    /// What the machine is to do, with rounds marked: the program's calls, with memory from a pool like emuV's own that
    /// may hold `most_bytes` (VRAM and RAM).
    pub fn ops(&self, most_bytes: u64) -> Vec<Op> {
        let mut memory = Memory { most_bytes, ..Memory::default() };
        let period = self.period().unwrap_or(usize::MAX);
        let works = self.micros.len();
        let mut ops = Vec::new();
        let mut work = 0;
        for call in &self.calls {
            match call {
                Call::Allocate(name, bytes) => memory.allocate(*name, *bytes, &mut ops),
                Call::Free(name) => memory.free(*name, &mut ops),
                Call::Work { kind, touches, everything } => {
                    if (works - work).is_multiple_of(period) {
                        ops.push(Op::Round);
                    }
                    ops.push(Op::Work(GpuWork {
                        chunks: touches.iter().filter_map(|name| memory.places.get(name)).copied().collect(),
                        micros: self.micros[work],
                        kind: *kind,
                        everything: *everything,
                        slowness: self.slowness.get(kind).copied().unwrap_or(UNKNOWN_SLOWNESS),
                    }));
                    work += 1;
                }
            }
        }
        ops
    }
}

/// What is where while a trace is read.
#[derive(Default)]
struct Reader {
    /// Chunk -> its size.
    chunks: HashMap<u64, u64>,
    /// Chunk -> whose it is.
    owner: HashMap<u64, Name>,
    /// Start of an allocation -> its name and its chunks.
    allocations: HashMap<u64, (Name, Vec<u64>)>,
    next: Name,
    /// Of each work: bytes that it touches, stream and number.
    works: Vec<(f64, StreamId, u64)>,
    /// Of each work, as far as known: when it was done.
    done: Vec<Option<u64>>,
    not_done: HashMap<StreamId, Vec<usize>>,
}

impl Reader {
    fn allocate(&mut self, offset: u64, bytes: u64) -> Name {
        let name = self.next;
        self.next += 1;
        let mut chunks = Vec::new();
        let mut at = offset;
        while at < offset + bytes {
            let Some(size) = self.chunks.get(&at) else { break };
            chunks.push(at);
            self.owner.insert(at, name);
            at += size;
        }
        self.allocations.insert(offset, (name, chunks));
        name
    }

    fn free(&mut self, offset: u64) -> Option<Name> {
        let (name, chunks) = self.allocations.remove(&offset)?;
        for chunk in chunks {
            self.owner.remove(&chunk);
        }
        Some(name)
    }

    fn begun(&mut self, stream: StreamId, number: u64, bytes: u64) {
        self.not_done.entry(stream).or_default().push(self.works.len());
        self.works.push((precise(bytes), stream, number));
        self.done.push(None);
    }

    fn completed(&mut self, time: u64, stream: StreamId, number: u64) {
        let works = &self.works;
        for work in self.not_done.entry(stream).or_default().extract_if(.., |work| works[*work].2 <= number) {
            self.done[work] = Some(time);
        }
    }

    /// How long each work took: what lies between two moments at which works were known to be done is divided among the
    /// works of that time, by what they touch.
    fn durations(&self) -> Vec<f64> {
        let weight = |bytes: f64| WORK_US + bytes / 2e6;
        let mut durations: Vec<f64> = self.works.iter().map(|(bytes, ..)| weight(*bytes)).collect();
        let mut first = 0;
        let mut before: Option<u64> = None;
        while first < durations.len() {
            let Some(time) = self.done[first] else {
                first += 1;
                continue;
            };
            let count = self.done[first..].iter().take_while(|done| **done == Some(time)).count();
            if let Some(before) = before {
                let sum: f64 = durations[first..first + count].iter().sum();
                let factor = precise(time.saturating_sub(before)) / sum;
                durations[first..first + count].iter_mut().for_each(|work| *work = (*work * factor).max(WORK_US));
            }
            before = Some(time);
            first += count;
        }
        durations
    }
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
    fn allocate(&mut self, name: Name, bytes: u64, ops: &mut Vec<Op>) {
        let size = block_bytes(bytes).max(GRANULE);
        let fits = self.mapped_bytes + size <= self.most_bytes;
        let mut taken = self.pools.take(POOL, STREAM, size, Waste::Little);
        if taken.is_none() && !fits {
            taken = self.pools.take(POOL, STREAM, size, Waste::Any).or_else(|| {
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
        let held = self.pools.find(at).map_or(size, |(_, Block { block_bytes, .. })| block_bytes);
        self.places.insert(name, at);
        ops.push(Op::Allocate { offset: at, bytes: held });
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
