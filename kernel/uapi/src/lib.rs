//! What programs and `emuv.ko` say to each other.
//!
//! [`abi`] holds the ioctl numbers and structures, [`gpus`] the table of GPU models that both sides know. The kernel module
//! compiles both files as well (`kernel/module/emuv_main.rs`), so they keep to what its compiler understands: Rust 1.85,
//! edition 2021, no `std`.

#![no_std]

pub mod abi;
pub mod gpus;
