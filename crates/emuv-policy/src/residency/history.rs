//! When a chunk was used, and so when it will be used again: what happened to it behind the place of the past that
//! corresponds to now ([`super::foresight`]). It is the chunk that is followed, not the allocation in it: a program that
//! repeats itself has its memory at the same addresses again, and memory that is nobody's will be somebody's again.

use std::collections::VecDeque;

use super::foresight::NEAR;

/// Uses that are remembered.
const MOST_USES: usize = 4096;

/// A chunk is hot that so many of so many works before use.
const HOT_USES: usize = 8;
const HOT_WORKS: u64 = 256;

/// Where nothing is foreseen, a chunk in RAM is worth the room of the coldest in VRAM if it has been used so often since that one was. (Of
/// experts that are drawn alike the coldest has not been used for many tokens either.)
const USES_SINCE_COLDEST: usize = 8;

/// It is looked for anew after so many works.
const COLDEST_WORKS: u64 = 256;

/// When what has not been used for longest of all that lies in VRAM was used last.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Coldest {
    last: u64,
    /// The position from which on it is to be looked for anew.
    due: u64,
}

impl Coldest {
    /// Whether it is to be looked for.
    pub fn is_due(self, position: u64) -> bool {
        position >= self.due
    }

    /// What there was to see.
    pub fn set(&mut self, last: Option<u64>, position: u64) {
        (self.last, self.due) = (last.unwrap_or(0), position + COLDEST_WORKS);
    }
}

/// Not foreseen.
pub(super) const NEVER: u64 = u64::MAX;

/// Where a chunk is to be between one use and the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Decision {
    /// In VRAM.
    #[default]
    Keep,
    /// In RAM, and back in VRAM for the next use.
    Out,
    /// In RAM, for the next use as well.
    Stay,
}

/// A work that touched the chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChunkUse {
    pub position: u64,
    /// So many works later the program gave up what the chunk holds.
    kept: u32,
    /// What the chunk held before was nobody's.
    pub fresh: bool,
    /// For the time behind it.
    pub decision: Decision,
}

/// It has not given it up.
const KEPT: u32 = u32::MAX;

impl ChunkUse {
    /// The work before which the program gave up what the chunk holds, if it has.
    pub fn given_up(&self) -> Option<u64> {
        (self.kept != KEPT).then(|| self.position + u64::from(self.kept))
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct History {
    uses: VecDeque<ChunkUse>,
    /// For the time behind the last use.
    pub decision: Decision,
    next: u64,
    /// What the chunk holds now will be nobody's by then.
    dies: bool,
    turns: u64,
}

impl History {
    /// The chunk is used by the work at `position`, to which the one at `place` corresponds.
    pub fn note(&mut self, position: u64, fresh: bool, place: Option<u64>, turns: u64) {
        let mut at = place.map_or(0, |place| self.before(place));
        // A round later the same is done as a round before.
        let like = place.and_then(|place| self.like(at, place));
        self.decision = like.map_or_else(Decision::default, |like| like.decision);
        self.uses.push_back(ChunkUse { position, kept: KEPT, fresh, decision: self.decision });
        let oldest = place.unwrap_or(0).saturating_sub(NEAR);
        while self.uses.len() > MOST_USES || self.uses.front().is_some_and(|first| first.position < oldest) {
            self.uses.pop_front();
            at = at.saturating_sub(1);
        }
        self.foresee(at, position, place, turns);
    }

    /// The program has given up what the chunk holds; the work at `position` is the next.
    pub fn died(&mut self, position: u64) {
        if let Some(last) = self.uses.back_mut().filter(|last| last.kept == KEPT) {
            last.kept = u32::try_from(position - last.position).unwrap_or(KEPT);
        }
    }

    /// How many uses are before `position`. What is asked for is mostly a round ago, and near it lies the oldest that is remembered:
    /// looked for from there, it takes a look at a cache line or two.
    fn before(&self, position: u64) -> usize {
        let is_before = |at: usize| self.uses.get(at).is_some_and(|used| used.position < position);
        let (mut least, mut step) = (0, 1);
        while is_before(least + step - 1) {
            (least, step) = (least + step, 2 * step);
        }
        let mut most = (least + step - 1).min(self.uses.len());
        while least < most {
            let middle = usize::midpoint(least, most);
            if is_before(middle) { least = middle + 1 } else { most = middle }
        }
        least
    }

    /// `at`: how many uses are before `place`.
    fn foresee(&mut self, at: usize, position: u64, place: Option<u64>, turns: u64) {
        self.turns = turns;
        let next = place.and_then(|place| {
            let used =
                [at, at + 1].into_iter().filter_map(|at| self.uses.get(at)).find(|used| used.position > place)?;
            Some((position + (used.position - place), used.fresh))
        });
        (self.next, self.dies) = next.unwrap_or((NEVER, false));
    }

    /// Whether what the chunk holds is foreseen to be nobody's before its next use, as of the last [`Self::next`].
    pub fn dies(&self) -> bool {
        self.dies
    }

    /// The use nearest to `place`, before which there are `at`.
    fn like(&self, at: usize, place: u64) -> Option<ChunkUse> {
        let around = [self.uses.get(at), at.checked_sub(1).and_then(|before| self.uses.get(before))];
        let near = around.into_iter().flatten().filter(|used| used.position.abs_diff(place) <= NEAR);
        near.min_by_key(|used| used.position.abs_diff(place)).copied()
    }

    /// The position of the next use, as seen after the work at `position`; [`NEVER`]: not foreseen.
    pub fn next(&mut self, position: u64, place: Option<u64>, turns: u64) -> u64 {
        if self.turns != turns || self.next <= position {
            self.foresee(place.map_or(0, |place| self.before(place)), position, place, turns);
        }
        self.next
    }

    /// The position of the last use.
    pub fn last(&self) -> u64 {
        self.uses.back().map_or(0, |used| used.position)
    }

    /// Whether most of what happens uses it: that many of the last works.
    pub fn is_hot(&self, position: u64) -> bool {
        let recent = position.saturating_sub(HOT_WORKS);
        self.uses.len() - self.uses.partition_point(|used| used.position < recent) >= HOT_USES
    }

    /// Whether it has been used far more often than the coldest of what lies in VRAM.
    pub fn is_worth_room_of(&self, coldest: Coldest) -> bool {
        self.since(coldest.last).len() >= USES_SINCE_COLDEST
    }

    /// The uses behind `place`.
    pub fn since(&self, place: u64) -> impl ExactSizeIterator<Item = &ChunkUse> {
        self.uses.range(self.before(place + 1)..)
    }

    /// From now on it is always to be in VRAM, until something else is decided.
    pub fn keep(&mut self) {
        self.decision = Decision::Keep;
        self.uses.iter_mut().for_each(|used| used.decision = Decision::Keep);
    }

    /// Decides what comes behind each use behind `place`, in order; without any, what comes from now on.
    pub fn decide(&mut self, place: u64, decisions: impl Iterator<Item = Decision>) {
        let first = self.before(place + 1);
        let mut uses = self.uses.range_mut(first..);
        for decision in decisions {
            if let Some(used) = uses.next() {
                used.decision = decision;
            }
            self.decision = decision;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_used_again_when_it_was_a_round_ago() {
        let mut history = History::default();
        for position in [0, 4, 10, 14, 20] {
            history.note(position, false, position.checked_sub(10), 1);
        }
        assert_eq!(history.next(20, Some(10), 1), 24);
        assert_eq!(history.next(23, Some(13), 1), 24);
        assert_eq!(history.next(24, Some(14), 1), 30, "it was not used when it was expected");
        assert_eq!(history.next(24, None, 2), NEVER);
        assert_eq!(history.last(), 20);
    }

    #[test]
    fn the_uses_before_a_position_are_counted() {
        for length in 0..20 {
            let mut history = History::default();
            (0..length).for_each(|use_| history.note(10 * use_ + 5, false, None, 0));
            for position in 0..210 {
                let expected = (0..length).filter(|use_| 10 * use_ + 5 < position).count();
                assert_eq!(history.before(position), expected, "{position} of {length}");
            }
        }
    }

    #[test]
    fn it_is_known_when_the_program_gave_up_what_a_work_left() {
        let mut history = History::default();
        history.note(3, true, None, 0);
        history.died(7);
        history.died(9); // Somebody else had it since, and no work used it.
        history.note(12, true, None, 0);
        assert_eq!(history.since(0).map(ChunkUse::given_up).collect::<Vec<_>>(), [Some(7), None]);
    }

    #[test]
    fn what_was_decided_holds_a_round_later() {
        let mut history = History::default();
        history.note(10, false, None, 0);
        history.note(14, true, None, 0);
        history.decide(9, [Decision::Keep, Decision::Out].into_iter());
        assert_eq!(history.decision, Decision::Out);
        history.note(20, false, Some(10), 0);
        assert_eq!(history.decision, Decision::Keep);
        history.note(25, false, Some(15), 0);
        assert_eq!(history.decision, Decision::Out, "a work later than expected");
        assert_eq!(history.since(14).map(|used| used.position).collect::<Vec<_>>(), [20, 25]);
    }
}
