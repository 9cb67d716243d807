//! Reading ledgers, of processes that live or have died. A file is taken as untrusted bytes: whatever is in
//! it, the answer is a record or an error that names the file.

use std::{
    fmt::Write as _,
    fs, io,
    mem::offset_of,
    path::{Path, PathBuf},
};

use emuv_policy::figure::Summary;

use super::figure::summary;
use super::layout::{
    COMMAND_BYTES, DeviceCounters, Header, Layout, MAGIC, MAX_DEVICES, NAME_BYTES, ProcessCounters, TierCounters,
    VERSION, device_offset,
};
use crate::{plain_file::read_plain, process::ProcessId};

/// What a process counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessRecord {
    /// Its number.
    pub pid: u32,
    /// Clock ticks from the machine's start to the process's.
    pub start_ticks: u64,
    /// How many programs it was, by exec, before this one.
    pub generation: u64,
    /// Its command line, at most 240 bytes of it.
    pub command: String,
    /// Whether it still runs.
    pub alive: bool,
    /// Pinned RAM over all devices.
    pub ram: TierRecord,
    /// Errors of emuV's own.
    pub internal_errors: u64,
    /// The devices that it used, by CUDA ordinal.
    pub devices: Vec<DeviceRecord>,
}

/// What a process counted on one device; the fields are those of [`DeviceCounters`].
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRecord {
    pub ordinal: usize,
    pub uuid: [u8; 16],
    pub name: String,
    pub vram: TierRecord,
    pub ram: TierRecord,
    /// 0: unknown.
    pub vram_physical_bytes: u64,
    pub unspilled_bytes: u64,
    pub allocations: u64,
    pub frees: u64,
    pub refused: u64,
    pub spilled_bytes: u64,
    pub launches: u64,
    pub promoted_bytes: u64,
    pub evicted_bytes: u64,
    pub held: u64,
    pub held_micros: u64,
    pub searches: u64,
    pub remapped_bytes: u64,
    pub escaped_bytes: u64,
    pub figure: Summary,
}

/// How much of a tier was in use; the fields are those of [`TierCounters`].
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TierRecord {
    pub budget_bytes: u64,
    pub used_bytes: u64,
    pub peak_bytes: u64,
}

/// Why a file is no ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's own words.
        source: io::Error,
    },
    /// Its first bytes are not a ledger's.
    #[error("{}: not a ledger", .0.display())]
    NotALedger(PathBuf),
    /// It is from another emuV.
    #[error("{}: ledger version {version}, this emuV reads version {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: u64,
    },
    /// It is shorter or longer than a ledger, or says so.
    #[error("{}: {length_bytes} bytes, a ledger has {}", path.display(), size_of::<Layout>())]
    Length {
        /// The file.
        path: PathBuf,
        /// What it has, or says it has.
        length_bytes: u64,
    },
}

/// All ledgers of a run.
#[derive(Debug, Default)]
pub struct Ledgers {
    /// One record per program, in the order in which they started.
    pub processes: Vec<ProcessRecord>,
    /// Files that could not be used.
    pub problems: Vec<LedgerError>,
}

/// Reads every ledger in a run's directory. A process that was killed before it wrote anything is left out.
pub fn read_ledgers(run_dir: &Path) -> Ledgers {
    match ledger_paths(run_dir) {
        Ok(paths) => read_these(&paths),
        Err(source) => {
            let problem = LedgerError::Read { path: run_dir.to_owned(), source };
            Ledgers { problems: vec![problem], ..Ledgers::default() }
        }
    }
}

/// The ledgers in a run's directory, in no order.
pub(crate) fn ledger_paths(run_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(run_dir)?.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.extension().is_some_and(|e| e == "ledger")).collect())
}

/// Reads the ledgers of a run.
pub(crate) fn read_these(paths: &[PathBuf]) -> Ledgers {
    let mut found = Ledgers::default();
    for path in paths {
        // One byte more than a ledger has, so that one that is too long is found out.
        match read_plain(path, size_of::<Layout>() + 1) {
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => match parse(path, &bytes) {
                Ok(record) => found.processes.push(record),
                Err(problem) => found.problems.push(problem),
            },
            Err(source) => found.problems.push(LedgerError::Read { path: path.clone(), source }),
        }
    }
    found.processes.sort_by_key(|record| (record.start_ticks, record.pid, record.generation));
    mark_the_living(&mut found.processes);
    found
}

/// Of the programs that one process was, only the last can be alive.
fn mark_the_living(records: &mut [ProcessRecord]) {
    let mut later: Option<ProcessId> = None;
    for record in records.iter_mut().rev() {
        let id = ProcessId { pid: record.pid, start_ticks: record.start_ticks };
        record.alive = later != Some(id) && id.is_alive();
        later = Some(id);
    }
}

/// Reads a ledger's bytes; `path` is for error messages.
///
/// # Errors
/// [`LedgerError`], each with the path.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<ProcessRecord, LedgerError> {
    let path = || path.to_owned();
    let words = Words(bytes);
    let header = |offset: usize| words.at(offset_of!(Layout, header) + offset);
    if header(offset_of!(Header, magic)) != MAGIC {
        return Err(LedgerError::NotALedger(path()));
    }
    let version = header(offset_of!(Header, version));
    if version != VERSION {
        return Err(LedgerError::Version { path: path(), version });
    }
    for length_bytes in [bytes.len() as u64, header(offset_of!(Header, length_bytes))] {
        if length_bytes != size_of::<Layout>() as u64 {
            return Err(LedgerError::Length { path: path(), length_bytes });
        }
    }
    let pid = u32::try_from(header(offset_of!(Header, pid))).map_err(|_| LedgerError::NotALedger(path()))?;
    let command_length = usize::try_from(header(offset_of!(Header, command_length_bytes))).unwrap_or(COMMAND_BYTES);
    let process = offset_of!(Layout, process);
    Ok(ProcessRecord {
        pid,
        start_ticks: header(offset_of!(Header, start_ticks)),
        generation: header(offset_of!(Header, generation)),
        command: words.text(offset_of!(Header, command), command_length.min(COMMAND_BYTES)),
        alive: false,
        ram: words.tier(process + offset_of!(ProcessCounters, ram)),
        internal_errors: words.at(process + offset_of!(ProcessCounters, internal_errors)),
        devices: (0..MAX_DEVICES).filter_map(|ordinal| device(words, ordinal)).collect(),
    })
}

fn device(words: Words<'_>, ordinal: usize) -> Option<DeviceRecord> {
    let base = offset_of!(Layout, devices) + ordinal * size_of::<DeviceCounters>();
    let at = |offset: usize| words.at(base + offset);
    if at(device_offset::PRESENT) == 0 {
        return None;
    }
    let mut uuid = [0; 16];
    for (to, from) in uuid.iter_mut().zip(words.bytes(base + device_offset::UUID, 16)) {
        *to = *from;
    }
    Some(DeviceRecord {
        ordinal,
        uuid,
        name: words.text(base + device_offset::NAME, NAME_BYTES),
        vram: words.tier(base + device_offset::VRAM),
        ram: words.tier(base + device_offset::RAM),
        vram_physical_bytes: at(offset_of!(DeviceCounters, vram_physical_bytes)),
        unspilled_bytes: at(offset_of!(DeviceCounters, unspilled_bytes)),
        allocations: at(offset_of!(DeviceCounters, allocations)),
        frees: at(offset_of!(DeviceCounters, frees)),
        refused: at(offset_of!(DeviceCounters, refused)),
        spilled_bytes: at(offset_of!(DeviceCounters, spilled_bytes)),
        launches: at(offset_of!(DeviceCounters, launches)),
        promoted_bytes: at(offset_of!(DeviceCounters, promoted_bytes)),
        evicted_bytes: at(offset_of!(DeviceCounters, evicted_bytes)),
        held: at(offset_of!(DeviceCounters, held)),
        held_micros: at(offset_of!(DeviceCounters, held_micros)),
        searches: at(offset_of!(DeviceCounters, searches)),
        remapped_bytes: at(offset_of!(DeviceCounters, remapped_bytes)),
        escaped_bytes: at(offset_of!(DeviceCounters, escaped_bytes)),
        figure: summary(&std::array::from_fn(|word| at(offset_of!(DeviceCounters, figure) + 8 * word))),
    })
}

/// A file's bytes, read word by word; what lies beyond the end reads as zero.
#[derive(Clone, Copy)]
pub(crate) struct Words<'b>(pub &'b [u8]);

impl<'b> Words<'b> {
    fn bytes(self, offset: usize, length: usize) -> &'b [u8] {
        self.0.get(offset..).and_then(|rest| rest.get(..length)).unwrap_or_default()
    }

    pub fn at(self, offset: usize) -> u64 {
        self.bytes(offset, 8).try_into().map_or(0, u64::from_ne_bytes)
    }

    pub fn text(self, offset: usize, length: usize) -> String {
        let bytes = self.bytes(offset, length);
        String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
    }

    fn tier(self, offset: usize) -> TierRecord {
        TierRecord {
            budget_bytes: self.at(offset + offset_of!(TierCounters, budget_bytes)),
            used_bytes: self.at(offset + offset_of!(TierCounters, used_bytes)),
            peak_bytes: self.at(offset + offset_of!(TierCounters, peak_bytes)),
        }
    }
}

/// A GPU's UUID as nvidia-smi prints it; `None` for all zeros.
pub fn uuid_text(uuid: &[u8; 16]) -> Option<String> {
    if uuid.iter().all(|byte| *byte == 0) {
        return None;
    }
    let mut text = String::from("GPU");
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 0 | 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ledger_bytes() -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let ledger = super::super::Ledger::open(Some(folder.path()));
        ledger.device(3).unwrap().set_identity([7; 16], "card");
        fs::read(folder.path().join(format!("{}.ledger", std::process::id()))).unwrap()
    }

    fn error_of(bytes: &[u8]) -> LedgerError {
        parse(Path::new("/run/7.ledger"), bytes).unwrap_err()
    }

    #[test]
    fn each_oddity_has_its_own_error_that_names_the_file() {
        let good = ledger_bytes();
        assert!(parse(Path::new("x"), &good).is_ok());
        let mut newer = good.clone();
        newer[8] = 3;
        let mut longer = good.clone();
        longer.extend([0; 8]);
        let cases: [(&[u8], &str); 5] = [
            (b"hello", "not a ledger"),
            (&[0; 12800], "not a ledger"),
            (&newer, "ledger version 3, this emuV reads version 2"),
            (&good[..4000], "4000 bytes, a ledger has 12800"),
            (&longer, "12808 bytes"),
        ];
        for (bytes, words) in cases {
            let error = error_of(bytes).to_string();
            assert!(error.starts_with("/run/7.ledger: ") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn one_bad_file_does_not_hide_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let _ledger = super::super::Ledger::open(Some(folder.path()));
        fs::write(folder.path().join("1.ledger"), b"rubbish").unwrap();
        fs::write(folder.path().join("2.ledger"), b"").unwrap();
        fs::write(folder.path().join("notes.txt"), b"rubbish").unwrap();
        let found = read_ledgers(folder.path());
        assert_eq!((found.processes.len(), found.problems.len()), (1, 1));
        assert_eq!(read_ledgers(Path::new("/nonexistent")).problems.len(), 1);
    }

    #[test]
    fn what_is_no_plain_file_is_neither_waited_for_nor_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, link) = (folder.path().join("1.ledger"), folder.path().join("2.ledger"));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        std::os::unix::fs::symlink("/dev/zero", link).unwrap();
        fs::create_dir(folder.path().join("3.ledger")).unwrap();
        let found = read_ledgers(folder.path());
        assert_eq!((found.processes.len(), found.problems.len()), (0, 3), "{:?}", found.problems);
    }

    #[test]
    fn a_uuid_reads_as_in_nvidia_smi() {
        let uuid = [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(uuid_text(&uuid).as_deref(), Some("GPU-12345678-9abc-def0-0102-030405060708"));
        assert_eq!(uuid_text(&[0; 16]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..14000)) {
            let _ = parse(Path::new("x"), &bytes);
        }

        #[test]
        fn no_damage_makes_the_reader_panic(at in 24_usize..12800, value in any::<u8>()) {
            let mut bytes = ledger_bytes();
            bytes[at] = value;
            let _ = parse(Path::new("x"), &bytes);
        }
    }
}
