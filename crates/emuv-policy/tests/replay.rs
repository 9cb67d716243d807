//! A recorded program is run again in virtual time, with its memory from a pool like emuV's own.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)] // A failed unwrap is a failed test; sizes as rates.

use emuv_policy::{
    Policy, StreamId, Tier,
    machine::{Link, Machine, Op},
    replay::Program,
    trace::{self, Event, Recorder, WorkFlags},
};

const MIB: u64 = 1 << 20;
const WEIGHTS: u64 = 60;
const ROUNDS: u64 = 8;

/// What is known of whether a weight changes: nothing, or what was seen when it left VRAM again.
type Seen = fn(u64) -> Option<bool>;

/// The weights, 32 MiB each, one after the other.
fn record_weights(recorder: &mut Recorder) {
    for weight in 0..WEIGHTS {
        let offset = weight * 32 * MIB;
        recorder.record(&Event::Chunk { offset, bytes: 32 * MIB, tier: Tier::Vram, fixed: false });
        recorder.record(&Event::Extent { offset, bytes: 32 * MIB });
    }
}

/// The trace of a loop over weights of 32 MiB each, whose works write to a buffer of 8 MiB that is made anew each time and
/// take 200 us; in each round `others` works follow that are all alike and touch that buffer alone.
fn recorded(rounds: u64, others: u64) -> Vec<u8> {
    recorded_seeing(rounds, others, |_| None)
}

/// The same; of each weight it is seen whether it is the same.
fn recorded_seeing(rounds: u64, others: u64, same: Seen) -> Vec<u8> {
    let mut recorder = Recorder::new();
    let record = |recorder: &mut Recorder, event: Event| recorder.record(&event);
    record(&mut recorder, Event::Link { bytes_per_milli: 54_000_000 });
    record_weights(&mut recorder);
    let scratch = WEIGHTS * 32 * MIB;
    record(&mut recorder, Event::Chunk { offset: scratch, bytes: 8 * MIB, tier: Tier::Vram, fixed: false });
    let mut number = 0;
    for _ in 0..rounds {
        for work in 0..WEIGHTS + others {
            number += 1;
            let (stream, flags) = (StreamId(1), WorkFlags::default());
            record(&mut recorder, Event::Extent { offset: scratch, bytes: 8 * MIB });
            let weight = (work < WEIGHTS).then_some(work * 32 * MIB);
            let chunks = weight.into_iter().chain([scratch]).collect();
            let kind = if weight.is_some() { 5 } else { 6 };
            record(&mut recorder, Event::Begun { stream, number, kind, flags, chunks });
            recorder.set_time(number * 200);
            record(&mut recorder, Event::Completed { stream, number });
            record(&mut recorder, Event::Freed { offset: scratch });
        }
    }
    for weight in 0..WEIGHTS {
        if let Some(same) = same(weight) {
            record(&mut recorder, Event::Compared { offset: weight * 32 * MIB, same });
        }
    }
    // It reads RAM ten times as slowly as the link.
    record(&mut recorder, Event::Measured { kind: 5, ram_bytes: 32 * MIB, micros: 6214 });
    recorder.take()
}

fn program() -> Program {
    Program::from_trace(trace::read(&recorded(ROUNDS, 0)).unwrap())
}

#[test]
fn rounds_durations_and_memory_are_found_in_the_trace() {
    let program = program();
    let rounds = program.rounds().unwrap();
    assert_eq!((rounds.works as u64, rounds.count as u64), (WEIGHTS, ROUNDS));
    assert!((program.round_micros() / (WEIGHTS as f64 * 200.0) - 1.0).abs() < 0.02, "{}", program.round_micros());
    let ops = program.ops(u64::MAX / 2);
    let mapped: u64 = ops.iter().map(|op| if let Op::Map { bytes, .. } = op { *bytes } else { 0 }).sum();
    assert_eq!(mapped, WEIGHTS * 32 * MIB + 8 * MIB, "what is freed is used again");
    assert_eq!(ops.iter().filter(|op| **op == Op::Round).count(), usize::try_from(ROUNDS).unwrap() + 1);
}

#[test]
fn what_was_seen_not_to_change_is_constant_and_so_is_what_was_never_seen_beside_it() {
    let constant = |same: Seen| {
        let program = Program::from_trace(trace::read(&recorded_seeing(ROUNDS, 0, same)).unwrap());
        let ops = program.ops(u64::MAX / 2);
        ops.iter().filter(|op| matches!(op, Op::Constant { .. })).count() as u64
    };
    assert_eq!(constant(|_| None), 0, "nothing is known");
    assert_eq!(constant(|_| Some(false)), 0);
    assert_eq!(constant(|weight| Some(weight < 12)), 12);
    assert_eq!(
        constant(|weight| (weight < 12).then_some(true)),
        WEIGHTS,
        "the buffer does not last, so it is not among them"
    );
    assert_eq!(constant(|weight| (weight < 12).then_some(weight < 4)), 4);
}

#[test]
fn what_does_not_change_goes_out_once() {
    let costs = |same: Seen| {
        let program = Program::from_trace(trace::read(&recorded_seeing(ROUNDS, 0, same)).unwrap());
        let machine = Machine {
            vram_bytes: 1600 * MIB,
            ram_bytes: 1 << 40,
            link: Link::gb_per_s(54.0, 54.0, 92.0),
            wake_us: 50.0,
        };
        let costs = machine.run(&program.ops(1 << 40), Policy::Dynamic { safe: false });
        let evicted: u64 = costs.iter().map(|cost| cost.evicted_bytes).sum();
        (evicted, costs[usize::try_from(ROUNDS).unwrap() - 1])
    };
    let ((all, _), (evicted, last)) = (costs(|_| None), costs(|_| Some(true)));
    assert!(evicted <= WEIGHTS * 32 * MIB && all > 2 * evicted, "{evicted} bytes, changing {all}");
    assert!(last.promoted_bytes > 0, "it comes in each time");
}

#[test]
fn what_the_gpu_had_to_wait_for_is_no_part_of_how_long_works_take() {
    // Each comes 800 us after the one before is done and takes 200; in every round one is held, so no round says how long all of it takes.
    let mut recorder = Recorder::new();
    record_weights(&mut recorder);
    let (stream, flags) = (StreamId(1), WorkFlags::default());
    for number in 1..=ROUNDS * WEIGHTS {
        let chunks = vec![(number - 1) % WEIGHTS * 32 * MIB];
        if number % WEIGHTS == 7 {
            recorder.record(&Event::Held { hold: number, for_data: true, chunks: chunks.clone() });
        }
        recorder.set_time(number * 1000);
        recorder.record(&Event::Begun { stream, number, kind: 5, flags, chunks });
        recorder.set_time(number * 1000 + 200);
        recorder.record(&Event::Completed { stream, number });
    }
    let program = Program::from_trace(trace::read(&recorder.take()).unwrap());
    assert_eq!(program.round_micros(), WEIGHTS as f64 * 200.0);
}

#[test]
fn the_host_is_as_fast_as_it_was_at_each_place_of_a_round() {
    // Behind one work in three the host needs 80 us, behind the others 10; behind the last it waits for the GPU. Every other round a work
    // comes late.
    let between = |work: u64| if work % 3 == 2 { 80 } else { 10 };
    let mut recorder = Recorder::new();
    record_weights(&mut recorder);
    let (stream, flags, mut time) = (StreamId(1), WorkFlags::default(), 0);
    for round in 0..ROUNDS {
        let late = if round % 2 == 0 { 500 } else { 0 };
        for work in 0..WEIGHTS {
            recorder.set_time(time);
            let (number, chunks) = (round * WEIGHTS + work + 1, vec![work * 32 * MIB]);
            recorder.record(&Event::Begun { stream, number, kind: 5, flags, chunks });
            time += between(work) + if work == 7 { late } else { 0 };
        }
        recorder.set_time(time + 9_000);
        recorder.record(&Event::Completed { stream, number: (round + 1) * WEIGHTS });
        time += 10_000;
    }
    let program = Program::from_trace(trace::read(&recorder.take()).unwrap());
    let ops = program.ops(u64::MAX / 2);
    let issue_us = ops.iter().filter_map(|op| if let Op::Work(work) = op { Some(work.issue_us) } else { None });
    let last: Vec<f64> = issue_us.skip(usize::try_from((ROUNDS - 1) * WEIGHTS).unwrap()).collect();
    let expected = (0..WEIGHTS - 1).map(|work| between(work) as f64);
    assert_eq!(last[..last.len() - 1], expected.collect::<Vec<_>>());
    assert!(last[last.len() - 1] <= 100.0, "what takes as long waits for the GPU: {last:?}");
}

#[test]
fn many_works_that_are_alike_are_a_part_of_the_loop_and_not_the_loop() {
    let program = Program::from_trace(trace::read(&recorded(4, 1000)).unwrap());
    let rounds = program.rounds().unwrap();
    assert_eq!((rounds.works, rounds.count), (1060, 4));
}

#[test]
fn moving_beats_staying_and_comes_close_to_the_bound() {
    let vram_bytes = 1600 * MIB;
    let machine = Machine { vram_bytes, ram_bytes: 1 << 40, link: Link::gb_per_s(54.0, 54.0, 92.0), wake_us: 50.0 };
    let ops = program().ops(1 << 40);
    let last = |policy| machine.run(&ops, policy)[usize::try_from(ROUNDS).unwrap() - 1].micros;
    let (moved, stayed) = (last(Policy::Dynamic { safe: false }), last(Policy::Static));
    let bound = (WEIGHTS as f64 * 200.0).max((WEIGHTS * 32 * MIB + 8 * MIB - vram_bytes) as f64 / 46_000.0);
    assert!(stayed > 4.0 * moved, "{stayed} us against {moved}");
    assert!(bound / moved > 0.75, "{moved} us, the bound is {bound}");
}

#[test]
fn a_loop_is_cut_short_or_run_on() {
    let program = program();
    for rounds in [3, 8, 20] {
        let repeated = program.repeated(rounds).unwrap();
        assert_eq!(repeated.works(), rounds * usize::try_from(WEIGHTS).unwrap());
        assert_eq!(repeated.peak_bytes(), program.peak_bytes());
        let ops = repeated.ops(u64::MAX / 2);
        // A round ends with the first work of the next, so what that allocates may be there already.
        let last = ops.iter().rposition(|op| matches!(op, Op::Work(_))).unwrap();
        let count = |wanted: fn(&Op) -> bool| ops[..last].iter().filter(|op| wanted(op)).count();
        assert_eq!(count(|op| *op == Op::Round), rounds);
        // The weights and, in each work, the buffer that is made anew; every work has both.
        assert_eq!(count(|op| matches!(op, Op::Allocate { .. })), usize::try_from(WEIGHTS).unwrap() + repeated.works());
        assert!(ops.iter().all(|op| if let Op::Work(work) = op { work.chunks.len() == 2 } else { true }));
    }
}
