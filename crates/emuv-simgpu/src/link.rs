//! The link between host and GPU: how long a transfer takes at least.

use std::{
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use crate::sync::lock;

/// Bytes that an operation moved over the link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Read by the GPU from host memory.
    pub h2d_bytes: u64,
    /// Written by the GPU to host memory.
    pub d2h_bytes: u64,
}

/// One direction: transfers queue behind each other.
#[derive(Debug)]
struct Direction {
    bytes_per_s: Option<f64>,
    free_at: Mutex<Option<Instant>>,
}

impl Direction {
    fn new(bytes_per_s: Option<f64>) -> Self {
        Self { bytes_per_s, free_at: Mutex::new(None) }
    }

    /// When a transfer that was ready at `start` is through.
    fn book(&self, start: Instant, bytes: u64) -> Instant {
        let Some(rate) = self.bytes_per_s.filter(|_| bytes > 0) else { return start };
        #[allow(clippy::cast_precision_loss)] // Far below 2^53 bytes.
        let duration = Duration::try_from_secs_f64(bytes as f64 / rate).unwrap_or(Duration::MAX);
        let mut free_at = lock(&self.free_at);
        let end = free_at.map_or(start, |at| at.max(start)).checked_add(duration).unwrap_or(start);
        *free_at = Some(end);
        end
    }
}

/// A GPU's link to the host. Both directions work at the same time.
#[derive(Debug)]
pub struct Link {
    h2d: Direction,
    d2h: Direction,
    latency: Duration,
}

impl Link {
    /// A link with rates in bytes per second (`None`: no limit) and a time that each operation takes.
    pub fn new(h2d_bytes_per_s: Option<f64>, d2h_bytes_per_s: Option<f64>, latency: Duration) -> Self {
        Self { h2d: Direction::new(h2d_bytes_per_s), d2h: Direction::new(d2h_bytes_per_s), latency }
    }

    /// Whether traffic has to be counted at all.
    pub fn is_limited(&self) -> bool {
        self.h2d.bytes_per_s.is_some() || self.d2h.bytes_per_s.is_some()
    }

    /// When an operation that began at `start` may end at the earliest.
    pub fn due(&self, start: Instant, traffic: Traffic) -> Instant {
        let through = self.h2d.book(start, traffic.h2d_bytes).max(self.d2h.book(start, traffic.d2h_bytes));
        through.checked_add(self.latency).unwrap_or(through)
    }

    /// Waits until an operation that began at `start` may end.
    pub fn settle(&self, start: Instant, traffic: Traffic) {
        if !self.is_limited() && self.latency.is_zero() {
            return;
        }
        let rest = self.due(start, traffic).saturating_duration_since(Instant::now());
        if !rest.is_zero() {
            thread::sleep(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_of_one_direction_queue_and_the_other_direction_does_not_wait() {
        let link = Link::new(Some(1e9), Some(1e9), Duration::ZERO);
        let start = Instant::now();
        let up = Traffic { h2d_bytes: 1_000_000, d2h_bytes: 0 };
        let down = Traffic { h2d_bytes: 0, d2h_bytes: 1_000_000 };
        let ms = Duration::from_millis;
        assert_eq!(link.due(start, up), start + ms(1));
        assert_eq!(link.due(start, up), start + ms(2));
        assert_eq!(link.due(start, down), start + ms(1));
        // A pause is not saved up.
        assert_eq!(link.due(start + ms(10), up), start + ms(11));
    }

    #[test]
    fn latency_is_added_to_each_operation() {
        let link = Link::new(None, None, Duration::from_micros(5));
        let start = Instant::now();
        assert_eq!(link.due(start, Traffic { h2d_bytes: 1 << 30, d2h_bytes: 0 }), start + Duration::from_micros(5));
    }
}
