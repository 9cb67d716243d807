// SPDX-License-Identifier: GPL-2.0

//! `emuv.ko`: the ledger of emuV's instances in the kernel.
//!
//! ```text
//! module parameters --> setup (pure) --+                +-- configfs.rs   /sys/kernel/config/emuv/NAME
//!                                      v                v
//!                                    registry.rs  id -> Instance
//!                                                       |
//!   emuv_shim.c  /dev/emuvN, /sys/class/emuv  -> ffi.rs -> instance.rs  -> ledger (pure)
//!                (tables, parameters)                   |  ioctl.rs, transfer.rs
//!                                                       +-> pages of the RAM part (ffi/memory.rs: mappings, dma-bufs)
//! ```
//!
//! What is pure (`ledger`, `setup`, `text`, `abi`, `gpus`) is compiled from the crates beside this directory and tested there.
//!
//! Invariants:
//! 1. An opener (an open file, an exported buffer) holds its instance; an open file holds the module. So neither goes while used.
//! 2. All figures of an instance change under its one lock; that is not held while a page is allocated.
//! 3. Locks are taken in this order: a configfs group's, the registry's, an opener's account, an instance's
//!    dmem region, its state.
//! 4. A resident page is charged before it is allocated and until it has been freed.
//! 5. What an opener leaves behind is seen by no later one: pages go with the last opener, or are cleared where the instance
//!    keeps them (eager).
//! 6. Unsafe code is in `ffi.rs` and `ffi/` only.

#![deny(unsafe_code)]

use kernel::prelude::*;

#[path = "../uapi/src/abi.rs"]
#[allow(unreachable_pub, dead_code)]
mod abi;
mod configfs;
mod ffi;
#[path = "../uapi/src/gpus.rs"]
#[allow(unreachable_pub)]
mod gpus;
mod instance;
mod ioctl;
#[path = "../core/src/ledger.rs"]
#[allow(unreachable_pub, dead_code)]
mod ledger;
mod registry;
#[path = "../core/src/setup.rs"]
#[allow(unreachable_pub)]
mod setup;
#[path = "../core/src/text.rs"]
#[allow(unreachable_pub, dead_code)]
mod text;
mod transfer;

module! {
    type: Emuv,
    name: "emuv",
    authors: ["emuV contributors"],
    description: "emuV: shares of VRAM and RAM, kept by the kernel",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
}

/// The loaded module. Fields are dropped in this order.
#[pin_data]
struct Emuv {
    #[pin]
    tree: ffi::Directory,
    instances: registry::All,
    devices: ffi::Devices,
}

impl kernel::InPlaceModule for Emuv {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            devices: ffi::Devices::register()?,
            instances: registry::All::from_parameters()?,
            tree <- ffi::Directory::new(c"emuv", configfs::tree_type()),
        })
    }
}
