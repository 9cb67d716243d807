//! A simulated GPU: a library that stands in for `libcuda.so.1` and `libnvidia-ml.so.1` on a machine without
//! a GPU, for tests and demonstrations. It always says that it is simulated.
//!
//! The environment variable `EMUV_SIM` describes the machine ([`config`]). Memory is files in memory, mapped
//! where the program asks for it, so that mapping and unmapping mean what they mean on a GPU; streams are
//! threads; a touch of an address that is not mapped breaks the context with `CUDA_ERROR_ILLEGAL_ADDRESS`.
//!
//! Two layers: the simulated machine (everything but [`entry`]), which knows no C interface and can be tested
//! by itself, and the entry points, which decode C calls and call it. Device addresses are addresses of the
//! process, so a program that follows a device pointer on the CPU gets away with it here.

pub mod account;
pub mod config;
pub mod context;
pub mod entry;
pub mod error_names;
pub mod graph;
pub mod handles;
pub mod jitter;
pub mod kernel;
pub mod link;
pub mod machine;
pub mod memory;
pub mod process;
pub mod simulator;
pub mod stream;
pub mod sync;
pub mod visible;

#[cfg(test)]
mod tests;
