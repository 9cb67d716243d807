//! The CUDA driver interface and NVML, as emuV needs them: types, the tables of functions, the map that
//! `cuGetProcAddress` answers from, and a loader for the real libraries.
//!
//! Everything under `gen/` is derived from NVIDIA's public headers by `cargo xtask codegen`. Two rules
//! hold throughout: a result code is an open integer (a newer driver's unknown code passes through
//! unchanged), and a symbol that a driver lacks is a value ([`CUresult::NOT_FOUND`]), never a panic.

// The tables of functions are macros, so they come before the modules that expand them.
#[macro_use]
#[rustfmt::skip]
#[path = "gen/cuda_functions.rs"]
mod cuda_functions;
#[macro_use]
#[rustfmt::skip]
#[path = "gen/nvml_functions.rs"]
mod nvml_functions;

mod driver;
mod gpu;
mod locate;
mod nvml;
pub mod proc_address;
mod result;

/// Plain data types and constants of the CUDA driver interface.
#[allow(
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unused_qualifications,
    clippy::all,
    clippy::pedantic
)]
#[rustfmt::skip]
#[path = "gen/cuda_types.rs"]
pub mod types;

/// Plain data types and constants of NVML.
#[allow(
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unused_qualifications,
    clippy::all,
    clippy::pedantic
)]
#[rustfmt::skip]
#[path = "gen/nvml_types.rs"]
pub mod nvml_types;

/// Names of every symbol that the two libraries export.
#[rustfmt::skip]
#[path = "gen/exports.rs"]
pub mod exports;

pub use driver::{Driver, signatures};
pub use gpu::{DriverGpu, Gpu, Handle, device_attribute};
pub use locate::{LocateError, Locator, Which};
pub use nvml::{Nvml, nvml_signatures};
pub use result::{CuError, CuResult};
pub use types::CUresult;
