//! A chunk's move, from the memory that it moves into to the mapping.

use emuv_cuda::{CUresult, CuError, CuResult, Handle};
use emuv_policy::Tier;

use super::{Job, Move, Mover, POLL, host_has, insist};
use crate::{
    arena::Replaced,
    contents::Hash,
    moves::{copies, outgoing::By},
    sync::{atomic::Ordering, sleep},
};

/// As long as so much is being copied to VRAM, what comes next is not mapped yet: for several mappings the engine that copies out stops once.
const LEAST_COMING_BYTES: u64 = 48 << 20;

impl Mover {
    /// Starts a move. False: it cannot be made now; the chunk is as it was.
    pub(super) fn begin_move(&mut self, step: Move) -> bool {
        let hashes = step.copy && step.to == Tier::Ram && !step.map && self.begin_hash(step);
        hashes || self.begin_copy(step, None)
    }

    /// Begins to find out whether the bytes of a chunk that is to go are in RAM already. False: it is not done for this one.
    fn begin_hash(&mut self, step: Move) -> bool {
        let (arena, real) = (&self.device.arena, self.session.real);
        let (Some(hasher), Some(copies)) = (&mut self.hasher, &mut self.copies) else { return false };
        if !hasher.is_promising(step.offset, step.bytes) {
            return false;
        }
        let Ok(address) = arena.readable_at(step.offset, step.bytes) else { return false };
        match hasher.take(real, address, step.bytes, copies.event()) {
            Ok((slot, event)) => {
                self.hashed.push(event, (step, slot));
                true
            }
            // A copy will tell what is wrong.
            Err(_) => false,
        }
    }

    /// The hash of a chunk that is to go is known: takes the memory that holds the same bytes, or has them copied.
    fn end_hash(&mut self, result: CUresult, step: Move, slot: usize) {
        let (arena, spares) = (&self.device.arena, &self.device.moves.spares);
        let Some(hasher) = &mut self.hasher else { return self.settle(step.offset, false) };
        let hash = match hasher.read(slot, result) {
            Ok(hash) => hash,
            Err(error) => {
                self.settle(step.offset, false);
                return self.fail("looking at a chunk", error);
            }
        };
        if let Some(same) = hasher.learn(step.offset, hash) {
            arena.residency().compared(step.offset, same);
        }
        if let Some(handle) = spares.take_holding(arena, step.bytes, hash) {
            let Move { offset, bytes, to, map, why, .. } = step;
            self.arrive(Job { offset, bytes, to, handle, copy: false, map, why, hash: Some(hash) });
        } else if !self.begin_copy(step, Some(hash)) {
            self.settle(step.offset, false);
        }
    }

    /// Starts to copy a chunk, or to exchange its memory where it holds nothing. False: it cannot be done now.
    fn begin_copy(&mut self, step: Move, hash: Option<Hash>) -> bool {
        let Move { offset, bytes, to, copy, map, why, .. } = step;
        let (arena, spares) = (&self.device.arena, &self.device.moves.spares);
        let session = self.session;
        let may_make = || to == Tier::Vram || host_has(session, bytes);
        let handle = match self.spare(to, bytes, Some(offset), may_make) {
            Ok(Some(handle)) => handle,
            Ok(None) => return false,
            Err(error) => {
                self.fail("memory to move data into", error);
                return false;
            }
        };
        let job = Job { offset, bytes, to, handle, copy, map, why, hash };
        if !copy {
            self.arrive(job);
            return true;
        }
        let maps_now = self.into_ram.is_quiet() && self.coming.is_empty();
        if to == Tier::Vram && map && !maps_now && arena.maps_ahead(offset, handle) {
            self.coming.push_back(job);
            return true;
        }
        match self.start_copy(job) {
            Ok(()) => true,
            Err(error) => {
                spares.put(to, bytes, handle);
                self.fail("a copy", error);
                false
            }
        }
    }

    fn start_copy(&mut self, job: Job) -> CuResult {
        let (arena, real) = (&self.device.arena, self.session.real);
        let Job { offset, bytes, to, handle, map, .. } = job;
        let Some(copies) = &mut self.copies else { return Err(CuError::INVALID_VALUE) };
        let source = arena.readable_at(offset, bytes)?;
        let ahead = if to == Tier::Vram && map { arena.map_ahead(offset, bytes, handle)? } else { None };
        let target = ahead.map_or_else(|| arena.aliases.of(arena.gpu(), handle, bytes), Ok)?;
        match to {
            Tier::Vram => self.into_vram.push(copies.start(real, to, target, source, bytes)?, job),
            Tier::Ram => self.into_ram.push(job, target, source, bytes),
        }
        Ok(())
    }

    /// Maps what is to come where it is to be, and starts to copy it there, if the engine that copies out is quiet.
    fn let_in(&mut self) {
        while self.into_ram.is_quiet()
            && let Some(job) = self.coming.pop_front()
        {
            if let Err(error) = self.start_copy(job) {
                self.stays(job);
                self.fail("a copy", error);
            }
        }
    }

    /// Whether the engine that copies out is to become quiet, as something is to be mapped: what has arrived, or what comes once little else
    /// does.
    pub(super) fn is_to_map(&self) -> bool {
        let coming: u64 = self.into_vram.iter().map(|job| job.bytes).sum();
        !self.arrived.is_empty() || (!self.coming.is_empty() && coming < LEAST_COMING_BYTES)
    }

    /// Ends the moves whose copies are over. Says whether there were any.
    pub(super) fn finish_copies(&mut self) -> bool {
        let real = self.session.real;
        let mut any = false;
        while let Some((event, result, job)) = self.into_vram.pop(real) {
            any = true;
            if let Some(copies) = &mut self.copies {
                copies.done(event);
            }
            self.copied(result, job);
        }
        while let Some((event, result, (step, slot))) = self.hashed.pop(real) {
            any = true;
            if let Some(copies) = &mut self.copies {
                copies.done(event);
            }
            self.end_hash(result, step, slot);
        }
        while let Some(copies) = &mut self.copies
            && let Some((result, job)) = self.into_ram.pop(real, copies)
        {
            any = true;
            self.copied(result, job);
        }
        if self.copies.is_none() {
            // The streams have gone with their context, and what was under way there.
            let lost: Vec<Job> = self.into_ram.drain().chain(self.coming.drain(..)).collect();
            lost.into_iter().for_each(|job| self.stays(job));
        }
        if self.into_ram.is_quiet() {
            while let Some(job) = self.arrived.pop_front() {
                any = true;
                self.swap(job);
            }
        }
        self.let_in();
        let by = if self.is_to_map() { By::Kernel } else { By::Engine };
        if let Some(copies) = &mut self.copies {
            self.into_ram.give(real, copies, by);
        }
        any
    }

    /// A copy is over.
    fn copied(&mut self, result: CUresult, job: Job) {
        match result.ok() {
            Ok(()) => self.arrive(job),
            Err(error) => {
                self.stays(job);
                self.fail("a copy", error);
            }
        }
    }

    /// The move does not happen. The chunk is as it was: if anything was copied, then to where nobody reads.
    fn stays(&self, job: Job) {
        self.device.moves.spares.put(job.to, job.bytes, job.handle);
        self.settle(job.offset, false);
    }

    /// The chunk's bytes are where they are to be. Mapping is done while the engine that copies out is quiet ([`super::Outgoing`]).
    fn arrive(&mut self, job: Job) {
        let is_there = || self.device.arena.leftover(job.offset) == Some(job.handle);
        if job.map && !is_there() { self.arrived.push_back(job) } else { self.swap(job) }
    }

    /// Whether anything is on its way.
    pub(super) fn is_moving(&self) -> bool {
        self.into_vram.len() + self.into_ram.len() + self.hashed.len() + self.arrived.len() + self.coming.len() > 0
    }

    /// VRAM that will be left.
    pub(super) fn coming_bytes(&self) -> u64 {
        let leaving = self.arrived.iter().filter(|job| job.to == Tier::Ram);
        let copied: u64 = self.into_ram.iter().chain(leaving).map(|job| job.bytes).sum();
        copied + self.hashed.iter().map(|(step, _)| step.bytes).sum::<u64>()
    }

    /// The chunk's bytes are where they are to be: puts that memory behind its address.
    fn swap(&mut self, job: Job) {
        let (arena, spares) = (&self.device.arena, &self.device.moves.spares);
        // What has a hash holds something, though it was not copied.
        let holds = job.copy || job.hash.is_some();
        match arena.replace(job.offset, job.bytes, job.to, job.handle, job.map, holds) {
            Replaced::Done(before) => self.swapped(job, before),
            Replaced::Unchanged(error) => {
                self.stays(job);
                self.fail("a mapping", error);
            }
            Replaced::Unmapped(error) => {
                spares.put(job.to, job.bytes, job.handle);
                self.fail("a mapping", error);
                // Works that touch it are held until it is there again.
                insist(
                    |_| true,
                    || {
                        spares.give_back(arena, job.bytes);
                        arena.map_again(job.offset, job.bytes)
                    },
                );
                self.settle(job.offset, false);
            }
        }
    }

    /// That memory is behind the chunk's address now, in the place of this.
    fn swapped(&mut self, job: Job, before: Handle) {
        let arena = &self.device.arena;
        self.device.moves.spares.exchanged(job.offset, job.to, job.bytes, before);
        if let Some(hash) = job.hash.filter(|_| arena.is_hidden(job.offset)) {
            arena.contents.holds(job.handle, hash);
        }
        if let Some(counters) = self.session.counters(self.device.ordinal) {
            let moved = match job.to {
                _ if !job.copy => &counters.remapped_bytes,
                Tier::Vram => &counters.promoted_bytes,
                Tier::Ram => &counters.evicted_bytes,
            };
            moved.fetch_add(job.bytes, Ordering::Relaxed);
        }
        if job.copy {
            self.device.timeline.moved(job.why, job.to, job.bytes);
            self.figure.moved(self.device, job.offset, job.bytes, job.to);
        }
        self.settle(job.offset, true);
    }

    /// Waits for every copy, so that nothing is moving.
    pub(super) fn come_to_rest(&mut self) {
        while self.is_moving() {
            if !self.finish_copies() {
                sleep(POLL);
            }
        }
        // Nothing of this thread's may keep a context that is about to go current.
        let _ = copies::settle_thread(self.session.real, None);
        self.context = None;
    }
}
