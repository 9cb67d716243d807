//! What `emuv simulate` prints.

use std::{collections::BTreeMap, fmt::Write, path::Path};

use emuv_policy::{
    Bytes,
    replay::Program,
    simulate::{Comparison, Outcome, Setting, Way},
};
use serde::Serialize;

/// Version of the JSON.
const SCHEMA: u32 = 1;

/// Everything that is shown.
pub(super) struct Shown<'a> {
    pub file: &'a Path,
    pub program: &'a Program,
    pub setting: &'a Setting,
    pub compared: &'a Comparison,
}

#[derive(Serialize)]
struct Json<'a> {
    schema: u32,
    /// What was recorded.
    trace: Trace,
    /// Of the card that is asked about.
    vram_bytes: u64,
    /// RAM behind it.
    ram_bytes: u64,
    /// The most that the program held.
    peak_bytes: u64,
    /// Of the link that is asked about, 10^9 bytes a second.
    link: LinkSpeeds,
    /// How often the loop was run.
    iterations: usize,
    /// The last of them, whose mean is given.
    iterations_measured: usize,
    /// With all in VRAM.
    in_vram_seconds_per_iteration: f64,
    /// The least that GPU and link allow.
    bound_seconds_per_iteration: f64,
    /// The least that has to cross to VRAM.
    bound_bytes_in_per_iteration: f64,
    /// And to RAM.
    bound_bytes_out_per_iteration: f64,
    /// By their names, as in the table.
    policies: BTreeMap<&'static str, PolicyOutcome<'a>>,
}

#[derive(Serialize)]
struct Trace {
    file: String,
    /// Launches, copies and memsets.
    works: usize,
    /// Null: there is no loop, and the whole program is one iteration.
    works_per_iteration: Option<usize>,
    iterations: Option<usize>,
    /// Kinds of work.
    kinds: usize,
    /// Those that were timed while they read RAM.
    kinds_timed_in_place: usize,
}

#[derive(Serialize)]
struct LinkSpeeds {
    h2d_gb_per_s: f64,
    d2h_gb_per_s: f64,
    both_gb_per_s: f64,
}

#[derive(Serialize)]
struct PolicyOutcome<'a> {
    seconds_per_iteration: f64,
    /// While nothing is known of the loop.
    first_iteration_seconds: f64,
    /// The bound / the time.
    percent_of_bound: f64,
    /// Copied to VRAM.
    bytes_in_per_iteration: f64,
    /// Copied to RAM.
    bytes_out_per_iteration: f64,
    /// Read and written in RAM.
    bytes_in_place_per_iteration: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<&'a str>,
}

impl Shown<'_> {
    fn percent(&self, outcome: &Outcome) -> f64 {
        100.0 * self.compared.bound_micros() / outcome.micros
    }

    pub fn json(&self) -> String {
        let Self { file, program, setting, compared } = self;
        let (timed, kinds) = program.kinds_measured();
        let rounds = program.rounds();
        let [h2d_gb_per_s, d2h_gb_per_s, both_gb_per_s] = super::speeds(&setting.link);
        let outcome = |outcome: &Outcome| PolicyOutcome {
            seconds_per_iteration: outcome.micros / 1e6,
            first_iteration_seconds: outcome.first_micros / 1e6,
            percent_of_bound: self.percent(outcome),
            bytes_in_per_iteration: outcome.in_bytes,
            bytes_out_per_iteration: outcome.out_bytes,
            bytes_in_place_per_iteration: outcome.in_place_bytes,
            schedule: compared.optimal_schedule.as_deref().filter(|_| outcome.way == Way::Optimal),
        };
        let json = Json {
            schema: SCHEMA,
            trace: Trace {
                file: file.display().to_string(),
                works: program.works(),
                works_per_iteration: rounds.map(|rounds| rounds.works),
                iterations: rounds.map(|rounds| rounds.count),
                kinds,
                kinds_timed_in_place: timed,
            },
            vram_bytes: setting.vram_bytes,
            ram_bytes: setting.ram_bytes,
            peak_bytes: program.peak_bytes(),
            link: LinkSpeeds { h2d_gb_per_s, d2h_gb_per_s, both_gb_per_s },
            iterations: compared.iterations.0,
            iterations_measured: compared.iterations.1,
            in_vram_seconds_per_iteration: compared.in_vram_micros / 1e6,
            bound_seconds_per_iteration: compared.bound_micros() / 1e6,
            bound_bytes_in_per_iteration: compared.bound.in_bytes,
            bound_bytes_out_per_iteration: compared.bound.out_bytes,
            policies: compared.outcomes.iter().map(|of| (of.way.name(), outcome(of))).collect(),
        };
        // Numbers and text: nothing in it can fail.
        serde_json::to_string_pretty(&json).unwrap_or_default() + "\n"
    }

    pub fn text(&self) -> String {
        let Self { file, program, setting, compared } = self;
        let mut text = String::new();
        let loops = match program.rounds() {
            Some(rounds) => format!("a loop of {} works, recorded {} times", rounds.works, rounds.count),
            None => format!("no loop found: all {} works count as one iteration", program.works()),
        };
        let [into_vram, into_ram, both] = super::speeds(&setting.link);
        let (ran, measured) = compared.iterations;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}: {loops}; holds up to {}", file.display(), Bytes(program.peak_bytes()));
        let _ = writeln!(
            text,
            "Card: {} of VRAM and {} of RAM; link {into_vram:.1} GB/s in, {into_ram:.1} out, {both:.1} both",
            Bytes(setting.vram_bytes),
            Bytes(setting.ram_bytes),
        );
        let _ = writeln!(
            text,
            "All in VRAM {}, bound {}; per iteration, the mean of the last {measured} of {ran}\n",
            duration(compared.in_vram_micros),
            duration(compared.bound_micros()),
        );
        let _ = writeln!(
            text,
            "{:<9} {:>11} {:>11} {:>11} {:>11} {:>11} {:>14}",
            "policy", "iteration", "% of bound", "x in VRAM", "GB to VRAM", "GB to RAM", "GB in place"
        );
        for outcome in &compared.outcomes {
            let _ = writeln!(
                text,
                "{:<9} {:>11} {:>11.0} {:>11.2} {:>11.2} {:>11.2} {:>14.2}",
                outcome.way.name(),
                duration(outcome.micros),
                self.percent(outcome),
                outcome.micros / compared.in_vram_micros,
                outcome.in_bytes / 1e9,
                outcome.out_bytes / 1e9,
                outcome.in_place_bytes / 1e9,
            );
        }
        if let Some(schedule) = &compared.optimal_schedule {
            let _ = writeln!(text, "\nOptimal: {schedule}.");
        }
        let (timed, kinds) = program.kinds_measured();
        if timed < kinds {
            let _ = writeln!(
                text,
                "How it reads RAM in place was timed for {timed} of {kinds} kinds of work; the others are taken to do so at a \
                 sixth of the link's speed."
            );
        }
        text
    }
}

fn duration(micros: f64) -> String {
    if micros < 1e6 { format!("{:.1} ms", micros / 1e3) } else { format!("{:.2} s", micros / 1e6) }
}
