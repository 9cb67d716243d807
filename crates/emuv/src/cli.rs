//! The command line, and how emuv speaks: results to standard output, one line per complaint to standard
//! error.

use std::{
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};

use crate::{bench, cdi, demo, doctor, info, install, kubelet, reference, report, run, serve, simulate, top, vgpu};

/// An argument, a variable or a key of the configuration file is wrong; nothing was started.
pub const BAD_ARGUMENT: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  emuv run --ram 4G -- python train.py     let 4 GiB of the program's GPU memory live in RAM
  emuv run --vram 8G --ram 0 -- ./prog     hold the program to 8 GiB of VRAM
  emuv run --sim=vram=256M -- ./prog       the same on a simulated GPU
  emuv vgpu create ml-1 --vram 6G --ram 2G a slice of the GPU, for 'emuv run --vgpu ml-1'
  emuv cdi generate                        containers in slices: docker run --device emuv.dev/vgpu=ml-1
  emuv top                                 what goes on now, on the screen
  emuv serve                               a dashboard at http://127.0.0.1:9464, metrics for Prometheus
  emuv info                                what this machine has
  emuv doctor                              whether emuV works here, and what to do if not
  emuv simulate run.trc --vram 12G         how a recorded program would run on a 12 GiB card
  emuv report out.json                     what a run with --report held and moved, on one page
  emuv demo                                see it work
  emuv bench --quick                       what it costs on this machine";

/// GPU programs that need more memory than the card has: VRAM and pinned RAM as one pool.
#[derive(Debug, Parser)]
#[command(name = "emuv", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program with VRAM and RAM as one pool of GPU memory.
    Run(run::Options),
    /// Run a program slowly, and check that its kernels keep to the memory that emuV expects them to touch.
    Verify(run::verify::Options),
    /// Slices of a GPU (virtual GPUs), each with its share of VRAM and RAM: make, change and show them.
    Vgpu(vgpu::Options),
    /// Slices as devices for Docker, Podman and containerd: --device emuv.dev/vgpu=NAME.
    Cdi(cdi::Options),
    /// Slices for pods: the device plugin of a Kubernetes node.
    Kubelet(kubelet::Options),
    /// Show what goes on: GPUs, slices and processes, what each has in VRAM and RAM and what crosses the link.
    Top(top::Options),
    /// Publish what goes on over HTTP: a dashboard, metrics for Prometheus, JSON.
    Serve(serve::Options),
    /// Show the GPUs, the host's memory and the defaults.
    Info(info::Options),
    /// Check whether emuV works on this machine, and say what to do if not.
    Doctor(doctor::Options),
    /// Turn what 'emuv run --report FILE' wrote into one page: what was held, what moved and why, what would help.
    Report(report::Options),
    /// Show how a recorded program would run on another card, behind another link, by other policies.
    Simulate(simulate::Options),
    /// Show emuV at work, on this machine's GPU or on a simulated one.
    Demo(demo::Options),
    /// Measure emuV on this machine: what it costs, beside other ways and beside what the link allows.
    Bench(bench::Options),
    /// Give emuV to every CUDA program of this machine, without 'emuv run', and undo that.
    Install(install::Options),
    /// Print completions for a shell.
    Completions(reference::Completions),
    /// Make what packages and docs carry.
    #[command(hide = true)]
    Generate(reference::Generate),
    /// The program that the demo runs.
    #[command(hide = true)]
    DemoWorkload(demo::workload::Options),
}

/// Why emuv ends, in one line, and with which exit code.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What is wrong and what to do, without "emuv: ".
    pub message: String,
}

impl Failure {
    /// A failure with a code of its own.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Something that the user gave is wrong. The message starts with the flag, variable or file.
    pub fn bad_argument(message: impl Into<String>) -> Self {
        Self::new(BAD_ARGUMENT, message)
    }

    /// The same: what it is (a flag, a variable, a file), and why it is wrong.
    pub fn wrong(what: impl Display, why: impl Display) -> Self {
        Self::bad_argument(format!("{what}: {why}"))
    }
}

/// The command line's definition.
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Reads the command line.
///
/// # Errors
/// The code to exit with, all said: help, the version, or a mistake in one line.
pub fn parse() -> Result<Command, ExitCode> {
    match Cli::try_parse() {
        Ok(cli) => Ok(cli.command),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            Err(print(&error.render().to_string()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
        }
        // No subcommand at all: the help says more than a complaint.
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = io::stderr().lock().write_all(error.render().to_string().as_bytes());
            Err(ExitCode::from(BAD_ARGUMENT))
        }
        Err(error) => {
            complain(&one_line(&error.render().to_string()));
            Err(ExitCode::from(BAD_ARGUMENT))
        }
    }
}

/// The first paragraph of clap's message, which is what is wrong; usage and tips follow it.
fn one_line(message: &str) -> String {
    let first = message.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = first.split_whitespace().collect();
    let text = words.join(" ");
    format!("{}; see 'emuv --help'", text.strip_prefix("error: ").unwrap_or(&text))
}

/// Writes to standard output. A reader that has gone, as in `emuv info | head -1`, is no error.
///
/// # Errors
/// Any other error of the system.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes one line to standard error.
pub fn complain(message: &str) {
    // Nothing is left to do if even that fails.
    let _ = writeln!(io::stderr().lock(), "emuv: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_mistake_becomes_one_line() {
        let said = |arguments: &[&str]| one_line(&Cli::try_parse_from(arguments).unwrap_err().render().to_string());
        assert_eq!(said(&["emuv", "rum"]), "unrecognized subcommand 'rum'; see 'emuv --help'");
        let missing = said(&["emuv", "run"]);
        assert!(missing.contains("<CMD>") && !missing.contains('\n'), "{missing}");
    }

    #[test]
    fn what_follows_the_program_belongs_to_it() {
        let cli = Cli::try_parse_from(["emuv", "run", "--ram", "4G", "prog", "--ram", "-q", "--", "x"]).unwrap();
        let Command::Run(options) = cli.command else { panic!("not run") };
        assert_eq!(options.command, ["prog", "--ram", "-q", "--", "x"]);
        assert!(!options.quiet);
    }
}
