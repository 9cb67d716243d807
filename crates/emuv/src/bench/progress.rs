//! Which run is under way, on standard error: a bar on a terminal, one line for each run elsewhere.

use std::io::{self, Write};

use indicatif::ProgressBar;

use crate::progress;

/// How far the bench is.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    /// A line for each run.
    lines: bool,
    begun: u64,
    all: u64,
}

impl Progress {
    /// Of so many runs.
    pub fn new(all: u64, quiet: bool) -> Self {
        Self { bar: progress::steps(all, quiet), lines: !quiet && !progress::is_shown(quiet), begun: 0, all }
    }

    /// The next run begins.
    pub fn begins(&mut self, what: &str) {
        self.bar.set_position(self.begun);
        self.bar.set_message(what.to_owned());
        self.begun += 1;
        if self.lines {
            // Progress is not worth failing for.
            let _ = writeln!(io::stderr(), "emuv bench: {}/{} {what}", self.begun, self.all);
        }
    }

    /// So many runs will not take place.
    pub fn skips(&mut self, runs: u64) {
        self.begun += runs;
    }

    /// Nothing more follows.
    pub fn done(&mut self) {
        self.bar.finish_and_clear();
    }
}
