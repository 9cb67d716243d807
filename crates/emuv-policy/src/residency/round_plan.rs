//! The plan of a round: which chunks are out between which of their uses. When one is made, and what it is made from
//! ([`super::schedule`] chooses).

use super::{
    ChunkState, Heat, Manner, Residency,
    history::Decision,
    plan::Room,
    schedule::{self, Gap, Round},
};
use crate::{
    Tier,
    hash::{FastMap, FastSet},
};

/// VRAM that is kept for moves in flight: at most so many bytes, and at most this part of what chunks that move have; or up to twice that
/// part, if so many chunks need it.
struct Slack {
    bytes: u64,
    part: u64,
    chunks: u64,
}

/// Where the link is the limit: more of it is only more that has to move. One chunk comes, one goes and one is in use.
const SLACK: Slack = Slack { bytes: 96 << 20, part: 32, chunks: 3 };

/// The same where most of what is out has not changed: that goes without a copy, so its room is free at once.
const UNCHANGED_SLACK: Slack = Slack { bytes: 64 << 20, part: 48, chunks: 2 };

/// Where the GPU is the limit: data comes earlier, which hides moves.
const MOST_SLACK: Slack = Slack { bytes: 768 << 20, part: 12, chunks: 3 };

impl Slack {
    /// Of chunks that are so large.
    fn of(&self, vram_bytes: u64, chunk_bytes: u64) -> u64 {
        let part = vram_bytes / self.part;
        self.bytes.min(part).max((self.chunks * chunk_bytes).min(2 * part))
    }
}

/// The part of a round's own time up to which the link may take for a round that the GPU limits.
const COMPUTES: f64 = 0.75;

/// The part of a round's own time from which on the link is taken to be what limits it: then what is read once, and changes, is read
/// where it is, so that it need not come and go. What has not changed (weights) need not be copied out, and a copy comes in faster than
/// kernels read.
const IN_PLACE: f64 = 0.5;

/// That is done if at least one in so many bytes of what does not fit can be such: who reads in place waits for the link, and what
/// comes meanwhile has less of it.
const LEAST_PART: u64 = 3;

/// Whether it changes is known if it is of one in so many bytes of what does not fit: what has moved may be what is new (a cache of keys and
/// values), and the weights another matter.
const KNOWN_PART: u64 = 8;

/// How much stays for a kind of work of which it is not known how it reads, until that is known.
const TRY_BYTES: u64 = 64 << 20;

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
        let unchanged = changes(self.to_be_planned().map(|(_, chunk)| chunk), ram_bytes / KNOWN_PART) == Some(false);
        let slack = if unchanged { UNCHANGED_SLACK } else { SLACK };
        let chunk_bytes = usual_bytes(self.to_be_planned().map(|(_, chunk)| chunk.bytes));
        let mut slack_bytes = slack.of(vram_bytes, chunk_bytes);
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
        self.planned.ask(FastSet::default(), 0);
        let staying =
            if link_micros > round.micros * IN_PLACE { self.staying(place, out_bytes) } else { FastSet::default() };
        let computes = out_bytes > 0 && staying.is_empty() && link_micros < round.micros * COMPUTES;
        if computes {
            slack_bytes = MOST_SLACK.of(vram_bytes, chunk_bytes);
            (round.out_bytes, round.ahead_bytes) = (out_with(slack_bytes), slack_bytes);
        }
        let mut gaps = Vec::new();
        let mut owners = Vec::new();
        for (index, chunk) in self.to_be_planned() {
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
            if staying.contains(&index) {
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
                // What nobody will read again lies in VRAM until it is given up. (Large slack has room for it.)
                let given_up = used.given_up().filter(|_| dead && !computes);
                let start = time(given_up.unwrap_or(used.position + 1)).min(end);
                gaps.push(Gap { start, end, dead, steady, ..gap });
            }
        }
        let chosen = if out_bytes == 0 { vec![false; gaps.len()] } else { schedule::choose(&gaps, &round) };
        let stays = gaps.iter().zip(&chosen).filter(|(gap, chosen)| **chosen && gap.in_place.is_some());
        let stays_bytes: u64 = stays.map(|(gap, _)| gap.bytes).sum();
        let brings_most = stays_bytes * 2 < round.out_bytes;
        (self.planned.slack_bytes, self.planned.brings_most) = (slack_bytes, brings_most);
        self.outlook.forget();
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

    /// The chunks that a plan may send away.
    fn to_be_planned(&self) -> impl Iterator<Item = (u32, &ChunkState)> {
        self.live().filter(|(_, chunk)| chunk.is_planned() && chunk.heat != Heat::Hot)
    }

    /// What is to stay in RAM, if that makes up enough of `out_bytes`. Moved, a chunk crosses the link once each way; read in place, once for
    /// each work that reads it. So an optimizer's moments stay, and weights do not, which the forward part reads as well.
    fn staying(&mut self, place: u64, out_bytes: u64) -> FastSet<u32> {
        let read_once: Vec<(u32, &ChunkState, u64)> = self
            .to_be_planned()
            .filter_map(|(index, chunk)| Some((index, chunk, self.only_reader(chunk, place)?)))
            .filter(|(.., kind)| self.foresight.manner(*kind) != Some(Manner::Move))
            .collect();
        let is_known = |(.., kind): &&(u32, &ChunkState, u64)| self.foresight.manner(*kind).is_some();
        let known_bytes: u64 = read_once.iter().filter(is_known).map(|(_, chunk, _)| chunk.bytes).sum();
        let enough = known_bytes * LEAST_PART >= out_bytes;
        let least_bytes = out_bytes / KNOWN_PART;
        let Some(changes) = changes(read_once.iter().map(|(_, chunk, _)| *chunk), least_bytes) else {
            // That is only seen when it moves: so it does, until then.
            let asked = if enough { read_once.iter().map(|(index, ..)| *index).collect() } else { FastSet::default() };
            self.planned.ask(asked, least_bytes);
            return FastSet::default();
        };
        if !changes {
            return FastSet::default();
        }
        let mut tried: FastMap<u64, u64> = FastMap::default();
        let stays = read_once.iter().filter(|reader| {
            if is_known(reader) {
                return enough;
            }
            let (_, chunk, kind) = reader;
            let bytes = tried.entry(*kind).or_default();
            let tries = *bytes < TRY_BYTES;
            *bytes += chunk.bytes;
            tries
        });
        stays.map(|(index, ..)| *index).collect()
    }

    /// The kind of the only work behind `place` that uses the chunk. An optimizer takes several works for its tensors, and neighbours each
    /// a part of the tensor between them: those are as one.
    fn only_reader(&self, chunk: &ChunkState, place: u64) -> Option<u64> {
        let mut uses = chunk.history.since(place).map(|used| used.position);
        let first = uses.next()?;
        let kind = self.foresight.kind_at(first)?;
        let goes_on = |(next, position)| position == next && self.foresight.kind_at(position) == Some(kind);
        (first + 1..).zip(uses).all(goes_on).then_some(kind)
    }
}

/// The size of the chunk that a byte of these lies in, on average.
fn usual_bytes(chunks: impl Iterator<Item = u64>) -> u64 {
    let (bytes, squares) =
        chunks.fold((0, 0), |(sum, squares), bytes| (sum + bytes, squares + u128::from(bytes).pow(2)));
    u64::try_from(squares / u128::from(bytes.max(1))).unwrap_or(bytes)
}

/// Whether most of these chunks have changed since they were sent away before; known if it is of `least_bytes`.
fn changes<'a>(chunks: impl Iterator<Item = &'a ChunkState>, least_bytes: u64) -> Option<bool> {
    let known = chunks.filter_map(|chunk| Some((chunk.bytes, chunk.changes?)));
    let (bytes, changing) = known
        .fold((0, 0), |(bytes, changing), (more, changes)| (bytes + more, changing + if changes { more } else { 0 }));
    (bytes > least_bytes).then_some(changing * 2 >= bytes)
}
