//! What no schedule undercuts: section 6 of the design, from the program itself.
//!
//! `T >= max(C, X_in / B_in, X_out / B_out, (X_in + X_out) / B_both)` for a round, where `C` is how long it takes with
//! everything in VRAM and `X` what has to cross the link.
//!
//! `X_in` is counted by Belady's rule (`belady.rs`): whatever is touched and was not in VRAM has crossed the link, moved or
//! read in place. What is overwritten before it is read need not cross.
//!
//! `X_out` is as much, because whatever leaves VRAM is copied unless it is nobody's (nothing in a trace proves that a work
//! does not write), but for what the recording says does not change, and for what is only ever read about once by each of its works:
//! that can lie in RAM for good.
//! Schedules that read a chunk in place at one use and move it for another are not counted with.
//!
//! The same holds for each part of a round: when it begins, VRAM holds at most what it can of what the part needs, and when it
//! ends, of what is needed of it later; the rest crosses meanwhile. Parts follow one another, so their times add up, and the
//! bound is the greatest sum over all ways of cutting a round. That is how it comes in that activations can only go out while the forward
//! part makes them, and come in while the backward part uses them up, and that an optimizer's step goes through more than VRAM holds in
//! no time of its own.

use super::belady::Belady;
use crate::machine::{Link, Script, ScriptChunk, ScriptWork};

/// Into how many pieces a round is cut; a part is one or more of them.
const PIECES: usize = 48;

/// See the module's head. Per round.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Bound {
    /// Bytes that have to come in, at least.
    pub in_bytes: f64,
    /// Bytes that have to go out for that.
    pub out_bytes: f64,
    /// How long the link needs for them, in microseconds.
    pub link_us: f64,
    /// How long the parts of a round take one after the other, in microseconds.
    pub parts_us: f64,
}

/// How slowly something may be read in place so that moving it is no better, as far as the link goes.
pub(crate) fn read_once(link: &Link) -> f64 {
    link.micros(1.0, 1.0) * link.in_bytes_per_us
}

/// For `rounds` rounds that begin with the work `first` and end before the work `end`.
#[allow(clippy::cast_precision_loss)] // Far below 2^52.
pub fn bound(script: &Script, vram_bytes: u64, link: &Link, first: u32, end: u32, rounds: usize) -> Bound {
    let rounds = rounds.max(1) as f64;
    let in_bytes = misses(script, vram_bytes, first, end) as f64 / rounds;
    let slowness = read_once(link).max(1.0);
    let stays: Vec<bool> = script
        .chunks
        .iter()
        .map(|chunk| {
            let mut later = chunk.uses.iter().skip(1);
            let is_constant = chunk.constant_from.is_some_and(|from| from <= first);
            is_constant || later.all(|used| !used.fresh && script.works[used.work as usize].slowness <= slowness)
        })
        .collect();
    let measured = first..end;
    let readable: u64 = script
        .chunks
        .iter()
        .zip(&stays)
        .filter(|(_, stays)| **stays)
        .map(|(chunk, _)| chunk.bytes * chunk.uses.iter().filter(|used| measured.contains(&used.work)).count() as u64)
        .sum();
    let out_bytes = (in_bytes - readable as f64 / rounds).max(0.0);
    let mut begin: Vec<u32> = script.rounds.iter().copied().filter(|work| measured.contains(work)).collect();
    if begin.first() != Some(&first) {
        begin.insert(0, first);
    }
    let ends = begin.iter().skip(1).copied().chain([end]);
    let parts_us = begin
        .iter()
        .zip(ends)
        .map(|(first, end)| Parts { script, vram_bytes, link, stays: &stays, cuts: cuts(script, *first, end) }.micros())
        .sum::<f64>();
    Bound { in_bytes, out_bytes, link_us: link.micros(in_bytes, out_bytes), parts_us: parts_us / rounds }
}

/// Bytes that Belady's rule misses from the work `first` on.
fn misses(script: &Script, vram_bytes: u64, first: u32, end: u32) -> u64 {
    let mut vram = Belady::new(vram_bytes);
    let mut missed = 0;
    for (number, work) in (0_u32..end).zip(&script.works) {
        let crossed = comes_for(script, &mut vram, number, work);
        missed += if number >= first { crossed } else { 0 };
    }
    missed
}

/// What a work misses, and so has to come in for it.
fn comes_for(script: &Script, vram: &mut Belady, number: u32, work: &ScriptWork) -> u64 {
    let mut missed = 0;
    for &chunk in &work.chunks {
        let ScriptChunk { bytes, uses, .. } = &script.chunks[chunk as usize];
        let at = uses.partition_point(|used| used.work < number);
        // What is overwritten then need not be kept until then.
        let next = uses.get(at + 1).filter(|next| !next.fresh).map(|next| next.work);
        let crossed = vram.touch(number, chunk, *bytes, next);
        missed += if uses[at].fresh { 0 } else { crossed };
    }
    vram.done();
    missed
}

/// Where these works are cut: into pieces that take about as long, the last behind them all.
fn cuts(script: &Script, first: u32, end: u32) -> Vec<u32> {
    let works = &script.works[first as usize..end as usize];
    let piece_us = works.iter().map(|work| work.micros).sum::<f64>() / PIECES as f64;
    let (mut cuts, mut micros) = (vec![first], 0.0);
    for (number, work) in (first..end).zip(works) {
        if micros > 0.0 && micros >= piece_us {
            cuts.push(number);
            micros = 0.0;
        }
        micros += work.micros;
    }
    cuts.push(end);
    cuts
}

/// The parts of a round, each from a cut to a later one.
struct Parts<'a> {
    script: &'a Script,
    vram_bytes: u64,
    link: &'a Link,
    /// By chunk: whether it need not go out to lie in RAM.
    stays: &'a [bool],
    cuts: Vec<u32>,
}

impl Parts<'_> {
    /// The greatest sum of the times of parts that follow one another.
    #[allow(clippy::cast_precision_loss)] // Far below 2^52.
    fn micros(&self) -> f64 {
        let pieces = self.cuts.len() - 1;
        // Bytes that come in between two cuts, and that go out.
        let comes: Vec<Vec<u64>> = (0..pieces).map(|from| self.comes(from)).collect();
        let goes: Vec<Vec<u64>> = (1..=pieces).map(|to| self.goes(to)).collect();
        let mut best = vec![0.0_f64; pieces + 1];
        for to in 1..=pieces {
            let mut computes = 0.0;
            for from in (0..to).rev() {
                computes += self.works(from).map(|(_, work)| work.micros).sum::<f64>();
                let (comes, goes) = (comes[from][to - from - 1], goes[to - 1][to - from - 1]);
                let takes = computes.max(self.link.micros(comes as f64, goes as f64));
                best[to] = best[to].max(best[from] + takes);
            }
        }
        best[pieces]
    }

    /// The works of a piece, with their numbers.
    fn works(&self, piece: usize) -> impl DoubleEndedIterator<Item = (u32, &ScriptWork)> {
        (self.cuts[piece]..self.cuts[piece + 1]).map(|number| (number, &self.script.works[number as usize]))
    }

    /// What has to come in from this cut to each later one: what an empty VRAM would miss, less what VRAM can hold at the start.
    fn comes(&self, from: usize) -> Vec<u64> {
        let mut vram = Belady::new(self.vram_bytes);
        let mut missed = 0_u64;
        let mut all = Vec::new();
        for to in from + 1..self.cuts.len() {
            for (number, work) in self.works(to - 1) {
                missed += comes_for(self.script, &mut vram, number, work);
            }
            all.push(missed.saturating_sub(self.vram_bytes));
        }
        all
    }

    /// What has to go out from each earlier cut to this one, the nearest first: the same with time reversed. What is needed behind a use has
    /// to be there until then or to go out.
    fn goes(&self, to: usize) -> Vec<u64> {
        let end = self.cuts[to];
        let mut vram = Belady::new(self.vram_bytes);
        let mut missed = 0_u64;
        let mut all = Vec::new();
        for from in (0..to).rev() {
            for (number, work) in self.works(from).rev() {
                for &chunk in work.chunks.iter().filter(|chunk| !self.stays[**chunk as usize]) {
                    let ScriptChunk { bytes, uses, .. } = &self.script.chunks[chunk as usize];
                    let at = uses.partition_point(|used| used.work < number);
                    let before =
                        at.checked_sub(1).filter(|_| !uses[at].fresh).map(|before| end - 1 - uses[before].work);
                    let crossed = vram.touch(end - 1 - number, chunk, *bytes, before);
                    missed += if uses.get(at + 1).is_some_and(|next| !next.fresh) { crossed } else { 0 };
                }
                vram.done();
            }
            all.push(missed.saturating_sub(self.vram_bytes));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{GpuWork, Op};

    const CHUNK: u64 = 32 << 20;
    const LINK: Link = Link { in_bytes_per_us: 50e3, out_bytes_per_us: 50e3, both_bytes_per_us: 100e3 };

    /// A loop over this many chunks; those that are `made` anew in each round hold nothing before. Ten rounds of which the last four count.
    fn bound_of(chunks: u64, made: u64, works: &[(u64, f64)], vram_chunks: u64) -> Bound {
        bound_with(chunks, made, works, vram_chunks, false)
    }

    /// The same; what is not made anew is `constant`, or it may change.
    fn bound_with(chunks: u64, made: u64, works: &[(u64, f64)], vram_chunks: u64, constant: bool) -> Bound {
        let mut ops: Vec<Op> = (0..chunks).map(|chunk| Op::Map { offset: chunk * CHUNK, bytes: CHUNK }).collect();
        ops.extend((made..chunks).map(|chunk| Op::Allocate { offset: chunk * CHUNK, bytes: CHUNK }));
        ops.extend((made..chunks).filter(|_| constant).map(|chunk| Op::Constant { offset: chunk * CHUNK }));
        for _ in 0..10 {
            ops.push(Op::Round);
            ops.extend((0..made).map(|chunk| Op::Allocate { offset: chunk * CHUNK, bytes: CHUNK }));
            ops.extend(works.iter().map(|&(chunk, micros)| {
                let chunks = vec![chunk * CHUNK];
                Op::Work(GpuWork { chunks, micros, issue_us: 5.0, kind: 1, everything: false, slowness: 10.0 })
            }));
            ops.extend((0..made).map(|chunk| Op::Free { offset: chunk * CHUNK }));
        }
        let script = Script::new(&ops);
        let (first, end) = (script.rounds[6], u32::try_from(script.works.len()).unwrap());
        bound(&script, vram_chunks * CHUNK, &LINK, first, end, 4)
    }

    #[track_caller]
    fn assert_near(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 0.05, "{found} instead of {expected}");
    }

    #[test]
    fn activations_cannot_go_and_come_at_once() {
        // 40 are made and used up in reverse, in 10 us each; half of them fit.
        let works: Vec<(u64, f64)> = (0..40).chain((0..40).rev()).map(|chunk| (chunk, 10.0)).collect();
        let bound = bound_of(40, 40, &works, 20);
        let one_way = 20.0 * CHUNK as f64 / 50e3;
        assert_near(bound.link_us, one_way);
        assert_near(bound.parts_us, 2.0 * one_way + 2.0 * 20.0 * 10.0);
    }

    #[test]
    fn a_sweep_in_no_time_is_not_hidden_by_what_comes_before() {
        // 20 ms on one chunk, then 40 in 1 us each, of which 30 fit: 10 have to come, and others to go.
        let works: Vec<(u64, f64)> = std::iter::repeat_n((0, 1000.0), 20).chain((0..40).map(|at| (at, 1.0))).collect();
        let bound = bound_of(40, 0, &works, 30);
        let one_way = 10.0 * CHUNK as f64 / 50e3;
        assert_near(bound.link_us, one_way);
        assert_near(bound.parts_us, 20_000.0 + one_way);
    }

    #[test]
    fn what_does_not_change_need_not_go_out() {
        let works: Vec<(u64, f64)> = (0..40).map(|chunk| (chunk, 10.0)).collect();
        let (changing, constant) = (bound_with(40, 0, &works, 30, false), bound_with(40, 0, &works, 30, true));
        assert_near(constant.in_bytes, changing.in_bytes);
        assert_near(changing.out_bytes, changing.in_bytes);
        assert!(constant.out_bytes <= 0.0, "{} bytes", constant.out_bytes);
    }

    #[test]
    fn what_fits_takes_as_long_as_it_computes() {
        let works: Vec<(u64, f64)> = (0..40).map(|chunk| (chunk, 10.0)).collect();
        assert_near(bound_of(40, 0, &works, 40).parts_us, 400.0);
    }
}
