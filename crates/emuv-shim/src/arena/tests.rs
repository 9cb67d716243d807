use std::{collections::BTreeMap, sync::Arc};

use emuv_cuda::CUresult;
use emuv_policy::GRANULE;

use super::*;

const MIB: u64 = 1 << 20;
const BASE: u64 = 0x10_0000_0000;

/// A device that counts, and refuses what it is told to.
#[derive(Default)]
pub(crate) struct Counting {
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
pub(crate) struct Shared(Arc<Counting>);

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

pub(crate) fn arena(vram_mib: u64, ram_mib: u64) -> (Shared, Arena) {
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
fn what_holds_nothing_keeps_its_mapping_until_its_memory_is_wanted_elsewhere() {
    let (gpu, mut arena) = arena(256, 256);
    arena.may_hide(true);
    let size = 32 * MIB;
    let chunk = |arena: &Arena| arena.allocate(Owner(1), size, room(1000)).unwrap().address - BASE;
    let (first, second, third) = (chunk(&arena), chunk(&arena), chunk(&arena));
    let own = |offset| lock(&arena.handles)[&offset];
    let is_mapped = |offset: u64| lock(&gpu.state).mapped.get(&(BASE + offset)).copied();
    let ram = |arena: &Arena| arena.gpu().create(Tier::Ram, size).unwrap();
    let vram = own(first);

    // It goes and comes back to where it was.
    let away = ram(&arena);
    assert_eq!(arena.replace(first, size, Tier::Ram, away, false, false), Replaced::Done(vram));
    assert!(arena.is_hidden(first) && arena.leftover(first) == Some(vram) && is_mapped(first) == Some(vram.0));
    assert_eq!(arena.replace(first, size, Tier::Vram, vram, true, false), Replaced::Done(away));
    assert!(!arena.is_hidden(first) && arena.leftover(first).is_none() && is_mapped(first) == Some(vram.0));

    // Its memory goes to another one, and it gets other memory.
    arena.replace(first, size, Tier::Ram, away, false, false);
    let others = own(second);
    arena.replace(second, size, Tier::Ram, ram(&arena), false, true);
    assert!(is_mapped(second).is_none() && arena.leftover(second).is_none(), "what holds something is out of reach");
    arena.replace(second, size, Tier::Vram, vram, true, true);
    assert_eq!((is_mapped(first), is_mapped(second)), (Some(vram.0), Some(vram.0)));
    arena.replace(first, size, Tier::Vram, others, true, false);
    assert_eq!((is_mapped(first), is_mapped(second)), (Some(others.0), Some(vram.0)));

    // A mapping that was left goes with the memory, or with the chunk.
    let thirds = own(third);
    arena.replace(third, size, Tier::Ram, ram(&arena), false, false);
    arena.release(thirds).unwrap();
    assert!(is_mapped(third).is_none() && arena.leftover(third).is_none());
    arena.show(third, size).unwrap();
    assert_eq!(is_mapped(third), Some(own(third).0));
    arena.replace(first, size, Tier::Ram, ram(&arena), false, false);
    assert!(arena.with_memory(|memory| memory.charge_spare(Tier::Ram, size, 0)));
    let release = arena.free(BASE + first).unwrap();
    arena.retire(release.id);
    assert!(is_mapped(first).is_none());
}

#[test]
fn freeing_an_address_inside_or_twice_is_an_error() {
    let (_, arena) = arena(64, 64);
    let placed = arena.allocate(Owner(1), 5 * MIB, room(1000)).unwrap();
    assert!(arena.free(placed.address + 512).is_err());
    assert!(arena.free(placed.address).is_ok());
    assert!(arena.free(placed.address).is_err());
}

#[test]
fn what_comes_is_mapped_at_its_own_address_before_it_is_copied() {
    let (gpu, mut arena) = arena(256, 256);
    arena.may_hide(true);
    let size = 32 * MIB;
    let chunk = arena.allocate(Owner(1), size, room(1000)).unwrap().address - BASE;
    let is_mapped = |at: u64| lock(&gpu.state).mapped.get(&(BASE + at)).copied();
    let vram = lock(&arena.handles)[&chunk];
    let (away, other) = (arena.gpu().create(Tier::Ram, size).unwrap(), arena.gpu().create(Tier::Vram, size).unwrap());

    assert_eq!(arena.map_ahead(chunk, size, vram), Ok(None), "its address is its own");
    arena.replace(chunk, size, Tier::Ram, away, false, true);
    assert!(arena.maps_ahead(chunk, vram) && is_mapped(chunk).is_none());
    assert_eq!(arena.map_ahead(chunk, size, vram), Ok(Some(BASE + chunk)));
    assert!(!arena.maps_ahead(chunk, vram) && arena.is_hidden(chunk) && is_mapped(chunk) == Some(vram.0));

    // That copy has failed: it comes to other memory.
    assert_eq!(arena.map_ahead(chunk, size, other), Ok(Some(BASE + chunk)));
    assert_eq!(is_mapped(chunk), Some(other.0));
    assert_eq!(arena.replace(chunk, size, Tier::Vram, other, true, true), Replaced::Done(away));
    assert!(!arena.is_hidden(chunk) && arena.leftover(chunk).is_none() && is_mapped(chunk) == Some(other.0));
}
