//! Live counters of a process, which outlive it.
//!
//! A process writes its counters into a file in the run's directory that is mapped into its memory: an
//! update is one store, and after SIGKILL the file still holds the last values. Whoever wants them reads
//! the file ([`read_ledgers`]); there is no lock and no message.

mod figure;
mod layout;
pub(crate) mod map;
mod read;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

pub use figure::FigureCounters;
pub(crate) use figure::{code as maker_code, maker};
pub use layout::{DeviceCounters, MAX_DEVICES, ProcessCounters, TierCounters};
pub use read::parse;
pub use read::{DeviceRecord, LedgerError, Ledgers, ProcessRecord, TierRecord, read_ledgers, uuid_text};
pub(crate) use read::{ledger_paths, read_these};

use crate::process::{ProcessId, command_line};
use layout::{COMMAND_BYTES, Layout, MAGIC, VERSION};
pub(crate) use layout::{cut, store_bytes};
pub(crate) use read::Words;

/// Programs that one process may be, by exec, and still find a free file name.
const MAX_GENERATIONS: u64 = 1000;

/// The counters of this process.
///
/// The memory behind it is never given back, so open one per process. After a fork the child shares the
/// file with its parent: it must call [`Ledger::detach`] before it counts anything.
#[derive(Debug)]
pub struct Ledger {
    layout: &'static Layout,
    shared: AtomicBool,
    name: Option<String>,
}

impl Ledger {
    /// Makes this process's ledger in the run's directory. Never fails: without a directory, or where the
    /// file cannot be made, the counters are in memory that only this process sees.
    pub fn open(run_dir: Option<&Path>) -> Self {
        match run_dir.map(create) {
            Some(Ok((layout, name))) => Self { layout, shared: AtomicBool::new(true), name: Some(name) },
            Some(Err(_)) | None => {
                Self { layout: Box::leak(Box::default()), shared: AtomicBool::new(false), name: None }
            }
        }
    }

    /// Whether others can read it.
    pub fn is_shared(&self) -> bool {
        self.shared.load(Relaxed)
    }

    /// The file's name, without `.ledger`, if others can read it.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref().filter(|_| self.is_shared())
    }

    /// The counters of the device with this CUDA ordinal; `None` beyond [`MAX_DEVICES`].
    pub fn device(&self, slot: usize) -> Option<&DeviceCounters> {
        self.layout.devices.get(slot)
    }

    /// The counters of the process as a whole.
    pub fn process(&self) -> &ProcessCounters {
        &self.layout.process
    }

    /// For the child after a fork: from here on the counters are the child's own, start at zero and are not
    /// shared. References taken before stay valid and show the new counters. Allocates nothing.
    ///
    /// # Errors
    /// The system's own, when it has no memory for it; the child must then not count at all.
    pub fn detach(&self) -> io::Result<()> {
        if self.is_shared() {
            map::replace_by_private(self.layout)?;
            self.shared.store(false, Relaxed);
        }
        Ok(())
    }
}

/// Makes the file, filled with a header and zeros, and maps it.
fn create(run_dir: &Path) -> io::Result<(&'static Layout, String)> {
    let process = ProcessId::current();
    for generation in 0..MAX_GENERATIONS {
        let name = ledger_name(process.pid, generation);
        match new_file(&run_dir.join(format!("{name}.ledger"))) {
            Ok(file) => return Ok((map::map_new(file, &image(process, generation))?, name)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// `<pid>`, or `<pid>-<n>` where this process was another program before.
pub(crate) fn ledger_name(pid: u32, generation: u64) -> String {
    match generation {
        0 => pid.to_string(),
        n => format!("{pid}-{n}"),
    }
}

/// A file that was not there, for its owner only.
pub(crate) fn new_file(path: &Path) -> io::Result<(File, PathBuf)> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    Ok((file, path.to_owned()))
}

/// The bytes of a new ledger of this process.
pub fn new_ledger() -> Vec<u8> {
    image(ProcessId::current(), 0)
}

/// The bytes of a new ledger.
fn image(process: ProcessId, generation: u64) -> Vec<u8> {
    let header = layout::Header::default();
    let command = command_line();
    let command = cut(&command, COMMAND_BYTES);
    header.magic.store(MAGIC, Relaxed);
    header.version.store(VERSION, Relaxed);
    header.length_bytes.store(size_of::<Layout>() as u64, Relaxed);
    header.pid.store(u64::from(process.pid), Relaxed);
    header.start_ticks.store(process.start_ticks, Relaxed);
    header.generation.store(generation, Relaxed);
    header.command_length_bytes.store(command.len() as u64, Relaxed);
    store_bytes(&header.command, command.as_bytes());
    let mut bytes = header.to_bytes();
    bytes.resize(size_of::<Layout>(), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only_record(folder: &Path) -> ProcessRecord {
        let mut found = read_ledgers(folder);
        assert!(found.problems.is_empty(), "{:?}", found.problems);
        assert_eq!(found.processes.len(), 1);
        found.processes.remove(0)
    }

    #[test]
    fn what_a_process_counts_is_read_by_others() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(Some(folder.path()));
        assert!(ledger.is_shared());
        let device = ledger.device(2).unwrap();
        device.set_identity(*b"0123456789abcdef", "A card");
        device.vram.budget_bytes.store(100, Relaxed);
        device.vram.set_used(70);
        device.vram.set_used(30);
        device.ram.set_used(8);
        device.launches.fetch_add(5, Relaxed);
        ledger.process().ram.set_used(9);
        ledger.process().internal_errors.fetch_add(1, Relaxed);

        let record = only_record(folder.path());
        assert_eq!((record.pid, record.generation, record.alive), (std::process::id(), 0, true));
        assert!(record.command.contains("emuv_state"), "{}", record.command);
        assert_eq!((record.ram.peak_bytes, record.internal_errors), (9, 1));
        assert_eq!(record.devices.len(), 1, "only the device with an identity");
        let device = &record.devices[0];
        assert_eq!((device.ordinal, device.uuid, device.name.as_str()), (2, *b"0123456789abcdef", "A card"));
        assert_eq!(device.vram, TierRecord { budget_bytes: 100, used_bytes: 30, peak_bytes: 70 });
        assert_eq!((device.ram.used_bytes, device.launches, device.frees), (8, 5, 0));
    }

    #[test]
    fn without_a_directory_it_still_counts() {
        let missing = Path::new("/nonexistent/run");
        for ledger in [Ledger::open(None), Ledger::open(Some(missing))] {
            assert!(!ledger.is_shared());
            let device = ledger.device(0).unwrap();
            device.allocations.fetch_add(1, Relaxed);
            assert_eq!(device.allocations.load(Relaxed), 1);
            ledger.detach().unwrap();
        }
    }

    #[test]
    fn there_are_sixteen_devices() {
        let ledger = Ledger::open(None);
        assert!(ledger.device(MAX_DEVICES - 1).is_some() && ledger.device(MAX_DEVICES).is_none());
    }

    #[test]
    fn a_program_that_becomes_another_by_exec_keeps_both_ledgers_and_only_the_last_is_alive() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (Ledger::open(Some(folder.path())), Ledger::open(Some(folder.path())));
        assert!(first.is_shared() && second.is_shared());
        let found = read_ledgers(folder.path());
        let seen: Vec<_> = found.processes.iter().map(|record| (record.generation, record.alive)).collect();
        assert_eq!(seen, [(0, false), (1, true)]);
    }

    #[test]
    fn after_detach_the_file_keeps_what_the_parent_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(Some(folder.path()));
        let device = ledger.device(0).unwrap();
        device.set_identity([1; 16], "card");
        device.launches.store(7, Relaxed);
        ledger.detach().unwrap();
        assert!(!ledger.is_shared());
        assert_eq!(device.launches.load(Relaxed), 0, "the child starts at zero");
        device.launches.store(100, Relaxed);
        assert_eq!(only_record(folder.path()).devices[0].launches, 7);
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(Some(folder.path()));
        ledger.device(0).unwrap().set_identity([1; 16], &format!("{}é", "x".repeat(63)));
        assert_eq!(only_record(folder.path()).devices[0].name, "x".repeat(63));
    }
}
