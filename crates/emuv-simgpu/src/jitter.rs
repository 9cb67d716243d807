//! Random delays: work that a program orders only by luck comes in another order than usual.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

/// The step of the generator's counter: 2^64 divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A source of random delays that all threads share: which thread gets which delay is up to them.
#[derive(Debug)]
pub struct Jitter {
    limit_us: u64,
    counter: AtomicU64,
}

impl Jitter {
    /// Delays of up to `limit_us` µs; 0 is none at all.
    pub fn new(limit_us: u64, seed: u64) -> Self {
        Self { limit_us, counter: AtomicU64::new(seed) }
    }

    /// The next delay in µs.
    fn next_us(&self) -> u64 {
        let mut x = self.counter.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        x % self.limit_us.saturating_add(1)
    }

    /// Holds the calling thread up for a random time. It must hold no lock.
    pub fn pause(&self) {
        if self.limit_us > 0 {
            thread::sleep(Duration::from_micros(self.next_us()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(limit_us: u64, seed: u64) -> Vec<u64> {
        let jitter = Jitter::new(limit_us, seed);
        (0..200).map(|_| jitter.next_us()).collect()
    }

    #[test]
    fn delays_are_the_seeds_own_and_stay_within_the_limit() {
        assert_eq!(delays(50, 1), delays(50, 1));
        assert_ne!(delays(50, 1), delays(50, 2));
        assert!(delays(50, 3).iter().all(|delay| *delay <= 50));
        assert!(delays(3, 4).contains(&3) && delays(3, 4).contains(&0));
    }

    #[test]
    fn without_a_limit_there_is_no_delay() {
        assert_eq!(delays(0, 5), [0; 200]);
    }
}
