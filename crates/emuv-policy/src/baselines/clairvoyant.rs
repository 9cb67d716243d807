//! Placement with the whole program in view: see the head of [`super`].

use std::collections::BTreeSet;

use crate::{
    Tier,
    machine::{Action, FreeBytes, Placement, Script, Turn, Use},
};

/// No use to come.
const NEVER: u32 = u32::MAX;

/// Moves in flight in each direction: enough for the link to have the next at hand.
const DEPTH: usize = 6;

/// How schedules differ from each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variant {
    /// Room is made for so much ahead of what comes in, in bytes.
    pub ahead_bytes: u64,
    /// Nothing is brought that is needed later than so many microseconds of work from now.
    pub horizon_us: f64,
    /// The GPU is given so many microseconds of work ahead: what it has been given cannot move.
    pub queue_us: f64,
    /// What reads each byte about as often as once, at every use, is read in place once it is out. The greatest slowness
    /// for which that is so.
    pub in_place_slowness: Option<f64>,
}

#[derive(Debug, Clone, Copy)]
struct Chunk {
    there: bool,
    tier: Tier,
    moving: bool,
    /// How many of its uses have begun.
    begun: usize,
    /// One more than the number of the work that used it last.
    used: u32,
    /// It is as well read in place.
    stays_out: bool,
    /// Its bytes were somebody's at the last use.
    written: bool,
}

/// See the module's head.
#[derive(Debug)]
pub struct Clairvoyant<'a> {
    script: &'a Script,
    variant: Variant,
    /// For each work and the end, when it begins if nothing waits, in microseconds.
    times: Vec<f64>,
    chunks: Vec<Chunk>,
    /// In RAM, still and wanted back: the next use, which.
    out: BTreeSet<(u32, u32)>,
    /// In VRAM and still. With something in it to be kept, and without.
    kept: BTreeSet<(u32, u32)>,
    empty: BTreeSet<(u32, u32)>,
    moving: [usize; 2],
    held: Option<u32>,
    hopeless: bool,
    issued: u32,
    done: u32,
}

impl<'a> Clairvoyant<'a> {
    /// Nothing is there yet.
    pub fn new(script: &'a Script, variant: Variant) -> Self {
        let mut now = 0.0;
        let mut times = vec![now];
        times.extend(script.works.iter().map(|work| {
            now += work.micros;
            now
        }));
        let reads_once = |uses: &[Use]| {
            let most = variant.in_place_slowness.unwrap_or(0.0);
            // The first use is that which fills it.
            let mut later = uses.iter().skip(1);
            later.all(|used| !used.fresh && script.works[used.work as usize].slowness <= most)
        };
        let chunk = |stays_out| Chunk {
            there: false,
            tier: Tier::Ram,
            moving: false,
            begun: 0,
            used: 0,
            stays_out,
            written: false,
        };
        let in_place = variant.in_place_slowness.is_some();
        Self {
            script,
            variant,
            times,
            chunks: script.chunks.iter().map(|c| chunk(in_place && reads_once(&c.uses))).collect(),
            out: BTreeSet::new(),
            kept: BTreeSet::new(),
            empty: BTreeSet::new(),
            moving: [0; 2],
            held: None,
            hopeless: false,
            issued: 0,
            done: 0,
        }
    }

    fn next_use(&self, chunk: u32) -> Option<Use> {
        self.script.chunks[chunk as usize].uses.get(self.chunks[chunk as usize].begun).copied()
    }

    fn when(&self, chunk: u32) -> u32 {
        self.next_use(chunk).map_or(NEVER, |next| next.work)
    }

    /// Whether anybody will miss what it holds.
    fn is_alive(&self, chunk: u32) -> bool {
        self.chunks[chunk as usize].written && self.next_use(chunk).is_some_and(|next| !next.fresh)
    }

    fn file(&mut self, chunk: u32) {
        let state = self.chunks[chunk as usize];
        if !state.there || state.moving {
            return;
        }
        let key = (self.when(chunk), chunk);
        if state.tier == Tier::Vram {
            if self.is_alive(chunk) {
                self.kept.insert(key)
            } else {
                self.empty.insert(key)
            };
        } else if key.0 != NEVER && !(state.stays_out && state.written) {
            self.out.insert(key);
        }
    }

    fn take_out(&mut self, chunk: u32) {
        let key = (self.when(chunk), chunk);
        self.out.remove(&key);
        self.kept.remove(&key);
        self.empty.remove(&key);
    }

    fn start(&mut self, chunk: u32, to: Tier) -> Action {
        self.take_out(chunk);
        let copy = self.is_alive(chunk);
        let state = &mut self.chunks[chunk as usize];
        state.moving = true;
        self.moving[usize::from(to == Tier::Ram)] += 1;
        Action::Move { chunk, to, copy, map: to == Tier::Vram || state.stays_out }
    }

    /// What goes so that something can come that is needed at `before`: what is empty, or else what is needed last, if
    /// that is later.
    fn victim(&self, before: u32) -> Option<u32> {
        let goes = |(_, chunk): &&(u32, u32)| self.chunks[*chunk as usize].used <= self.done;
        let latest = |from: &BTreeSet<(u32, u32)>| {
            let later = from.range((before + 1, 0)..).rev();
            later.clone().find(|key| goes(key)).map(|(_, chunk)| *chunk)
        };
        let read_once = || {
            let later = self.kept.range((before + 1, 0)..).rev();
            later.filter(|(_, chunk)| self.chunks[*chunk as usize].stays_out).find(goes).map(|(_, chunk)| *chunk)
        };
        let read_once = if self.variant.in_place_slowness.is_some() { read_once() } else { None };
        latest(&self.empty).or(read_once).or_else(|| latest(&self.kept))
    }

    fn wanted(&self, free: FreeBytes) -> Option<Choice> {
        let now = self.times[self.issued as usize];
        let mut ahead = 0;
        for &(when, chunk) in &self.out {
            if self.times[when as usize] > now + self.variant.horizon_us {
                return None;
            }
            let bytes = self.script.chunks[chunk as usize].bytes;
            if ahead == 0 && free.vram >= bytes && self.moving[0] < DEPTH {
                return Some(Choice::Bring(chunk));
            }
            ahead += bytes;
            if ahead > free.vram + free.coming {
                return if self.moving[1] < DEPTH { self.victim(when).map(Choice::Send) } else { None };
            }
            if ahead > self.variant.ahead_bytes {
                return None;
            }
        }
        None
    }
}

/// What to do with which chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Bring(u32),
    Send(u32),
}

impl Placement for Clairvoyant<'_> {
    fn tier_of_new(&mut self, _: u32, bytes: u64, _: u64, free: FreeBytes) -> Tier {
        if free.vram >= bytes { Tier::Vram } else { Tier::Ram }
    }

    fn mapped(&mut self, chunk: u32, tier: Tier) {
        let state = &mut self.chunks[chunk as usize];
        (state.there, state.tier) = (true, tier);
        self.file(chunk);
    }

    fn unmapped(&mut self, chunk: u32) -> bool {
        if self.chunks[chunk as usize].moving {
            return false;
        }
        self.take_out(chunk);
        self.chunks[chunk as usize].there = false;
        true
    }

    fn begin(&mut self, work: u32, _: bool) -> Turn {
        let script = self.script;
        let touched = &script.works[work as usize].chunks;
        let queued = self.times[self.issued as usize] - self.times[self.done as usize];
        let early = self.done < self.issued && queued > self.variant.queue_us;
        let is_ready = |chunk: &u32| {
            let chunk = &self.chunks[*chunk as usize];
            !chunk.moving && (chunk.tier == Tier::Vram || (chunk.stays_out && chunk.written))
        };
        let settled = touched.iter().all(|chunk| !self.chunks[*chunk as usize].moving);
        if early || !(touched.iter().all(is_ready) || (self.hopeless && settled)) {
            self.held = (!early).then_some(work);
            return Turn::Hold;
        }
        (self.held, self.hopeless) = (None, false);
        for &chunk in touched {
            self.take_out(chunk);
            let state = &mut self.chunks[chunk as usize];
            state.begun += 1;
            state.used = work + 1;
            state.written = true;
            self.file(chunk);
        }
        self.issued += 1;
        Turn::Go
    }

    fn done(&mut self, works: u32) {
        self.done = works;
    }

    fn next(&mut self, free: FreeBytes) -> Action {
        match self.wanted(free) {
            Some(Choice::Bring(chunk)) => self.start(chunk, Tier::Vram),
            Some(Choice::Send(chunk)) => self.start(chunk, Tier::Ram),
            None => {
                // Nothing is under way that could help what is held, and nothing in use whose end could.
                self.hopeless = self.held.is_some() && self.moving == [0, 0] && self.done == self.issued;
                Action::Rest
            }
        }
    }

    fn finished(&mut self, chunk: u32) {
        let state = &mut self.chunks[chunk as usize];
        let was = state.tier;
        state.moving = false;
        state.tier = if was == Tier::Vram { Tier::Ram } else { Tier::Vram };
        self.moving[usize::from(was == Tier::Vram)] -= 1;
        self.file(chunk);
    }
}
