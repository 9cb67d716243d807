//! Memory that is kept ready to move chunks into. A move exchanges a chunk's handle for a spare of the other
//! tier, so in steady state none are made: making one in RAM (allocating, clearing, pinning) takes ten times as
//! long as the copy into it.

use std::collections::{BTreeMap, VecDeque};

use emuv_cuda::{CuResult, Handle};
use emuv_policy::{Budget, Tier, left_to_small_bytes};

use crate::{
    arena::{Arena, lock},
    contents::Hash,
    sync::Mutex,
};

/// The part of the RAM budget that is not taken for contents that may be wanted again.
const LAST_PART: u64 = 8;

/// For contents that may be wanted again more memory is made when so many times as much of them has been lost for want of it: while
/// memory in RAM is made nothing moves, for ten times as long as its bytes take to be copied (measured: 5 GB/s). What is in the way is
/// mostly what a plan before this one moved; and what a loop needs is made in the end.
const LOST_FOR_MORE: u64 = 4;

/// See the module's head. One per device.
#[derive(Default)]
pub(crate) struct Spares(Mutex<State>);

/// Memory that nothing lies in.
#[derive(Debug, Clone, Copy)]
struct Spare {
    handle: Handle,
    /// What it holds is what the chunk at this offset held when it went from here.
    left_by: Option<u64>,
}

#[derive(Default)]
struct State {
    vram: BTreeMap<u64, VecDeque<Spare>>,
    ram: BTreeMap<u64, VecDeque<Spare>>,
    /// Bytes of spares, also of those that a move is under way into.
    vram_bytes: u64,
    ram_bytes: u64,
    /// Contents that have been given up, in bytes, and for which nothing has been made.
    lost_bytes: u64,
    /// The driver has refused to make more (until something is given back).
    vram_refused: bool,
    ram_refused: bool,
}

impl State {
    fn of(&mut self, tier: Tier) -> (&mut BTreeMap<u64, VecDeque<Spare>>, &mut bool) {
        match tier {
            Tier::Vram => (&mut self.vram, &mut self.vram_refused),
            Tier::Ram => (&mut self.ram, &mut self.ram_refused),
        }
    }
}

impl State {
    fn count(&mut self, tier: Tier, change: impl FnOnce(u64) -> u64) {
        let bytes = if tier == Tier::Vram { &mut self.vram_bytes } else { &mut self.ram_bytes };
        *bytes = change(*bytes);
    }
}

fn bytes_of(spares: &BTreeMap<u64, VecDeque<Spare>>) -> u64 {
    spares.iter().map(|(bytes, handles)| bytes * handles.len() as u64).sum()
}

impl Spares {
    /// Bytes that can be had in a tier: spares, and what its budget still allows to be made.
    pub fn room_bytes(&self, arena: &Arena, tier: Tier) -> u64 {
        let budget: Budget = arena.with_memory(|memory| *memory.budgets().of(tier));
        let mut state = lock(&self.0);
        let (spares, refused) = state.of(tier);
        let more = if *refused { 0 } else { budget.prospect_bytes().saturating_sub(left(&budget, tier)) };
        bytes_of(spares) + more
    }

    /// Bytes of VRAM that hold no chunk, whatever they are kept for.
    pub fn free_vram_bytes(&self, arena: &Arena) -> u64 {
        let budget: Budget = arena.with_memory(|memory| *memory.budgets().of(Tier::Vram));
        self.room_bytes(arena, Tier::Vram) + budget.room_bytes().min(left(&budget, Tier::Vram))
    }

    /// Bytes of VRAM that no chunk is brought into: they are left to small allocations.
    pub fn left_vram_bytes(&self, arena: &Arena) -> u64 {
        left(arena.with_memory(|memory| *memory.budgets()).of(Tier::Vram), Tier::Vram)
    }

    /// What small allocations have taken of that: as much is to be made free again.
    pub fn taken_by_small_bytes(&self, arena: &Arena) -> u64 {
        let budget: Budget = arena.with_memory(|memory| *memory.budgets().of(Tier::Vram));
        left(&budget, Tier::Vram).saturating_sub(budget.prospect_bytes())
    }

    /// Whether there is a spare of exactly `bytes`.
    pub fn has(&self, tier: Tier, bytes: u64) -> bool {
        lock(&self.0).of(tier).0.get(&bytes).is_some_and(|handles| !handles.is_empty())
    }

    /// A handle of exactly `bytes` to be written to: a spare, or a new one, for which spares of other sizes are given up if the
    /// budget demands it; that only if `may_make` says so. Best what the chunk at `offset` left: in RAM that is out of date, and in VRAM it
    /// is still mapped there.
    ///
    /// # Errors
    /// The driver's own; `None` where the budget has no room.
    pub fn take(
        &self,
        arena: &Arena,
        tier: Tier,
        bytes: u64,
        offset: Option<u64>,
        may_make: impl Fn() -> bool,
    ) -> CuResult<Option<Handle>> {
        let own = offset.and_then(|offset| match tier {
            Tier::Ram => self.take_left_by(offset, bytes),
            Tier::Vram => {
                let left = arena.leftover(offset)?;
                self.take_where(tier, bytes, |spare| spare.handle == left)
            }
        });
        // Of no use to anybody else as it is.
        let is_worthless = |spare: &Spare| match tier {
            Tier::Ram => arena.contents.of(spare.handle).is_none(),
            Tier::Vram => !arena.is_left_somewhere(spare.handle),
        };
        let mut taken = match own.or_else(|| self.take_where(tier, bytes, is_worthless)) {
            // What they hold may be wanted again.
            None if tier == Tier::Ram && self.may_keep_more(arena) => self.make_or_lose(arena, bytes, &may_make)?,
            None => self.take_longest(tier, bytes),
            taken => taken,
        };
        if taken.is_none() && may_make() {
            taken = self.make(arena, tier, bytes, true)?;
        }
        Ok(taken.inspect(|handle| arena.contents.forget(*handle)))
    }

    /// One more in RAM if enough contents have been lost for it, else the one that has lain longest.
    fn make_or_lose(&self, arena: &Arena, bytes: u64, may_make: impl Fn() -> bool) -> CuResult<Option<Handle>> {
        let worth_bytes = LOST_FOR_MORE * bytes;
        if lock(&self.0).lost_bytes >= worth_bytes
            && may_make()
            && let Some(made) = self.make(arena, Tier::Ram, bytes, false)?
        {
            lock(&self.0).lost_bytes -= worth_bytes;
            return Ok(Some(made));
        }
        let taken = self.take_longest(Tier::Ram, bytes);
        if taken.is_some() {
            lock(&self.0).lost_bytes += bytes;
        }
        Ok(taken)
    }

    /// The spare that has lain longest.
    fn take_longest(&self, tier: Tier, bytes: u64) -> Option<Handle> {
        self.take_where(tier, bytes, |_| true)
    }

    /// The same of those that `is_right`.
    fn take_where(&self, tier: Tier, bytes: u64, is_right: impl Fn(&Spare) -> bool) -> Option<Handle> {
        let mut state = lock(&self.0);
        let spares = state.of(tier).0.get_mut(&bytes)?;
        let at = spares.iter().position(is_right)?;
        spares.remove(at).map(|spare| spare.handle)
    }

    /// Whether RAM has room for more of what may be wanted again: no more of it than all of VRAM could have come from, and not the
    /// last that allocations may need.
    fn may_keep_more(&self, arena: &Arena) -> bool {
        let budgets = arena.with_memory(|memory| *memory.budgets());
        let has_room = budgets.ram.prospect_bytes() > budgets.ram.limit_bytes() / LAST_PART;
        has_room && lock(&self.0).ram_bytes < budgets.vram.limit_bytes()
    }

    /// Makes a handle; `exchange`: spares of other sizes are given up for it if need be.
    fn make(&self, arena: &Arena, tier: Tier, bytes: u64, exchange: bool) -> CuResult<Option<Handle>> {
        // Counted before it is charged: who finds no room for an allocation waits for what is here to be given back.
        let uncount = || lock(&self.0).count(tier, |before| before.saturating_sub(bytes));
        lock(&self.0).count(tier, |before| before + bytes);
        let leave = arena.with_memory(|memory| left(memory.budgets().of(tier), tier));
        let charge = || arena.with_memory(|memory| memory.charge_spare(tier, bytes, leave));
        let charged = charge() || (exchange && self.give_back_of(arena, tier, bytes) > 0 && charge());
        if !charged {
            uncount();
            return Ok(None);
        }
        let made = arena.gpu().create(tier, bytes);
        if let Err(error) = &made {
            arena.with_memory(|memory| memory.credit_whole(bytes, tier));
            uncount();
            if error.is_out_of_memory() {
                *lock(&self.0).of(tier).1 = true;
                return Ok(None);
            }
        }
        made.map(Some)
    }

    /// The memory in RAM from which the chunk at `offset` was brought, if nothing has used it since.
    fn take_left_by(&self, offset: u64, bytes: u64) -> Option<Handle> {
        self.take_where(Tier::Ram, bytes, |spare| spare.left_by == Some(offset))
    }

    /// Memory in RAM that holds bytes with this hash.
    pub fn take_holding(&self, arena: &Arena, bytes: u64, hash: Hash) -> Option<Handle> {
        self.take_where(Tier::Ram, bytes, |spare| arena.contents.of(spare.handle) == Some(hash))
    }

    /// The chunk at `offset` has taken a spare's place in `to`, and left its own memory as a spare of the other tier.
    pub fn exchanged(&self, offset: u64, to: Tier, bytes: u64, left: Handle) {
        let from = if to == Tier::Vram { Tier::Ram } else { Tier::Vram };
        let mut state = lock(&self.0);
        // What it left earlier is out of date.
        for spare in state.ram.values_mut().flatten().filter(|spare| spare.left_by == Some(offset)) {
            spare.left_by = None;
        }
        state.count(to, |before| before.saturating_sub(bytes));
        state.count(from, |before| before + bytes);
        let spare = Spare { handle: left, left_by: (from == Tier::Ram).then_some(offset) };
        state.of(from).0.entry(bytes).or_default().push_back(spare);
    }

    /// Bytes of both tiers that are charged for spares and could be given back.
    pub fn bytes(&self) -> u64 {
        let state = lock(&self.0);
        state.vram_bytes + state.ram_bytes
    }

    /// The same in RAM alone.
    pub fn ram_bytes(&self) -> u64 {
        lock(&self.0).ram_bytes
    }

    /// A handle that nothing is mapped to any more but its alias.
    pub fn put(&self, tier: Tier, bytes: u64, handle: Handle) {
        lock(&self.0).of(tier).0.entry(bytes).or_default().push_back(Spare { handle, left_by: None });
    }

    /// Gives spares of both tiers back, at least `bytes` of each if there are so many. Gives how much it was.
    pub fn give_back(&self, arena: &Arena, bytes: u64) -> u64 {
        self.give_back_of(arena, Tier::Vram, bytes) + self.give_back_of(arena, Tier::Ram, bytes)
    }

    /// The same of one tier.
    pub fn give_back_of(&self, arena: &Arena, tier: Tier, bytes: u64) -> u64 {
        let mut given = 0;
        while given < bytes {
            let next = {
                let mut state = lock(&self.0);
                let (spares, refused) = state.of(tier);
                *refused = false;
                spares.retain(|_, handles| !handles.is_empty());
                spares.last_entry().and_then(|mut entry| Some((*entry.key(), entry.get_mut().pop_front()?.handle)))
            };
            let Some((size, handle)) = next else { break };
            if let Err(error) = arena.release(handle) {
                crate::log::debug(format_args!("giving a spare of {tier} back: {error}"));
            }
            arena.with_memory(|memory| memory.credit_whole(size, tier));
            lock(&self.0).count(tier, |before| before.saturating_sub(size));
            given += size;
        }
        given
    }
}

fn left(budget: &Budget, tier: Tier) -> u64 {
    match tier {
        Tier::Vram => left_to_small_bytes(budget.limit_bytes()),
        Tier::Ram => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::arena::tests::arena;

    #[test]
    fn for_contents_that_may_be_wanted_more_is_made_when_enough_has_been_lost() {
        const BYTES: u64 = 32 << 20;
        let (_, arena) = arena(256, 1024);
        let spares = Spares::default();
        let mut made = HashSet::new();
        let counts: Vec<usize> = (0..12)
            .map(|number| {
                let handle = spares.take(&arena, Tier::Ram, BYTES, None, || true).unwrap().unwrap();
                arena.contents.holds(handle, [number, number]);
                spares.put(Tier::Ram, BYTES, handle);
                made.insert(handle);
                made.len()
            })
            .collect();
        assert_eq!(counts, [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3]);
        let known = |number: u64| spares.take_holding(&arena, BYTES, [number, number]).is_some();
        assert!((9..12).all(known), "those that have lain longest were given up");
    }
}
