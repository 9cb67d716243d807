//! What a work may touch, as `emuv verify` leaves it mapped: exactly what would keep a chunk from moving beside it.

use emuv_policy::{Policy, Residency, Tier};

const MIB: u64 = 1 << 20;

/// Three allocations: two chunks at 0, one at 64 MiB, one at 128 MiB; and a slab of small ones at 192 MiB.
fn residency() -> Residency {
    let mut residency = Residency::new(Policy::Static);
    for offset in [0, 32, 64, 128] {
        residency.add_chunk(offset * MIB, 32 * MIB, Tier::Vram, false);
    }
    residency.add_chunk(192 * MIB, 2 * MIB, Tier::Vram, true);
    residency.add_extent(0, 64 * MIB);
    residency.add_extent(64 * MIB, 32 * MIB);
    residency.add_extent(128 * MIB, 32 * MIB);
    residency
}

/// The chunks within reach and those outside, by their offsets in MiB.
fn sides(residency: &mut Residency, offsets: &[u64], everything: bool) -> (Vec<u64>, Vec<u64>) {
    let (mut within, mut outside) = residency.access_set(offsets, everything);
    let offsets = |side: &mut Vec<(u64, u64)>| {
        side.sort_unstable();
        side.iter().map(|(offset, _)| offset / MIB).collect::<Vec<_>>()
    };
    (offsets(&mut within), offsets(&mut outside))
}

#[test]
fn an_address_stands_for_its_whole_allocation_and_slabs_are_always_there() {
    let mut residency = residency();
    assert_eq!(sides(&mut residency, &[40 * MIB + 8], false), (vec![0, 32, 192], vec![64, 128]));
    assert_eq!(sides(&mut residency, &[], false), (vec![192], vec![0, 32, 64, 128]));
}

#[test]
fn what_has_escaped_or_never_moves_is_in_every_set() {
    let mut residency = residency();
    residency.escape(70 * MIB);
    assert!(residency.pin(32 * MIB));
    assert_eq!(sides(&mut residency, &[], false), (vec![0, 32, 64, 192], vec![128]));
}

#[test]
fn a_work_that_may_touch_anything_has_everything() {
    let mut residency = residency();
    assert_eq!(sides(&mut residency, &[], true), (vec![0, 32, 64, 128, 192], vec![]));
}

#[test]
fn what_is_freed_is_in_no_set() {
    let mut residency = residency();
    residency.remove_extent(64 * MIB);
    assert!(residency.remove_chunk(64 * MIB));
    assert_eq!(sides(&mut residency, &[64 * MIB], true), (vec![0, 32, 128, 192], vec![]));
}
