//! How this library came into the process, and what follows: decided once, at the first call that concerns the driver.
//!
//! ```text
//! secure execution (setuid), no slice           aside
//! beside the library lies a slice's name        told: the slice says everything (containers, emuv run --vgpu)
//! EMUV_RUN_DIR, and this is that run's library  told: emuv run says everything, by variables
//! EMUV_RUN_DIR, and it is another run's         aside: that one serves, and twice would be wrong
//! otherwise                                     alone: preloaded into all programs (emuv install --system) or by hand;
//!                                               the configuration file says what variables do not, and which programs
//! ```
//!
//! *Aside* means that the program meets the driver: calls go on untouched, and look-ups give the driver's own functions.

use std::{
    ffi::OsString,
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use emuv_state::{HostMemory, RunDir, config::ConfigFile, env};

use crate::{log, real, slice};

enum Standing {
    Told,
    Alone(Box<ConfigFile>),
    Aside,
}

fn standing() -> &'static Standing {
    static STANDING: OnceLock<Standing> = OnceLock::new();
    STANDING.get_or_init(|| {
        catch_unwind(decide).unwrap_or(Err("internal error".to_owned())).unwrap_or_else(|error| {
            log::line(format_args!("{error}; the program runs without emuV"));
            Standing::Aside
        })
    })
}

fn decide() -> Result<Standing, String> {
    if slice::is_beside_the_library() {
        return Ok(Standing::Told);
    }
    if real::is_secure() {
        return Ok(Standing::Aside);
    }
    if let Some(run_dir) = std::env::var_os(env::RUN_DIR).filter(|value| !value.is_empty()) {
        return Ok(if is_another_runs(Path::new(&run_dir)) { Standing::Aside } else { Standing::Told });
    }
    let executable = fs::read_link("/proc/self/exe").unwrap_or_default();
    let file = ConfigFile::read(|name| std::env::var(name).ok());
    // What is left alone by default is so whatever is wrong with the file.
    let system = file.as_ref().map(ConfigFile::system).cloned().unwrap_or_default();
    if system.leaves_alone(&executable).is_some() {
        return Ok(Standing::Aside);
    }
    file.map(|file| Standing::Alone(Box::new(file)))
}

/// Whether the run has a library, and it is not this one.
fn is_another_runs(run_dir: &Path) -> bool {
    let theirs = run_dir.join("lib/libcuda.so.1").canonicalize().ok();
    let ours = real::own_path().and_then(|path| path.canonicalize().ok());
    theirs.is_some() && theirs != ours
}

/// Whether emuV has no part in this process.
pub(crate) fn stands_aside() -> bool {
    matches!(standing(), Standing::Aside)
}

/// Whether nobody started this program with emuV.
pub(crate) fn is_a_run_of_its_own() -> bool {
    matches!(standing(), Standing::Alone(_))
}

/// A setting: the variable of that name, or what the configuration file says in its place. Nothing that the caller of a
/// setuid program has set counts.
pub(crate) fn variable(name: &str) -> Option<String> {
    let set = variable_os(name).and_then(|value| value.into_string().ok());
    match standing() {
        Standing::Alone(file) => set.filter(|value| !value.is_empty()).or_else(|| file.variable(name)),
        _ => set,
    }
}

/// The variable of that name, for what no file says.
pub(crate) fn variable_os(name: &str) -> Option<OsString> {
    if real::is_secure() { None } else { std::env::var_os(name) }
}

/// The host's memory when it was first asked for: a default that depends on it is the same whoever asks.
pub(crate) fn host() -> Option<HostMemory> {
    static HOST: OnceLock<Option<HostMemory>> = OnceLock::new();
    *HOST.get_or_init(HostMemory::read)
}

/// Where this process's live counters go: its run's directory. A program that nobody started with emuV is a run of its
/// own, whose directory goes when it exits; if it is killed, with the next run.
pub(crate) fn run_dir() -> Option<PathBuf> {
    static OWN: OnceLock<Option<RunDir>> = OnceLock::new();
    if !is_a_run_of_its_own() {
        return variable_os(env::RUN_DIR).map(PathBuf::from);
    }
    let own = OWN.get_or_init(|| {
        let made = emuv_state::state_dir(variable).and_then(|dir| RunDir::create(&dir).map_err(|e| e.to_string()));
        made.map_err(|why| log::debug(format_args!("no live counters for others: {why}"))).ok()
    });
    own.as_ref().map(|dir| dir.path().to_owned())
}

/// The directories whose counters a view of the whole card adds up.
pub(crate) fn run_dirs() -> Vec<PathBuf> {
    if !is_a_run_of_its_own() {
        return run_dir().into_iter().collect();
    }
    let state_dir = emuv_state::state_dir(variable).ok();
    state_dir.and_then(|dir| emuv_state::run_paths(&dir).ok()).unwrap_or_default()
}

/// The process exits: a directory of its own goes.
pub(crate) fn exiting() {
    if is_a_run_of_its_own()
        && let Some(path) = run_dir()
    {
        let _ = fs::remove_dir_all(path);
    }
}
