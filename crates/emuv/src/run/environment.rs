//! The environment that a program gets from emuV.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use emuv_state::{Limits, Movement, Setting, env};

use super::hints;
use crate::libs::RealLibraries;

/// The folder of a run's directory that stands first in the program's library path.
pub const LIB: &str = "lib";

/// Every name that programs load the two libraries by.
pub const LIBRARY_NAMES: [&str; 4] = ["libcuda.so", "libcuda.so.1", "libnvidia-ml.so", "libnvidia-ml.so.1"];

/// What the environment follows from.
#[derive(Debug)]
pub struct Plan<'p> {
    /// This run's directory.
    pub run_dir: &'p Path,
    /// What is behind emuV.
    pub real: &'p RealLibraries,
    /// What the program may use.
    pub limits: Limits,
    /// The slice of a GPU that it runs in.
    pub slice: Option<&'p str>,
    /// No notice when memory spills.
    pub quiet: bool,
    /// What to log, where something is said about it.
    pub log: Option<&'p Setting>,
    /// The simulated GPU's settings, under `--sim`.
    pub sim: Option<&'p str>,
    /// UUID of the only GPU that the program may see.
    pub gpu: Option<&'p str>,
    /// Whether frameworks are asked to allocate tensor by tensor.
    pub hints: bool,
    /// What moves between the tiers.
    pub policy: Movement,
    /// Only while the GPU has nothing to do.
    pub safe: bool,
    /// Where to record what moves.
    pub trace: Option<&'p Path>,
    /// Each piece of work is checked.
    pub verify: bool,
    /// What devices hold and move is kept over time, for a report.
    pub timeline: bool,
    /// So is where in the program memory is allocated.
    pub call_sites: bool,
}

/// One variable: set to a value, or removed.
pub type Change = (&'static str, Option<OsString>);

/// The changes to the inherited environment, which `get` looks up.
pub fn changes(plan: &Plan<'_>, get: impl Fn(&str) -> Option<OsString>) -> Vec<Change> {
    let lib = plan.run_dir.join(LIB);
    // Under another emuv run, that one's entries would only shadow the driver once more.
    let outer = get(env::RUN_DIR).map(|path| PathBuf::from(path).join(LIB));
    let set = |value: &dyn ToString| Some(OsString::from(value.to_string()));
    let mut changes = vec![
        ("LD_PRELOAD", Some(prepend(lib.join("libcuda.so.1"), get("LD_PRELOAD"), b": ", outer.as_deref()))),
        ("LD_LIBRARY_PATH", Some(prepend(lib, get("LD_LIBRARY_PATH"), b":;", outer.as_deref()))),
        (env::RUN_DIR, Some(plan.run_dir.into())),
        (env::REAL_CUDA, Some(plan.real.cuda.clone().into())),
        (env::REAL_NVML, plan.real.nvml.clone().map(PathBuf::into)),
        // In a slice the limits are read from there, as they are at the time.
        (env::RAM, set(&plan.limits.ram.0).filter(|_| plan.slice.is_none())),
        (env::RAM_FLOOR, set(&plan.limits.ram_floor.0)),
        (env::VRAM, plan.limits.vram.filter(|_| plan.slice.is_none()).and_then(|bytes| set(&bytes.0))),
        (env::VGPU, plan.slice.map(OsString::from)),
        (env::POLICY, set(&plan.policy)),
        (env::SAFE, plan.safe.then(|| "1".into())),
        (env::TRACE, plan.trace.map(OsString::from)),
        (env::VERIFY, plan.verify.then(|| "1".into())),
        (env::TIMELINE, plan.timeline.then(|| "1".into())),
        (env::CALL_SITES, plan.call_sites.then(|| "1".into())),
        (env::QUIET, plan.quiet.then(|| "1".into())),
        (env::SIM, plan.sim.map(OsString::from)),
        // Meant for this run, not for one that the program starts.
        (env::REPORT, None),
        (env::GPU, None),
    ];
    if plan.hints {
        changes.extend(hints::changes(&get));
    }
    changes.extend(plan.log.map(|log| (env::LOG, set(&log.value))));
    changes.extend(plan.gpu.map(|uuid| ("CUDA_VISIBLE_DEVICES", set(&uuid))));
    changes
}

/// A list with `first` before what is there, without the entries that lie in `without`.
fn prepend(first: PathBuf, list: Option<OsString>, separators: &[u8], without: Option<&Path>) -> OsString {
    let list = list.unwrap_or_default();
    let mut joined = first.into_os_string().into_vec();
    for entry in list.as_bytes().split(|byte| separators.contains(byte)) {
        let ours = without.is_some_and(|folder| Path::new(OsStr::from_bytes(entry)).starts_with(folder));
        // An empty entry would mean the current directory; nobody who sets a list means that.
        if !entry.is_empty() && !ours {
            joined.push(b':');
            joined.extend(entry);
        }
    }
    OsString::from_vec(joined)
}

#[cfg(test)]
mod tests {
    use emuv_policy::Bytes;

    use super::*;

    fn real() -> RealLibraries {
        RealLibraries { cuda: "/usr/lib/libcuda.so.580".into(), nvml: Some("/usr/lib/libnvidia-ml.so.580".into()) }
    }

    fn plan(real: &RealLibraries) -> Plan<'_> {
        let limits = Limits { vram: None, ram: Bytes(4 << 30), ram_floor: Bytes(2 << 30) };
        Plan {
            run_dir: Path::new("/run/emuv/run-7-0"),
            real,
            limits,
            slice: None,
            quiet: false,
            log: None,
            sim: None,
            gpu: None,
            hints: false,
            policy: Movement::Dynamic,
            safe: false,
            trace: None,
            verify: false,
            timeline: false,
            call_sites: false,
        }
    }

    fn value(changes: &[Change], name: &str) -> Option<String> {
        let (_, value) = changes.iter().find(|(key, _)| *key == name).unwrap_or_else(|| panic!("{name} is not set"));
        value.as_ref().map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn both_ways_in_lead_to_the_runs_own_folder() {
        let found = changes(&plan(&real()), |_| None);
        assert_eq!(value(&found, "LD_PRELOAD").unwrap(), "/run/emuv/run-7-0/lib/libcuda.so.1");
        assert_eq!(value(&found, "LD_LIBRARY_PATH").unwrap(), "/run/emuv/run-7-0/lib");
        assert_eq!(value(&found, "EMUV_REAL_LIBCUDA").unwrap(), "/usr/lib/libcuda.so.580");
    }

    #[test]
    fn what_the_user_has_in_these_lists_stays_behind_ours() {
        let found = changes(&plan(&real()), |name| match name {
            "LD_PRELOAD" => Some("libjemalloc.so libfoo.so".into()),
            "LD_LIBRARY_PATH" => Some("/opt/a::/opt/b".into()),
            _ => None,
        });
        assert_eq!(value(&found, "LD_PRELOAD").unwrap(), "/run/emuv/run-7-0/lib/libcuda.so.1:libjemalloc.so:libfoo.so");
        assert_eq!(value(&found, "LD_LIBRARY_PATH").unwrap(), "/run/emuv/run-7-0/lib:/opt/a:/opt/b");
    }

    #[test]
    fn inside_another_run_that_ones_folder_is_replaced() {
        let found = changes(&plan(&real()), |name| match name {
            "LD_PRELOAD" => Some("/run/emuv/run-1-0/lib/libcuda.so.1:libfoo.so".into()),
            "LD_LIBRARY_PATH" => Some("/run/emuv/run-1-0/lib".into()),
            "EMUV_RUN_DIR" => Some("/run/emuv/run-1-0".into()),
            _ => None,
        });
        assert_eq!(value(&found, "LD_PRELOAD").unwrap(), "/run/emuv/run-7-0/lib/libcuda.so.1:libfoo.so");
        assert_eq!(value(&found, "LD_LIBRARY_PATH").unwrap(), "/run/emuv/run-7-0/lib");
    }

    #[test]
    fn limits_are_handed_on_in_bytes_and_a_cap_only_where_there_is_one() {
        let found = changes(&plan(&real()), |_| None);
        assert_eq!(value(&found, "EMUV_RAM").unwrap(), "4294967296");
        assert_eq!(value(&found, "EMUV_RAM_FLOOR").unwrap(), "2147483648");
        assert_eq!(value(&found, "EMUV_VRAM"), None);
        assert_eq!(value(&found, "EMUV_QUIET"), None);
        let real = real();
        let mut capped = plan(&real);
        capped.limits.vram = Some(Bytes(1 << 30));
        capped.quiet = true;
        capped.sim = Some("gpus=1");
        capped.gpu = Some("GPU-aa");
        let found = changes(&capped, |_| None);
        assert_eq!(value(&found, "EMUV_VRAM").unwrap(), "1073741824");
        assert_eq!(value(&found, "EMUV_QUIET").unwrap(), "1");
        assert_eq!(value(&found, "EMUV_SIM").unwrap(), "gpus=1");
        assert_eq!(value(&found, "CUDA_VISIBLE_DEVICES").unwrap(), "GPU-aa");
    }

    #[test]
    fn in_a_slice_no_limit_is_handed_on_but_the_slices_name() {
        let real = real();
        let mut sliced = plan(&real);
        sliced.slice = Some("ml-1");
        sliced.limits.vram = Some(Bytes(1 << 30));
        let found = changes(&sliced, |_| None);
        assert_eq!(value(&found, "EMUV_VGPU").unwrap(), "ml-1");
        assert_eq!((value(&found, "EMUV_VRAM"), value(&found, "EMUV_RAM")), (None, None));
    }

    #[test]
    fn without_a_choice_of_gpu_the_users_own_stays() {
        assert!(changes(&plan(&real()), |_| None).iter().all(|(name, _)| *name != "CUDA_VISIBLE_DEVICES"));
    }

    #[test]
    fn this_runs_report_is_not_the_next_ones() {
        assert_eq!(value(&changes(&plan(&real()), |_| Some("x".into())), "EMUV_REPORT"), None);
    }
}
