//! `emuv bench`: programs that need more memory than they get, plain, under emuV and by other ways, beside the
//! least time that the link allows.

mod bound;
mod child;
mod plan;
mod plot;
mod progress;
mod result;
mod rows;
mod runner;
mod sample;
mod scripts;
mod table;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use emuv_policy::Bytes;

use crate::{
    cli::{self, Failure},
    gpus::{self, Machine},
    libs::{self, RealLibraries},
    run::sim,
};
use child::{INTERRUPTED, Interrupt};
use plan::{Baseline, Offload, QUICK_RATIOS, RATIOS, Ratio, WORKLOADS, Workload};
use progress::Progress;
use result::BenchResult;
use runner::Runner;

/// Outputs differ somewhere.
const OTHER_BITS: u8 = 1;
/// No PyTorch that sees the GPU.
const NO_PYTORCH: u8 = 3;
/// No driver, or no GPU.
const NO_GPU: u8 = 9;
/// Nothing could be measured, or the results not be written.
const FAILED: u8 = 255;

/// The memory that a workload takes, where the GPU has enough.
const PEAK: Bytes = Bytes::gib(4);

/// Flags of `emuv bench`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    /// A part of the suite: eight workloads at 1.5
    #[arg(long)]
    quick: bool,

    /// Only these workloads, e.g. resnet50,decode (--list shows them)
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    workload: Vec<String>,

    /// Oversubscriptions: what a workload needs divided by the VRAM it gets, e.g. 1.1,1.5
    #[arg(long, value_name = "X,...", value_delimiter = ',', allow_hyphen_values = true)]
    at: Vec<Ratio>,

    /// What to compare: plain (always), emuv, static, offload [default: all]
    #[arg(long, value_name = "WHAT,...", value_delimiter = ',')]
    baselines: Vec<Baseline>,

    /// About how much memory a workload takes [default: 4G, less on a small GPU]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    peak: Option<String>,

    /// How many iterations of a run count at least; as many come before them as warm-up
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,

    /// How often everything is run, in turns; more than once where the host's cores differ in speed
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    turns: u32,

    /// Makes other data; the same seed gives the same bits
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Folder for bench.json, bench.svg and all outputs [default: ./emuv-bench-DATE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Print bench.json instead of the table
    #[arg(long)]
    json: bool,

    /// The Python that has PyTorch
    #[arg(long, value_name = "PYTHON", default_value = "python3")]
    python: PathBuf,

    /// List the workloads
    #[arg(long)]
    list: bool,

    /// Write the workloads' scripts to this folder, to be run by hand, and do nothing else
    #[arg(long, value_name = "DIR")]
    write_workloads: Option<PathBuf>,

    /// No progress on standard error
    #[arg(short, long)]
    quiet: bool,

    /// For emuV's own tests: PyTorch does not run on the simulated GPU
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "")]
    sim: Option<String>,
}

const AFTER_HELP: &str = "\
A workload is first run plain, with everything in VRAM; then with a VRAM budget of that run's peak divided by each
oversubscription. Nothing but GPU memory and pinned RAM is used, and every output is compared to the bit.

Exit code: 0; 1 outputs differ somewhere; 2 bad argument; 3 no PyTorch that sees the GPU; 9 no GPU or no driver;
130 interrupted (what there is is written); 255 other.";

/// Measures.
///
/// # Errors
/// A bad argument, nothing to measure with, or no way to write the results.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    if options.list {
        return print(&list());
    }
    if let Some(folder) = &options.write_workloads {
        let entry = scripts::write(folder).map_err(|error| bad("--write-workloads", folder, &error))?;
        return print(&format!("{}\n", entry.display()));
    }
    let checked = Checked::new(options)?;
    let (runner, mut result) = checked.prepare(options)?;
    measure(&checked, &runner, &mut result, options).map_err(|error| failed(&format!("{error}")))?;
    conclude(options, &checked, &runner, &result)
}

/// What was asked for, all of it sound.
struct Checked {
    workloads: Vec<&'static Workload>,
    ratios: Vec<Ratio>,
    baselines: Vec<Baseline>,
    peak: Option<Bytes>,
    sim: Option<String>,
    out: PathBuf,
}

impl Checked {
    fn new(options: &Options) -> Result<Self, Failure> {
        let sim = options.sim.as_deref().map(sim::checked).transpose().map_err(|why| Failure::wrong("--sim", why))?;
        let workloads =
            plan::chosen(&options.workload, options.quick).map_err(|why| Failure::wrong("--workload", why))?;
        let given = |text: &String| text.parse::<Bytes>().map_err(|why| Failure::wrong("--peak", why));
        let peak = options.peak.as_ref().map(given).transpose()?;
        if peak.is_some_and(|peak| peak < Bytes::mib(256)) {
            return Err(Failure::wrong("--peak", "at least 256M: smaller programs show the cost of starting alone"));
        }
        let out = options.out.clone().unwrap_or_else(|| format!("emuv-bench-{}", result::stamp()).into());
        let out = std::path::absolute(&out).map_err(|error| bad("--out", &out, &error))?;
        if fs::read_dir(&out).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Failure::wrong("--out", format!("{} is not empty; name another folder", out.display())));
        }
        Ok(Self { workloads, ratios: ratios(options), baselines: baselines(options), peak, sim, out })
    }

    /// Looks at the machine and makes the folder; from here on there is something to clean up or to show.
    fn prepare(&self, options: &Options) -> Result<(Runner, BenchResult), Failure> {
        let machine = machine(self.sim.as_deref())?;
        let interrupt = Interrupt::watch().map_err(|error| failed(&format!("cannot watch for signals: {error}")))?;
        let (logs, script) = runner::prepare(&self.out).map_err(|error| bad("--out", &self.out, &error))?;
        let emuv = env::current_exe().map_err(|error| failed(&format!("cannot tell where emuv is: {error}")))?;
        let mut runner = Runner {
            emuv,
            python: options.python.clone(),
            logs,
            script,
            sim: self.sim.clone(),
            peak_bytes: self.peak.unwrap_or(PEAK).0,
            seed: options.seed,
            repeats: options.repeats,
            interrupt,
        };
        let python = usable_python(&runner).inspect_err(|_| self.forget())?;
        if let (None, Some(free)) = (self.peak, python.free_bytes) {
            // Two thirds: the plain run needs some room beside its tensors.
            runner.peak_bytes = PEAK.min(Bytes(free / 3 * 2)).0;
        }
        let link = runner.link();
        if link.is_none() && !runner.interrupt.requested() {
            cli::complain("the link could not be measured, so there are no bounds; 'emuv doctor' says why");
        }
        let result = BenchResult::new(options, &machine, self.sim.is_some(), python.torch, runner.peak_bytes, link);
        Ok((runner, result))
    }

    /// Nothing was measured: what was made in the folder goes, and the folder. It was empty before.
    fn forget(&self) {
        for own in ["logs", "workloads"] {
            let _ = fs::remove_dir_all(self.out.join(own));
        }
        let _ = fs::remove_dir(&self.out);
    }
}

fn ratios(options: &Options) -> Vec<Ratio> {
    if !options.at.is_empty() {
        return options.at.clone();
    }
    let default: &[f64] = if options.quick { &QUICK_RATIOS } else { &RATIOS };
    default.iter().copied().map(Ratio).collect()
}

fn baselines(options: &Options) -> Vec<Baseline> {
    let all = [Baseline::Emuv, Baseline::Static, Baseline::Offload];
    all.into_iter().filter(|one| options.baselines.is_empty() || options.baselines.contains(one)).collect()
}

/// The driver and its GPUs.
fn machine(sim: Option<&str>) -> Result<Machine, Failure> {
    let none = |words: &str| Failure::new(NO_GPU, format!("{words}; emuv bench needs an NVIDIA GPU and its driver"));
    let real = if let Some(settings) = sim {
        gpus::simulate(settings);
        RealLibraries::simulated().map_err(|error| failed(&format!("{error:#}")))?
    } else {
        let shim = libs::shim_path().map_err(|error| failed(&format!("{error:#}")))?;
        RealLibraries::find(Some(&shim)).map_err(|error| none(&format!("no NVIDIA driver: {error}")))?
    };
    let machine = Machine::look(&real).map_err(|error| none(error.words()))?;
    if machine.gpus.is_empty() {
        return Err(none("the driver shows no GPU"));
    }
    Ok(machine)
}

/// What the interpreter has, if it can run the workloads.
fn usable_python(runner: &Runner) -> Result<runner::Python, Failure> {
    let path = runner.python.display();
    let found = runner.python();
    if runner.interrupt.requested() {
        return Err(Failure::new(INTERRUPTED, "interrupted before anything was measured"));
    }
    let python = found.map_err(|why| Failure::wrong("--python", format!("{path}: {why}")))?;
    let why = match (&python.torch, &python.problem) {
        (None, problem) => format!(
            "{path} has no PyTorch that works ({}); install it with '{path} -m pip install torch torchvision \
             accelerate', or name another interpreter with --python",
            problem.as_deref().unwrap_or("it does not say why")
        ),
        (Some(_), Some(problem)) => format!("PyTorch of {path} sees no GPU: {problem}"),
        (Some(_), None) => return Ok(python),
    };
    Err(Failure::new(NO_PYTORCH, why))
}

/// Runs everything, workload by workload, and writes what there is after each.
fn measure(checked: &Checked, runner: &Runner, result: &mut BenchResult, options: &Options) -> io::Result<()> {
    let plans: Vec<_> =
        checked.workloads.iter().map(|workload| workload.runs(&checked.ratios, &checked.baselines)).collect();
    let turns = options.turns;
    let count = |runs: &Vec<_>| u64::from(turns) * (runs.len() as u64 + 1) + 1;
    let mut progress = Progress::new(plans.iter().map(count).sum(), options.quiet);
    for (&workload, runs) in checked.workloads.iter().zip(&plans) {
        one_workload(runner, result, workload, runs, turns, &mut progress)?;
        result.update_rows(workload.name, &checked.ratios);
        result.write(&checked.out)?;
        if runner.interrupt.requested() {
            result.interrupted = true;
            result.write(&checked.out)?;
            break;
        }
    }
    progress.done();
    Ok(())
}

fn one_workload(
    runner: &Runner,
    result: &mut BenchResult,
    workload: &'static Workload,
    runs: &[(Ratio, Baseline)],
    turns: u32,
    progress: &mut Progress,
) -> io::Result<()> {
    // A run that was cut short says nothing.
    let mut keep = |sample: sample::Sample| {
        if !runner.interrupt.requested() {
            result.samples.push(sample);
        }
    };
    progress.begins(&format!("{}, plain", workload.name));
    let sample = runner.plain(workload, None, 1)?;
    let plain = sample.outcome().filter(|outcome| outcome.peak_allocated_bytes.is_some()).cloned();
    keep(sample);
    let Some(plain) = plain else {
        progress.skips(u64::from(turns) * (runs.len() as u64 + 1));
        return Ok(());
    };
    for turn in 1..=turns {
        for &(ratio, baseline) in runs {
            if runner.interrupt.requested() {
                return Ok(());
            }
            progress.begins(&format!("{} at {}x, {baseline}", workload.name, ratio.0));
            keep(runner.limited(workload, &plain, ratio, baseline, turn)?);
        }
        if runner.interrupt.requested() {
            return Ok(());
        }
        progress.begins(&format!("{}, plain again", workload.name));
        keep(runner.plain(workload, Some(&plain), turn + 1)?);
    }
    Ok(())
}

fn conclude(options: &Options, checked: &Checked, runner: &Runner, result: &BenchResult) -> Result<ExitCode, Failure> {
    if options.json {
        print(&result.json())?;
    } else {
        let heading = result.heading().join("\n");
        print(&format!("{heading}\n\n{}\n{}", table::table(&result.rows), where_it_is(checked, result)))?;
    }
    Ok(if runner.interrupt.requested() {
        ExitCode::from(INTERRUPTED)
    } else if result.rows.iter().any(|row| row.same_bits == Some(false)) {
        ExitCode::from(OTHER_BITS)
    } else if result.rows.iter().all(|row| row.plain_seconds.is_none()) {
        ExitCode::from(FAILED)
    } else {
        ExitCode::SUCCESS
    })
}

fn where_it_is(checked: &Checked, result: &BenchResult) -> String {
    let cut = if result.interrupted { "Interrupted: this is what there was. " } else { "" };
    format!("{cut}Every figure, the plot and all outputs: {}\n", checked.out.display())
}

fn list() -> String {
    let line = |workload: &Workload| {
        let offload = match workload.offload {
            Offload::None => "",
            Offload::Weights => ", offload by accelerate",
            Offload::Activations => ", offload by save_on_cpu",
        };
        let quick = if workload.quick { " (quick)" } else { "" };
        format!("{:<12} {}{offload}{quick}\n", workload.name, workload.words)
    };
    WORKLOADS.iter().map(line).collect()
}

fn print(text: &str) -> Result<ExitCode, Failure> {
    cli::print(text).map_err(|error| failed(&format!("cannot write: {error}")))?;
    Ok(ExitCode::SUCCESS)
}

fn bad(flag: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::wrong(flag, format!("cannot write to {}: {error}", path.display()))
}

fn failed(words: &str) -> Failure {
    Failure::new(FAILED, words)
}
