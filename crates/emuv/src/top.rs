//! `emuv top`: the screen is `emuv-top`'s, what is on it `emuv-watch`'s.

use std::{env, io, process::ExitCode, time::Duration};

use clap::Args;
use emuv_top::{Look, is_screen};

use crate::{
    cli::{self, Failure},
    watch,
};

const OTHER: u8 = 255;

/// Seconds between two samples, at least and at most.
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
    #[arg(short, long, value_name = "SEC", default_value = "1", allow_hyphen_values = true)]
    interval: String,
}

const AFTER_HELP: &str = "\
Processes of other users are shown as far as permissions allow; root sees all. Nothing is changed by looking.
NO_COLOR turns colours off. '?' in the screen explains keys and columns.

Exit code: 0; 2 bad argument; 128 + n after signal n; 255 other.";

impl Options {
    fn interval(&self, once: bool) -> Result<Duration, Failure> {
        let seconds = self.interval.trim().parse::<f64>().ok();
        let allowed = |seconds: &f64| (SHORTEST..=LONGEST).contains(seconds) || (once && *seconds == 0.0);
        let seconds = seconds.filter(allowed).ok_or_else(|| {
            let or = if once { ", or 0 for no rates" } else { "" };
            let words = format!("'{}' is no number of seconds from {SHORTEST} to {LONGEST}{or}", self.interval);
            Failure::wrong("--interval", words)
        })?;
        Ok(Duration::from_secs_f64(seconds.abs()))
    }
}

/// Shows what goes on.
///
/// # Errors
/// A bad interval; the terminal or standard output does not work.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let screen = !options.json && !options.once && is_screen();
    let interval = options.interval(!screen)?;
    let failed = |error: io::Error| Failure::new(OTHER, format!("cannot show it: {error}"));
    let mut sampler = watch::sampler();
    let look = Look::from_env(|name| env::var(name).ok());
    if screen {
        return emuv_top::show(&mut sampler, look, interval).map(ExitCode::from).map_err(failed);
    }
    let text = if options.json {
        emuv_top::json(&mut sampler, interval).map_err(|error| failed(error.into()))? + "\n"
    } else {
        emuv_top::text(&mut sampler, look, interval)
    };
    cli::print(&text).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
