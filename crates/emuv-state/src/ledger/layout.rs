//! The layout of a ledger: what is where in the file. A change of it is a new [`VERSION`].
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 320 | [`Header`]: magic, version, length, process, command line |
//! | 320 | 192 | [`ProcessCounters`] |
//! | 512 | 16 x 768 | [`DeviceCounters`], by CUDA ordinal |
//!
//! Every word is a `u64` in the machine's byte order. Sizes are bytes. Counters are independent of each
//! other: a reader may see one that is newer than its neighbour.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::Release};

use super::figure::FigureCounters;

/// The first eight bytes of a ledger.
pub(crate) const MAGIC: u64 = u64::from_ne_bytes(*b"emuVledg");

/// The version of the layout.
pub(crate) const VERSION: u64 = 2;

/// Devices that a ledger has room for.
pub const MAX_DEVICES: usize = 16;

/// Bytes kept of the command line.
pub(crate) const COMMAND_BYTES: usize = 240;

/// Bytes kept of a device's name.
pub(crate) const NAME_BYTES: usize = 64;

/// A whole ledger.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Layout {
    pub header: Header,
    pub process: ProcessCounters,
    pub devices: [DeviceCounters; MAX_DEVICES],
}

/// Who writes this ledger. Written once, before anything else.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Header {
    pub magic: AtomicU64,
    pub version: AtomicU64,
    /// Of the whole ledger.
    pub length_bytes: AtomicU64,
    pub pid: AtomicU64,
    /// From `/proc/<pid>/stat`: with the pid, unique while the machine is up.
    pub start_ticks: AtomicU64,
    /// Counts the programs that this process was, by exec, before this one.
    pub generation: AtomicU64,
    /// Of `command`.
    pub command_length_bytes: AtomicU64,
    reserved: [AtomicU64; 3],
    pub command: [AtomicU64; COMMAND_BYTES / 8],
}

impl Header {
    /// As it lies in the file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let named = [
            &self.magic,
            &self.version,
            &self.length_bytes,
            &self.pid,
            &self.start_ticks,
            &self.generation,
            &self.command_length_bytes,
        ];
        let words = named.into_iter().chain(&self.reserved).chain(&self.command);
        words.flat_map(|word| word.load(Relaxed).to_ne_bytes()).collect()
    }
}

/// How much of a tier is in use.
#[repr(C)]
#[derive(Debug, Default)]
pub struct TierCounters {
    /// Most that may be used.
    pub budget_bytes: AtomicU64,
    /// In use now; set it with [`TierCounters::set_used`].
    pub used_bytes: AtomicU64,
    /// Most that was ever in use.
    pub peak_bytes: AtomicU64,
}

impl TierCounters {
    /// Notes what is in use now, and raises the peak.
    pub fn set_used(&self, bytes: u64) {
        self.used_bytes.store(bytes, Relaxed);
        self.peak_bytes.fetch_max(bytes, Relaxed);
    }
}

/// What concerns the process as a whole.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ProcessCounters {
    /// Pinned RAM over all devices: the RAM budget is the process's, not a device's.
    pub ram: TierCounters,
    /// Errors of emuV's own, after which it let calls pass unchanged.
    pub internal_errors: AtomicU64,
    reserved: [AtomicU64; 20],
}

/// What concerns one device, as one process uses it. All counters are meant to be used with relaxed order.
#[repr(C)]
#[derive(Debug, Default)]
pub struct DeviceCounters {
    /// Not 0 once the identity below is written.
    present: AtomicU64,
    uuid: [AtomicU64; 2],
    name: [AtomicU64; NAME_BYTES / 8],
    /// Chunks in VRAM.
    pub vram: TierCounters,
    /// Chunks in pinned RAM.
    pub ram: TierCounters,
    /// The card's whole VRAM; 0 while unknown.
    pub vram_physical_bytes: AtomicU64,
    /// Memory that the program took by ways that emuV only accounts: pools, arrays, its own mappings.
    pub unspilled_bytes: AtomicU64,
    /// Allocations made, ever.
    pub allocations: AtomicU64,
    /// Allocations given back, ever.
    pub frees: AtomicU64,
    /// Allocations answered with "out of memory".
    pub refused: AtomicU64,
    /// Bytes placed in RAM, ever.
    pub spilled_bytes: AtomicU64,
    /// Kernels launched.
    pub launches: AtomicU64,
    /// Bytes moved from RAM to VRAM, ever.
    pub promoted_bytes: AtomicU64,
    /// Bytes moved from VRAM to RAM, ever.
    pub evicted_bytes: AtomicU64,
    /// Calls that waited for data to move.
    pub held: AtomicU64,
    /// How long they waited, all together.
    pub held_micros: AtomicU64,
    /// Searches for pointers: behind a work, or of all memory.
    pub searches: AtomicU64,
    /// Chunks exchanged whose contents were nobody's: only the mapping changed.
    pub remapped_bytes: AtomicU64,
    /// What pointers in GPU memory lead to, now: it moves only while the GPU has nothing to do.
    pub escaped_bytes: AtomicU64,
    reserved: [AtomicU64; 1],
    /// How much of what GPU and link allow the program has.
    pub figure: FigureCounters,
}

impl DeviceCounters {
    /// Says which GPU this slot is. Readers leave out a slot without it. A name longer than 64 bytes is cut.
    pub fn set_identity(&self, uuid: [u8; 16], name: &str) {
        store_bytes(&self.uuid, &uuid);
        store_bytes(&self.name, cut(name, NAME_BYTES).as_bytes());
        self.present.store(1, Release);
    }
}

/// The longest beginning of `text` that fits and does not end inside a character.
pub(crate) fn cut(text: &str, limit_bytes: usize) -> &str {
    let mut end = text.len().min(limit_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Writes bytes into words, zeros behind them; what does not fit is left out.
pub(crate) fn store_bytes(words: &[AtomicU64], bytes: &[u8]) {
    let mut pieces = bytes.chunks(8);
    for word in words {
        let mut value = [0; 8];
        for (to, from) in value.iter_mut().zip(pieces.next().unwrap_or_default()) {
            *to = *from;
        }
        word.store(u64::from_ne_bytes(value), Relaxed);
    }
}

/// Where each field of a device lies, for the reader.
pub(crate) mod device_offset {
    use std::mem::offset_of;

    use super::DeviceCounters;

    pub(crate) const PRESENT: usize = offset_of!(DeviceCounters, present);
    pub(crate) const UUID: usize = offset_of!(DeviceCounters, uuid);
    pub(crate) const NAME: usize = offset_of!(DeviceCounters, name);
    pub(crate) const VRAM: usize = offset_of!(DeviceCounters, vram);
    pub(crate) const RAM: usize = offset_of!(DeviceCounters, ram);
}

const _: () = assert!(size_of::<Header>() == 320);
const _: () = assert!(size_of::<ProcessCounters>() == 192);
const _: () = assert!(size_of::<DeviceCounters>() == 768);
const _: () = assert!(size_of::<Layout>() == 512 + MAX_DEVICES * 768);
const _: () = assert!(std::mem::offset_of!(Layout, process) == 320);
const _: () = assert!(std::mem::offset_of!(Layout, devices) == 512);
