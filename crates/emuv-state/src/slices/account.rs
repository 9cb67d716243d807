//! What a process needs of the slice that it is in, whatever keeps the accounts.

use std::{fmt, io, time::Duration};

use super::{Entry, FileAccount, ModuleAccount, SliceError};

/// How much to charge, or to give back, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Demand {
    /// Of VRAM.
    pub vram: u64,
    /// Of RAM.
    pub ram: u64,
}

/// How much is used, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// VRAM, by all processes of the slice, on the account's GPU.
    pub vram: u64,
    /// RAM, by all processes of the slice, for all of its GPUs.
    pub ram: u64,
    /// VRAM, by this process.
    pub own_vram: u64,
    /// RAM, by this process.
    pub own_ram: u64,
}

/// Whether a slice gives anything out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SliceState {
    /// It does.
    Enabled,
    /// Nothing new starts in it and nobody gets more; what is in use stays.
    Disabled,
    /// It has been removed. As if it were disabled, for good.
    Removed,
}

/// What a slice may hold, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceLimits {
    /// VRAM.
    pub vram: u64,
    /// RAM.
    pub ram: u64,
    /// Whether it gives anything out.
    pub state: SliceState,
}

/// Why a charge was not made.
#[derive(Debug)]
pub enum Refused {
    /// It does not fit, or the slice gives nothing out.
    NoRoom,
    /// The account cannot be kept; the system's own words.
    Broken(io::Error),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom => f.write_str("the slice has no room"),
            Self::Broken(error) => write!(f, "the slice's account cannot be kept: {error}"),
        }
    }
}

/// A process in a slice, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceProcess {
    /// Its number, in its own namespace.
    pub pid: u32,
    /// Whether that means something to the reader.
    pub same_namespace: bool,
    /// VRAM that it says it uses, on all GPUs of the slice.
    pub vram_bytes: u64,
    /// RAM that it says it uses.
    pub ram_bytes: u64,
    /// The same for each GPU of the slice that was looked at, in the slice's order.
    pub on_gpus: Vec<Demand>,
    /// The beginning of its command line.
    pub command: String,
}

/// A process's account with the slice that it is in, on one GPU. Everything charged is given back when the process ends, however it
/// ends. All methods may be called from any thread; none waits for another process, but for [`Self::wait_for_change`].
///
/// Which of the two keeps it, the files ([`FileAccount`]) or the kernel module ([`ModuleAccount`]), the slice's definition says:
/// a slice with two accounts would have its share twice.
pub trait Account: Send + Sync + fmt::Debug {
    /// The slice's limits, as they are now.
    fn limits(&self) -> SliceLimits;

    /// Charges all of it or nothing. It holds before the call returns: whoever charges before taking memory makes no
    /// process or slice exceed its limit, at any time.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    fn charge(&self, demand: Demand) -> Result<(), Refused>;

    /// Gives a part of what this process has charged back, for memory that is already gone.
    fn release(&self, demand: Demand);

    /// What is charged. Others charge and release meanwhile, so it is only a hint at what the next charge will meet.
    fn usage(&self) -> Usage;

    /// Says for others to see what this process uses.
    fn say(&self, used: Demand);

    /// The processes in the slice.
    fn processes(&self) -> Vec<SliceProcess>;

    /// Waits until the limits differ from `seen`, at most for `timeout`. Gives the limits.
    fn wait_for_change(&self, seen: SliceLimits, timeout: Duration) -> SliceLimits;

    /// In a forked child: from here on nothing of the parent's is held. The account must not be used any more.
    fn forked(&self);
}

/// Opens the account of this process with a slice, on its first GPU.
///
/// # Errors
/// Why this process may not use the slice, in one line.
pub fn open(entry: &Entry) -> Result<Box<dyn Account>, SliceError> {
    open_on(entry, 0)
}

/// Opens the account of this process with a slice, on one of its GPUs, counted from 0. A process has one of each.
///
/// # Errors
/// As [`open`].
pub fn open_on(entry: &Entry, gpu: usize) -> Result<Box<dyn Account>, SliceError> {
    Ok(if entry.slice.by_module {
        Box::new(ModuleAccount::open(entry)?)
    } else {
        Box::new(FileAccount::open_on(entry, gpu)?)
    })
}
