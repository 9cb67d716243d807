//! `emuv cdi`: slices as devices for container engines (CDI, the Container Device Interface), so that
//! `--device emuv.dev/vgpu=ml-1` puts a container into the slice ml-1.
//!
//! A specification is a file that engines read when they make a container. It says what a container gets with a device:
//! here emuV's library, preloaded into all of its programs, the slice's own folder, and the GPU itself. What the GPU
//! takes (device nodes, the driver's libraries) is known to NVIDIA's container toolkit, not to us: see [`nvidia`].

pub mod nvidia;
pub mod spec;
mod store;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use emuv_state::slices::{Entry, Registry};
use serde_json::{Value, json};

use crate::{
    cli::{self, Failure, complain},
    libs,
    vgpu::{self, REFUSED, failed},
};
use nvidia::{Nvidia, Way};
pub use store::{Store, replace};

const SCHEMA: u32 = 1;

/// Where engines look for specifications that do not outlive the machine's next start. Slices do not either.
pub const SPEC_DIR: &str = "/var/run/cdi";

/// Flags of `emuv cdi`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

const AFTER_HELP: &str = "\
Examples:
  emuv cdi generate                                      after each 'emuv vgpu create' or 'delete'
  docker run --device emuv.dev/vgpu=ml-1 IMAGE ...       a container in the slice ml-1
  emuv cdi generate --output - --nvidia by-name          see it first
  emuv cdi list                                          the devices' names

With nvidia-ctk (NVIDIA's container toolkit) on the PATH, the GPU comes with the slice. Without, give it as well:
  docker run --device nvidia.com/gpu=GPU-... --device emuv.dev/vgpu=ml-1 IMAGE ...
Exit code: 0; 1 refused, nothing changed; 2 bad argument.";

#[derive(Debug, Subcommand)]
enum Action {
    /// Write the specification of all slices
    Generate(Generate),
    /// Show the slices' names as devices
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Folder of the specification
        #[arg(long, value_name = "DIR", default_value = SPEC_DIR)]
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Generate {
    /// The file, or - for standard output
    #[arg(long, value_name = "FILE", default_value_os_t = Path::new(SPEC_DIR).join(spec::FILE_NAME))]
    output: PathBuf,
    #[command(flatten)]
    content: Content,
}

/// What a specification says besides the slices.
#[derive(Debug, Clone, Args)]
pub struct Content {
    /// How containers get the GPU: auto (by-name without nvidia-ctk), by-name (the user adds --device nvidia.com/gpu=...),
    /// or NVIDIA's own specification with UUIDs as names, a FILE of JSON
    #[arg(long, value_name = "WAY", default_value = "auto")]
    nvidia: Way,
    /// Ask PyTorch, JAX and TensorFlow to allocate tensor by tensor, as 'emuv run' does. It takes the place of what the image
    /// or the user says in the same variables
    #[arg(long)]
    framework_hints: bool,
}

impl Content {
    /// The specification's sources, found.
    ///
    /// # Errors
    /// emuV's library, or NVIDIA's specification, is not to be had.
    pub fn store(&self) -> Result<Store, Failure> {
        let shim = libs::shim_path().map_err(|error| Failure::new(REFUSED, format!("{error:#}")))?;
        let nvidia = Nvidia::find(&self.nvidia).map_err(|why| Failure::wrong("--nvidia", why))?;
        Ok(Store { shim, simgpu: libs::simgpu_path().ok(), nvidia, hints: self.framework_hints })
    }
}

/// Does it.
///
/// # Errors
/// What is wrong, and nothing has changed.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    match &options.action {
        Action::Generate(generate) => generate.run()?,
        Action::List { json, dir } => list(dir, *json)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The registry whose slices become devices: the first that counts for this user.
///
/// # Errors
/// There is none.
pub fn registry() -> Result<Registry, Failure> {
    let found = Registry::for_use(|name| env::var(name).ok()).into_iter().next();
    found.ok_or_else(no_slices)
}

fn no_slices() -> Failure {
    Failure::new(REFUSED, "there are no slices here; 'emuv vgpu create' makes one")
}

/// The slices that can be devices, by number; what cannot be read or named is said.
fn entries(registry: &Registry) -> Vec<Entry> {
    let (entries, problems) = registry.entries();
    problems.iter().for_each(|problem| complain(&problem.to_string()));
    let (fit, unfit): (Vec<_>, _) = entries.into_iter().partition(|entry| spec::valid_device(&entry.slice.name));
    unfit.iter().for_each(|entry| complain(&spec::not_valid(&entry.slice.name)));
    fit
}

impl Generate {
    fn run(&self) -> Result<(), Failure> {
        let store = self.content.store()?;
        let registry = registry()?;
        let entries = entries(&registry);
        if entries.is_empty() {
            return Err(no_slices());
        }
        let made = store.make(&registry, &entries).map_err(|why| Failure::new(REFUSED, why))?;
        if let [(name, why), ..] = &made.left_out[..] {
            return Err(Failure::new(REFUSED, format!("{name}: {why}")));
        }
        if self.output == Path::new("-") {
            vgpu::write(&made.text)?;
        } else {
            if self.output.extension().is_none_or(|extension| extension != "json") {
                return Err(Failure::wrong("--output", "engines read files whose names end with .json only"));
            }
            replace(&self.output, made.text.as_bytes())
                .map_err(|error| Failure::wrong("--output", format!("{}: {error}", self.output.display())))?;
        }
        let real: Vec<_> = entries.iter().map(|entry| &entry.slice).filter(|slice| slice.sim.is_none()).collect();
        if let (Nvidia::ByName, Some(slice)) = (&store.nvidia, real.first()) {
            complain(&format!(
                "containers need the GPU as a device of its own:{} --device {}",
                slice.gpus().map(|gpu| format!(" --device nvidia.com/gpu={}", gpu.uuid)).collect::<String>(),
                spec::qualified(&slice.name)
            ));
        }
        Ok(())
    }
}

/// The names of the devices that a specification has.
fn devices_in(path: &Path) -> Vec<String> {
    let spec: Value = fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let names = spec["devices"].as_array().into_iter().flatten().filter_map(|device| device["name"].as_str());
    names.map(str::to_owned).collect()
}

fn list(dir: &Path, as_json: bool) -> Result<(), Failure> {
    let registries = Registry::for_use(|name| env::var(name).ok());
    let entries = registries.first().map(entries).unwrap_or_default();
    let path = dir.join(spec::FILE_NAME);
    let written = devices_in(&path);
    let text = if as_json {
        let device = |entry: &Entry| {
            let slice = &entry.slice;
            json!({
                "device": spec::qualified(&slice.name),
                "gpu_uuid": slice.gpu.uuid,
                "gpu_uuids": slice.gpus().map(|gpu| &gpu.uuid).collect::<Vec<_>>(),
                "vram_bytes": slice.vram.0,
                "ram_bytes": slice.ram.0,
                "generated": written.contains(&slice.name),
            })
        };
        let devices: Vec<_> = entries.iter().map(device).collect();
        format!("{:#}\n", json!({ "schema": SCHEMA, "specification": path, "devices": devices }))
    } else {
        let line = |entry: &Entry| {
            let slice = &entry.slice;
            let name = spec::qualified(&slice.name);
            let missing = if written.contains(&slice.name) { "" } else { "  (not generated yet: emuv cdi generate)" };
            format!("{name}  {} VRAM, {} RAM of {}{missing}\n", slice.vram, slice.ram, slice.uuids())
        };
        entries.iter().map(line).collect()
    };
    for name in written.iter().filter(|name| entries.iter().all(|entry| entry.slice.name != **name)) {
        complain(&format!(
            "{}: there is no slice '{name}' any more; 'emuv cdi generate' leaves it out",
            path.display()
        ));
    }
    cli::print(&text).map_err(|error| failed(emuv_state::slices::SliceError::System("standard output".into(), error)))
}
