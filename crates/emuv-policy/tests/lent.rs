//! What a device does while others may touch its memory or read theirs for its sake: nothing moves or goes while it is read,
//! and nothing moves beside work while pointers to it may lie elsewhere.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

use emuv_policy::{Begin, GRANULE, MoveRoom, Policy, Residency, Step, StreamId, Tier, Work};

const ROOM: MoveRoom = MoveRoom { vram_bytes: 0, ram_bytes: 8 * GRANULE, vram_coming_bytes: 0, vram_excess_bytes: 0 };

/// Four extents of one chunk each, all searched.
fn residency() -> Residency {
    let mut residency = Residency::new(Policy::Torture { state: 1, safe: false });
    residency.quiesced();
    for extent in 0..4 {
        residency.add_chunk(extent * GRANULE, GRANULE, Tier::Vram, false);
        residency.add_extent(extent * GRANULE, GRANULE);
    }
    let Step::Search(_) = residency.next_step(ROOM) else { panic!("what was there is not searched") };
    residency.searched_all(Some(&[]));
    residency
}

fn work(offsets: &[u64]) -> Work<'_> {
    Work { kind: 1, patient: true, ..Work::naming(StreamId(1), offsets) }
}

fn first_move(residency: &mut Residency) -> Option<u64> {
    (0..200).find_map(|_| match residency.next_step(ROOM) {
        Step::Move { offset, .. } => Some(offset),
        _ => None,
    })
}

#[test]
fn memory_that_is_read_for_another_device_neither_moves_nor_goes() {
    let mut residency = residency();
    assert!(residency.lend());
    assert_eq!(first_move(&mut residency), None);
    assert!(!residency.remove_chunk(0), "a chunk went while it was read");
    residency.returned();
    assert!(residency.remove_chunk(0));
    assert!(first_move(&mut residency).is_some());
}

#[test]
fn what_is_moving_is_not_lent() {
    let mut residency = residency();
    let offset = first_move(&mut residency).unwrap();
    assert!(!residency.lend());
    residency.finish(offset, true);
    assert!(residency.lend());
    // Two devices may read it at once.
    assert!(residency.lend());
    residency.returned();
    assert_eq!(first_move(&mut residency), None);
}

#[test]
fn once_others_may_touch_it_all_is_searched_before_works_go_on() {
    let mut residency = residency();
    residency.opened_to_others();
    let Begin::Hold(held) = residency.begin(&work(&[0]), None) else { panic!("not held") };
    assert!(residency.is_unsearched());
    let Step::Search(ranges) = residency.next_step(ROOM) else { panic!("no search") };
    assert!(ranges.is_empty(), "what nobody has written holds no pointers");
    // A reader's memory is moving just now: the search comes a little later.
    residency.search_put_off();
    assert!(matches!(residency.begin(&work(&[0]), Some(held)), Begin::Hold(_)));
    let Step::Search(_) = residency.next_step(ROOM) else { panic!("no search after one was put off") };
    residency.searched_all(Some(&[GRANULE]));
    assert!(!residency.is_unsearched());
    assert!(matches!(residency.begin(&work(&[0]), Some(held)), Begin::Go(_)));
    assert_eq!(residency.escaped_bytes(), GRANULE);
}

#[test]
fn a_work_that_others_may_be_waiting_for_does_not_wait_for_the_search() {
    let mut residency = residency();
    // Something runs, and goes on running until the next work comes.
    let Begin::Go(running) = residency.begin(&work(&[0]), None) else { panic!("held") };
    residency.issued(&running);
    residency.opened_to_others();
    let Begin::Hold(held) = residency.begin(&work(&[GRANULE]), None) else { panic!("not held") };
    assert!(!matches!(residency.next_step(ROOM), Step::Search(_)), "searched while something runs");
    residency.search_later();
    let Begin::Go(next) = residency.begin(&work(&[GRANULE]), Some(held)) else { panic!("held for ever") };
    residency.issued(&next);
    // Nothing moves beside them while pointers may lie anywhere; the search comes when they are done.
    assert_eq!(first_move(&mut residency), None);
    residency.completed(StreamId(1), next.number);
    assert!((0..50).any(|_| matches!(residency.next_step(ROOM), Step::Search(_))));
}
