//! The plan of a round: which chunks are out between which of their uses. When one is made, and what it is made from
//! ([`super::schedule`] chooses).

use super::{
    ChunkState, Heat, Manner, Residency,
    history::Decision,
    plan::Room,
    schedule::{self, Gap, Round},
};
use crate::Tier;

/// VRAM that is kept for moves in flight: at most this, and at most this part of what chunks that move have. More of it
/// lets data come earlier, which hides moves where the GPU is the limit; where the link is, it is only more that has to
/// move.
const SLACK_BYTES: u64 = 160 << 20;
const SLACK_PART: u64 = 48;
const MOST_SLACK_BYTES: u64 = 768 << 20;
const MOST_SLACK_PART: u64 = 12;

/// The part of a round's own time up to which the link may take for a round that the GPU limits.
const COMPUTES: f64 = 0.75;

/// The part of a round's own time from which on the link is taken to be what limits it: then what is read once is read where it
/// is, so that nothing has to go out for it, if all that does not fit can be such. Where some of it has to come all the same, the
/// GPU would only wait for the rest, and the link have less for what comes. Nor where most of what goes has not changed (weights):
/// it need not be copied out, and a copy comes in faster than kernels read.
const IN_PLACE: f64 = 0.5;

/// How often what does not fit may cross the link at most when it is read in place, each time that a work reads it: moved, it goes and
/// comes once. So an optimizer's moments stay, which one work of a round reads; where weights would have to stay with them, which the forward part
/// reads as well, everything is moved.
const MOST_CROSSINGS: f64 = 1.2;

/// A round is the same one as long as its length differs by less than this part.
const SAME_PERIOD: u64 = 16;

/// A plan is made again after so many rounds, and then after ever more, up to this.
const MOST_ROUNDS: u64 = 64;

impl Residency {
    /// Makes a plan if it is time to.
    pub(super) fn renew_plan(&mut self, room: Room) {
        let (Some(place), Some(period)) = (self.foresight.place(), self.foresight.period()) else { return };
        let position = self.foresight.position();
        let same = period.abs_diff(self.planned.period) <= period / SAME_PERIOD;
        if same && position < self.planned.until {
            return;
        }
        self.planned.rounds = if same { (self.planned.rounds * 2).min(MOST_ROUNDS) } else { 1 };
        self.planned.period = period;
        self.planned.until = position + self.planned.rounds * period;
        self.plan(place, room);
    }

    #[allow(clippy::cast_precision_loss)] // Estimates.
    fn plan(&mut self, place: u64, room: Room) {
        let sum = |tier: Tier| -> u64 {
            self.live()
                .filter(|(_, chunk)| chunk.is_planned() && chunk.tier == tier)
                .map(|(_, chunk)| chunk.bytes)
                .sum()
        };
        // What is on its way to VRAM has its place there already; what leaves adds as much to what is out as to what is free.
        let coming = self.into_vram.1;
        let vram_bytes = sum(Tier::Vram) + coming + room.vram_bytes;
        let ram_bytes = sum(Tier::Ram).saturating_sub(coming);
        let mut slack_bytes = SLACK_BYTES.min(vram_bytes / SLACK_PART);
        let out_with = |slack: u64| (ram_bytes + slack).saturating_sub(room.vram_bytes);
        let out_bytes = out_with(slack_bytes);
        let times = self.foresight.times(place);
        let end = times.last().copied().unwrap_or(0.0);
        let time =
            |position: u64| times.get(usize::try_from(position - place - 1).unwrap_or(0)).copied().unwrap_or(end);
        let link = self.foresight.link();
        let mut round = Round { micros: end.max(1.0), out_bytes, link, ahead_bytes: slack_bytes };
        // Where the link is the limit, what reads each byte once is read where it is.
        let link_micros = out_bytes as f64 / link;
        let planned = || self.live().filter(|(_, chunk)| chunk.is_planned() && chunk.heat != Heat::Hot);
        // Whether it changes is only seen when it moves.
        let in_place = self.changes().unwrap_or(!self.planned.stayed)
            && link_micros > round.micros * IN_PLACE
            && self.crossings(planned().map(|(_, chunk)| chunk), place, out_bytes) <= MOST_CROSSINGS;
        let mut gaps = Vec::new();
        let mut owners = Vec::new();
        for (index, chunk) in planned() {
            let is_out = chunk.tier == Tier::Ram;
            let uses: Vec<_> = chunk.history.since(place).collect();
            let gap = Gap {
                bytes: chunk.bytes,
                start: 0.0,
                end: round.micros,
                dead: chunk.dead,
                in_place: None,
                unused: uses.is_empty(),
                steady: is_out || chunk.history.decision != Decision::Keep,
            };
            owners.push((index, gaps.len(), uses.len()));
            if in_place && self.is_read_once(chunk, place) {
                let slower = |position| link / self.foresight.rate_at(position).unwrap_or(link).min(link);
                let times = uses.iter().map(|used| slower(used.position)).sum();
                gaps.push(Gap { in_place: Some(times), start: time(uses[0].position), ..gap });
                continue;
            }
            if uses.is_empty() {
                gaps.push(gap);
                continue;
            }
            for (at, used) in uses.iter().enumerate() {
                let next = uses.get(at + 1);
                let end = next.map_or_else(|| time(uses[0].position) + round.micros, |next| time(next.position));
                let dead = next.map_or(uses[0].fresh, |next| next.fresh);
                let steady = used.decision != Decision::Keep || (next.is_none() && is_out);
                gaps.push(Gap { start: time(used.position + 1), end, dead, steady, ..gap });
            }
        }
        let nothing_in_place = gaps.iter().all(|gap| gap.in_place.is_none());
        if out_bytes > 0 && nothing_in_place && link_micros < round.micros * COMPUTES {
            slack_bytes = MOST_SLACK_BYTES.min(vram_bytes / MOST_SLACK_PART);
            (round.out_bytes, round.ahead_bytes) = (out_with(slack_bytes), slack_bytes);
        }
        let chosen = if out_bytes == 0 { vec![false; gaps.len()] } else { schedule::choose(&gaps, &round) };
        let stays = gaps.iter().zip(&chosen).filter(|(gap, chosen)| **chosen && gap.in_place.is_some());
        let stays_bytes: u64 = stays.map(|(gap, _)| gap.bytes).sum();
        let brings_most = stays_bytes * 2 < round.out_bytes;
        (self.planned.slack_bytes, self.planned.brings_most) = (slack_bytes, brings_most);
        self.planned.stayed |= !brings_most;
        for (index, first, uses) in owners {
            let decision = |gap: usize| match (chosen[gap], gaps[gap].in_place) {
                (false, _) => Decision::Keep,
                (true, None) => Decision::Out,
                (true, Some(_)) => Decision::Stay,
            };
            let Some(chunk) = self.chunk_mut(index) else { continue };
            if gaps[first].in_place.is_some() {
                chunk.history.decide(place, std::iter::repeat_n(decision(first), uses));
            } else {
                chunk.history.decide(place, (first..first + uses.max(1)).map(decision));
            }
        }
    }

    /// Whether most of what is sent away has changed since it was sent away before, as far as that is known.
    fn changes(&self) -> Option<bool> {
        let known = self.live().filter_map(|(_, chunk)| Some((chunk.bytes, chunk.changes?)));
        let (bytes, changing) = known.fold((0, 0), |(bytes, changing), (more, changes)| {
            (bytes + more, changing + if changes { more } else { 0 })
        });
        (bytes > 0).then_some(changing * 2 >= bytes)
    }

    /// How often `out_bytes` of these chunks cross the link in a round if they are read in place, those first that least works read; without
    /// end if not so many can be.
    #[allow(clippy::cast_precision_loss)] // An estimate.
    fn crossings<'a>(&self, chunks: impl Iterator<Item = &'a ChunkState>, place: u64, out_bytes: u64) -> f64 {
        let read_once = chunks.filter(|chunk| self.is_read_once(chunk, place));
        let mut all: Vec<(usize, u64)> =
            read_once.map(|chunk| (chunk.history.since(place).count(), chunk.bytes)).collect();
        all.sort_unstable();
        let (mut left_bytes, mut crossing) = (out_bytes, 0.0);
        for (uses, bytes) in all {
            let bytes = bytes.min(left_bytes);
            crossing += uses as f64 * bytes as f64;
            left_bytes -= bytes;
        }
        if left_bytes > 0 { f64::INFINITY } else { crossing / out_bytes as f64 }
    }

    /// Whether only such use of the chunk lies behind `place` as reads each byte about once, as far as it is known.
    fn is_read_once(&self, chunk: &ChunkState, place: u64) -> bool {
        let mut manners = chunk.history.since(place).map(|used| self.foresight.manner_at(used.position)).peekable();
        manners.peek().is_some() && manners.all(|manner| manner == Some(Manner::InPlace))
    }
}
