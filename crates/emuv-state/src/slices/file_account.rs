//! The account that the registry's files keep. See the module's head for what holds and why.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{
    Account, Demand, Entry, Refused, Slice, SliceError, SliceLimits, SliceProcess, SliceState, Usage,
    lock_ledger::LockLedger,
    records::OwnRecord,
    registry::{DEFINITION, PROCESSES, RAM, USE, VRAM, of_gpu},
};
#[cfg(feature = "cli")]
use crate::plain_file::open_plain;
use crate::plain_file::read_plain;

/// Between two looks at a definition by whoever waits for a change of it.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// A definition is short; more is not read.
const MOST_BYTES: usize = 64 << 10;

/// See the module's head.
#[derive(Debug)]
pub struct FileAccount {
    definition: Definition,
    vram: LockLedger,
    ram: LockLedger,
    record: OwnRecord,
    /// What takes the place of the files in a forked child, where little can be done.
    idle: OwnedFd,
}

impl FileAccount {
    /// Opens the account of this process, on the slice's first GPU.
    ///
    /// # Errors
    /// The slice is disabled, outside its hours, or this user may not use it.
    pub fn open(entry: &Entry) -> Result<Self, SliceError> {
        Self::open_on(entry, 0)
    }

    /// Opens the account of this process, on one of the slice's GPUs, counted from 0.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_on(entry: &Entry, gpu: usize) -> Result<Self, SliceError> {
        if !entry.slice.enabled {
            return Err(SliceError::Disabled(entry.slice.name.clone()));
        }
        let vram = open_own(entry, &of_gpu(VRAM, gpu))?;
        let (ram, record) = (open_own(entry, RAM)?, take_record(entry, gpu)?);
        // Numbers in a row begin far apart: their bits, reversed.
        let count = entry.slice.gpu_count() as u64;
        let base = u16::try_from(record.number() * count + gpu as u64).unwrap_or(0).reverse_bits();
        let idle = idle()?;
        Ok(Self {
            definition: Definition::new(&entry.dir, &entry.slice),
            vram: LockLedger::new(vram, base),
            ram: LockLedger::new(ram, base),
            record,
            idle,
        })
    }
}

/// Opens a file that the slice's user may write to.
fn open_own(entry: &Entry, name: &str) -> Result<File, SliceError> {
    let path = entry.dir.join(USE).join(name);
    let opened = File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&path);
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => SliceError::NotYours(entry.slice.name.clone()),
        _ => SliceError::System(path, error),
    })
}

/// Enters this process into the list of those in the slice, on one of its GPUs.
pub(super) fn take_record(entry: &Entry, gpu: usize) -> Result<OwnRecord, SliceError> {
    let name = of_gpu(PROCESSES, gpu);
    let failed = |error| SliceError::System(entry.dir.join(USE).join(&name), error);
    OwnRecord::take(open_own(entry, &name)?).map_err(failed)
}

/// What takes the place of files that a forked child must not keep.
pub(super) fn idle() -> Result<OwnedFd, SliceError> {
    File::open("/dev/null").map(Into::into).map_err(|error| SliceError::System("/dev/null".into(), error))
}

impl Account for FileAccount {
    fn limits(&self) -> SliceLimits {
        self.definition.limits()
    }

    fn charge(&self, demand: Demand) -> Result<(), Refused> {
        loop {
            let limits = self.limits();
            if limits.state != SliceState::Enabled {
                return Err(Refused::NoRoom);
            }
            if !self.vram.charge(demand.vram, limits.vram).map_err(Refused::Broken)? {
                return Err(Refused::NoRoom);
            }
            let ram = self.ram.charge(demand.ram, limits.ram);
            if !matches!(ram, Ok(true)) {
                self.vram.release(demand.vram, limits.vram);
                return Err(ram.map_or_else(Refused::Broken, |_| Refused::NoRoom));
            }
            // Without this a limit that was lowered in between would not count for what was charged by the old one.
            let now = self.limits();
            if now == limits {
                return Ok(());
            }
            self.vram.release(demand.vram, now.vram);
            self.ram.release(demand.ram, now.ram);
        }
    }

    fn release(&self, demand: Demand) {
        let limits = self.limits();
        if demand.vram > 0 {
            self.vram.release(demand.vram, limits.vram);
        }
        if demand.ram > 0 {
            self.ram.release(demand.ram, limits.ram);
        }
    }

    fn usage(&self) -> Usage {
        let (own_vram, own_ram) = (self.vram.own_bytes(), self.ram.own_bytes());
        Usage {
            // What cannot be read is taken as full.
            vram: self.vram.used_bytes().unwrap_or(u64::MAX),
            ram: self.ram.used_bytes().unwrap_or(u64::MAX),
            own_vram,
            own_ram,
        }
    }

    fn say(&self, used: Demand) {
        self.record.say(used.vram, used.ram);
    }

    fn processes(&self) -> Vec<SliceProcess> {
        self.record.read_all().unwrap_or_default()
    }

    fn wait_for_change(&self, seen: SliceLimits, timeout: Duration) -> SliceLimits {
        let start = Instant::now();
        loop {
            let limits = self.limits();
            let left = timeout.saturating_sub(start.elapsed());
            if limits != seen || left.is_zero() {
                return limits;
            }
            thread::sleep(LOOK.min(left));
        }
    }

    fn forked(&self) {
        self.vram.forked(&self.idle);
        self.ram.forked(&self.idle);
        self.record.forked(&self.idle);
    }
}

#[cfg(feature = "cli")]
/// What is charged in a slice, and who is in it: for whoever looks from outside. The VRAM of all its GPUs together, and at
/// last of each.
///
/// # Errors
/// The system's own; most often that this user may not look.
pub(super) fn look(entry: &Entry) -> io::Result<(Usage, Vec<SliceProcess>, Vec<u64>)> {
    let open = |name: &str| open_plain(&entry.dir.join(USE).join(name)).map(|(file, _)| file);
    let used = |name: &str| LockLedger::new(open(name)?, 0).used_bytes();
    let (usage, on_gpus) = if entry.slice.by_module {
        let usage = super::KernelModule::of_system().usage(entry.slice.instance)?;
        (usage, vec![usage.vram])
    } else {
        let on_gpus =
            (0..entry.slice.gpu_count()).map(|gpu| used(&of_gpu(VRAM, gpu))).collect::<io::Result<Vec<_>>>()?;
        let vram = on_gpus.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        (Usage { vram, ram: used(RAM)?, own_vram: 0, own_ram: 0 }, on_gpus)
    };
    Ok((usage, processes(entry)?, on_gpus))
}

#[cfg(feature = "cli")]
/// Who is in a slice: for whoever looks from outside.
///
/// # Errors
/// As [`look`].
pub(super) fn processes(entry: &Entry) -> io::Result<Vec<SliceProcess>> {
    let count = entry.slice.gpu_count();
    let list = |gpu| super::records::read(&open_plain(&entry.dir.join(USE).join(of_gpu(PROCESSES, gpu)))?.0, None);
    let lists = (0..count).map(list).collect::<io::Result<Vec<_>>>()?;
    Ok(super::records::merge(lists))
}

/// The definition, read again when it has been replaced.
#[derive(Debug)]
pub(super) struct Definition {
    path: PathBuf,
    /// The slice that this process is in: another of the same name is not it.
    id: u64,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// Open as long as it is the definition: then it has a name.
    file: Option<File>,
    limits: SliceLimits,
}

impl Definition {
    pub(super) fn new(dir: &Path, slice: &Slice) -> Self {
        let known = Known { file: None, limits: limits_of(slice) };
        Self { path: dir.join(DEFINITION), id: slice.id, known: Mutex::new(known) }
    }

    pub(super) fn limits(&self) -> SliceLimits {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.limits.state == SliceState::Removed {
            return known.limits;
        }
        // One that was renamed over or removed has no name left.
        let current = known.file.as_ref().is_some_and(|file| file.metadata().is_ok_and(|data| data.nlink() > 0));
        if !current {
            self.read_again(&mut known);
        }
        known.limits
    }

    fn read_again(&self, known: &mut Known) {
        let read = || -> io::Result<(File, String)> {
            let file = File::open(&self.path)?;
            let mut text = String::new();
            (&file).take(MOST_BYTES as u64).read_to_string(&mut text)?;
            Ok((file, text))
        };
        match read() {
            Ok((file, text)) => match Slice::parse(&text) {
                Ok(slice) if slice.id == self.id => {
                    *known = Known { file: Some(file), limits: limits_of(&slice) };
                }
                Ok(_) => known.limits.state = SliceState::Removed,
                // Nobody writes such a thing; until it is mended nothing is given out.
                Err(_) => known.limits.state = SliceState::Disabled,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => known.limits.state = SliceState::Removed,
            Err(_) => known.limits.state = SliceState::Disabled,
        }
    }
}

fn limits_of(slice: &Slice) -> SliceLimits {
    let state = if slice.enabled { SliceState::Enabled } else { SliceState::Disabled };
    SliceLimits { vram: slice.vram.0, ram: slice.ram.0, state }
}

/// Reads a definition from its folder.
///
/// # Errors
/// The system's own; a text that is no definition is [`io::ErrorKind::InvalidData`] with words.
pub(super) fn read_definition(dir: &Path) -> io::Result<Slice> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let bytes = read_plain(&dir.join(DEFINITION), MOST_BYTES)?;
    let text = String::from_utf8(bytes).map_err(|_| invalid("not a text".to_owned()))?;
    Slice::parse(&text).map_err(invalid)
}
