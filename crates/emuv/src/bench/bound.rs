//! The least time that an iteration can take with a given amount of VRAM: what no placement and no plan can beat.
//!
//! The formulas are those of the project's design ("Moving well: the bound, and the plan") and of its notes on
//! performance ("Physical-limit model"). With V bytes of VRAM, C the time when everything is in VRAM, and a pass over
//! S bytes that are all touched and all needed again:
//!
//! - X = max(0, S - V) bytes are outside VRAM at the pass's fullest moment, and each of them crosses the link to
//!   the GPU before the pass is over, by a copy or by being read in place. Several passes add up.
//! - Bytes that nothing changes (`clean_bytes`, frozen weights) have a copy in RAM and need not go out, so
//!   out = max(0, X - clean) go the other way.
//! - Both ways and the computing can at best overlap: T >= max(C, in / h2d, out / d2h, (in + out) / both).
//! - Activations are last in, first out: they go out while the forward part makes them and come in while the backward
//!   part uses them up, so T >= max(C_f, out / d2h) + max(C_b, in / h2d).
//! - A last part that goes through S' bytes once (an optimizer's step) finds at most V of them in VRAM when it begins, whatever was
//!   done before, so T >= (C - C') + max(C', (S' - V) / h2d) with C' its time when everything is in VRAM.
//! - Of memory that is drawn from at random, what is in VRAM is hit in proportion: in = touched * X / random. This is
//!   the expected value for whoever cannot foresee the draws.

use serde::Serialize;

/// What the link carries, in bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Link {
    /// Host to GPU, alone.
    pub h2d_bytes_per_second: f64,
    /// GPU to host, alone.
    pub d2h_bytes_per_second: f64,
    /// Both at once, their sum.
    pub both_bytes_per_second: f64,
}

/// What an iteration does, measured with everything in VRAM.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// Seconds of an iteration (C).
    pub seconds: f64,
    /// Seconds of its forward part, if what it makes is used up in reverse by the rest.
    pub stack_forward_seconds: Option<f64>,
    /// Seconds of its last part, and the bytes that this goes through, each of them once.
    pub sweep: Option<(f64, u64)>,
    /// The most that is live at once.
    pub peak_bytes: u64,
    /// What each pass over the memory touches.
    pub pass_bytes: Vec<u64>,
    /// What no iteration changes.
    pub clean_bytes: u64,
    /// What is drawn from at random; 0: nothing.
    pub random_bytes: u64,
    /// How much of that an iteration touches.
    pub touched_bytes: u64,
}

/// The bound, and what it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bound {
    /// The least time of an iteration.
    pub seconds: f64,
    /// Bytes that must cross the link to the GPU in an iteration.
    pub bytes_in: f64,
    /// Bytes that must cross it the other way.
    pub bytes_out: f64,
}

/// The least time that this work can take with this much VRAM behind this link.
#[allow(clippy::cast_precision_loss)] // Sizes below 2^53.
pub fn bound(work: &Work, vram_bytes: u64, link: &Link) -> Bound {
    let (mut bytes_in, mut bytes_out) = (0.0, 0.0);
    for &pass in &work.pass_bytes {
        let outside = pass.saturating_sub(vram_bytes);
        bytes_in += if work.random_bytes == 0 { outside as f64 } else { drawn(work, outside) };
        bytes_out += outside.saturating_sub(work.clean_bytes) as f64;
    }
    let way_in = bytes_in / link.h2d_bytes_per_second;
    let way_out = bytes_out / link.d2h_bytes_per_second;
    let overlapped = work.seconds.max(way_in).max(way_out).max((bytes_in + bytes_out) / link.both_bytes_per_second);
    let stacked = work.stack_forward_seconds.map_or(0.0, |forward| {
        let backward = (work.seconds - forward).max(0.0);
        forward.max(way_out) + backward.max(way_in)
    });
    let swept = work.sweep.map_or(0.0, |(seconds, bytes)| {
        let outside = bytes.saturating_sub(vram_bytes) as f64;
        (work.seconds - seconds).max(0.0) + seconds.max(outside / link.h2d_bytes_per_second)
    });
    Bound { seconds: overlapped.max(stacked).max(swept), bytes_in, bytes_out }
}

/// What must come in when what is outside is chosen from the memory that is drawn from at random, as far as it
/// goes: everything else is touched in every iteration.
#[allow(clippy::cast_precision_loss)]
fn drawn(work: &Work, outside: u64) -> f64 {
    let random = work.random_bytes as f64;
    let rest = outside.saturating_sub(work.random_bytes) as f64;
    work.touched_bytes as f64 * (outside as f64 / random).min(1.0) + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;
    const PCIE5: Link = Link { h2d_bytes_per_second: 50e9, d2h_bytes_per_second: 50e9, both_bytes_per_second: 80e9 };

    fn work(seconds: f64) -> Work {
        Work {
            seconds,
            stack_forward_seconds: None,
            sweep: None,
            peak_bytes: 10 * GB,
            pass_bytes: vec![10 * GB],
            clean_bytes: 0,
            random_bytes: 0,
            touched_bytes: 0,
        }
    }

    #[track_caller]
    fn expect(work: &Work, vram: u64, seconds: f64, gigabytes: (f64, f64)) {
        let found = bound(work, vram, &PCIE5);
        assert!((found.seconds - seconds).abs() < 1e-9, "{found:?}");
        assert!((found.bytes_in / 1e9 - gigabytes.0).abs() < 1e-9, "{found:?}");
        assert!((found.bytes_out / 1e9 - gigabytes.1).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn what_fits_takes_as_long_as_in_vram() {
        expect(&work(0.02), 10 * GB, 0.02, (0.0, 0.0));
        expect(&work(0.02), 12 * GB, 0.02, (0.0, 0.0));
    }

    #[test]
    fn clean_bytes_only_come_in() {
        let weights = Work { clean_bytes: 9 * GB, ..work(0.02) };
        expect(&weights, 8 * GB, 0.04, (2.0, 0.0));
    }

    #[test]
    fn changed_bytes_share_the_link_both_ways() {
        expect(&work(0.02), 8 * GB, 0.05, (2.0, 2.0));
        // Clean ones stay out first.
        expect(&Work { clean_bytes: GB, ..work(0.02) }, 8 * GB, 0.04, (2.0, 1.0));
    }

    #[test]
    fn a_long_computation_hides_the_link() {
        expect(&work(0.3), 8 * GB, 0.3, (2.0, 2.0));
    }

    #[test]
    fn there_and_back_crosses_twice() {
        expect(&Work { pass_bytes: vec![10 * GB; 2], ..work(0.02) }, 8 * GB, 0.1, (4.0, 4.0));
    }

    #[test]
    fn passes_of_a_growing_cache_count_from_where_it_no_longer_fits() {
        let growing = Work { pass_bytes: vec![4 * GB, 8 * GB, 9 * GB, 10 * GB], clean_bytes: 2 * GB, ..work(0.02) };
        expect(&growing, 8 * GB, 0.06, (3.0, 0.0));
    }

    #[test]
    fn activations_go_out_forward_and_come_in_backward() {
        // 2 GB take 40 ms a way: more than the forward's 20 ms, less than the backward's 60.
        let training = Work { stack_forward_seconds: Some(0.02), ..work(0.08) };
        expect(&training, 8 * GB, 0.1, (2.0, 2.0));
        // The part that is longer than the link hides it.
        let training = Work { stack_forward_seconds: Some(0.05), ..work(0.15) };
        expect(&training, 8 * GB, 0.15, (2.0, 2.0));
    }

    #[test]
    fn a_sweep_at_the_end_brings_what_vram_does_not_hold_when_it_begins() {
        // 9 GB are swept in 5 ms, of which 1 GB takes 20 ms to come.
        let training = Work { sweep: Some((0.005, 9 * GB)), ..work(0.1) };
        expect(&training, 8 * GB, 0.115, (2.0, 2.0));
        expect(&training, 9 * GB, 0.1, (1.0, 1.0));
    }

    #[test]
    fn random_draws_miss_in_proportion_to_what_is_outside() {
        let experts = Work { clean_bytes: 9 * GB, random_bytes: 8 * GB, touched_bytes: GB, ..work(0.001) };
        expect(&experts, 8 * GB, 0.005, (0.25, 0.0));
        // When even what is touched every time does not fit, all of that comes in.
        expect(&experts, GB, 0.04, (2.0, 0.0));
    }
}
