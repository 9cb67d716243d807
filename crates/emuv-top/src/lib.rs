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
    time::Duration,
};

use emuv_watch::{Moment, Sampler, Snapshot};
pub use words::Look;

/// Whether there is a terminal that a screen can be shown on.
pub fn is_screen() -> bool {
    let dumb = env::var("TERM").is_ok_and(|term| term.is_empty() || term == "dumb");
    io::stdout().is_terminal() && io::stdin().is_terminal() && !dumb
}

/// Shows samples on the terminal until somebody has seen enough. Gives the exit code: 128 + n after signal n.
///
/// # Errors
/// The terminal's own; it is as it was then.
pub fn show(sampler: &mut Sampler, look: Look, interval: Duration) -> io::Result<u8> {
    let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    terminal::run(sampler, model::Model::new(look, millis))
}

/// What goes on, as lines of text. It takes `interval`, over which rates are measured; of none, there are none.
pub fn text(sampler: &mut Sampler, look: Look, interval: Duration) -> String {
    plain::text(&sample(sampler, interval), look)
}

/// The same as JSON, which is [`Snapshot`].
///
/// # Errors
/// None but a mistake of ours.
pub fn json(sampler: &mut Sampler, interval: Duration) -> serde_json::Result<String> {
    serde_json::to_string_pretty(&sample(sampler, interval))
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
