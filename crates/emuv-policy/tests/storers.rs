//! Code that stores pointers to what it is given: whatever its launches are given is known to be pointed to, though only
//! some of them are searched behind.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

use std::collections::BTreeSet;

use emuv_policy::{Begin, GRANULE, MoveRoom, Policy, Residency, Step, StreamId, Tier, Work};

const STORER: u64 = 7;
const OTHER: u64 = 8;
/// Of a copy within what is searched.
const NO_CODE: u64 = 0;
const TABLE: u64 = 0;

/// Six extents of one chunk each: a table of pointers, and what they may lead to.
fn residency() -> Residency {
    let mut residency = Residency::new(Policy::Torture { state: 1, safe: false });
    residency.quiesced();
    for extent in 0..6 {
        residency.add_chunk(extent * GRANULE, GRANULE, Tier::Vram, false);
        residency.add_extent(extent * GRANULE, GRANULE);
    }
    let Step::Search(_) = residency.next_step(NO_ROOM) else { panic!("what was there is not searched") };
    residency.searched_all(Some(&[]));
    residency
}

const NO_ROOM: MoveRoom = MoveRoom { vram_bytes: 0, ram_bytes: 0, vram_coming_bytes: 0, vram_excess_bytes: 0 };

/// A work of `maker` on its stream that is given these extents, and is searched behind if it asks for that; its number there.
fn run(residency: &mut Residency, stream: u64, maker: u64, extents: &[u64], searched: bool) -> u64 {
    give(residency, stream, maker, extents, (searched, searched))
}

/// The same of one that does not ask for a search, and is searched behind.
fn run_searched(residency: &mut Residency, stream: u64, maker: u64, extents: &[u64]) -> u64 {
    give(residency, stream, maker, extents, (false, true))
}

fn give(residency: &mut Residency, stream: u64, maker: u64, extents: &[u64], (asks, searched): (bool, bool)) -> u64 {
    let offsets: Vec<u64> = extents.iter().map(|extent| extent * GRANULE).collect();
    let named = Work::naming(StreamId(stream), &offsets);
    let work = Work { may_store_pointers: asks, maker, kind: maker, patient: true, ..named };
    let Begin::Go(begun) = residency.begin(&work, None) else { panic!("held") };
    assert_eq!(begun.search, searched);
    residency.issued(&begun);
    begun.number
}

/// What the mover would move while this is so.
fn movable(residency: &mut Residency) -> BTreeSet<u64> {
    let room = MoveRoom { vram_bytes: 0, ram_bytes: GRANULE, vram_coming_bytes: 0, vram_excess_bytes: 0 };
    let mut seen = BTreeSet::new();
    for _ in 0..500 {
        if let Step::Move { offset, .. } = residency.next_step(room) {
            seen.insert(offset / GRANULE);
            residency.finish(offset, false);
        }
    }
    seen
}

#[test]
fn whatever_a_known_storer_is_given_has_escaped() {
    let mut residency = residency();
    let first = run(&mut residency, 1, STORER, &[TABLE, 1], true);
    residency.completed(StreamId(1), first);
    let searches = residency.collecting();
    residency.collected(&searches, &[GRANULE], &[STORER]);
    let second = run(&mut residency, 1, STORER, &[TABLE, 2], false);
    residency.completed(StreamId(1), second);
    run(&mut residency, 2, NO_CODE, &[5], false);
    assert_eq!(movable(&mut residency), BTreeSet::from([3, 4]));
}

#[test]
fn what_it_was_given_before_it_was_known_has_escaped_with_the_verdict() {
    let mut residency = residency();
    let first = run(&mut residency, 1, STORER, &[TABLE, 1], true);
    let second = run(&mut residency, 3, STORER, &[TABLE, 2], false);
    residency.completed(StreamId(3), second);
    run(&mut residency, 2, NO_CODE, &[5], false);
    assert_eq!(movable(&mut residency), BTreeSet::from([3, 4]), "what it was given stays until the verdict");
    residency.completed(StreamId(1), first);
    let searches = residency.collecting();
    residency.collected(&searches, &[GRANULE], &[STORER]);
    assert_eq!(movable(&mut residency), BTreeSet::from([3, 4]));
}

#[test]
fn nothing_moves_beside_work_until_pointers_from_elsewhere_are_found() {
    let mut residency = residency();
    let named = Work::naming(StreamId(1), &[TABLE]);
    let copy = Work { may_store_pointers: true, may_bring_pointers: true, patient: true, ..named };
    let Begin::Go(begun) = residency.begin(&copy, None) else { panic!("held") };
    residency.issued(&begun);
    run(&mut residency, 2, NO_CODE, &[5], false);
    assert!(movable(&mut residency).is_empty());
    residency.completed(StreamId(1), begun.number);
    let searches = residency.collecting();
    residency.collected(&searches, &[2 * GRANULE], &[]);
    assert_eq!(movable(&mut residency), BTreeSet::from([0, 1, 3, 4]));
}

#[test]
fn code_that_stores_nothing_is_given_what_it_wants() {
    let mut residency = residency();
    run(&mut residency, 1, OTHER, &[TABLE, 1], true);
    let second = run(&mut residency, 1, OTHER, &[TABLE, 2], false);
    residency.completed(StreamId(1), second);
    let searches = residency.collecting();
    residency.collected(&searches, &[], &[]);
    run(&mut residency, 2, NO_CODE, &[5], false);
    assert_eq!(movable(&mut residency), BTreeSet::from([0, 1, 2, 3, 4]));
}

#[test]
fn what_only_pointers_lead_to_moves_with_its_contents() {
    let mut residency = residency();
    // No work names it, so nothing says when it is written.
    residency.escape(3 * GRANULE);
    let room = MoveRoom { vram_bytes: 0, ram_bytes: GRANULE, vram_coming_bytes: 0, vram_excess_bytes: 0 };
    let mut copied = BTreeSet::new();
    for _ in 0..500 {
        if let Step::Move { offset, copy, .. } = residency.next_step(room) {
            copied.insert((offset / GRANULE, copy));
            residency.finish(offset, false);
        }
    }
    assert_eq!(copied, (0..6).map(|extent| (extent, extent == 3)).collect());
}

#[test]
fn doubted_code_is_searched_behind_for_each_thing_that_it_is_given() {
    let mut residency = residency();
    let first = run(&mut residency, 1, OTHER, &[TABLE, 1], true);
    residency.completed(StreamId(1), first);
    let searches = residency.collecting();
    // The pointer to 1 was there before.
    residency.doubted(&[OTHER]);
    residency.collected(&searches, &[GRANULE], &[]);
    // Nothing more is to be learned of these.
    run(&mut residency, 1, OTHER, &[TABLE, 1], false);
    let second = run_searched(&mut residency, 1, OTHER, &[TABLE, 2]);
    residency.completed(StreamId(1), second);
    let searches = residency.collecting();
    residency.collected(&searches, &[GRANULE], &[]);
    run(&mut residency, 1, OTHER, &[TABLE, 2], false);
    let last = run_searched(&mut residency, 1, OTHER, &[3]);
    residency.completed(StreamId(1), last);
    let searches = residency.collecting();
    residency.collected(&searches, &[GRANULE, 3 * GRANULE], &[OTHER]);
    let last = run(&mut residency, 1, OTHER, &[4], false);
    residency.completed(StreamId(1), last);
    run(&mut residency, 2, NO_CODE, &[5], false);
    assert_eq!(movable(&mut residency), BTreeSet::from([TABLE, 2]), "it stores, as was seen with 3");
}

#[test]
fn what_code_was_given_unseen_before_it_was_doubted_has_escaped() {
    let mut residency = residency();
    let first = run(&mut residency, 1, OTHER, &[TABLE, 1], true);
    let second = run(&mut residency, 3, OTHER, &[TABLE, 2], false);
    residency.completed(StreamId(3), second);
    residency.completed(StreamId(1), first);
    let searches = residency.collecting();
    residency.doubted(&[OTHER]);
    residency.collected(&searches, &[GRANULE], &[]);
    run(&mut residency, 2, NO_CODE, &[5], false);
    assert_eq!(movable(&mut residency), BTreeSet::from([TABLE, 3, 4]));
}

#[test]
fn once_pointers_are_known_code_is_searched_behind_until_the_verdict() {
    let mut residency = residency();
    residency.collected(&[], &[GRANULE], &[]);
    let first = run(&mut residency, 1, OTHER, &[TABLE, 1], true);
    let second = run_searched(&mut residency, 1, OTHER, &[TABLE, 2]);
    residency.completed(StreamId(1), second.max(first));
    let searches = residency.collecting();
    residency.doubted(&[OTHER]);
    residency.collected(&searches, &[GRANULE], &[]);
    run(&mut residency, 2, NO_CODE, &[5], false);
    assert_eq!(movable(&mut residency), BTreeSet::from([TABLE, 2, 3, 4]));
}

#[test]
fn code_is_searched_behind_when_it_is_given_something_that_may_move_for_the_first_time() {
    let mut residency = residency();
    // The launch that asks for it may be one that is given memory of another device alone.
    run(&mut residency, 1, OTHER, &[], true);
    run_searched(&mut residency, 1, OTHER, &[TABLE, 1]);
    run(&mut residency, 1, OTHER, &[TABLE, 2], false);
}

#[test]
fn code_that_could_not_be_searched_behind_is_searched_behind_again() {
    let mut residency = residency();
    let first = run(&mut residency, 1, STORER, &[TABLE, 1], true);
    residency.search_failed(STORER);
    residency.completed(StreamId(1), first);
    let searches = residency.collecting();
    residency.collected(&searches, &[], &[]);
    let Step::Search(_) = residency.next_step(NO_ROOM) else { panic!("what was stored is not searched for") };
    residency.searched_all(Some(&[]));
    let second = run_searched(&mut residency, 1, STORER, &[TABLE, 2]);
    residency.completed(StreamId(1), second);
    let searches = residency.collecting();
    residency.collected(&searches, &[2 * GRANULE], &[STORER]);
    run(&mut residency, 1, STORER, &[TABLE, 3], false);
    assert_eq!(movable(&mut residency), BTreeSet::from([1, 4, 5]));
}
