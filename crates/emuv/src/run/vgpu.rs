//! `emuv run --vgpu`: what follows from the slice in the place of what flags and variables say.

use std::{env, path::PathBuf};

use emuv_state::{
    HostMemory, Limits, Setting,
    config::Settings,
    env as variables, slices,
    slices::{Entry, Registry},
};

use crate::{
    cli::{Failure, complain},
    vgpu::{REFUSED, enforce::Groups, failed, outside_hours},
};

/// The slice of that name, if programs may be started in it now, by this user.
///
/// # Errors
/// Why not.
pub fn enter(name: &str) -> Result<Entry, Failure> {
    let entry = Registry::find(|name| env::var(name).ok(), name).map_err(failed)?;
    // Only to see whether it can be opened: the program opens its own.
    drop(slices::open(&entry).map_err(failed)?);
    if let Some(why) = outside_hours(&entry.slice) {
        return Err(Failure::new(REFUSED, why));
    }
    for variable in [variables::VRAM, variables::RAM, variables::GPU] {
        if env::var_os(variable).is_some_and(|value| !value.is_empty()) {
            complain(&format!("{variable} does not count in a slice: '{name}' has its own"));
        }
    }
    match Groups::of_system().map(|groups| groups.enter(name)) {
        Some(Err(error)) if entry.slice.sim.is_none() => {
            complain(&format!(
                "'{name}' has a control group that cannot be entered ({error}): emuV alone keeps its limits"
            ));
        }
        _ => {}
    }
    Ok(entry)
}

/// The simulated machine's settings: the slice's own.
///
/// # Errors
/// Others are asked for.
pub fn sim(entry: Option<&Entry>, settings: &Settings) -> Result<Option<Setting>, Failure> {
    let Some(entry) = entry else { return Ok(settings.sim.clone()) };
    let own = entry.slice.sim.as_ref().map(|sim| Setting::new(sim, "--vgpu"));
    match &settings.sim {
        Some(asked) if own.as_ref().is_none_or(|own| own.value != asked.value) => {
            let of = if own.is_some() { "of another simulated machine" } else { "of a real GPU" };
            Err(Failure::wrong(&asked.source, format!("'{}' is a slice {of}", entry.slice.name)))
        }
        _ => Ok(own),
    }
}

/// The slice's shares; what the host keeps is not the slice's to say.
///
/// # Errors
/// One line that starts with the setting's source.
pub fn limits(entry: &Entry, settings: &Settings, host: &HostMemory) -> Result<Limits, String> {
    let floor = settings.ram_floor.as_ref().map(Setting::bytes).transpose()?;
    Ok(Limits {
        vram: Some(entry.slice.vram),
        ram: entry.slice.ram,
        ram_floor: floor.unwrap_or_else(|| Limits::default_floor(host)),
    })
}

/// The slice's GPUs, or the one that is asked for.
pub fn gpu(entry: Option<&Entry>, settings: &Settings) -> Option<Setting> {
    entry.map_or_else(|| settings.gpu.clone(), |entry| Some(Setting::new(entry.slice.uuids(), "--vgpu")))
}

/// What to say when [`gpu`] is not there: `why` lists what is.
pub fn gpu_is_gone(entry: &Entry, why: &str) -> String {
    let name = &entry.slice.name;
    let gpus: Vec<_> = entry.slice.gpus().map(|gpu| gpu.name.as_str()).collect();
    let gpus = gpus.join(" and ");
    format!("slice '{name}' is a share of {gpus}, and {why}; if it will not come back: emuv vgpu delete {name}")
}

/// Where the run's directory is made. Who may use a slice need not be able to write where slices are kept.
///
/// # Errors
/// One line.
pub fn state_dir(entry: Option<&Entry>) -> Result<PathBuf, String> {
    let chosen = emuv_state::state_dir(|name| env::var(name).ok());
    if entry.is_none() || chosen.is_ok() {
        return chosen;
    }
    emuv_state::state_dir(|name| env::var(name).ok().filter(|_| name != variables::STATE_DIR))
}
