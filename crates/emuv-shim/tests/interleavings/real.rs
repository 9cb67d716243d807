//! The room behind `crate::real` for this test: the driver is [`crate::driver`], and nothing was loaded.
//!
//! # Safety
//! The one block hands over functions whose types were checked against the headers where they were put in the table.
#![allow(unsafe_code)]

use core::ffi::c_void;
use std::sync::OnceLock;

use emuv_cuda::{Driver, Nvml};

pub(crate) struct Real {
    pub driver: Driver,
}

pub(crate) struct RealNvml {
    pub nvml: Nvml,
}

pub(crate) fn cuda() -> Option<&'static Real> {
    static CUDA: OnceLock<Real> = OnceLock::new();
    // SAFETY: see the module's head.
    let make = || Real { driver: unsafe { Driver::from_functions(crate::driver::function) } };
    Some(CUDA.get_or_init(make))
}

pub(crate) fn own_path() -> Option<std::path::PathBuf> {
    None
}

pub(crate) fn nvml() -> Option<&'static RealNvml> {
    None
}

pub(crate) fn swap(_: *const c_void) -> Option<*const c_void> {
    None
}
