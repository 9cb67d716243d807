//! `emuv simulate`: how a recorded program would run on another card, in virtual time.

mod file;
mod link;
mod show;

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use emuv_policy::{
    Bytes, GRANULE,
    machine::Link,
    replay::Program,
    simulate::{Setting, Unanswered, Way, compare_telling},
};

use crate::{
    cli::{Failure, print},
    progress,
};

/// How much more than the card's memory the program holds, where nothing is said.
const OVERSUBSCRIBED: f64 = 1.5;

const AFTER_HELP: &str = "\
Policies: emuv (as in 'emuv run'), lru (what is needed is brought when it is needed, what was used longest ago goes),
static (placed once, in order of allocation), in-place (placed once, cleverly; the rest is read over the link),
optimal (the best schedule known to somebody who sees the whole program). The bound is what none undercuts.

Examples:
  emuv run --trace resnet.trc -- python train.py          record
  emuv simulate resnet.trc --vram 12G --link pcie4        on a 12 GiB card behind PCIe 4
  emuv simulate resnet.trc --oversubscribe 1.5 --json     on a card with two thirds of what the program holds";

/// Flags of `emuv simulate`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    /// A trace, recorded with 'emuv run --trace FILE'; gzip is read as it is
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// What the program may use of VRAM, e.g. 12G
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, conflicts_with = "oversubscribe")]
    vram: Option<String>,

    /// The program's peak divided by this is the VRAM [default: 1.5]
    #[arg(long, value_name = "FACTOR", allow_hyphen_values = true)]
    oversubscribe: Option<String>,

    /// What it may use of RAM
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, default_value = "64G")]
    ram: String,

    /// pcie3, pcie4, pcie5, or GB/s into VRAM, into RAM, and of both together, e.g. 25,25,46 [default: pcie4]
    #[arg(long, value_name = "LINK", allow_hyphen_values = true)]
    link: Option<String>,

    /// Some of emuv, lru, static, in-place, optimal [default: all]
    #[arg(long, value_name = "NAME,...", allow_hyphen_values = true, value_delimiter = ',')]
    policy: Vec<String>,

    /// Iterations of the program's loop to run; the second half of them is measured
    #[arg(long, value_name = "N", allow_hyphen_values = true, default_value = "12")]
    iterations: String,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// No progress on standard error
    #[arg(short, long)]
    quiet: bool,
}

/// Simulates.
///
/// # Errors
/// A flag or the file is wrong, or the program cannot be run so.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let link = link::named(options.link.as_deref()).map_err(|why| Failure::wrong("--link", why))?;
    let ways = ways(&options.policy).map_err(|why| Failure::wrong("--policy", why))?;
    let iterations = iterations(&options.iterations).map_err(|why| Failure::wrong("--iterations", why))?;
    let ram_bytes = size(&options.ram).map_err(|why| Failure::wrong("--ram", why))?;
    let vram_bytes = options.vram.as_deref().map(card).transpose().map_err(|why| Failure::wrong("--vram", why))?;
    let factor = options.oversubscribe.as_deref().map(factor).transpose();
    let factor = factor.map_err(|why| Failure::wrong("--oversubscribe", why))?.unwrap_or(OVERSUBSCRIBED);

    let program = Program::from_trace(file::events(&options.file)?.into_iter());
    let vram_bytes = vram_bytes.unwrap_or_else(|| part(program.peak_bytes(), factor));
    let setting = Setting { vram_bytes, ram_bytes, link, iterations };
    let bar = progress::steps(1, options.quiet).with_message("simulating");
    let played = |over: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(over as u64);
    };
    let compared = compare_telling(&program, &setting, &ways, &played);
    bar.finish_and_clear();
    let compared = compared.map_err(|why| match &why {
        Unanswered::TooLarge { .. } => {
            Failure::wrong("--ram", format!("{why} ({} and {}); give it more", Bytes(vram_bytes), Bytes(ram_bytes)))
        }
        Unanswered::NoWorks | Unanswered::Stuck(..) => Failure::wrong(options.file.display(), why),
    })?;
    let shown = show::Shown { file: &options.file, program: &program, setting: &setting, compared: &compared };
    let text = if options.json { shown.json() } else { shown.text() };
    print(&text).map_err(|error| Failure::new(1, format!("cannot write: {error}")))?;
    Ok(ExitCode::SUCCESS)
}

fn size(text: &str) -> Result<u64, String> {
    text.parse::<Bytes>().map(|bytes| bytes.0).map_err(|error| error.to_string())
}

fn card(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if bytes < GRANULE => Err(format!("'{text}' is less than one chunk ({})", Bytes(GRANULE))),
        bytes => Ok(bytes),
    }
}

fn factor(text: &str) -> Result<f64, String> {
    let factor = text.parse::<f64>().ok().filter(|factor| (0.1..=100.0).contains(factor));
    factor.ok_or_else(|| format!("'{text}' is no factor; write for example 1.5 (from 0.1 to 100)"))
}

fn iterations(text: &str) -> Result<usize, String> {
    let count = text.parse::<usize>().ok().filter(|count| (1..=1000).contains(count));
    count.ok_or_else(|| format!("'{text}' is no number of iterations (from 1 to 1000)"))
}

fn ways(names: &[String]) -> Result<Vec<Way>, String> {
    if names.is_empty() {
        return Ok(Way::ALL.to_vec());
    }
    let named = |name: &String| {
        let way = Way::ALL.into_iter().find(|way| way.name() == name);
        way.ok_or_else(|| format!("'{name}' is none of {}", Way::ALL.map(Way::name).join(", ")))
    };
    let mut ways = names.iter().map(named).collect::<Result<Vec<Way>, String>>()?;
    ways.sort_unstable();
    ways.dedup();
    Ok(ways)
}

/// A whole number of chunks, one at least.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Far below 2^52.
fn part(peak_bytes: u64, factor: f64) -> u64 {
    let bytes = (peak_bytes as f64 / factor) as u64;
    (bytes - bytes % GRANULE).max(GRANULE)
}

/// In GB/s: into VRAM, into RAM, both.
fn speeds(link: &Link) -> [f64; 3] {
    [link.in_bytes_per_us, link.out_bytes_per_us, link.both_bytes_per_us].map(|speed| speed / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card_is_a_part_of_what_the_program_holds() {
        assert_eq!(part(12 << 30, 1.5), 8 << 30);
        assert_eq!(part(0, 1.5), GRANULE);
        assert!(factor("0").is_err() && factor("nan").is_err() && factor("-1").is_err());
    }

    #[test]
    fn policies_are_named_once_each() {
        let names = |text: &str| ways(&text.split(',').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(names("optimal,emuv,emuv"), Ok(vec![Way::Emuv, Way::Optimal]));
        assert!(names("belady").unwrap_err().contains("in-place"));
    }
}
