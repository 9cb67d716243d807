//! Works: from the moment the program is about to give one to the GPU until it is known to be done.

use super::{
    Begin, Begun, ChunkState, ExtentId, Held, HoldId, Lane, Manner, NONE, Policy, Residency, Unfenced, Use, Work,
    history::Decision, index_of,
};
use crate::{
    GRANULE, StreamId, Tier,
    trace::{Event, WorkFlags},
};

impl Residency {
    /// Everything that the GPU was given before works were told is done.
    pub fn quiesced(&mut self) {
        self.quiesced = true;
        // What is there may hold pointers that nobody saw being stored.
        self.pointers.search_all_now();
    }

    /// The program is about to give the GPU this work. `hold`: the name under which it was held before.
    pub fn begin(&mut self, work: &Work<'_>, hold: Option<HoldId>) -> Begin {
        let mut touched = std::mem::take(&mut self.scratch);
        touched.clear();
        self.resolve(work.offsets, work.everything, &mut touched);
        let answer = self.begin_with(work, hold, &touched);
        self.scratch = touched;
        answer
    }

    fn begin_with(&mut self, work: &Work<'_>, hold: Option<HoldId>, touched: &[u32]) -> Begin {
        let blocked = self.exclusive
            || self.pointers.stops_works()
            || self.needs_findings()
            || (work.everything && self.moving() + self.unmapped_owned > 0)
            || (self.moving() + self.unmapped > 0 && !self.are_in_place(touched));
        self.saw_everything |= work.everything;
        let ram_bytes = self.movable_ram_bytes(touched);
        let manner = if ram_bytes > 0 { self.foresight.manner(work.kind) } else { None };
        if manner == Some(Manner::InPlace) {
            self.look_for_coldest();
        }
        let wanted =
            || manner == Some(Manner::Move) || touched.iter().any(|index| self.is_better_brought(*index, manner));
        let promote = ram_bytes > 0 && work.patient && self.policy.promotes() && !self.has_no_hope(hold) && wanted();
        // How this kind does with data in RAM is about to be known: better to wait than to do it all the slow way.
        let wait_to_know =
            work.patient && manner.is_none() && ram_bytes >= GRANULE && self.measuring.contains(&work.kind);
        if blocked || promote || wait_to_know {
            let id = self.hold(hold, touched, work.everything, promote);
            let slow = manner == Some(Manner::Move);
            self.held.iter_mut().filter(|held| held.id == id).for_each(|held| held.slow = slow);
            return Begin::Hold(id);
        }
        if let Some(id) = hold {
            self.release(id);
        }
        // What one reads that may touch everything is not all of it.
        let account = if work.everything {
            self.in_place.unknown(ram_bytes);
            false
        } else {
            self.in_place.begun(work.kind, ram_bytes)
        };
        let lane = self.lane(work.stream);
        let position = self.foresight.position();
        let bytes = self.foresee(work, touched);
        let state = &mut self.lanes[lane as usize];
        state.begun += 1;
        state.unfenced_bytes += bytes;
        let number = state.begun;
        state.open.push(number);
        let (place, turns) = (self.foresight.place(), self.foresight.turns());
        for &index in touched {
            if let Some(chunk) = self.chunks[index as usize].as_mut() {
                let fresh = std::mem::take(&mut chunk.dead);
                if !work.everything {
                    chunk.uses.note(lane, number);
                    chunk.history.note(position, fresh, place, turns);
                    self.outlook.changed(index, chunk);
                }
            }
        }
        if work.everything {
            self.everything.note(lane, number);
        }
        let search = self.may_store(work, touched, (lane, number));
        let can_be_timed = work.kind != 0 && !work.everything && self.policy.promotes();
        let measure = can_be_timed && ram_bytes >= GRANULE && self.foresight.is_to_be_timed(work.kind, self.traffic());
        if measure {
            self.measuring.push(work.kind);
        }
        let measure = measure || account;
        if self.recorder.is_some() {
            let everything = work.everything;
            let flags = WorkFlags { everything, search, measure, foreseen: self.foresight.period().is_some() };
            let chunks = if everything { Vec::new() } else { self.offsets(touched) };
            let (stream, kind) = (work.stream, work.kind);
            self.tell(|| Event::Begun { stream, number, kind, flags, chunks });
        }
        Begin::Go(Begun { lane, number, ram_bytes, measure, search })
    }

    /// What these offsets name is to lie still and mapped, without a work, until [`Residency::release`]; in VRAM, if the
    /// caller is `patient`. Under which name, and whether it does.
    pub fn keep_at_hand(&mut self, offsets: &[u64], hold: Option<HoldId>, patient: bool) -> (HoldId, bool) {
        let mut touched = Vec::new();
        self.resolve(offsets, false, &mut touched);
        let is_out = |index: &u32| self.chunk(*index).is_some_and(|chunk| chunk.tier == Tier::Ram && !chunk.fixed);
        let promote = patient && !self.has_no_hope(hold) && self.policy != Policy::Static && touched.iter().any(is_out);
        let ready = !promote && self.are_in_place(&touched);
        (self.insist(hold, &touched, promote), ready)
    }

    /// Gives how many bytes it touches that move, as far as that is known.
    fn foresee(&mut self, work: &Work<'_>, touched: &[u32]) -> u64 {
        let mut extents: Vec<ExtentId> = std::mem::take(&mut self.extent_scratch);
        extents.clear();
        let mut bytes = 0;
        for chunk in touched.iter().filter_map(|index| self.chunk(*index)).filter(|c| !c.fixed && !work.everything) {
            let extent = self.extents.get(chunk.extent as usize).and_then(Option::as_ref);
            if let Some(extent) = extent.filter(|extent| extents.last() != Some(&extent.id)) {
                extents.push(extent.id);
            }
            bytes += chunk.bytes;
        }
        self.foresight.note(work.kind, &extents, bytes);
        self.extent_scratch = extents;
        bytes
    }

    pub(super) fn offsets(&self, chunks: &[u32]) -> Vec<u64> {
        chunks.iter().filter_map(|index| self.chunk(*index)).map(|chunk| chunk.offset).collect()
    }

    /// Whether works are held until it is known what points where: a pointer that has just been brought may lead to what
    /// is moving or has no mapping.
    pub(super) fn needs_findings(&self) -> bool {
        self.moving() + self.unmapped_owned > 0 && self.pointers.may_lead_anywhere()
    }

    /// Whether nothing that a work which names `touched` may touch is moving or without a mapping.
    fn are_in_place(&self, touched: &[u32]) -> bool {
        let in_place = |chunk: &ChunkState| chunk.moving.is_none() && chunk.mapped;
        // What has escaped may be touched as well; it may have been on its way, or out, when it did.
        touched.iter().all(|index| self.chunk(*index).is_none_or(in_place))
            && (self.escaped == 0 || self.live().all(|(_, chunk)| !chunk.escaped || in_place(chunk)))
    }

    /// Whether a work that could read the chunk in place waits for it all the same. By plan: it would have to be mapped there, it is on its
    /// way (what is read in place meanwhile makes that later still; but how a kind does that has to be seen once), or it is used so
    /// often that it never lies idle, as it must to be brought. Where nothing is foreseen it is mapped there, which pushes nothing out,
    /// unless it is used far more often than something in VRAM.
    fn is_better_brought(&self, index: u32, manner: Option<Manner>) -> bool {
        let Some(chunk) = self.chunk(index).filter(|chunk| chunk.tier == Tier::Ram && !chunk.fixed) else {
            return false;
        };
        let is_hot = || chunk.history.is_hot(self.foresight.position());
        if self.foresight.place().is_none() && manner == Some(Manner::InPlace) {
            return is_hot() || chunk.history.is_worth_room_of(self.coldest);
        }
        let comes = self.brings_most() || chunk.history.decision == Decision::Out && self.foresight.place().is_some();
        let planned = manner.is_some() && comes;
        !chunk.mapped || (chunk.history.decision != Decision::Stay && (planned || is_hot()))
    }

    fn look_for_coldest(&mut self) {
        let position = self.foresight.position();
        if self.foresight.place().is_some() || !self.coldest.is_due(position) {
            return;
        }
        let in_vram = self.live().filter(|(_, chunk)| chunk.tier == Tier::Vram && !chunk.fixed && !chunk.dead);
        let last = in_vram.map(|(_, chunk)| chunk.history.last()).min();
        self.coldest.set(last, position);
    }

    /// What lies in RAM of what these offsets name, in bytes.
    pub fn ram_bytes(&mut self, offsets: &[u64]) -> u64 {
        let mut touched = Vec::new();
        self.resolve(offsets, false, &mut touched);
        self.movable_ram_bytes(&touched)
    }

    fn movable_ram_bytes(&self, touched: &[u32]) -> u64 {
        let chunks = touched.iter().filter_map(|index| self.chunk(*index));
        chunks.filter(|chunk| chunk.tier == Tier::Ram && !chunk.fixed).map(|chunk| chunk.bytes).sum()
    }

    /// The call of a work that has begun has returned. Gives what of its stream no fence covers.
    pub fn issued(&mut self, begun: &Begun) -> Unfenced {
        let Some(lane) = self.lanes.get_mut(begun.lane as usize) else { return Unfenced::default() };
        lane.open.retain(|number| *number != begun.number);
        Unfenced { works: lane.begun - lane.fenced, bytes: lane.unfenced_bytes }
    }

    /// A fence is about to be recorded on the stream: the number that it covers, as [`Self::fence`].
    pub fn record_fence(&mut self, stream: StreamId) -> Option<u64> {
        let number = self.fence(stream)?;
        let index = *self.names.get(&stream)?;
        let lane = &mut self.lanes[index as usize];
        (lane.fenced, lane.unfenced_bytes) = (number, 0);
        Some(number)
    }

    /// The number that a fence recorded on the stream from now on covers; `None` where everything begun is
    /// known to be done.
    pub fn fence(&self, stream: StreamId) -> Option<u64> {
        let lane = self.lanes.get(*self.names.get(&stream)? as usize)?;
        let number = lane.open.iter().min().map_or(lane.begun, |first| first - 1);
        (number > lane.done).then_some(number)
    }

    /// The stream's works up to `number` are done.
    pub fn completed(&mut self, stream: StreamId, number: u64) {
        let Some(index) = self.names.get(&stream).copied() else { return };
        let Some(lane) = self.lanes.get_mut(index as usize) else { return };
        lane.done = lane.done.max(number.min(lane.begun));
        let done = lane.done;
        // Whoever tells has more time than who launches.
        self.foresight.catch_up();
        self.tell(|| Event::Completed { stream, number: done });
    }

    /// The stream is gone and so are its works; its name may come again.
    pub fn stream_gone(&mut self, stream: StreamId) {
        if let Some(index) = self.names.remove(&stream) {
            let lane = &mut self.lanes[index as usize];
            (lane.done, lane.fenced, lane.unfenced_bytes) = (lane.begun, lane.begun, 0);
            lane.open.clear();
        }
    }

    /// Streams with works that are not known to be done.
    pub fn busy_streams(&self) -> Vec<StreamId> {
        let busy = |index: &u32| self.lanes.get(*index as usize).is_some_and(|lane| lane.done < lane.begun);
        self.names.iter().filter(|(_, index)| busy(index)).map(|(stream, _)| *stream).collect()
    }

    /// The link's speed into VRAM, in bytes per microsecond. A plan that was made without it is made again soon.
    pub fn set_link(&mut self, bytes_per_micro: f64) {
        self.foresight.set_link(bytes_per_micro);
        self.plan_soon();
        self.tell(|| Event::Link { bytes_per_milli: whole(bytes_per_micro * 1e3) });
    }

    /// A work that was to be measured could not be.
    pub fn unmeasured(&mut self, kind: u64) {
        self.measuring.retain(|other| *other != kind);
        self.in_place.end(kind);
    }

    /// How a kind of work that reads from RAM in place went: it took `micros` for `ram_bytes` there.
    pub fn measured(&mut self, kind: u64, ram_bytes: u64, micros: f64) {
        self.measuring.retain(|other| *other != kind);
        if self.in_place.timed(kind, ram_bytes, micros) {
            return;
        }
        if self.foresight.measured(kind, ram_bytes, micros, self.traffic()) {
            self.plan_soon();
        }
        self.tell(|| Event::Measured { kind, ram_bytes, micros: whole(micros) });
    }

    fn lane(&mut self, stream: StreamId) -> u32 {
        if let Some(index) = self.names.get(&stream) {
            return *index;
        }
        // Numbers of a lane go on rising, so a lane whose stream is gone serves the next one.
        let used: Vec<u32> = self.names.values().copied().collect();
        let free = (0..index_of(self.lanes.len())).find(|index| !used.contains(index));
        let index = free.unwrap_or_else(|| {
            self.lanes.push(Lane::default());
            index_of(self.lanes.len() - 1)
        });
        self.names.insert(stream, index);
        index
    }

    pub(super) fn is_done(&self, (lane, number): Use) -> bool {
        self.lanes.get(lane as usize).is_none_or(|lane| lane.done >= number)
    }

    pub(super) fn are_done(&self, uses: &LastUses) -> bool {
        uses.iter().all(|last| self.is_done(last))
    }

    /// Whether no work at all may be running.
    pub fn all_idle(&self) -> bool {
        self.quiesced && self.lanes.iter().all(|lane| lane.done == lane.begun)
    }

    // Held works.

    pub(super) fn hold(&mut self, hold: Option<HoldId>, touched: &[u32], everything: bool, promote: bool) -> HoldId {
        if let Some(held) = self.held.iter_mut().find(|held| Some(held.id) == hold) {
            held.promote = promote;
            return held.id;
        }
        self.next_hold += 1;
        let id = HoldId(self.next_hold);
        for &index in touched {
            if let Some(chunk) = self.chunk_mut(index) {
                chunk.claims += 1;
            }
        }
        let chunks = touched.to_vec();
        self.held.push(Held { id, chunks, everything, promote, slow: false, must: false, hopeless: false });
        if self.recorder.is_some() {
            let chunks = self.offsets(touched);
            self.tell(|| Event::Held { hold: id.0, for_data: promote, chunks });
        }
        id
    }

    /// Holds chunks that get their room in any case.
    pub(super) fn insist(&mut self, hold: Option<HoldId>, touched: &[u32], promote: bool) -> HoldId {
        let id = self.hold(hold, touched, false, promote);
        self.held.iter_mut().filter(|held| held.id == id).for_each(|held| held.must = true);
        id
    }

    /// Whether nothing can be done for what is held under this name.
    pub(super) fn has_no_hope(&self, hold: Option<HoldId>) -> bool {
        hold.is_some_and(|id| self.held.iter().any(|held| held.id == id && held.hopeless))
    }

    /// A held work begins, or its caller has given up.
    pub fn release(&mut self, id: HoldId) {
        let Some(at) = self.held.iter().position(|held| held.id == id) else { return };
        self.tell(|| Event::Unheld { hold: id.0 });
        for index in self.held.swap_remove(at).chunks {
            if let Some(chunk) = self.chunk_mut(index) {
                chunk.claims -= 1;
            }
        }
    }
}

/// The last use of each stream. Most have one, which is found without a look elsewhere.
#[derive(Debug)]
#[repr(C)] // The one first, where a chunk's state has what each work looks at.
pub(super) struct LastUses {
    one: Use,
    others: Vec<Use>,
}

impl Default for LastUses {
    fn default() -> Self {
        Self { one: (NONE, 0), others: Vec::new() }
    }
}

impl LastUses {
    /// A work of that stream uses it.
    pub fn note(&mut self, lane: u32, number: u64) {
        if self.one.0 == lane || self.one.0 == NONE {
            self.one = (lane, number);
            return;
        }
        match self.others.iter_mut().find(|(other, _)| *other == lane) {
            Some(last) => last.1 = number,
            None => self.others.push((lane, number)),
        }
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = Use> {
        [self.one].into_iter().filter(|one| one.0 != NONE).chain(self.others.iter().copied())
    }

    /// There are none any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Of a positive number.
fn whole(number: f64) -> u64 {
    number as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_fence_covers_is_counted_in_works_and_in_bytes() {
        const STREAM: StreamId = StreamId(1);
        let mut residency = Residency::new(Policy::Dynamic { safe: false });
        residency.add_chunk(0, 4 * GRANULE, Tier::Vram, false);
        residency.add_extent(0, 4 * GRANULE);
        let work = Work::naming(STREAM, &[0]);
        let run = |residency: &mut Residency| {
            let Begin::Go(begun) = residency.begin(&work, None) else { panic!("held") };
            residency.issued(&begun)
        };
        assert_eq!(run(&mut residency), Unfenced { works: 1, bytes: 4 * GRANULE });
        assert_eq!(run(&mut residency), Unfenced { works: 2, bytes: 8 * GRANULE });
        assert_eq!(residency.record_fence(STREAM), Some(2));
        assert_eq!(run(&mut residency), Unfenced { works: 1, bytes: 4 * GRANULE });
    }
}
