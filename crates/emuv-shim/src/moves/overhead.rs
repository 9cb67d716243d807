//! What emuV's own part of the program's calls takes the program's host, for the live figure: one call of some is timed, without what the
//! driver does in it, and without those that wait for data.

// It decides nothing, so it is nothing to be interleaved (`sync.rs`).
use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// One of so many calls of a thread is timed, and counts for all of them. A prime, so that it is not always the same one of calls that
/// alternate.
const ONE_OF: u32 = 17;

/// What takes longer is not what a call takes: memory was made, or the thread did not run.
const MOST: Duration = Duration::from_micros(100);

/// The sum over all calls. One per device.
#[derive(Debug, Default)]
pub(super) struct Overhead {
    nanos: AtomicU64,
}

impl Overhead {
    /// So far, in microseconds.
    #[allow(clippy::cast_precision_loss)] // Far below 2^52.
    pub fn micros(&self) -> f64 {
        self.nanos.load(Ordering::Relaxed) as f64 / 1e3
    }
}

/// Runs while emuV does its part of a call. Most calls have none.
#[derive(Debug)]
pub(super) struct Clock(Option<Running>);

#[derive(Debug)]
struct Running {
    since: Instant,
    before: Duration,
}

impl Clock {
    /// The program has called.
    pub fn start() -> Self {
        thread_local!(static CALLS: Cell<u32> = const { Cell::new(0) });
        let number = CALLS.replace(CALLS.get().wrapping_add(1));
        let is_timed = number.is_multiple_of(ONE_OF);
        Self(is_timed.then(|| Running { since: Instant::now(), before: Duration::ZERO }))
    }

    /// What the driver does does not count.
    pub fn without<T>(&mut self, call: impl FnOnce() -> T) -> T {
        if let Some(running) = &mut self.0 {
            running.before += running.since.elapsed();
        }
        let result = call();
        if let Some(running) = &mut self.0 {
            running.since = Instant::now();
        }
        result
    }

    /// The call has to wait, so it is not one to be timed.
    pub fn forget(&mut self) {
        self.0 = None;
    }

    /// The call is over.
    pub fn stop(self, overhead: &Overhead) {
        let Some(Running { since, before }) = self.0 else { return };
        let took = before + since.elapsed();
        if took <= MOST {
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(0) * u64::from(ONE_OF);
            overhead.nanos.fetch_add(nanos, Ordering::Relaxed);
        }
    }
}
