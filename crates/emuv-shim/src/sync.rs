//! What the threads of the program and the mover share, wait with and tell time by. It is one room so that a test can
//! put another behind it: `tests/interleavings` compiles the same sources over a scheduler that decides who runs next.
//!
//! Not from here: what is written once before any thread could differ about it (the real libraries, the log), and the
//! live counters, which decide nothing.

use std::sync::TryLockError;

pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, atomic},
    thread::sleep,
    thread_local,
    time::Instant,
};

/// Locks what is held for a few microseconds at a time: to sleep and be woken takes longer than that, so it is tried for a while
/// first, some 20 us, at first often.
pub(crate) fn lock_soon<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    const TRIES: u32 = 20;
    const MOST_PAUSES: u32 = 32;
    for try_ in 0..TRIES {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                (0..(2 << (try_ / 2)).min(MOST_PAUSES)).for_each(|_| std::hint::spin_loop());
            }
        }
    }
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
