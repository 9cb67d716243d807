//! `emuv`: runs GPU programs that need more memory than the card has.

mod bench;
mod cdi;
mod cli;
mod demo;
mod doctor;
mod gpus;
mod info;
mod install;
mod kubelet;
mod libs;
mod markup;
mod progress;
mod reference;
mod report;
mod run;
mod serve;
mod simulate;
mod top;
mod vgpu;
mod watch;

use std::process::ExitCode;

use cli::{Command, Failure};

/// What a subcommand other than `run` exits with after an error of no particular kind.
const OTHER: u8 = 255;

fn main() -> ExitCode {
    let command = match cli::parse() {
        Ok(command) => command,
        Err(code) => return code,
    };
    let ended = match command {
        Command::Run(options) => run::run(&options),
        Command::Verify(options) => run::run(&options.into_run()),
        Command::Vgpu(options) => vgpu::run(&options),
        Command::Cdi(options) => cdi::run(&options),
        Command::Kubelet(options) => kubelet::run(&options),
        Command::Top(options) => top::run(&options),
        Command::Serve(options) => serve::run(&options),
        Command::Info(options) => info::run(&options),
        Command::Doctor(options) => doctor::run(&options).map_err(other),
        Command::Bench(options) => bench::run(&options),
        Command::Report(options) => report::run(&options),
        Command::Simulate(options) => simulate::run(&options),
        Command::Demo(options) => demo::run(&options).map_err(other),
        Command::Install(options) => install::run(&options),
        Command::Completions(options) => reference::completions(&options).map_err(other),
        Command::Generate(options) => reference::generate(&options).map_err(other),
        Command::DemoWorkload(options) => demo::workload::run(&options).map_err(other),
    };
    ended.unwrap_or_else(|failure| {
        cli::complain(&failure.message);
        ExitCode::from(failure.code)
    })
}

#[allow(clippy::needless_pass_by_value)] // The form that map_err asks for.
fn other(error: anyhow::Error) -> Failure {
    Failure::new(OTHER, format!("{error:#}"))
}
