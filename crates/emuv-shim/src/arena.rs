//! The executor: carries the plans of [`DeviceMemory`] out on one device, in one reserved address range.
//!
//! The mutexes here guard plain data and are never held across a call of [`Gpu`].

#[path = "arena/hidden.rs"]
mod hidden;
#[path = "arena/leftovers.rs"]
mod leftovers;
#[path = "arena/quiet.rs"]
mod quiet;

use std::collections::{HashMap, HashSet};

use emuv_cuda::{CuError, CuResult, Gpu, Handle, types::CUmemAllocationProp};
use emuv_policy::{
    Allocation, AllocationId, Answer, Budgets, Chunk, DeviceMemory, Owner, Plan, Policy, Release, Residency, Room,
    SMALL_BYTES, Tier,
};

use crate::{
    aliases::Aliases,
    contents::Contents,
    ipc::Exports,
    sync::{
        Condvar, Instant, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        lock_soon,
    },
};

/// Why an allocation was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Neither tier has room.
    NoRoom,
    /// The driver failed in another way; nothing is left behind.
    Driver(CuError),
}

/// An allocation that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placed {
    /// What the program gets.
    pub address: u64,
    /// How much of it lies in RAM.
    pub spilled_bytes: u64,
}

/// How [`Arena::replace`] went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replaced {
    /// It is done; this handle was there before.
    Done(Handle),
    /// The driver refused; what was there is there.
    Unchanged(CuError),
    /// The driver refused, and refused to map again what was there: nothing is mapped.
    Unmapped(CuError),
}

/// Adjacent chunks, each an allocation of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlacedChunks {
    /// Address and size in bytes of each.
    pub chunks: Vec<(u64, u64)>,
    /// How much of them lies in RAM.
    pub spilled_bytes: u64,
}

/// One device's address range and everything in it.
pub(crate) struct Arena {
    gpu: Box<dyn Gpu>,
    base: u64,
    bytes: u64,
    memory: Mutex<DeviceMemory>,
    /// Chunk offset -> what is mapped there.
    pub handles: Mutex<HashMap<u64, Handle>>,
    /// Second mappings of handles, through which data is moved.
    pub aliases: Aliases,
    leftovers: leftovers::Leftovers,
    /// Whether mappings are left ([`leftovers`]).
    leaves: bool,
    /// What is known of memory that the program cannot reach.
    pub contents: Contents,
    /// What other processes may have.
    pub exports: Exports,
    residency: Mutex<Residency>,
    changes: AtomicU64,
    /// A move has ended, or a held work need not wait any longer.
    pub settled: Condvar,
    /// When recording began, if everything is recorded.
    recording: Option<Instant>,
    /// Where chunks may be hidden: those that are not mapped now. Held while `emuv verify` changes mappings.
    hidden: Option<Mutex<HashSet<u64>>>,
}

/// Locks plain data: a panic elsewhere must not make the program's memory unreachable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Arena {
    /// Reserves up to `most_bytes` of address space (less where the driver has not that much, at least a
    /// sixteenth).
    ///
    /// # Errors
    /// The driver's own.
    pub fn reserve(gpu: Box<dyn Gpu>, most_bytes: u64, budgets: Budgets, policy: Policy) -> CuResult<Self> {
        let mut bytes = most_bytes;
        let base = loop {
            match quiet::reserve(&*gpu, bytes) {
                Ok(base) => break base,
                Err(error) if bytes <= most_bytes / 16 => return Err(error),
                Err(_) => bytes /= 2,
            }
        };
        let memory = Mutex::new(DeviceMemory::new(budgets, base, bytes));
        Ok(Self {
            gpu,
            base,
            bytes,
            memory,
            handles: Mutex::default(),
            aliases: Aliases::default(),
            leftovers: leftovers::Leftovers::default(),
            leaves: false,
            contents: Contents::default(),
            exports: Exports::default(),
            residency: Mutex::new(Residency::new(policy)),
            changes: AtomicU64::new(0),
            settled: Condvar::new(),
            recording: None,
            hidden: None,
        })
    }

    /// The driver, for what concerns this arena.
    pub fn gpu(&self) -> &dyn Gpu {
        &*self.gpu
    }

    /// Where the arena starts.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// How much address space it has.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Which chunks may move, and which works are under way; to be changed.
    pub fn residency(&self) -> MutexGuard<'_, Residency> {
        let residency = self.residency_as_it_is();
        self.changes.fetch_add(1, Ordering::Relaxed);
        residency
    }

    /// How often [`Self::residency`] has been asked for: as long as that is the same, so is what it says.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// The same as [`Self::residency`], to be looked at.
    pub fn residency_as_it_is(&self) -> MutexGuard<'_, Residency> {
        let mut residency = lock_soon(&self.residency);
        if let (Some(since), Some(recorder)) = (self.recording, residency.recorder()) {
            recorder.set_time(u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        residency
    }

    /// From now on what happens to chunks is recorded.
    pub fn record(&mut self) {
        self.recording = Some(Instant::now());
        lock(&self.residency).record();
    }

    /// The program has got `bytes` (whole granules) at `address`, in a block of a pool that may be larger.
    pub fn add_extent(&self, address: u64, bytes: u64) {
        self.residency().add_extent(address - self.base, bytes);
    }

    /// The program has given a block of a pool back.
    pub fn remove_extent(&self, address: u64) {
        self.residency().remove_extent(address - self.base);
    }

    /// Whether `address` lies in this arena.
    pub fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(self.base) < self.bytes
    }

    /// What to ask the driver for memory in RAM next to this device.
    ///
    /// # Errors
    /// `CUDA_ERROR_NOT_SUPPORTED` where the device cannot map host memory.
    pub fn ram_properties(&self) -> CuResult<CUmemAllocationProp> {
        self.gpu.ram_properties()
    }

    /// Looks at (or charges) the state of the device's memory.
    pub fn with_memory<T>(&self, look: impl FnOnce(&mut DeviceMemory) -> T) -> T {
        look(&mut lock(&self.memory))
    }

    /// The live allocation that `address` lies in, with its start address.
    pub fn find(&self, address: u64) -> Option<(u64, Allocation)> {
        let offset = address.checked_sub(self.base)?;
        let allocation = self.with_memory(|memory| memory.find(offset).cloned())?;
        Some((self.base + allocation.offset, allocation))
    }

    /// Makes an allocation of `bytes` (at least 1).
    ///
    /// # Errors
    /// See [`Refusal`]. Nothing has changed then.
    pub fn allocate(&self, owner: Owner, bytes: u64, room: Room) -> Result<Placed, Refusal> {
        let answer = self.with_memory(|memory| memory.allocate(owner, bytes, room));
        match answer {
            Answer::Ready(offset) => Ok(Placed { address: self.base + offset, spilled_bytes: 0 }),
            Answer::NoRoom => Err(Refusal::NoRoom),
            Answer::Place(plan) => {
                let plan = self.carry_out(plan)?;
                let small = bytes <= SMALL_BYTES;
                let offset = self.with_memory(|memory| memory.commit(plan.ticket)).ok_or(Refusal::NoRoom)?;
                self.tell_residency(&plan, small);
                if !small {
                    self.residency().add_extent(offset, plan.chunks.iter().map(|chunk| chunk.bytes).sum());
                }
                Ok(Placed { address: self.base + offset, spilled_bytes: plan.bytes_in(Tier::Ram) })
            }
        }
    }

    /// Makes adjacent chunks of `bytes` (more than a small allocation) in all, each an allocation of its own.
    ///
    /// # Errors
    /// See [`Refusal`]. Nothing has changed then.
    pub fn allocate_chunks(&self, owner: Owner, bytes: u64, room: Room) -> Result<PlacedChunks, Refusal> {
        let Answer::Place(plan) = self.with_memory(|memory| memory.allocate(owner, bytes, room)) else {
            return Err(Refusal::NoRoom);
        };
        let plan = self.carry_out(plan)?;
        let chunks = self.with_memory(|memory| memory.commit_chunks(plan.ticket));
        self.tell_residency(&plan, false);
        let chunks = chunks.into_iter().map(|(offset, bytes)| (self.base + offset, bytes)).collect();
        Ok(PlacedChunks { chunks, spilled_bytes: plan.bytes_in(Tier::Ram) })
    }

    fn tell_residency(&self, plan: &Plan, fixed: bool) {
        let mut residency = self.residency();
        for chunk in &plan.chunks {
            residency.add_chunk(chunk.offset, chunk.bytes, chunk.tier, fixed);
        }
    }

    /// Creates and maps a plan's chunks, all or none. Gives the plan as it was carried out.
    fn carry_out(&self, mut plan: Plan) -> Result<Plan, Refusal> {
        let (mut mapped, peers) = (Vec::with_capacity(plan.chunks.len()), self.gpu.peers());
        for index in 0..plan.chunks.len() {
            match self.place(&mut plan, index) {
                Ok(handle) => mapped.push((plan.chunks[index], handle)),
                Err(error) => {
                    for &(chunk, handle) in &mapped {
                        self.drop_chunk(chunk, handle, true);
                    }
                    self.with_memory(|memory| memory.abandon(plan.ticket));
                    return Err(if error.is_out_of_memory() { Refusal::NoRoom } else { Refusal::Driver(error) });
                }
            }
        }
        lock(&self.handles).extend(mapped.iter().map(|(chunk, handle)| (chunk.offset, *handle)));
        let _ = self.catch_up(plan.chunks.iter().map(|chunk| (chunk.offset, chunk.bytes)), peers);
        Ok(plan)
    }

    /// Creates and maps one chunk of a plan, in RAM if VRAM turns out to have no room.
    fn place(&self, plan: &mut Plan, index: usize) -> CuResult<Handle> {
        let chunk = plan.chunks[index];
        let error = match self.create_and_map(chunk) {
            Ok(handle) => return Ok(handle),
            Err(error) => error,
        };
        if !error.is_out_of_memory() {
            return Err(error);
        }
        let tier = self.with_memory(|memory| memory.refused(plan.ticket, index)).ok_or(error)?;
        plan.chunks[index].tier = tier;
        self.create_and_map(plan.chunks[index])
    }

    fn create_and_map(&self, chunk: Chunk) -> CuResult<Handle> {
        let handle = self.gpu.create(chunk.tier, chunk.bytes)?;
        match self.gpu.map(self.base + chunk.offset, chunk.bytes, handle) {
            Ok(()) => Ok(handle),
            Err(error) => {
                let _ = self.gpu.release(handle);
                Err(error)
            }
        }
    }

    /// Takes the allocation that starts at `address` away from the program.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` if none starts there.
    pub fn free(&self, address: u64) -> CuResult<Release> {
        let release =
            self.with_memory(|memory| memory.free(address - self.base)).map_err(|_| CuError::INVALID_VALUE)?;
        let chunks = self.with_memory(|memory| memory.dying_chunks(release.id));
        if !chunks.is_empty() {
            self.residency().remove_extent(address - self.base);
        }
        Ok(release)
    }

    /// Gives the memory of a freed allocation back; the GPU is done with it.
    pub fn retire(&self, id: AllocationId) {
        self.exports.withdraw(id);
        // Its own chunks may be moving: only when they have settled is it known where they are.
        let own = self.with_memory(|memory| memory.dying_chunks(id));
        own.iter().for_each(|chunk| self.settle_for_good(chunk.offset));
        let chunks = self.with_memory(|memory| memory.retired(id));
        if own.is_empty() {
            chunks.iter().for_each(|chunk| self.settle_for_good(chunk.offset));
        }
        for &chunk in &chunks {
            if let Err(error) = self.clear(chunk.offset) {
                crate::log::debug(format_args!("a mapping that was left at {:#x}: {error}", chunk.offset));
            }
            let mut hidden = self.hidden.as_ref().map(lock);
            let handle = lock(&self.handles).remove(&chunk.offset);
            if let Some(handle) = handle {
                let mapped = !hidden.as_mut().is_some_and(|hidden| hidden.remove(&chunk.offset));
                self.drop_chunk(chunk, handle, mapped);
            }
        }
        self.with_memory(|memory| memory.released(&chunks));
    }

    fn settle_for_good(&self, offset: u64) {
        let mut residency = self.residency();
        while !residency.remove_chunk(offset) {
            residency = self.settled.wait(residency).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts another handle behind a chunk's address (`map` false: in its place, with nothing of the chunk's behind the address until
    /// [`Self::show`] or the next move). What the chunk holds (`holds` false: nothing) has been copied, and no work touches it.
    pub fn replace(&self, offset: u64, bytes: u64, to: Tier, handle: Handle, map: bool, holds: bool) -> Replaced {
        let Some(before) = lock(&self.handles).get(&offset).copied() else {
            return Replaced::Unchanged(CuError::INVALID_VALUE);
        };
        let address = self.base + offset;
        let was_hidden = self.is_hidden(offset);
        let is_there = was_hidden && map && self.leftover(offset) == Some(handle);
        if !is_there && let Err(error) = self.clear(offset) {
            return Replaced::Unchanged(error);
        }
        let leaves = self.leaves && !was_hidden && !map && !holds && to == Tier::Ram;
        if leaves {
            self.leftovers.leave(offset, bytes, before, self.gpu.peers());
        } else if !was_hidden && let Err(error) = self.gpu.unmap(address, bytes) {
            return Replaced::Unchanged(error);
        }
        if is_there {
            self.leftovers.taken(offset);
        } else if map && let Err(error) = self.gpu.map(address, bytes, handle) {
            if was_hidden {
                return Replaced::Unchanged(error);
            }
            return match self.gpu.map(address, bytes, before) {
                Ok(()) => Replaced::Unchanged(error),
                Err(_) => Replaced::Unmapped(error),
            };
        }
        lock(&self.handles).insert(offset, handle);
        self.set_hidden(offset, !map);
        self.with_memory(|memory| memory.moved(offset, to));
        Replaced::Done(before)
    }

    /// Where a chunk can be read from: its address, or another one where nothing is mapped there.
    ///
    /// # Errors
    /// The driver's own.
    pub fn readable_at(&self, offset: u64, bytes: u64) -> CuResult<u64> {
        if !self.is_hidden(offset) {
            return Ok(self.base + offset);
        }
        let handle = lock(&self.handles).get(&offset).copied().ok_or(CuError::INVALID_VALUE)?;
        self.aliases.of(&*self.gpu, handle, bytes)
    }

    /// Maps again what lies behind a chunk's address after [`Replaced::Unmapped`].
    ///
    /// # Errors
    /// The driver's own.
    pub fn map_again(&self, offset: u64, bytes: u64) -> CuResult {
        let handle = lock(&self.handles).get(&offset).copied().ok_or(CuError::INVALID_VALUE)?;
        self.clear(offset)?;
        self.gpu.map(self.base + offset, bytes, handle)
    }

    /// Releases memory that is mapped nowhere but at its alias, if it has one, and where a mapping was left.
    ///
    /// # Errors
    /// The driver's own.
    pub fn release(&self, handle: Handle) -> CuResult {
        self.contents.forget(handle);
        let cleared = self.clear_all(handle);
        cleared.and(self.aliases.release(&*self.gpu, handle))
    }

    fn drop_chunk(&self, chunk: Chunk, handle: Handle, mapped: bool) {
        // After a fatal error of the context these fail; the process's end then gives the memory back.
        let unmapped = if mapped { self.gpu.unmap(self.base + chunk.offset, chunk.bytes) } else { Ok(()) };
        let released = self.release(handle);
        if let Err(error) = unmapped.and(released) {
            crate::log::debug(format_args!("giving {} bytes of {} back: {error}", chunk.bytes, chunk.tier));
        }
    }
}

#[cfg(test)]
#[path = "arena/tests.rs"]
pub(crate) mod tests;
