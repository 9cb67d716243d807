//! A record of what happened to chunks and works: for a look at a run afterwards, and to develop policies on.
//!
//! The format is described in `docs/trace-format.md`. [`events`] reads a whole trace and says what is wrong with it;
//! [`read`] reads as far as it goes.

use std::fmt;

use crate::{GRANULE, StreamId, Tier};

/// How a trace begins; the last character is the format's version.
pub const MAGIC: [u8; 8] = *b"emuvtrc2";

/// The first version that is still read: it has no [`Event::Compared`].
const OLDEST: u8 = b'1';

/// No chunk is larger.
pub const MOST_CHUNK_BYTES: u64 = crate::CHUNK_CLASSES[0];

/// No arena reaches further.
pub const MOST_OFFSET: u64 = 1 << 40;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Event {
    /// A chunk has been mapped.
    Chunk { offset: u64, bytes: u64, tier: Tier, fixed: bool },
    /// A chunk has been unmapped for good.
    Removed { offset: u64 },
    /// The program has got an allocation.
    Extent { offset: u64, bytes: u64 },
    /// It has given it back.
    Freed { offset: u64 },
    /// A work has begun. `chunks`: offsets of those that it names.
    Begun { stream: StreamId, number: u64, kind: u64, flags: WorkFlags, chunks: Vec<u64> },
    /// A work has to wait. `for_data`: until its data is in VRAM.
    Held { hold: u64, for_data: bool, chunks: Vec<u64> },
    /// It need not wait any more.
    Unheld { hold: u64 },
    /// Works of a stream are known to be done.
    Completed { stream: StreamId, number: u64 },
    /// A chunk has begun to move.
    Start { offset: u64, to: Tier, copy: bool, exclusive: bool },
    /// A chunk lies still again.
    Finish { offset: u64, moved: bool },
    /// A kind of work has been timed.
    Measured { kind: u64, ram_bytes: u64, micros: u64 },
    /// The link's speed in bytes per millisecond.
    Link { bytes_per_milli: u64 },
    /// A search through all memory has begun, or is over.
    SearchAll { over: bool },
    /// An allocation has escaped.
    Escaped { offset: u64 },
    /// A chunk that leaves VRAM has been compared with what it held when it left before.
    Compared { offset: u64, same: bool },
}

/// What else is known of a work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools)] // Flags they are.
pub struct WorkFlags {
    /// It may touch anything.
    pub everything: bool,
    /// It is followed by a search for pointers.
    pub search: bool,
    /// It is timed.
    pub measure: bool,
    /// The forecast expected it.
    pub foreseen: bool,
}

impl WorkFlags {
    fn bits(self) -> u64 {
        [self.everything, self.search, self.measure, self.foreseen]
            .iter()
            .enumerate()
            .map(|(bit, set)| u64::from(*set) << bit)
            .sum()
    }

    fn of(bits: u64) -> Self {
        let bit = |number: u32| bits >> number & 1 == 1;
        Self { everything: bit(0), search: bit(1), measure: bit(2), foreseen: bit(3) }
    }
}

/// Writes a trace. The clock is the caller's.
#[derive(Debug)]
pub struct Recorder {
    bytes: Vec<u8>,
    /// Of the event that is recorded next, and of the last one; in microseconds.
    now: u64,
    last: u64,
}

impl Recorder {
    /// An empty trace.
    pub fn new() -> Self {
        Self { bytes: MAGIC.to_vec(), now: 0, last: 0 }
    }

    /// It is `micros` after the beginning. Time never goes back.
    pub fn set_time(&mut self, micros: u64) {
        self.now = self.now.max(micros);
    }

    /// What has been recorded since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Bytes that [`Self::take`] would give.
    pub fn pending_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Records an event at the time that was set last.
    pub fn record(&mut self, event: &Event) {
        let since = self.now - std::mem::replace(&mut self.last, self.now);
        let (tag, numbers, list) = event.parts();
        self.bytes.push(tag);
        put(&mut self.bytes, since);
        for number in numbers {
            put(&mut self.bytes, number);
        }
        if let Some(list) = list {
            put(&mut self.bytes, list.len() as u64);
            let mut before = 0;
            for offset in list {
                let granule = offset / GRANULE;
                put(&mut self.bytes, zigzag(granule.wrapping_sub(before)));
                before = granule;
            }
        }
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Event {
    /// Whether a machine can have done this: see `docs/trace-format.md`.
    fn is_possible(&self) -> bool {
        match *self {
            Self::Chunk { offset, bytes, .. } => (1..=MOST_CHUNK_BYTES).contains(&bytes) && lies_within(offset, bytes),
            Self::Extent { offset, bytes } => lies_within(offset, bytes),
            _ => true,
        }
    }

    fn parts(&self) -> (u8, Vec<u64>, Option<&[u64]>) {
        let tier = |tier: Tier| u64::from(tier == Tier::Ram);
        match self {
            Self::Chunk { offset, bytes, tier: t, fixed } => {
                (1, vec![offset / GRANULE, bytes / GRANULE, tier(*t) | u64::from(*fixed) << 1], None)
            }
            Self::Removed { offset } => (2, vec![offset / GRANULE], None),
            Self::Extent { offset, bytes } => (3, vec![*offset, *bytes], None),
            Self::Freed { offset } => (4, vec![*offset], None),
            Self::Begun { stream, number, kind, flags, chunks } => {
                (5, vec![stream.0, *number, *kind, flags.bits()], Some(chunks))
            }
            Self::Held { hold, for_data, chunks } => (6, vec![*hold, u64::from(*for_data)], Some(chunks)),
            Self::Unheld { hold } => (7, vec![*hold], None),
            Self::Completed { stream, number } => (8, vec![stream.0, *number], None),
            Self::Start { offset, to, copy, exclusive } => {
                let flags = tier(*to) | u64::from(*copy) << 1 | u64::from(*exclusive) << 2;
                (9, vec![offset / GRANULE, flags], None)
            }
            Self::Finish { offset, moved } => (10, vec![offset / GRANULE, u64::from(*moved)], None),
            Self::Measured { kind, ram_bytes, micros } => (11, vec![*kind, *ram_bytes, *micros], None),
            Self::Link { bytes_per_milli } => (12, vec![*bytes_per_milli], None),
            Self::SearchAll { over } => (13, vec![u64::from(*over)], None),
            Self::Escaped { offset } => (14, vec![*offset], None),
            Self::Compared { offset, same } => (15, vec![offset / GRANULE, u64::from(*same)], None),
        }
    }
}

/// Why bytes are no trace that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// They do not begin as one.
    NotATrace,
    /// They begin as a trace of another version of the format.
    Version(char),
    /// They end within the event that begins here.
    CutOff(usize),
    /// What begins here is no event.
    Damaged(usize),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotATrace => f.write_str("is not a trace; 'emuv run --trace FILE -- CMD' records one"),
            Self::Version(version) => {
                write!(
                    f,
                    "is a trace of version {version}, this emuv reads version {}; update emuv",
                    char::from(MAGIC[7])
                )
            }
            Self::CutOff(at) => write!(f, "is cut off: it ends within the event at byte {at}; record it again"),
            Self::Damaged(at) => write!(f, "is damaged at byte {at}: no event begins there; record it again"),
        }
    }
}

impl std::error::Error for Unreadable {}

/// Reads a whole trace: each event with its time in microseconds from the beginning.
///
/// # Errors
/// It is none, or not whole.
pub fn events(bytes: &[u8]) -> Result<Vec<(u64, Event)>, Unreadable> {
    let mut rest = match version(bytes) {
        Some((found, rest)) if is_read(found) => rest,
        Some((found, _)) if found.is_ascii_graphic() => return Err(Unreadable::Version(char::from(found))),
        _ => return Err(Unreadable::NotATrace),
    };
    let mut events = Vec::new();
    let mut now = 0_u64;
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        let Some((since, event)) = event(&mut rest) else {
            return Err(if rest.is_empty() { Unreadable::CutOff(at) } else { Unreadable::Damaged(at) });
        };
        if !event.is_possible() {
            return Err(Unreadable::Damaged(at));
        }
        now = now.saturating_add(since);
        events.push((now, event));
    }
    Ok(events)
}

/// Reads a trace: each event with its time in microseconds from the beginning. `None`: it does not begin as one. Ends
/// at the end, or at the first thing that it does not know.
pub fn read(bytes: &[u8]) -> Option<impl Iterator<Item = (u64, Event)>> {
    let (_, mut rest) = version(bytes).filter(|(found, _)| is_read(*found))?;
    let mut now = 0_u64;
    Some(std::iter::from_fn(move || {
        let (since, event) = event(&mut rest).filter(|(_, event)| event.is_possible())?;
        now = now.saturating_add(since);
        Some((now, event))
    }))
}

/// Of a trace its version, and what follows.
fn version(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let (version, rest) = bytes.strip_prefix(&MAGIC[..7])?.split_first()?;
    Some((*version, rest))
}

fn is_read(version: u8) -> bool {
    (OLDEST..=MAGIC[7]).contains(&version)
}

fn event(rest: &mut &[u8]) -> Option<(u64, Event)> {
    let (&tag, after) = rest.split_first()?;
    *rest = after;
    let since = get(rest)?;
    let mut next = || get(rest);
    let tier = |bits: u64| if bits & 1 == 1 { Tier::Ram } else { Tier::Vram };
    let granules = |count: u64| count.checked_mul(GRANULE);
    let event = match tag {
        1 => {
            let (offset, bytes, bits) = (granules(next()?)?, granules(next()?)?, next()?);
            Event::Chunk { offset, bytes, tier: tier(bits), fixed: bits >> 1 & 1 == 1 }
        }
        2 => Event::Removed { offset: granules(next()?)? },
        3 => Event::Extent { offset: next()?, bytes: next()? },
        4 => Event::Freed { offset: next()? },
        5 => {
            let (stream, number, kind) = (StreamId(next()?), next()?, next()?);
            let flags = WorkFlags::of(next()?);
            Event::Begun { stream, number, kind, flags, chunks: list(rest)? }
        }
        6 => {
            let (hold, for_data) = (next()?, next()? == 1);
            Event::Held { hold, for_data, chunks: list(rest)? }
        }
        7 => Event::Unheld { hold: next()? },
        8 => Event::Completed { stream: StreamId(next()?), number: next()? },
        9 => {
            let (offset, bits) = (granules(next()?)?, next()?);
            Event::Start { offset, to: tier(bits), copy: bits >> 1 & 1 == 1, exclusive: bits >> 2 & 1 == 1 }
        }
        10 => Event::Finish { offset: granules(next()?)?, moved: next()? == 1 },
        11 => Event::Measured { kind: next()?, ram_bytes: next()?, micros: next()? },
        12 => Event::Link { bytes_per_milli: next()? },
        13 => Event::SearchAll { over: next()? == 1 },
        14 => Event::Escaped { offset: next()? },
        15 => Event::Compared { offset: granules(next()?)?, same: next()? == 1 },
        _ => return None,
    };
    Some((since, event))
}

fn lies_within(offset: u64, bytes: u64) -> bool {
    offset.checked_add(bytes).is_some_and(|end| end <= MOST_OFFSET)
}

fn list(rest: &mut &[u8]) -> Option<Vec<u64>> {
    let count = get(rest)?;
    // A length that lies must not cost memory: each member takes a byte at least.
    let mut list = Vec::with_capacity(usize::try_from(count).ok()?.min(rest.len()));
    let mut granule = 0_u64;
    for _ in 0..count {
        granule = granule.wrapping_add(unzigzag(get(rest)?));
        list.push(granule.checked_mul(GRANULE)?);
    }
    Some(list)
}

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push((number & 0x7f) as u8);
}

fn get(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Small differences in either direction become small numbers.
fn zigzag(difference: u64) -> u64 {
    (difference << 1) ^ (difference.cast_signed() >> 63).cast_unsigned()
}

fn unzigzag(number: u64) -> u64 {
    (number >> 1) ^ (number & 1).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples() -> Vec<Event> {
        let flags = WorkFlags { everything: true, search: false, measure: true, foreseen: false };
        let chunks = vec![3 * GRANULE, GRANULE, 900 * GRANULE];
        vec![
            Event::Chunk { offset: 4 * GRANULE, bytes: 16 * GRANULE, tier: Tier::Ram, fixed: false },
            Event::Chunk { offset: 0, bytes: GRANULE, tier: Tier::Vram, fixed: true },
            Event::Extent { offset: 1 << 39, bytes: 12_345 },
            Event::Begun { stream: StreamId(7), number: 1, kind: u64::MAX, flags, chunks: chunks.clone() },
            Event::Held { hold: 9, for_data: true, chunks },
            Event::Unheld { hold: 9 },
            Event::Completed { stream: StreamId(7), number: 1 },
            Event::Start { offset: 4 * GRANULE, to: Tier::Vram, copy: true, exclusive: false },
            Event::Finish { offset: 4 * GRANULE, moved: true },
            Event::Measured { kind: 1, ram_bytes: 2, micros: 3 },
            Event::Link { bytes_per_milli: 54_000_000 },
            Event::SearchAll { over: true },
            Event::Escaped { offset: 4 * GRANULE },
            Event::Freed { offset: 1 << 39 },
            Event::Removed { offset: 4 * GRANULE },
            Event::Compared { offset: 8 * GRANULE, same: true },
        ]
    }

    fn recorded() -> Vec<u8> {
        let mut recorder = Recorder::new();
        for (time, event) in examples().iter().enumerate() {
            recorder.set_time(time as u64 * 1000);
            recorder.record(event);
        }
        recorder.take()
    }

    #[test]
    fn what_was_recorded_is_read_again_with_its_times() {
        let read: Vec<(u64, Event)> = read(&recorded()).unwrap().collect();
        let expected: Vec<(u64, Event)> =
            examples().into_iter().enumerate().map(|(time, event)| (time as u64 * 1000, event)).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn a_trace_of_the_first_version_is_still_read() {
        let mut first = recorded();
        first[7] = b'1';
        assert_eq!(events(&first), events(&recorded()));
        assert_eq!(read(&first).unwrap().count(), examples().len());
    }

    #[test]
    fn a_trace_that_ends_early_is_read_as_far_as_it_goes() {
        let whole = recorded();
        for length in MAGIC.len()..whole.len() {
            let events = read(&whole[..length]).unwrap().count();
            assert!(events < examples().len());
        }
        assert!(read(&whole[..4]).is_none());
    }

    #[test]
    fn what_no_machine_does_ends_a_trace() {
        let chunk = |offset, bytes| Event::Chunk { offset, bytes, tier: Tier::Ram, fixed: false };
        let extent = |offset, bytes| Event::Extent { offset, bytes };
        let past = MOST_OFFSET - GRANULE;
        for event in [
            chunk(0, 0),
            chunk(0, MOST_CHUNK_BYTES + GRANULE),
            chunk(past, 2 * GRANULE),
            extent(past, 2 * GRANULE),
            extent(7, u64::MAX),
        ] {
            let mut recorder = Recorder::new();
            recorder.record(&event);
            recorder.record(&Event::SearchAll { over: true });
            assert_eq!(read(&recorder.take()).unwrap().count(), 0, "{event:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_trace_is_said() {
        let whole = recorded();
        assert_eq!(events(&whole).unwrap().len(), examples().len());
        assert_eq!(events(b"PNG"), Err(Unreadable::NotATrace));
        assert_eq!(events(b"emuvtrc3..."), Err(Unreadable::Version('3')));
        assert_eq!(events(&whole[..whole.len() - 1]), Err(Unreadable::CutOff(whole.len() - 5)));
        let damaged = [&whole[..], &[99, 0, 0]].concat();
        assert_eq!(events(&damaged), Err(Unreadable::Damaged(whole.len())));
        let mut recorder = Recorder::new();
        recorder.record(&Event::Extent { offset: GRANULE, bytes: u64::MAX });
        assert_eq!(events(&recorder.take()), Err(Unreadable::Damaged(MAGIC.len())));
    }

    #[test]
    fn bytes_that_are_no_trace_cost_no_memory() {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
        assert_eq!(read(&bytes).unwrap().count(), 0);
    }
}
