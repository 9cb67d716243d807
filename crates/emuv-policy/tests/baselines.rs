//! What emuV is compared with does what it is said to do, and is ordered as it must be.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)] // A failed unwrap is a failed test; sizes as rates.

mod synthetic;

use std::{fs, io::Read, path::Path};

use emuv_policy::{
    machine::Link,
    replay::Program,
    simulate::{Comparison, Outcome, Setting, Way, compare, compare_telling},
    trace,
};
use flate2::read::GzDecoder;
use synthetic::{CHUNK, Loop};

fn setting(vram_bytes: u64) -> Setting {
    Setting { vram_bytes, ram_bytes: 64 << 30, link: Link::gb_per_s(50.0, 50.0, 90.0), iterations: 12 }
}

fn compared(program: &Program, vram_bytes: u64) -> Comparison {
    compare(program, &setting(vram_bytes), &Way::ALL).unwrap()
}

fn of(compared: &Comparison, way: Way) -> Outcome {
    *compared.outcomes.iter().find(|outcome| outcome.way == way).unwrap()
}

/// The bound is below the optimum, and that below everything else.
fn assert_sane(compared: &Comparison) {
    let optimal = of(compared, Way::Optimal).micros;
    assert!(compared.bound_micros() <= optimal * 1.001, "bound {} optimal {optimal}", compared.bound_micros());
    for outcome in &compared.outcomes {
        assert!(optimal <= outcome.micros * 1.003, "{outcome:?} is faster than the optimum, {optimal}");
    }
}

fn assert_near(measured: f64, expected: f64, part: f64) {
    assert!((measured / expected - 1.0).abs() <= part, "{measured} instead of {expected}");
}

#[test]
fn least_recently_used_misses_everything_in_a_cyclic_scan_and_the_optimum_only_what_does_not_fit() {
    let scan = Loop { chunks: 60, micros: 100, slowness: 10 };
    let compared = compared(&scan.cyclic(), 50 * CHUNK);
    assert_sane(&compared);
    assert_near(of(&compared, Way::Lru).in_bytes, (60 * CHUNK) as f64, 0.05);
    assert_near(compared.bound.in_bytes, (10 * CHUNK) as f64, 0.05);
    let optimal = of(&compared, Way::Optimal).in_bytes;
    assert!(optimal < (20 * CHUNK) as f64, "{} chunks", optimal / CHUNK as f64);
}

#[test]
fn least_recently_used_is_the_right_rule_for_a_scan_in_order_and_back() {
    let scan = Loop { chunks: 60, micros: 100, slowness: 10 };
    let compared = compared(&scan.palindromic(), 50 * CHUNK);
    assert_sane(&compared);
    assert_near(of(&compared, Way::Lru).in_bytes, compared.bound.in_bytes, 0.15);
}

#[test]
fn reading_once_in_place_costs_the_bytes_that_do_not_fit_at_the_links_speed() {
    let scan = Loop { chunks: 60, micros: 20, slowness: 1 };
    let compared = compared(&scan.cyclic(), 30 * CHUNK);
    assert_sane(&compared);
    let in_place = of(&compared, Way::InPlace);
    // The other half is in VRAM and takes its own time.
    assert_near(in_place.micros, (30 * CHUNK) as f64 / 50_000.0 + 30.0 * 20.0, 0.02);
    assert_near(in_place.in_place_bytes, (30 * CHUNK) as f64, 0.001);
    assert!(in_place.in_bytes + in_place.out_bytes == 0.0);
    assert!(compared.bound.out_bytes == 0.0, "what is only read need not go out");
}

#[test]
fn where_everything_fits_all_ways_are_one() {
    let scan = Loop { chunks: 20, micros: 100, slowness: 10 };
    let compared = compared(&scan.cyclic(), 24 * CHUNK);
    assert_sane(&compared);
    for outcome in &compared.outcomes {
        assert_near(outcome.micros, 2000.0, 0.01);
        assert!(outcome.in_bytes + outcome.in_place_bytes == 0.0, "{outcome:?}");
    }
}

#[test]
fn a_program_without_a_loop_is_one_iteration() {
    for seed in [1, 2, 3] {
        println!("seed {seed}");
        let gather = Loop { chunks: 60, micros: 100, slowness: 2 };
        let compared = compared(&gather.random(1500, seed), 40 * CHUNK);
        assert_eq!(compared.iterations, (1, 1));
        assert_sane(&compared);
    }
}

#[test]
fn a_trace_with_wrong_bytes_in_it_is_refused_or_simulated() {
    let scan = Loop { chunks: 12, micros: 100, slowness: 3 };
    let whole = scan.trace(6, |_| (0..12).collect());
    let mut random = 7_u64;
    for _ in 0..300 {
        let mut bytes = whole.clone();
        for _ in 0..4 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = 8 + usize::try_from(random >> 33).unwrap() % (bytes.len() - 8);
            bytes[at] = random.to_le_bytes()[3];
        }
        if let Ok(events) = trace::events(&bytes) {
            let program = Program::from_trace(events.into_iter());
            let few = Setting { iterations: 2, ..setting(8 * CHUNK) };
            let _ = compare(&program, &few, &[Way::Emuv, Way::Lru, Way::InPlace, Way::Static]);
        }
    }
}

#[test]
fn how_far_a_comparison_is_is_told_up_to_its_end() {
    let scan = Loop { chunks: 12, micros: 100, slowness: 10 };
    for ways in [&Way::ALL[..], &[Way::Optimal], &[Way::Lru, Way::Emuv]] {
        let told = std::cell::RefCell::new(Vec::new());
        let played = |over, all| told.borrow_mut().push((over, all));
        compare_telling(&scan.cyclic(), &setting(8 * CHUNK), ways, &played).unwrap();
        let told = told.into_inner();
        assert!(told.iter().enumerate().all(|(at, (over, all))| *over == at + 1 && *all == told.len()), "{told:?}");
    }
}

#[test]
fn what_is_more_than_both_tiers_have_is_refused() {
    let scan = Loop { chunks: 20, micros: 100, slowness: 10 };
    let setting = Setting { ram_bytes: 8 * CHUNK, ..setting(8 * CHUNK) };
    let said = compare(&scan.cyclic(), &setting, &Way::ALL).unwrap_err().to_string();
    assert!(said.contains("640 MiB"), "{said}");
}

fn shipped(name: &str) -> Program {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces").join(name);
    let mut bytes = Vec::new();
    GzDecoder::new(fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    Program::from_trace(trace::events(&bytes).unwrap().into_iter())
}

/// emuV takes at most so many times as long as the optimum on a shipped trace whose peak is so many percent of VRAM. The
/// aim is 1.1. What is above it is a weakness of the policy that is known (`docs/simulate.md` has the figures), and is not
/// to become worse.
fn assert_close(name: &str, factors: &[(u64, f64)]) {
    let program = shipped(name);
    for &(percent, most) in factors {
        let vram_bytes = program.peak_bytes() * 100 / percent;
        let link = Link::gb_per_s(54.8, 54.9, 100.7);
        let compared = compare(&program, &Setting { link, ..setting(vram_bytes) }, &Way::ALL).unwrap();
        assert_sane(&compared);
        let (emuv, optimal) = (of(&compared, Way::Emuv).micros, of(&compared, Way::Optimal).micros);
        let ratio = emuv / optimal;
        assert!(ratio <= most, "{name} at {percent} %: {emuv:.0} us, {ratio:.2} times the optimum's {optimal:.0}");
    }
}

#[test]
fn emuv_is_close_to_the_optimum_when_it_decodes() {
    assert_close("llama-1-token.trc.gz", &[(110, 1.15), (150, 1.13)]);
}

#[test]
fn emuv_is_close_to_the_optimum_when_it_prefills() {
    assert_close("llama-512-tokens.trc.gz", &[(110, 1.05), (120, 1.06), (130, 1.08), (150, 1.06)]);
}

#[test]
fn emuv_is_no_further_from_the_optimum_when_it_trains_than_it_has_been() {
    assert_close("resnet50-batch128.trc.gz", &[(110, 1.25), (150, 1.15)]);
}
