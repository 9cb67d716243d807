//! Where the demo plays: the GPU or its simulation, and how the workload is started on it with and
//! without emuV.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use emuv_policy::Bytes;
use emuv_state::{RunDir, env as variables, state_dir};
use serde_json::Value;

use super::workload::Outcome;
use crate::doctor;

/// The sizes of the story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// What the program needs.
    pub workload: Bytes,
    /// What the card has.
    pub vram: Bytes,
    /// What emuV adds.
    pub ram: Bytes,
    /// What a card would need for the program to fit.
    pub enough: Bytes,
}

const REAL: Sizes = Sizes { workload: Bytes::gib(3), vram: Bytes::gib(2), ram: Bytes::gib(2), enough: Bytes::gib(4) };
const SIMULATED: Sizes =
    Sizes { workload: Bytes::mib(400), vram: Bytes::mib(256), ram: Bytes::mib(256), enough: Bytes::gib(1) };

/// How the workload is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The small card alone.
    Small,
    /// The small card and RAM, by emuV.
    Emuv,
    /// A card that is large enough, without emuV.
    Large,
}

/// What a run gave.
#[derive(Debug, Clone)]
pub struct Performance {
    /// How it was run.
    pub way: Way,
    /// What the workload itself said.
    pub outcome: Outcome,
    /// Most VRAM in use; `None` where nobody counted.
    pub vram_peak: Option<Bytes>,
    /// Most RAM in use for GPU memory.
    pub ram_peak: Option<Bytes>,
    /// Of the whole process, start and end included.
    pub seconds: f64,
}

/// The place and its props.
#[derive(Debug)]
pub struct Stage {
    /// Why it is simulated; `None` on a real GPU.
    pub simulated_because: Option<String>,
    /// The GPU's name.
    pub gpu: String,
    /// The sizes that suit it.
    pub sizes: Sizes,
    own: PathBuf,
    scratch: RunDir,
}

impl Stage {
    /// Looks for a GPU that will do, and takes the simulated one where there is none.
    ///
    /// # Errors
    /// Where the simulated driver or a temporary folder is not to be had.
    pub fn set_up(force_simulated: bool) -> Result<Self> {
        let own = env::current_exe().context("finding this program's own file")?;
        let state_dir = state_dir(|name| env::var(name).ok()).map_err(anyhow::Error::msg)?;
        let scratch = RunDir::create(&state_dir).context("making a temporary folder")?;
        let found = if force_simulated { Err("asked for by --sim".to_owned()) } else { real_gpu() };
        let (gpu, simulated_because, sizes) = match found {
            Ok(gpu) => (gpu, None, REAL),
            Err(reason) => ("simulated GPU".to_owned(), Some(reason), SIMULATED),
        };
        if simulated_because.is_some() {
            let driver = crate::libs::simgpu_path()?;
            let folder = scratch.path().join("driver");
            fs::create_dir(&folder)?;
            for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
                symlink(&driver, folder.join(name)).context("linking to the simulated driver")?;
            }
        }
        Ok(Self { simulated_because, gpu, sizes, own, scratch })
    }

    fn simulated(&self) -> bool {
        self.simulated_because.is_some()
    }

    /// Runs the workload.
    ///
    /// # Errors
    /// Where it could not be started or said nothing; that it ran out of memory is no error.
    pub fn perform(&self, way: Way, seed: u32) -> Result<Performance> {
        let report = self.scratch.path().join("report.json");
        let _ = fs::remove_file(&report);
        let mut command = self.command(way, &report);
        command.args(["demo-workload", "--seed", &seed.to_string()]);
        command.args(["--bytes", &self.sizes.workload.0.to_string()]);
        let start = Instant::now();
        let output = command.output().context("starting the workload")?;
        let seconds = start.elapsed().as_secs_f64();
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find(|line| line.starts_with('{'));
        let line = line.ok_or_else(|| {
            anyhow!("the workload did not run ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
        })?;
        let outcome: Outcome = serde_json::from_str(line).context("reading what the workload printed")?;
        let report = fs::read(&report).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let (vram_peak, ram_peak) = match &report {
            Some(report) => (peak(report, "vram"), peak(report, "ram")),
            // Without emuV whatever was allocated was VRAM.
            None => (Some(Bytes(outcome.allocated_bytes)), Some(Bytes::ZERO)),
        };
        Ok(Performance { way, outcome, vram_peak, ram_peak, seconds })
    }

    /// The command line up to the workload's own arguments.
    fn command(&self, way: Way, report: &Path) -> Command {
        let sim = |vram: Bytes| format!("vram={}", vram.0);
        let mut command = Command::new(&self.own);
        if self.simulated() && way != Way::Emuv {
            let vram = if way == Way::Small { self.sizes.vram } else { self.sizes.enough };
            command.env("LD_LIBRARY_PATH", self.scratch.path().join("driver")).env(variables::SIM, sim(vram));
            return command;
        }
        if way == Way::Large {
            return command;
        }
        command.args(["run", "--quiet"]);
        match self.simulated() {
            true => command.arg(format!("--sim={}", sim(self.sizes.vram))),
            // A real card of that size is stood in for by a limit on this one.
            false => command.args(["--vram", &self.sizes.vram.0.to_string()]),
        };
        let ram = if way == Way::Emuv { self.sizes.ram } else { Bytes::ZERO };
        command.args(["--ram", &ram.0.to_string()]).arg("--report").arg(report).arg("--").arg(&self.own);
        command
    }
}

/// The first GPU's name, if it can play the part of both cards.
fn real_gpu() -> Result<String, String> {
    let (checks, driver) = doctor::driver::load(false);
    let first = || checks.first().map_or_else(String::new, |check| check.found.clone());
    let (_, driver) = driver.ok_or_else(first)?;
    let devices = doctor::device::devices(&driver).map_err(|error| format!("cuInit: {error}"))?;
    let device = *devices.first().ok_or("the driver reports no GPU")?;
    let bytes = doctor::device::total_bytes(&driver, device).map_err(|error| error.to_string())?;
    let name = doctor::device::name(&driver, device);
    if Bytes(bytes) < REAL.enough {
        return Err(format!("{name} has {}, the demo needs {}", Bytes(bytes), REAL.enough));
    }
    Ok(name)
}

/// The largest peak of a tier over all processes and devices of a report.
fn peak(report: &Value, tier: &str) -> Option<Bytes> {
    let processes = report["processes"].as_array()?;
    let devices = processes.iter().flat_map(|process| process["devices"].as_array().into_iter().flatten());
    devices.filter_map(|device| device[tier]["peak_bytes"].as_u64()).max().map(Bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn peaks_are_read_over_all_processes() {
        let device = |vram: u64, ram: u64| json!({"vram": {"peak_bytes": vram}, "ram": {"peak_bytes": ram}});
        let report = json!({"processes": [{"devices": []}, {"devices": [device(5, 1), device(3, 9)]}]});
        assert_eq!(peak(&report, "vram"), Some(Bytes(5)));
        assert_eq!(peak(&report, "ram"), Some(Bytes(9)));
        assert_eq!(peak(&json!({}), "ram"), None);
    }

    #[test]
    fn the_story_needs_more_than_the_card_and_less_than_both() {
        for sizes in [REAL, SIMULATED] {
            assert!(sizes.vram < sizes.workload);
            assert!(sizes.workload < sizes.vram.saturating_add(sizes.ram));
            assert!(sizes.workload < sizes.enough);
        }
    }
}
