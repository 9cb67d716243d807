//! The part of `emuv.ko` that needs no kernel: pure, without allocation, without a clock, tested on the host.
//!
//! The module compiles the same files (`kernel/module/emuv_main.rs`), so they keep to what its compiler understands (1.85,
//! edition 2021) and name each other as `crate::...`, which is true in both places.

#![no_std]
#![forbid(unsafe_code)]

pub mod ledger;
pub mod setup;
pub mod text;

pub(crate) use emuv_uapi::{abi, gpus};
