//! Data that stays where it was put.

use crate::{
    Tier,
    machine::{FreeBytes, Placement, Script},
};

/// Placed once, in order of allocation: see [`Placement::tier_of_new`].
#[derive(Debug, Clone, Copy, Default)]
pub struct InOrder;

impl Placement for InOrder {}

/// Those chunks are in VRAM that save most time on the link for each byte that they hold, over the whole program; the
/// rest is read in place.
#[derive(Debug, Clone)]
pub struct InPlace {
    in_vram: Vec<bool>,
}

impl InPlace {
    /// Chooses for a card of this size.
    pub fn new(script: &Script, vram_bytes: u64) -> Self {
        // Reading all of it in place again and again costs as much for each of its bytes.
        let saved = |chunk: usize| -> f64 {
            let works = script.chunks[chunk].uses.iter().map(|used| &script.works[used.work as usize]);
            works.map(|work| work.slowness.max(1.0)).sum()
        };
        let mut order: Vec<(f64, usize)> = (0..script.chunks.len()).map(|chunk| (saved(chunk), chunk)).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut in_vram = vec![false; script.chunks.len()];
        let mut left = vram_bytes;
        for (_, chunk) in order {
            let bytes = script.chunks[chunk].bytes;
            if bytes <= left {
                left -= bytes;
                in_vram[chunk] = true;
            }
        }
        Self { in_vram }
    }
}

impl Placement for InPlace {
    fn tier_of_new(&mut self, chunk: u32, _: u64, _: u64, _: FreeBytes) -> Tier {
        if self.in_vram[chunk as usize] { Tier::Vram } else { Tier::Ram }
    }
}
