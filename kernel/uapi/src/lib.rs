//! What programs and `emuv.ko` say to each other.
//!
//! [`abi`] holds the ioctl numbers and structures, [`gpus`] the table of GPU models that both sides know. Both are pure
//! `no_std` sources that the kernel module compiles as well (`kernel/module/emuv_main.rs`), so they keep to what its older

#![no_std]

pub mod abi;
pub mod gpus;
