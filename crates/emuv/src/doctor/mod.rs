//! `emuv doctor`: checks, one by one, everything that emuV needs, and says what to do about what is missing.
//!
//! At most about 1.2 GiB is pinned and 128 MiB of GPU memory taken, for seconds, and all of it is freed.

mod check;
pub mod device;
pub mod driver;
pub mod expected;
mod gpu;
mod host;
mod link;
mod mapping;
mod preload;
mod slices;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context, Result};
use emuv_cuda::{Driver, DriverGpu, types::CUdevice};
use emuv_policy::Bytes;

use check::{Check, Findings, Link};
use device::Device;

use crate::{
    cli,
    gpus::{self, Machine},
    libs::RealLibraries,
    progress,
    run::sim,
};

/// No driver on this machine.
const NO_DRIVER: u8 = 9;
/// A check failed.
const FAILED: u8 = 255;

/// Options of `emuv doctor`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
    /// No progress on standard error
    #[arg(short, long)]
    pub quiet: bool,
    /// Check emuV on the simulated GPU, e.g. --sim=vram=256M
    #[arg(long, value_name = "KEY=VALUE,...", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub sim: Option<String>,
    /// The part of the preload check that runs as a child of `emuv run`
    #[arg(long, hide = true)]
    pub preload_check: bool,
}

/// Runs all checks.
///
/// # Errors
/// Only what keeps the doctor itself from working; what it finds is in its output and exit code.
pub fn run(options: &Options) -> Result<ExitCode> {
    if options.preload_check {
        return preload::report();
    }
    let sim = match options.sim.as_deref().map(sim::checked).transpose() {
        Ok(sim) => sim,
        Err(why) => {
            cli::complain(&format!("--sim: {why}"));
            return Ok(ExitCode::from(cli::BAD_ARGUMENT));
        }
    };
    if let Some(settings) = &sim {
        gpus::simulate(settings);
    }
    let mut findings = Findings::new(sim.is_some());
    let has_driver = examine(&mut findings, sim.as_deref(), options.quiet);
    print(&findings, options.json)?;
    Ok(match (has_driver, findings.failed()) {
        (false, _) => ExitCode::from(NO_DRIVER),
        (true, true) => ExitCode::from(FAILED),
        (true, false) => ExitCode::SUCCESS,
    })
}

fn print(findings: &Findings, json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = if json { findings.write_json(&mut out) } else { findings.write_text(&mut out) };
    match written.and_then(|()| out.flush()) {
        // Whoever reads this has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing the findings"),
    }
}

/// Makes all checks; false where there is no driver.
fn examine(findings: &mut Findings, sim: Option<&str>, quiet: bool) -> bool {
    let simulated = sim.is_some();
    let memory = host::memory();
    findings.checks.extend(host::platform());
    findings.checks.push(host::container());
    findings.checks.extend(host::system_wide());
    findings.checks.push(host::ram(memory.as_ref()));
    findings.checks.push(host::control_group(memory.as_ref()));
    let (checks, driver) = driver::load(simulated);
    let usable = !checks.iter().any(|check| check.status == check::Status::Fail);
    findings.checks.extend(checks);
    let Some((libraries, driver)) = driver else { return false };
    if usable {
        let wanted = host::pinning_target(memory.as_ref(), simulated);
        match device::devices(&driver) {
            Ok(devices) => examine_devices(findings, &libraries, &driver, &devices, (wanted, quiet)),
            Err(error) => findings.checks.push(Check::fail(
                "gpu",
                format!("cuInit: {error}"),
                "see whether nvidia-smi works, and whether CUDA_VISIBLE_DEVICES names a GPU that exists",
            )),
        }
        findings.checks.push(preload::check(sim));
    }
    true
}

fn examine_devices(
    findings: &mut Findings,
    libraries: &RealLibraries,
    driver: &Driver,
    devices: &[CUdevice],
    (wanted, quiet): (Bytes, bool),
) {
    findings.checks.push(gpu::present(driver, devices));
    let support = gpu::support(driver, devices);
    let supported = !support.iter().any(|check| check.status == check::Status::Fail);
    findings.checks.extend(support);
    // The first GPU stands for all: they share the driver, and a second one would double the time.
    let (Some(&device), true) = (devices.first(), supported) else { return };
    findings.checks.push(slices::enforcement(libraries, driver, device));
    match DriverGpu::new(driver, device).and_then(|gpu| Ok((gpu, Device::start(driver, device)?))) {
        Ok((gpu, context)) => {
            let link = reported_link(libraries, device::uuid(driver, device).as_deref());
            examine_memory(findings, &gpu, &context, link, (wanted, quiet));
        }
        Err(error) => findings.checks.push(Check::fail(
            "mixed-mapping",
            format!("the GPU cannot be used: {error}"),
            "see whether another program holds it exclusively (nvidia-smi -q -d COMPUTE)",
        )),
    }
}

fn examine_memory(
    findings: &mut Findings,
    gpu: &DriverGpu<'_>,
    context: &Device<'_>,
    mut link: Link,
    (wanted, quiet): (Bytes, bool),
) {
    let simulated = findings.simulated;
    findings.checks.push(gpu::mixed_mapping(gpu, context));
    let pinning = gpu::pinning(gpu, wanted, simulated);
    let pinned = pinning.status == check::Status::Ok;
    findings.checks.push(pinning);
    findings.checks.push(host::locked_memory(pinned));
    let amount = if simulated { link::Amount::SIMULATED } else { link::Amount::REAL };
    let bar = progress::bytes(amount.all_bytes(), "measuring the link", quiet);
    let measured = link::measure(gpu, context, amount, &mut link, &|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    findings.checks.extend(link::judge(&link, &measured, simulated));
    findings.link = Some(link);
}

/// What NVML says of the link of the GPU with this UUID.
fn reported_link(libraries: &RealLibraries, uuid: Option<&str>) -> Link {
    let gpus = Machine::look(libraries).map(|machine| machine.gpus).unwrap_or_default();
    let known = gpus
        .into_iter()
        .find(|gpu| uuid.is_some() && gpu.uuid.as_deref() == uuid)
        .map(|gpu| gpu.link)
        .unwrap_or_default();
    Link {
        generation: known.generation,
        generation_max: known.generation_max,
        width: known.width,
        width_max: known.width_max,
        ..Link::default()
    }
}
