//! `emuv info`: what this machine has, and what a run would get.

use std::{env, fmt::Write, process::ExitCode};

use clap::Args;
use emuv_policy::Bytes;
use emuv_state::{
    HostMemory, Limits,
    slices::{KernelInstance, KernelModule},
    state_dir,
};
use serde_json::{Value, json};

use crate::{
    cli::{self, Failure},
    gpus::{self, GpuFacts, Machine, NoMachine},
    libs::{self, RealLibraries},
    run::{self, sim, version_text},
};

const SCHEMA: u32 = 1;

/// The driver is not there, or not loaded.
const NOT_LOADED: u8 = 9;
/// NVML is missing, and the driver did not answer in its place.
const NO_NVML: u8 = 12;
/// Anything else.
const OTHER: u8 = 255;

/// Flags of `emuv info`.
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0; 2 bad argument; 9 the driver is not loaded; 12 NVML is missing; 255 other.")]
pub struct Options {
    /// As JSON
    #[arg(long)]
    json: bool,

    /// Of a simulated GPU, e.g. --sim=vram=8G,gpus=2
    #[arg(long, value_name = "KEY=VALUE,...", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    sim: Option<String>,
}

/// Everything that is shown.
struct Facts {
    simulated: bool,
    machine: Result<Machine, NoMachine>,
    real: Option<RealLibraries>,
    host: Option<HostMemory>,
    limits: Option<Result<Limits, String>>,
    /// The kernel module's instances; `None`: it is not loaded.
    instances: Option<Vec<KernelInstance>>,
}

/// Shows it.
///
/// # Errors
/// A wrong argument, or standard output is closed. That there is no driver is an answer, not a failure; only
/// the exit code tells it.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let sim = options.sim.as_deref().map(sim::checked).transpose();
    let sim = sim.map_err(|why| Failure::wrong("--sim", why))?;
    let facts = Facts::gather(sim.as_deref());
    let text = if options.json { format!("{:#}\n", facts.json()) } else { facts.text() };
    cli::print(&text).map_err(|error| Failure::new(OTHER, format!("cannot write: {error}")))?;
    Ok(ExitCode::from(match &facts.machine {
        Ok(_) => 0,
        Err(NoMachine::NoLibrary(_) | NoMachine::NotLoaded(_)) => NOT_LOADED,
        Err(NoMachine::NoNvml(_)) => NO_NVML,
        Err(NoMachine::Other(_)) => OTHER,
    }))
}

impl Facts {
    fn gather(sim: Option<&str>) -> Self {
        let real = match sim {
            Some(settings) => {
                gpus::simulate(settings);
                RealLibraries::simulated().map_err(|error| NoMachine::Other(format!("{error:#}")))
            }
            None => RealLibraries::find(libs::shim_path().ok().as_deref())
                .map_err(|error| NoMachine::NoLibrary(format!("no NVIDIA driver: {error}"))),
        };
        let host = HostMemory::read();
        Self {
            simulated: sim.is_some(),
            machine: real.as_ref().map_err(Clone::clone).and_then(Machine::look),
            real: real.ok(),
            limits: host.as_ref().map(run::default_limits),
            host,
            instances: Some(KernelModule::of_system()).filter(KernelModule::is_loaded).map(|module| module.instances()),
        }
    }

    fn json(&self) -> Value {
        let machine = self.machine.as_ref().ok();
        let limits = self.limits.as_ref().and_then(|limits| limits.as_ref().ok());
        let real = self.real.as_ref();
        json!({
            "schema": SCHEMA,
            "emuv": env!("CARGO_PKG_VERSION"),
            "simulated": self.simulated,
            "driver_version": machine.and_then(|machine| machine.driver_version.as_ref()),
            "cuda_version": machine.map(|machine| version_text(machine.cuda_version)),
            "problem": self.machine.as_ref().err().map(NoMachine::words),
            "gpus": machine.map_or(&[][..], |machine| &machine.gpus).iter().map(gpu_json).collect::<Vec<_>>(),
            "host": {
                "ram_total_bytes": self.host.map(|host| host.total.0),
                "ram_available_bytes": self.host.map(|host| host.available.0),
            },
            "limits": {
                "vram_bytes": limits.and_then(|limits| limits.vram).map(|bytes| bytes.0),
                "ram_bytes": limits.map(|limits| limits.ram.0),
                "ram_floor_bytes": limits.map(|limits| limits.ram_floor.0),
            },
            "kernel_module": self.instances.as_ref().map(|instances| json!({
                "instances": instances.iter().map(instance_json).collect::<Vec<_>>(),
            })),
            "state_dir": state_dir(|name| env::var(name).ok()).ok(),
            "libraries": {
                "shim": libs::shim_path().ok(),
                "simgpu": libs::simgpu_path().ok(),
                "libcuda": real.map(|real| &real.cuda),
                "libnvidia_ml": real.and_then(|real| real.nvml.as_ref()),
            },
        })
    }

    fn text(&self) -> String {
        let mut lines = Lines::default();
        lines.add("emuV", env!("CARGO_PKG_VERSION"));
        match &self.machine {
            Ok(machine) => {
                let release = machine.driver_version.as_deref().unwrap_or("release unknown");
                let cuda = version_text(machine.cuda_version);
                let note = if self.simulated { " (simulated)" } else { "" };
                lines.add("driver", &format!("{release}, CUDA {cuda}{note}"));
                for gpu in &machine.gpus {
                    lines.add(&format!("GPU {}", gpu.index), &gpu_text(gpu));
                }
            }
            Err(error) => lines.add("driver", error.words()),
        }
        if let Some(host) = self.host {
            lines.add("host RAM", &format!("{}, {} available", host.total, host.available));
        }
        match &self.limits {
            Some(Ok(limits)) => {
                let vram = limits.vram.map_or("all VRAM".to_owned(), |bytes| format!("{bytes} of VRAM"));
                lines.add("a run gets", &format!("{vram} and {} of RAM; {} stays free", limits.ram, limits.ram_floor));
            }
            Some(Err(error)) => lines.add("a run gets", &format!("nothing: {error}")),
            None => {}
        }
        let module = match self.instances.as_deref() {
            None => "not loaded: files keep the accounts of slices".to_owned(),
            Some(instances) => format!("emuv.ko, {} instances", instances.len()),
        };
        lines.add("module", &module);
        let state = state_dir(|name| env::var(name).ok());
        lines.add("state", &state.map_or_else(|error| error, |path| path.display().to_string()));
        for (name, path) in [("shim", libs::shim_path()), ("simulator", libs::simgpu_path())] {
            lines.add(name, &path.map_or_else(|error| format!("{error:#}"), |path| path.display().to_string()));
        }
        if let Some(real) = &self.real {
            lines.add("libcuda", &real.cuda.display().to_string());
            let nvml = real.nvml.as_ref().map_or("not found".to_owned(), |path| path.display().to_string());
            lines.add("NVML", &nvml);
        }
        lines.0
    }
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{name:<11} {value}");
    }
}

fn instance_json(instance: &KernelInstance) -> Value {
    json!({
        "instance": instance.number,
        "label": instance.label,
        "vram_bytes": instance.limits.0.0,
        "ram_bytes": instance.limits.1.0,
        "holders": instance.holders,
    })
}

fn gpu_json(gpu: &GpuFacts) -> Value {
    json!({
        "index": gpu.index,
        "name": gpu.name,
        "uuid": gpu.uuid,
        "vram_total_bytes": gpu.vram_total.map(|bytes| bytes.0),
        "vram_free_bytes": gpu.vram_free.map(|bytes| bytes.0),
        "pcie_generation": gpu.link.generation,
        "pcie_width": gpu.link.width,
        "pcie_generation_max": gpu.link.generation_max,
        "pcie_width_max": gpu.link.width_max,
    })
}

fn gpu_text(gpu: &GpuFacts) -> String {
    let unknown = || "unknown".to_owned();
    let size = |bytes: Option<Bytes>| bytes.map_or_else(unknown, |bytes| bytes.to_string());
    let link = |generation: Option<u32>, width: Option<u32>| match (generation, width) {
        (Some(generation), Some(width)) => format!("PCIe {generation} x{width}"),
        _ => "PCIe link unknown".to_owned(),
    };
    let (now, most) = (link(gpu.link.generation, gpu.link.width), link(gpu.link.generation_max, gpu.link.width_max));
    let reach = if now == most { String::new() } else { format!(" (at most {most})") };
    format!(
        "{}, {}, VRAM {} ({} free), {now}{reach}",
        gpu.name.clone().unwrap_or_else(unknown),
        gpu.uuid.clone().unwrap_or_else(unknown),
        size(gpu.vram_total),
        size(gpu.vram_free),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpus::Link;

    fn facts(machine: Result<Machine, NoMachine>) -> Facts {
        Facts { simulated: false, machine, real: None, host: None, limits: None, instances: None }
    }

    fn card() -> GpuFacts {
        GpuFacts {
            index: 0,
            name: Some("A card".into()),
            uuid: Some("GPU-1".into()),
            vram_total: Some(Bytes(12 << 30)),
            vram_free: None,
            link: Link { generation: Some(1), width: Some(16), generation_max: Some(5), width_max: Some(16) },
        }
    }

    #[test]
    fn a_card_is_one_line_and_unknown_is_said() {
        let expected = "A card, GPU-1, VRAM 12 GiB (unknown free), PCIe 1 x16 (at most PCIe 5 x16)";
        assert_eq!(gpu_text(&card()), expected);
        assert_eq!(gpu_json(&card())["vram_free_bytes"], Value::Null);
    }

    #[test]
    fn without_a_driver_there_are_no_gpus_and_the_problem_is_said() {
        let found = facts(Err(NoMachine::NoLibrary("no NVIDIA driver: x".into())));
        assert_eq!(found.json()["gpus"], json!([]));
        assert_eq!(found.json()["problem"], "no NVIDIA driver: x");
        assert!(found.text().contains("driver      no NVIDIA driver: x\n"), "{}", found.text());
        assert!(found.text().contains("module      not loaded") && found.json()["kernel_module"].is_null());
    }

    #[test]
    fn with_one_the_problem_is_null() {
        let machine = Machine { driver_version: Some("580.1".into()), cuda_version: 13_000, gpus: vec![card()] };
        let found = facts(Ok(machine));
        assert_eq!(found.json()["cuda_version"], "13.0");
        assert_eq!(found.json()["problem"], Value::Null);
        assert!(found.text().contains("driver      580.1, CUDA 13.0\nGPU 0       A card"), "{}", found.text());
    }
}
