//! Runs the scenarios over many schedules.
//!
//! # Safety
//! The environment is changed while the process has one thread.
#![allow(unsafe_code)]

use std::{
    process::ExitCode,
    sync::{Arc, Mutex},
};

use emuv_policy::Tier;
use emuv_state::env;
use libtest_mimic::{Arguments, Failed, Trial};
use shuttle::{
    Config, FailurePersistence, MaxSteps, Runner,
    rand::Rng as _,
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{gpu, program, session, sync, thread};

/// Memory of the card in bytes, beside what the program is given.
const CARD_BYTES: u64 = 20 << 20;

/// Schedules of each kind for each scenario.
const SCHEDULES: u64 = 64;

/// No schedule is longer; what goes on for ever is.
const MOST_STEPS: usize = 200_000;

/// Places in a schedule at which PCT changes priorities.
const PCT_DEPTH: usize = 4;

/// A program, and what it runs under.
pub struct Scenario {
    pub name: &'static str,
    /// Environment variables.
    pub settings: &'static [(&'static str, &'static str)],
    /// Whether waits that have a limit end by themselves, at random moments.
    pub clock: bool,
    pub body: fn(),
}

/// What has happened in all schedules of a scenario: if nothing, it shows nothing.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    promoted_bytes: u64,
    evicted_bytes: u64,
    held: u64,
    searches: u64,
}

static SEEN: Mutex<Seen> = Mutex::new(Seen { promoted_bytes: 0, evicted_bytes: 0, held: 0, searches: 0 });

/// Runs them as `cargo test` runs tests.
pub fn run(scenarios: &'static [Scenario]) -> ExitCode {
    // One after the other: the settings are the process's environment.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let trials = scenarios.iter().map(|scenario| Trial::test(scenario.name, || try_all(scenario))).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.trim().parse().ok()
}

fn try_all(scenario: &'static Scenario) -> Result<(), Failed> {
    let log = if std::env::var_os(env::LOG).is_none() { Some((env::LOG, "off")) } else { None };
    let common = [(env::RAM_FLOOR, "0"), (env::QUIET, "1")];
    for (name, value) in common.iter().chain(&log).chain(scenario.settings) {
        // SAFETY: see the module's head.
        unsafe { std::env::set_var(name, value) };
    }
    let only = number("EMUV_INTERLEAVINGS_SEED");
    let seeds = match only {
        Some(seed) => seed..seed + 1,
        None => 0..SCHEDULES * number("EMUV_INTERLEAVINGS").unwrap_or(1),
    };
    let tried = seeds.into_iter().try_for_each(|seed| {
        try_one(scenario, seed, RandomScheduler::new_from_seed(seed, 1))?;
        // The first of two only measures how long a schedule is.
        try_one(scenario, seed, PctScheduler::new_from_seed(seed, PCT_DEPTH, 2))
    });
    for (name, _) in scenario.settings {
        // SAFETY: see the module's head.
        unsafe { std::env::remove_var(name) };
    }
    let seen = std::mem::take(&mut *SEEN.lock().expect("not poisoned"));
    tried?;
    if only.is_none() && [seen.promoted_bytes, seen.evicted_bytes, seen.held, seen.searches].contains(&0) {
        return Err(format!("the schedules show nothing: {seen:?}").into());
    }
    Ok(())
}

fn try_one(scenario: &'static Scenario, seed: u64, scheduler: impl Scheduler + Send + 'static) -> Result<(), Failed> {
    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::FailAfter(MOST_STEPS);
    config.silence_warnings = true;
    config.stack_size = 1 << 18;
    config.ungraceful_shutdown_config.immediately_return_on_panic = true;
    let kind = std::any::type_name_of_val(&scheduler).rsplit("::").next().unwrap_or_default().to_owned();
    // A thread of its own: see `random`.
    match std::thread::spawn(move || Runner::new(scheduler, config).run(move || execute(scenario))).join() {
        Ok(_) => Ok(()),
        Err(panic) => {
            let words = panic.downcast_ref::<String>().cloned();
            let words = words.or_else(|| panic.downcast_ref::<&str>().map(|&words| words.to_owned()));
            let words = words.unwrap_or_else(|| "it panicked".to_owned());
            let again = format!("EMUV_INTERLEAVINGS_SEED={seed} cargo test -p emuv-shim --test interleavings");
            Err(format!("{words}\n{kind}; to see it again: {again} -- {}", scenario.name).into())
        }
    }
}

/// The process, from its first call to its end.
fn execute(scenario: &'static Scenario) {
    sync::begin_execution();
    thread::begin_execution();
    gpu::begin_execution(CARD_BYTES, shuttle::rand::thread_rng().r#gen());
    program::init();
    let over = Arc::new(AtomicBool::new(false));
    let clock = scenario.clock.then(|| {
        let over = Arc::clone(&over);
        shuttle::thread::spawn(move || sync::run_clock(&over))
    });
    (scenario.body)();
    end();
    over.store(true, Ordering::SeqCst);
    if let Some(clock) = clock {
        clock.join().expect("the clock only waits");
    }
}

/// The program has freed everything; nothing is left.
fn end() {
    let session = session::current().expect("made by the first call");
    thread::process_ends();
    for device in session.devices() {
        if let Some(counters) = session.counters(device.ordinal) {
            let mut seen = SEEN.lock().expect("not poisoned");
            seen.promoted_bytes += counters.promoted_bytes.load(Ordering::Relaxed);
            seen.evicted_bytes += counters.evicted_bytes.load(Ordering::Relaxed);
            seen.held += counters.held.load(Ordering::Relaxed);
            seen.searches += counters.searches.load(Ordering::Relaxed);
        }
        device.pools.make_room(session, &device.arena, u64::MAX, true);
        device.moves.without_spares(session, &device.arena, || ());
        let budgets = device.arena.with_memory(|memory| *memory.budgets());
        let used = [Tier::Vram, Tier::Ram].map(|tier| budgets.of(tier).used_bytes());
        assert_eq!(used, [0, 0], "bytes that are still charged to VRAM and RAM");
    }
    assert_eq!(gpu::with(|gpu| gpu.counts()), (0, 0), "handles and mappings that are left");
    gpu::check();
}
