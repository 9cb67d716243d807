//! The calls that emuV answers, decoded from their C form (`handled.list` names them all).
//!
//! # Safety
//! Each entry is called by the program under the contract of the driver function of its name: pointers are
//! valid for what that function reads and writes. Entries rely on nothing else, and hand the same arguments
//! on to the driver.
#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use emuv_cuda::{CUresult, Driver};

use crate::{
    real,
    session::{self, Session},
};

pub(crate) mod api;
pub(crate) mod array;
pub(crate) mod capture;
pub(crate) mod context;
pub(crate) mod export;
pub(crate) mod external;
pub(crate) mod graph;
pub(crate) mod host;
pub(crate) mod init;
pub(crate) mod ipc;
pub(crate) mod launch;
pub(crate) mod managed;
pub(crate) mod memory;
pub(crate) mod memset;
pub(crate) mod module;
pub(crate) mod nvml;
pub(crate) mod pool;
pub(crate) mod query;
pub(crate) mod texture;
pub(crate) mod transfer;
pub(crate) mod vmm;
pub(crate) mod wait;

/// Defines entries with the driver's symbols. The argument list is written once and, in the body, used by
/// name; `$real` is the driver and `$session` the session.
macro_rules! entries {
    ($(
        $(#[$doc:meta])*
        fn $name:ident($($arg:ident: $ty:ty),* $(,)?) |$session:ident, $driver:ident| $body:block
    )*) => {
        $(
            $(#[$doc])*
            ///
            /// # Safety
            /// The contract of the driver function of this name.
            #[allow(non_snake_case)]
            #[cfg_attr(not(test), unsafe(no_mangle))]
            pub(crate) unsafe extern "C" fn $name($($arg: $ty),*) -> emuv_cuda::CUresult {
                $crate::entry::answer(
                    stringify!($name),
                    // SAFETY: the program's own arguments, passed on.
                    |driver| unsafe { driver.$name($($arg),*) },
                    |$session, $driver| $body,
                )
            }
        )*
    };
}
pub(crate) use entries;

/// Answers a call with `ours`; with `plain` (the driver's own function) where there is no session, where
/// `ours` says that the call is none of emuV's business, or where it fails inside.
fn answer(
    name: &str,
    plain: impl Fn(&Driver) -> CUresult,
    ours: impl FnOnce(&'static Session, &'static Driver) -> Option<CUresult>,
) -> CUresult {
    let Some(real) = real::cuda() else { return CUresult::NO_DEVICE };
    let Some(session) = session::start(real) else { return plain(&real.driver) };
    match catch_unwind(AssertUnwindSafe(|| ours(session, &real.driver))) {
        Ok(Some(result)) => result,
        Ok(None) => plain(&real.driver),
        Err(_) => {
            session.degrade(name);
            plain(&real.driver)
        }
    }
}

/// Makes forked children inert.
pub(crate) fn watch_forks() {
    extern "C" fn child() {
        let _ = catch_unwind(session::forked);
    }
    // SAFETY: the handler only sets a flag and unmaps the shared counters.
    unsafe { libc::pthread_atfork(None, None, Some(child)) };
}

/// Has what is the process's own cleared away when it exits.
pub(crate) fn watch_exit() {
    extern "C" fn exit() {
        let _ = catch_unwind(session::exiting);
    }
    // SAFETY: the handler only removes files. A preloaded library is never unloaded.
    unsafe { libc::atexit(exit) };
}
