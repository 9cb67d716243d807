//! `emuv demo`: a program that does not fit on a card, refused without emuV, run with it, and compared with
//! a run on a card where it fits.

mod stage;
pub mod workload;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::SystemTime,
};

use anyhow::{Context, Result};
use serde::Serialize;

use stage::{Performance, Stage, Way};

/// The demo did not go as it should.
const FAILED: u8 = 255;

/// Options of `emuv demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
    /// Play on the simulated GPU even where there is a real one
    #[arg(long)]
    pub sim: bool,
    /// Repeat a run: the seed that it printed
    #[arg(long)]
    pub seed: Option<u32>,
}

/// One run, for programs.
#[derive(Debug, Serialize)]
struct RunReport<'a> {
    name: &'static str,
    error: Option<&'a str>,
    vram_peak_bytes: Option<u64>,
    ram_peak_bytes: Option<u64>,
    /// Of the whole process.
    seconds: f64,
    /// Of the work on the GPU.
    work_seconds: f64,
    checksums: &'a [String],
}

/// The outcome, for programs.
#[derive(Debug, Serialize)]
struct DemoReport<'a> {
    schema: u32,
    simulated: bool,
    gpu: &'a str,
    seed: u32,
    workload_bytes: u64,
    vram_bytes: u64,
    ram_bytes: u64,
    refused_without_emuv: bool,
    completed_with_emuv: bool,
    spilled: bool,
    checksums_equal: bool,
    runs: Vec<RunReport<'a>>,
}

/// Plays it.
///
/// # Errors
/// Where a run could not even be started.
pub fn run(options: &Options) -> Result<ExitCode> {
    let stage = Stage::set_up(options.sim)?;
    let seed = options.seed.unwrap_or_else(fresh_seed);
    let mut runs = Vec::new();
    for way in [Way::Small, Way::Emuv, Way::Large] {
        runs.push(stage.perform(way, seed)?);
    }
    let verdict = Verdict::of(&runs);
    let mut out = io::stdout().lock();
    let written = if options.json {
        write_json(&mut out, &stage, seed, &runs, &verdict)
    } else {
        write_text(&mut out, &stage, seed, &runs, &verdict)
    };
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error).context("writing the outcome"),
        _ => {}
    }
    Ok(if verdict.all() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

#[allow(clippy::cast_possible_truncation)] // Any bits will do.
fn fresh_seed() -> u32 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.subsec_nanos() ^ now.as_secs() as u32
}

/// Whether each point of the story came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Verdict {
    refused_without_emuv: bool,
    completed_with_emuv: bool,
    spilled: bool,
    checksums_equal: bool,
}

impl Verdict {
    fn of(runs: &[Performance]) -> Self {
        let find = |way| runs.iter().find(|run| run.way == way);
        let (small, emuv, large) = (find(Way::Small), find(Way::Emuv), find(Way::Large));
        let sums = |run: Option<&Performance>| run.map(|run| run.outcome.checksums.clone()).unwrap_or_default();
        Self {
            refused_without_emuv: small.is_some_and(|run| run.outcome.out_of_memory),
            completed_with_emuv: emuv.is_some_and(|run| run.outcome.error.is_none()),
            spilled: emuv.and_then(|run| run.ram_peak).is_some_and(|peak| peak.0 > 0),
            checksums_equal: !sums(large).is_empty() && sums(emuv) == sums(large),
        }
    }

    fn all(self) -> bool {
        self.refused_without_emuv && self.completed_with_emuv && self.spilled && self.checksums_equal
    }
}

fn run_name(way: Way) -> &'static str {
    match way {
        Way::Small => "small card",
        Way::Emuv => "small card + RAM by emuV",
        Way::Large => "large card",
    }
}

fn write_json(
    out: &mut impl Write,
    stage: &Stage,
    seed: u32,
    runs: &[Performance],
    verdict: &Verdict,
) -> io::Result<()> {
    let runs = runs.iter().map(|run| RunReport {
        name: run_name(run.way),
        error: run.outcome.error.as_deref(),
        vram_peak_bytes: run.vram_peak.map(|bytes| bytes.0),
        ram_peak_bytes: run.ram_peak.map(|bytes| bytes.0),
        seconds: run.seconds,
        work_seconds: run.outcome.seconds,
        checksums: &run.outcome.checksums,
    });
    let report = DemoReport {
        schema: 1,
        simulated: stage.simulated_because.is_some(),
        gpu: &stage.gpu,
        seed,
        workload_bytes: stage.sizes.workload.0,
        vram_bytes: stage.sizes.vram.0,
        ram_bytes: stage.sizes.ram.0,
        refused_without_emuv: verdict.refused_without_emuv,
        completed_with_emuv: verdict.completed_with_emuv,
        spilled: verdict.spilled,
        checksums_equal: verdict.checksums_equal,
        runs: runs.collect(),
    };
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)
}

fn write_text(
    out: &mut impl Write,
    stage: &Stage,
    seed: u32,
    runs: &[Performance],
    verdict: &Verdict,
) -> io::Result<()> {
    let sizes = stage.sizes;
    match &stage.simulated_because {
        Some(reason) => {
            writeln!(out, "On a SIMULATED GPU ({reason}).")?;
            writeln!(out, "The results are computed for real; the times say nothing about hardware.\n")?;
        }
        None => writeln!(out, "On {}; the small card is this one limited to {}.\n", stage.gpu, sizes.vram)?,
    }
    writeln!(
        out,
        "A CUDA program that needs {} of GPU memory, on a card with {} (seed {seed}):\n",
        sizes.workload, sizes.vram
    )?;
    writeln!(out, "  {:<26} {:>10} {:>10} {:>8}  result", "run", "VRAM peak", "RAM peak", "time")?;
    for run in runs {
        let size = |bytes: Option<emuv_policy::Bytes>| bytes.map_or_else(|| "?".to_owned(), |bytes| bytes.to_string());
        let result = match &run.outcome.error {
            Some(error) => error.clone(),
            None => format!("done, {} checksums", run.outcome.checksums.len()),
        };
        let name = run_name(run.way);
        let (vram, ram) = (size(run.vram_peak), size(run.ram_peak));
        writeln!(out, "  {name:<26} {vram:>10} {ram:>10} {:>6.2} s  {result}", run.outcome.seconds)?;
    }
    let answer = |so: bool| if so { "yes" } else { "NO" };
    writeln!(out)?;
    for (so, point) in [
        (verdict.refused_without_emuv, "without emuV the driver refuses it"),
        (verdict.completed_with_emuv, "with emuV it runs to its end"),
        (verdict.spilled, "part of its memory was in RAM"),
        (verdict.checksums_equal, "its results equal those of the large card, bit for bit"),
    ] {
        writeln!(out, "  {:<4} {point}", answer(so))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use emuv_policy::Bytes;

    use super::{workload::Outcome, *};

    fn performance(way: Way, sums: &[&str], ram: u64) -> Performance {
        let refused = sums.is_empty();
        let outcome = Outcome {
            error: refused.then(|| "CUDA_ERROR_OUT_OF_MEMORY (2)".to_owned()),
            out_of_memory: refused,
            allocated_bytes: 0,
            checksums: sums.iter().map(|sum| (*sum).to_owned()).collect(),
            seconds: 0.0,
        };
        Performance { way, outcome, vram_peak: None, ram_peak: Some(Bytes(ram)), seconds: 0.0 }
    }

    fn story(emuv: &[&str], ram: u64) -> Verdict {
        Verdict::of(&[
            performance(Way::Small, &[], 0),
            performance(Way::Emuv, emuv, ram),
            performance(Way::Large, &["aa", "bb"], 0),
        ])
    }

    #[test]
    fn the_story_holds_when_the_checksums_agree_and_something_was_spilled() {
        assert!(story(&["aa", "bb"], 5).all());
    }

    #[test]
    fn a_wrong_checksum_or_nothing_spilled_spoils_it() {
        assert!(!story(&["aa", "bc"], 5).checksums_equal);
        assert!(!story(&["aa", "bb"], 0).all());
        assert!(!story(&[], 5).completed_with_emuv);
    }

    #[test]
    fn no_checksums_at_all_are_not_equal_checksums() {
        let runs = [performance(Way::Emuv, &[], 5), performance(Way::Large, &[], 0)];
        assert!(!Verdict::of(&runs).checksums_equal);
    }
}
