//! How fast the link is. What is worth moving, and what is read in place, depends on it.

use emuv_policy::{Tier, machine::Link};

use super::{Mover, host_has};
use crate::log;

/// The size of what it is measured with, at best first.
const BYTES: [u64; 3] = [32 << 20, 8 << 20, 2 << 20];

impl Mover {
    /// Measures the link before anything moves. Where VRAM is full, and so is what is left to small allocations, it cannot be done yet:
    /// see [`Self::keeps_link_quiet`].
    pub(super) fn measure_first(&mut self) {
        let measured = BYTES.iter().find_map(|bytes| Some((*bytes, self.measure(*bytes)?)));
        if measured.is_none_or(|(bytes, _)| bytes != BYTES[0]) {
            // Memory of that size is of no use to chunks.
            self.device.moves.spares.give_back(&self.device.arena, u64::MAX);
            self.device.settle_slice(self.session);
        }
        self.link_is_settled = measured.is_some();
        if let Some((_, link)) = measured {
            self.has_speed(link);
        }
    }

    /// Measures the link, if it could not be done before, as soon as moves have left memory on both sides. True: nothing is to
    /// begin to move now, so that it becomes quiet.
    pub(super) fn keeps_link_quiet(&mut self) -> bool {
        if self.link_is_settled || self.session.captures.any() {
            return false;
        }
        let spares = &self.device.moves.spares;
        let is_at_hand = |bytes: &&u64| [Tier::Vram, Tier::Ram].into_iter().all(|tier| spares.has(tier, **bytes));
        let Some(&bytes) = BYTES.iter().find(is_at_hand) else { return false };
        if self.is_moving() {
            return true;
        }
        // What fails with memory fails again.
        self.link_is_settled = true;
        if let Some(link) = self.measure(bytes) {
            self.has_speed(link);
        }
        false
    }

    fn has_speed(&mut self, link: Link) {
        let [into, out, both] =
            [link.in_bytes_per_us, link.out_bytes_per_us, link.both_bytes_per_us].map(|rate| rate / 1e3);
        log::debug(format_args!("link: {into:.1} GB/s to VRAM, {out:.1} to RAM, {both:.1} both at once"));
        self.figure.set_link(link);
        self.device.arena.residency().set_link(link.in_bytes_per_us);
    }

    fn measure(&self, bytes: u64) -> Option<Link> {
        let (real, arena, spares) = (self.session.real, &self.device.arena, &self.device.moves.spares);
        let copies = self.copies.as_ref()?;
        let ram = self.spare(Tier::Ram, bytes, None, || host_has(self.session, bytes)).ok()??;
        let measured = self.spare(Tier::Vram, bytes, None, || true).ok().flatten().and_then(|vram| {
            let alias = |handle| arena.aliases.of(arena.gpu(), handle, bytes).ok();
            let link = alias(ram).zip(alias(vram)).and_then(|(ram, vram)| copies.link(real, vram, ram, bytes).ok());
            spares.put(Tier::Vram, bytes, vram);
            link
        });
        spares.put(Tier::Ram, bytes, ram);
        measured
    }
}
