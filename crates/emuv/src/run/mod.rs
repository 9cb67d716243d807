//! `emuv run`: checks everything first, then starts the program, waits for it and cleans up.

mod child;
mod environment;
pub mod gpu;
pub mod hints;
pub mod sim;
mod symbols;
pub mod verify;
mod vgpu;

use std::{
    env,
    ffi::OsString,
    fmt::Write,
    fs,
    io::{self, ErrorKind},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use clap::Args;
use emuv_policy::Bytes;
use emuv_state::{
    DeviceRecord, HostMemory, Limits, Movement, ProcessRecord, RunDir,
    config::{ConfigFile, Flags, Settings},
    env as variables, read_ledgers, read_timeline,
    report::{LimitsReport, ProcessReport, Report, SCHEMA, check_writable},
    slices::{Entry, SLICE_FILE},
};

use crate::{
    cli::{Failure, complain},
    gpus::{self, Machine, NoMachine, OLDEST_CUDA},
    libs::{self, RealLibraries},
    progress,
};
use child::{Ending, Signals};
pub use environment::LIBRARY_NAMES;
use environment::{LIB, Plan};
use symbols::Symbols;

/// emuV itself failed.
const EMUV_FAILED: u8 = 125;
/// The program cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// There is no such program.
const NOT_FOUND: u8 = 127;

const WITHOUT_A_GPU: &str = "'emuv run --sim -- ...' tries emuV without a GPU";

/// Flags of `emuv run`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP, after_long_help = after_long_help())]
pub struct Options {
    /// RAM budget for what does not fit in VRAM, e.g. 4G; 0 turns spilling off [default: half of what is free]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    ram: Option<String>,

    /// Most VRAM that the program may use, per GPU, e.g. 10.5G [default: all of it]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    vram: Option<String>,

    /// The only GPU that the program sees: its number as in nvidia-smi, or its UUID
    #[arg(long, value_name = "N|UUID", allow_hyphen_values = true)]
    gpu: Option<String>,

    /// Run in this slice of a GPU (emuv vgpu): it says which GPU, how much VRAM and RAM, for all programs in it together
    #[arg(long, value_name = "NAME", env = variables::VGPU, conflicts_with_all = ["vram", "ram", "gpu"])]
    vgpu: Option<String>,

    /// Use a simulated GPU, e.g. --sim=vram=8G,gpus=2,h2d=25,d2h=25
    #[arg(long, value_name = "KEY=VALUE,...", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    sim: Option<String>,

    /// Write what the run used to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<String>,

    /// Leave out of the report where in the program what moves most was allocated
    #[arg(long, env = variables::NO_CALL_SITES, value_parser = clap::builder::FalseyValueParser::new())]
    no_call_sites: bool,

    /// Record what the program gives the GPU and what moves, to this file (further processes and GPUs: FILE.PID.GPU)
    #[arg(long, value_name = "FILE", env = variables::TRACE)]
    trace: Option<PathBuf>,

    /// No notice when memory spills
    #[arg(short, long)]
    pub quiet: bool,

    /// Leave frameworks' allocators as they are (PyTorch, JAX and TensorFlow are otherwise asked to allocate tensor
    /// by tensor, unless you have chosen something yourself)
    #[arg(long, env = variables::NO_HINTS, value_parser = clap::builder::FalseyValueParser::new())]
    no_framework_hints: bool,

    /// What moves between VRAM and RAM: dynamic (what is needed is brought), static, or torture[:SEED], which moves
    /// whatever may move to show that results stay right [default: dynamic]
    #[arg(long, value_name = "POLICY", env = variables::POLICY)]
    policy: Option<Movement>,

    /// Move data only while the GPU has nothing to do
    #[arg(long, env = variables::SAFE, value_parser = clap::builder::FalseyValueParser::new())]
    safe: bool,

    /// Check each piece of work
    #[arg(skip)]
    verify: bool,

    /// The program and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    pub command: Vec<OsString>,
}

const AFTER_HELP: &str = "\
Examples:
  emuv run --ram 4G -- python train.py
  emuv run --vram 10.5G --ram 8G --report out.json -- ./prog --its-own-flags
  emuv run --sim=vram=256M --ram 512M -- ./prog
  emuv run --vgpu ml-1 -- ./prog

Exit code: the program's own, 128 + n after signal n; 2 bad argument, 125 emuV itself failed,
126 the program cannot be executed, 127 there is no such program.
-h is short, --help lists the environment variables.";

fn after_long_help() -> String {
    let mut help = format!("{AFTER_HELP}\n\nEnvironment (a flag counts more, /etc/emuv/emuv.toml less):\n");
    for variable in variables::VARIABLES {
        let meaning = variable.meaning.trim();
        // Writing to a string cannot fail.
        let _ = match variable.flag {
            Some(flag) => writeln!(help, "  {:<24} {meaning} [{flag}]", variable.name),
            None => writeln!(help, "  {:<24} {meaning}", variable.name),
        };
    }
    help
}

impl Options {
    fn flags(&self) -> Flags {
        Flags {
            vram: self.vram.clone(),
            ram: self.ram.clone(),
            gpu: self.gpu.clone(),
            sim: self.sim.clone(),
            report: self.report.clone(),
            quiet: self.quiet,
        }
    }
}

/// Runs the program.
///
/// # Errors
/// Whatever kept it from being started, with the exit code for that.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let get = |name: &str| env::var(name).ok();
    let file = ConfigFile::read(get).map_err(Failure::bad_argument)?;
    let settings = Settings::resolve(options.flags(), get, &file).map_err(Failure::bad_argument)?;
    let slice = options.vgpu.as_deref().filter(|name| !name.is_empty()).map(vgpu::enter).transpose()?;
    let checked = Checked::new(&settings, options.trace.as_deref(), slice)?;

    let signals = Signals::take().map_err(|error| failed("take over signals", &error))?;
    let run_dir = prepare(&checked)?;
    let plan = Plan {
        run_dir: run_dir.path(),
        real: &checked.real,
        limits: checked.limits,
        slice: checked.slice.as_ref().map(|entry| entry.slice.name.as_str()),
        quiet: settings.quiet,
        log: settings.log.as_ref(),
        sim: checked.sim.as_deref(),
        gpu: checked.gpu.as_deref(),
        hints: !options.no_framework_hints,
        policy: options.policy.or(settings.policy).unwrap_or_default(),
        safe: options.safe || settings.safe,
        trace: checked.trace.as_deref(),
        verify: options.verify,
        timeline: checked.report.is_some(),
        call_sites: checked.report.is_some() && !options.no_call_sites,
    };
    let program = signals.start(&mut command(options, &plan)).map_err(|error| not_started(options, &error))?;
    let telling =
        if options.verify && progress::is_shown(settings.quiet) { verify::tell(run_dir.path()) } else { None };
    let ending = program.wait();
    drop(telling);
    let ending = ending.map_err(|error| failed("wait for the program", &error))?;
    report(options, &checked, run_dir.path(), ending, settings.quiet);
    if options.verify {
        return Ok(verify::conclude(run_dir.path(), ending));
    }
    Ok(ExitCode::from(ending.exit_code()))
}

/// Everything that a run needs, all of it checked.
struct Checked {
    slice: Option<Entry>,
    limits: Limits,
    real: RealLibraries,
    shim: PathBuf,
    sim: Option<String>,
    gpu: Option<String>,
    report: Option<PathBuf>,
    trace: Option<PathBuf>,
    state_dir: PathBuf,
}

impl Checked {
    fn new(settings: &Settings, trace: Option<&Path>, slice: Option<Entry>) -> Result<Self, Failure> {
        let sim = vgpu::sim(slice.as_ref(), settings)?;
        let sim = sim.as_ref();
        let sim =
            sim.map(|sim| sim::checked(&sim.value).map_err(|why| Failure::wrong(&sim.source, &why))).transpose()?;
        let host = HostMemory::read().ok_or_else(|| Failure::new(EMUV_FAILED, "cannot read /proc/meminfo"))?;
        let limits = match &slice {
            Some(entry) => vgpu::limits(entry, settings, &host),
            None => Limits::resolve(settings.vram.as_ref(), settings.ram.as_ref(), settings.ram_floor.as_ref(), &host),
        };
        let limits = limits.map_err(Failure::bad_argument)?;
        if let Some(report) = &settings.report {
            check_writable(Path::new(&report.value))
                .map_err(|error| Failure::wrong(&report.source, format!("cannot write {}: {error}", report.value)))?;
        }
        let trace = trace.map(|trace| new_trace(trace).map_err(|why| Failure::wrong("--trace", &why))).transpose()?;
        let state_dir = vgpu::state_dir(slice.as_ref()).map_err(Failure::bad_argument)?;
        // The dynamic loader splits its lists at these and knows no quoting.
        if state_dir.as_os_str().as_encoded_bytes().iter().any(|byte| b": ;".contains(byte)) {
            let words = format!("{} has a blank, colon or semicolon in it", state_dir.display());
            return Err(Failure::wrong(variables::STATE_DIR, &words));
        }
        let shim = libs::shim_path().map_err(|error| Failure::new(EMUV_FAILED, format!("{error:#}")))?;
        let (machine, real) = machine(sim.as_deref(), &shim)?;
        let gpu = vgpu::gpu(slice.as_ref(), settings);
        let gpu = gpu.as_ref();
        let gpu = gpu
            .map(|gpu| {
                // A run by itself has one GPU or all of them; only slices name several.
                let found = match &slice {
                    Some(_) => gpu::choose_all(&gpu.value, &machine.gpus).map(|uuids| uuids.join(",")),
                    None => gpu::choose(&gpu.value, &machine.gpus),
                };
                found.map_err(|why| {
                    Failure::wrong(
                        &gpu.source,
                        slice.as_ref().map_or_else(|| why.clone(), |s| vgpu::gpu_is_gone(s, &why)),
                    )
                })
            })
            .transpose()?;
        if gpu.is_none()
            && let Some(words) =
                env::var("CUDA_VISIBLE_DEVICES").ok().and_then(|list| gpu::missing(&list, &machine.gpus))
        {
            complain(&words);
        }
        let report = settings.report.as_ref().map(|report| PathBuf::from(&report.value));
        Ok(Self { slice, limits, real, shim, sim, gpu, report, trace, state_dir })
    }
}

/// The absolute path of a trace that is about to be written; the one of an earlier run goes.
fn new_trace(path: &Path) -> Result<PathBuf, String> {
    let cannot = |error: io::Error| format!("cannot write {}: {error}", path.display());
    check_writable(path).map_err(cannot)?;
    let absolute = std::path::absolute(path).map_err(cannot)?;
    if absolute.is_file() {
        fs::remove_file(&absolute).map_err(cannot)?;
    }
    Ok(absolute)
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure::new(EMUV_FAILED, format!("cannot {what}: {error}"))
}

/// The driver that a program will use, once it has been seen to work.
///
/// # Errors
/// There is none that works, with what to do.
pub fn machine(sim: Option<&str>, shim: &Path) -> Result<(Machine, RealLibraries), Failure> {
    let without = |words: &str| Failure::new(EMUV_FAILED, format!("{words}; {WITHOUT_A_GPU}"));
    let real = match sim {
        Some(settings) => {
            gpus::simulate(settings);
            RealLibraries::simulated().map_err(|error| Failure::new(EMUV_FAILED, format!("{error:#}")))?
        }
        None => RealLibraries::find(Some(shim)).map_err(|error| without(&format!("no NVIDIA driver: {error}")))?,
    };
    let machine = Machine::look(&real).map_err(|error: NoMachine| without(error.words()))?;
    if machine.cuda_version < OLDEST_CUDA {
        let (found, oldest) = (version_text(machine.cuda_version), version_text(OLDEST_CUDA));
        return Err(without(&format!("the driver is for CUDA {found}; emuV needs CUDA {oldest} or newer")));
    }
    if machine.gpus.is_empty() {
        return Err(without("the driver shows no GPU"));
    }
    Ok((machine, real))
}

/// An interface version as people write it: 12020 is 12.2.
pub fn version_text(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Makes the run's directory, with the libraries under every name that programs load them by.
fn prepare(checked: &Checked) -> Result<RunDir, Failure> {
    let state_dir = &checked.state_dir;
    let in_state_dir = |error: io::Error| failed(&format!("make a directory in {}", state_dir.display()), &error);
    let run_dir = RunDir::create(state_dir).map_err(in_state_dir)?;
    let lib = run_dir.path().join(LIB);
    fs::create_dir(&lib).map_err(in_state_dir)?;
    for name in LIBRARY_NAMES {
        symlink(&checked.shim, lib.join(name)).map_err(in_state_dir)?;
    }
    if let Some(entry) = &checked.slice {
        fs::write(run_dir.path().join(SLICE_FILE), entry.dir.as_os_str().as_encoded_bytes()).map_err(in_state_dir)?;
    }
    Ok(run_dir)
}

fn command(options: &Options, plan: &Plan<'_>) -> Command {
    let (program, arguments) =
        options.command.split_first().map_or((OsString::new(), &[][..]), |(p, a)| (p.clone(), a));
    let mut command = Command::new(program);
    command.args(arguments);
    for (name, value) in environment::changes(plan, |name| env::var_os(name)) {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

fn not_started(options: &Options, error: &io::Error) -> Failure {
    let program = options.command.first().cloned().unwrap_or_default();
    let program = program.to_string_lossy();
    match error.kind() {
        ErrorKind::NotFound => Failure::new(NOT_FOUND, format!("{program}: not found")),
        _ => {
            let text = error.to_string();
            let words = text.split(" (os error").next().unwrap_or_default();
            Failure::new(NOT_EXECUTABLE, format!("{program}: cannot be executed: {}", words.to_lowercase()))
        }
    }
}

/// Says what was used. The program's exit code stands whatever becomes of this.
fn report(options: &Options, checked: &Checked, run_dir: &Path, ending: Ending, quiet: bool) {
    let ledgers = read_ledgers(run_dir);
    if !quiet {
        moved(&ledgers.processes).iter().for_each(|line| complain(line));
    }
    for problem in &ledgers.problems {
        complain(&problem.to_string());
    }
    let Some(path) = &checked.report else { return };
    let report = Report {
        schema: SCHEMA,
        emuv: env!("CARGO_PKG_VERSION").to_owned(),
        command: options.command.iter().map(|part| part.to_string_lossy().into_owned()).collect(),
        exit_code: ending.exit_code(),
        simulated: checked.sim.is_some(),
        limits: LimitsReport::from(&checked.limits),
        processes: ledgers.processes.iter().map(|process| process_report(run_dir, process)).collect(),
    };
    if let Err(error) = report.write(path) {
        complain(&format!("--report: cannot write {}: {error}", path.display()));
    }
}

fn process_report(run_dir: &Path, process: &ProcessRecord) -> ProcessReport {
    let mut report = ProcessReport::from(process);
    let mut symbols = Symbols::default();
    let mut symbol = |file: &str, offset| symbols.name(file, offset);
    for device in &mut report.devices {
        match read_timeline(run_dir, process, device.ordinal) {
            Ok(timeline) => timeline.iter().for_each(|timeline| device.add_timeline(timeline, &mut symbol)),
            Err(problem) => complain(&problem.to_string()),
        }
    }
    report
}

/// For each program and GPU where data was moved: how much, and how close that was to what GPU and link allow.
fn moved(processes: &[ProcessRecord]) -> Vec<String> {
    let has_moved = |device: &DeviceRecord| device.figure.moved_bytes > 0 || device.figure.in_place_bytes > 0;
    let all = processes.iter().flat_map(|process| process.devices.iter().map(move |device| (process, device)));
    let moved: Vec<_> = all.filter(|(_, device)| has_moved(device)).collect();
    let many = moved.len() > 1;
    moved.iter().map(|(process, device)| moved_line(process, device, many)).collect()
}

fn moved_line(process: &ProcessRecord, device: &DeviceRecord, many: bool) -> String {
    let whose = if many { format!("process {}, GPU {}: ", process.pid, device.ordinal) } else { String::new() };
    let (into, out) = (Bytes(device.promoted_bytes), Bytes(device.evicted_bytes));
    let in_place = match device.figure.in_place_bytes {
        0 => String::new(),
        bytes => format!(", {} read in place", Bytes(bytes)),
    };
    format!("{whose}{into} moved into VRAM, {out} out of it{in_place}; {}", device.figure.words())
}

/// The limits that a run would have on this host with no flags given.
///
/// # Errors
/// One line that starts with the variable or file that is wrong.
pub fn default_limits(host: &HostMemory) -> Result<Limits, String> {
    let get = |name: &str| env::var(name).ok();
    let settings = Settings::resolve(Flags::default(), get, &ConfigFile::read(get)?)?;
    Limits::resolve(settings.vram.as_ref(), settings.ram.as_ref(), settings.ram_floor.as_ref(), host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_version_reads_as_cuda_is_called() {
        assert_eq!(version_text(12_020), "12.2");
        assert_eq!(version_text(13_000), "13.0");
    }

    #[test]
    fn the_long_help_lists_every_variable() {
        let help = after_long_help();
        assert!(variables::VARIABLES.iter().all(|variable| help.contains(variable.name)));
    }
}
