//! How a recorded program would run on another card behind another link, under several ways of placing its data.

use std::{cell::Cell, fmt};

use crate::{
    Policy,
    baselines::{Bound, Clairvoyant, InOrder, InPlace, Lru, Variant, bound},
    machine::{Cost, Link, Machine, Online, Placement, Script},
    replay::Program,
};

/// Rounds behind those that are measured: the end of a program is unlike its middle for whoever sees it coming.
const ROUNDS_BEHIND: usize = 2;

/// Until a thread that was held goes on, in microseconds.
const WAKE_US: f64 = 100.0;

/// Two schedules as fast as this are equally fast; the one that moves less is better.
const AS_FAST: f64 = 1.002;

/// A way of placing data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// emuV's own.
    Emuv,
    /// Demand paging.
    Lru,
    /// Placed once, in order of allocation.
    Static,
    /// Placed once, cleverly; the rest is read over the link whenever it is used.
    InPlace,
    /// The best schedule that is known to somebody who sees the whole program.
    Optimal,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Emuv, Self::Lru, Self::Static, Self::InPlace, Self::Optimal];

    /// As people and programs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Emuv => "emuv",
            Self::Lru => "lru",
            Self::Static => "static",
            Self::InPlace => "in-place",
            Self::Optimal => "optimal",
        }
    }
}

/// The card, the link and how long to look.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    /// What the program may use of VRAM, in bytes.
    pub vram_bytes: u64,
    /// What it may use of RAM, in bytes.
    pub ram_bytes: u64,
    /// What lies between.
    pub link: Link,
    /// Iterations of the program's loop. The second half of them counts.
    pub iterations: usize,
}

/// What an iteration takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Whose.
    pub way: Way,
    /// How long.
    pub micros: f64,
    /// Bytes copied into VRAM.
    pub in_bytes: f64,
    /// Bytes copied into RAM.
    pub out_bytes: f64,
    /// Bytes read in place, each time that they were.
    pub in_place_bytes: f64,
    /// How long the very first one took, in microseconds.
    pub first_micros: f64,
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// In the order that was asked for.
    pub outcomes: Vec<Outcome>,
    /// Which schedule is the optimal one, where that was asked for.
    pub optimal_schedule: Option<String>,
    /// How long an iteration takes with everything in VRAM, in microseconds.
    pub in_vram_micros: f64,
    /// What has to cross the link in an iteration.
    pub bound: Bound,
    /// Iterations that were run and that were measured. One of each: there is no loop, and it is the whole program.
    pub iterations: (usize, usize),
}

impl Comparison {
    /// What no schedule undercuts, in microseconds per iteration.
    pub fn bound_micros(&self) -> f64 {
        self.bound.link_us.max(self.bound.parts_us).max(self.in_vram_micros)
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Unanswered {
    /// The program holds more at once than VRAM and RAM have, in bytes.
    TooLarge {
        /// What it holds.
        peak_bytes: u64,
    },
    /// It gives the GPU nothing.
    NoWorks,
    /// A run does not come to an end.
    Stuck(Way, crate::machine::Stuck),
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { peak_bytes } => {
                write!(f, "the program holds up to {}, more than VRAM and RAM have", crate::Bytes(*peak_bytes))
            }
            Self::NoWorks => f.write_str("no work for the GPU was recorded"),
            Self::Stuck(way, stuck) => write!(f, "{}: {stuck}", way.name()),
        }
    }
}

impl std::error::Error for Unanswered {}

/// Runs the program under each of these.
///
/// # Errors
/// It cannot be run so.
pub fn compare(program: &Program, setting: &Setting, ways: &[Way]) -> Result<Comparison, Unanswered> {
    compare_telling(program, setting, ways, &|_, _| {})
}

/// The same; `played` is told how many of the runs that it takes are over, and how many there will be.
///
/// # Errors
/// It cannot be run so.
pub fn compare_telling(
    program: &Program,
    setting: &Setting,
    ways: &[Way],
    played: &dyn Fn(usize, usize),
) -> Result<Comparison, Unanswered> {
    let peak_bytes = program.peak_bytes();
    let most_bytes = setting.vram_bytes.saturating_add(setting.ram_bytes);
    if peak_bytes > most_bytes {
        return Err(Unanswered::TooLarge { peak_bytes });
    }
    if program.works() == 0 {
        return Err(Unanswered::NoWorks);
    }
    let repeated = program.repeated(setting.iterations + ROUNDS_BEHIND);
    let program = repeated.as_ref().unwrap_or(program);
    let script = Script::new(&program.ops(most_bytes));
    let machine =
        Machine { vram_bytes: setting.vram_bytes, ram_bytes: setting.ram_bytes, link: setting.link, wake_us: WAKE_US };
    // What stays where it is put had better not be spread over more memory than there is need for: then emuV's pools
    // give out what is free whatever that wastes, and so do these.
    let tight = Script::new(&program.ops(peak_bytes));
    // The best is sought among all others and schedules of its own.
    let optimal = ways.contains(&Way::Optimal).then(|| Way::ALL.len() - 1 + variants(&machine).len());
    let all = 1 + optimal.unwrap_or(ways.len());
    let over = Cell::new(0);
    let played = || played(over.replace(over.get() + 1) + 1, all);
    Runs { window: Window::new(&script), machine, script, tight, played: &played }.compare(ways)
}

/// Which rounds are measured.
#[derive(Debug, Clone, Copy)]
struct Window {
    /// Of the costs.
    first: usize,
    end: usize,
    works: (u32, u32),
    iterations: usize,
}

impl Window {
    fn new(script: &Script) -> Self {
        let works = u32::try_from(script.works.len()).unwrap_or(u32::MAX);
        // The last mark is the end of the last round.
        let rounds = script.rounds.len().saturating_sub(1);
        let iterations = rounds.saturating_sub(ROUNDS_BEHIND);
        if iterations == 0 {
            return Self { first: 0, end: script.rounds.len() + 1, works: (0, works), iterations: 1 };
        }
        let first = iterations / 2;
        // What comes before the first round is the first cost.
        Self {
            first: first + 1,
            end: iterations + 1,
            works: (script.rounds[first], script.rounds[iterations]),
            iterations,
        }
    }

    /// Iterations that are measured.
    fn measured(&self) -> usize {
        if self.first == 0 { 1 } else { self.end - self.first }
    }
}

struct Runs<'p> {
    machine: Machine,
    script: Script,
    /// The same in as little memory as possible.
    tight: Script,
    window: Window,
    /// A run is over.
    played: &'p dyn Fn(),
}

impl Runs<'_> {
    fn compare(&self, ways: &[Way]) -> Result<Comparison, Unanswered> {
        let roomy = Machine { vram_bytes: u64::MAX / 2, ..self.machine.clone() };
        let in_vram = self.play(&roomy, &self.tight, Way::Static, &mut InOrder)?;
        let mut outcomes: Vec<Outcome> = Vec::new();
        let mut optimal_schedule = None;
        for &way in ways {
            let outcome = if way == Way::Optimal {
                let (best, schedule) = self.optimum(&outcomes)?;
                optimal_schedule = Some(schedule);
                best
            } else {
                self.online(way)?
            };
            outcomes.push(outcome);
        }
        let (first, end) = self.window.works;
        let measured = self.window.measured();
        let bound = bound(&self.script, self.machine.vram_bytes, &self.machine.link, first, end, measured);
        let iterations = (self.window.iterations, measured);
        Ok(Comparison { outcomes, optimal_schedule, in_vram_micros: in_vram.micros, bound, iterations })
    }

    fn online(&self, way: Way) -> Result<Outcome, Unanswered> {
        let (script, machine) = (&self.script, &self.machine);
        let policy = Policy::Dynamic { safe: false };
        match way {
            Way::Static => self.play(machine, &self.tight, way, &mut InOrder),
            Way::Lru => self.play(machine, script, way, &mut Lru::new(script)),
            Way::InPlace => self.play(machine, script, way, &mut InPlace::new(script, machine.vram_bytes)),
            Way::Emuv | Way::Optimal => {
                self.play(machine, script, way, &mut Online::new(script, policy, machine.link.in_bytes_per_us))
            }
        }
    }

    /// The best schedule, and its name.
    fn optimum(&self, known: &[Outcome]) -> Result<(Outcome, String), Unanswered> {
        let mut candidates = Vec::new();
        for way in Way::ALL.into_iter().filter(|way| *way != Way::Optimal) {
            let known = known.iter().find(|outcome| outcome.way == way).copied();
            candidates.push((known.map_or_else(|| self.online(way), Ok)?, way.name().to_owned()));
        }
        for (variant, name) in variants(&self.machine) {
            let mut clairvoyant = Clairvoyant::new(&self.script, variant);
            candidates.push((self.play(&self.machine, &self.script, Way::Optimal, &mut clairvoyant)?, name));
        }
        let fastest = candidates.iter().map(|(outcome, _)| outcome.micros).fold(f64::INFINITY, f64::min);
        let moved = |outcome: &Outcome| outcome.in_bytes + outcome.out_bytes + outcome.in_place_bytes;
        candidates.retain(|(outcome, _)| outcome.micros <= fastest * AS_FAST);
        let best = candidates.into_iter().min_by(|(a, _), (b, _)| moved(a).total_cmp(&moved(b)));
        let Some((outcome, name)) = best else { return Err(Unanswered::NoWorks) };
        Ok((Outcome { way: Way::Optimal, ..outcome }, name))
    }

    #[allow(clippy::cast_precision_loss)] // Far below 2^52.
    fn play(
        &self,
        machine: &Machine,
        script: &Script,
        way: Way,
        placement: &mut impl Placement,
    ) -> Result<Outcome, Unanswered> {
        let costs = machine.play(script, placement).map_err(|stuck| Unanswered::Stuck(way, stuck))?;
        (self.played)();
        let Window { first, end, .. } = self.window;
        let count = self.window.measured() as f64;
        let mean = |of: fn(&Cost) -> f64| costs[first..end.min(costs.len())].iter().map(of).sum::<f64>() / count;
        Ok(Outcome {
            way,
            micros: mean(|cost| cost.micros),
            in_bytes: mean(|cost| cost.promoted_bytes as f64),
            out_bytes: mean(|cost| cost.evicted_bytes as f64),
            in_place_bytes: mean(|cost| cost.in_place_bytes as f64),
            first_micros: costs.get(1).unwrap_or(&costs[0]).micros,
        })
    }
}

/// Schedules of one who knows everything, with their names.
fn variants(machine: &Machine) -> Vec<(Variant, String)> {
    let read_once = machine.link.micros(1.0, 1.0) * machine.link.in_bytes_per_us * 1.2;
    let mut variants = Vec::new();
    for ahead_mib in [128_u64, 512] {
        let ahead_bytes = (ahead_mib << 20).min(machine.vram_bytes / 4);
        for (horizon_us, horizon) in [(f64::INFINITY, "whole program"), (20_000.0, "20 ms")] {
            for queue_us in [500.0, 4000.0] {
                for in_place_slowness in [None, Some(read_once)] {
                    let in_place = if in_place_slowness.is_some() { ", read once in place" } else { "" };
                    let name = format!("aggressive, {ahead_mib} MiB ahead, {horizon}, {queue_us} us queued{in_place}");
                    variants.push((Variant { ahead_bytes, horizon_us, queue_us, in_place_slowness }, name));
                }
            }
        }
    }
    variants
}
