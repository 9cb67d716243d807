//! The least that has to cross the link in a round of a loop, by Belady's rule: what `baselines/bound.rs` counts for a recorded
//! program, for the last round as it was, played over and over. A long round is reckoned a part at a time.

use std::rc::Rc;

use crate::{
    LastRound, RoundChunk, Touch,
    baselines::{Belady, read_once},
    machine::Link,
};

/// A round that repeats itself.
#[derive(Debug, Default)]
pub(super) struct Round {
    chunks: Vec<RoundChunk>,
    touches: Vec<Touch>,
    /// For each touch: the work that needs the chunk's bytes after it, counted from the round's beginning.
    next: Vec<Option<u32>>,
    works: u32,
    /// What is read in place as fast as it could be brought: by rate, in bytes of a round.
    readable: Vec<(f64, u64)>,
    /// What the program may use of VRAM.
    pub vram_bytes: u64,
    /// Everything that is touched.
    pub touched_bytes: u64,
}

impl Round {
    pub fn new(last: LastRound, free_vram_bytes: u64) -> Self {
        let LastRound { vram_bytes, chunks, mut touches } = last;
        touches.sort_unstable();
        let works = touches.last().map_or(0, |touch| touch.work + 1);
        let mut uses = vec![0_u64; chunks.len()];
        let mut next = vec![None; touches.len()];
        // What follows the last use of a chunk is its first one, a round later.
        let mut following: Vec<Option<(u32, bool)>> = vec![None; chunks.len()];
        for touch in touches.iter().rev() {
            following[touch.chunk as usize] = Some((touch.work + works, touch.fresh));
        }
        for (touch, next) in touches.iter().zip(&mut next).rev() {
            let following = &mut following[touch.chunk as usize];
            *next = following.filter(|(_, fresh)| !fresh).map(|(work, _)| work);
            *following = Some((touch.work, touch.fresh));
            uses[touch.chunk as usize] += 1;
        }
        let readable = chunks.iter().zip(uses).filter(|(chunk, _)| !chunk.made_anew);
        let readable = readable.filter_map(|(chunk, uses)| Some((chunk.rate?, chunk.bytes * uses))).collect();
        let touched_bytes = chunks.iter().map(|chunk| chunk.bytes).sum();
        Self { chunks, touches, next, works, readable, vram_bytes: vram_bytes + free_vram_bytes, touched_bytes }
    }

    /// Bytes that works would read in place at the link's speed if they lay in RAM.
    fn readable_bytes(&self, link: &Link) -> u64 {
        let least = link.in_bytes_per_us / read_once(link).max(1.0);
        self.readable.iter().filter(|(rate, _)| *rate >= least).map(|(_, bytes)| bytes).sum()
    }
}

/// What has to cross the link in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Crossing {
    pub in_bytes: u64,
    pub out_bytes: u64,
    /// Of `in_bytes`: what lasts from round to round (weights, and not activations).
    pub lasting_bytes: u64,
}

/// A reckoning under way.
#[derive(Debug)]
pub(super) struct Reckoning {
    pub round: Rc<Round>,
    pub vram_bytes: u64,
    vram: Belady,
    at: usize,
    found: Crossing,
}

impl Reckoning {
    pub fn new(round: Rc<Round>, vram_bytes: u64) -> Self {
        Self { round, vram_bytes, vram: Belady::new(vram_bytes), at: 0, found: Crossing::default() }
    }

    /// Goes on for about so many touches. `None`: it is not over.
    pub fn step(&mut self, touches: usize, link: &Link) -> Option<Crossing> {
        let count = self.round.touches.len();
        // The second time counts: from then on each round is like the one before.
        let end = (self.at + touches).min(2 * count);
        while self.at < end {
            let (again, at) = (self.at >= count, self.at % count);
            let touch = self.round.touches[at];
            let chunk = self.round.chunks[touch.chunk as usize];
            let start = if again { self.round.works } else { 0 };
            let next = self.round.next[at].map(|next| next + start);
            let crossed = self.vram.touch(touch.work + start, touch.chunk, chunk.bytes, next);
            if again && !touch.fresh {
                self.found.in_bytes += crossed;
                self.found.lasting_bytes += if chunk.made_anew { 0 } else { crossed };
            }
            if self.round.touches.get(at + 1).is_none_or(|after| after.work != touch.work) {
                self.vram.done();
            }
            self.at += 1;
        }
        (self.at == 2 * count).then(|| {
            let out_bytes = self.found.in_bytes.saturating_sub(self.round.readable_bytes(link));
            Crossing { out_bytes, ..self.found }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINK: Link = Link { in_bytes_per_us: 50e3, out_bytes_per_us: 50e3, both_bytes_per_us: 90e3 };
    const MIB: u64 = 1 << 20;

    fn chunk(rate: Option<f64>) -> RoundChunk {
        RoundChunk { bytes: 32 * MIB, made_anew: false, rate }
    }

    fn crossing(round: &Rc<Round>, vram_bytes: u64, part: usize) -> Crossing {
        let mut reckoning = Reckoning::new(round.clone(), vram_bytes);
        loop {
            if let Some(found) = reckoning.step(part, &LINK) {
                return found;
            }
        }
    }

    fn scan(chunks: u32, rate: Option<f64>) -> Rc<Round> {
        let touches = (0..chunks).map(|work| Touch { work, chunk: work, fresh: false }).collect();
        let chunks = vec![chunk(rate); chunks as usize];
        Rc::new(Round::new(LastRound { vram_bytes: 0, chunks, touches }, 0))
    }

    #[test]
    fn of_a_scan_what_does_not_fit_crosses_both_ways_unless_it_is_read_in_place() {
        let bytes = 10 * 32 * MIB;
        let moved = crossing(&scan(60, None), 50 * 32 * MIB, 7);
        assert_eq!(moved, Crossing { in_bytes: bytes, out_bytes: bytes, lasting_bytes: bytes });
        let read = crossing(&scan(60, Some(49e3)), 50 * 32 * MIB, 7);
        assert_eq!((read.in_bytes, read.out_bytes), (bytes, 0));
        let slowly = crossing(&scan(60, Some(30e3)), 50 * 32 * MIB, 7);
        assert_eq!(slowly.out_bytes, bytes);
    }

    #[test]
    fn what_is_made_anew_need_not_come_in_for_that() {
        let touches = (0..10).map(|chunk| Touch { work: chunk, chunk, fresh: true });
        let back = (0..10).map(|chunk| Touch { work: 19 - chunk, chunk, fresh: false });
        let chunks = vec![RoundChunk { made_anew: true, ..chunk(None) }; 10];
        let round = LastRound { vram_bytes: 0, chunks, touches: touches.chain(back).collect() };
        let found = crossing(&Rc::new(Round::new(round, 0)), 6 * 32 * MIB, 100);
        assert_eq!((found.in_bytes, found.lasting_bytes), (4 * 32 * MIB, 0));
    }

    #[test]
    fn a_round_without_touches_needs_nothing() {
        assert_eq!(crossing(&scan(0, None), 0, 1), Crossing::default());
    }

    proptest! {
        #[test]
        fn more_vram_never_needs_more_and_the_parts_do_not_matter(
            touches in proptest::collection::vec((0_u32..40, 0_u32..12, any::<bool>()), 1..120),
            vram_chunks in 0_u64..13,
            part in 1_usize..50,
        ) {
            let mut touches: Vec<Touch> =
                touches.into_iter().map(|(work, chunk, fresh)| Touch { work, chunk, fresh }).collect();
            touches.sort_unstable();
            touches.dedup_by_key(|touch| (touch.work, touch.chunk));
            let read: u64 = touches.iter().filter(|touch| !touch.fresh).count() as u64 * 32 * MIB;
            let round = LastRound { vram_bytes: 0, chunks: vec![chunk(None); 12], touches };
            let round = Rc::new(Round::new(round, 0));
            let found = crossing(&round, vram_chunks * 32 * MIB, part);
            prop_assert_eq!(found, crossing(&round, vram_chunks * 32 * MIB, usize::MAX / 2));
            prop_assert!(crossing(&round, (vram_chunks + 1) * 32 * MIB, 1000).in_bytes <= found.in_bytes);
            prop_assert!(found.in_bytes <= read);
            prop_assert_eq!(crossing(&round, 12 * 32 * MIB, 1000).in_bytes, 0);
        }
    }
}
