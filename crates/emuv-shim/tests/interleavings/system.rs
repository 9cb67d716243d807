//! The room behind `crate::system` for this test: no file says anything, and nobody looks on.

use std::{ffi::OsString, path::PathBuf};

use emuv_state::HostMemory;

pub(crate) fn stands_aside() -> bool {
    false
}

pub(crate) fn is_a_run_of_its_own() -> bool {
    false
}

pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

pub(crate) fn variable_os(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

pub(crate) fn host() -> Option<HostMemory> {
    HostMemory::read()
}

pub(crate) fn run_dir() -> Option<PathBuf> {
    None
}

pub(crate) fn run_dirs() -> Vec<PathBuf> {
    Vec::new()
}

pub(crate) fn exiting() {}
