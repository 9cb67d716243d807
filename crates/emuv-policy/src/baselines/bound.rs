//! What no schedule undercuts: section 6 of the design, from the program itself.
//!
//! `T >= max(C, X_in / B_in, X_out / B_out, (X_in + X_out) / B_both)` for a round, where `C` is how long it takes with
//! everything in VRAM and `X` what has to cross the link.
//!
//! `X_in` is counted by Belady's rule (`belady.rs`): whatever is touched and was not in VRAM has crossed the link, moved or
//! read in place. What is overwritten before it is read need not cross.
//!
//! `X_out` is as much, because whatever leaves VRAM is copied unless it is nobody's (nothing in a trace proves that a work
//! does not write), but for what is only ever read about once by each of its works: that can lie in RAM for good.
//! Schedules that read a chunk in place at one use and move it for another are not counted with.

use super::belady::Belady;
use crate::machine::{Link, Script};

/// See the module's head. Per round.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Bound {
    /// Bytes that have to come in, at least.
    pub in_bytes: f64,
    /// Bytes that have to go out for that.
    pub out_bytes: f64,
    /// How long the link needs for them, in microseconds.
    pub link_us: f64,
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
    let measured = first..end;
    let readable: u64 = script
        .chunks
        .iter()
        .filter(|chunk| {
            let mut later = chunk.uses.iter().skip(1);
            later.all(|used| !used.fresh && script.works[used.work as usize].slowness <= slowness)
        })
        .map(|chunk| chunk.bytes * chunk.uses.iter().filter(|used| measured.contains(&used.work)).count() as u64)
        .sum();
    let out_bytes = (in_bytes - readable as f64 / rounds).max(0.0);
    Bound { in_bytes, out_bytes, link_us: link.micros(in_bytes, out_bytes) }
}

/// Bytes that Belady's rule misses from the work `first` on.
fn misses(script: &Script, vram_bytes: u64, first: u32, end: u32) -> u64 {
    let mut vram = Belady::new(vram_bytes);
    let mut begun = vec![0_usize; script.chunks.len()];
    let mut missed = 0;
    for (number, work) in (0_u32..end).zip(&script.works) {
        for &chunk in &work.chunks {
            let at = &mut begun[chunk as usize];
            let uses = &script.chunks[chunk as usize].uses;
            let (bytes, fresh) = (script.chunks[chunk as usize].bytes, uses[*at].fresh);
            *at += 1;
            // What is overwritten then need not be kept until then.
            let next = uses.get(*at).filter(|next| !next.fresh).map(|next| next.work);
            let crossed = vram.touch(number, chunk, bytes, next);
            if number >= first && !fresh {
                missed += crossed;
            }
        }
        vram.done();
    }
    missed
}
