//! How a device's memory was used over time: a bounded series that any program fits in.
//!
//! Time is cut into intervals of one length. A point is what there was in one interval: the last sample, and the most of VRAM
//! and RAM that any sample saw. Counts are from the beginning, so those of any two points give what came between. An interval
//! in which nothing was sampled has no point: nothing changed. When there is no room for another point, the intervals become
//! twice as long, and points that now share one become one. So a short program is seen finely, a long one evenly, and no
//! peak and no count is ever lost.

use crate::{Tier, residency::Why};

/// Points that a series has at most.
pub const POINTS: usize = 512;

/// The first intervals.
const FIRST_INTERVAL_MICROS: u64 = 1000;

/// What chunks moved for, each way: see [`lane`].
pub const LANES: usize = 8;

/// Names of the lanes: into VRAM, then out of it.
pub const LANE_NAMES: [&str; LANES] = ["demand", "ahead", "hint", "torture", "room", "plan", "limit", "torture"];

/// Lanes below this one lead into VRAM.
pub const FIRST_LANE_OUT: usize = 4;

/// The lane of a move.
pub const fn lane(why: Why, to: Tier) -> usize {
    match (why, to) {
        (Why::Demand, _) => 0,
        (Why::Ahead, _) => 1,
        (Why::Hint, _) => 2,
        (Why::Torture, Tier::Vram) => 3,
        (Why::Room, _) => 4,
        (Why::Plan, _) => 5,
        (Why::Limit, _) => 6,
        (Why::Torture, Tier::Ram) => 7,
    }
}

/// What there is at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// In use, in bytes: VRAM, RAM.
    pub used_bytes: [u64; 2],
    /// Kernels launched, ever.
    pub launches: u64,
    /// How long calls waited for data, ever, in microseconds.
    pub held_micros: u64,
    /// What was read in place, ever, in bytes.
    pub in_place_bytes: u64,
    /// What was exchanged without copying, ever, in bytes.
    pub remapped_bytes: u64,
    /// What was copied, ever, in bytes, by lane.
    pub moved_bytes: [u64; LANES],
}

/// What there was in an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Point {
    /// When the last sample was taken, in microseconds from the beginning.
    pub micros: u64,
    /// The last sample.
    pub last: Sample,
    /// The most of VRAM and RAM in use, in bytes.
    pub most_used_bytes: [u64; 2],
}

/// Which points have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// This one; the ones before it are as they were.
    Point(usize),
    /// Any of them.
    All,
}

/// See the module's head.
#[derive(Debug)]
pub struct Series {
    points: Vec<Point>,
    interval_micros: u64,
}

impl Default for Series {
    fn default() -> Self {
        Self { points: Vec::with_capacity(POINTS), interval_micros: FIRST_INTERVAL_MICROS }
    }
}

impl Series {
    /// What there is `micros` after the beginning; times do not fall (one that does counts as the last one).
    pub fn add(&mut self, micros: u64, sample: Sample) -> Changed {
        let point = Point { micros, last: sample, most_used_bytes: sample.used_bytes };
        let mut changed = None;
        loop {
            let count = self.points.len();
            match self.points.last_mut() {
                Some(last) if micros / self.interval_micros <= last.micros / self.interval_micros => {
                    last.join(&Point { micros: micros.max(last.micros), ..point });
                    return changed.unwrap_or(Changed::Point(count - 1));
                }
                _ if count < POINTS => {
                    self.points.push(point);
                    return changed.unwrap_or(Changed::Point(count));
                }
                _ => {
                    self.coarsen();
                    changed = Some(Changed::All);
                }
            }
        }
    }

    /// The points, in order of time.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// How long an interval is.
    pub fn interval_micros(&self) -> u64 {
        self.interval_micros
    }

    fn coarsen(&mut self) {
        self.interval_micros = self.interval_micros.saturating_mul(2);
        let interval = self.interval_micros;
        self.points.dedup_by(|later, earlier| {
            let same = later.micros / interval == earlier.micros / interval;
            if same {
                earlier.join(later);
            }
            same
        });
    }
}

impl Point {
    fn join(&mut self, later: &Self) {
        let [vram, ram] = self.most_used_bytes;
        let [later_vram, later_ram] = later.most_used_bytes;
        *self = Self { most_used_bytes: [vram.max(later_vram), ram.max(later_ram)], ..*later };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(bytes: u64, launches: u64) -> Sample {
        Sample { used_bytes: [bytes, bytes / 2], launches, ..Sample::default() }
    }

    #[test]
    fn samples_of_one_interval_are_one_point_with_the_last_and_the_most() {
        let mut series = Series::default();
        assert_eq!(series.add(100, sample(5, 1)), Changed::Point(0));
        assert_eq!(series.add(900, sample(9, 2)), Changed::Point(0));
        assert_eq!(series.add(999, sample(3, 3)), Changed::Point(0));
        assert_eq!(series.add(1000, sample(4, 4)), Changed::Point(1));
        let first = series.points()[0];
        assert_eq!((first.micros, first.last.used_bytes, first.most_used_bytes), (999, [3, 1], [9, 4]));
    }

    #[test]
    fn one_point_too_many_makes_the_intervals_twice_as_long() {
        let mut series = Series::default();
        for at in 0..POINTS as u64 {
            assert_eq!(series.add(at * 1000, sample(at % 7, at)), Changed::Point(usize::try_from(at).unwrap()));
        }
        assert_eq!(series.add(POINTS as u64 * 1000, sample(1, 1000)), Changed::All);
        assert_eq!((series.points().len(), series.interval_micros()), (POINTS / 2 + 1, 2000));
        assert_eq!(series.points()[1].last.launches, 3, "the later one of each two");
    }

    #[test]
    fn after_a_long_silence_the_next_sample_has_a_place() {
        let mut series = Series::default();
        (0..POINTS as u64).for_each(|at| assert!(series.add(at * 1000, sample(1, at)) != Changed::All));
        assert_eq!(series.add(u64::MAX, sample(2, 9999)), Changed::All);
        assert_eq!(series.points().last().unwrap().last.launches, 9999);
    }

    proptest! {
        #[test]
        fn no_peak_and_no_count_is_lost(steps in proptest::collection::vec((0_u64..20_000, 0_u64..1 << 40), 1..3000)) {
            let mut series = Series::default();
            let (mut micros, mut most) = (0, 0);
            let mut mirror = Vec::new();
            for (number, (passed, bytes)) in steps.iter().enumerate() {
                micros += passed;
                most = most.max(*bytes);
                match series.add(micros, sample(*bytes, number as u64)) {
                    Changed::All => mirror = series.points().to_vec(),
                    Changed::Point(at) => {
                        mirror.truncate(at);
                        mirror.push(series.points()[at]);
                    }
                }
                prop_assert!(series.points().len() <= POINTS);
                prop_assert_eq!(series.points().last().unwrap().last, sample(*bytes, number as u64));
            }
            let points = series.points();
            prop_assert_eq!(points, mirror.as_slice());
            prop_assert_eq!(points.iter().map(|point| point.most_used_bytes[0]).max().unwrap(), most);
            let interval = series.interval_micros();
            prop_assert!(points.windows(2).all(|two| two[0].micros / interval < two[1].micros / interval));
            prop_assert!(points.windows(2).all(|two| two[0].last.launches < two[1].last.launches));
        }
    }
}
