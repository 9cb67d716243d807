//! When a sample is taken.

use std::time::{SystemTime, UNIX_EPOCH};

/// A moment, by two clocks: one that only goes forward, for rates, and the calendar's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// Microseconds since some time; never less than before.
    pub monotonic_micros: u64,
    /// Milliseconds since 1970.
    pub unix_millis: u64,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let clock = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let whole = |number: i64| u64::try_from(number).unwrap_or(0);
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            monotonic_micros: whole(clock.tv_sec) * 1_000_000 + whole(clock.tv_nsec) / 1000,
            unix_millis: u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
