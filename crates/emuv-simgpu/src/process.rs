//! What this process has set up: the configuration, the machine, and whether `cuInit` has been called.

use std::{
    cell::{Cell, RefCell},
    io::Write as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use emuv_cuda::{CUresult, CuResult};

use crate::{
    config::{self, Config, Fault},
    machine::Machine,
    memory::physical::error,
    simulator::Simulator,
    visible::visible,
};

/// The machine as the environment describes it.
#[derive(Debug)]
pub struct Setup {
    /// The machine; the default one where the description is wrong.
    pub machine: Arc<Machine>,
    /// Whether the description was right.
    pub is_valid: bool,
    faults: Vec<(Fault, AtomicU64)>,
    /// The process that called `cuInit` or `nvmlInit`; 0 before that.
    process: AtomicU32,
}

static SETUP: OnceLock<Setup> = OnceLock::new();
static SIMULATOR: OnceLock<Simulator> = OnceLock::new();

thread_local! {
    /// Handles of the contexts that this thread made current; the last one counts. 0 is "none".
    static CURRENT: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    /// Whether this thread is running a host function of a stream.
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Reads the environment at the first use of the library.
pub fn setup() -> &'static Setup {
    SETUP.get_or_init(|| {
        let text = std::env::var_os(config::VARIABLE).unwrap_or_default();
        let (config, is_valid) = match text.to_string_lossy().parse::<Config>() {
            Ok(config) => (config, true),
            Err(wrong) => {
                // Where nobody listens on stderr there is nobody to tell.
                let _ = writeln!(std::io::stderr(), "emuv-simgpu: {wrong}");
                (Config::default(), false)
            }
        };
        let faults = config.faults.iter().map(|fault| (fault.clone(), AtomicU64::new(0))).collect();
        Setup { machine: Machine::new(config), is_valid, faults, process: AtomicU32::new(0) }
    })
}

impl Setup {
    /// Whether this process was forked from one that was using the GPU: then nothing works, as with the driver.
    pub fn is_forked_child(&self) -> bool {
        let process = self.process.load(Ordering::Relaxed);
        process != 0 && process != std::process::id()
    }

    /// Notes that this process uses the GPU from now on.
    pub fn claim(&self) {
        // A forked child stays one.
        let _ = self.process.compare_exchange(0, std::process::id(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The code that a call is made to fail with, if it is its turn.
    pub fn injected(&self, symbol: &str) -> Option<u32> {
        let mut code = None;
        for (fault, calls) in &self.faults {
            if fault.call != symbol && fault.call != base_name(symbol) {
                continue;
            }
            let number = calls.fetch_add(1, Ordering::Relaxed) + 1;
            if fault.calls.includes(number) {
                code = code.or(Some(fault.code));
            }
        }
        code
    }
}

/// A symbol without its version and stream suffixes.
pub fn base_name(symbol: &str) -> &str {
    let symbol = symbol.strip_suffix("_ptsz").or(symbol.strip_suffix("_ptds")).unwrap_or(symbol);
    match symbol.rsplit_once("_v") {
        Some((base, version)) if version.bytes().all(|b| b.is_ascii_digit()) => base,
        _ => symbol,
    }
}

/// `cuInit`.
///
/// # Errors
/// `CUDA_ERROR_INVALID_VALUE` for a wrong configuration, `CUDA_ERROR_NO_DEVICE` where no GPU is visible.
pub fn initialize() -> CuResult {
    let setup = setup();
    if !setup.is_valid {
        return Err(error(CUresult::INVALID_VALUE));
    }
    setup.claim();
    if setup.is_forked_child() {
        return Err(error(CUresult::NOT_INITIALIZED));
    }
    let simulator = SIMULATOR.get_or_init(|| {
        let list = std::env::var_os("CUDA_VISIBLE_DEVICES");
        let uuids: Vec<String> = setup.machine.gpus.iter().map(|gpu| gpu.uuid_text()).collect();
        let seen = visible(list.as_ref().map(|list| list.to_string_lossy()).as_deref(), &uuids);
        Simulator::new(Arc::clone(&setup.machine), &seen)
    });
    if simulator.devices.is_empty() { Err(error(CUresult::NO_DEVICE)) } else { Ok(()) }
}

/// The process's simulator.
///
/// # Errors
/// `CUDA_ERROR_NOT_INITIALIZED` before a successful `cuInit`.
pub fn simulator() -> CuResult<&'static Simulator> {
    SIMULATOR.get().filter(|simulator| !simulator.devices.is_empty()).ok_or(error(CUresult::NOT_INITIALIZED))
}

/// Changes the calling thread's stack of contexts.
pub fn with_current<T>(change: impl FnOnce(&mut Vec<u64>) -> T) -> T {
    CURRENT.with_borrow_mut(change)
}

/// Whether the calling thread is inside a host function.
pub fn is_in_callback() -> bool {
    IN_CALLBACK.get()
}

/// Runs a host function of a stream: calls to CUDA inside it fail.
pub fn in_callback(run: impl FnOnce()) {
    IN_CALLBACK.set(true);
    run();
    IN_CALLBACK.set(false);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_faults(text: &str) -> Setup {
        let config: Config = format!("fail={text}").parse().unwrap();
        let faults = config.faults.iter().map(|fault| (fault.clone(), AtomicU64::new(0))).collect();
        Setup { machine: Machine::new(config), is_valid: true, faults, process: AtomicU32::new(0) }
    }

    #[test]
    fn suffixes_are_no_part_of_the_base_name() {
        assert_eq!(base_name("cuMemAlloc_v2"), "cuMemAlloc");
        assert_eq!(base_name("cuMemcpyHtoD_v2_ptds"), "cuMemcpyHtoD");
        assert_eq!(base_name("cuLaunchKernel_ptsz"), "cuLaunchKernel");
        assert_eq!(base_name("cuInit"), "cuInit");
        assert_eq!(base_name("nvmlDeviceGetMemoryInfo_v2"), "nvmlDeviceGetMemoryInfo");
    }

    #[test]
    fn the_nth_call_of_any_form_fails_and_no_other() {
        let setup = with_faults("cuMemAlloc:2:2");
        assert_eq!(setup.injected("cuMemAlloc_v2"), None);
        assert_eq!(setup.injected("cuMemFree_v2"), None);
        assert_eq!(setup.injected("cuMemAlloc"), Some(2));
        assert_eq!(setup.injected("cuMemAlloc_v2"), None);
    }

    #[test]
    fn an_exported_symbol_is_one_form_only_and_a_star_is_every_call() {
        let setup = with_faults("cuMemAlloc_v2:*:999+cuInit:1:3");
        assert_eq!(setup.injected("cuMemAlloc"), None);
        assert_eq!(setup.injected("cuMemAlloc_v2"), Some(999));
        assert_eq!(setup.injected("cuMemAlloc_v2"), Some(999));
        assert_eq!(setup.injected("cuInit"), Some(3));
        assert_eq!(setup.injected("cuInit"), None);
    }

    #[test]
    fn from_a_number_on_every_call_fails() {
        let setup = with_faults("cuMemMap:2-");
        let outcomes: Vec<_> = (0..4).map(|_| setup.injected("cuMemMap")).collect();
        assert_eq!(outcomes, [None, Some(2), Some(2), Some(2)]);
    }

    #[test]
    fn a_child_of_a_process_that_used_the_gpu_is_told_apart() {
        let setup = with_faults("cuInit:1:3");
        assert!(!setup.is_forked_child(), "nobody used it yet");
        setup.claim();
        assert!(!setup.is_forked_child());
        setup.process.fetch_add(1, Ordering::Relaxed);
        setup.claim();
        assert!(setup.is_forked_child());
    }
}
