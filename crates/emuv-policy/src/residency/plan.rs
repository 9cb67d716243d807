//! What to do next: which chunk to bring, which to send away, what to find out first.
//!
//! Held works come first. In a loop that is foreseen, a plan says which chunks are out between which of their uses
//! (`schedule.rs`): those are sent away as soon as nothing uses them, and brought back, the one that is needed soonest
//! first, whenever there is room. What is not planned to be out stays, unless a held work needs its place: then the chunk
//! goes that will be needed last (Belady's rule), or, where nothing is foreseen, that has not been used for longest.

use std::cmp::Reverse;

use super::{
    Heat, Held, Mode, NONE, Obstacle, Residency,
    history::{Decision, NEVER},
    outlook::Want,
};
use crate::{
    StreamId, Tier,
    hash::{FastSet, mix},
    trace::Event,
};

/// Moves in flight at most; in one direction as many, and no more once there are so many bytes of them: the next copy has to
/// be at hand when one ends, and what is in flight is of no use meanwhile.
const DEPTH: usize = 24;
const DEPTH_EACH: usize = 10;
const DEPTH_BYTES: u64 = 96 << 20;

/// Room for so much more than the slack is made ahead, at most.
const AHEAD_BYTES: u64 = 1 << 30;

/// Works during which a chunk that is about to be used is not sent away.
const SOON_WORKS: u64 = 4;

/// What chunks move for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Nothing moves, except what must lie in VRAM for good ([`Residency::bring_to_pin`]).
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

/// The plan in force.
#[derive(Debug, Default)]
pub(super) struct Planned {
    /// How many works the round has that it was made from; 0: there is no plan.
    pub(super) period: u64,
    /// It is made again at this position, so many rounds later.
    pub(super) until: u64,
    pub(super) rounds: u64,
    pub(super) slack_bytes: u64,
    /// Little of what is out is read in place.
    pub(super) brings_most: bool,
    /// Chunks of which it is to be seen whether they change, and of how many bytes that has to be seen yet.
    asked: FastSet<u32>,
    unseen_bytes: u64,
}

impl Planned {
    /// A plan is to be made again as soon as it has been seen of more than so many bytes of these chunks whether they change.
    pub(super) fn ask(&mut self, asked: FastSet<u32>, least_bytes: u64) {
        self.unseen_bytes = if asked.is_empty() { 0 } else { least_bytes + 1 };
        self.asked = asked;
    }

    /// It has been seen of a chunk. Whether that was the last one.
    fn is_answered_by(&mut self, index: u32, bytes: u64) -> bool {
        if self.unseen_bytes == 0 || !self.asked.remove(&index) {
            return false;
        }
        self.unseen_bytes = self.unseen_bytes.saturating_sub(bytes);
        self.unseen_bytes == 0
    }
}

/// What is not sent away.
#[derive(Debug, Clone, Copy)]
enum Before {
    /// What is needed before that position, and what is not planned to be out.
    Position(u64),
    /// What is needed soon.
    NotSoon,
    /// Nothing.
    Anything,
}

/// Who goes first, the greatest: how much it is to be in VRAM, whether what it holds is planned to be out, whether that will
/// still be needed, and when it is used; of equals the one with the lowest index. (What nobody will read again, but has not been
/// freed yet, would be copied for nothing.)
type Rank = (Heat, bool, bool, u64, Reverse<u32>);

/// Room that is not promised to anybody yet, in bytes.
struct Left {
    free: u64,
    coming: u64,
}

impl Left {
    fn of(room: Room) -> Self {
        Self { free: room.vram_bytes, coming: room.vram_coming_bytes }
    }
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// In VRAM.
    pub vram_bytes: u64,
    /// In RAM.
    pub ram_bytes: u64,
    /// VRAM that moves in flight will leave free.
    pub vram_coming_bytes: u64,
    /// VRAM that chunks are to leave, whatever they are needed for: there is to be less of it.
    pub vram_excess_bytes: u64,
}

/// What a chunk moves for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Into VRAM: something waits for it.
    Demand,
    /// Into VRAM, before it is used.
    Ahead,
    /// Into VRAM: the program said that it is hot.
    Hint,
    /// Out of VRAM: something waits for its place.
    Room,
    /// Out of VRAM, by plan: it is not used for a while.
    Plan,
    /// Out of VRAM: there is to be less of it.
    Limit,
    /// Either way, to show that results stay right.
    Torture,
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
        /// What for.
        why: Why,
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
        if !self.quiesced || self.moving() >= DEPTH {
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
        if std::mem::take(&mut self.removal_waits) {
            // Before any more moves: there may always be some.
            let busy = self.busy_streams();
            if !busy.is_empty() {
                return Step::Learn(busy);
            }
        }
        let mut needs_progress = self.pointers.stops_works() || self.needs_findings();
        let excess = room.vram_excess_bytes > room.vram_coming_bytes && !self.stopped;
        let sent = if excess { self.send_away(Before::Anything, room, Why::Limit, &mut needs_progress) } else { None };
        let step = match self.policy {
            _ if sent.is_some() => sent,
            Policy::Static if self.stopped => None,
            Policy::Static => self.demand(&mut Left::of(room), room, &mut needs_progress),
            Policy::Torture { state, safe } => {
                let demanded = self.demand(&mut Left::of(room), room, &mut needs_progress);
                demanded.or_else(|| self.torture(state, safe, room, &mut needs_progress))
            }
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
        if self.moving() > 0 {
            return Step::Rest;
        }
        // Nothing is under way that could still help.
        let mut again = false;
        for held in self.held.iter_mut().filter(|held| held.promote) {
            let last_resort = held.slow && !held.must;
            held.must |= last_resort;
            held.hopeless |= !last_resort;
            again |= last_resort;
        }
        if again { self.next_step(room) } else { self.show().unwrap_or(Step::Rest) }
    }

    /// There is more or less VRAM than there was: what a plan was made for is no more.
    pub fn replan(&mut self) {
        self.planned = Planned::default();
    }

    /// Whether by plan little is read in place.
    pub(super) fn brings_most(&self) -> bool {
        self.planned.brings_most && self.foresight.place().is_some()
    }

    /// The chunk at `offset` is being sent away: whether it holds what it held when it was sent away before.
    pub fn compared(&mut self, offset: u64, same: bool) {
        let Some(index) = self.at(offset) else { return };
        let Some(chunk) = self.chunk_mut(index) else { return };
        chunk.changes = Some(!same);
        let bytes = chunk.bytes;
        self.tell(|| Event::Compared { offset, same });
        if self.planned.is_answered_by(index, bytes) {
            self.planned.until = self.foresight.position();
        }
    }

    /// A plan is made again within a round.
    pub(super) fn plan_soon(&mut self) {
        self.planned.until = self.planned.until.min(self.foresight.position() + self.planned.period);
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
        self.stopped = true;
        (self.into_vram, self.into_ram) = ((0, 0), (0, 0));
        self.exclusive = false;
        self.pointers.give_up();
        for chunk in self.chunks.iter_mut().flatten() {
            chunk.moving = None;
            chunk.leave = false;
            chunk.searches.clear();
        }
    }

    /// Whether the chunk may be left without a mapping when it is sent away.
    pub(super) fn may_leave_unmapped(&self, index: u32, why: Why) -> bool {
        if self.policy.only_when_idle() {
            return false;
        }
        let Some(chunk) = self.chunk(index).filter(|chunk| !chunk.escaped && chunk.claims == 0) else { return false };
        if chunk.extent == NONE && chunk.dead {
            return true;
        }
        if self.saw_everything {
            return false;
        }
        match self.policy {
            Policy::Static => false,
            // What goes because there is to be less (another slice has its turn, say) goes sooner so; whatever needs it has it brought.
            Policy::Dynamic { .. } => chunk.history.decision == Decision::Out || why == Why::Limit,
            Policy::Torture { state, .. } => state & (1 << 40) != 0,
        }
    }

    /// A chunk without a mapping that cannot stay so, though it does not come to VRAM now.
    fn show(&mut self) -> Option<Step> {
        let all = self.saw_everything || self.pointers.want_everything() || self.policy == Policy::Static;
        let promoted = self.policy.promotes();
        let as_it_is = |held: &&Held| !(promoted && held.promote && !held.hopeless);
        let may_be_wanted = all || self.escaped > 0 || self.saw_pins || self.held.iter().any(|held| as_it_is(&held));
        if self.unmapped == 0 || !may_be_wanted {
            return None;
        }
        let waits = |index: u32| self.held.iter().filter(as_it_is).any(|held| held.chunks.contains(&index));
        let (index, offset, bytes) = self.live().find_map(|(index, chunk)| {
            let wanted =
                (all && chunk.extent != NONE) || chunk.escaped || chunk.fixed || (chunk.claims > 0 && waits(index));
            (!chunk.mapped && !chunk.going && chunk.moving.is_none() && wanted).then_some((
                index,
                chunk.offset,
                chunk.bytes,
            ))
        })?;
        let chunk = self.chunk_mut(index)?;
        chunk.moving = Some(Tier::Ram);
        self.reconsider(index);
        self.under_way(Tier::Ram, bytes);
        Some(Step::Show { offset, bytes })
    }

    /// Chunks that nothing is mapped to: (offset, bytes). For an executor that gives up.
    pub fn without_mapping(&self) -> Vec<(u64, u64)> {
        self.live().filter(|(_, chunk)| !chunk.mapped).map(|(_, chunk)| (chunk.offset, chunk.bytes)).collect()
    }

    /// The executor has mapped everything, or nothing can be mapped any more.
    pub fn everything_mapped(&mut self) {
        (self.unmapped, self.unmapped_owned) = (0, 0);
        self.chunks.iter_mut().flatten().for_each(|chunk| chunk.mapped = true);
    }

    fn bring(&mut self, room: Room, needs_progress: &mut bool) -> Option<Step> {
        self.renew_plan(room);
        if let Some(step) = self.house_slab(room, needs_progress) {
            return Some(step);
        }
        let mut left = Left::of(room);
        if let Some(step) = self.demand(&mut left, room, needs_progress) {
            return Some(step);
        }
        let foreseen = self.foresight.place().is_some();
        if !foreseen {
            self.outlook.nothing_to_come();
        }
        if !foreseen && !self.saw_hot {
            return None;
        }
        let wanted_bytes = if foreseen { self.look_ahead() } else { 0 };
        if let Some(soonest) = self.outlook.wants().last().map(|want| want.next)
            && left.free + left.coming < wanted_bytes.min(AHEAD_BYTES) + self.planned.slack_bytes
            && self.may_move_more(Tier::Ram)
            && let Some(step) = self.send_away(Before::Position(soonest), room, Why::Plan, needs_progress)
        {
            return Some(step);
        }
        if self.may_move_more(Tier::Vram) {
            for at in (0..self.outlook.wants().len()).rev() {
                let Want { index, bytes, .. } = self.outlook.wants()[at];
                if bytes > left.free {
                    // Nothing that is needed later takes the room of what is needed sooner.
                    break;
                }
                match self.may_move(index) {
                    Ok(mode) => {
                        // Here it stays until it is used, however early it is.
                        if let Some(chunk) = self.chunk_mut(index) {
                            chunk.history.decision = Decision::Keep;
                        }
                        return self.start(index, Tier::Vram, mode, Why::Ahead);
                    }
                    Err(obstacle) => *needs_progress |= obstacle == Obstacle::Busy,
                }
            }
            let spare_bytes = left.free.saturating_sub(wanted_bytes.min(AHEAD_BYTES) + self.planned.slack_bytes);
            return if self.saw_hot { self.bring_hot(spare_bytes, needs_progress) } else { None };
        }
        None
    }

    /// Brings what held works wait for. What is planned to be read where it is is not waited for, unless the work is slow with data in RAM.
    fn demand(&mut self, left: &mut Left, room: Room, needs_progress: &mut bool) -> Option<Step> {
        let waiting = self.held.iter().filter(|held| held.promote && !held.hopeless);
        let chunks: Vec<(u32, bool, bool)> =
            waiting.flat_map(|held| held.chunks.iter().map(|index| (*index, held.must, held.slow))).collect();
        for (index, must, slow) in chunks {
            let Some(chunk) = self.chunk(index) else { continue };
            let stays = chunk.history.decision == Decision::Stay && chunk.mapped && !must && !slow;
            if chunk.tier == Tier::Vram || chunk.moving.is_some() || chunk.fixed || stays {
                continue;
            }
            let bytes = chunk.bytes;
            match self.may_move(index) {
                Ok(mode) if left.free >= bytes => return self.start(index, Tier::Vram, mode, Why::Demand),
                Ok(_) => {}
                Err(obstacle) => *needs_progress |= obstacle == Obstacle::Busy,
            }
            let from_free = left.free.min(bytes);
            left.free -= from_free;
            let from_coming = left.coming.min(bytes - from_free);
            left.coming -= from_coming;
            if from_free + from_coming < bytes {
                let what = if must { Before::Anything } else { Before::NotSoon };
                return self.send_away(what, room, Why::Room, needs_progress);
            }
        }
        None
    }

    /// Whether the link is to be given more to do in that direction.
    fn may_move_more(&self, to: Tier) -> bool {
        let (count, bytes) = if to == Tier::Vram { self.into_vram } else { self.into_ram };
        count < DEPTH_EACH && bytes < DEPTH_BYTES
    }

    /// Sends a chunk away: of those that are cold, then of those that are planned to be out, the one that will be needed last;
    /// where there is none, and a held work needs room, whichever will be needed last. What is hot goes only if it must.
    fn send_away(&mut self, what: Before, room: Room, why: Why, needs_progress: &mut bool) -> Option<Step> {
        let leaving = self.leaving();
        let mut best = self.last_needed(leaving.iter().copied(), what, room, needs_progress);
        self.still_leaving(leaving);
        // Nothing else goes before what is planned to be out, but for what is cold.
        let is_first = best.is_some_and(|((heat, is_to_be_out, ..), _)| heat == Heat::Usual && is_to_be_out);
        let only_planned = is_first || matches!(what, Before::Position(_));
        if self.saw_cold || !only_planned {
            best = self.last_needed(0..super::index_of(self.chunks.len()), what, room, needs_progress);
        }
        let ((.., Reverse(index)), mode) = best?;
        self.start(index, Tier::Ram, mode, why)
    }

    /// Of these chunks the one to be sent away.
    fn last_needed(
        &mut self,
        indices: impl Iterator<Item = u32>,
        what: Before,
        room: Room,
        needs_progress: &mut bool,
    ) -> Option<(Rank, Mode)> {
        let (position, place, turns) = self.now();
        let mut best: Option<(Rank, Mode)> = None;
        for index in indices {
            let Some(chunk) = self.chunk_mut(index) else { continue };
            if chunk.tier != Tier::Vram || chunk.fixed || chunk.claims > 0 || chunk.moving.is_some() {
                continue;
            }
            if chunk.bytes > room.ram_bytes && !chunk.dead {
                continue;
            }
            let (heat, planned) = (chunk.heat, chunk.history.decision != Decision::Keep);
            if matches!(what, Before::Position(_)) && !planned && heat != Heat::Cold {
                continue;
            }
            let next = chunk.history.next(position, place, turns);
            // Copied away now, it would never come back.
            let dies = chunk.history.dies() && !chunk.dead;
            let stays = match what {
                Before::Position(before) => dies || next <= before.max(position + SOON_WORKS),
                Before::NotSoon => heat == Heat::Hot || next <= position + SOON_WORKS,
                Before::Anything => false,
            };
            if stays {
                continue;
            }
            // Without a forecast: the least recently used.
            let later = if next == NEVER { NEVER - chunk.history.last() } else { next };
            let rank = (heat, planned && !dies, !dies, later, Reverse(index));
            if best.is_some_and(|(other, _)| other >= rank) {
                continue;
            }
            let escaped = chunk.escaped;
            match self.may_move(index) {
                Ok(mode) => best = Some((rank, mode)),
                Err(Obstacle::Busy) if !escaped => *needs_progress = true,
                Err(_) => {}
            }
        }
        best
    }

    fn torture(&mut self, state: u64, safe: bool, room: Room, needs_progress: &mut bool) -> Option<Step> {
        let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.policy = Policy::Torture { state, safe };
        let random = mix(state);
        let mut order: Vec<u32> = self.live().map(|(index, _)| index).collect();
        if order.is_empty() {
            return None;
        }
        let first = usize::try_from(random % order.len() as u64).unwrap_or(0);
        order.rotate_left(first);
        // What must come to VRAM gets its room, or chance might keep it away for ever.
        let must_come = self.held.iter().any(|held| held.must);
        for index in order {
            let Some(chunk) = self.chunk(index) else { continue };
            if must_come && (chunk.tier == Tier::Ram || self.held.iter().any(|h| h.must && h.chunks.contains(&index))) {
                continue;
            }
            let (to, has) =
                if chunk.tier == Tier::Vram { (Tier::Ram, room.ram_bytes) } else { (Tier::Vram, room.vram_bytes) };
            if chunk.bytes > has {
                continue;
            }
            match self.may_move(index) {
                Ok(mode) => return self.start(index, to, mode, Why::Torture),
                Err(obstacle) => *needs_progress |= obstacle == Obstacle::Busy,
            }
        }
        None
    }
}
