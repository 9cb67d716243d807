//! Virtual time: from one moment at which something ends to the next.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    fmt,
};

use super::{Action, Cost, FreeBytes, MOST_AHEAD, Machine, Placement, Script, Turn, script::Step};
use crate::Tier;

/// What changing mappings takes emuV's mover beside copies both ways (H200, driver 580; `docs/measurements.md`), in microseconds: of VRAM,
/// whatever the size, with what it does besides for each; of 32 MiB of RAM.
const VRAM_MAP_US: f64 = 60.0;
const VRAM_UNMAP_US: f64 = 40.0;
const RAM_MAP_US: f64 = 359.0;
const RAM_UNMAP_US: f64 = 99.0;

/// What memory in VRAM takes to make and to release, in microseconds: a chunk of another size needs other memory.
const VRAM_MAKE_US: f64 = 24.0;
const VRAM_RELEASE_US: f64 = 32.0;

/// How long the engine that copies out goes on until it is quiet: it has to be while something is mapped (emuV's mover copies into RAM in
/// pieces, of which one and a half are left on average). Until that is done a kernel copies, at this part of the engine's speed: 0.96
/// beside nothing, 0.6 beside kernels that compute (measured).
const DRAIN_US: f64 = 110.0;
const KERNEL_PART: f64 = 0.8;

/// Works between two fences, at most, and the bytes that they touch.
const WORKS_PER_FENCE: u32 = 16;
const BYTES_PER_FENCE: u64 = 1 << 30;

/// How long a work waits for data, in microseconds.
const PATIENCE_US: f64 = 100_000.0;

/// How long one work may be held in all.
const MOST_HELD_US: f64 = 1e8;

/// What is left when a flow or a work is over: times are sums of roundings.
const NOTHING: f64 = 1e-6;

/// A run does not come to an end.
#[derive(Debug, Clone, PartialEq)]
pub struct Stuck {
    /// When, in microseconds.
    pub micros: f64,
    /// How many works had been issued.
    pub works: usize,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing goes on after {} works, {:.0} us", self.works, self.micros)
    }
}

impl std::error::Error for Stuck {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chunk {
    tier: Tier,
    /// Something of its own is behind its address.
    shown: bool,
    /// Its place in VRAM, or, while it has none, the one that is still mapped at its address: it held nothing when it went.
    place: Option<u32>,
    /// RAM has what it holds as long as that does not change.
    kept: bool,
}

#[derive(Debug, Clone, Copy)]
struct Copying {
    chunk: u32,
    to: Tier,
    map: bool,
    /// Its bytes are copied.
    copy: bool,
    /// The place in VRAM that it moves into, and whether that is still mapped there.
    place: Option<u32>,
    is_there: bool,
    left: f64,
}

/// A work that the GPU has been given.
#[derive(Debug, Clone, Copy)]
struct Queued {
    work: u32,
    micros_left: f64,
    /// To be read in place, times slowness.
    bytes_left: f64,
    ram_bytes: u64,
    began: f64,
}

/// How fast everything goes on now, in bytes per microsecond.
struct Rates {
    /// Each of what comes in.
    each_in: f64,
    out: f64,
}

pub(super) struct Engine<'a, P> {
    machine: &'a Machine,
    script: &'a Script,
    placement: &'a mut P,
    now: f64,
    chunks: Vec<Chunk>,
    free_vram: u64,
    free_ram: u64,
    /// Places in VRAM that no chunk has, by size; and how many there have been.
    places: BTreeMap<u64, VecDeque<u32>>,
    all_places: u32,
    /// The bytes of all that there are, whoever has them.
    places_bytes: u64,
    // The program.
    next_step: usize,
    cpu_free_at: f64,
    held_since: Option<f64>,
    // The GPU.
    queue: VecDeque<Queued>,
    issued: u32,
    done: u32,
    fences: BTreeSet<u64>,
    unfenced_bytes: u64,
    /// For each round that has begun: how many works came before it.
    marks: VecDeque<u32>,
    // The mover.
    mover_free_at: f64,
    remapping: Option<Copying>,
    showing: Option<u32>,
    copies_in: VecDeque<Copying>,
    copies_out: VecDeque<Copying>,
    copied: VecDeque<Copying>,
    /// From when on the engine copies nothing out, for as long as there is something to map.
    quiet_at: Option<f64>,
    total: Cost,
    costs: Vec<Cost>,
}

impl<'a, P: Placement> Engine<'a, P> {
    pub fn new(machine: &'a Machine, script: &'a Script, placement: &'a mut P) -> Self {
        Self {
            machine,
            script,
            placement,
            now: 0.0,
            chunks: vec![Chunk { tier: Tier::Ram, shown: true, place: None, kept: false }; script.chunks.len()],
            free_vram: machine.vram_bytes,
            free_ram: machine.ram_bytes,
            places: BTreeMap::new(),
            all_places: 0,
            places_bytes: 0,
            next_step: 0,
            cpu_free_at: 0.0,
            held_since: None,
            queue: VecDeque::new(),
            issued: 0,
            done: 0,
            fences: BTreeSet::new(),
            unfenced_bytes: 0,
            marks: VecDeque::new(),
            mover_free_at: 0.0,
            remapping: None,
            showing: None,
            copies_in: VecDeque::new(),
            copies_out: VecDeque::new(),
            copied: VecDeque::new(),
            quiet_at: None,
            total: Cost::default(),
            costs: Vec::new(),
        }
    }

    pub fn run(mut self) -> Result<Vec<Cost>, Stuck> {
        loop {
            // Whoever is asked may change what the others may do, though it does nothing itself.
            while self.gpu() | self.program() | self.mover() | self.program() {}
            if self.next_step == self.script.steps.len() && self.queue.is_empty() {
                break;
            }
            let Some(after) = self.until_something_ends() else {
                return Err(Stuck { micros: self.now, works: self.issued as usize });
            };
            self.pass(after);
        }
        self.mark();
        let before = std::iter::once(Cost::default()).chain(self.costs.iter().copied());
        let since = |(before, after): (Cost, &Cost)| Cost {
            micros: after.micros - before.micros,
            promoted_bytes: after.promoted_bytes - before.promoted_bytes,
            evicted_bytes: after.evicted_bytes - before.evicted_bytes,
            in_place_bytes: after.in_place_bytes - before.in_place_bytes,
        };
        Ok(before.zip(&self.costs).map(since).collect())
    }

    fn mark(&mut self) {
        self.costs.push(Cost { micros: self.now, ..self.total });
    }

    // --- time -----------------------------------------------------------------------------------------------

    fn rates(&self) -> Rates {
        let link = &self.machine.link;
        let reads = self.queue.front().is_some_and(|work| work.bytes_left > 0.0);
        let flows_in = u8::from(reads) + u8::from(!self.copies_in.is_empty());
        let quiet = self.quiet_at.is_some_and(|at| at <= self.now);
        let duplex = flows_in > 0 && !self.copies_out.is_empty();
        let share = (link.both_bytes_per_us / (link.in_bytes_per_us + link.out_bytes_per_us)).min(1.0);
        let share = if duplex { share } else { 1.0 };
        let out = link.out_bytes_per_us * share * if quiet { KERNEL_PART } else { 1.0 };
        Rates { each_in: link.in_bytes_per_us * share / f64::from(flows_in.max(1)), out }
    }

    /// How long until something ends, in microseconds. `None`: nothing will.
    fn until_something_ends(&self) -> Option<f64> {
        let rates = self.rates();
        let mut soonest = f64::INFINITY;
        let mut ends = |after: f64| soonest = soonest.min(after.max(0.0));
        if let Some(work) = self.queue.front() {
            ends(work.micros_left.max(work.bytes_left / rates.each_in));
            if work.bytes_left > 0.0 {
                // From then on the link is free.
                ends(work.bytes_left / rates.each_in);
            }
        }
        if let Some(copy) = self.copies_in.front() {
            ends(copy.left / rates.each_in);
        }
        if let Some(copy) = self.copies_out.front() {
            ends(copy.left / rates.out);
        }
        if let Some(at) = self.quiet_at.filter(|at| *at > self.now) {
            ends(at - self.now);
        }
        if self.mover_free_at > self.now {
            ends(self.mover_free_at - self.now);
        }
        if self.cpu_free_at > self.now {
            ends(self.cpu_free_at - self.now);
        }
        if let Some(since) = self.held_since {
            if self.now - since > MOST_HELD_US {
                return None;
            }
            if self.is_patient() {
                ends(since + PATIENCE_US - self.now);
            }
        }
        soonest.is_finite().then_some(soonest)
    }

    fn pass(&mut self, micros: f64) {
        let rates = self.rates();
        self.now += micros;
        let less = |left: f64, by: f64| if left - by <= NOTHING { 0.0 } else { left - by };
        if let Some(work) = self.queue.front_mut() {
            work.micros_left = less(work.micros_left, micros);
            work.bytes_left = less(work.bytes_left, micros * rates.each_in);
        }
        for (copies, rate) in [(&mut self.copies_in, rates.each_in), (&mut self.copies_out, rates.out)] {
            let Some(first) = copies.front_mut() else { continue };
            first.left = less(first.left, micros * rate);
            if first.left == 0.0 {
                self.copied.extend(copies.pop_front());
            }
        }
        let near = |time: f64, now: f64| if (time - now).abs() <= NOTHING { now } else { time };
        self.mover_free_at = near(self.mover_free_at, self.now);
        self.quiet_at = self.quiet_at.map(|at| near(at, self.now));
        self.cpu_free_at = near(self.cpu_free_at, self.now);
        self.placement.passed(self.now);
    }

    // --- the GPU --------------------------------------------------------------------------------------------

    /// Whether a work has ended.
    fn gpu(&mut self) -> bool {
        let Some(first) = self.queue.front().filter(|work| work.micros_left == 0.0 && work.bytes_left == 0.0) else {
            return false;
        };
        let (work, took) = (first.work, self.now - first.began);
        self.total.in_place_bytes += first.ram_bytes;
        self.queue.pop_front();
        if let Some(next) = self.queue.front_mut() {
            next.began = self.now;
        }
        self.done += 1;
        self.placement.took(work, took);
        self.placement.done(self.done);
        while let Some(number) = self.fences.first().copied().filter(|number| *number <= u64::from(self.done)) {
            self.fences.remove(&number);
            self.placement.reached(number);
        }
        while self.marks.front().is_some_and(|works| *works <= self.done) {
            self.marks.pop_front();
            self.mark();
        }
        true
    }

    // --- the mover ------------------------------------------------------------------------------------------

    /// Whether it has done something.
    fn mover(&mut self) -> bool {
        if self.mover_free_at > self.now {
            return false;
        }
        if let Some(chunk) = self.showing.take() {
            let before = self.chunks[chunk as usize];
            self.chunks[chunk as usize] = Chunk { tier: Tier::Ram, shown: true, place: None, ..before };
            self.placement.finished(chunk);
            return true;
        }
        if let Some(done) = self.remapping.take() {
            self.remapped(&done);
            return true;
        }
        if let Some(copied) = self.next_to_remap() {
            self.mover_free_at = self.now + self.remap_us(&copied);
            self.remapping = Some(copied);
            return true;
        }
        match self.placement.next(self.free_bytes()) {
            Action::Move { chunk, to, copy, map } => self.start(chunk, to, copy, map),
            Action::Show(chunk) => {
                self.mover_free_at = self.now + RAM_MAP_US * self.parts(chunk);
                self.showing = Some(chunk);
            }
            Action::Learn => return self.record_fence(),
            Action::Rest => return false,
        }
        true
    }

    /// The next chunk whose mapping can be changed now: nothing is mapped while the engine copies out.
    fn next_to_remap(&mut self) -> Option<Copying> {
        let is_to_be_mapped = |copied: &Copying| (copied.map || copied.to == Tier::Vram) && !copied.is_there;
        if !self.copied.iter().any(is_to_be_mapped) {
            self.quiet_at = None;
            return self.copied.pop_front();
        }
        let quiet_at = if self.copies_out.is_empty() { self.now } else { self.now + DRAIN_US };
        let is_quiet = *self.quiet_at.get_or_insert(quiet_at) <= self.now;
        let at = self.copied.iter().position(|copied| is_quiet || !is_to_be_mapped(copied))?;
        self.copied.remove(at)
    }

    fn free_bytes(&self) -> FreeBytes {
        let remapping = self.remapping.iter();
        let out = self.copies_out.iter().chain(&self.copied).chain(remapping).filter(|copy| copy.to == Tier::Ram);
        let coming = out.map(|copy| self.bytes(copy.chunk)).sum();
        FreeBytes { vram: self.free_vram, ram: self.free_ram, coming }
    }

    fn start(&mut self, chunk: u32, to: Tier, copy: bool, map: bool) {
        let bytes = self.bytes(chunk);
        let is_known = to == Tier::Ram && copy && self.compare(chunk);
        let copied = if copy && !is_known { bytes } else { 0 };
        let left = self.chunks[chunk as usize].place;
        let place = (to == Tier::Vram).then(|| {
            let (place, micros) = self.take_place(bytes, left);
            self.mover_free_at = self.now + micros;
            place
        });
        let is_there = place.is_some() && place == left;
        let copying = Copying { chunk, to, map, copy, place, is_there, left: precise(copied) };
        let copies = if to == Tier::Vram {
            self.free_vram = self.free_vram.saturating_sub(bytes);
            self.total.promoted_bytes += copied;
            &mut self.copies_in
        } else {
            self.free_ram = self.free_ram.saturating_sub(bytes);
            self.total.evicted_bytes += copied;
            &mut self.copies_out
        };
        if copied > 0 { copies.push_back(copying) } else { self.copied.push_back(copying) }
    }

    /// Whether RAM has what a chunk holds that is about to leave VRAM; if that does not change any more, from now on it has. What works write
    /// to is not known: all that they touch and that may change.
    fn compare(&mut self, chunk: u32) -> bool {
        let is_constant = self.script.chunks[chunk as usize].constant_from.is_some_and(|from| from <= self.issued);
        let kept = std::mem::replace(&mut self.chunks[chunk as usize].kept, is_constant);
        if kept || !is_constant {
            self.placement.compared(chunk, is_constant);
        }
        kept && is_constant
    }

    /// A place in VRAM, and what that takes: best the one that is still mapped there, then one that is mapped nowhere, else the one that
    /// has been free for longest. Where there is none of that size one is made, and others are given up for it if need be.
    fn take_place(&mut self, bytes: u64, left: Option<u32>) -> (u32, f64) {
        let without = self.chunks.iter().filter(|chunk| chunk.tier == Tier::Ram);
        let left_somewhere: HashSet<u32> = without.filter_map(|chunk| chunk.place).collect();
        let free = self.places.entry(bytes).or_default();
        let own = free.iter().position(|place| Some(*place) == left);
        let at = own.or_else(|| free.iter().position(|place| !left_somewhere.contains(place))).unwrap_or(0);
        if let Some(place) = free.remove(at) {
            return (place, 0.0);
        }
        let mut micros = VRAM_MAKE_US;
        while self.places_bytes + bytes > self.machine.vram_bytes
            && let Some(more) = self.give_up_place()
        {
            micros += more;
        }
        self.all_places += 1;
        self.places_bytes += bytes;
        (self.all_places, micros)
    }

    /// Gives one of the largest free places up, and says what that takes. `None`: there is none.
    fn give_up_place(&mut self) -> Option<f64> {
        let (&bytes, free) = self.places.iter_mut().rev().find(|(_, free)| !free.is_empty())?;
        let gone = free.pop_front();
        self.places_bytes -= bytes;
        let mut micros = VRAM_RELEASE_US;
        for chunk in self.chunks.iter_mut().filter(|chunk| chunk.tier == Tier::Ram && chunk.place == gone) {
            chunk.place = None;
            micros += VRAM_UNMAP_US;
        }
        Some(micros)
    }

    fn leave_place(&mut self, bytes: u64, place: Option<u32>) {
        self.free_vram += bytes;
        self.places.entry(bytes).or_default().extend(place);
    }

    fn remap_us(&self, copied: &Copying) -> f64 {
        let parts = self.parts(copied.chunk);
        let chunk = &self.chunks[copied.chunk as usize];
        match (copied.to, copied.map, chunk.shown) {
            (Tier::Ram, true, _) => VRAM_UNMAP_US + RAM_MAP_US * parts,
            (Tier::Ram, false, _) if !copied.copy => 0.0,
            (Tier::Ram, false, _) => VRAM_UNMAP_US,
            (Tier::Vram, _, true) => RAM_UNMAP_US * parts + VRAM_MAP_US,
            (Tier::Vram, _, false) if copied.is_there => 0.0,
            (Tier::Vram, _, false) if chunk.place.is_some() => VRAM_UNMAP_US + VRAM_MAP_US,
            (Tier::Vram, _, false) => VRAM_MAP_US,
        }
    }

    fn remapped(&mut self, done: &Copying) {
        let bytes = self.bytes(done.chunk);
        let before = self.chunks[done.chunk as usize];
        let place = match done.to {
            Tier::Ram => {
                self.leave_place(bytes, before.place);
                before.place.filter(|_| !done.copy && !done.map)
            }
            Tier::Vram => {
                self.free_ram += bytes;
                done.place
            }
        };
        self.chunks[done.chunk as usize] = Chunk { tier: done.to, shown: done.map, place, ..before };
        self.placement.finished(done.chunk);
    }

    /// Whether that tells something new at once.
    fn record_fence(&mut self) -> bool {
        match self.placement.fence() {
            // The GPU has done all of it, and nobody had asked.
            Some(number) if number <= u64::from(self.done) => {
                self.placement.reached(number);
                true
            }
            // What it has been given: beyond that there is nothing to wait for.
            fence => {
                self.fences.extend(fence);
                false
            }
        }
    }

    // --- the program ----------------------------------------------------------------------------------------

    /// Whether it has gone on.
    fn program(&mut self) -> bool {
        if self.cpu_free_at > self.now {
            return false;
        }
        let Some(step) = self.script.steps.get(self.next_step) else { return false };
        let went_on = match *step {
            Step::Map(chunk) => {
                self.map(chunk);
                true
            }
            Step::Unmap(chunk) => self.unmap(chunk),
            Step::Allocate { offset, bytes } => {
                self.placement.allocated(offset, bytes);
                true
            }
            Step::Free { offset } => {
                self.placement.freed(offset);
                true
            }
            Step::Round => {
                if self.done == self.issued {
                    self.mark();
                } else {
                    self.marks.push_back(self.issued);
                }
                true
            }
            // The driver lets nothing in while it changes a mapping.
            Step::Work(_) if self.mover_free_at > self.now => false,
            Step::Work(work) => self.issue(work),
        };
        self.next_step += usize::from(went_on);
        went_on
    }

    fn map(&mut self, chunk: u32) {
        let bytes = self.bytes(chunk);
        let free = self.free_bytes();
        let wanted = self.placement.tier_of_new(chunk, bytes, self.machine.vram_bytes, free);
        let tier = if wanted == Tier::Ram || free.vram < bytes { Tier::Ram } else { Tier::Vram };
        let place = match tier {
            Tier::Vram => {
                self.free_vram -= bytes;
                Some(self.take_place(bytes, None).0)
            }
            Tier::Ram => {
                self.free_ram = self.free_ram.saturating_sub(bytes);
                None
            }
        };
        self.chunks[chunk as usize] = Chunk { tier, shown: true, place, kept: false };
        self.placement.mapped(chunk, tier);
    }

    fn unmap(&mut self, chunk: u32) -> bool {
        if !self.placement.unmapped(chunk) {
            return false;
        }
        let bytes = self.bytes(chunk);
        match self.chunks[chunk as usize].tier {
            Tier::Vram => self.leave_place(bytes, self.chunks[chunk as usize].place),
            Tier::Ram => self.free_ram += bytes,
        }
        true
    }

    fn issue(&mut self, number: u32) -> bool {
        let patient = self.is_patient();
        if self.queue.len() >= MOST_AHEAD {
            return false;
        }
        if self.placement.begin(number, patient) == Turn::Hold {
            self.held_since.get_or_insert(self.now);
            return false;
        }
        let work = &self.script.works[number as usize];
        let in_ram = work.chunks.iter().filter(|chunk| self.chunks[**chunk as usize].tier == Tier::Ram);
        let ram_bytes: u64 = in_ram.map(|chunk| self.bytes(*chunk)).sum();
        let bytes_left = precise(ram_bytes) * work.slowness.max(1.0);
        let micros_left = work.micros;
        self.queue.push_back(Queued { work: number, micros_left, bytes_left, ram_bytes, began: self.now });
        let woken = if self.held_since.take().is_some() { self.machine.wake_us } else { 0.0 };
        self.cpu_free_at = self.now + work.issue_us + woken;
        self.issued += 1;
        self.unfenced_bytes += work.chunks.iter().map(|chunk| self.bytes(*chunk)).sum::<u64>();
        if self.issued.is_multiple_of(WORKS_PER_FENCE) || self.unfenced_bytes >= BYTES_PER_FENCE {
            self.unfenced_bytes = 0;
            self.record_fence();
        }
        true
    }

    fn is_patient(&self) -> bool {
        self.held_since.is_none_or(|since| self.now - since < PATIENCE_US - NOTHING)
    }

    fn bytes(&self, chunk: u32) -> u64 {
        self.script.chunks[chunk as usize].bytes
    }

    /// Of 32 MiB.
    fn parts(&self, chunk: u32) -> f64 {
        precise(self.bytes(chunk)) / precise(32 << 20)
    }
}

/// Sizes as numbers to calculate with.
#[allow(clippy::cast_precision_loss)] // Far below 2^52.
fn precise(number: u64) -> f64 {
    number as f64
}
