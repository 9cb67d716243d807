//! One shared object that is libcuda.so.1 and libnvidia-ml.so.1 to the program: preloaded, linked, or
//! opened by name. Calls that emuV handles go to [`entry`]; every other export is a jump to the driver.
//!
//! Rules of this crate (ARCHITECTURE.md has the reasons):
//! - nothing happens before the program's first driver call; there is no constructor;
//! - no lock is held across a driver call;
//! - no panic leaves an entry: the entry falls back to the driver's own behaviour and one line is logged;
//! - after a fork the child is inert: its calls go to the driver untouched;
//! - standard output is never written to.

// Test executables do not export the entries, so most of the crate is out of their reach.
#![cfg_attr(test, allow(dead_code))]

mod account;
mod aliases;
mod arena;
mod calls;
mod capture;
mod contents;
mod context_charges;
mod device;
mod entry;
mod functions;
mod globals;
mod graphs;
mod handles;
mod hints;
mod host_ranges;
mod ipc;
mod leases;
mod log;
mod moves;
// A test executable must not define the driver's symbols itself.
#[cfg(not(test))]
mod passthrough;
mod peers;
mod pointer;
mod pools;
mod real;
mod resolve;
mod session;
mod sites;
mod slice;
mod streams;
mod sync;
mod system;
mod thread;
mod timeline;
mod touch;
mod turns;
mod view;

/// The version of this library, for programs (and `emuv doctor`) that want to know whether they run
/// under emuV: `dlsym(handle, "emuv_version")`.
///
/// # Safety
/// Nothing to observe: a constant string that lives as long as the library.
#[allow(unsafe_code)]
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn emuv_version() -> *const core::ffi::c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}
