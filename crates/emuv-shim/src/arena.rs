//! The executor: carries the plans of [`DeviceMemory`] out on one device, in one reserved address range.
//!
//! The mutexes here guard plain data and are never held across a call of [`Gpu`].

#[path = "arena/hidden.rs"]
mod hidden;
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
    sync::{Condvar, Instant, Mutex, MutexGuard, PoisonError},
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
    /// What is known of memory that the program cannot reach.
    pub contents: Contents,
    /// What other processes may have.
    pub exports: Exports,
    residency: Mutex<Residency>,
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
        let memory = Mutex::new(DeviceMemory::new(budgets, bytes));
        Ok(Self {
            gpu,
            base,
            bytes,
            memory,
            handles: Mutex::default(),
            aliases: Aliases::default(),
            contents: Contents::default(),
            exports: Exports::default(),
            residency: Mutex::new(Residency::new(policy)),
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

    /// Which chunks may move, and which works are under way.
    pub fn residency(&self) -> MutexGuard<'_, Residency> {
        let mut residency = lock(&self.residency);
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

    /// The program has got this block of a pool (`bytes` of whole chunks at `address`).
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

    /// Puts another handle behind a chunk's address (`map` false: in its place, with nothing behind the address until
    /// [`Self::show`] or the next move). What the chunk holds has been copied, and no work touches it.
    pub fn replace(&self, offset: u64, bytes: u64, to: Tier, handle: Handle, map: bool) -> Replaced {
        let Some(before) = lock(&self.handles).get(&offset).copied() else {
            return Replaced::Unchanged(CuError::INVALID_VALUE);
        };
        let address = self.base + offset;
        let was_hidden = self.is_hidden(offset);
        if !was_hidden && let Err(error) = self.gpu.unmap(address, bytes) {
            return Replaced::Unchanged(error);
        }
        if map && let Err(error) = self.gpu.map(address, bytes, handle) {
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
        self.gpu.map(self.base + offset, bytes, handle)
    }

    /// Releases memory that is mapped nowhere but at its alias, if it has one.
    ///
    /// # Errors
    /// The driver's own.
    pub fn release(&self, handle: Handle) -> CuResult {
        self.contents.forget(handle);
        self.aliases.release(&*self.gpu, handle)
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
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use emuv_cuda::CUresult;
    use emuv_policy::GRANULE;

    use super::*;

    const MIB: u64 = 1 << 20;
    const BASE: u64 = 0x10_0000_0000;

    /// A device that counts, and refuses what it is told to.
    #[derive(Default)]
    struct Counting {
        state: Mutex<State>,
    }

    #[derive(Default)]
    struct State {
        next: u64,
        handles: BTreeMap<u64, (Tier, u64)>,
        mapped: BTreeMap<u64, u64>,
        vram_room: Option<u64>,
        ram_room: Option<u64>,
        fail_map: Option<u32>,
    }

    #[derive(Clone, Default)]
    struct Shared(Arc<Counting>);

    impl std::ops::Deref for Shared {
        type Target = Counting;
        fn deref(&self) -> &Counting {
            &self.0
        }
    }

    impl Gpu for Shared {
        fn granularity_bytes(&self) -> u64 {
            GRANULE
        }
        fn reserve(&self, bytes: u64, _: u64) -> CuResult<u64> {
            if bytes > 1 << 38 { CUresult::OUT_OF_MEMORY.ok().map(|()| 0) } else { Ok(BASE) }
        }
        fn unreserve(&self, _: u64, _: u64) -> CuResult {
            Ok(())
        }
        fn create(&self, tier: Tier, bytes: u64) -> CuResult<Handle> {
            let mut state = lock(&self.state);
            let held: u64 = state.handles.values().filter(|(t, _)| *t == tier).map(|(_, b)| b).sum();
            let room = if tier == Tier::Vram { state.vram_room } else { state.ram_room };
            if held + bytes > room.unwrap_or(u64::MAX) {
                CUresult::OUT_OF_MEMORY.ok()?;
            }
            state.next += 1;
            let handle = state.next;
            state.handles.insert(handle, (tier, bytes));
            Ok(Handle(handle))
        }
        fn release(&self, handle: Handle) -> CuResult {
            assert!(lock(&self.state).handles.remove(&handle.0).is_some(), "released twice");
            Ok(())
        }
        fn map(&self, address: u64, _: u64, handle: Handle) -> CuResult {
            let mut state = lock(&self.state);
            if let Some(code) = state.fail_map {
                CUresult(code).ok()?;
            }
            assert!(state.mapped.insert(address, handle.0).is_none(), "mapped twice");
            Ok(())
        }
        fn ram_properties(&self) -> CuResult<CUmemAllocationProp> {
            Err(CuError::NOT_SUPPORTED)
        }
        fn unmap(&self, address: u64, _: u64) -> CuResult {
            assert!(lock(&self.state).mapped.remove(&address).is_some(), "was not mapped");
            Ok(())
        }
    }

    fn arena(vram_mib: u64, ram_mib: u64) -> (Shared, Arena) {
        let gpu = Shared::default();
        let budgets = Budgets::new(vram_mib * MIB, ram_mib * MIB);
        let arena = Arena::reserve(Box::new(gpu.clone()), 1 << 40, budgets, Policy::Static).unwrap();
        (gpu, arena)
    }

    fn room(mib: u64) -> Room {
        Room { vram_bytes: mib * MIB, vram_reserve_bytes: 0, ram_bytes: u64::MAX }
    }

    fn is_empty(gpu: &Counting) -> bool {
        let state = lock(&gpu.state);
        state.handles.is_empty() && state.mapped.is_empty()
    }

    #[test]
    fn a_smaller_address_range_will_do() {
        let (_, arena) = arena(10, 0);
        assert_eq!(arena.bytes, 1 << 38);
        assert!(arena.contains(BASE) && arena.contains(BASE + (1 << 38) - 1));
        assert!(!arena.contains(BASE - 1) && !arena.contains(BASE + (1 << 38)));
    }

    #[test]
    fn what_vram_does_not_hold_goes_to_ram() {
        let (gpu, arena) = arena(64, 64);
        let placed = arena.allocate(Owner(1), 100 * MIB, room(1000)).unwrap();
        // 2 MiB of VRAM, a thirty-second of the budget, is left to hot allocations.
        assert_eq!(placed.spilled_bytes, 38 * MIB);
        let release = arena.free(placed.address).unwrap();
        arena.retire(release.id);
        assert!(is_empty(&gpu));
    }

    #[test]
    fn vram_that_the_driver_refuses_is_taken_from_ram() {
        let (gpu, arena) = arena(64, 64);
        lock(&gpu.state).vram_room = Some(32 * MIB);
        let placed = arena.allocate(Owner(1), 64 * MIB, room(1000)).unwrap();
        assert_eq!(placed.spilled_bytes, 32 * MIB);
        let used = arena.with_memory(|memory| *memory.budgets());
        assert_eq!((used.vram.used_bytes(), used.ram.used_bytes()), (32 * MIB, 32 * MIB));
    }

    #[test]
    fn a_refusal_by_both_tiers_leaves_nothing_behind() {
        let (gpu, arena) = arena(64, 64);
        let kept = arena.allocate(Owner(1), 32 * MIB, room(1000)).unwrap();
        lock(&gpu.state).vram_room = Some(32 * MIB);
        lock(&gpu.state).ram_room = Some(16 * MIB);
        assert_eq!(arena.allocate(Owner(1), 64 * MIB, room(1000)), Err(Refusal::NoRoom));
        let used = arena.with_memory(|memory| *memory.budgets());
        assert_eq!((used.vram.used_bytes(), used.ram.used_bytes()), (32 * MIB, 0));
        assert_eq!(arena.find(kept.address + 5).map(|(start, a)| (start, a.bytes)), Some((kept.address, 32 * MIB)));
    }

    #[test]
    fn another_failure_of_the_driver_is_told_as_it_is_and_undone() {
        let (gpu, arena) = arena(64, 64);
        lock(&gpu.state).fail_map = Some(719);
        let refusal = arena.allocate(Owner(1), 40 * MIB, room(1000)).unwrap_err();
        assert!(matches!(refusal, Refusal::Driver(error) if error.code() == CUresult(719)));
        assert!(is_empty(&gpu));
    }

    #[test]
    fn a_pools_chunks_are_given_back_one_by_one() {
        let (gpu, arena) = arena(64, 64);
        let placed = arena.allocate_chunks(Owner(1), 80 * MIB, room(1000)).unwrap();
        assert_eq!(placed.spilled_bytes, 18 * MIB);
        assert_eq!(placed.chunks.iter().map(|(_, bytes)| bytes / MIB).collect::<Vec<_>>(), [32, 16, 8, 4, 2, 16, 2]);
        for (address, _) in placed.chunks {
            let release = arena.free(address).unwrap();
            arena.retire(release.id);
        }
        assert!(is_empty(&gpu));
    }

    #[test]
    fn freeing_an_address_inside_or_twice_is_an_error() {
        let (_, arena) = arena(64, 64);
        let placed = arena.allocate(Owner(1), 5 * MIB, room(1000)).unwrap();
        assert!(arena.free(placed.address + 512).is_err());
        assert!(arena.free(placed.address).is_ok());
        assert!(arena.free(placed.address).is_err());
    }
}
