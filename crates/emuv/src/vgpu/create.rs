//! `emuv vgpu create`.

use std::path::PathBuf;

use clap::Args;
use emuv_policy::Bytes;
use emuv_state::{
    HostMemory, Limits, Setting,
    slices::{
        DEFAULT_WEIGHT, Entry, KernelModule, MAX_WEIGHT, MOST_GPUS, NewSlice, PROFILES_PATH, Profile, Registry,
        Schedule, SliceError, SliceGpu, SliceUser, models, valid_name,
    },
};

use super::{failed, have_limit_kept, own_registry, people, read_profiles, show, variable, write};
use crate::{
    cli::{Failure, complain},
    gpus::GpuFacts,
    libs,
    run::{self, gpu, sim},
};

/// Flags of `emuv vgpu create`.
#[derive(Debug, Args)]
pub struct Options {
    /// Its name; without --vram, that of a profile
    #[arg(required_unless_present = "all")]
    name: Option<String>,
    /// Share of VRAM, e.g. 6G; of several GPUs: on each of them
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    vram: Option<String>,
    /// Share of RAM for what does not fit in VRAM; of several GPUs: for all of them together [default: 0]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    ram: Option<String>,
    /// The GPU: its number as in nvidia-smi, or its UUID; several with commas: a slice of all of them [default: the one
    /// with the most VRAM left to promise]
    #[arg(long, value_name = "N|UUID,...", allow_hyphen_values = true)]
    gpu: Option<String>,
    /// A slice of a simulated GPU, e.g. --sim=vram=24G,gpus=8
    #[arg(long, value_name = "KEY=VALUE,...", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    sim: Option<String>,
    /// Weight for the GPU's time, 1 to 10000 [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_WEIGHT)))]
    weight: Option<u32>,
    /// The most of the GPU's time, in percent
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    cap: Option<u32>,
    /// When it may be used, e.g. '00:00-08:00,16:00-24:00 UTC+03:00'
    #[arg(long, value_name = "HH:MM-HH:MM,... ZONE")]
    schedule: Option<Schedule>,
    /// What it is labelled as, e.g. 4090
    #[arg(long, value_name = "MODEL")]
    gpu_model: Option<String>,
    /// Who may use it [default: you]
    #[arg(long, value_name = "NAME|UID")]
    user: Option<String>,
    /// Everybody in this group may use it too
    #[arg(long, value_name = "NAME|GID")]
    group: Option<String>,
    /// Its number [default: the lowest that is free]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    instance: Option<u32>,
    /// Promise VRAM or RAM that other slices are promised too: programs that want their shares at one time are then
    /// refused memory
    #[arg(long)]
    overcommit: bool,
    /// Every profile of the file that is no slice yet
    #[arg(long, conflicts_with_all = ["name", "vram", "ram", "instance", "schedule", "gpu_model", "weight", "cap"])]
    all: bool,
    /// The file of profiles
    #[arg(long, value_name = "FILE", default_value = PROFILES_PATH)]
    profiles: PathBuf,
}

/// Makes it, or them.
///
/// # Errors
/// What is wrong. With `--all`, slices before the one that is wrong are made.
pub fn run(options: &Options) -> Result<(), Failure> {
    let profiles = match (&options.name, &options.vram) {
        (Some(name), Some(_)) => vec![options.profile(name)?],
        (Some(name), None) => vec![options.over(options.profile_of_file(name)?)?],
        (None, _) => {
            read_profiles(&options.profiles)?.into_iter().map(|p| options.over(p)).collect::<Result<_, _>>()?
        }
    };
    let registry = own_registry()?;
    let mut places = Places::default();
    for profile in profiles {
        if options.all && registry.entry(&profile.name).is_ok() {
            continue;
        }
        let entry = create(&registry, &mut places, &profile, options)?;
        let slice = &entry.slice;
        if let Some(why) = have_limit_kept(slice) {
            complain(&why);
        }
        if !slice.takes_turns() && KernelModule::of_system().is_loaded() {
            complain(&format!("{}: files keep its account: the kernel module keeps those of one GPU", slice.name));
        }
        write(&format!(
            "{}: instance {} on {}, {} VRAM{}, {} RAM\n",
            slice.name,
            slice.instance,
            slice.gpus().map(|gpu| format!("{} ({})", gpu.name, gpu.uuid)).collect::<Vec<_>>().join(" and "),
            slice.vram,
            show::each(slice),
            slice.ram
        ))?;
    }
    Ok(())
}

impl Options {
    /// What the flags say.
    fn profile(&self, name: &str) -> Result<Profile, Failure> {
        self.over(Profile { name: name.to_owned(), ..Profile::default() })
    }

    fn profile_of_file(&self, name: &str) -> Result<Profile, Failure> {
        if !valid_name(name) {
            return Err(failed(SliceError::BadName(name.to_owned())));
        }
        if !self.profiles.exists() {
            return Err(Failure::bad_argument(format!(
                "--vram is missing, and there is no {} with a profile '{name}'",
                self.profiles.display()
            )));
        }
        let found = read_profiles(&self.profiles)?.into_iter().find(|profile| profile.name == name);
        found.ok_or_else(|| Failure::wrong(self.profiles.display(), format!("there is no [{name}]; or give --vram")))
    }

    /// A profile with the flags in the place of what it says.
    fn over(&self, mut profile: Profile) -> Result<Profile, Failure> {
        let size = |flag: &str, value: &Option<String>, other: Bytes| {
            let value = value.as_ref().map(|value| Setting::new(value, flag).bytes()).transpose();
            value.map(|value| value.unwrap_or(other)).map_err(Failure::bad_argument)
        };
        profile.vram = size("--vram", &self.vram, profile.vram)?;
        profile.ram = size("--ram", &self.ram, profile.ram)?;
        if profile.vram == Bytes::ZERO {
            return Err(Failure::wrong("--vram", "0 is no share"));
        }
        if let Some(label) = &self.gpu_model {
            let model = models::find(label).ok_or_else(|| {
                Failure::wrong("--gpu-model", format!("'{label}' is not known; known are {}", models::labels()))
            })?;
            if profile.vram > models::most_vram(model) {
                let words = format!("a {} has {}, less than {}", model.name, models::most_vram(model), profile.vram);
                return Err(Failure::wrong("--gpu-model", words));
            }
        }
        profile.gpu_model = self.gpu_model.clone().or(profile.gpu_model);
        profile.gpu = self.gpu.clone().or(profile.gpu);
        profile.sim = self.sim.clone().or(profile.sim);
        profile.weight = self.weight.or(profile.weight);
        profile.cap_percent = self.cap.or(profile.cap_percent);
        profile.schedule = self.schedule.clone().or(profile.schedule);
        profile.user = self.user.clone().or(profile.user);
        profile.group = self.group.clone().or(profile.group);
        profile.overcommit |= self.overcommit;
        Ok(profile)
    }
}

/// The GPUs there are; looked at once.
#[derive(Default)]
struct Places {
    known: Option<(Option<String>, Vec<GpuFacts>)>,
}

impl Places {
    fn gpus(&mut self, sim: Option<&str>) -> Result<&[GpuFacts], Failure> {
        if let Some((before, _)) = &self.known
            && before.as_deref() != sim
        {
            // The simulator's library is loaded once, with one machine.
            return Err(Failure::wrong("sim", "the profiles of one call must be of the same machine"));
        }
        if self.known.is_none() {
            let shim = libs::shim_path().map_err(|error| Failure::new(1, format!("{error:#}")))?;
            let (machine, _) = run::machine(sim, &shim)?;
            self.known = Some((sim.map(str::to_owned), machine.gpus));
        }
        Ok(self.known.as_ref().map_or(&[], |(_, gpus)| gpus))
    }
}

fn create(registry: &Registry, places: &mut Places, profile: &Profile, options: &Options) -> Result<Entry, Failure> {
    let sim = profile.sim.as_deref().map(sim::checked).transpose().map_err(|why| Failure::wrong("--sim", why))?;
    let gpus = places.gpus(sim.as_deref())?;
    let chosen: Vec<&GpuFacts> = match &profile.gpu {
        Some(wanted) => {
            let uuids = gpu::choose_all(wanted, gpus).map_err(|why| Failure::wrong("--gpu", why))?;
            if uuids.len() > MOST_GPUS {
                return Err(Failure::wrong("--gpu", format!("a slice is of {MOST_GPUS} GPUs at most")));
            }
            let of = |uuid: &String| gpus.iter().find(|gpu| gpu.uuid.as_ref() == Some(uuid));
            uuids.iter().filter_map(of).collect()
        }
        None => gpus.iter().max_by_key(|gpu| (left(registry, gpu), std::cmp::Reverse(gpu.index))).into_iter().collect(),
    };
    let of_slice = chosen.into_iter().map(slice_gpu).collect::<Option<Vec<_>>>();
    let mut of_slice = of_slice.into_iter().flatten();
    let untold = || Failure::new(1, "the GPU does not tell its UUID and its VRAM");
    let gpu = of_slice.next().ok_or_else(untold)?;
    let more_gpus: Vec<_> = of_slice.collect();
    if let Some(model) = profile.gpu_model.as_deref().and_then(models::find)
        && let Some(other) = std::iter::once(&gpu).chain(&more_gpus).find(|gpu| gpu.name != model.name)
    {
        complain(&format!("{}: labelled {}, though the GPU is {}", profile.name, model.name, other.name));
    }
    check_ram(registry, &profile.name, profile.ram, profile.overcommit)?;
    let person = |flag: &str, text: &Option<String>, find: fn(&str) -> Result<u32, String>| {
        text.as_deref().map(find).transpose().map_err(|why| Failure::wrong(flag, why))
    };
    let uid = person("--user", &profile.user, people::uid)?;
    let new = NewSlice {
        name: profile.name.clone(),
        instance: options.instance.unwrap_or(0),
        id: random()?,
        gpu,
        more_gpus,
        sim,
        vram: profile.vram,
        ram: profile.ram,
        weight: profile.weight.unwrap_or(DEFAULT_WEIGHT),
        cap_percent: profile.cap_percent,
        schedule: profile.schedule.clone(),
        gpu_model: profile.gpu_model.clone(),
        user: SliceUser {
            uid: uid.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
            gid: person("--group", &profile.group, people::gid)?,
        },
        overcommit: profile.overcommit,
        enabled: true,
        by_module: false,
    };
    registry.create(new).map_err(failed)
}

fn slice_gpu(gpu: &GpuFacts) -> Option<SliceGpu> {
    Some(SliceGpu { uuid: gpu.uuid.clone()?, name: gpu.name.clone().unwrap_or_default(), vram: gpu.vram_total? })
}

/// VRAM of a GPU that no slice is promised.
fn left(registry: &Registry, gpu: &GpuFacts) -> Bytes {
    let same = |entry: &&Entry| gpu.uuid.as_ref().is_some_and(|uuid| entry.slice.is_of(uuid));
    let promised: Bytes = registry.entries().0.iter().filter(same).map(|entry| entry.slice.vram).sum();
    gpu.vram_total.unwrap_or_default().saturating_sub(promised)
}

/// Whether the host has the RAM that the slices are promised, and keeps its floor.
///
/// # Errors
/// It has not.
pub fn check_ram(registry: &Registry, name: &str, ram: Bytes, overcommit: bool) -> Result<(), Failure> {
    let host = HostMemory::read().ok_or_else(|| Failure::new(1, "cannot read /proc/meminfo"))?;
    let floor = variable(emuv_state::env::RAM_FLOOR).map(|value| Setting::new(value, emuv_state::env::RAM_FLOOR));
    let own = Setting::new(ram.0.to_string(), "--ram");
    let limits = Limits::resolve(None, Some(&own), floor.as_ref(), &host).map_err(Failure::bad_argument)?;
    let others = registry.entries().0;
    let given: Bytes = others.iter().filter(|other| other.slice.name != name).map(|other| other.slice.ram).sum();
    let has = host.total.saturating_sub(limits.ram_floor);
    if ram > Bytes::ZERO && given.saturating_add(ram) > has && !overcommit {
        return Err(Failure::wrong(
            "--ram",
            format!(
                "this host has {has} to give, of which slices have {given}: {ram} more is not there (--overcommit)"
            ),
        ));
    }
    Ok(())
}

fn random() -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Failure::new(1, format!("no random number: {error}")))?;
    Ok(u64::from_ne_bytes(bytes))
}
