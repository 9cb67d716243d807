//! Which chunks may move, and when: the rules that keep results right while data moves.
//!
//! A *chunk* is one driver handle at a fixed address. It lies in VRAM or in RAM, and is either *settled* or
//! *moving*. An *extent* is one allocation of the program's: one or more chunks side by side. A *work* is
//! anything that the program gives the GPU (a launch, a copy, a graph) on a *stream*.
//!
//! ```text
//!                start(to)                    finish(Moved)
//!   settled(A) ------------> moving(A -> B) ----------------> settled(B)
//!                                 | finish(Stayed)
//!                                 v
//!                             settled(A)
//! ```
//!
//! The executor copies a moving chunk's bytes and then replaces its mapping; neither is ordered with the
//! program's streams. So these are the obligations, each checked by a property test (`tests/residency.rs`):
//!
//! 1. **A chunk starts to move only when no work that is not known to be done may touch it.** A work may touch
//!    the extents that its arguments name, every *escaped* chunk (one that a pointer in GPU-visible memory
//!    leads to), and, if it cannot be read (`everything`), every chunk.
//! 2. **A work begins only when nothing that it may touch is moving.** Otherwise it is held.
//! 3. **Nothing moves beside other work while it is not known whether something points to it**: what may have stored
//!    pointers is searched (`pointers.rs`), and what is found there has escaped. With nothing in flight anything may move
//!    ([`Mode::Exclusive`]); works that come meanwhile are held until those moves are done.
//! 4. **A held work gets its turn**: what it waits for is settled and not moved away again before it begins.
//!
//! A chunk that is sent away may be left without a mapping (mapping RAM takes longer than copying to it): then obligation
//! 2 holds for it until it is back or mapped. Only so where its allocation has not escaped, nothing has ever been seen
//! that may touch everything, and it is planned to be back before it is used, or there is to be less VRAM; or where it is free,
//! so that nobody may touch it at all.
//!
//! A work takes effect between [`Residency::begin`] and [`Residency::completed`] of its number on its stream.
//! Numbers of a stream rise; a fence recorded on a stream covers the works whose calls had returned then
//! ([`Residency::fence`]), for which [`Residency::issued`] tells when a call has returned.

mod foresight;
mod hints;
mod history;
mod moves;
mod outlook;
mod pins;
mod plan;
mod pointers;
mod round_plan;
mod schedule;
mod seen;
mod sight;
mod works;

pub use foresight::Manner;
use foresight::{ExtentId, Foresight};
pub use hints::{Heat, Hint};
use history::History;
use outlook::Outlook;
use plan::Planned;
pub use plan::{Policy, Room as MoveRoom, Step, Why};
use pointers::Pointers;
pub use pointers::SearchRanges;
pub use sight::{LastRound, Looped, ReadInPlace, RoundChunk, Sight, Touch};
use works::LastUses;

use crate::{
    GRANULE, StreamId, Tier,
    hash::FastMap,
    trace::{Event, Recorder},
};

/// No chunk, no extent.
const NONE: u32 = u32::MAX;

/// What the GPU is about to be given.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// Where.
    pub stream: StreamId,
    /// Offsets in the arena that its arguments name.
    pub offsets: &'a [u64],
    /// It may touch anything.
    pub everything: bool,
    /// It may store pointers into what it touches: a search is to follow it.
    pub may_store_pointers: bool,
    /// Those pointers may lead anywhere: it has them from memory that is not searched. Code has its pointers from its
    /// arguments, so they lead to what it names.
    pub may_bring_pointers: bool,
    /// The code that it runs. Zero: none that could choose what to store.
    pub maker: u64,
    /// Names what it does, whatever the data: works of a kind read their data alike. Zero: it has no name.
    pub kind: u64,
    /// It would rather wait than read slowly from RAM what is worth moving.
    pub patient: bool,
}

impl<'a> Work<'a> {
    /// A work that names these offsets and stores no pointers, of no kind, and would rather not wait.
    pub const fn naming(stream: StreamId, offsets: &'a [u64]) -> Self {
        Self {
            stream,
            offsets,
            everything: false,
            may_store_pointers: false,
            may_bring_pointers: false,
            maker: 0,
            kind: 0,
            patient: false,
        }
    }
}

/// A work that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    lane: u32,
    /// Its number on its stream.
    pub number: u64,
    /// How much of what it touches lies in RAM, in bytes, and could be moved.
    pub ram_bytes: u64,
    /// Whether its time is worth measuring: it reads from RAM and nobody knows yet how well.
    pub measure: bool,
    /// Whether a search for pointers in what it touches is to be issued right behind it, on its stream
    /// ([`Residency::ranges`]).
    pub search: bool,
}

impl Begun {
    /// The stream that it is on and its number there, as [`Residency::collecting`] has them.
    pub fn work(&self) -> (u32, u64) {
        (self.lane, self.number)
    }
}

/// What a stream has been given behind its last fence ([`Residency::issued`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unfenced {
    /// How many works.
    pub works: u64,
    /// What they touch, as often as they do.
    pub bytes: u64,
}

/// Names a work that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HoldId(u64);

/// Answer to [`Residency::begin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// The call may be made now; then [`Residency::issued`].
    Go(Begun),
    /// Not yet. To be tried again, under this name, when something has changed.
    Hold(HoldId),
}

/// How a chunk may move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// While other work runs.
    Beside,
    /// Only while nothing runs; works that come meanwhile are held.
    Exclusive,
}

/// Why a chunk may not move now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    /// It never moves, is moving, or a held work needs it where it is.
    Fixed,
    /// Work that may touch it is not known to be done.
    Busy,
}

/// Where a work last touched a chunk.
type Use = (u32, u64);

/// In this order, what each work looks at lies in two cache lines: between two works the program has used the caches for itself.
#[derive(Debug)]
#[repr(C, align(64))]
struct ChunkState {
    offset: u64,
    bytes: u64,
    extent: u32,
    visit: u32,
    /// Held works that touch it.
    claims: u32,
    tier: Tier,
    /// Where it is moving to (or being mapped).
    moving: Option<Tier>,
    /// Something is behind its address. Not so: it lies in RAM, out of the way, and whatever touches it is held.
    mapped: bool,
    /// Never moves: shared with others, or many small allocations.
    fixed: bool,
    /// Holds nothing that anybody may read.
    dead: bool,
    escaped: bool,
    /// It is in the list of those that are planned to leave VRAM.
    listed: bool,
    /// It waits to be removed: no move begins any more.
    going: bool,
    /// The move under way leaves it without a mapping.
    leave: bool,
    /// It has come to VRAM since it was last somebody's.
    came: bool,
    /// Whether its bytes were others when it was sent away last than the time before, if that is known.
    changes: Option<bool>,
    /// What the program says of it.
    heat: Heat,
    history: History,
    /// The last work of each stream that may touch it.
    uses: LastUses,
    /// The last work of each stream behind which it is searched: it stays mapped until that is over.
    searches: LastUses,
}

impl ChunkState {
    /// Whether it moves by plan: not what lies where it is for good, nor what moves only while nothing runs.
    fn is_planned(&self) -> bool {
        !self.fixed && !self.escaped
    }
}

#[derive(Debug, Clone, Copy)]
struct Extent {
    offset: u64,
    bytes: u64,
    id: ExtentId,
}

/// A stream's works.
#[derive(Debug, Default)]
struct Lane {
    begun: u64,
    /// The last work that a fence covers, and what works behind it touch.
    fenced: u64,
    unfenced_bytes: u64,
    done: u64,
    /// Begun, and the call has not returned yet.
    open: Vec<u64>,
}

#[derive(Debug)]
struct Held {
    id: HoldId,
    chunks: Vec<u32>,
    everything: bool,
    /// It waits for its chunks to come to VRAM, and could do without.
    promote: bool,
    /// It does badly with data in RAM: what is about to be used as well may leave for it, if nothing else can.
    slow: bool,
    /// What is about to be used as well may leave for it.
    must: bool,
    /// Nothing can be done for it.
    hopeless: bool,
}

/// See the module's head. One per device.
#[derive(Debug)]
pub struct Residency {
    policy: Policy,
    /// The executor has given up: not even what must come to VRAM moves any more.
    stopped: bool,
    /// Chunk index by granule of the arena.
    granules: Vec<u32>,
    chunks: Vec<Option<ChunkState>>,
    free_chunks: Vec<u32>,
    extents: Vec<Option<Extent>>,
    free_extents: Vec<u32>,
    names: FastMap<StreamId, u32>,
    lanes: Vec<Lane>,
    /// The last work of each stream that may touch anything.
    everything: LastUses,
    /// Everything from before works were told is known to be done.
    quiesced: bool,
    /// What moves to either tier (or is being mapped there): how many chunks, and their bytes.
    into_vram: (usize, u64),
    into_ram: (usize, u64),
    /// How many moves to VRAM have begun, ever.
    brought: u64,
    /// Chunks that nothing is mapped to, and those of them that are somebody's.
    unmapped: usize,
    unmapped_owned: usize,
    /// Chunks that have escaped.
    escaped: usize,
    /// There has been work that may touch anything: then everything stays mapped.
    saw_everything: bool,
    exclusive: bool,
    /// A chunk that is to be removed waits for searches.
    removal_waits: bool,
    /// Searches of other devices that read this one's memory now.
    lent: u32,
    pointers: Pointers,
    held: Vec<Held>,
    next_hold: u64,
    foresight: Foresight,
    coldest: history::Coldest,
    planned: Planned,
    outlook: Outlook,
    /// Kinds of work that are being timed.
    measuring: Vec<u64>,
    in_place: sight::InPlace,
    /// The program has said of something that it is hot.
    saw_hot: bool,
    /// The same: cold.
    saw_cold: bool,
    /// Something was to be pinned.
    saw_pins: bool,
    /// There may be a slab in RAM.
    saw_slab_out: bool,
    visit: u32,
    scratch: Vec<u32>,
    extent_scratch: Vec<ExtentId>,
    recorder: Option<Box<Recorder>>,
}

impl Residency {
    /// No chunks, nothing known.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            stopped: false,
            granules: Vec::new(),
            chunks: Vec::new(),
            free_chunks: Vec::new(),
            extents: Vec::new(),
            free_extents: Vec::new(),
            names: FastMap::default(),
            lanes: Vec::new(),
            everything: LastUses::default(),
            quiesced: false,
            into_vram: (0, 0),
            into_ram: (0, 0),
            brought: 0,
            unmapped: 0,
            unmapped_owned: 0,
            escaped: 0,
            saw_everything: false,
            exclusive: false,
            removal_waits: false,
            lent: 0,
            pointers: Pointers::default(),
            held: Vec::new(),
            next_hold: 0,
            foresight: Foresight::default(),
            planned: Planned::default(),
            outlook: Outlook::default(),
            measuring: Vec::new(),
            in_place: sight::InPlace::default(),
            coldest: history::Coldest::default(),
            saw_hot: false,
            saw_cold: false,
            saw_pins: false,
            saw_slab_out: false,
            visit: 0,
            scratch: Vec::new(),
            extent_scratch: Vec::new(),
            recorder: None,
        }
    }

    /// From now on everything is recorded; chunks and extents must not be there yet.
    pub fn record(&mut self) {
        self.recorder = Some(Box::default());
    }

    /// What is recorded, if anything is.
    pub fn recorder(&mut self) -> Option<&mut Recorder> {
        self.recorder.as_deref_mut()
    }

    fn tell(&mut self, event: impl FnOnce() -> Event) {
        if let Some(recorder) = &mut self.recorder {
            recorder.record(&event());
        }
    }

    // --- chunks and extents -------------------------------------------------------------------------------

    /// A chunk is mapped. `fixed`: it never moves.
    pub fn add_chunk(&mut self, offset: u64, bytes: u64, tier: Tier, fixed: bool) {
        self.tell(|| Event::Chunk { offset, bytes, tier, fixed });
        let index = self.free_chunks.pop().unwrap_or_else(|| {
            self.chunks.push(None);
            index_of(self.chunks.len() - 1)
        });
        let range = granules(offset, bytes);
        if self.granules.len() < range.end {
            self.granules.resize(range.end, NONE);
        }
        self.granules[range].fill(index);
        self.chunks[index as usize] = Some(ChunkState {
            offset,
            bytes,
            tier,
            moving: None,
            mapped: true,
            leave: false,
            uses: LastUses::default(),
            searches: LastUses::default(),
            extent: NONE,
            fixed,
            going: false,
            escaped: false,
            dead: self.quiesced && !fixed,
            came: false,
            changes: None,
            heat: Heat::default(),
            listed: false,
            claims: 0,
            visit: 0,
            history: History::default(),
        });
        self.saw_slab_out |= fixed && tier == Tier::Ram;
        self.outlook.moved_or_gone(index);
    }

    /// The chunk at `offset` is about to be unmapped for good. False: it is moving or being searched; try again
    /// when it has settled.
    #[must_use]
    pub fn remove_chunk(&mut self, offset: u64) -> bool {
        let Some(index) = self.at(offset) else { return true };
        let Some(chunk) = self.chunk(index) else { return true };
        let searched = self.is_under_search(chunk);
        if chunk.moving.is_some() || self.pointers.searching || self.lent > 0 || searched {
            self.removal_waits |= searched;
            if let Some(chunk) = self.chunk_mut(index) {
                chunk.going = true;
            }
            return false;
        }
        let range = granules(chunk.offset, chunk.bytes);
        let escaped = usize::from(chunk.escaped);
        self.change(index, |chunk| chunk.mapped = true);
        self.escaped -= escaped;
        self.granules[range].fill(NONE);
        self.chunks[index as usize] = None;
        self.free_chunks.push(index);
        self.outlook.moved_or_gone(index);
        for held in &mut self.held {
            held.chunks.retain(|other| *other != index);
        }
        self.tell(|| Event::Removed { offset });
        true
    }

    /// The program has got `bytes` at `offset`: an extent of chunks that are there already. What they hold is
    /// nobody's until something is written.
    pub fn add_extent(&mut self, offset: u64, bytes: u64) {
        self.tell(|| Event::Extent { offset, bytes });
        let id = self.free_extents.pop().unwrap_or_else(|| {
            self.extents.push(None);
            index_of(self.extents.len() - 1)
        });
        let name = self.foresight.born();
        self.extents[id as usize] = Some(Extent { offset, bytes, id: name });
        let dead = self.quiesced;
        self.each_in(offset, bytes, |chunk| {
            chunk.extent = id;
            chunk.heat = Heat::default();
            chunk.dead = dead && !chunk.fixed;
        });
    }

    /// The program has given the extent that starts at `offset` back. Work in flight may still touch its chunks; what they
    /// hold is then nobody's.
    pub fn remove_extent(&mut self, offset: u64) {
        let Some(id) = self.at(offset).and_then(|index| self.chunk(index)).map(|chunk| chunk.extent) else { return };
        let Some(slot) = self.extents.get_mut(id as usize) else { return };
        let Some(extent) = slot.take_if(|extent| extent.offset == offset) else { return };
        self.free_extents.push(id);
        self.tell(|| Event::Freed { offset });
        let (dead, position) = (self.quiesced, self.foresight.position());
        self.each_in(extent.offset, extent.bytes, |chunk| {
            chunk.history.died(position);
            chunk.extent = NONE;
            chunk.heat = Heat::default();
            chunk.dead = dead && !chunk.fixed;
            chunk.came = false;
        });
    }

    /// All memory is about to be read, for another device. False: something is moving; to be tried again.
    #[must_use]
    pub fn lend(&mut self) -> bool {
        self.lent += u32::from(self.moving() == 0);
        self.moving() == 0
    }

    /// It has been read.
    pub fn returned(&mut self) {
        self.lent = self.lent.saturating_sub(1);
    }

    /// (offset, bytes) of every chunk.
    pub fn all(&self) -> Vec<(u64, u64)> {
        self.live().map(|(_, chunk)| (chunk.offset, chunk.bytes)).collect()
    }

    /// (offset, bytes) of every chunk that has a mapping.
    pub fn mapped(&self) -> Vec<(u64, u64)> {
        self.live().filter(|(_, chunk)| chunk.mapped).map(|(_, chunk)| (chunk.offset, chunk.bytes)).collect()
    }

    fn at(&self, offset: u64) -> Option<u32> {
        let index = *self.granules.get(usize::try_from(offset / GRANULE).ok()?)?;
        (index != NONE).then_some(index)
    }

    fn chunk(&self, index: u32) -> Option<&ChunkState> {
        self.chunks.get(index as usize)?.as_ref()
    }

    fn chunk_mut(&mut self, index: u32) -> Option<&mut ChunkState> {
        self.chunks.get_mut(index as usize)?.as_mut()
    }

    fn live(&self) -> impl Iterator<Item = (u32, &ChunkState)> {
        self.chunks.iter().enumerate().filter_map(|(index, chunk)| Some((index_of(index), chunk.as_ref()?)))
    }

    fn each_in(&mut self, offset: u64, bytes: u64, mut change: impl FnMut(&mut ChunkState)) {
        let mut at = offset;
        while at < offset + bytes {
            let Some(index) = self.at(at) else { return };
            let Some(chunk) = self.chunk(index) else { return };
            at = chunk.offset + chunk.bytes;
            self.change(index, &mut change);
        }
    }

    /// Changes a chunk, and the counts of those without a mapping with it.
    fn change(&mut self, index: u32, change: impl FnOnce(&mut ChunkState)) {
        let Some(chunk) = self.chunks.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let counts =
            |chunk: &ChunkState| (usize::from(!chunk.mapped), usize::from(!chunk.mapped && chunk.extent != NONE));
        let before = counts(chunk);
        change(chunk);
        let after = counts(chunk);
        self.unmapped = self.unmapped + after.0 - before.0;
        self.unmapped_owned = self.unmapped_owned + after.1 - before.1;
    }

    /// The chunks that a work may touch by its arguments, each once.
    fn resolve(&mut self, offsets: &[u64], everything: bool, into: &mut Vec<u32>) {
        if everything {
            into.extend(self.live().map(|(index, _)| index));
            return;
        }
        self.visit = self.visit.wrapping_add(1);
        let visit = self.visit;
        for &offset in offsets {
            let Some(index) = self.at(offset) else { continue };
            let Some(chunk) = self.chunks[index as usize].as_mut() else { continue };
            if chunk.visit == visit {
                continue;
            }
            let Some(Some(extent)) = self.extents.get(chunk.extent as usize).copied() else {
                chunk.visit = visit;
                into.push(index);
                continue;
            };
            let mut at = extent.offset;
            while at < extent.offset + extent.bytes {
                let Some(index) = self.at(at) else { break };
                let Some(chunk) = self.chunks[index as usize].as_mut() else { break };
                at = chunk.offset + chunk.bytes;
                if chunk.visit != visit {
                    chunk.visit = visit;
                    into.push(index);
                }
            }
        }
    }

    /// Whether chunks may move at all.
    pub fn policy(&self) -> Policy {
        self.policy
    }
}

#[allow(clippy::cast_possible_truncation)] // The arena has far fewer than 2^32 granules.
fn index_of(index: usize) -> u32 {
    index as u32
}

#[allow(clippy::cast_possible_truncation)] // 64-bit only.
fn granules(offset: u64, bytes: u64) -> std::ops::Range<usize> {
    (offset / GRANULE) as usize..(offset + bytes).div_ceil(GRANULE) as usize
}
