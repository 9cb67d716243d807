//! Turns in virtual time: tenants with threads of their own (they look around at different moments, and see what was so a
//! moment ago), works of
//! any length, a GPU that the driver shares between whatever runs.

#![allow(clippy::expect_used)] // A failed expectation is a failed test.

use emuv_policy::turns::{self, Card, Gate, Tenant, TimeAccount, Turn};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
/// A step of virtual time, in microseconds.
const TICK: u64 = 1_000;
/// Work that a program gives ahead of what is done, in microseconds.
const AHEAD: u64 = 10_000;
const SECOND: u64 = 1_000_000;

#[derive(Debug, Clone)]
struct Program {
    weight: u32,
    cap: Option<u32>,
    set_mib: u64,
    /// The length of each of its works, in microseconds.
    work_micros: u64,
    /// It looks around every so many ticks.
    looks_every: u64,
    /// When it begins to want the GPU.
    since: u64,
    /// It never waits for its turn to be given, and gives all of this at once when it is.
    hostile_micros: u64,
    /// From here on it is stopped.
    stopped: u64,
}

impl Default for Program {
    fn default() -> Self {
        Self {
            weight: 100,
            cap: None,
            set_mib: 100,
            work_micros: 2_000,
            looks_every: 1,
            since: 0,
            hostile_micros: 0,
            stopped: u64::MAX,
        }
    }
}

struct World {
    card: Card,
    programs: Vec<Program>,
    tenants: Vec<Tenant>,
    gates: Vec<Gate>,
    /// Work on the GPU that is not done, in microseconds.
    queued: Vec<u64>,
    /// The GPU's time that each has had.
    had: Vec<u64>,
    /// When each last had some.
    last: Vec<u64>,
    now: u64,
    idle: u64,
}

impl World {
    fn new(vram_mib: u64, programs: Vec<Program>) -> Self {
        let tenant = |(id, program): (usize, &Program)| Tenant {
            id: id as u64,
            weight: program.weight,
            cap_percent: program.cap,
            processes: 1,
            beat_micros: 0,
            wants: false,
            busy: false,
            account: TimeAccount::default(),
            turn: None,
            set_bytes: program.set_mib * MIB,
            resident_bytes: program.set_mib * MIB / 2,
        };
        let count = programs.len();
        Self {
            // Sets of this size are brought in no time, so a turn lasts a second.
            card: Card { vram_bytes: vram_mib * MIB, link_bytes_per_micro: 25_000 },
            tenants: programs.iter().enumerate().map(tenant).collect(),
            programs,
            gates: vec![Gate::Shut; count],
            queued: vec![0; count],
            had: vec![0; count],
            last: vec![0; count],
            now: SECOND,
            idle: 0,
        }
    }

    fn tick(&mut self) {
        self.now += TICK;
        let now = self.now;
        // What others have published is seen a tick later.
        let before = self.tenants.clone();
        for (index, program) in self.programs.iter().enumerate() {
            if now >= program.stopped {
                continue;
            }
            if (now / TICK).is_multiple_of(program.looks_every) {
                let own = &mut self.tenants[index];
                own.beat_micros = now;
                own.wants = now >= program.since + SECOND;
                own.busy = self.queued[index] > 0;
                let mut seen = before.clone();
                seen[index] = own.clone();
                self.gates[index] = turns::step(index, &mut seen, &self.card, now);
                self.tenants[index] = seen.swap_remove(index);
            }
            let open = self.tenants[index].wants && self.gates[index] != Gate::Shut;
            while open && self.queued[index] < AHEAD {
                self.queued[index] += program.work_micros.max(program.hostile_micros);
            }
        }
        // The driver gives all that have work there the same.
        let mut left = TICK;
        loop {
            let busy: Vec<usize> = (0..self.queued.len()).filter(|index| self.queued[*index] > 0).collect();
            if busy.is_empty() || left < busy.len() as u64 {
                self.idle += if busy.is_empty() { left } else { 0 };
                break;
            }
            let each = left / busy.len() as u64;
            for index in busy {
                let done = each.min(self.queued[index]);
                self.queued[index] -= done;
                self.had[index] += done;
                self.last[index] = now;
                left -= done;
            }
        }
    }

    fn run(&mut self, micros: u64) -> Vec<u64> {
        let before = self.had.clone();
        let end = self.now + micros;
        while self.now < end {
            self.tick();
        }
        self.had.iter().zip(before).map(|(now, before)| now - before).collect()
    }

    /// Shares of the next ten seconds, in percent.
    fn shares(&mut self) -> Vec<f64> {
        self.run(10 * SECOND).into_iter().map(|micros| micros as f64 / (10 * SECOND) as f64 * 100.0).collect()
    }
}

fn program() -> impl Strategy<Value = Program> {
    (1_u32..=8, 100_u64..20_000, 1_u64..4).prop_map(|(weight, work_micros, looks_every)| Program {
        weight: weight * 50,
        work_micros,
        looks_every,
        ..Program::default()
    })
}

/// A slice of time that everybody may be off by: points of a hundred.
const POINTS: f64 = 5.0;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn weights_hold_within_five_points_in_any_ten_seconds(programs in proptest::collection::vec(program(), 2..6)) {
        let weights: f64 = programs.iter().map(|program| f64::from(program.weight)).sum();
        let mut world = World::new(1000, programs.clone());
        world.run(SECOND);
        for _ in 0..3 {
            let shares = world.shares();
            for (program, share) in programs.iter().zip(&shares) {
                let fair = f64::from(program.weight) / weights * 100.0;
                prop_assert!((share - fair).abs() <= POINTS, "{shares:?}, {fair} for {program:?}");
            }
        }
    }

    #[test]
    fn caps_hold_and_what_one_may_not_have_the_others_get(
        mut programs in proptest::collection::vec(program(), 1..5), cap in 5_u32..90
    ) {
        programs[0].cap = Some(cap);
        let mut world = World::new(1000, programs.clone());
        world.run(SECOND);
        for _ in 0..3 {
            let before = world.idle;
            let shares = world.shares();
            prop_assert!(shares[0] <= f64::from(cap) + POINTS, "{shares:?} with {cap}");
            if programs.len() == 1 {
                prop_assert!(shares[0] >= f64::from(cap) - POINTS, "{shares:?} with {cap}");
            } else {
                let idle = (world.idle - before) as f64 / (10 * SECOND) as f64 * 100.0;
                prop_assert!(idle <= 6.0, "{idle} idle of {shares:?}");
            }
        }
    }

    #[test]
    fn whoever_comes_and_whoever_is_there_get_their_share(
        programs in proptest::collection::vec(program(), 2..5), since in 0_u64..30
    ) {
        let mut programs = programs;
        programs[0].since = since * SECOND;
        let weights: f64 = programs.iter().map(|program| f64::from(program.weight)).sum();
        let mut world = World::new(1000, programs.clone());
        world.run(since * SECOND + 2 * SECOND);
        let shares = world.shares();
        for (program, share) in programs.iter().zip(&shares) {
            let fair = f64::from(program.weight) / weights * 100.0;
            prop_assert!((share - fair).abs() <= POINTS, "{shares:?}, {fair} for {program:?}");
        }
    }

    #[test]
    fn sets_that_do_not_fit_take_turns_and_nobody_starves(
        sets in proptest::collection::vec(10_u64..100, 2..6)
    ) {
        let programs: Vec<_> = sets.iter().map(|set| Program { set_mib: *set, ..Program::default() }).collect();
        let mut world = World::new(100, programs);
        let all: u64 = sets.iter().sum();
        world.run(sets.len() as u64 * 2 * SECOND);
        let before = world.had.clone();
        for _ in 0..20_000 {
            world.tick();
            let running: u64 = world.tenants.iter().zip(&sets)
                .filter(|(tenant, _)| tenant.turn.is_some_and(|turn| world.now < turn.until_micros))
                .map(|(_, set)| *set).sum();
            prop_assert!(all <= 100 || running <= 100, "{running} MiB of turns at once");
        }
        let had: Vec<_> = world.had.iter().zip(before).map(|(now, before)| now - before).collect();
        let fair = 20 * SECOND / sets.len() as u64;
        prop_assert!(had.iter().all(|had| *had >= fair / 3), "{had:?} of {sets:?}");
    }

    #[test]
    fn a_tenant_that_never_ends_does_not_stop_the_others_beyond_its_quantum(
        programs in proptest::collection::vec(program(), 2..5), hostile in 0_usize..2, endless in any::<bool>()
    ) {
        let mut programs = programs;
        programs[hostile].hostile_micros = if endless { u64::MAX / 4 } else { 3 * SECOND };
        let mut world = World::new(1000, programs);
        let count = world.programs.len() as u64;
        for _ in 0..20_000 {
            world.tick();
            // The hostile one's quantum and as much again, and those of the others in between.
            let most = (count + 2) * turns::TIME_QUANTUM_MICROS * 8;
            for (index, last) in world.last.iter().enumerate().filter(|(index, _)| *index != hostile) {
                let waited = world.now - (*last).max(SECOND);
                prop_assert!(waited <= most, "{index} has waited for {waited} us");
            }
        }
    }

    #[test]
    fn who_is_stopped_at_any_moment_is_not_waited_for(
        programs in proptest::collection::vec(program(), 2..4), stopped in 1_000_000_u64..4_000_000, tight in any::<bool>()
    ) {
        let mut programs = programs;
        programs[0].stopped = stopped;
        let mut world = World::new(if tight { 150 } else { 1000 }, programs);
        world.run(stopped + 2 * SECOND);
        let before = world.had.clone();
        let idle = world.idle;
        // The lightest has its turn of a second once in nine.
        world.run(12 * SECOND);
        // Two looks of up to three ticks at each change of turns.
        prop_assert!(world.idle - idle <= SECOND, "{} us idle", world.idle - idle);
        prop_assert!(world.had.iter().zip(before).skip(1).all(|(now, before)| *now > before), "{:?}", world.had);
    }
}

#[test]
fn equal_tenants_that_fit_together_take_no_turns() {
    let mut world = World::new(1000, vec![Program::default(); 3]);
    world.run(5 * SECOND);
    assert_eq!(world.gates, [Gate::Free; 3]);
    assert!(world.tenants.iter().all(|tenant| tenant.turn.is_none()));
}

#[test]
fn a_tenant_alone_takes_no_turns_whatever_it_holds() {
    let mut world = World::new(100, vec![Program { set_mib: 900, weight: 3, ..Program::default() }]);
    world.run(SECOND);
    assert_eq!(world.gates, [Gate::Free]);
}

#[test]
fn idle_time_is_not_saved_up() {
    let late = Program { since: 60 * SECOND, weight: 200, ..Program::default() };
    let mut world = World::new(1000, vec![Program::default(), late]);
    world.run(61 * SECOND);
    let had = world.run(3 * SECOND);
    assert!(had[0] > 8 * SECOND / 10, "{had:?}");
}

#[test]
fn those_that_fit_beside_the_one_whose_turn_it_is_run_with_it() {
    let set = |set_mib| Program { set_mib, ..Program::default() };
    let mut world = World::new(100, vec![set(40), set(40), set(90)]);
    let mut together = false;
    for _ in 0..10_000 {
        world.tick();
        together |= world.tenants[0].is_running(world.now) && world.tenants[1].is_running(world.now);
    }
    assert!(together);
    // All three have had a third.
    let shares = world.shares();
    assert!(shares.iter().all(|share| (share - 100.0 / 3.0).abs() <= 10.0), "{shares:?}");
}

fn still(id: u64, set_mib: u64, resident_mib: u64) -> Tenant {
    Tenant {
        id,
        weight: 100,
        cap_percent: None,
        processes: 1,
        beat_micros: 0,
        wants: true,
        busy: false,
        account: TimeAccount::default(),
        turn: None,
        set_bytes: set_mib * MIB,
        resident_bytes: resident_mib * MIB,
    }
}

#[test]
fn vram_goes_to_the_one_whose_turn_it_is_then_to_the_next() {
    let turn = Some(Turn { began_micros: 0, until_micros: 1000 });
    let card = Card { vram_bytes: 100 * MIB, link_bytes_per_micro: 1 };
    let mut tenants = vec![still(0, 60, 60), Tenant { turn, ..still(1, 70, 40) }, still(2, 50, 0)];
    tenants[0].account.virtual_time = 5;
    assert_eq!(turns::allot(&tenants, &card, 10), [0, 70 * MIB, 30 * MIB]);
    // Where there is enough, nobody is told anything.
    tenants.truncate(1);
    assert_eq!(turns::allot(&tenants, &card, 10), [u64::MAX]);
}

#[test]
fn what_a_stopped_tenant_has_in_vram_stays_there() {
    let card = Card { vram_bytes: 100 * MIB, link_bytes_per_micro: 1 };
    let tenants = [still(0, 60, 60), Tenant { beat_micros: SECOND, ..still(1, 70, 40) }];
    assert_eq!(turns::allot(&tenants, &card, SECOND), [60 * MIB, 40 * MIB]);
}

#[test]
fn a_processes_own_slices_of_the_drivers_time_count_for_the_weights() {
    let card = Card { vram_bytes: u64::MAX, link_bytes_per_micro: 1 };
    let twice = |weight, processes| Tenant { weight, processes, ..still(1, 1, 1) };
    for (weight, processes, needed) in [(100, 1, false), (100, 2, true), (200, 2, false), (200, 1, true)] {
        let need = turns::need(&[still(0, 1, 1), twice(weight, processes)], &card, 0);
        assert_eq!(need.time, needed, "{weight} {processes}");
    }
}
