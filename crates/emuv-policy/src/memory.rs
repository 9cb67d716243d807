//! The memory of one device: what the program holds, cut into chunks, charged against budgets.
//!
//! States of an allocation:
//!
//! ```text
//!            allocate()            commit()              free() / owner_gone()        retired()
//!   (none) ------------> planned ------------> live -------------------------> dying -----------> (none)
//!                           | abandon()                                          (charged, address
//!                           v                                                     not reused)
//!                        (none)
//! ```
//!
//! A planned allocation is charged and holds its address range, so that plans made at the same time by
//! other threads cannot use them. A dying one is no longer the program's (a second free is an error) but
//! stays charged until the caller has seen the GPU finish with it and has released its memory.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Tier,
    budget::Budgets,
    chunk::{self, Chunk, GRANULE, Rooms},
    slab::Slab,
    space::AddressSpace,
};

/// Allocations up to this size share a granule; larger ones have chunks of their own.
pub const SMALL_BYTES: u64 = 1 << 20;

/// Allocations up to this size are taken to be hot (activations of a step, workspaces, counters): they may use
/// the VRAM that larger ones leave to them.
pub const HOT_BYTES: u64 = 16 << 20;

/// The part of the VRAM budget that large allocations leave to hot ones while RAM has room: small data that is
/// touched by every kernel costs far more in RAM than the same bytes of a large tensor.
pub(crate) const HOT_SHARE: u64 = 32;

/// The part of the VRAM budget that all others leave to small allocations ([`SMALL_BYTES`]), which every kernel touches and which
/// do not move: what is taken of it is made free again, so it need only last until then. At least so many bytes, of a small budget
/// a larger part.
const SMALL_SHARE: u64 = 256;
const LEAST_SMALL_BYTES: u64 = 32 << 20;
const MOST_SMALL_SHARE: u64 = 64;

/// VRAM that is left to small allocations, of a budget of `limit_bytes`.
pub fn left_to_small_bytes(limit_bytes: u64) -> u64 {
    (limit_bytes / SMALL_SHARE).max(LEAST_SMALL_BYTES).min(limit_bytes / MOST_SMALL_SHARE)
}

/// VRAM that an allocation of `bytes` leaves to others while RAM has room, of a budget of `limit_bytes`.
pub(crate) fn held_back(limit_bytes: u64, bytes: u64) -> u64 {
    match () {
        () if bytes <= SMALL_BYTES => 0,
        () if bytes <= HOT_BYTES => left_to_small_bytes(limit_bytes),
        () => limit_bytes / HOT_SHARE,
    }
}

/// Whoever an allocation belongs to and dies with: a CUDA context's handle, to this crate just a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(pub u64);

/// A number that no other allocation of the process has or had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocationId(pub u64);

/// Names a plan while it is being carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What there is outside the budgets right now, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Free on the card, by the driver's word.
    pub vram_bytes: u64,
    /// How much of that to leave to the driver (modules, local memory) as long as RAM has room.
    pub vram_reserve_bytes: u64,
    /// What the host and the process's other devices leave of RAM.
    pub ram_bytes: u64,
}

/// What the program allocated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// Its number.
    pub id: AllocationId,
    /// Where it starts in the arena.
    pub offset: u64,
    /// The size that the program asked for.
    pub bytes: u64,
    /// Whom it dies with.
    pub owner: Owner,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Chunks of its own.
    Chunks(Vec<Chunk>),
    /// Room in the slab that starts at this offset.
    Slab(u64),
}

/// Answer to [`DeviceMemory::allocate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Memory is there already: the allocation is live at this offset.
    Ready(u64),
    /// Memory has to be created and mapped.
    Place(Plan),
    /// Neither tier has room. Nothing has changed.
    NoRoom,
}

/// Chunks to create and map, all or none; then [`DeviceMemory::commit`] or [`DeviceMemory::abandon`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Names this plan.
    pub ticket: Ticket,
    /// What to create and map.
    pub chunks: Vec<Chunk>,
}

impl Plan {
    /// Bytes that the plan puts in a tier.
    pub fn bytes_in(&self, tier: Tier) -> u64 {
        self.chunks.iter().filter(|chunk| chunk.tier == tier).map(|chunk| chunk.bytes).sum()
    }
}

/// An allocation that the program has given up. Once the GPU is done with it: [`DeviceMemory::retired`], which
/// gives the chunks to unmap and release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Names it.
    pub id: AllocationId,
    /// Whose work may still touch it.
    pub owner: Owner,
}

/// Why an address cannot be freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreeError {
    /// No allocation starts there (never did, or it has been freed).
    NotAnAllocation,
}

/// See the module's head.
#[derive(Debug)]
pub struct DeviceMemory {
    budgets: Budgets,
    /// Charged against VRAM but not ours to place: pools, arrays, the program's own handles.
    unspilled_bytes: u64,
    space: AddressSpace,
    /// By start offset.
    live: BTreeMap<u64, Allocation>,
    planned: BTreeMap<Ticket, Allocation>,
    dying: BTreeMap<AllocationId, Allocation>,
    slabs: BTreeMap<u64, (Slab, Tier)>,
    /// (upper bound of what fits in units, slab offset): the tightest slab that may do comes first.
    open_slabs: BTreeSet<(u64, u64)>,
    next: u64,
}

impl DeviceMemory {
    /// An empty device whose arena has `arena_bytes` of address space from the address `base` on.
    pub fn new(budgets: Budgets, base: u64, arena_bytes: u64) -> Self {
        Self {
            budgets,
            unspilled_bytes: 0,
            space: AddressSpace::new(base, arena_bytes / GRANULE * GRANULE),
            live: BTreeMap::new(),
            planned: BTreeMap::new(),
            dying: BTreeMap::new(),
            slabs: BTreeMap::new(),
            open_slabs: BTreeSet::new(),
            next: 1,
        }
    }

    /// Limits, use and peaks. VRAM use includes what is only accounted ([`Self::charge_unspilled`]).
    pub fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// To change limits, and what is granted of shared ones.
    pub fn budgets_mut(&mut self) -> &mut Budgets {
        &mut self.budgets
    }

    /// VRAM that an allocation of `bytes` leaves to smaller ones while RAM has room.
    pub fn held_back_for(&self, bytes: u64) -> u64 {
        held_back(self.budgets.vram.limit_bytes(), bytes)
    }

    /// Bytes charged by [`Self::charge_unspilled`].
    pub fn unspilled_bytes(&self) -> u64 {
        self.unspilled_bytes
    }

    /// Number of allocations that the program holds.
    pub fn live_count(&self) -> usize {
        self.live.len()
    }

    /// The program wants `bytes` (at least 1).
    pub fn allocate(&mut self, owner: Owner, bytes: u64, room: Room) -> Answer {
        let id = AllocationId(self.number());
        if bytes <= SMALL_BYTES {
            if let Some(offset) = self.take_from_slab(id, owner, bytes) {
                return Answer::Ready(offset);
            }
            return self.plan(id, owner, bytes, GRANULE, room);
        }
        match bytes.checked_next_multiple_of(GRANULE) {
            Some(size) => self.plan(id, owner, bytes, size, room),
            None => Answer::NoRoom,
        }
    }

    fn plan(&mut self, id: AllocationId, owner: Owner, bytes: u64, size: u64, room: Room) -> Answer {
        let vram = self.vram_for(bytes, room);
        let vram_reserve = self.budgets.vram.room_bytes().min(room.vram_bytes) - vram;
        let rooms = Rooms { vram, ram: self.budgets.ram.room_bytes().min(room.ram_bytes), vram_reserve };
        if size > rooms.vram.saturating_add(rooms.ram).saturating_add(rooms.vram_reserve) {
            return Answer::NoRoom;
        }
        let Some(offset) = self.space.take(size) else { return Answer::NoRoom };
        let Some(chunks) = chunk::place(offset, size, rooms) else {
            self.space.give(offset, size);
            return Answer::NoRoom;
        };
        for chunk in &chunks {
            let charged = self.budgets.of_mut(chunk.tier).charge(chunk.bytes);
            debug_assert!(charged, "a placement went beyond its budget");
        }
        let ticket = Ticket(self.number());
        let plan = Plan { ticket, chunks: chunks.clone() };
        self.planned.insert(ticket, Allocation { id, offset, bytes, owner, place: Place::Chunks(chunks) });
        Answer::Place(plan)
    }

    /// VRAM that a request of `bytes` may use before RAM is used.
    pub fn vram_for(&self, bytes: u64, room: Room) -> u64 {
        let held_back = self.held_back_for(bytes);
        let budget = &self.budgets.vram;
        // Of a shared budget, what nobody has been granted is held back first.
        let in_budget = budget.room_bytes().min(budget.prospect_bytes().saturating_sub(held_back));
        in_budget.min(room.vram_bytes.saturating_sub(room.vram_reserve_bytes))
    }

    /// The same, counting what of a shared budget could be granted.
    pub fn vram_prospect_for(&self, bytes: u64, room: Room) -> u64 {
        let in_budget = self.budgets.vram.prospect_bytes().saturating_sub(self.held_back_for(bytes));
        in_budget.min(room.vram_bytes.saturating_sub(room.vram_reserve_bytes))
    }

    /// The driver had no room for chunk `index` of a plan in the tier it was given. Gives the other tier
    /// if that has room in its budget (the charge moves along), else `None`: then the plan is to be undone
    /// and abandoned.
    pub fn refused(&mut self, ticket: Ticket, index: usize) -> Option<Tier> {
        let Place::Chunks(chunks) = &mut self.planned.get_mut(&ticket)?.place else { return None };
        let chunk = chunks.get_mut(index)?;
        // RAM that is refused is not tried in VRAM: VRAM was used up before RAM was chosen.
        if chunk.tier == Tier::Ram || !self.budgets.ram.charge(chunk.bytes) {
            return None;
        }
        self.budgets.vram.credit(chunk.bytes);
        chunk.tier = Tier::Ram;
        Some(Tier::Ram)
    }

    /// All chunks of a plan are mapped: the allocation is the program's. Gives its offset.
    pub fn commit(&mut self, ticket: Ticket) -> Option<u64> {
        let mut allocation = self.planned.remove(&ticket)?;
        let offset = allocation.offset;
        if let (true, Place::Chunks(chunks)) = (allocation.bytes <= SMALL_BYTES, &allocation.place) {
            let mut slab = Slab::new();
            // An empty slab has room for any small allocation, at its start.
            slab.take(allocation.bytes)?;
            self.open_slabs.insert((slab.fits_units(), offset));
            self.slabs.insert(offset, (slab, chunks.first()?.tier));
            allocation.place = Place::Slab(offset);
        }
        self.live.insert(offset, allocation);
        Some(offset)
    }

    /// As [`Self::commit`], each chunk an allocation of its own: for pools, which give memory back chunk by
    /// chunk. Gives their offsets and sizes.
    pub fn commit_chunks(&mut self, ticket: Ticket) -> Vec<(u64, u64)> {
        let Some(allocation) = self.planned.remove(&ticket) else { return Vec::new() };
        let Place::Chunks(chunks) = allocation.place else { return Vec::new() };
        for &chunk in &chunks {
            let id = AllocationId(self.number());
            let place = Place::Chunks(vec![chunk]);
            let owner = allocation.owner;
            self.live.insert(chunk.offset, Allocation { id, offset: chunk.offset, bytes: chunk.bytes, owner, place });
        }
        chunks.iter().map(|chunk| (chunk.offset, chunk.bytes)).collect()
    }

    /// A plan could not be carried out and nothing of it is left mapped.
    pub fn abandon(&mut self, ticket: Ticket) {
        let Some(allocation) = self.planned.remove(&ticket) else { return };
        if let Place::Chunks(chunks) = &allocation.place {
            self.give_back(chunks);
        }
    }

    /// The program frees the allocation that starts at `offset`.
    ///
    /// # Errors
    /// [`FreeError::NotAnAllocation`]; nothing has changed.
    pub fn free(&mut self, offset: u64) -> Result<Release, FreeError> {
        let allocation = self.live.remove(&offset).ok_or(FreeError::NotAnAllocation)?;
        let release = Release { id: allocation.id, owner: allocation.owner };
        self.dying.insert(allocation.id, allocation);
        Ok(release)
    }

    /// Everything that `owner` holds, for a context that is about to go.
    pub fn owned_by(&self, owner: Owner) -> Vec<AllocationId> {
        self.live.values().filter(|allocation| allocation.owner == owner).map(|allocation| allocation.id).collect()
    }

    /// Allocations that went with their context: they die without having been freed.
    pub fn owner_gone(&mut self, ids: &[AllocationId]) -> Vec<Release> {
        let wanted: BTreeSet<AllocationId> = ids.iter().copied().collect();
        let offsets: Vec<u64> =
            self.live.values().filter(|allocation| wanted.contains(&allocation.id)).map(|a| a.offset).collect();
        offsets.into_iter().filter_map(|offset| self.free(offset).ok()).collect()
    }

    /// The GPU is done with a dying allocation. Gives the chunks to unmap and release now: its own, or its
    /// slab's if it was the last one there. The chunks stay charged until [`Self::released`].
    pub fn retired(&mut self, id: AllocationId) -> Vec<Chunk> {
        let Some(allocation) = self.dying.remove(&id) else { return Vec::new() };
        match allocation.place {
            Place::Chunks(chunks) => chunks,
            Place::Slab(start) => {
                let Some((slab, tier)) = self.slabs.get_mut(&start) else { return Vec::new() };
                self.open_slabs.remove(&(slab.fits_units(), start));
                slab.give(allocation.offset - start, allocation.bytes);
                if !slab.is_empty() {
                    self.open_slabs.insert((slab.fits_units(), start));
                    return Vec::new();
                }
                let chunk = Chunk { offset: start, bytes: GRANULE, tier: *tier };
                self.slabs.remove(&start);
                vec![chunk]
            }
        }
    }

    /// Chunks given by [`Self::retired`] are unmapped and released.
    pub fn released(&mut self, chunks: &[Chunk]) {
        self.give_back(chunks);
    }

    /// The chunks of a dying allocation that go with it; none if it shares a slab.
    pub fn dying_chunks(&self, id: AllocationId) -> Vec<Chunk> {
        match self.dying.get(&id).map(|allocation| &allocation.place) {
            Some(Place::Chunks(chunks)) => chunks.clone(),
            _ => Vec::new(),
        }
    }

    /// A chunk of a live or dying allocation, or a slab's, has been moved: its memory and a spare of the other tier have changed
    /// places, so no budget changes.
    pub fn moved(&mut self, offset: u64, to: Tier) {
        if let Some((_, tier)) = self.slabs.get_mut(&offset) {
            *tier = to;
            return;
        }
        let live = self.live.range_mut(..=offset).next_back().map(|(_, allocation)| allocation);
        for allocation in live.into_iter().chain(self.dying.values_mut()) {
            if let Place::Chunks(chunks) = &mut allocation.place
                && let Some(chunk) = chunks.iter_mut().find(|chunk| chunk.offset == offset)
            {
                chunk.tier = to;
                return;
            }
        }
    }

    /// Charges memory that is kept ready to move chunks into. Says whether the budget had room for it with
    /// `leave_bytes` to spare; if not, nothing has changed.
    #[must_use]
    pub fn charge_spare(&mut self, tier: Tier, bytes: u64, leave_bytes: u64) -> bool {
        let budget = self.budgets.of_mut(tier);
        bytes.saturating_add(leave_bytes) <= budget.prospect_bytes() && budget.charge(bytes)
    }

    /// The live allocation that `offset` lies in.
    pub fn find(&self, offset: u64) -> Option<&Allocation> {
        let (_, allocation) = self.live.range(..=offset).next_back()?;
        (offset - allocation.offset < allocation.bytes).then_some(allocation)
    }

    /// The chunks behind the live allocation that starts at `offset`: its own, or its slab's.
    pub fn chunks(&self, offset: u64) -> Vec<Chunk> {
        match self.live.get(&offset).map(|allocation| &allocation.place) {
            None => Vec::new(),
            Some(Place::Chunks(chunks)) => chunks.clone(),
            Some(Place::Slab(start)) => {
                let tier = self.slabs.get(start).map(|(_, tier)| *tier);
                tier.map(|tier| Chunk { offset: *start, bytes: GRANULE, tier }).into_iter().collect()
            }
        }
    }

    /// The program makes a handle of its own of `bytes`: the tier to make it in, which is charged. `None`:
    /// neither has room, and nothing has changed.
    pub fn charge_whole(&mut self, bytes: u64, room: Room) -> Option<Tier> {
        let tier = match () {
            () if bytes <= self.vram_for(bytes, room) => Tier::Vram,
            () if bytes <= self.budgets.ram.room_bytes().min(room.ram_bytes) => Tier::Ram,
            () if bytes <= self.budgets.vram.room_bytes().min(room.vram_bytes) => Tier::Vram,
            () => return None,
        };
        self.budgets.of_mut(tier).charge(bytes).then_some(tier)
    }

    /// The driver refused VRAM for a handle that was charged there: whether RAM has room, to which the
    /// charge then has moved.
    #[must_use]
    pub fn recharge_whole(&mut self, bytes: u64) -> bool {
        let charged = self.budgets.ram.charge(bytes);
        if charged {
            self.budgets.vram.credit(bytes);
        }
        charged
    }

    /// Gives a charge of [`Self::charge_whole`] back.
    pub fn credit_whole(&mut self, bytes: u64, tier: Tier) {
        self.budgets.of_mut(tier).credit(bytes);
    }

    /// Charges memory that the program takes by a way that is not placed by emuV. Says whether the VRAM
    /// budget had room; if not, nothing has changed.
    #[must_use]
    pub fn charge_unspilled(&mut self, bytes: u64) -> bool {
        let charged = self.budgets.vram.charge(bytes);
        if charged {
            self.unspilled_bytes += bytes;
        }
        charged
    }

    /// The same for memory that is there whether it fits or not ([`crate::Budget::overdraw`]). Gives what it charged.
    pub fn charge_lent(&mut self, bytes: u64) -> u64 {
        let charged = self.budgets.vram.overdraw(bytes);
        self.unspilled_bytes += charged;
        charged
    }

    /// Gives a charge of [`Self::charge_unspilled`] back.
    pub fn credit_unspilled(&mut self, bytes: u64) {
        let bytes = bytes.min(self.unspilled_bytes);
        self.unspilled_bytes -= bytes;
        self.budgets.vram.credit(bytes);
    }

    fn take_from_slab(&mut self, id: AllocationId, owner: Owner, bytes: u64) -> Option<u64> {
        let units = Slab::units(bytes);
        // Each failed search lowers that slab's bound below `units`, so this ends.
        while let Some(&(bound, start)) = self.open_slabs.range((units, 0)..).next() {
            self.open_slabs.remove(&(bound, start));
            let (slab, _) = self.slabs.get_mut(&start)?;
            let within = slab.take(bytes);
            self.open_slabs.insert((slab.fits_units(), start));
            if let Some(within) = within {
                let offset = start + within;
                self.live.insert(offset, Allocation { id, offset, bytes, owner, place: Place::Slab(start) });
                return Some(offset);
            }
        }
        None
    }

    fn give_back(&mut self, chunks: &[Chunk]) {
        for chunk in chunks {
            self.budgets.of_mut(chunk.tier).credit(chunk.bytes);
            self.space.give(chunk.offset, chunk.bytes);
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}
