//! Which chunks are out of VRAM when, in a loop that does not fit: the plan of one round.
//!
//! Between two uses of a chunk lies a *gap*, during which it may be in RAM. At every moment of the round the chunks that
//! are out must make up what does not fit. So gaps are chosen, cheapest coverage first (greedily: the problem is the
//! weighted form of what Belady's rule solves, and NP-hard), until every moment is covered. What is chosen once is out in
//! every round: a resident part is never disturbed, and evictions begin as soon as a gap does, not when room runs out.
//!
//! Where many gaps are alike, as in a cyclic scan, those are chosen that are spread evenly over the round, so that the link
//! always has something to do, and of what a work needs at once not more than of others.

use std::{collections::BinaryHeap, ops::Range};

/// Moments of a round at which enough is to be out. Of a gap those count that lie in it: were there few, much of a short gap would be for
/// nothing.
const MOMENTS: usize = 384;

/// Parts of a round in which what crosses the link is added up.
const PARTS: usize = 96;

/// What a change of mapping costs, as much as copying this many bytes.
const REMAP_BYTES: f64 = 3e6;

/// The same of a chunk that holds nothing, out and in again. Nothing of it hides behind a copy; while it is mapped nothing goes out and the
/// program's launches wait; and it needs memory of its own size, which is mostly small: others' is given up for that and made again
/// (tuned in the simulator, which has all of that, on the workloads of `emuv bench`).
const EXCHANGE_BYTES: f64 = 15e6;

/// What a chunk costs that no work of the round uses: it goes once, if it is not out already, and does not come back.
const UNUSED_BYTES: f64 = 1e5;

/// Choosing again what was chosen before is worth so much more, and being where it is to be.
const STEADY: f64 = 1.05;

/// How much a link with little to do at the time counts among gaps that are alike, also among those read in place.
const SPREAD: f64 = 0.2;
const SPREAD_IN_PLACE: f64 = 0.03;

/// What it counts that as much as a large chunk crosses the link in the same part already: works that need several chunks at once have
/// them all in VRAM then, and for each of them another one must be out.
const BESIDE: f64 = 0.05;
const BESIDE_BYTES: f64 = 32e6;

/// A time in which a chunk is not used. Times are in microseconds from the beginning of the round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gap {
    /// Size of the chunk.
    pub bytes: u64,
    /// From when.
    pub start: f64,
    /// Until when: behind the round's end if it reaches into the next one.
    pub end: f64,
    /// What the chunk holds meanwhile is nobody's.
    pub dead: bool,
    /// The chunk need not come back for its uses, because they read it as well in RAM: it is out all the time, and the link is busy
    /// with them as long as with copying it so many times.
    pub in_place: Option<f64>,
    /// No work of the round uses the chunk: as far as is known it need never come back.
    pub unused: bool,
    /// It was chosen last time, or the chunk is out already.
    pub steady: bool,
}

/// The round and the link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Round {
    /// How long it takes with everything in VRAM, in microseconds.
    pub micros: f64,
    /// What does not fit, in bytes.
    pub out_bytes: u64,
    /// The link's speed in bytes per microsecond.
    pub link: f64,
    /// What may come in before it is needed, or wait before it goes, in bytes.
    pub ahead_bytes: u64,
}

impl Gap {
    /// What moving out and in costs, in bytes.
    #[allow(clippy::cast_precision_loss)] // An estimate.
    fn cost(&self) -> f64 {
        let bytes = self.bytes as f64;
        match self.in_place {
            Some(times) => bytes * times + REMAP_BYTES / 2.0,
            None if self.unused => UNUSED_BYTES,
            None if self.dead => EXCHANGE_BYTES,
            None => bytes * 1.2 + 2.0 * REMAP_BYTES,
        }
    }

    /// When its bytes cross the link: as they go and come back, or are read in place.
    fn crossings(&self) -> impl Iterator<Item = f64> {
        let goes = (!self.dead || self.in_place.is_some()).then_some(self.start);
        let comes = (!self.dead && !self.unused && self.in_place.is_none()).then_some(self.end);
        goes.into_iter().chain(comes)
    }

    /// Whether there is time to move out and in.
    #[allow(clippy::cast_precision_loss)] // An estimate.
    fn is_long_enough(&self, round: &Round, stretch: f64) -> bool {
        let moved = if self.dead { REMAP_BYTES } else { self.bytes as f64 + REMAP_BYTES };
        self.in_place.is_some() || self.unused || (self.end - self.start) * stretch >= 2.0 * moved / round.link
    }

    /// The moments of the round at which it is out; what reaches into the next round is at its beginning.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // Small numbers.
    fn moments(&self, round: &Round) -> [Range<usize>; 2] {
        if self.in_place.is_some() {
            return [0..MOMENTS, 0..0];
        }
        let moment = round.micros / MOMENTS as f64;
        // What holds nothing goes and comes as soon as the mapping is changed.
        let change = if self.dead && !self.unused { REMAP_BYTES / round.link } else { 0.0 };
        let first = ((self.start + change) / moment).ceil() as usize;
        let last = ((self.end - change) / moment).floor() as usize;
        let (start, count) = (first % MOMENTS, last.saturating_sub(first).min(MOMENTS));
        let end = start + count;
        [start..end.min(MOMENTS), 0..end.saturating_sub(MOMENTS)]
    }
}

/// What there is to know of a gap, looked up again and again.
struct Shape {
    bytes: f64,
    cost: f64,
    moments: [Range<usize>; 2],
    /// The parts of the round in which its bytes cross the link: the first so many of these.
    parts: [usize; 2],
    crossings: usize,
    in_place: bool,
    steady: bool,
}

/// What is chosen so far.
struct Plan {
    shapes: Vec<Shape>,
    /// What must still be out, by moment of the round.
    need: [f64; MOMENTS],
    /// What goes out and comes in, by the part in which it may go or has to be there; and as much as may be made up for from there.
    load: [f64; PARTS],
    around: [f64; PARTS],
    /// How many parts on either side the link can make up for, and what it can carry in all of these, both ways.
    reach: usize,
    capacity: f64,
}

/// Chooses gaps so that at every moment `out_bytes` are out, as far as there are enough: whether each is chosen.
#[allow(clippy::cast_precision_loss)] // Estimates.
pub fn choose(gaps: &[Gap], round: &Round) -> Vec<bool> {
    let mut chosen = vec![false; gaps.len()];
    // The round takes as long as the link needs.
    let stretch = (round.out_bytes as f64 / round.link / round.micros.max(1.0)).max(1.0);
    let mut plan = Plan::new(gaps, round, stretch);
    let mut heap: BinaryHeap<Candidate> = (0..gaps.len())
        .filter(|index| gaps[*index].is_long_enough(round, stretch))
        .filter_map(|index| plan.candidate(index))
        .collect();
    while let Some(best) = heap.pop() {
        // What has been chosen since may have made it less useful.
        let Some(now) = plan.candidate(best.gap) else { continue };
        if heap.peek().is_some_and(|next| next.score > now.score) {
            heap.push(now);
            continue;
        }
        chosen[best.gap] = true;
        plan.take(best.gap);
        if plan.need.iter().all(|need| *need <= 0.0) {
            break;
        }
    }
    chosen
}

impl Plan {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // Estimates.
    fn new(gaps: &[Gap], round: &Round, stretch: f64) -> Self {
        let part_of = |at: f64| (at / round.micros.max(1.0) * PARTS as f64) as usize % PARTS;
        let shapes = gaps.iter().map(|gap| {
            let mut parts = [0; 2];
            let crossings = parts.iter_mut().zip(gap.crossings()).map(|(part, at)| *part = part_of(at)).count();
            let (bytes, cost, moments) = (gap.bytes as f64, gap.cost(), gap.moments(round));
            Shape { bytes, cost, moments, parts, crossings, in_place: gap.in_place.is_some(), steady: gap.steady }
        });
        let part_bytes = (round.micros * stretch / PARTS as f64 * round.link).max(1.0);
        let reach = ((round.ahead_bytes as f64 / part_bytes).ceil() as usize).clamp(1, PARTS / 4);
        let capacity = part_bytes * (2 * reach + 1) as f64 * 2.0;
        Self {
            shapes: shapes.collect(),
            need: [round.out_bytes as f64; MOMENTS],
            load: [0.0; PARTS],
            around: [0.0; PARTS],
            reach,
            capacity,
        }
    }

    /// `None`: it covers nothing that still needs covering, or not for longer than a moment.
    #[allow(clippy::cast_precision_loss)] // Estimates.
    fn candidate(&self, index: usize) -> Option<Candidate> {
        let gap = &self.shapes[index];
        let useful: f64 = gap.moments.iter().map(|moments| useful(&self.need[moments.clone()], gap.bytes)).sum();
        if useful <= gap.bytes {
            return None;
        }
        let steady = if gap.steady { STEADY } else { 1.0 };
        // Of what has to be copied at times at which the link has much to do already, others have to wait. Who reads in place
        // waits for the link whenever it is.
        let busy = |part: &usize| {
            // How much of what the link can carry around this time is used.
            let load = self.around[*part] / self.capacity + gap.bytes / self.capacity;
            if gap.in_place {
                1.0 + SPREAD_IN_PLACE * load
            } else {
                load.max(1.0) + SPREAD * load + BESIDE * (self.load[*part] / BESIDE_BYTES)
            }
        };
        let parts = gap.parts.iter().take(gap.crossings);
        let busy = if gap.crossings > 0 { parts.map(busy).sum::<f64>() / gap.crossings as f64 } else { 1.0 };
        Some(Candidate { score: useful / (gap.cost * busy) * steady, gap: index })
    }

    fn take(&mut self, index: usize) {
        let gap = &self.shapes[index];
        for moments in &gap.moments {
            self.need[moments.clone()].iter_mut().for_each(|need| *need -= gap.bytes);
        }
        for part in gap.parts.iter().take(gap.crossings) {
            self.load[*part] += gap.bytes;
            let first = part + PARTS - self.reach;
            (first..=first + 2 * self.reach).for_each(|part| self.around[part % PARTS] += gap.bytes);
        }
    }
}

/// How much of what is needed so many bytes cover, of all moments together. Of whole bytes: the sum is exact in any order, and this one takes
/// several at a time. (Choosing is little else, and a program's launches wait for it.)
fn useful(need: &[f64], bytes: f64) -> f64 {
    const LANES: usize = 8;
    let covered = |need: f64| {
        let least = if need > 0.0 { need } else { 0.0 };
        if least < bytes { least } else { bytes }
    };
    let mut sums = [0.0; LANES];
    let lanes = need.chunks_exact(LANES);
    let rest: f64 = lanes.remainder().iter().map(|need| covered(*need)).sum();
    for lane in lanes {
        sums.iter_mut().zip(lane).for_each(|(sum, need)| *sum += covered(*need));
    }
    sums.iter().sum::<f64>() + rest
}

#[derive(Debug, PartialEq)]
struct Candidate {
    score: f64,
    gap: usize,
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.gap.cmp(&self.gap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn gap(bytes: u64, start: f64, end: f64) -> Gap {
        Gap { bytes, start, end, dead: false, in_place: None, unused: false, steady: false }
    }

    /// What is out in each hundredth of the round, in MiB.
    fn out(gaps: &[Gap], chosen: &[bool], micros: f64) -> Vec<u64> {
        (0..100)
            .map(|part| (f64::from(part) + 0.5) * micros / 100.0)
            .map(|at| {
                let covers = |gap: &Gap| [at, at + micros].iter().any(|at| gap.start <= *at && *at < gap.end);
                let chosen = gaps.iter().zip(chosen).filter(|(gap, chosen)| **chosen && covers(gap));
                chosen.map(|(gap, _)| gap.bytes / MIB).sum()
            })
            .collect()
    }

    #[test]
    fn of_a_scan_evenly_spread_chunks_are_out() {
        let gaps: Vec<Gap> =
            (0..100).map(|i| gap(32 * MIB, f64::from(i) * 1e3, f64::from(i) * 1e3 + 99_900.0)).collect();
        let round = Round { micros: 1e5, out_bytes: 25 * 32 * MIB, link: 50e3, ahead_bytes: 128 * MIB };
        let chosen = choose(&gaps, &round);
        let places: Vec<usize> = (0..100).filter(|i| chosen[*i]).collect();
        assert!((25..=27).contains(&places.len()), "{places:?}");
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] <= 8), "{places:?}");
        // The same again: the plan is stable.
        let again: Vec<Gap> = gaps.iter().zip(&chosen).map(|(gap, chosen)| Gap { steady: *chosen, ..*gap }).collect();
        assert_eq!(choose(&again, &round), chosen);
    }

    #[test]
    fn of_what_works_need_at_once_each_gives_some() {
        // Each work needs four chunks, that of the first forty are out already.
        let gaps: Vec<Gap> = (0..100)
            .map(|i| {
                let start = f64::from(i / 4) * 4e3;
                Gap { steady: i < 40, ..gap(32 * MIB, start, start + 99_900.0) }
            })
            .collect();
        let round = Round { micros: 1e5, out_bytes: 20 * 32 * MIB, link: 50e3, ahead_bytes: 128 * MIB };
        let chosen = choose(&gaps, &round);
        let of_works: Vec<usize> = chosen.chunks(4).map(|work| work.iter().filter(|chosen| **chosen).count()).collect();
        assert!(of_works.iter().all(|chosen| *chosen <= 2), "{of_works:?}");
        assert!(of_works.iter().sum::<usize>() <= 22, "{of_works:?}");
    }

    #[test]
    fn of_gaps_that_are_short_against_the_round_little_is_for_nothing() {
        // Forty chunks, each used in each sixteenth of the round; ten are to be out.
        let starts = (0..16 * 40).map(|number| f64::from(number) * 250.0);
        let gaps: Vec<Gap> = starts.map(|start| gap(32 * MIB, start + 250.0, start + 10e3)).collect();
        let round = Round { micros: 160e3, out_bytes: 10 * 32 * MIB, link: 50e3, ahead_bytes: 128 * MIB };
        let chosen = choose(&gaps, &round).iter().filter(|chosen| **chosen).count();
        assert!((164..190).contains(&chosen), "{chosen} moves for 164");
    }

    #[test]
    fn of_activations_the_first_are_out_longest() {
        // Layer i is made at i ms and used again at 200 - i ms.
        let gaps: Vec<Gap> = (0..100).map(|i| gap(32 * MIB, f64::from(i) * 1e3, 200e3 - f64::from(i) * 1e3)).collect();
        let round = Round { micros: 200e3, out_bytes: 20 * 32 * MIB, link: 50e3, ahead_bytes: 128 * MIB };
        let chosen = choose(&gaps, &round);
        let places: Vec<usize> = (0..100).filter(|i| chosen[*i]).collect();
        assert!(places.len() < 60, "{places:?}");
        assert!(out(&gaps, &chosen, 200e3)[60..90].iter().all(|mib| *mib >= 19 * 32));
    }

    #[test]
    fn what_is_nobodys_goes_first() {
        let mut gaps = vec![gap(32 * MIB, 0.0, 9e4); 10];
        gaps.extend([Gap { dead: true, ..gaps[0] }; 10]);
        let chosen = choose(&gaps, &Round { micros: 1e5, out_bytes: 5 * 32 * MIB, link: 50e3, ahead_bytes: 128 * MIB });
        assert!(chosen[..10].iter().all(|chosen| !chosen));
        assert_eq!(chosen[10..].iter().filter(|chosen| **chosen).count(), 5);
    }

    #[test]
    fn what_reads_as_well_in_place_is_not_moved() {
        let mut gaps: Vec<Gap> = (0..10).map(|i| gap(32 * MIB, f64::from(i) * 1e4, f64::from(i) * 1e4 + 9e4)).collect();
        gaps.extend(gaps.clone().iter().map(|gap| Gap { in_place: Some(1.0), ..*gap }));
        let chosen = choose(&gaps, &Round { micros: 1e5, out_bytes: 5 * 32 * MIB, link: 50e3, ahead_bytes: 128 * MIB });
        assert!(chosen[..10].iter().all(|chosen| !chosen));
    }

    #[test]
    fn what_the_round_does_not_use_goes_first_however_short_the_round_is() {
        // 2 MiB each are used in turn; 32 MiB each, which would take longer than the round to go and come back, are not.
        let mut gaps: Vec<Gap> =
            (0..64).map(|i| gap(2 * MIB, f64::from(i) * 4.0, f64::from(i) * 4.0 + 252.0)).collect();
        gaps.extend([Gap { unused: true, ..gap(32 * MIB, 0.0, 256.0) }; 10]);
        let chosen = choose(&gaps, &Round { micros: 256.0, out_bytes: 40 * MIB, link: 50e3, ahead_bytes: 40 * MIB });
        assert!(chosen[..64].iter().all(|chosen| !chosen));
        assert_eq!(chosen[64..].iter().filter(|chosen| **chosen).count(), 2);
    }

    #[test]
    fn what_the_round_does_not_use_goes_before_what_it_uses_once() {
        let mut gaps: Vec<Gap> =
            (0..40).map(|i| gap(32 * MIB, f64::from(i) * 1e3, f64::from(i) * 1e3 + 39_000.0)).collect();
        gaps.extend([Gap { unused: true, ..gap(32 * MIB, 0.0, 40e3) }; 40]);
        let chosen =
            choose(&gaps, &Round { micros: 40e3, out_bytes: 30 * 32 * MIB, link: 50e3, ahead_bytes: 128 * MIB });
        assert!(chosen[..40].iter().all(|chosen| !chosen));
        assert_eq!(chosen[40..].iter().filter(|chosen| **chosen).count(), 30);
    }

    #[test]
    fn a_gap_that_is_too_short_is_none() {
        let gaps = [gap(32 * MIB, 0.0, 900.0)];
        assert_eq!(
            choose(&gaps, &Round { micros: 1e5, out_bytes: 32 * MIB, link: 50e3, ahead_bytes: 128 * MIB }),
            [false]
        );
    }
}
