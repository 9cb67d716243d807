//! Demand paging: what a work needs is brought when it needs it, in place of what was used longest ago.

use std::collections::BTreeSet;

use crate::{
    Tier,
    machine::{Action, FreeBytes, Placement, Script, Turn},
};

#[derive(Debug, Clone, Copy)]
struct Chunk {
    there: bool,
    tier: Tier,
    moving: bool,
    /// Its bytes are somebody's.
    alive: bool,
    /// One more than the number of the last work that used it.
    used: u32,
    uses: usize,
}

/// See the module's head. What is nobody's is not copied, and what is evicted is not mapped: the same chances as emuV's.
#[derive(Debug)]
pub struct Lru<'a> {
    script: &'a Script,
    chunks: Vec<Chunk>,
    /// In VRAM and still: when they were used, which.
    by_use: BTreeSet<(u32, u32)>,
    moving: usize,
    held: Option<u32>,
    /// What is held cannot be helped: there is not enough VRAM for all that it touches.
    hopeless: bool,
    done: u32,
}

impl<'a> Lru<'a> {
    /// Nothing is there yet.
    pub fn new(script: &'a Script) -> Self {
        let chunk = Chunk { there: false, tier: Tier::Ram, moving: false, alive: false, used: 0, uses: 0 };
        Self {
            script,
            chunks: vec![chunk; script.chunks.len()],
            by_use: BTreeSet::new(),
            moving: 0,
            held: None,
            hopeless: false,
            done: 0,
        }
    }

    fn bytes(&self, chunk: u32) -> u64 {
        self.script.chunks[chunk as usize].bytes
    }

    fn start(&mut self, chunk: u32, to: Tier, copy: bool) -> Action {
        let state = &mut self.chunks[chunk as usize];
        state.moving = true;
        self.by_use.remove(&(state.used, chunk));
        self.moving += 1;
        Action::Move { chunk, to, copy, map: to == Tier::Vram }
    }

    /// The chunk's next use overwrites what it holds, so nobody will miss it.
    fn is_alive(&self, chunk: u32) -> bool {
        let state = &self.chunks[chunk as usize];
        let next = self.script.chunks[chunk as usize].uses.get(state.uses);
        state.alive && next.is_none_or(|next| !next.fresh)
    }
}

impl Placement for Lru<'_> {
    fn mapped(&mut self, chunk: u32, tier: Tier) {
        let state = &mut self.chunks[chunk as usize];
        (state.there, state.tier) = (true, tier);
        if tier == Tier::Vram {
            self.by_use.insert((state.used, chunk));
        }
    }

    fn unmapped(&mut self, chunk: u32) -> bool {
        let state = &mut self.chunks[chunk as usize];
        if state.moving {
            return false;
        }
        state.there = false;
        self.by_use.remove(&(state.used, chunk));
        true
    }

    fn begin(&mut self, work: u32, _: bool) -> Turn {
        let script = self.script;
        let touched = &script.works[work as usize].chunks;
        let is_ready = |chunk: &u32| {
            let chunk = &self.chunks[*chunk as usize];
            !chunk.moving && chunk.tier == Tier::Vram
        };
        let settled = touched.iter().all(|chunk| !self.chunks[*chunk as usize].moving);
        if !(touched.iter().all(is_ready) || (self.hopeless && settled)) {
            self.held = Some(work);
            return Turn::Hold;
        }
        (self.held, self.hopeless) = (None, false);
        for &chunk in touched {
            let state = &mut self.chunks[chunk as usize];
            let was = self.by_use.remove(&(state.used, chunk));
            state.used = work + 1;
            state.uses += 1;
            state.alive = true;
            if was {
                self.by_use.insert((state.used, chunk));
            }
        }
        Turn::Go
    }

    fn done(&mut self, works: u32) {
        self.done = works;
    }

    fn next(&mut self, free: FreeBytes) -> Action {
        let Some(work) = self.held.filter(|_| !self.hopeless) else { return Action::Rest };
        let touched = &self.script.works[work as usize].chunks;
        let is_out = |chunk: &&u32| {
            let chunk = &self.chunks[**chunk as usize];
            chunk.tier == Tier::Ram && !chunk.moving
        };
        let Some(&wanted) = touched.iter().find(is_out) else { return Action::Rest };
        if free.vram >= self.bytes(wanted) {
            return self.start(wanted, Tier::Vram, self.is_alive(wanted));
        }
        if free.vram + free.coming >= self.bytes(wanted) {
            return Action::Rest;
        }
        let victim = self.by_use.iter().find(|(_, chunk)| !touched.contains(chunk)).copied();
        match victim {
            Some((used, chunk)) if used <= self.done => self.start(chunk, Tier::Ram, self.is_alive(chunk)),
            // What is to go is still in use, or coming.
            Some(_) => Action::Rest,
            None => {
                self.hopeless = self.moving == 0;
                Action::Rest
            }
        }
    }

    fn finished(&mut self, chunk: u32) {
        let state = &mut self.chunks[chunk as usize];
        state.moving = false;
        state.tier = if state.tier == Tier::Vram { Tier::Ram } else { Tier::Vram };
        self.moving -= 1;
        if state.there && state.tier == Tier::Vram {
            self.by_use.insert((state.used, chunk));
        }
    }
}
