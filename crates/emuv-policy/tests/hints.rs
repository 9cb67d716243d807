//! What the program says of its memory, and what comes of it. That hints break none of the obligations is part of
//! `residency.rs`.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

use emuv_policy::{Begin, Begun, GRANULE, Heat, Hint, MoveRoom, Policy, Residency, Step, StreamId, Tier, Why, Work};

const ROOM: MoveRoom =
    MoveRoom { vram_bytes: 4 * GRANULE, ram_bytes: 64 * GRANULE, vram_coming_bytes: 0, vram_excess_bytes: 0 };
/// The card is to have a chunk less.
const LESS: MoveRoom = MoveRoom { vram_bytes: 0, vram_excess_bytes: GRANULE, ..ROOM };

/// Extents of two chunks each, in these tiers.
fn residency(tiers: &[Tier]) -> Residency {
    let mut residency = Residency::new(Policy::Dynamic { safe: false });
    for (at, tier) in (0..).zip(tiers) {
        for chunk in 0..2 {
            residency.add_chunk(extent(at) + chunk * GRANULE, GRANULE, *tier, false);
        }
        residency.add_extent(extent(at), 2 * GRANULE);
    }
    residency.quiesced();
    searched(&mut residency);
    residency
}

fn extent(at: u64) -> u64 {
    2 * at * GRANULE
}

/// All memory is searched once before anything moves.
fn searched(residency: &mut Residency) {
    assert!(matches!(residency.next_step(ROOM), Step::Search(_)));
    residency.searched_all(Some(&[]));
}

/// A work on one extent; it is under way.
fn begin(residency: &mut Residency, at: u64) -> Begun {
    let offsets = [extent(at)];
    let work = Work { kind: 1, ..Work::naming(StreamId(1), &offsets) };
    let Begin::Go(begun) = residency.begin(&work, None) else { panic!("held") };
    residency.issued(&begun);
    begun
}

fn run(residency: &mut Residency, at: u64) {
    let begun = begin(residency, at);
    residency.completed(StreamId(1), begun.number);
}

/// The extents of the chunks that go when there is to be ever less VRAM, in order, and whether they are copied.
fn goes(residency: &mut Residency, count: usize) -> Vec<(u64, bool)> {
    let mut gone = Vec::new();
    while gone.len() < count {
        let Step::Move { offset, to: Tier::Ram, copy, why: Why::Limit, .. } = residency.next_step(LESS) else { break };
        residency.finish(offset, true);
        gone.push((offset / GRANULE / 2, copy));
    }
    gone
}

#[test]
fn what_is_cold_goes_first_and_what_is_hot_last() {
    let mut residency = residency(&[Tier::Vram; 4]);
    (0..4).for_each(|at| run(&mut residency, at));
    residency.hint(extent(0), 1, Hint::Heat(Heat::Hot));
    residency.hint(extent(3), 2 * GRANULE, Hint::Heat(Heat::Cold));
    let order: Vec<u64> = goes(&mut residency, 8).into_iter().map(|(at, _)| at).collect();
    // The one byte that was named heats one chunk; the other one goes as what was used longest ago.
    assert_eq!(order, [3, 3, 0, 1, 1, 2, 2, 0]);
}

#[test]
fn nothing_is_said_of_the_rest_of_a_chunk_behind_its_allocation() {
    let mut residency = Residency::new(Policy::Dynamic { safe: false });
    residency.add_chunk(0, 4 * GRANULE, Tier::Vram, false);
    residency.add_extent(0, 3 * GRANULE);
    residency.quiesced();
    searched(&mut residency);
    run(&mut residency, 0);
    residency.hint(3 * GRANULE + 1, 5, Hint::Discard);
    assert_eq!(goes(&mut residency, 1), [(0, true)]);
}

#[test]
fn heat_can_be_taken_back_and_ends_with_the_allocation() {
    let mut residency = residency(&[Tier::Vram; 3]);
    (0..3).for_each(|at| run(&mut residency, at));
    residency.hint(extent(0), 2 * GRANULE, Hint::Heat(Heat::Hot));
    residency.hint(extent(0), 2 * GRANULE, Hint::Heat(Heat::Usual));
    residency.hint(extent(2), 2 * GRANULE, Hint::Heat(Heat::Cold));
    residency.remove_extent(extent(2));
    residency.add_extent(extent(2), 2 * GRANULE);
    assert_eq!(goes(&mut residency, 2), [(0, true), (0, true)]);
}

#[test]
fn what_is_hot_is_brought_into_free_room_without_a_loop() {
    let mut residency = residency(&[Tier::Vram, Tier::Ram]);
    assert_eq!(residency.next_step(ROOM), Step::Rest);
    residency.hint(extent(1) + GRANULE, GRANULE, Hint::Heat(Heat::Hot));
    let Step::Move { offset, to, copy, why, .. } = residency.next_step(ROOM) else { panic!("rests") };
    assert_eq!((offset, to, copy, why), (extent(1) + GRANULE, Tier::Vram, true, Why::Hint));
    residency.finish(offset, true);
    assert_eq!(residency.next_step(ROOM), Step::Rest, "only what was named is hot");
    assert_eq!(residency.next_step(MoveRoom { vram_bytes: 0, ..ROOM }), Step::Rest, "and nothing goes for it");
}

#[test]
fn what_is_discarded_is_not_copied_until_a_work_touches_it_again() {
    let mut residency = residency(&[Tier::Vram; 3]);
    (0..3).for_each(|at| run(&mut residency, at));
    residency.hint(extent(0), 2 * GRANULE, Hint::Discard);
    residency.hint(extent(1), 2 * GRANULE, Hint::Discard);
    run(&mut residency, 1);
    let gone = goes(&mut residency, 6);
    assert_eq!(gone, [(0, false), (0, false), (2, true), (2, true), (1, true), (1, true)]);
}

#[test]
fn a_chunk_that_is_discarded_in_part_is_kept() {
    let mut residency = residency(&[Tier::Vram; 2]);
    residency.hint(extent(0) + 1, u64::MAX, Hint::Discard);
    assert_eq!(
        goes(&mut residency, 4),
        [(0, true), (0, false), (1, true), (1, true)],
        "and nothing of the next allocation"
    );
}

#[test]
fn what_is_discarded_under_a_work_stays_where_it_is_until_that_is_done() {
    let mut residency = residency(&[Tier::Vram]);
    let begun = begin(&mut residency, 0);
    residency.hint(extent(0), 2 * GRANULE, Hint::Discard);
    assert!(goes(&mut residency, 1).is_empty(), "it is in use");
    residency.completed(StreamId(1), begun.number);
    assert_eq!(goes(&mut residency, 2), [(0, false), (0, false)]);
}

#[test]
fn what_others_may_write_without_a_name_is_not_discarded() {
    let mut residency = residency(&[Tier::Vram; 3]);
    residency.escape(extent(0));
    residency.hint(extent(0), 2 * GRANULE, Hint::Discard);
    residency.hint(extent(1), 2 * GRANULE, Hint::Discard);
    residency.escape(extent(1));
    residency.hint(extent(2), 2 * GRANULE, Hint::Discard);
    residency.searched_all(None);
    assert!(goes(&mut residency, 6).into_iter().all(|(_, copy)| copy));
}

#[test]
fn before_works_are_told_nothing_is_discarded() {
    let mut residency = Residency::new(Policy::Dynamic { safe: false });
    residency.add_chunk(0, GRANULE, Tier::Vram, false);
    residency.add_extent(0, GRANULE);
    residency.hint(0, GRANULE, Hint::Discard);
    residency.quiesced();
    searched(&mut residency);
    assert_eq!(goes(&mut residency, 1), [(0, true)]);
}

#[test]
fn a_hint_about_nothing_is_none() {
    let mut residency = residency(&[Tier::Vram]);
    for offset in [extent(1), u64::MAX - 1] {
        residency.hint(offset, GRANULE, Hint::Discard);
        residency.hint(offset, u64::MAX, Hint::Heat(Heat::Cold));
    }
    residency.remove_extent(extent(0));
    residency.hint(extent(0), GRANULE, Hint::Heat(Heat::Hot));
    // Given back to nobody, it is nobody's all the same.
    assert_eq!(goes(&mut residency, 2), [(0, false), (0, false)]);
}
