//! `emuv verify`: runs a program with everything out of reach that a launch is not expected to touch, and says what
//! came of it.

use std::{
    ffi::OsString,
    path::Path,
    process::ExitCode,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use clap::Args;
use emuv_state::{Movement, Verdict, env as variables, read_ledgers, read_verdicts};

use super::{Options as RunOptions, child::Ending};
use crate::cli::complain;

/// A kernel touched what it should not have.
const OFFENDER: u8 = 3;

/// Between two lines that say how far it is.
const TELL: Duration = Duration::from_secs(10);

/// Flags of `emuv verify`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    /// RAM budget, as for emuv run
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    ram: Option<String>,

    /// Most VRAM that the program may use, as for emuv run
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    vram: Option<String>,

    /// The only GPU that the program sees, as for emuv run
    #[arg(long, value_name = "N|UUID", allow_hyphen_values = true)]
    gpu: Option<String>,

    /// Use a simulated GPU, as for emuv run
    #[arg(long, value_name = "KEY=VALUE,...", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    sim: Option<String>,

    /// Write what the run used to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<String>,

    /// No notice when memory spills
    #[arg(short, long)]
    quiet: bool,

    /// Leave frameworks' allocators as they are
    #[arg(long, env = variables::NO_HINTS, value_parser = clap::builder::FalseyValueParser::new())]
    no_framework_hints: bool,

    /// The program and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

const AFTER_HELP: &str = "\
emuV moves data while kernels run that are not expected to touch it. Here each launch, copy and memset
runs alone, and what it is not expected to touch is unmapped, so that the GPU stops at the first that
does. Nothing moves. Works that wait for later ones (cuStreamWaitValue, say) wait for ever.

Exit code: 3 if a kernel was stopped, else as for emuv run.";

impl Options {
    /// The run that this is.
    pub fn into_run(self) -> RunOptions {
        RunOptions {
            no_call_sites: false,
            ram: self.ram,
            vram: self.vram,
            vgpu: None,
            gpu: self.gpu,
            sim: self.sim,
            report: self.report,
            trace: None,
            quiet: self.quiet,
            no_framework_hints: self.no_framework_hints,
            policy: Some(Movement::Static),
            safe: false,
            verify: true,
            command: self.command,
        }
    }
}

/// While the program runs, says now and then how far it is: whole lines, as the program writes to the same terminal.
/// Ends with what is given.
pub(super) fn tell(run_dir: &Path) -> Option<Telling> {
    let (over, is_over) = mpsc::channel::<()>();
    let run_dir = run_dir.to_owned();
    let body = move || {
        let mut before = 0;
        while is_over.recv_timeout(TELL) == Err(RecvTimeoutError::Timeout) {
            let processes = read_ledgers(&run_dir).processes;
            let launches = processes.iter().flat_map(|process| &process.devices).map(|device| device.launches).sum();
            complain(&progress_words(launches, before));
            before = launches;
        }
    };
    let thread = thread::Builder::new().spawn(body).ok()?;
    Some(Telling { over: Some(over), thread: Some(thread) })
}

fn progress_words(launches: u64, before: u64) -> String {
    let rate = launches.saturating_sub(before) / TELL.as_secs();
    format!("verify: {launches} launches checked so far, {rate} a second")
}

/// It is told how far the program is until this is dropped.
#[derive(Debug)]
pub(super) struct Telling {
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.over = None;
        // It only reads files and writes lines.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Says what was found, in one line; the exit code that follows from it.
pub(super) fn conclude(run_dir: &Path, ending: Ending) -> ExitCode {
    let found = sum(read_verdicts(run_dir));
    complain(&format!("verify: {}", words(&found)));
    ExitCode::from(if found.offender.is_some() { OFFENDER } else { ending.exit_code() })
}

fn sum(verdicts: Vec<Verdict>) -> Verdict {
    verdicts.into_iter().fold(Verdict::default(), |sum, one| Verdict {
        launches: sum.launches + one.launches,
        copies: sum.copies + one.copies,
        open: sum.open + one.open,
        unchecked: sum.unchecked + one.unchecked,
        offender: sum.offender.or(one.offender),
    })
}

fn words(found: &Verdict) -> String {
    let Verdict { launches, copies, open, unchecked, offender } = found;
    if let Some(offender) = offender {
        return format!("failed after {launches} launches and {copies} copies: {offender}");
    }
    if launches + copies + unchecked == 0 {
        return "the program gave the GPU no work".to_owned();
    }
    let mut words =
        format!("{launches} launches and {copies} copies checked, each touched only what it was expected to");
    for (number, what) in [(open, "may touch anything"), (unchecked, "could not be checked during a capture")] {
        if *number > 0 {
            words += &format!("; {number} {what}");
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_offender_of_all_processes_counts() {
        let one = Verdict { launches: 3, open: 1, ..Verdict::default() };
        let other = Verdict { launches: 2, offender: Some("kernel k".to_owned()), ..Verdict::default() };
        assert_eq!(words(&sum(vec![one.clone(), other])), "failed after 5 launches and 0 copies: kernel k");
        let text = words(&sum(vec![one]));
        assert!(text.starts_with("3 launches and 0 copies checked") && text.ends_with("; 1 may touch anything"));
    }

    #[test]
    fn how_far_it_is_comes_with_a_rate() {
        assert_eq!(progress_words(1500, 500), "verify: 1500 launches checked so far, 100 a second");
    }

    #[test]
    fn a_program_without_a_gpu_is_said_to_be_one() {
        assert_eq!(words(&sum(Vec::new())), "the program gave the GPU no work");
    }
}
