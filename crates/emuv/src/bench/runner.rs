//! Starts the runs of a workload, in an order that lets drift hit all baselines alike.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde::Deserialize;

use super::{
    bound::Link,
    child::{self, Interrupt},
    plan::{Baseline, Offload, Ratio, Workload},
    sample::{Ended, Outcome, Sample, last_line, ram_for, report},
};

/// A run that takes longer than this hangs.
const LIMIT: Duration = Duration::from_secs(240);
/// Looking at the machine may include the first load of a framework from a slow disk.
const LOOK_LIMIT: Duration = Duration::from_secs(180);
/// After these no further iteration is begun.
const PLAIN_SECONDS: u32 = 20;
const EMUV_SECONDS: u32 = 40;
const OTHER_SECONDS: u32 = 20;

/// What all runs share.
#[derive(Debug)]
pub struct Runner {
    /// emuV itself.
    pub emuv: PathBuf,
    /// The interpreter.
    pub python: PathBuf,
    /// Where outputs are kept.
    pub logs: PathBuf,
    /// The file that is started.
    pub script: PathBuf,
    /// The simulated GPU's settings, if it is one.
    pub sim: Option<String>,
    /// The program's memory, about.
    pub peak_bytes: u64,
    /// The seed of all workloads.
    pub seed: u64,
    /// How many iterations count at least.
    pub repeats: u32,
    /// Whether the user wants to stop.
    pub interrupt: Interrupt,
}

/// What the interpreter has: what `workload.py --check` prints.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Python {
    /// PyTorch's version; `None`: it is not installed.
    pub torch: Option<String>,
    /// Why PyTorch does not work, or sees no GPU.
    pub problem: Option<String>,
    /// What of the GPU's memory is free.
    pub free_bytes: Option<u64>,
}

impl Runner {
    /// Asks the interpreter what it has.
    ///
    /// # Errors
    /// It cannot be started, or fails; in words.
    pub fn python(&self) -> Result<Python, String> {
        let mut command = self.interpreter();
        command.arg("--check");
        let done =
            child::run(&mut command, &self.logs, "check", LOOK_LIMIT, &self.interrupt).map_err(|error| match error
                .kind()
            {
                io::ErrorKind::NotFound => "not found; name the interpreter that has PyTorch".to_owned(),
                _ => format!("cannot be started: {error}"),
            })?;
        let line = done.stdout.lines().find(|line| line.starts_with('{'));
        line.and_then(|line| serde_json::from_str(line).ok())
            .ok_or_else(|| format!("is no Python 3 that works: {}: {}", done.words, last_line(&done.stderr)))
    }

    /// Measures the link, by `emuv doctor`; `None` if it cannot.
    pub fn link(&self) -> Option<Link> {
        let mut command = Command::new(&self.emuv);
        command.args(["doctor", "--json"]);
        if let Some(sim) = &self.sim {
            command.arg(format!("--sim={sim}"));
        }
        let done = child::run(&mut command, &self.logs, "doctor", LOOK_LIMIT, &self.interrupt).ok()?;
        let found: serde_json::Value = serde_json::from_str(&done.stdout).ok()?;
        let rate = |name: &str| found["link"][name].as_f64().filter(|&rate| rate > 0.0).map(|rate| rate * 1e9);
        Some(Link {
            h2d_bytes_per_second: rate("h2d_gbps")?,
            d2h_bytes_per_second: rate("d2h_gbps")?,
            both_bytes_per_second: rate("both_gbps")?,
        })
    }

    /// Everything in VRAM. The first such run decides the size for all others.
    ///
    /// # Errors
    /// It could not be started.
    pub fn plain(&self, workload: &'static Workload, first: Option<&Outcome>, turn: u32) -> io::Result<Sample> {
        let name = format!("{}.plain{}", workload.name, of_turn(turn));
        let mut command = self.interpreter();
        self.arguments(&mut command, workload, first, 4 * self.repeats, PLAIN_SECONDS);
        self.sample(command, &name, workload, Baseline::Plain, None, None)
    }

    /// With a part of the memory that the plain run took, in this turn.
    ///
    /// # Errors
    /// It could not be started.
    pub fn limited(
        &self,
        workload: &'static Workload,
        plain: &Outcome,
        ratio: Ratio,
        baseline: Baseline,
        turn: u32,
    ) -> io::Result<Sample> {
        let peak = plain.peak_allocated_bytes.unwrap_or(0);
        let vram = ratio.budget(peak);
        let name = format!("{}.{}.{baseline}{}", workload.name, ratio.0, of_turn(turn));
        let mut command = match baseline {
            Baseline::Emuv | Baseline::Static => self.under_emuv(peak, vram, baseline, &name),
            Baseline::Plain | Baseline::Offload => self.interpreter(),
        };
        // A loop is learned while it runs; nothing is learned by the others.
        let (iterations, seconds) = match baseline {
            Baseline::Emuv => (4 * self.repeats, EMUV_SECONDS),
            _ => (2 * self.repeats, OTHER_SECONDS),
        };
        self.arguments(&mut command, workload, Some(plain), iterations, seconds);
        let mut budget = Some(vram);
        if baseline == Baseline::Offload {
            command.arg("--offload");
            if workload.offload == Offload::Weights {
                command.args(["--offload-budget", &vram.to_string()]);
            } else {
                budget = None;
            }
        }
        self.sample(command, &name, workload, baseline, Some(ratio.0), budget)
    }

    fn interpreter(&self) -> Command {
        let mut command = Command::new(&self.python);
        command.arg(&self.script).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    fn under_emuv(&self, peak: u64, vram: u64, baseline: Baseline, name: &str) -> Command {
        let mut command = Command::new(&self.emuv);
        command.args(["run", "--quiet"]);
        if let Some(sim) = &self.sim {
            command.arg(format!("--sim={sim}"));
        }
        command.args(["--vram", &vram.to_string(), "--ram", &ram_for(peak).to_string()]);
        command.arg("--policy").arg(if baseline == Baseline::Static { "static" } else { "dynamic" });
        command.arg("--report").arg(self.report_path(name));
        command.arg("--").arg(&self.python).arg(&self.script).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    fn report_path(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.report.json"))
    }

    fn arguments(
        &self,
        command: &mut Command,
        workload: &Workload,
        first: Option<&Outcome>,
        iterations: u32,
        seconds: u32,
    ) {
        command.arg(workload.name).args(["--peak", &self.peak_bytes.to_string()]);
        command.args(["--iterations", &iterations.to_string(), "--seconds", &seconds.to_string()]);
        command.args(["--seed", &self.seed.to_string()]);
        if let Some(scale) = first.and_then(|first| first.scale_argument) {
            command.args(["--scale", &scale.to_string()]);
        }
    }

    fn sample(
        &self,
        mut command: Command,
        name: &str,
        workload: &'static Workload,
        baseline: Baseline,
        at: Option<f64>,
        vram_bytes: Option<u64>,
    ) -> io::Result<Sample> {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words = words.map(|word| OsString::from(word).to_string_lossy().into_owned()).collect();
        let done = child::run(&mut command, &self.logs, name, LIMIT, &self.interrupt)?;
        Ok(Sample {
            workload: workload.name,
            baseline,
            at,
            vram_bytes,
            command: words,
            wall_seconds: done.wall.as_secs_f64(),
            ended: Ended::read(&done.stdout, &done.stderr, &done.words),
            report: report(&self.report_path(name)),
        })
    }
}

/// What is added to the names of a turn's outputs.
fn of_turn(turn: u32) -> String {
    if turn == 1 { String::new() } else { format!(".{turn}") }
}

/// Makes the folders of a run.
///
/// # Errors
/// The system's own.
pub fn prepare(out: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let logs = out.join("logs");
    fs::create_dir_all(&logs)?;
    let script = super::scripts::write(&out.join("workloads"))?;
    Ok((logs, script))
}
