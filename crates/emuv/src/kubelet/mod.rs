//! `emuv kubelet`: slices for pods. A Kubernetes device plugin that offers the slices of this node, and gives each
//! container its slice by its CDI name; with `--dra` a driver of Dynamic Resource Allocation in its place ([`dra`]).
//!
//! Slices are made by the administrator (`emuv vgpu`); here they are only offered. One look a second reads the registry,
//! brings the specification up to date, and tells the kubelet what has changed.

mod dra;
mod offer;

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    pin::Pin,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{Args, ValueEnum};
use emuv_kubelet::Place;
use rustix::fs::{FlockOperation, flock};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cdi,
    cli::{Failure, complain},
    vgpu::REFUSED,
};
use offer::Slices;

/// Flags of `emuv kubelet`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    /// The kubelet's folder of device plugins
    #[arg(long, value_name = "DIR", default_value = emuv_kubelet::PLUGINS_DIR)]
    plugins_dir: PathBuf,
    /// Where the specification of the devices is written, for the container engine
    #[arg(long, value_name = "DIR", default_value = cdi::SPEC_DIR)]
    cdi_dir: PathBuf,
    /// Which resources the slices are: one (emuv.dev/vgpu, for slices that are alike), or by-share (one for each size,
    /// such as emuv.dev/vgpu-6g-2g: 6 GiB of VRAM, 2 GiB of RAM)
    #[arg(long, value_name = "HOW", default_value = "one")]
    resources: Resources,
    /// Seconds from one look at slices and kubelet to the next
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,
    #[command(flatten)]
    dra: dra::DraOptions,
    #[command(flatten)]
    content: cdi::Content,
}

const AFTER_HELP: &str = "\
Runs until it is told to end; docs/kubernetes.md has the manifests. A pod asks for a slice by
  resources: { limits: { emuv.dev/vgpu: 1 } }
Kubernetes 1.29 or newer, and a container engine with CDI on (containerd 2, CRI-O; containerd 1.7: enable_cdi).
With --dra (Kubernetes 1.34 or newer) the scheduler chooses slices by their VRAM, RAM and compute, and pods ask for them by claims.
Exit code: 0 after SIGTERM or SIGINT; 1 it cannot work here; 2 bad argument.";

/// What the slices are to pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Resources {
    /// All of them are of one resource.
    One,
    /// Those of a size are.
    ByShare,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.01..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "a number of seconds from 0.01 to 3600".to_owned())
}

/// Does it, until a signal says to end.
///
/// # Errors
/// It cannot work here.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    if options.dra.dra {
        return dra::run(options);
    }
    if !options.plugins_dir.is_dir() {
        let words = format!("{} is not there: is this a node of Kubernetes?", options.plugins_dir.display());
        return Err(Failure::wrong("--plugins-dir", words));
    }
    let store = options.content.store()?;
    let lock = lock(&options.cdi_dir)?;
    let slices = Slices::new(store, &options.cdi_dir, options.resources);
    let place = Place { folder: options.plugins_dir.clone(), interval: options.interval };
    until_signal(async |stop| {
        emuv_kubelet::keep(&place, Arc::new(slices), complain, stop).await;
        Ok(())
    })?;
    drop(lock);
    Ok(ExitCode::SUCCESS)
}

/// Runs something that ends when `stop` does: with SIGTERM or SIGINT.
fn until_signal(
    work: impl AsyncFnOnce(Pin<Box<dyn Future<Output = ()>>>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Failure::new(REFUSED, format!("cannot start: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    let result = runtime.block_on(async {
        let (mut term, mut int) =
            (signal(SignalKind::terminate()).map_err(cannot)?, signal(SignalKind::interrupt()).map_err(cannot)?);
        let stop = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        work(Box::pin(stop)).await
    });
    // What still waits for an answer is not waited for.
    runtime.shutdown_background();
    result
}

/// Keeps a second one away: each would take the other's sockets for removed. The kubelet clears its own folder, so the
/// lock is not there.
fn lock(folder: &Path) -> Result<File, Failure> {
    let path = folder.join(".emuv-kubelet.lock");
    let open = || {
        fs::create_dir_all(folder)?;
        OpenOptions::new().create(true).append(true).open(&path)
    };
    let file = open().map_err(|error| Failure::wrong("--cdi-dir", format!("{}: {error}", path.display())))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| Failure::new(REFUSED, format!("another emuv kubelet runs here (it holds {})", path.display())))?;
    Ok(file)
}
