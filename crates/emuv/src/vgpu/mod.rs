//! `emuv vgpu`: slices of a GPU, made, changed and shown.

mod create;
pub mod enforce;
mod people;
mod show;

use std::{
    env, fs,
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Args, Subcommand};
use emuv_policy::Bytes;
use emuv_state::{
    Setting,
    slices::{self, PROFILES_PATH, Registry, Slice, SliceError},
};

use crate::{
    cli::{self, Failure, complain},
    libs::{self, RealLibraries},
};
use enforce::Groups;

/// Something in the registry is not as it would have to be; nothing was changed.
pub const REFUSED: u8 = 1;

/// Flags of `emuv vgpu`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

const AFTER_HELP: &str = "\
Examples:
  emuv vgpu create ml-1 --vram 6G --ram 2G      a slice of the GPU: 6 GiB of VRAM, 2 GiB of RAM
  emuv vgpu create pair --gpu 0,1 --vram 6G     one slice of two GPUs: 6 GiB of each
  emuv vgpu create --all                        every profile of /etc/emuv/vgpu-profiles.conf
  emuv run --vgpu ml-1 -- python train.py       a program in it; all that run in it share its quota
  emuv vgpu resize ml-1 --vram 4G               while programs run: what is too much goes to RAM
  emuv vgpu list                                what there is

Slices are kept in EMUV_STATE_DIR, else in /run/emuv (root) or your own runtime directory.
Quotas hold for programs that let emuV be loaded: that is cooperation, not a security boundary.
'emuv doctor' says what else enforces them.
Exit code: 0; 1 refused, nothing changed; 2 bad argument or file.";

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a slice, or those of the profile file
    Create(create::Options),
    /// Show all slices in a table
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one slice and who is in it
    Show {
        /// The slice
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Change a slice's shares; programs in it follow at once
    Resize(Resize),
    /// Remove slices
    Delete {
        /// The slices
        #[arg(required = true)]
        names: Vec<String>,
        /// Also those in use: programs in them keep what they have and get no more
        #[arg(long)]
        force: bool,
    },
    /// Let programs into slices
    Enable {
        /// The slices
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Let no more programs in, and give those that are there no more memory
    Disable {
        /// The slices
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Check a file of profiles
    Check {
        /// The file
        #[arg(default_value = PROFILES_PATH)]
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Resize {
    /// The slice
    name: String,
    /// Share of VRAM from now on, on each of its GPUs
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    vram: Option<String>,
    /// Share of RAM from now on
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    ram: Option<String>,
    /// Weight for the GPU's time, 1 to 10000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(slices::MAX_WEIGHT)))]
    weight: Option<u32>,
    /// The most of the GPU's time, in percent
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    cap: Option<u32>,
    /// Promise VRAM or RAM that other slices are promised too
    #[arg(long)]
    overcommit: bool,
}

/// Does it.
///
/// # Errors
/// What is wrong, and nothing has changed; of several slices, those named before are done.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    match &options.action {
        Action::Create(options) => create::run(options)?,
        Action::List { json } => show::list(*json)?,
        Action::Show { name, json } => show::one(name, *json)?,
        Action::Resize(resize) => resize.run()?,
        Action::Delete { names, force } => {
            let registry = own_registry()?;
            for name in names {
                registry.delete(name, *force).map_err(failed)?;
                if let Some(groups) = own_groups() {
                    groups.forget(name);
                }
            }
        }
        Action::Enable { names } => change(names, |slice| slice.enabled = true)?,
        Action::Disable { names } => change(names, |slice| slice.enabled = false)?,
        Action::Check { file } => check(file)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Resize {
    fn run(&self) -> Result<(), Failure> {
        let size = |flag: &str, value: &Option<String>| {
            value.as_ref().map(|value| Setting::new(value, flag).bytes()).transpose().map_err(Failure::bad_argument)
        };
        let shares = Shares {
            vram: size("--vram", &self.vram)?,
            ram: size("--ram", &self.ram)?,
            weight: self.weight,
            cap_percent: self.cap,
            overcommit: self.overcommit,
        };
        resize(&own_registry()?, &self.name, &shares)?.iter().for_each(|note| complain(note));
        Ok(())
    }
}

/// What is to change of a slice; `None` stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Shares {
    pub vram: Option<Bytes>,
    pub ram: Option<Bytes>,
    pub weight: Option<u32>,
    pub cap_percent: Option<u32>,
    pub overcommit: bool,
}

/// Changes a slice's shares. Gives what there is to say about it, a line each.
///
/// # Errors
/// What is wrong, and nothing has changed.
pub fn resize(registry: &Registry, name: &str, shares: &Shares) -> Result<Vec<String>, Failure> {
    if *shares == (Shares { overcommit: shares.overcommit, ..Shares::default() }) {
        return Err(Failure::bad_argument("nothing to change; give --vram, --ram, --weight or --cap"));
    }
    if shares.vram == Some(Bytes::ZERO) {
        return Err(Failure::wrong("--vram", "0 is no share; 'emuv vgpu disable' lets no program in"));
    }
    // What the command line has checked already, others have not; a definition with such a number could not be read.
    if let Some(weight) = shares.weight.filter(|weight| !(1..=slices::MAX_WEIGHT).contains(weight)) {
        return Err(Failure::wrong("--weight", format!("{weight} is no weight from 1 to {}", slices::MAX_WEIGHT)));
    }
    if let Some(cap) = shares.cap_percent.filter(|cap| !(1..=100).contains(cap)) {
        return Err(Failure::wrong("--cap", format!("{cap} is no percentage from 1 to 100")));
    }
    if let Some(ram) = shares.ram {
        create::check_ram(registry, name, ram, shares.overcommit)?;
    }
    let entry = registry
        .change(name, |slice| {
            slice.vram = shares.vram.unwrap_or(slice.vram);
            slice.ram = shares.ram.unwrap_or(slice.ram);
            slice.weight = shares.weight.unwrap_or(slice.weight);
            slice.cap_percent = shares.cap_percent.or(slice.cap_percent);
            slice.overcommit |= shares.overcommit;
        })
        .map_err(failed)?;
    let mut notes = show::beyond(registry, &entry);
    notes.extend(have_limit_kept(&entry.slice));
    Ok(notes)
}

fn change(names: &[String], change: impl Fn(&mut Slice)) -> Result<(), Failure> {
    let registry = own_registry()?;
    names.iter().try_for_each(|name| registry.change(name, &change).map(|_| ())).map_err(failed)
}

/// Says whether a file of profiles is sound, and what it describes.
fn check(path: &PathBuf) -> Result<(), Failure> {
    let profiles = read_profiles(path)?;
    let mut text = String::new();
    for profile in &profiles {
        let model = profile.gpu_model.as_deref().and_then(slices::models::find).map_or("any GPU", |model| model.name);
        text.push_str(&format!("{}: {} VRAM, {} RAM, {model}\n", profile.name, profile.vram, profile.ram));
    }
    text.push_str(&format!("{}: {} profiles, no mistakes\n", path.display(), profiles.len()));
    write(&text)
}

/// The profiles of a file; each mistake is said, the first one again as the failure.
fn read_profiles(path: &PathBuf) -> Result<Vec<slices::Profile>, Failure> {
    let text = fs::read_to_string(path).map_err(|error| Failure::wrong(path.display(), error))?;
    slices::parse_profiles(path, &text).map_err(|mistakes| {
        let (last, others) = mistakes.split_last().map_or((String::new(), &[][..]), |(l, o)| (l.clone(), o));
        others.iter().for_each(|mistake| complain(mistake));
        Failure::bad_argument(last)
    })
}

/// The control groups, for whoever may make some.
fn own_groups() -> Option<Groups> {
    rustix::process::geteuid().is_root().then(Groups::of_system)?
}

/// Has the system keep the slice's limit as well, where it can. Gives why not, where it could.
fn have_limit_kept(slice: &Slice) -> Option<String> {
    let groups = own_groups().filter(|_| slice.sim.is_none())?;
    let real = RealLibraries::find(libs::shim_path().ok().as_deref()).ok()?;
    let kept = groups.keeper(&real, &slice.gpu.uuid).map(|keeper| match slice.gpu_count() {
        1 => groups.limit(&keeper, &real, slice),
        count => Err(format!("it is a slice of {count} GPUs, and control groups are made for one")),
    });
    let why = kept?.err()?;
    Some(format!("{}: its limit holds for programs that load emuV only: {why}", slice.name))
}

/// The registry that this user changes.
pub fn own_registry() -> Result<Registry, Failure> {
    Registry::for_changes(variable).map_err(failed)
}

/// As a failure of this command.
#[allow(clippy::needless_pass_by_value)] // The form that map_err asks for.
pub fn failed(error: SliceError) -> Failure {
    match error {
        SliceError::NotForSeveral { key, why } => Failure::wrong(format!("--{key}"), why),
        SliceError::BadName(_) | SliceError::StateDir(_) => Failure::bad_argument(error.to_string()),
        _ => Failure::new(REFUSED, error.to_string()),
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok()
}

/// Why no program may be started in a slice at this hour.
pub fn outside_hours(slice: &Slice) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let schedule = slice.schedule.as_ref().filter(|schedule| !schedule.is_open_at(now))?;
    Some(format!("'{}' may be used at {schedule} only", slice.name))
}

/// Prints what was asked for.
pub fn write(text: &str) -> Result<(), Failure> {
    cli::print(text).map_err(|error| Failure::new(REFUSED, format!("cannot write: {error}")))
}
