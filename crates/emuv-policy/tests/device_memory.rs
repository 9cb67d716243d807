//! Random sequences of allocations, refusals, frees and context deaths against a plain model.
//!
//! Stated here are invariants 1 and 3 of ARCHITECTURE.md: every byte of a live allocation has exactly one
//! chunk behind it, and no tier ever holds more than its budget.

#![allow(clippy::expect_used)] // A failed expectation is a failed test.

use std::collections::BTreeMap;

use emuv_policy::{Answer, Budgets, Chunk, DeviceMemory, GRANULE, Owner, Release, Room, SMALL_BYTES, Tier};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

#[derive(Debug, Clone)]
enum Step {
    Allocate { owner: u64, bytes: u64, vram_room: u64, outcome: Outcome },
    Free { which: usize },
    OwnerGone { owner: u64 },
    Retire { which: usize },
    ChargeUnspilled { bytes: u64 },
    CreditUnspilled,
}

/// How the driver takes a plan.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Done,
    /// Refuses VRAM from this chunk on.
    NoVram(usize),
    /// Refuses this chunk in both tiers.
    Fails(usize),
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 1..SMALL_BYTES, 1 => Just(SMALL_BYTES), 3 => SMALL_BYTES..200 * MIB, 1 => Just(2 * MIB)]
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        6 => Just(Outcome::Done),
        1 => (0..8_usize).prop_map(Outcome::NoVram),
        1 => (0..8_usize).prop_map(Outcome::Fails),
    ];
    prop_oneof![
        6 => (0..3_u64, size(), 0..600_u64, outcome).prop_map(|(owner, bytes, room, outcome)| Step::Allocate {
            owner, bytes, vram_room: room * MIB, outcome
        }),
        4 => any::<usize>().prop_map(|which| Step::Free { which }),
        1 => (0..3_u64).prop_map(|owner| Step::OwnerGone { owner }),
        4 => any::<usize>().prop_map(|which| Step::Retire { which }),
        1 => (1..64_u64).prop_map(|mib| Step::ChargeUnspilled { bytes: mib * MIB }),
        1 => Just(Step::CreditUnspilled),
    ]
}

/// The machine as the executor leaves it: what is mapped, what the program holds.
struct World {
    memory: DeviceMemory,
    mapped: BTreeMap<u64, Chunk>,
    /// offset -> (bytes, owner)
    held: BTreeMap<u64, (u64, u64)>,
    dying: Vec<Release>,
    unspilled: Vec<u64>,
}

impl World {
    fn allocate(&mut self, owner: u64, bytes: u64, vram_room: u64, outcome: Outcome) {
        let room = Room { vram_bytes: vram_room, vram_reserve_bytes: 8 * MIB, ram_bytes: u64::MAX };
        let before = *self.memory.budgets();
        let offset = match self.memory.allocate(Owner(owner), bytes, room) {
            Answer::Ready(offset) => Some(offset),
            Answer::NoRoom => {
                assert_eq!(self.memory.budgets().vram.used_bytes(), before.vram.used_bytes());
                let room = before.vram.room_bytes().min(vram_room) / GRANULE * GRANULE;
                let ram = before.ram.room_bytes() / GRANULE * GRANULE;
                assert!(bytes.max(GRANULE) > room + ram, "refused {bytes} with {room} + {ram} left");
                None
            }
            Answer::Place(mut plan) => {
                let chunks = plan.chunks.len();
                let mut placed = true;
                match outcome {
                    Outcome::Done => {}
                    Outcome::NoVram(from) => {
                        for index in from..chunks {
                            if plan.chunks[index].tier == Tier::Vram {
                                match self.memory.refused(plan.ticket, index) {
                                    Some(tier) => plan.chunks[index].tier = tier,
                                    None => placed = false,
                                }
                            }
                            if !placed {
                                break;
                            }
                        }
                    }
                    Outcome::Fails(at) => placed = at >= chunks,
                }
                if placed {
                    for chunk in &plan.chunks {
                        assert!(self.mapped.insert(chunk.offset, *chunk).is_none());
                    }
                    self.memory.commit(plan.ticket)
                } else {
                    self.memory.abandon(plan.ticket);
                    None
                }
            }
        };
        if let Some(offset) = offset {
            assert_eq!(offset % 512, 0);
            assert!(self.held.insert(offset, (bytes, owner)).is_none());
        }
    }

    fn retire(&mut self, release: &Release) {
        let chunks = self.memory.retired(release.id);
        for chunk in &chunks {
            assert_eq!(self.mapped.remove(&chunk.offset), Some(*chunk));
        }
        self.memory.released(&chunks);
    }

    fn check(&self) {
        // No two chunks overlap, and the sums are what the budgets say, within their limits.
        let mut end = 0;
        let mut sums = [self.unspilled.iter().sum::<u64>(), 0];
        for chunk in self.mapped.values() {
            assert!(chunk.offset >= end, "chunks overlap");
            end = chunk.offset + chunk.bytes;
            sums[usize::from(chunk.tier == Tier::Ram)] += chunk.bytes;
        }
        let budgets = self.memory.budgets();
        assert_eq!(sums, [budgets.vram.used_bytes(), budgets.ram.used_bytes()]);
        assert!(budgets.vram.used_bytes() <= budgets.vram.limit_bytes());
        assert!(budgets.ram.used_bytes() <= budgets.ram.limit_bytes());
        // Every byte that the program holds is mapped, and allocations do not overlap.
        let mut end = 0;
        for (&offset, &(bytes, owner)) in &self.held {
            assert!(offset >= end, "allocations overlap");
            end = offset + bytes;
            let mut covered = offset;
            while covered < end {
                let (_, chunk) = self.mapped.range(..=covered).next_back().expect("a chunk below");
                assert!(covered < chunk.offset + chunk.bytes, "byte {covered} of a live allocation is not mapped");
                covered = chunk.offset + chunk.bytes;
            }
            for inside in [offset, offset + bytes / 2, end - 1] {
                let found = self.memory.find(inside).expect("a live allocation is found by any address in it");
                assert_eq!((found.offset, found.bytes, found.owner), (offset, bytes, Owner(owner)));
            }
        }
        assert_eq!(self.memory.live_count(), self.held.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn budgets_hold_and_live_memory_is_mapped(steps in proptest::collection::vec(step(), 1..120)) {
                let mut world = World {
            memory: DeviceMemory::new(Budgets::new(512 * MIB, 256 * MIB), 0, 4096 * MIB),
            mapped: BTreeMap::new(),
            held: BTreeMap::new(),
            dying: Vec::new(),
            unspilled: Vec::new(),
        };
        for step in steps {
            match step {
                Step::Allocate { owner, bytes, vram_room, outcome } => world.allocate(owner, bytes, vram_room, outcome),
                Step::Free { which } if !world.held.is_empty() => {
                    let offset = *world.held.keys().nth(which % world.held.len()).expect("in range");
                    world.held.remove(&offset);
                    world.dying.push(world.memory.free(offset).expect("a live allocation"));
                    prop_assert!(world.memory.free(offset).is_err(), "freed twice");
                }
                Step::OwnerGone { owner } => {
                    let ids = world.memory.owned_by(Owner(owner));
                    let releases = world.memory.owner_gone(&ids);
                    world.held.retain(|_, (_, who)| *who != owner);
                    prop_assert_eq!(ids.len(), releases.len());
                    world.dying.extend(releases);
                }
                Step::Retire { which } if !world.dying.is_empty() => {
                    let release = world.dying.swap_remove(which % world.dying.len());
                    world.retire(&release);
                }
                Step::ChargeUnspilled { bytes } => {
                    let room = world.memory.budgets().vram.room_bytes();
                    if world.memory.charge_unspilled(bytes) {
                        world.unspilled.push(bytes);
                    } else {
                        prop_assert!(bytes > room);
                    }
                }
                Step::CreditUnspilled => {
                    if let Some(bytes) = world.unspilled.pop() {
                        world.memory.credit_unspilled(bytes);
                    }
                }
                Step::Free { .. } | Step::Retire { .. } => {}
            }
            world.check();
        }
        // Everything given back: nothing is charged and the arena is whole again.
        for offset in std::mem::take(&mut world.held).into_keys() {
            world.dying.push(world.memory.free(offset).expect("live"));
        }
        for release in std::mem::take(&mut world.dying) {
            world.retire(&release);
        }
        for bytes in std::mem::take(&mut world.unspilled) {
            world.memory.credit_unspilled(bytes);
        }
        world.check();
        prop_assert!(world.mapped.is_empty());
        let budgets = world.memory.budgets();
        prop_assert_eq!((budgets.vram.used_bytes(), budgets.ram.used_bytes()), (0, 0));
    }
}

#[test]
fn what_the_program_asked_for_is_what_it_gets_back() {
    let mut memory = DeviceMemory::new(Budgets::new(64 * MIB, 0), 0, 1024 * MIB);
    let room = Room { vram_bytes: 64 * MIB, vram_reserve_bytes: 0, ram_bytes: 0 };
    let Answer::Place(plan) = memory.allocate(Owner(1), 3 * MIB + 1, room) else { panic!("no plan") };
    assert_eq!(plan.bytes_in(Tier::Vram), 4 * MIB);
    let offset = memory.commit(plan.ticket).unwrap();
    assert_eq!(memory.find(offset + 3 * MIB).map(|a| a.bytes), Some(3 * MIB + 1));
    assert_eq!(memory.find(offset + 3 * MIB + 1), None);
}

#[test]
fn a_whole_handle_goes_to_ram_before_it_takes_what_is_held_back_for_the_driver() {
    let mut memory = DeviceMemory::new(Budgets::new(64 * MIB, 16 * MIB), 0, 1024 * MIB);
    let room = Room { vram_bytes: 40 * MIB, vram_reserve_bytes: 8 * MIB, ram_bytes: u64::MAX };
    assert_eq!(memory.charge_whole(32 * MIB, room), Some(Tier::Vram));
    let room = Room { vram_bytes: 8 * MIB, ..room };
    assert_eq!(memory.charge_whole(10 * MIB, room), Some(Tier::Ram));
    assert_eq!(memory.charge_whole(8 * MIB, room), Some(Tier::Vram));
    assert_eq!(memory.charge_whole(8 * MIB, Room { vram_bytes: 0, ..room }), None);
    memory.credit_whole(10 * MIB, Tier::Ram);
    assert!(memory.recharge_whole(8 * MIB));
    let budgets = memory.budgets();
    assert_eq!((budgets.vram.used_bytes(), budgets.ram.used_bytes()), (32 * MIB, 8 * MIB));
}

#[test]
fn large_allocations_leave_vram_to_hot_ones_as_long_as_there_is_ram() {
    let mut memory = DeviceMemory::new(Budgets::new(1024 * MIB, 64 * MIB), 0, 4096 * MIB);
    let room = Room { vram_bytes: 4096 * MIB, vram_reserve_bytes: 0, ram_bytes: u64::MAX };
    let Answer::Place(large) = memory.allocate(Owner(1), 1024 * MIB, room) else { panic!("no plan") };
    assert_eq!((large.bytes_in(Tier::Vram), large.bytes_in(Tier::Ram)), (992 * MIB, 32 * MIB));
    let Answer::Place(hot) = memory.allocate(Owner(1), 8 * MIB, room) else { panic!("no plan") };
    assert_eq!(hot.bytes_in(Tier::Vram), 8 * MIB);
    // When RAM is used up as well, it is there for all.
    let Answer::Place(last) = memory.allocate(Owner(1), 56 * MIB, room) else { panic!("no plan") };
    assert_eq!((last.bytes_in(Tier::Vram), last.bytes_in(Tier::Ram)), (24 * MIB, 32 * MIB));
}

#[test]
fn small_allocations_are_left_a_256th_of_the_vram_but_some_of_a_small_budget() {
    let left = |mib: u64| emuv_policy::left_to_small_bytes(mib << 20) >> 20;
    assert_eq!([64 << 10, 12 << 10, 4 << 10, 1 << 10, 64].map(left), [256, 48, 32, 16, 1]);
}
