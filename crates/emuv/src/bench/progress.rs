//! Which run is under way, on standard error: one line that changes on a terminal, one line for each run elsewhere.

use std::io::{self, IsTerminal, Write};

/// How far the bench is.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    begun: usize,
    all: usize,
}

impl Progress {
    /// Of so many runs.
    pub fn new(all: usize) -> Self {
        Self { terminal: io::stderr().is_terminal(), begun: 0, all }
    }

    /// The next run begins.
    pub fn begins(&mut self, what: &str) {
        self.begun += 1;
        let (begun, all) = (self.begun, self.all);
        self.say(&format!("{begun}/{all} {what}"), "\n");
    }

    /// So many runs will not take place.
    pub fn skips(&mut self, runs: usize) {
        self.begun += runs;
    }

    /// Nothing more follows.
    pub fn done(&mut self) {
        if self.terminal {
            self.say("", "");
        }
    }

    fn say(&self, words: &str, end: &str) {
        // Progress is not worth failing for.
        let _ = match self.terminal {
            true => write!(io::stderr(), "\r\x1b[K{words}").and_then(|()| io::stderr().flush()),
            false => write!(io::stderr(), "emuv bench: {words}{end}"),
        };
    }
}
