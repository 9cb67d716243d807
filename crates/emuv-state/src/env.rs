//! Every environment variable that emuV reads or sets: one table, from which the help text comes too.

/// One environment variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it means, in one line.
    pub meaning: &'static str,
    /// The flag of `emuv run` that does the same.
    pub flag: Option<&'static str>,
}

macro_rules! variables {
    ($($(#[doc = $meaning:literal])+ $id:ident = $name:literal, $flag:expr;)*) => {
        $(
            $(#[doc = $meaning])+
            pub const $id: &str = $name;
        )*

        /// The table.
        pub const VARIABLES: &[Variable] =
            &[$(Variable { name: $name, meaning: concat!($($meaning),+), flag: $flag },)*];
    };
}

variables! {
    /// Most VRAM that the program may use, per GPU (a size; unset: all of it).
    VRAM = "EMUV_VRAM", Some("--vram");
    /// RAM budget for what does not fit in VRAM (a size; 0 turns spilling off).
    RAM = "EMUV_RAM", Some("--ram");
    /// RAM that emuV always leaves to the host (a size).
    RAM_FLOOR = "EMUV_RAM_FLOOR", None;
    /// What moves between VRAM and RAM: dynamic (what is needed is brought; the default), static, or torture[:SEED].
    POLICY = "EMUV_POLICY", Some("--policy");
    /// 1: data moves only while the GPU has nothing to do.
    SAFE = "EMUV_SAFE", Some("--safe");
    /// The GPU to use: its number as in nvidia-smi, or its UUID.
    GPU = "EMUV_GPU", Some("--gpu");
    /// 1: no notice when memory spills.
    QUIET = "EMUV_QUIET", Some("--quiet");
    /// What emuV logs: off, error (the default), info or debug, to standard error; debug:/path to a file.
    LOG = "EMUV_LOG", None;
    /// 1: emuV's library passes every call through, unchanged.
    DISABLE = "EMUV_DISABLE", None;
    /// 1: frameworks allocate as they would without emuV.
    NO_HINTS = "EMUV_NO_FRAMEWORK_HINTS", Some("--no-framework-hints");
    /// What emuV chose for frameworks (set by emuv run).
    HINTS = "EMUV_HINTS", None;
    /// The slice of a GPU (emuv vgpu) that the program is in: its limits count, whatever EMUV_VRAM and EMUV_RAM say.
    VGPU = "EMUV_VGPU", Some("--vgpu");
    /// The simulated GPU's settings, e.g. vram=8G,gpus=2.
    SIM = "EMUV_SIM", Some("--sim");
    /// A file whose first word is the time, in microseconds, by which slices of a simulated GPU take turns (for tests).
    TURN_CLOCK = "EMUV_TURN_CLOCK", None;
    /// The directory of this run (set by emuv run).
    RUN_DIR = "EMUV_RUN_DIR", None;
    /// Where the directories of runs are made.
    STATE_DIR = "EMUV_STATE_DIR", None;
    /// Absolute path of the real libcuda.so.1 (set by emuv run).
    REAL_CUDA = "EMUV_REAL_LIBCUDA", None;
    /// Absolute path of the real libnvidia-ml.so.1 (set by emuv run).
    REAL_NVML = "EMUV_REAL_LIBNVML", None;
    /// File that the report of a run is written to, as JSON.
    REPORT = "EMUV_REPORT", Some("--report");
    /// 1: what devices hold and move is kept over time, for the report (set by emuv run).
    TIMELINE = "EMUV_TIMELINE", None;
    /// 1: it is also kept where in the program what moves most was allocated (set by emuv run).
    CALL_SITES = "EMUV_CALL_SITES", None;
    /// 1: a report does not say where in the program what moves most was allocated.
    NO_CALL_SITES = "EMUV_NO_CALL_SITES", Some("--no-call-sites");
    /// File that what moves, and why, is recorded in (one file for each process and GPU).
    TRACE = "EMUV_TRACE", Some("--trace");
    /// 1: whatever a launch may not touch is unmapped while it runs (set by emuv verify).
    VERIFY = "EMUV_VERIFY", None;
    /// The configuration file, in place of /etc/emuv/emuv.toml.
    CONFIG = "EMUV_CONFIG", None;
    /// The folder with libemuv_shim.so and libemuv_simgpu.so, where they are not beside the binary.
    LIB_DIR = "EMUV_LIB_DIR", None;
    /// HAMi's name for EMUV_VRAM, read where that one is unset.
    HAMI_VRAM = "CUDA_DEVICE_MEMORY_LIMIT", None;
}

/// Whether the value of a switch such as `EMUV_QUIET` turns it on: anything but empty, `0`, `no`, `off`, `false`.
pub fn is_on(value: &str) -> bool {
    !matches!(value.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "off" | "false")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_variable_is_listed_once_with_a_one_line_meaning() {
        for (index, variable) in VARIABLES.iter().enumerate() {
            assert!(!variable.meaning.trim().is_empty() && !variable.meaning.contains('\n'), "{}", variable.name);
            assert!(VARIABLES[..index].iter().all(|other| other.name != variable.name), "{} twice", variable.name);
        }
    }

    #[test]
    fn a_switch_is_off_when_it_says_so() {
        for text in ["", "0", "no", "Off", " false "] {
            assert!(!is_on(text), "{text:?}");
        }
        for text in ["1", "yes", "on"] {
            assert!(is_on(text), "{text:?}");
        }
    }
}
