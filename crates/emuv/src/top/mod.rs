//! `emuv top`: what goes on under emuV on this machine, on the screen, as text or as JSON.
//!
//! ```text
//! terminal (keys, time, signals)  ->  Model::update (pure)  ->  screen::draw (pure)  ->  terminal
//!              ^  effects: sample, hold a process, send a signal, quit  |
//!              +---------------------------------------------------------+
//! ```

mod history;
mod model;
mod plain;
mod rows;
mod screen;
#[cfg(test)]
mod screen_tests;
mod target;
mod terminal;
mod words;

use std::{
    env,
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use emuv_watch::{Moment, Sampler, Snapshot};

use crate::{
    cli::{self, Failure},
    watch,
};
use model::Model;
use words::Look;

const OTHER: u8 = 255;

/// The shortest time between two samples of a screen.
const SHORTEST: f64 = 0.1;
const LONGEST: f64 = 3600.0;

/// Flags of `emuv top`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    /// Show it once, as text (so it is where standard output is no terminal)
    #[arg(short = '1', long)]
    once: bool,

    /// Show it once, as JSON
    #[arg(long, conflicts_with = "once")]
    json: bool,

    /// Seconds between two samples; with --once or --json what rates are measured over (0: no rates, no waiting)
    #[arg(short, long = "interval", value_name = "SEC", default_value = "1", allow_hyphen_values = true)]
    interval: String,
}

const AFTER_HELP: &str = "\
Processes of other users are shown as far as permissions allow; root sees all. Nothing is changed by looking.
NO_COLOR turns colours off. '?' in the screen explains keys and columns.

Exit code: 0; 2 bad argument; 255 other.";

impl Options {
    fn interval(&self) -> Result<Duration, Failure> {
        let once = self.json || self.once || !is_screen();
        let seconds = self.interval.trim().parse::<f64>().ok();
        let allowed =
            |seconds: f64| (SHORTEST..=LONGEST).contains(&seconds) || (once && (seconds == 0.0 || seconds == -0.0));
        let seconds = seconds.filter(|seconds| allowed(*seconds)).ok_or_else(|| {
            let or = if once { ", or 0 for no rates" } else { "" };
            let words = format!("'{}' is no number of seconds from {SHORTEST} to {LONGEST}{or}", self.interval);
            Failure::wrong("--interval", words)
        })?;
        Ok(Duration::from_secs_f64(seconds.abs()))
    }
}

/// Whether there is a terminal that a screen can be shown on.
fn is_screen() -> bool {
    let dumb = env::var("TERM").is_ok_and(|term| term.is_empty() || term == "dumb");
    io::stdout().is_terminal() && io::stdin().is_terminal() && !dumb
}

/// Shows what goes on.
///
/// # Errors
/// A bad interval; the terminal or standard output does not work.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let interval = options.interval()?;
    let failed = |error: io::Error| Failure::new(OTHER, format!("cannot show it: {error}"));
    let mut sampler = watch::sampler();
    let look = Look::from_env(|name| env::var(name).ok());
    if options.json {
        let snapshot = sample(&mut sampler, interval);
        let text = serde_json::to_string_pretty(&snapshot).map_err(|error| failed(error.into()))?;
        cli::print(&format!("{text}\n")).map_err(failed)?;
    } else if options.once || !is_screen() {
        cli::print(&plain::text(&sample(&mut sampler, interval), look)).map_err(failed)?;
    } else {
        let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        return terminal::run(&mut sampler, Model::new(look, millis)).map_err(failed);
    }
    Ok(ExitCode::SUCCESS)
}

/// A sample with rates, which needs two.
fn sample(sampler: &mut Sampler, interval: Duration) -> Snapshot {
    let first = sampler.sample(Moment::now());
    if interval.is_zero() {
        return first;
    }
    std::thread::sleep(interval);
    sampler.sample(Moment::now())
}
