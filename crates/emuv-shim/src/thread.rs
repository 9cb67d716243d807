//! A thread inside somebody else's process.
//!
//! # Safety
//! Each block is one libc call with live locals.
#![allow(unsafe_code)]

use std::{io, sync::Mutex};

use crate::arena::lock;

/// What to do when the process ends.
static AT_EXIT: Mutex<Vec<Box<dyn FnOnce() + Send>>> = Mutex::new(Vec::new());

/// What a thread raises by what it does itself: blocked, it would end the process without a word from whoever handles it.
const OWN_FAULTS: [i32; 6] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT];

/// Starts a thread that receives none of the program's signals.
///
/// # Errors
/// The system's own.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: see the module's head. The new thread inherits the mask; this one gets its own back.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        for signal in OWN_FAULTS {
            libc::sigdelset(all.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let started = std::thread::Builder::new().name(name.to_owned()).stack_size(1 << 20).spawn(|| {
        // Sleeps of 20 us are to be 20 us.
        // SAFETY: see the module's head.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_usize) };
        body();
    });
    // SAFETY: see the module's head; `before` was written by the first call.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    started.map(drop)
}

/// Has `what` done when the process ends normally: before the driver, which was there first, takes itself down.
pub(crate) fn at_exit(what: impl FnOnce() + Send + 'static) {
    extern "C" fn run() {
        let all = std::mem::take(&mut *lock(&AT_EXIT));
        for what in all {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what));
        }
    }
    let mut all = lock(&AT_EXIT);
    if all.is_empty() {
        // SAFETY: see the module's head; the library is never unloaded while the process lives.
        unsafe { libc::atexit(run) };
    }
    all.push(Box::new(what));
}
