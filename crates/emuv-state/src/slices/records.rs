//! Who is in a slice, and how much each says that it uses: for people and for NVML's lists. No account depends on it.
//!
//! A record belongs to the process that has its bytes locked; without a lock it is that of a process that is gone, and
//! free. What is in it is taken as untrusted bytes.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::atomic::{AtomicU64, Ordering},
};

use super::{Demand, SliceProcess, locks};
use crate::{
    ledger::cut,
    process::{ProcessId, command_line},
};

/// The size of a record.
const RECORD_BYTES: u64 = 128;
/// Its words before the command line: magic, pid, pid namespace, start, VRAM, RAM.
const WORDS: usize = 6;
const COMMAND_BYTES: usize = 128 - WORDS * 8;

/// The first word of a record.
const MAGIC: u64 = u64::from_ne_bytes(*b"emuVproc");

/// Records that are read at once.
const RECORDS_AT_ONCE: usize = 32;

/// Processes that a slice has room for.
const MOST: u64 = 1 << 16;

/// The record of this process, in a file of them.
#[derive(Debug)]
pub(super) struct OwnRecord {
    file: File,
    number: u64,
    vram_bytes: AtomicU64,
    ram_bytes: AtomicU64,
}

impl OwnRecord {
    /// Takes the first free record.
    ///
    /// # Errors
    /// The system's own; there is none free.
    pub fn take(file: File) -> io::Result<Self> {
        for number in 0..MOST {
            if locks::try_lock(&file, &bytes_of(number))? {
                let me = ProcessId::current();
                let words = [MAGIC, u64::from(me.pid), own_namespace(), me.start_ticks, 0, 0];
                let mut record: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                record.extend_from_slice(cut(&command_line(), COMMAND_BYTES).as_bytes());
                record.resize(128, 0);
                file.write_all_at(&record, number * RECORD_BYTES)?;
                return Ok(Self { file, number, vram_bytes: AtomicU64::new(0), ram_bytes: AtomicU64::new(0) });
            }
        }
        Err(io::Error::other("there are too many processes in the slice"))
    }

    /// Its number, from 0: no other process that lives has it.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Says what this process uses now. Where that cannot be written, others see what was said before.
    pub fn say(&self, vram_bytes: u64, ram_bytes: u64) {
        let vram_before = self.vram_bytes.swap(vram_bytes, Ordering::Relaxed);
        let ram_before = self.ram_bytes.swap(ram_bytes, Ordering::Relaxed);
        if (vram_before, ram_before) != (vram_bytes, ram_bytes) {
            let mut words = [0; 16];
            words[..8].copy_from_slice(&vram_bytes.to_ne_bytes());
            words[8..].copy_from_slice(&ram_bytes.to_ne_bytes());
            let _ = self.file.write_all_at(&words, self.number * RECORD_BYTES + 32);
        }
    }

    /// All that live, this process too.
    pub fn read_all(&self) -> io::Result<Vec<SliceProcess>> {
        read(&self.file, Some(self.number))
    }

    /// In a forked child: the record is the parent's.
    pub fn forked(&self, idle: &OwnedFd) {
        locks::replace(&self.file, idle);
    }
}

fn bytes_of(number: u64) -> std::ops::Range<u64> {
    number * RECORD_BYTES..(number + 1) * RECORD_BYTES
}

/// The records of the processes that live; the one numbered `own` is known to.
///
/// # Errors
/// The system's own.
pub(super) fn read(file: &File, own: Option<u64>) -> io::Result<Vec<SliceProcess>> {
    let mut found = Vec::new();
    let namespace = own_namespace();
    let mut bytes = [0; RECORDS_AT_ONCE * 128];
    let mut first = 0;
    while first < MOST {
        let length = read_fully(file, &mut bytes, first * RECORD_BYTES)?;
        let (records, _) = bytes.get(..length).unwrap_or_default().as_chunks::<128>();
        for (number, record) in (first..).zip(records) {
            if let Some(process) = parse(record, namespace)
                && (own == Some(number) || locks::conflict(file, &bytes_of(number))?.is_some())
            {
                found.push(process);
            }
        }
        if records.len() < RECORDS_AT_ONCE {
            break;
        }
        first += RECORDS_AT_ONCE as u64;
    }
    Ok(found)
}

/// The processes of a slice, by what each GPU's list says. A process is in all of them, unless it is just coming or going.
#[cfg(feature = "cli")]
pub(super) fn merge(lists: Vec<Vec<SliceProcess>>) -> Vec<SliceProcess> {
    let mut all: Vec<SliceProcess> = Vec::new();
    for (gpu, list) in lists.into_iter().enumerate() {
        for mut found in list {
            // In other namespaces two may have the same number: each is met once in each list.
            let same = |known: &&mut SliceProcess| {
                known.on_gpus.len() <= gpu
                    && (known.pid, known.same_namespace) == (found.pid, found.same_namespace)
                    && known.command == found.command
            };
            if let Some(known) = all.iter_mut().find(same) {
                known.vram_bytes = known.vram_bytes.saturating_add(found.vram_bytes);
                known.ram_bytes = known.ram_bytes.saturating_add(found.ram_bytes);
                known.on_gpus.resize(gpu, Demand::default());
                known.on_gpus.append(&mut found.on_gpus);
            } else {
                let own = std::mem::take(&mut found.on_gpus);
                found.on_gpus.resize(gpu, Demand::default());
                found.on_gpus.extend(own);
                all.push(found);
            }
        }
    }
    all
}

/// As much as there is, and how much that was.
fn read_fully(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What a record says; `namespace` is that of this process's number.
fn parse(record: &[u8; 128], namespace: u64) -> Option<SliceProcess> {
    let word = |index: usize| record.get(index * 8..index * 8 + 8)?.try_into().ok().map(u64::from_ne_bytes);
    if word(0)? != MAGIC {
        return None;
    }
    let command = String::from_utf8_lossy(record.get(WORDS * 8..)?);
    let (vram_bytes, ram_bytes) = (word(4)?, word(5)?);
    Some(SliceProcess {
        pid: u32::try_from(word(1)?).ok()?,
        same_namespace: word(2)? == namespace,
        vram_bytes,
        ram_bytes,
        on_gpus: vec![Demand { vram: vram_bytes, ram: ram_bytes }],
        command: command.trim_end_matches('\0').to_owned(),
    })
}

/// The number of the namespace that this process's number means something in; 0 where it is unknown.
fn own_namespace() -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |data| data.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_living_are_listed_and_their_places_are_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("processes");
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let (one, two) = (OwnRecord::take(open()).unwrap(), OwnRecord::take(open()).unwrap());
        assert_eq!((one.number(), two.number()), (0, 1));
        two.say(30, 4);
        let all = one.read_all().unwrap();
        assert_eq!(all.iter().map(|p| (p.vram_bytes, p.ram_bytes)).collect::<Vec<_>>(), [(0, 0), (30, 4)]);
        assert!(all.iter().all(|process| process.pid == std::process::id() && process.same_namespace));
        drop(one);
        assert_eq!(two.read_all().unwrap().len(), 1);
        assert_eq!(OwnRecord::take(open()).unwrap().number(), 0);
    }

    #[test]
    fn rubbish_in_the_file_is_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("processes");
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let one = OwnRecord::take(open()).unwrap();
        std::fs::write(&path, [0xff; 1000]).unwrap();
        assert!(one.read_all().unwrap().is_empty());
        std::fs::write(&path, b"").unwrap();
        assert!(one.read_all().unwrap().is_empty());
    }
}
