//! What others know by its physical place comes to VRAM, and stays.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

use emuv_policy::{Begin, HoldId, MoveRoom, Policy, Residency, Step, StreamId, Tier, Work};

const MIB: u64 = 1 << 20;
const SLAB: u64 = 512 * MIB;
const PLENTY: MoveRoom =
    MoveRoom { vram_bytes: 64 * MIB, ram_bytes: 64 * MIB, vram_coming_bytes: 0, vram_excess_bytes: 0 };
const NO_VRAM: MoveRoom = MoveRoom { vram_bytes: 0, ram_bytes: 64 * MIB, vram_coming_bytes: 0, vram_excess_bytes: 0 };

const POLICIES: [Policy; 4] = [
    Policy::Static,
    Policy::Dynamic { safe: false },
    Policy::Dynamic { safe: true },
    Policy::Torture { state: 5, safe: false },
];

/// An extent of two chunks at 0, the second one in RAM; one at 64 MiB in VRAM.
fn device(policy: Policy) -> Residency {
    device_with(policy, |_| {})
}

/// The same, and a slab in RAM.
fn device_with_slab(policy: Policy) -> Residency {
    device_with(policy, |residency| residency.add_chunk(SLAB, 2 * MIB, Tier::Ram, true))
}

fn device_with(policy: Policy, more: impl Fn(&mut Residency)) -> Residency {
    let mut residency = Residency::new(policy);
    residency.add_chunk(0, 8 * MIB, Tier::Vram, false);
    residency.add_chunk(8 * MIB, 4 * MIB, Tier::Ram, false);
    residency.add_extent(0, 12 * MIB);
    residency.add_chunk(64 * MIB, 32 * MIB, Tier::Vram, false);
    residency.add_extent(64 * MIB, 32 * MIB);
    more(&mut residency);
    residency.quiesced();
    // All memory is searched once.
    if let Step::Search(_) = residency.next_step(PLENTY) {
        residency.searched_all(Some(&[]));
    }
    residency
}

/// Does what is to be done, up to `steps` steps. Gives what has moved.
fn run(residency: &mut Residency, room: MoveRoom, steps: u32) -> Vec<(u64, Tier)> {
    let mut moved = Vec::new();
    for _ in 0..steps {
        match residency.next_step(room) {
            Step::Move { offset, to, .. } => {
                residency.finish(offset, true);
                moved.push((offset, to));
            }
            Step::Show { offset, .. } => residency.finish(offset, true),
            _ => {}
        }
    }
    moved
}

/// Asks until it is pinned, or hopeless.
fn pin(residency: &mut Residency, offset: u64, room: MoveRoom) -> bool {
    let mut hold: Option<HoldId> = None;
    for _ in 0..1000 {
        if residency.pin(offset) {
            hold.into_iter().for_each(|hold| residency.release(hold));
            return true;
        }
        let (id, hope) = residency.bring_to_pin(offset, hold);
        hold = Some(id);
        if !hope {
            residency.release(id);
            residency.unpin(offset);
            return false;
        }
        run(residency, room, 1);
    }
    panic!("neither pinned nor hopeless");
}

fn launch(residency: &mut Residency, offset: u64) -> Option<u64> {
    match residency.begin(&Work::naming(StreamId(1), &[offset]), None) {
        Begin::Go(begun) => {
            residency.issued(&begun);
            Some(begun.number)
        }
        Begin::Hold(id) => {
            residency.release(id);
            None
        }
    }
}

#[test]
fn what_is_in_ram_comes_and_nothing_of_it_moves_again() {
    for policy in POLICIES {
        let mut residency = device(policy);
        assert!(!residency.pin(0), "{policy:?}: a part is in RAM");
        assert!(pin(&mut residency, 0, PLENTY), "{policy:?}");
        for offset in [0, 8 * MIB] {
            assert_eq!(residency.tier(offset), Some(Tier::Vram), "{policy:?}");
        }
        let moved = run(&mut residency, PLENTY, 500);
        assert!(moved.iter().all(|(offset, _)| *offset >= 64 * MIB), "{policy:?}: {moved:?}");
        assert!(residency.pin(8 * MIB + 5), "{policy:?}: by any address in it, and again");
    }
}

#[test]
fn a_slab_in_ram_comes_while_nothing_runs() {
    for policy in POLICIES {
        let mut residency = device_with_slab(policy);
        // Nobody sees who has a pointer into the slab: any work may.
        let number = launch(&mut residency, 64 * MIB).unwrap();
        assert!(!residency.pin(SLAB + 4096));
        let (hold, _) = residency.bring_to_pin(SLAB + 4096, None);
        let moved = run(&mut residency, PLENTY, 20);
        assert!(moved.iter().all(|(offset, _)| *offset != SLAB), "{policy:?}: {moved:?}");
        residency.completed(StreamId(1), number);
        residency.release(hold);
        assert!(pin(&mut residency, SLAB + 4096, PLENTY), "{policy:?}");
        let moved = run(&mut residency, PLENTY, 500);
        assert!(moved.iter().all(|(offset, _)| *offset != SLAB), "{policy:?}: {moved:?}");
    }
}

#[test]
fn others_make_room_if_there_is_none() {
    for policy in [Policy::Static, Policy::Dynamic { safe: false }] {
        let mut residency = device(policy);
        let (hold, _) = residency.bring_to_pin(0, None);
        let moved = run(&mut residency, NO_VRAM, 1);
        assert_eq!(moved, [(64 * MIB, Tier::Ram)], "{policy:?}");
        let moved = run(&mut residency, PLENTY, 1);
        assert_eq!(moved, [(8 * MIB, Tier::Vram)], "{policy:?}");
        residency.release(hold);
        assert!(residency.pin(0), "{policy:?}");
    }
}

#[test]
fn nothing_moves_once_the_executor_has_given_up() {
    for policy in POLICIES {
        let mut residency = device(policy);
        let (hold, _) = residency.bring_to_pin(0, None);
        residency.stop();
        assert!(run(&mut residency, PLENTY, 20).is_empty(), "{policy:?}");
        residency.release(hold);
    }
}

#[test]
fn without_room_it_stays_what_it_was() {
    for policy in [Policy::Static, Policy::Dynamic { safe: false }] {
        let nothing = MoveRoom { vram_bytes: 0, ram_bytes: 0, vram_coming_bytes: 0, vram_excess_bytes: 0 };
        for offset in [0, SLAB] {
            let mut residency = device_with_slab(policy);
            assert!(!pin(&mut residency, offset, nothing), "{policy:?}");
            // The extent moves again; the slab does not for this.
            let asked = residency.keep_at_hand(&[0], None, policy != Policy::Static).0;
            let slab = residency.tier(SLAB);
            let mut moved = run(&mut residency, PLENTY, 20);
            residency.release(asked);
            // Of itself it comes as soon as there is room.
            moved.retain(|(offset, _)| *offset != SLAB);
            let expected: &[(u64, Tier)] = if policy == Policy::Static { &[] } else { &[(8 * MIB, Tier::Vram)] };
            assert_eq!(moved, expected, "{policy:?}");
            assert_eq!(slab, Some(Tier::Ram));
        }
    }
}

#[test]
fn a_slab_in_ram_comes_without_being_asked_for_as_soon_as_nothing_runs() {
    for safe in [false, true] {
        let mut residency = device_with_slab(Policy::Dynamic { safe });
        let running = launch(&mut residency, 64 * MIB).unwrap();
        assert_eq!(run(&mut residency, PLENTY, 10), [], "something runs");
        residency.completed(StreamId(1), running);
        assert_eq!(run(&mut residency, NO_VRAM, 10), [], "there is no room");
        assert_eq!(run(&mut residency, PLENTY, 10), [(SLAB, Tier::Vram)]);
        assert_eq!(run(&mut residency, PLENTY, 10), [], "it stays");
    }
}
