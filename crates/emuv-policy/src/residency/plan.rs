//! What to do next: which chunk to bring, which to send away, what to find out first.
//!
//! Held works come first, then what the forecast says, in its order. For each chunk that is wanted in VRAM, room
//! is made by sending away the chunk that will be needed last, and only if that is later than the wanted one
//! (Belady's rule, which is optimal where the future is known); for what is brought ahead of need, a good part of the
//! loop later, or chunks that have just been used would change places for ever. Without a forecast only held works make
//! chunks move.

use super::{ChunkState, ExtentId, Manner, Mode, Obstacle, Residency};
use crate::{StreamId, Tier};

/// How far ahead of the program chunks are brought: this part of the loop. What is brought too early keeps the place of
/// something else, which then has to be moved as well: of what does not fit, a round moves 1 / (1 - this part) as much.
const AHEAD: u64 = 8;

/// But at least so many works.
const LEAST_AHEAD_WORKS: usize = 32;

/// What is sent away for something that is brought ahead of need must be needed at least this part of the loop later,
/// besides the part that does not fit.
const MARGIN: u64 = 4;

/// The next use of what is never used again, as far as is known.
const NEVER: u64 = u32::MAX as u64;

/// What can be sent away at once is, if its next use is at least this part of the latest one's away.
const SOON_ENOUGH: (u64, u64) = (7, 8);

/// Moves in flight at most.
const DEPTH: usize = 16;

/// A move costs as much time as copying this much more would, for its mappings (about 100 us at 50 GB/s).
const OVERHEAD_BYTES: u64 = 6 << 20;

/// What chunks move for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Nothing moves.
    Static,
    /// What is needed is brought, ahead of need where it is foreseen. `safe`: only while nothing runs.
    Dynamic {
        /// Only while nothing runs.
        safe: bool,
    },
    /// Whatever may move is moved, at random: to show that results stay right.
    Torture {
        /// The generator's state.
        state: u64,
        /// Only while nothing runs.
        safe: bool,
    },
}

impl Policy {
    pub(super) const fn promotes(self) -> bool {
        matches!(self, Self::Dynamic { .. })
    }

    pub(super) fn only_when_idle(self) -> bool {
        match self {
            Self::Static => true,
            Self::Dynamic { safe } | Self::Torture { safe, .. } => safe,
        }
    }
}

/// What there is to move into, in bytes: handles at hand and what may still be created.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// In VRAM.
    pub vram_bytes: u64,
    /// In RAM.
    pub ram_bytes: u64,
    /// VRAM that moves in flight will leave free.
    pub vram_coming_bytes: u64,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Move this chunk; it is `moving` from now on, until [`Residency::finish`].
    Move {
        /// Where it lies in the arena.
        offset: u64,
        /// Its size.
        bytes: u64,
        /// Where to.
        to: Tier,
        /// Its bytes are somebody's; otherwise only the mapping has to change.
        copy: bool,
        /// It is to be mapped where it then lies; otherwise nothing is behind its address.
        map: bool,
    },
    /// Map this chunk where it lies; then [`Residency::finish`].
    Show {
        /// Where it lies in the arena.
        offset: u64,
        /// Its size.
        bytes: u64,
    },
    /// Search these ranges (offset, bytes) for pointers, then [`Residency::searched_all`].
    Search(Vec<(u64, u64)>),
    /// Read what the searches that are done have found ([`Residency::collecting`], [`Residency::collected`]).
    Collect,
    /// Find out how far these streams are, then ask again.
    Learn(Vec<StreamId>),
    /// Nothing, until something happens.
    Rest,
}

impl Residency {
    /// What to do next, given what there is to move into.
    pub fn next_step(&mut self, room: Room) -> Step {
        if !self.quiesced || self.moving >= DEPTH {
            return Step::Rest;
        }
        if let Some(show) = self.show() {
            return show;
        }
        if let Some(ranges) = self.search_all() {
            return Step::Search(ranges);
        }
        if self.has_findings() {
            return Step::Collect;
        }
        let removal_waits = std::mem::take(&mut self.removal_waits);
        let mut needs_progress = self.pointers.stops_works() || self.needs_findings() || removal_waits;
        let step = match self.policy {
            Policy::Static => None,
            Policy::Torture { state, safe } => self.torture(state, safe, room, &mut needs_progress),
            Policy::Dynamic { .. } => self.bring(room, &mut needs_progress),
        };
        if let Some(step) = step {
            return step;
        }
        if needs_progress {
            let busy = self.busy_streams();
            if !busy.is_empty() {
                return Step::Learn(busy);
            }
        }
        if self.moving == 0 {
            // Nothing is under way that could still help.
            for held in self.held.iter_mut().filter(|held| held.promote) {
                held.hopeless = true;
            }
        }
        Step::Rest
    }

    /// Whether a held work is to go on as it is.
    pub fn is_hopeless(&self) -> bool {
        self.held.iter().any(|held| held.hopeless)
    }

    /// Whether some work is held, or a chunk cannot be removed yet.
    pub fn is_waited_for(&self) -> bool {
        !self.held.is_empty() || self.removal_waits
    }

    /// Nothing moves any more, whatever was under way has not happened, and nothing waits for a move.
    pub fn stop(&mut self) {
        self.policy = Policy::Static;
        self.moving = 0;
        self.exclusive = false;
        self.pointers.give_up();
        for chunk in self.chunks.iter_mut().flatten() {
            chunk.moving = None;
            chunk.leave = false;
            chunk.searches.clear();
        }
    }

    /// Whether the chunk may be left without a mapping when it is sent away.
    pub(super) fn may_leave_unmapped(&mut self, index: u32) -> bool {
        if self.saw_everything || self.policy.only_when_idle() {
            return false;
        }
        let Some(chunk) = self.chunk(index).filter(|chunk| !chunk.escaped && chunk.claims == 0) else { return false };
        match self.policy {
            Policy::Static => false,
            Policy::Dynamic { .. } => {
                let extent = self.extents.get(chunk.extent as usize).and_then(Option::as_ref);
                let kind = extent.and_then(|extent| self.foresight.next_kind(extent.id));
                kind.is_some_and(|kind| self.foresight.manner(kind) == Some(Manner::Move))
            }
            Policy::Torture { state, .. } => state & (1 << 40) != 0,
        }
    }

    /// A chunk without a mapping that cannot stay so, though it does not come to VRAM now.
    fn show(&mut self) -> Option<Step> {
        if self.unmapped == 0 {
            return None;
        }
        let all = self.saw_everything || self.pointers.want_everything() || self.policy == Policy::Static;
        let waits = |index: u32| {
            let promoted = self.policy.promotes();
            self.held.iter().any(|h| !(promoted && h.promote && !h.hopeless) && h.chunks.contains(&index))
        };
        let (index, offset, bytes) = self.live().find_map(|(index, chunk)| {
            let wanted = all || chunk.escaped || chunk.fixed || (chunk.claims > 0 && waits(index));
            (!chunk.mapped && chunk.moving.is_none() && wanted).then_some((index, chunk.offset, chunk.bytes))
        })?;
        let chunk = self.chunk_mut(index)?;
        chunk.moving = Some(Tier::Ram);
        chunk.leave = false;
        self.moving += 1;
        Some(Step::Show { offset, bytes })
    }

    /// Chunks that nothing is mapped to: (offset, bytes). For an executor that gives up.
    pub fn without_mapping(&self) -> Vec<(u64, u64)> {
        self.live().filter(|(_, chunk)| !chunk.mapped).map(|(_, chunk)| (chunk.offset, chunk.bytes)).collect()
    }

    /// The executor has mapped everything, or nothing can be mapped any more.
    pub fn everything_mapped(&mut self) {
        self.unmapped = 0;
        self.chunks.iter_mut().flatten().for_each(|chunk| chunk.mapped = true);
    }

    fn bring(&mut self, room: Room, needs_progress: &mut bool) -> Option<Step> {
        let mut free = room.vram_bytes;
        // Room that is there or coming; wants take theirs from it in order.
        let mut promised = room.vram_bytes + room.vram_coming_bytes;
        for (want, ahead) in self.wants() {
            let (bytes, tier) = self.chunk(want).map(|chunk| (chunk.bytes, chunk.tier))?;
            if tier == Tier::Vram {
                continue;
            }
            let mode = match self.may_move(want) {
                Ok(mode) => mode,
                Err(obstacle) => {
                    *needs_progress |= obstacle == Obstacle::Busy;
                    if self.chunk(want).is_some_and(|chunk| chunk.moving.is_none()) && ahead == 0 {
                        // First things first: what a held work waits for is not overtaken.
                        if obstacle != Obstacle::Fixed {
                            return None;
                        }
                    }
                    continue;
                }
            };
            if free >= bytes {
                return self.start(want, Tier::Vram, mode);
            }
            if promised >= bytes {
                promised -= bytes;
                free = free.saturating_sub(bytes);
                continue;
            }
            return self.send_away(ahead, room, needs_progress);
        }
        None
    }

    /// Chunks that are wanted in VRAM and are not there, with how far ahead: held works', then the forecast's.
    fn wants(&self) -> Vec<(u32, u64)> {
        let in_ram = |index: &u32| {
            self.chunk(*index).is_some_and(|chunk| chunk.tier == Tier::Ram && !chunk.fixed && chunk.moving.is_none())
        };
        let held = self.held.iter().filter(|held| held.promote && !held.hopeless);
        let mut wants: Vec<(u32, u64)> = held.flat_map(|held| held.chunks.iter().copied()).map(|c| (c, 0)).collect();
        wants.retain(|(index, _)| in_ram(index));
        let period = self.foresight.period().unwrap_or(0);
        let most = usize::try_from(period / AHEAD).unwrap_or(0).max(LEAST_AHEAD_WORKS);
        for (ahead, kind, extents) in self.foresight.upcoming(most) {
            if wants.len() >= 2 * DEPTH {
                break;
            }
            if self.foresight.manner(kind) == Some(Manner::Move) {
                let chunks = extents.flat_map(|extent| self.chunks_of(extent));
                wants.extend(chunks.filter(in_ram).map(|index| (index, ahead)));
            }
        }
        wants
    }

    /// Sends away what will be needed last, if that is after `ahead` works. What is still being used is waited for if
    /// it will be needed much later than what is not: sending away what is needed soon only makes it come back.
    fn send_away(&mut self, ahead: u64, room: Room, needs_progress: &mut bool) -> Option<Step> {
        let margin = if ahead == 0 { 1 } else { self.margin() };
        let mut best: Option<(u64, u64, u32, Mode)> = None;
        let mut latest = 0;
        for (index, chunk) in self.live() {
            if chunk.tier != Tier::Vram || chunk.fixed || chunk.claims > 0 || chunk.moving.is_some() {
                continue;
            }
            if chunk.bytes > room.ram_bytes && !chunk.dead {
                continue;
            }
            let next = self.next_use(chunk).unwrap_or(NEVER);
            if next <= ahead.saturating_add(margin) {
                continue;
            }
            let score = next.saturating_mul(chunk.bytes) / (chunk.bytes + OVERHEAD_BYTES);
            if best.is_some_and(|(most, ..)| most >= score) {
                continue;
            }
            match self.may_move(index) {
                Ok(mode) => best = Some((score, next, index, mode)),
                Err(Obstacle::Busy) if !chunk.escaped => latest = latest.max(next),
                Err(_) => {}
            }
        }
        *needs_progress |= latest > 0;
        let (_, next, index, mode) = best?;
        if latest != NEVER && next.saturating_mul(SOON_ENOUGH.1) < latest.saturating_mul(SOON_ENOUGH.0) {
            return None;
        }
        self.start(index, Tier::Ram, mode)
    }

    fn chunks_of(&self, extent: ExtentId) -> impl Iterator<Item = u32> {
        let extent = self.slots.get(&extent).and_then(|slot| *self.extents.get(*slot as usize)?);
        let end = extent.map_or(0, |extent| extent.offset + extent.bytes);
        let mut at = extent.map_or(0, |extent| extent.offset);
        std::iter::from_fn(move || {
            let index = self.at(at).filter(|_| at < end)?;
            let chunk = self.chunk(index)?;
            at = chunk.offset + chunk.bytes;
            Some(index)
        })
    }

    /// In how many works the chunk is expected to be touched.
    fn next_use(&self, chunk: &ChunkState) -> Option<u64> {
        let extent = self.extents.get(chunk.extent as usize)?.as_ref()?;
        self.foresight.next_use(extent.id)
    }

    /// How much later than what is brought ahead of need that which makes room for it must be needed: the part of the loop
    /// that does not fit, or what has just been used would be brought back before the rest has been.
    fn margin(&self) -> u64 {
        let (mut all, mut spilled) = (0, 0);
        for (_, chunk) in self.live().filter(|(_, chunk)| !chunk.fixed && self.next_use(chunk).is_some()) {
            all += chunk.bytes;
            spilled += if chunk.tier == Tier::Ram { chunk.bytes } else { 0 };
        }
        let period = self.foresight.period().unwrap_or(0);
        let part = u128::from(period) * u128::from(spilled) / u128::from(all.max(1));
        u64::try_from(part).unwrap_or(period) + period / MARGIN
    }

    fn torture(&mut self, state: u64, safe: bool, room: Room, needs_progress: &mut bool) -> Option<Step> {
        let mut random = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.policy = Policy::Torture { state: random, safe };
        random = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        random = (random ^ (random >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        random ^= random >> 31;
        let mut order: Vec<u32> = self.live().map(|(index, _)| index).collect();
        if order.is_empty() {
            return None;
        }
        let first = usize::try_from(random % order.len() as u64).unwrap_or(0);
        order.rotate_left(first);
        for index in order {
            let Some(chunk) = self.chunk(index) else { continue };
            let (to, has) =
                if chunk.tier == Tier::Vram { (Tier::Ram, room.ram_bytes) } else { (Tier::Vram, room.vram_bytes) };
            if chunk.bytes > has {
                continue;
            }
            match self.may_move(index) {
                Ok(mode) => return self.start(index, to, mode),
                Err(obstacle) => *needs_progress |= obstacle == Obstacle::Busy,
            }
        }
        None
    }
}
