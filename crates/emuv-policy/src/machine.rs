//! A GPU, a link and a program in virtual time: what a policy makes of a sequence of works, without a GPU and the same
//! every time. What it costs is compared with what physics allows, and policies with each other.
//!
//! The model: the program issues works in order, each `issue_us` after the last, and is held where [`Residency`] holds
//! it. The GPU works its one queue off; data in RAM that a work touches is read in place at the link's speed divided by
//! the work's kind's slowness. Copies run one after the other in each direction, both directions at once. When a copy is
//! over the mover, one thread, replaces the mapping.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::{
    Begin, Begun, HOT_BYTES, HoldId, MoveRoom, Policy, Residency, Step, StreamId, Tier, Work, memory::HOT_SHARE,
};

const MIB: u64 = 1 << 20;

/// The only stream.
const STREAM: StreamId = StreamId(1);

/// Resolution of virtual time, in microseconds.
const TICK_US: f64 = 5.0;

/// Works between two fences.
const WORKS_PER_FENCE: usize = 16;

/// How long a work waits for data while nothing moves, in microseconds.
const PATIENCE_US: f64 = 100_000.0;

/// What the program does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// A chunk is mapped, in VRAM if there is room.
    Map {
        /// Where it lies in the arena.
        offset: u64,
        /// Its size.
        bytes: u64,
    },
    /// A chunk is unmapped.
    Unmap {
        /// Where it lay.
        offset: u64,
    },
    /// The program has got chunks.
    Allocate {
        /// Where they begin.
        offset: u64,
        /// Their size.
        bytes: u64,
    },
    /// It has given them back.
    Free {
        /// Where they begin.
        offset: u64,
    },
    /// A work.
    Work(GpuWork),
    /// A round of a loop begins here.
    Round,
}

/// A work, and how long it takes with everything in VRAM.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuWork {
    /// Offsets in the chunks that it touches.
    pub chunks: Vec<u64>,
    /// In microseconds.
    pub micros: f64,
    /// What it does: see [`Work::kind`].
    pub kind: u64,
    /// It may touch anything.
    pub everything: bool,
    /// How much slower than the link it reads from RAM in place.
    pub slowness: f64,
}

/// See the module's head.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What the program may use.
    pub vram_bytes: u64,
    /// The link's speed in one direction.
    pub link_bytes_per_us: f64,
    /// The same while both directions are used.
    pub both_bytes_per_us: f64,
    /// Between two works that the program issues.
    pub issue_us: f64,
    /// Until a program that was held goes on.
    pub wake_us: f64,
}

/// What changing mappings takes (H200, driver 580): of VRAM, whatever the size; of 32 MiB of RAM.
const VRAM_MAP_US: f64 = 30.0;
const VRAM_UNMAP_US: f64 = 17.0;
const RAM_MAP_US: f64 = 359.0;
const RAM_UNMAP_US: f64 = 99.0;

/// What a round cost.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Until its last work was done.
    pub micros: f64,
    /// Bytes moved into VRAM.
    pub promoted_bytes: u64,
    /// Bytes moved into RAM.
    pub evicted_bytes: u64,
}

/// Of 32 MiB.
#[allow(clippy::cast_precision_loss)] // For a duration.
fn parts(bytes: u64) -> f64 {
    bytes as f64 / (32 * MIB) as f64
}

struct Move {
    offset: u64,
    bytes: u64,
    to: Tier,
    map: bool,
    copied_at: f64,
}

struct Run<'a> {
    machine: &'a Machine,
    residency: Residency,
    sizes: HashMap<u64, u64>,
    hidden: HashSet<u64>,
    now: f64,
    free_bytes: u64,
    gpu_free_at: f64,
    cpu_free_at: f64,
    mover_free_at: f64,
    copies_free_at: [f64; 2],
    moves: Vec<Move>,
    /// Begun works: when each will be done, and what it was.
    queue: VecDeque<(f64, Begun, u64, f64)>,
    fences: VecDeque<(f64, u64)>,
    held: Option<(HoldId, f64)>,
    issued: usize,
    total: Cost,
}

impl Machine {
    /// Runs the program under a policy; gives the cost of each round, the last one included.
    ///
    /// # Panics
    /// If it does not come to an end.
    pub fn run(&self, program: &[Op], policy: Policy) -> Vec<Cost> {
        let mut residency = Residency::new(policy);
        residency.set_link(self.link_bytes_per_us);
        residency.quiesced();
        let mut run = Run {
            machine: self,
            residency,
            sizes: HashMap::new(),
            hidden: HashSet::new(),
            now: 0.0,
            free_bytes: self.vram_bytes,
            gpu_free_at: 0.0,
            cpu_free_at: 0.0,
            mover_free_at: 0.0,
            copies_free_at: [0.0; 2],
            moves: Vec::new(),
            queue: VecDeque::new(),
            fences: VecDeque::new(),
            held: None,
            issued: 0,
            total: Cost::default(),
        };
        let mut marks = Vec::new();
        let mut ops = program.iter().peekable();
        let mut idle_since = 0.0;
        while ops.peek().is_some() || !run.queue.is_empty() {
            if !run.queue.is_empty() {
                idle_since = run.now;
            }
            run.gpu();
            run.mover();
            while let Some(op) = ops.peek() {
                if run.cpu_free_at > run.now || !run.take(op, &mut marks) {
                    break;
                }
                idle_since = run.now;
                ops.next();
            }
            assert!(run.now - idle_since < 1e8, "no end at {} us, held: {:?}", run.now, run.held);
            run.now += TICK_US;
        }
        marks.push(Cost { micros: run.gpu_free_at, ..run.total });
        let before = std::iter::once(Cost::default()).chain(marks.iter().copied());
        let since = |(before, after): (Cost, &Cost)| Cost {
            micros: after.micros - before.micros,
            promoted_bytes: after.promoted_bytes - before.promoted_bytes,
            evicted_bytes: after.evicted_bytes - before.evicted_bytes,
        };
        before.zip(&marks).map(since).collect()
    }
}

impl Run<'_> {
    /// What the GPU has done by now.
    fn gpu(&mut self) {
        while self.queue.front().is_some_and(|(done, ..)| *done <= self.now) {
            let Some((_, begun, kind, micros)) = self.queue.pop_front() else { break };
            if begun.measure {
                self.residency.measured(kind, begun.ram_bytes, micros);
            }
        }
        while self.fences.front().is_some_and(|(done, _)| *done <= self.now) {
            let Some((_, number)) = self.fences.pop_front() else { break };
            self.residency.completed(STREAM, number);
        }
    }

    #[allow(clippy::cast_precision_loss)] // Rates.
    fn mover(&mut self) {
        while self.mover_free_at <= self.now {
            if let Some(at) = self.moves.iter().position(|m| m.copied_at <= self.now) {
                let done = self.moves.swap_remove(at);
                let to_ram = done.to == Tier::Ram;
                self.free_bytes += if to_ram { done.bytes } else { 0 };
                self.residency.finish(done.offset, true);
                let was_mapped = !self.hidden.remove(&done.offset);
                let ram_us = if to_ram { RAM_MAP_US } else { RAM_UNMAP_US } * parts(done.bytes);
                let remap_us = match (to_ram, done.map, was_mapped) {
                    (true, true, _) => VRAM_UNMAP_US + ram_us,
                    (true, false, _) => VRAM_UNMAP_US,
                    (false, _, true) => VRAM_MAP_US + ram_us,
                    (false, _, false) => VRAM_MAP_US,
                };
                if !done.map {
                    self.hidden.insert(done.offset);
                }
                self.mover_free_at = self.now + remap_us;
                continue;
            }
            let coming = self.moves.iter().filter(|m| m.to == Tier::Ram).map(|m| m.bytes).sum();
            let room = MoveRoom { vram_bytes: self.free_bytes, ram_bytes: u64::MAX, vram_coming_bytes: coming };
            match self.residency.next_step(room) {
                Step::Move { offset, bytes, to, copy, map } => self.start(offset, bytes, to, copy, map),
                Step::Show { offset, bytes } => {
                    self.residency.finish(offset, true);
                    self.hidden.remove(&offset);
                    self.mover_free_at = self.now + RAM_MAP_US * parts(bytes);
                }
                Step::Search(_) => self.residency.searched_all(Some(&[])),
                Step::Collect => {
                    let searches = self.residency.collecting();
                    self.residency.collected(&searches, &[], &[]);
                }
                Step::Learn(_) => {
                    if let Some(number) = self.residency.fence(STREAM) {
                        self.fences.push_back((self.gpu_free_at, number));
                    }
                    return;
                }
                Step::Rest => return,
            }
        }
    }

    #[allow(clippy::cast_precision_loss)] // Rates.
    fn start(&mut self, offset: u64, bytes: u64, to: Tier, copy: bool, map: bool) {
        let lane = usize::from(to == Tier::Ram);
        let other_busy = self.copies_free_at[1 - lane] > self.now;
        let rate = if other_busy { self.machine.both_bytes_per_us } else { self.machine.link_bytes_per_us };
        let micros = if copy { bytes as f64 / rate } else { 0.0 };
        let free_at = self.copies_free_at[lane].max(self.now) + micros;
        if copy {
            self.copies_free_at[lane] = free_at;
        }
        let copied = if copy { bytes } else { 0 };
        if to == Tier::Vram {
            self.free_bytes -= bytes;
            self.total.promoted_bytes += copied;
        } else {
            self.total.evicted_bytes += copied;
        }
        self.moves.push(Move { offset, bytes, to, map, copied_at: if copy { free_at } else { self.now } });
    }

    /// The program's next step. False: it cannot be made yet.
    #[allow(clippy::cast_precision_loss)] // Rates.
    fn take(&mut self, op: &Op, marks: &mut Vec<Cost>) -> bool {
        match op {
            Op::Map { offset, bytes } => {
                let left = if *bytes > HOT_BYTES { self.machine.vram_bytes / HOT_SHARE } else { 0 };
                let tier = if self.free_bytes >= *bytes + left { Tier::Vram } else { Tier::Ram };
                self.free_bytes -= if tier == Tier::Vram { *bytes } else { 0 };
                self.sizes.insert(*offset, *bytes);
                self.residency.add_chunk(*offset, *bytes, tier, false);
            }
            Op::Unmap { offset } => {
                let tier = self.residency.tier(*offset);
                if !self.residency.remove_chunk(*offset) {
                    return false;
                }
                let bytes = self.sizes.remove(offset).unwrap_or(0);
                self.free_bytes += if tier == Some(Tier::Vram) { bytes } else { 0 };
            }
            Op::Allocate { offset, bytes } => self.residency.add_extent(*offset, *bytes),
            Op::Free { offset } => self.residency.remove_extent(*offset),
            Op::Round => marks.push(Cost { micros: self.gpu_free_at, ..self.total }),
            Op::Work(work) => return self.issue(work),
        }
        true
    }

    #[allow(clippy::cast_precision_loss)] // Rates.
    fn issue(&mut self, work: &GpuWork) -> bool {
        let patient = self.held.is_none_or(|(_, since)| self.now - since < PATIENCE_US);
        let asked = Work {
            stream: STREAM,
            offsets: &work.chunks,
            everything: work.everything,
            may_store_pointers: false,
            may_bring_pointers: false,
            maker: 0,
            kind: work.kind,
            patient,
        };
        match self.residency.begin(&asked, self.held.map(|(hold, _)| hold)) {
            Begin::Go(begun) => {
                self.residency.issued(&begun);
                let in_ram = begun.ram_bytes as f64 / self.machine.link_bytes_per_us * work.slowness;
                let micros = work.micros + in_ram;
                self.gpu_free_at = self.gpu_free_at.max(self.now) + micros;
                self.queue.push_back((self.gpu_free_at, begun, work.kind, micros));
                let woken = if self.held.take().is_some() { self.machine.wake_us } else { 0.0 };
                self.cpu_free_at = self.now + self.machine.issue_us + woken;
                self.issued += 1;
                if self.issued.is_multiple_of(WORKS_PER_FENCE)
                    && let Some(number) = self.residency.fence(STREAM)
                {
                    self.fences.push_back((self.gpu_free_at, number));
                }
                true
            }
            Begin::Hold(id) => {
                self.held.get_or_insert((id, self.now));
                false
            }
        }
    }
}
