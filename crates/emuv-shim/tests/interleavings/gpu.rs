//! A GPU for this test. It keeps for each piece of memory a number and at most one pointer, instead of bytes; works
//! on its streams make steps whenever anybody calls the driver, in a random order between the streams.
//!
//! Each work begins in one step and ends in a later one, and must find the same memory mapped at both: that is "no chunk
//! is moved while a work in flight may touch it", seen from the GPU. A copy reads when it begins and writes when it ends,
//! so what a work writes in between is lost, and the sums that the scenarios look at are wrong. What breaks a rule
//! is noted, and ends the execution at the program's next step ([`check`]).

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
};

use emuv_policy::{GRANULE, Tier};

/// Address space; arenas of more than this are refused.
const MOST_RESERVED_BYTES: u64 = 1 << 36;

/// A stretch of addresses: start, bytes.
pub type Span = (u64, u64);

/// What lies in one handle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Data {
    /// What works have added up.
    pub sum: u64,
    /// A pointer to a span.
    pub pointer: Option<Span>,
}

#[derive(Debug)]
struct Memory {
    tier: Tier,
    bytes: u64,
    data: Data,
    mappings: u32,
    was_mapped: bool,
}

/// What a work does.
#[derive(Debug, Clone)]
pub enum Work {
    /// Adds to all memory of the span.
    Add(Span, u64),
    /// Sets all memory of the span.
    Set(Span, u64),
    /// Stores a pointer in the span's memory.
    Point(Span, Span),
    /// Adds to all memory that the pointer in the span's memory leads to.
    AddThrough(Span, u64),
    /// Copies a chunk: to, from.
    Copy(Span, Span),
    /// Looks for pointers into a window; where they are noted is the driver's business.
    Search(Span, Notes),
    /// Takes the hash of a chunk; the address is where its words go.
    Hash(Span, u64),
    /// An event is reached.
    Event(usize),
}

/// Where a search notes what it finds.
#[derive(Debug, Clone)]
pub struct Notes {
    /// The window.
    pub window: Span,
    /// A bit for each granule of the window.
    pub bitmap: u64,
    /// A flag for pointers into one of `named` (of the window), or null.
    pub flag: u64,
    /// See `flag`.
    pub named: Vec<Span>,
}

/// A work that has begun: what it found mapped.
#[derive(Debug, Default)]
struct Begun {
    /// Address and handle.
    found: Vec<(u64, u64)>,
    /// Of a copy's source.
    read: Data,
    /// Where a pointer led.
    led_to: Option<Span>,
}

#[derive(Debug)]
pub struct Gpu {
    random: u64,
    next: u64,
    /// Bytes of memory on the card.
    vram_bytes: u64,
    memories: BTreeMap<u64, Memory>,
    /// Address -> bytes, handle.
    mapped: BTreeMap<u64, (u64, u64)>,
    streams: BTreeMap<usize, VecDeque<(Work, Option<Begun>)>>,
    /// Markers of an event that have not been reached.
    events: BTreeMap<usize, u32>,
    /// What searches have found and the driver has not noted yet: notes, target.
    pub found: Vec<(Notes, u64)>,
    /// Likewise, what hashes have given: where it goes, two words.
    pub hashed: Vec<(u64, [u64; 2])>,
    complaint: Option<String>,
    /// Who called last, and how many times in a row.
    caller: (usize, u32),
    /// Exchanges of mappings until one is refused.
    refuse_in: u32,
}

thread_local! {
    static GPU: RefCell<Gpu> = const { RefCell::new(Gpu::new()) };
}

/// Looks at the GPU. Nobody else runs meanwhile.
pub fn with<T>(look: impl FnOnce(&mut Gpu) -> T) -> T {
    GPU.with_borrow_mut(look)
}

/// A new GPU.
pub fn begin_execution(vram_bytes: u64, random: u64) {
    with(|gpu| *gpu = Gpu { vram_bytes, random: random | 1, ..Gpu::new() });
}

/// Panics if something has gone wrong.
pub fn check() {
    if let Some(complaint) = with(|gpu| gpu.complaint.take()) {
        panic!("{complaint}");
    }
}

impl Gpu {
    const fn new() -> Self {
        Self {
            random: 1,
            next: 0,
            vram_bytes: 0,
            memories: BTreeMap::new(),
            mapped: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            found: Vec::new(),
            hashed: Vec::new(),
            complaint: None,
            caller: (usize::MAX, 0),
            refuse_in: 0,
        }
    }

    /// Something that must not be.
    pub fn complain(&mut self, what: String) {
        self.complaint.get_or_insert(what);
    }

    /// How many calls this caller has made without another's in between.
    pub fn calls_in_a_row(&mut self, caller: usize) -> u32 {
        let count = if self.caller.0 == caller { self.caller.1 + 1 } else { 0 };
        self.caller = (caller, count);
        count
    }

    /// A number below `bound`.
    pub fn random(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    fn name(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A new address range, 16 TiB apart from others.
    pub fn reserve(&mut self, bytes: u64) -> Option<u64> {
        let room = if self.next == 0 { MOST_RESERVED_BYTES } else { 1 << 44 };
        (bytes <= room).then(|| self.name() << 44)
    }

    /// Free bytes on the card.
    pub fn free_bytes(&self) -> u64 {
        let used: u64 = self.memories.values().filter(|m| m.tier == Tier::Vram).map(|m| m.bytes).sum();
        self.vram_bytes - used
    }

    /// Bytes on the card.
    pub fn total_bytes(&self) -> u64 {
        self.vram_bytes
    }

    /// `None`: no room.
    pub fn create(&mut self, tier: Tier, bytes: u64) -> Option<u64> {
        if tier == Tier::Vram && bytes > self.free_bytes() {
            return None;
        }
        let handle = self.name();
        self.memories.insert(handle, Memory { tier, bytes, data: Data::default(), mappings: 0, was_mapped: false });
        Some(handle)
    }

    pub fn release(&mut self, handle: u64) {
        match self.memories.remove(&handle) {
            Some(memory) if memory.mappings == 0 => {}
            was => self.complain(format!("handle {handle} is given back while it is {was:?}")),
        }
    }

    /// The driver is to refuse, once, to map what has been mapped before (as only the mover does): the time after
    /// so many.
    pub fn refuse_exchange(&mut self, after: u32) {
        self.refuse_in = after + 1;
    }

    /// False: refused.
    pub fn map(&mut self, address: u64, bytes: u64, handle: u64) -> bool {
        if self.refuse_in > 0 && self.memories.get(&handle).is_some_and(|memory| memory.was_mapped) {
            self.refuse_in -= 1;
            if self.refuse_in == 0 {
                return false;
            }
        }
        let overlaps = self.mapped.range(..address + bytes).next_back().is_some_and(|(at, (b, _))| at + b > address);
        match self.memories.get_mut(&handle) {
            Some(memory) if memory.bytes == bytes && !overlaps => {
                memory.mappings += 1;
                memory.was_mapped = true;
            }
            was => {
                let what = format!("{was:?} is mapped at {address:#x} ({bytes} bytes; overlapping: {overlaps})");
                self.complain(what);
                return true;
            }
        }
        self.mapped.insert(address, (bytes, handle));
        true
    }

    pub fn unmap(&mut self, address: u64, bytes: u64) {
        match self.mapped.remove(&address) {
            Some((size, handle)) if size == bytes => {
                if let Some(memory) = self.memories.get_mut(&handle) {
                    memory.mappings -= 1;
                }
            }
            was => self.complain(format!("{address:#x} is unmapped where there is {was:?}")),
        }
    }

    /// Handles and mappings that there are.
    pub fn counts(&self) -> (usize, usize) {
        (self.memories.len(), self.mapped.len())
    }

    /// Puts a work on a stream.
    pub fn issue(&mut self, stream: usize, work: Work) {
        if let Work::Event(event) = &work {
            *self.events.entry(*event).or_default() += 1;
        }
        self.streams.entry(stream).or_default().push_back((work, None));
    }

    /// A new event.
    pub fn event(&mut self) -> usize {
        let event = usize::try_from(self.name()).expect("small");
        self.events.insert(event, 0);
        event
    }

    /// `None`: there is no such event.
    pub fn is_reached(&self, event: usize) -> Option<bool> {
        self.events.get(&event).map(|pending| *pending == 0)
    }

    pub fn drop_event(&mut self, event: usize) {
        if self.events.remove(&event).is_none() {
            self.complain(format!("event {event} is destroyed, and is none"));
        }
    }

    /// Whether a stream (`None`: any) has work.
    pub fn is_busy(&self, stream: Option<usize>) -> bool {
        self.streams.iter().any(|(name, queue)| stream.is_none_or(|stream| stream == *name) && !queue.is_empty())
    }

    /// Some streams go on a little.
    pub fn go_on(&mut self) {
        let busy: Vec<usize> = self.streams.iter().filter(|(_, q)| !q.is_empty()).map(|(name, _)| *name).collect();
        for stream in busy {
            if self.random(3) == 0 {
                self.step(stream);
            }
        }
    }

    /// The first work of a stream begins, or ends.
    pub fn step(&mut self, stream: usize) {
        let Some((work, begun)) = self.streams.get_mut(&stream).and_then(VecDeque::pop_front) else { return };
        if let Work::Event(event) = work {
            if let Some(pending) = self.events.get_mut(&event) {
                *pending -= 1;
            }
            return;
        }
        let Some(begun) = begun else {
            let begun = self.begin(&work);
            self.streams.entry(stream).or_default().push_front((work, Some(begun)));
            return;
        };
        self.end(&work, &begun);
    }

    fn spans(work: &Work, led_to: Option<Span>) -> Vec<Span> {
        match work {
            Work::Add(span, _)
            | Work::Set(span, _)
            | Work::Point(span, _)
            | Work::Search(span, _)
            | Work::Hash(span, _) => vec![*span],
            Work::AddThrough(span, _) => [*span].into_iter().chain(led_to).collect(),
            Work::Copy(to, from) => vec![*to, *from],
            Work::Event(_) => Vec::new(),
        }
    }

    fn begin(&mut self, work: &Work) -> Begun {
        let mut begun = Begun::default();
        if let Work::AddThrough(span, _) = work {
            begun.led_to = self.data(*span).pointer;
            if begun.led_to.is_none() {
                self.complain(format!("there is no pointer in {:#x}", span.0));
            }
        }
        if let Work::Copy(_, from) = work {
            begun.read = self.data(*from);
        }
        begun.found = self.look_up(work, begun.led_to);
        begun
    }

    fn end(&mut self, work: &Work, begun: &Begun) {
        if self.look_up(work, begun.led_to) != begun.found {
            self.complain(format!("what {work:?} touches was moved while it ran"));
        }
        match work {
            Work::Add(span, more) => self.each(*span, |data| data.sum += more),
            Work::AddThrough(_, more) => self.each(begun.led_to.unwrap_or_default(), |data| data.sum += more),
            Work::Set(span, sum) => self.each(*span, |data| *data = Data { sum: *sum, pointer: None }),
            Work::Point(span, to) => self.each(*span, |data| data.pointer = Some(*to)),
            Work::Copy(to, _) => self.each(*to, |data| *data = begun.read),
            Work::Search(span, notes) => self.search(*span, notes),
            Work::Hash(span, at) => {
                let Data { sum, pointer } = self.data(*span);
                self.hashed.push((*at, [sum.wrapping_add(1), pointer.map_or(0, |(start, bytes)| start ^ bytes << 48)]));
            }
            Work::Event(_) => {}
        }
    }

    fn search(&mut self, span: Span, notes: &Notes) {
        let Gpu { mapped, memories, found, .. } = self;
        for (_, (_, handle)) in mapped.range(span.0..span.0 + span.1) {
            let Some(target) = memories.get(handle).and_then(|memory| memory.data.pointer) else { continue };
            if target.0.wrapping_sub(notes.window.0) < notes.window.1 {
                found.push((notes.clone(), target.0 - notes.window.0));
            }
        }
    }

    /// What is mapped where a work touches memory.
    fn look_up(&mut self, work: &Work, led_to: Option<Span>) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        for (start, bytes) in Self::spans(work, led_to) {
            let mut at = start;
            while at < start + bytes {
                let Some((first, size, handle)) = self.mapping_of(at) else {
                    self.complain(format!("{work:?} touches {at:#x}, where nothing is mapped"));
                    break;
                };
                found.push((first, handle));
                at = first + size;
            }
        }
        found
    }

    /// Start, size and handle of what is mapped at an address: a copy may be a piece of a chunk's.
    fn mapping_of(&self, at: u64) -> Option<(u64, u64, u64)> {
        let (first, (size, handle)) = self.mapped.range(..=at).next_back()?;
        (at - first < *size).then_some((*first, *size, *handle))
    }

    fn each(&mut self, span: Span, change: impl Fn(&mut Data)) {
        let from = self.mapping_of(span.0).map_or(span.0, |(first, ..)| first);
        let Gpu { mapped, memories, .. } = self;
        for (_, (_, handle)) in mapped.range(from..span.0 + span.1) {
            if let Some(memory) = memories.get_mut(handle) {
                change(&mut memory.data);
            }
        }
    }

    /// What all memory of the span holds; complains where it differs.
    pub fn data(&mut self, span: Span) -> Data {
        let from = self.mapping_of(span.0).map_or(span.0, |(first, ..)| first);
        let all: Vec<Data> = self
            .mapped
            .range(from..span.0 + span.1)
            .filter_map(|(_, (_, handle))| self.memories.get(handle).map(|memory| memory.data))
            .collect();
        let first = all.first().copied().unwrap_or_default();
        if all.is_empty() || all.iter().any(|data| data.sum != first.sum) {
            self.complain(format!("at {:#x} lies {all:?}", span.0));
        }
        first
    }
}

/// The granule of a window that a target lies in.
pub fn granule(target: u64) -> u64 {
    target / GRANULE
}
