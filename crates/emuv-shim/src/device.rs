//! One GPU as the session sees it: its arena, its contexts, what is accounted on it.

#[path = "device/room.rs"]
mod room;

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::Ordering::Relaxed,
};

use emuv_cuda::{CUresult, CuError, CuResult, DriverGpu, types::*};
use emuv_policy::{Allocation, AllocationId, Budgets, Bytes, Owner, PoolId, Release, SMALL_BYTES, Tier};

use crate::{
    account::{Accounts, Kind},
    arena::{Arena, Placed, Refusal, lock},
    calls,
    leases::{self, Share, Wants},
    log,
    moves::Moves,
    pools::{On, POOL_OWNER, Pools},
    session::{self, Session},
    sites::Sites,
    slice::GpuAccount,
    sync::Mutex,
    timeline::Timeline,
    turns,
};

/// Address space per device: more than any card plus host has.
const ARENA_BYTES: u64 = 1 << 40;

/// VRAM left to the driver (modules, local memory, its own pools) while RAM still has room.
const DRIVER_RESERVE_BYTES: u64 = 256 << 20;

/// See the module's head.
pub(crate) struct Device {
    /// Its CUDA ordinal in this process.
    pub ordinal: CUdevice,
    /// What is placed on it.
    pub arena: Arena,
    /// What is only charged.
    pub accounts: Accounts,
    pub(crate) physical_bytes: u64,
    /// It can map host memory.
    pub(crate) has_ram_tier: bool,
    /// What the process has on it of the slice that it is in; `None`: it is in none, or this is none of the slice's GPUs.
    pub(crate) slice_account: Option<&'static GpuAccount>,
    /// What this process is to have of that slice.
    pub(crate) share: Share,
    /// Handles that have meant the primary context.
    primaries: Mutex<HashSet<Owner>>,
    /// Contexts seen so far, and whether each is the primary one.
    contexts: Mutex<HashMap<Owner, bool>>,
    /// Stream-ordered pools.
    pub pools: Pools,
    /// What moves between the tiers.
    pub moves: Moves,
    /// What it holds and moves, over time.
    pub timeline: Timeline,
    /// Where in the program its memory was allocated.
    pub sites: Sites,
    /// Freed, but not yet to be given back.
    deferred: Mutex<Vec<Deferred>>,
}

/// A freed allocation that the GPU may still touch.
struct Deferred {
    release: Release,
    /// Until this event is reached; `None`: until its context could be waited for (a capture forbade it).
    event: Option<usize>,
}

impl Device {
    /// Prepares a device.
    ///
    /// # Errors
    /// The driver's own; `CUDA_ERROR_NOT_SUPPORTED` where it has no virtual memory management.
    pub fn open(session: &Session, ordinal: CUdevice) -> CuResult<Self> {
        let real = session.real;
        let gpu = DriverGpu::new(&real.driver, ordinal)?;
        let physical_bytes = calls::total_memory(real, ordinal)?;
        let slice_account = match session.slice {
            Some(slice) => slice.on(&calls::uuid(real, ordinal)?),
            None => None,
        };
        let none = session.slice.is_some() && slice_account.is_none();
        if none {
            log::error(format_args!("GPU {ordinal} is none that the slice is of; the program gets none of its memory"));
        }
        let vram = session.limits.vram.map_or(physical_bytes, |cap| cap.0.min(physical_bytes));
        let has_ram_tier = gpu.has_ram_tier();
        let ram = if has_ram_tier { session.limits.ram.0 } else { 0 };
        let (vram, ram) = if none { (0, 0) } else { (vram, ram) };
        let budgets = if session.slice.is_some() { Budgets::shared(vram, ram) } else { Budgets::new(vram, ram) };
        if ram == 0 && session.limits.ram > Bytes::ZERO && !none {
            log::error(format_args!("GPU {ordinal} cannot use host memory for chunks; nothing spills there"));
        }
        let mut arena = Arena::reserve(Box::new(gpu), ARENA_BYTES, budgets, session.policy)?;
        if session.trace.is_some() {
            arena.record();
        }
        if session.verify.is_some() || session.moves() {
            // What is out of a kernel's reach is to show.
            arena.may_hide(session.verify.is_none());
        }
        let device = Self {
            ordinal,
            arena,
            accounts: Accounts::default(),
            physical_bytes,
            has_ram_tier,
            slice_account,
            share: Share::default(),
            primaries: Mutex::default(),
            contexts: Mutex::default(),
            pools: Pools::default(),
            moves: Moves::default(),
            timeline: session.new_timeline(ordinal),
            sites: session.new_sites(),
            deferred: Mutex::default(),
        };
        if let Some(counters) = session.counters(ordinal) {
            counters.set_identity(calls::uuid(real, ordinal)?, &calls::name(real, ordinal)?);
            counters.vram_physical_bytes.store(physical_bytes, Relaxed);
            counters.vram.budget_bytes.store(vram, Relaxed);
            counters.ram.budget_bytes.store(ram, Relaxed);
        }
        log::debug(format_args!("GPU {ordinal}: {} VRAM, {} RAM", Bytes(vram), Bytes(ram)));
        if slice_account.is_some()
            && let Err(error) = leases::follow(ordinal)
        {
            log::error(format_args!("no thread to follow the slice's limits with ({error}); they stay as they are"));
        }
        if let Some(slice) = session.slice.filter(|_| slice_account.is_some())
            && let Err(error) = turns::follow(session, ordinal, slice)
        {
            log::error(format_args!("no thread to take turns with ({error}); the driver divides the GPU's time"));
        }
        Ok(device)
    }

    /// Tells other processes of a device on which nothing is placed: it has no budgets.
    pub fn leave_to_driver(session: &Session, ordinal: CUdevice) {
        let identity =
            calls::uuid(session.real, ordinal).and_then(|uuid| Ok((uuid, calls::name(session.real, ordinal)?)));
        if let (Some(counters), Ok((uuid, name))) = (session.counters(ordinal), identity) {
            counters.set_identity(uuid, &name);
        }
    }

    /// What a program sees as the device's memory, in bytes.
    pub fn total_bytes(&self) -> u64 {
        let budgets = self.arena.with_memory(|memory| *memory.budgets());
        budgets.vram.limit_bytes() + budgets.ram.limit_bytes()
    }

    /// What a program sees as free, given the driver's word on what is free on the card.
    pub fn free_bytes(&self, session: &Session, driver_free_bytes: u64) -> u64 {
        self.look_at_slice(session);
        let budgets = self.arena.with_memory(|memory| *memory.budgets());
        // What other devices keep to move chunks into, and blocks that are still searched, they give back if need be.
        let others = session.others(self.ordinal);
        let kept: u64 =
            others.map(|other| other.moves.spare_ram_bytes() + other.pools.late_ram_bytes(&other.arena)).sum();
        let ram = budgets.ram.prospect_bytes().min(session.ram_left_bytes() + kept);
        let placeable = budgets.vram.prospect_bytes().min(driver_free_bytes) + ram;
        // Chunks will go to RAM for what is overdrawn.
        placeable.saturating_sub(budgets.vram.overdrawn_bytes())
            + self.moves.spare_bytes()
            + self.pools.late_bytes(&self.arena)
    }

    /// Makes an allocation for the current context, `owner`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn allocate(&self, session: &Session, owner: Owner, bytes: u64) -> Result<u64, Refusal> {
        let placed = self.place(session, owner, bytes).map(|placed| placed.address);
        self.count_allocation(session, placed.err());
        self.note_site(placed.ok(), bytes);
        placed
    }

    /// Allocates from a stream-ordered pool of emuV's.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn allocate_in_order(&self, session: &Session, pool: PoolId, bytes: u64, on: On) -> Result<u64, Refusal> {
        let address = self.pools.allocate(session, self, pool, bytes, on);
        self.count_allocation(session, address.err());
        self.note_site(address.ok(), bytes);
        address
    }

    fn note_site(&self, address: Option<u64>, bytes: u64) {
        if let Some(address) = address {
            self.sites.note(address.wrapping_sub(self.arena.base()), bytes);
        }
    }

    fn count_allocation(&self, session: &Session, refusal: Option<Refusal>) {
        let Some(counters) = session.counters(self.ordinal) else { return };
        match refusal {
            None => counters.allocations.fetch_add(1, Relaxed),
            Some(Refusal::NoRoom) => counters.refused.fetch_add(1, Relaxed),
            Some(Refusal::Driver(_)) => 0,
        };
    }

    /// Places `bytes`, after making room if there is none.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn place(&self, session: &Session, owner: Owner, bytes: u64) -> Result<Placed, Refusal> {
        self.settle_deferred(session);
        let placed = self.with_room(session, bytes, |room| self.arena.allocate(owner, bytes, room));
        if let (Ok(placed), Some(counters)) = (placed, session.counters(self.ordinal)) {
            counters.spilled_bytes.fetch_add(placed.spilled_bytes, Relaxed);
        }
        self.publish(session);
        placed
    }

    /// Places `bytes` (more than a small allocation) as adjacent chunks for a pool, after making room if there is
    /// none.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn place_chunks(&self, session: &Session, bytes: u64) -> Result<Vec<(u64, u64)>, Refusal> {
        self.settle_deferred(session);
        let placed = self.with_room(session, bytes, |room| self.arena.allocate_chunks(POOL_OWNER, bytes, room));
        if let (Ok(placed), Some(counters)) = (&placed, session.counters(self.ordinal)) {
            counters.spilled_bytes.fetch_add(placed.spilled_bytes, Relaxed);
        }
        self.publish(session);
        placed.map(|placed| placed.chunks)
    }

    /// Whether `bytes` more would lie in VRAM.
    pub fn has_vram_for(&self, session: &Session, bytes: u64) -> bool {
        let room = self.room(session, bytes);
        self.look_at_slice(session);
        bytes <= self.arena.with_memory(|memory| memory.vram_prospect_for(bytes, room))
    }

    /// Whether there is RAM for `bytes` more.
    pub fn has_ram_for(&self, session: &Session, bytes: u64) -> bool {
        let budget = self.arena.with_memory(|memory| memory.budgets().ram.prospect_bytes());
        bytes <= budget && bytes <= self.host_room(session)
    }

    /// Makes a handle for the program: in VRAM by `in_vram` (the program's own call), else in RAM.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn make_handle(
        &self,
        session: &Session,
        bytes: u64,
        in_vram: impl Fn() -> CuResult<u64>,
        in_ram: impl Fn() -> CuResult<u64>,
    ) -> Result<(u64, Tier), Refusal> {
        self.settle_deferred(session);
        let made = self.with_room(session, bytes, |room| {
            let mut tier = self.arena.with_memory(|memory| memory.charge_whole(bytes, room)).ok_or(Refusal::NoRoom)?;
            let mut made = if tier == Tier::Vram { in_vram() } else { in_ram() };
            let refused = made.as_ref().is_err_and(|error| error.is_out_of_memory());
            if refused && tier == Tier::Vram && self.arena.with_memory(|memory| memory.recharge_whole(bytes)) {
                tier = Tier::Ram;
                made = in_ram();
            }
            made.map(|handle| (handle, tier)).map_err(|error| {
                self.arena.with_memory(|memory| memory.credit_whole(bytes, tier));
                if error.is_out_of_memory() { Refusal::NoRoom } else { Refusal::Driver(error) }
            })
        });
        if let (Ok((_, Tier::Ram)), Some(counters)) = (made, session.counters(self.ordinal)) {
            counters.spilled_bytes.fetch_add(bytes, Relaxed);
        }
        self.count_allocation(session, made.err());
        self.publish(session);
        made
    }

    /// Makes a handle for the program in VRAM or nowhere.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn make_vram_handle(
        &self,
        session: &Session,
        bytes: u64,
        create: impl Fn() -> CuResult<u64>,
    ) -> Result<u64, Refusal> {
        self.with_room(session, bytes, |_| {
            if !self.arena.with_memory(|memory| memory.charge_spare(Tier::Vram, bytes, 0)) {
                return Err(Refusal::NoRoom);
            }
            create().map_err(|error| {
                self.arena.with_memory(|memory| memory.credit_whole(bytes, Tier::Vram));
                if error.is_out_of_memory() { Refusal::NoRoom } else { Refusal::Driver(error) }
            })
        })
    }

    /// Lets the driver create something that emuV does not place, if the VRAM budget has room for it: charged
    /// before, and booked under the handle that `create` gives.
    pub fn create_accounted(
        &self,
        session: &Session,
        kind: Kind,
        bytes: u64,
        create: impl FnOnce() -> CuResult<u64>,
    ) -> CUresult {
        let lease = self.lease(session, Wants::All(Tier::Vram, bytes));
        let charged = self.arena.with_memory(|memory| memory.charge_unspilled(bytes));
        self.end_lease(lease);
        if !charged {
            return self.refuse(session);
        }
        let created = create();
        match created {
            Ok(handle) => self.accounts.book(kind, handle, bytes),
            Err(_) => self.arena.with_memory(|memory| memory.credit_unspilled(bytes)),
        }
        self.publish(session);
        created.map(|_| ()).into()
    }

    /// Counts a request that has no room; the answer to give.
    pub fn refuse(&self, session: &Session) -> CUresult {
        if let Some(counters) = session.counters(self.ordinal) {
            counters.refused.fetch_add(1, Relaxed);
        }
        CUresult::OUT_OF_MEMORY
    }

    /// Frees the allocation that starts at `address` once its context's work is done, as the driver does.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` if none starts there, else what waiting for the GPU gave (the
    /// allocation is then still the program's).
    pub fn free(&self, session: &Session, address: u64) -> CuResult {
        let (_, allocation) = self.holds(address)?;
        if allocation.owner == POOL_OWNER {
            // Whoever used it is not known, so all work of the calling thread's context is waited for.
            let context = self.a_context().ok_or(CuError::INVALID_VALUE)?;
            self.arena.remove_extent(address);
            if session.captures.any() {
                self.pools.free_with_context(address, context);
            } else {
                self.moves.synchronize(session, &self.arena, context)?;
                self.pools.free_idle(address);
            }
        } else if session.captures.any() {
            let release = self.arena.free(address)?;
            lock(&self.deferred).push(Deferred { release, event: None });
        } else {
            self.settle_deferred(session);
            self.moves.synchronize(session, &self.arena, allocation.owner)?;
            let release = self.arena.free(address)?;
            self.arena.retire(release.id);
            self.publish(session);
        }
        self.count_free(session);
        Ok(())
    }

    /// Frees the allocation that starts at `address` once the stream has come that far.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` if none starts there, else the driver's own.
    pub fn free_in_order(&self, session: &Session, address: u64, on: On) -> CuResult {
        if self.pools.find(address).is_some_and(|(start, block)| start == address && block.block_bytes > SMALL_BYTES) {
            // Before the memory can be somebody else's.
            self.arena.remove_extent(address);
        }
        if self.pools.free(session, address, on) {
            self.count_free(session);
            return Ok(());
        }
        self.holds(address)?;
        let event = calls::in_context(session.real, on.context, || {
            calls::event_behind(session.real, on.handle, on.per_thread)
        })?;
        match self.arena.free(address) {
            Ok(release) => lock(&self.deferred).push(Deferred { release, event: Some(event) }),
            Err(error) => {
                calls::drop_event(session.real, event);
                return Err(error);
            }
        }
        self.count_free(session);
        Ok(())
    }

    /// The allocation of the program's that starts at `address`.
    fn holds(&self, address: u64) -> CuResult<(u64, Allocation)> {
        match self.find(address) {
            Some((start, allocation)) if start == address => Ok((start, allocation)),
            _ => Err(CuError::INVALID_VALUE),
        }
    }

    /// The allocation of the program's that `address` lies in, with its start. A pool's block is as large as
    /// the program asked for, and none while it is free.
    pub fn find(&self, address: u64) -> Option<(u64, Allocation)> {
        let (start, mut allocation) = self.arena.find(address)?;
        if allocation.owner != POOL_OWNER {
            return Some((start, allocation));
        }
        let (start, block) = self.pools.find(address)?;
        allocation.bytes = block.bytes;
        Some((start, allocation))
    }

    fn count_free(&self, session: &Session) {
        if let Some(counters) = session.counters(self.ordinal) {
            counters.frees.fetch_add(1, Relaxed);
        }
    }

    /// Gives back what was freed and is no longer in use, if no capture runs now.
    fn settle_deferred(&self, session: &Session) {
        if session.captures.any() || lock(&self.deferred).is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut *lock(&self.deferred));
        for deferred in waiting {
            let done = match deferred.event {
                Some(event) => calls::event_reached(session.real, event),
                None => calls::synchronize(session.real, deferred.release.owner).is_ok(),
            };
            if !done {
                lock(&self.deferred).push(deferred);
                continue;
            }
            if let Some(event) = deferred.event {
                calls::drop_event(session.real, event);
            }
            self.arena.retire(deferred.release.id);
        }
    }

    /// Remembers a context and whether it is the primary one.
    pub fn meet(&self, session: &Session, owner: Owner, context: CUcontext) {
        if lock(&self.contexts).contains_key(&owner) {
            return;
        }
        // Between a reset and the next use the primary context is none, and yet it is what the handle will mean again.
        let primary = calls::is_primary(session.real, self.ordinal, context)
            || (lock(&self.primaries).contains(&owner) && !calls::primary_is_active(session.real, self.ordinal));
        if primary {
            lock(&self.primaries).insert(owner);
        }
        lock(&self.contexts).insert(owner, primary);
    }

    /// The contexts seen so far that are alive.
    pub fn contexts(&self) -> Vec<Owner> {
        lock(&self.contexts).keys().copied().collect()
    }

    /// A context of it: the calling thread's, or else any that has been seen.
    pub fn a_context(&self) -> Option<Owner> {
        let contexts = lock(&self.contexts);
        let current =
            session::current().and_then(|session| calls::current_context(session.real).ok()).map(calls::owner);
        current.filter(|owner| contexts.contains_key(owner)).or_else(|| contexts.keys().min().copied())
    }

    /// What would die with a context: the given one, or the device's primary one.
    pub fn doomed(&self, context: Option<Owner>) -> Doomed {
        let owners: Vec<Owner> = match context {
            Some(owner) => vec![owner],
            None => lock(&self.contexts).iter().filter(|(_, primary)| **primary).map(|(owner, _)| *owner).collect(),
        };
        self.doomed_with(owners)
    }

    /// What would die with these contexts, of whichever device.
    fn doomed_with(&self, owners: Vec<Owner>) -> Doomed {
        let allocations = self.arena.with_memory(|memory| owners.iter().flat_map(|o| memory.owned_by(*o)).collect());
        self.moves.contexts_going(&owners);
        if let Some(session) = session::current() {
            session.turns.contexts_going(&owners);
        }
        Doomed { owners, allocations }
    }

    /// The contexts of `doomed` are gone, and their work with them.
    pub fn bury(&self, session: &Session, doomed: &Doomed) {
        session.contexts_gone(&doomed.owners);
        self.moves.contexts_gone(self, &doomed.owners);
        session.globals.forget_contexts(&doomed.owners);
        session.ipc.contexts_gone(self, &doomed.owners);
        for owner in &doomed.owners {
            let primary = lock(&self.contexts).remove(owner).unwrap_or(false);
            self.pools.context_gone(&self.arena, *owner, primary);
        }
        let mut releases = self.arena.with_memory(|memory| memory.owner_gone(&doomed.allocations));
        lock(&self.deferred).retain(|deferred| {
            let gone = doomed.owners.contains(&deferred.release.owner);
            if gone {
                releases.push(deferred.release.clone());
            }
            !gone
        });
        for release in releases {
            self.arena.retire(release.id);
        }
        self.publish(session);
    }

    /// Reads again what pools and graphs hold. Whether there is more room than before.
    pub fn refresh_accounts(&self, session: &Session) -> bool {
        let before = self.arena.with_memory(|memory| memory.unspilled_bytes());
        for pool in self.accounts.handles(Kind::Pool) {
            self.settle_pool(session, pool);
        }
        for handle in self.accounts.handles(Kind::Graph) {
            let bytes = calls::graph_memory(session.real, self.ordinal).unwrap_or(0);
            self.accounts.settle(session, self, Kind::Graph, handle, bytes);
        }
        self.publish(session);
        self.arena.with_memory(|memory| memory.unspilled_bytes()) < before
    }

    /// Charges what a stream-ordered pool holds now.
    pub fn settle_pool(&self, session: &Session, pool: u64) {
        let held = calls::pool_attribute(session.real, pool as CUmemoryPool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT);
        self.accounts.settle(session, self, Kind::Pool, pool, held.unwrap_or(0));
    }

    /// Writes the current figures where other processes read them.
    pub fn publish(&self, session: &Session) {
        let Some(counters) = session.counters(self.ordinal) else { return };
        let (budgets, unspilled) = self.arena.with_memory(|memory| (*memory.budgets(), memory.unspilled_bytes()));
        counters.vram.set_used(budgets.vram.used_bytes());
        counters.ram.set_used(budgets.ram.used_bytes());
        session.ram_used_bytes();
        counters.unspilled_bytes.store(unspilled, Relaxed);
        self.timeline.sample(session.began, counters);
        self.settle_slice(session);
        if budgets.ram.used_bytes() > self.moves.spare_ram_bytes() {
            session.say_that_it_spills(budgets.vram.used_bytes(), budgets.ram.limit_bytes());
        }
        let overdrawn = budgets.vram.overdrawn_bytes() > 0;
        if budgets.ram.used_bytes() > 0 || overdrawn || session.trace.is_some() {
            self.moves.begin(session, self.ordinal);
        }
    }

    /// The process ends: memory that is kept to move chunks into is the program's no more.
    pub fn publish_the_last(&self, session: &Session) {
        self.publish(session);
        let Some(counters) = session.counters(self.ordinal) else { return };
        let ram_bytes = self.moves.spare_ram_bytes();
        let vram_bytes = self.moves.spare_bytes().saturating_sub(ram_bytes);
        for (tier, spare_bytes) in [(&counters.vram, vram_bytes), (&counters.ram, ram_bytes)] {
            tier.set_used(tier.used_bytes.load(Relaxed).saturating_sub(spare_bytes));
        }
        self.timeline.sample(session.began, counters);
    }
}

/// What would die with the primary context of a device, on it and on the others: streams of that context may be known
/// there, and their movers may be at work in it.
pub(crate) fn doomed_with_primary(session: &Session, ordinal: CUdevice) -> Vec<(&Device, Doomed)> {
    let Some(device) = session.devices().find(|device| device.ordinal == ordinal) else { return Vec::new() };
    let doomed = device.doomed(None);
    let others = session.others(ordinal);
    let others: Vec<_> = others.map(|other| (other, other.doomed_with(doomed.owners.clone()))).collect();
    [(device, doomed)].into_iter().chain(others).collect()
}

/// What is about to die with one or more contexts.
pub(crate) struct Doomed {
    owners: Vec<Owner>,
    allocations: Vec<AllocationId>,
}
