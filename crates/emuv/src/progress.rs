//! Progress on a terminal, where emuV itself makes people wait: a bar on standard error with what is done, how fast, and how
//! long it will still take. It has no colours, and is gone when the wait is over. Elsewhere, and with `-q`, there is none.

use std::{
    env,
    io::{self, IsTerminal},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Runs, of so many: each takes long, so the time goes on while the count stands still.
const STEPS: &str = "{msg}  [{bar:24}] {pos}/{len}, {elapsed} so far, {eta} left";

/// Bytes, of so many.
const BYTES: &str = "{msg}  [{bar:24}] {decimal_bytes}/{decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";

/// What is behind the bar's ends.
const SIGNS: &str = "=> ";

/// Between two drawings while nothing is told.
const TICK: Duration = Duration::from_secs(1);

/// Whether there is anybody to see it.
pub fn is_shown(quiet: bool) -> bool {
    shown(quiet, io::stderr().is_terminal(), env::var("TERM").ok().as_deref())
}

fn shown(quiet: bool, terminal: bool, term: Option<&str>) -> bool {
    !quiet && terminal && term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// A bar of so many steps that take long.
pub fn steps(all: u64, quiet: bool) -> ProgressBar {
    let bar = bar(all, STEPS, quiet);
    if !bar.is_hidden() {
        bar.enable_steady_tick(TICK);
    }
    bar
}

/// A bar of so many bytes.
pub fn bytes(all: u64, what: &'static str, quiet: bool) -> ProgressBar {
    bar(all, BYTES, quiet).with_message(what)
}

fn bar(all: u64, template: &str, quiet: bool) -> ProgressBar {
    let target = if is_shown(quiet) { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(all), target).with_style(style.progress_chars(SIGNS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_for_terminals_that_can_and_people_who_want_it() {
        assert!(shown(false, true, Some("xterm-256color")));
        assert!(!shown(true, true, Some("xterm")) && !shown(false, false, Some("xterm")));
        assert!(!shown(false, true, Some("dumb")) && !shown(false, true, None));
    }

    #[test]
    fn the_templates_are_sound() {
        for template in [STEPS, BYTES] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
