//! What the threads of the program and the mover share, wait with and tell time by. It is one room so that a test can
//! put another behind it: `tests/interleavings` compiles the same sources over a scheduler that decides who runs next.
//!
//! Not from here: what is written once before any thread could differ about it (the real libraries, the log), and the
//! live counters, which decide nothing.

pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, atomic},
    thread::sleep,
    thread_local,
    time::Instant,
};
