//! The real driver libraries, loaded on the program's first call into either.
//!
//! # Safety
//! [`Handled`] holds addresses of our own entries as data pointers and is only compared and handed out,
//! never called. Sharing them between threads is sound: code does not move.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_void};
use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicPtr, Ordering},
    },
};

use emuv_cuda::{Driver, Locator, Nvml, Which};
use emuv_state::env;

use crate::{log, system};

pub(crate) use crate::resolve::{is_secure, own_path};

include!(concat!(env!("OUT_DIR"), "/slots.rs"));
include!(concat!(env!("OUT_DIR"), "/handled.rs"));

/// An export that emuV answers itself.
#[derive(Clone, Copy)]
pub(crate) struct Handled {
    /// Its place in [`NAMES`].
    pub slot: usize,
    /// Our entry.
    pub entry: *const c_void,
}

/// Where the pass-through exports jump; null until the library is loaded.
pub(crate) static SLOTS: [AtomicPtr<c_void>; SLOT_COUNT] = [const { AtomicPtr::new(std::ptr::null_mut()) }; SLOT_COUNT];

/// Address in a real library -> our entry.
struct Swaps(HashMap<usize, usize>);

impl Swaps {
    fn collect(address: impl Fn(&CStr) -> Option<usize>, slots: std::ops::Range<usize>) -> Self {
        let ours = handled().into_iter().filter(|handled| slots.contains(&handled.slot));
        Self(ours.filter_map(|h| Some((address(NAMES[h.slot])?, h.entry as usize))).collect())
    }
}

/// A loaded CUDA driver.
pub(crate) struct Real {
    /// Its functions.
    pub driver: Driver,
    swaps: Swaps,
}

/// A loaded NVML.
pub(crate) struct RealNvml {
    /// The functions that emuV calls.
    pub nvml: Nvml,
    swaps: Swaps,
}

static CUDA: OnceLock<Option<Real>> = OnceLock::new();
static NVML: OnceLock<Option<RealNvml>> = OnceLock::new();

/// The CUDA driver; `None` if there is none (said once in the log).
pub(crate) fn cuda() -> Option<&'static Real> {
    let load = || {
        let driver = load(Which::Cuda, Driver::open)?;
        let address = |name: &CStr| driver.address(name).map(|address| address.as_ptr() as usize);
        fill_slots(0..CUDA_SLOTS, address);
        let swaps = Swaps::collect(address, 0..CUDA_SLOTS);
        Some(Real { driver, swaps })
    };
    CUDA.get_or_init(|| while_loading(load)).as_ref()
}

/// NVML; `None` if there is none (said once in the log).
pub(crate) fn nvml() -> Option<&'static RealNvml> {
    let load = || {
        let nvml = load(Which::Nvml, Nvml::open)?;
        let address = |name: &CStr| nvml.address(name).map(|address| address.as_ptr() as usize);
        fill_slots(CUDA_SLOTS..SLOT_COUNT, address);
        let swaps = Swaps::collect(address, CUDA_SLOTS..SLOT_COUNT);
        Some(RealNvml { nvml, swaps })
    };
    NVML.get_or_init(|| while_loading(load)).as_ref()
}

thread_local! {
    /// This thread is loading a real library, and looks its functions up for us and not for the program.
    static LOADING: Cell<bool> = const { Cell::new(false) };
}

fn while_loading<T>(load: impl FnOnce() -> T) -> T {
    LOADING.set(true);
    let loaded = load();
    LOADING.set(false);
    loaded
}

/// Whether the calling thread is loading a real library.
pub(crate) fn is_loading() -> bool {
    LOADING.get()
}

/// Loads the real library that has a function of this name, if that is one that emuV handles: the program
/// has opened the driver by its path and is looking its functions up, and has not called any yet.
pub(crate) fn load_for(name: &CStr) {
    static HANDLED: OnceLock<HashSet<&'static CStr>> = OnceLock::new();
    if !HANDLED.get_or_init(|| handled().into_iter().map(|handled| NAMES[handled.slot]).collect()).contains(name) {
        return;
    }
    if system::stands_aside() {
        return;
    }
    if name.to_bytes().starts_with(b"nvml") {
        nvml();
    } else {
        cuda();
    }
}

/// Our entry for a function of a real library, `None` if that one is not handled (or nothing is loaded
/// yet: then the address cannot have come from a library that we know).
pub(crate) fn swap(address: *const c_void) -> Option<*const c_void> {
    let in_cuda = CUDA.get().and_then(Option::as_ref).and_then(|real| real.swaps.0.get(&(address as usize)));
    let in_nvml = || NVML.get().and_then(Option::as_ref).and_then(|real| real.swaps.0.get(&(address as usize)));
    in_cuda.or_else(in_nvml).map(|&entry| entry as *const c_void)
}

/// The address of a symbol in the real library that has it by its name's family, if that is loaded.
pub(crate) fn symbol(name: &CStr) -> Option<*const c_void> {
    let address = if name.to_bytes().starts_with(b"nvml") {
        NVML.get()?.as_ref()?.nvml.address(name)
    } else {
        CUDA.get()?.as_ref()?.driver.address(name)
    };
    address.map(|address| address.as_ptr().cast_const())
}

fn fill_slots(slots: std::ops::Range<usize>, address: impl Fn(&CStr) -> Option<usize>) {
    for slot in slots {
        if let Some(address) = address(NAMES[slot]) {
            SLOTS[slot].store(address as *mut c_void, Ordering::Release);
        }
    }
}

fn load<T>(which: Which, open: impl Fn(&std::path::Path) -> Result<T, emuv_cuda::LocateError>) -> Option<T> {
    let variable = match which {
        Which::Cuda => env::REAL_CUDA,
        Which::Nvml => env::REAL_NVML,
    };
    let path = match system::variable_os(variable) {
        Some(path) => Ok(PathBuf::from(path)),
        // Not by `emuv run`.
        None => Locator {
            library_path: system::variable_os("LD_LIBRARY_PATH").and_then(|path| path.into_string().ok()),
            loader_cache: None,
            own_files: own_path().into_iter().collect(),
        }
        .find(which),
    };
    match path.and_then(|path| open(&path)) {
        Ok(library) => Some(library),
        Err(error) => {
            log::error(format_args!("{error}; calls to {} will fail", which.file_name()));
            None
        }
    }
}

// SAFETY: see the module's head.
unsafe impl Send for Handled {}
// SAFETY: see the module's head.
unsafe impl Sync for Handled {}
