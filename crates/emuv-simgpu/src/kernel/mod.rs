//! The kernels that a simulated GPU can run, and what is in a module.

pub mod builtin;
pub mod image;
pub mod pointers;
pub mod run;
