//! Placement, budgets and address space: every decision that emuV takes, as pure functions of what has
//! happened.
//!
//! Nothing here does I/O, reads a clock, starts a thread or fails: time is an argument, and "no room" is a
//! value. The crate knows nothing of CUDA, so all of it is tested without a GPU.

mod units;

pub use units::{Bytes, ParseBytesError};
