//! Where the slices of a GPU publish how they stand, so that each can tell whose turn it is (`emuv_policy::turns`).
//!
//! Each slice has a file of its own, `use/turns`: its users write, everybody reads. In it are a head, which is the slice's
//! account of time and its turn, and a record for each process. A record counts while its process has it locked and was
//! seen a moment ago; so who is killed is gone at once, and who is stopped is soon passed over. The head is changed by one
//! process at a time, under a lock in the slice's private file of processes that nobody waits for: who does not get it looks
//! without changing anything.
//!
//! What others have published is untrusted and a moment old. At worst a turn is misjudged: it decides about time, never about
//! memory. What it can say of a slice is how much of the GPU it uses, and how much memory, to everybody on the machine.

use std::{
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use emuv_policy::turns::{self, Card, Gate, Tenant, TimeAccount, Turn};

use super::{
    Entry, Registry, Slice, SliceError, locks,
    registry::{PROCESSES, TURNS, USE},
};
use crate::env;

const MAGIC: u64 = u64::from_ne_bytes(*b"emuVturn");

/// The head and each record.
const BLOCK_BYTES: usize = 128;
const WORDS: usize = BLOCK_BYTES / 8;

/// Processes of a slice that are looked at.
const MOST_PROCESSES: u64 = 1024;

/// In the file of processes, beyond all records: who has this byte may change the head.
const HEAD_LOCK: std::ops::Range<u64> = 1 << 40..(1 << 40) + 1;

/// Between two looks at which slices there are.
const LIST_MICROS: u64 = 500_000;

/// The time over which a share is shown.
const WINDOW_MICROS: u64 = 10_000_000;

/// What the link is taken to bring until somebody has measured it: PCIe 3.
const LINK_BYTES_PER_MICRO: u64 = 12_000;

/// How this process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// It has work for the GPU, or had some a moment ago.
    pub wants: bool,
    /// Work that it has given is not done.
    pub busy: bool,
    /// What it has in VRAM.
    pub vram_bytes: u64,
    /// What it has in RAM.
    pub ram_bytes: u64,
    /// Works that had to wait so far.
    pub held: u64,
}

/// What a look has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stepped {
    /// What this process may do.
    pub gate: Gate,
    /// VRAM that its slice may have now; [`u64::MAX`]: as much as its share.
    pub allotted_bytes: u64,
}

/// The GPU's time as a slice has had it, for people.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TimeUse {
    /// In all, in microseconds.
    pub used_micros: u64,
    /// Lately, in percent of wall time; `None` before anything was used.
    pub share_percent: Option<f64>,
    /// Turns that it has had.
    pub turns: u64,
    /// Works of its processes that had to wait for one.
    pub held: u64,
    /// It has its turn now.
    pub in_turn: bool,
    /// It has work for the GPU now.
    pub wants: bool,
}

/// See the module's head.
#[derive(Debug)]
pub struct TurnBook {
    registry: Registry,
    dir: PathBuf,
    file: File,
    /// Of locks only.
    private: File,
    record: u64,
    clock: Clock,
    listed: Mutex<Listed>,
    idle: OwnedFd,
}

/// The slices of the GPU, as they were when they were last listed.
#[derive(Debug, Default)]
struct Listed {
    at_micros: Option<u64>,
    own: usize,
    slices: Vec<(Slice, File)>,
    /// VRAM of the GPU that is promised to slices that take no turns.
    set_aside: u64,
}

#[derive(Debug)]
enum Clock {
    System,
    /// Of a simulated GPU: a word in a file, so that a test says what time it is.
    File(File),
}

impl TurnBook {
    /// Opens the book of this process's slice. `get` looks a variable up.
    ///
    /// # Errors
    /// The system's own; a slice that was made by an older emuV has none.
    pub fn open(entry: &Entry, get: impl Fn(&str) -> Option<String>) -> Result<Self, SliceError> {
        let folder = entry.dir.join(USE);
        let open = |name: &str| {
            let opened = File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(folder.join(name));
            opened.map_err(|error| SliceError::System(folder.join(name), error))
        };
        let (file, private) = (open(TURNS)?, open(PROCESSES)?);
        let failed = |error| SliceError::System(folder.join(TURNS), error);
        // Only on a simulated GPU: on others a program could give itself another time.
        let clock = get(env::TURN_CLOCK).filter(|path| !path.is_empty() && entry.slice.sim.is_some());
        let clock = match clock {
            Some(path) => Clock::File(File::open(&path).map_err(|error| SliceError::System(path.into(), error))?),
            None => Clock::System,
        };
        let free = |number: &u64| locks::try_lock(&file, &bytes_of(*number)).unwrap_or(false);
        let record = (0..MOST_PROCESSES).find(free).ok_or_else(|| failed(io::Error::other("no record is free")))?;
        let idle = File::open("/dev/null").map_err(|error| SliceError::System("/dev/null".into(), error))?;
        let book = Self {
            registry: Registry::around(entry),
            dir: entry.dir.clone(),
            file,
            private,
            record,
            clock,
            listed: Mutex::default(),
            idle: idle.into(),
        };
        book.write(record + 1, &[0; WORDS]).map_err(failed)?;
        book.settle_what_was_left().map_err(failed)?;
        Ok(book)
    }

    /// Now, by the clock that all processes of the machine share.
    pub fn now_micros(&self) -> u64 {
        match &self.clock {
            Clock::System => system_micros(),
            Clock::File(file) => {
                let mut word = [0; 8];
                file.read_exact_at(&mut word, 0).map_or(0, |()| u64::from_ne_bytes(word))
            }
        }
    }

    /// Publishes how this process stands, looks around and takes the slice's step.
    pub fn step(&self, standing: &Standing) -> Stepped {
        let now = self.now_micros();
        let flags = u64::from(standing.wants) | u64::from(standing.busy) << 1;
        let mut words = [0; WORDS];
        words[..6].copy_from_slice(&[MAGIC, now, flags, standing.vram_bytes, standing.ram_bytes, standing.held]);
        let _ = self.write(self.record + 1, &words);
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if listed.at_micros.is_none_or(|at| now.saturating_sub(at) >= LIST_MICROS) {
            *listed = self.list(now);
        }
        let free = Stepped { gate: Gate::Free, allotted_bytes: u64::MAX };
        if listed.slices.is_empty() {
            // The slice is gone; who is in it keeps what it has.
            return free;
        }
        let may_write = locks::try_lock(&self.private, &HEAD_LOCK).unwrap_or(false);
        let stepped = self.step_in(&listed, now, may_write).unwrap_or(free);
        if may_write {
            let _ = locks::unlock(&self.private, &HEAD_LOCK);
        }
        stepped
    }

    fn step_in(&self, listed: &Listed, now: u64, may_write: bool) -> Option<Stepped> {
        let mut head = read_block(&self.file, 0).unwrap_or_default();
        let (mut tenants, mut me) = (Vec::new(), None);
        for (index, (slice, file)) in listed.slices.iter().enumerate() {
            let own = (index == listed.own).then_some(self.record);
            if let Some(tenant) = tenant(slice, file, own) {
                me = me.or((index == listed.own).then_some(tenants.len()));
                tenants.push(tenant);
            }
        }
        let me = me?;
        let card = card(listed.slices.iter().map(|(slice, _)| slice), listed.set_aside);
        let before = tenants[me].turn;
        let gate = turns::step(me, &mut tenants, &card, now);
        let allotted_bytes = turns::allot(&tenants, &card, now)[me];
        if may_write {
            let (account, turn) = (tenants[me].account, tenants[me].turn);
            let began = turn.is_some_and(|turn| before.is_none_or(|b| b.began_micros != turn.began_micros));
            let [mut window, mut used_then, mut window_before, mut used_before] =
                [head[9], head[10], head[11], head[12]];
            if window == 0 || now < window || now - window >= WINDOW_MICROS {
                (window_before, used_before) = if window == 0 { (now, 0) } else { (window, used_then) };
                (window, used_then) = (now, account.used_micros);
            }
            let words = [
                MAGIC,
                account.virtual_time,
                account.paid_micros,
                account.settled_micros,
                account.used_micros,
                u64::from(account.joined),
                turn.map_or(0, |turn| turn.began_micros),
                turn.map_or(0, |turn| turn.until_micros),
                head[8] + u64::from(began),
                window,
                used_then,
                window_before,
                used_before,
            ];
            if head[..words.len()] != words {
                head[..words.len()].copy_from_slice(&words);
                let _ = self.write(0, &head);
            }
        }
        Some(Stepped { gate, allotted_bytes })
    }

    /// In a forked child: nothing of the parent's is held.
    pub fn forked(&self) {
        locks::replace(&self.file, &self.idle);
        locks::replace(&self.private, &self.idle);
    }

    /// A slice that nobody was in begins anew: its turn is over, and no time is waited for that another boot has counted.
    fn settle_what_was_left(&self) -> io::Result<()> {
        if !locks::try_lock(&self.private, &HEAD_LOCK)? {
            return Ok(());
        }
        let anybody = others_alive(&self.file, self.record)?;
        if !anybody {
            let mut head = read_block(&self.file, 0).unwrap_or_default();
            if head[0] != MAGIC {
                head = [0; WORDS];
            }
            let now = self.now_micros();
            (head[0], head[2], head[3]) = (MAGIC, head[2].min(now + WINDOW_MICROS), now);
            (head[5], head[6], head[7]) = (0, 0, 0);
            self.write(0, &head)?;
        }
        locks::unlock(&self.private, &HEAD_LOCK)
    }

    fn list(&self, now: u64) -> Listed {
        let entries = self.registry.entries().0;
        let Some(own) = entries.iter().find(|entry| entry.dir == self.dir).map(|entry| entry.slice.clone()) else {
            return Listed { at_micros: Some(now), ..Listed::default() };
        };
        let mut listed = Listed { at_micros: Some(now), ..Listed::default() };
        for entry in entries {
            let slice = entry.slice;
            if !slice.is_of(&own.gpu.uuid) || slice.sim != own.sim {
                continue;
            }
            if !slice.takes_turns() {
                listed.set_aside = listed.set_aside.saturating_add(slice.vram.0);
                continue;
            }
            // Read by a description of its own: this process's locks count as anybody's there, but for its record.
            let is_own = slice.name == own.name;
            let file = if is_own { self.file.try_clone() } else { open_to_read(&entry.dir) };
            if let Ok(file) = file {
                listed.own = if is_own { listed.slices.len() } else { listed.own };
                listed.slices.push((slice, file));
            }
        }
        listed
    }

    fn write(&self, block: u64, words: &[u64; WORDS]) -> io::Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.file.write_all_at(&bytes, block * BLOCK_BYTES as u64)
    }
}

/// What tenants may have together. Where no more is promised than there is, each set fits in its share.
fn card<'s>(slices: impl Iterator<Item = &'s Slice>, set_aside: u64) -> Card {
    let (mut promised, mut vram) = (set_aside, u64::MAX);
    for slice in slices {
        promised = promised.saturating_add(slice.vram.0);
        vram = slice.gpu.vram.0;
    }
    // Contexts and code take some of it.
    let vram_bytes = if promised <= vram { u64::MAX } else { (vram - vram / 32).saturating_sub(set_aside) };
    Card { vram_bytes, link_bytes_per_micro: LINK_BYTES_PER_MICRO }
}

/// How a slice stands; `None`: nobody is in it. `own` is the record of this process, if it is its slice.
fn tenant(slice: &Slice, file: &File, own: Option<u64>) -> Option<Tenant> {
    let head = read_block(file, 0).ok()?;
    let known = head[0] == MAGIC;
    let word = |index: usize| if known { head[index] } else { 0 };
    let turn = Turn { began_micros: word(6), until_micros: word(7) };
    let mut tenant = Tenant {
        id: slice.instance.into(),
        weight: slice.weight,
        cap_percent: slice.cap_percent,
        processes: 0,
        beat_micros: 0,
        wants: false,
        busy: false,
        account: TimeAccount {
            virtual_time: word(1),
            paid_micros: word(2),
            settled_micros: word(3),
            used_micros: word(4),
            joined: word(5) == 1,
        },
        turn: Some(turn).filter(|turn| turn.began_micros < turn.until_micros),
        set_bytes: 0,
        resident_bytes: 0,
    };
    let mut anybody = false;
    for (number, record) in records(file) {
        if own != Some(number) && !matches!(locks::conflict(file, &bytes_of(number)), Ok(Some(_))) {
            continue;
        }
        anybody = true;
        let [_, beat, flags, vram, ram, ..] = record;
        tenant.beat_micros = tenant.beat_micros.max(beat);
        tenant.wants |= flags & 1 != 0;
        tenant.busy |= flags & 2 != 0;
        tenant.processes += u32::from(flags != 0);
        tenant.set_bytes = tenant.set_bytes.saturating_add(vram).saturating_add(ram);
        tenant.resident_bytes = tenant.resident_bytes.saturating_add(vram);
    }
    tenant.set_bytes = tenant.set_bytes.min(slice.vram.0);
    tenant.resident_bytes = tenant.resident_bytes.min(slice.vram.0);
    anybody.then_some(tenant)
}

/// The records of a file, of the living and the dead.
fn records(file: &File) -> impl Iterator<Item = (u64, [u64; WORDS])> {
    let read = |number| Some((number, read_block(file, number + 1).ok()?));
    (0..MOST_PROCESSES).map_while(read).filter(|(_, record)| record[0] == MAGIC)
}

fn others_alive(file: &File, own: u64) -> io::Result<bool> {
    let all = [bytes_of(0).start..bytes_of(own).start, bytes_of(own).end..bytes_of(MOST_PROCESSES).end];
    for range in all.into_iter().filter(|range| !range.is_empty()) {
        if locks::conflict(file, &range)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn bytes_of(record: u64) -> std::ops::Range<u64> {
    let block = BLOCK_BYTES as u64;
    (record + 1) * block..(record + 2) * block
}

fn read_block(file: &File, block: u64) -> io::Result<[u64; WORDS]> {
    let mut bytes = [0; BLOCK_BYTES];
    match file.read_exact_at(&mut bytes, block * BLOCK_BYTES as u64) {
        // A file that nobody has written to yet has an empty head.
        Err(error) if block == 0 && error.kind() == io::ErrorKind::UnexpectedEof => return Ok([0; WORDS]),
        read => read?,
    }
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.try_into().map_or(0, u64::from_ne_bytes);
    }
    Ok(words)
}

fn open_to_read(dir: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(dir.join(USE).join(TURNS))
}

fn system_micros() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

/// How a slice has had the GPU's time, seen from outside.
///
/// # Errors
/// The system's own.
#[cfg(feature = "cli")]
pub(super) fn look(entry: &Entry) -> io::Result<TimeUse> {
    let file = open_to_read(&entry.dir)?;
    let head = read_block(&file, 0)?;
    if head[0] != MAGIC {
        return Ok(TimeUse::default());
    }
    let tenant = tenant(&entry.slice, &file, None);
    // By the clock of those who write it.
    let now = records(&file).map(|(_, record)| record[1]).max().unwrap_or(0).max(head[3]);
    let (since, used_then) = (head[11], head[12]);
    let share = now.checked_sub(since).filter(|span| head[9] > 0 && *span > 0);
    let used = head[4].saturating_sub(used_then);
    Ok(TimeUse {
        used_micros: head[4],
        share_percent: share.map(|span| used as f64 / span as f64 * 100.0),
        turns: head[8],
        held: records(&file).fold(0, |sum, (_, record)| record[5].saturating_add(sum)),
        in_turn: tenant.as_ref().is_some_and(|tenant| tenant.turn.is_some()),
        wants: tenant.is_some_and(|tenant| tenant.wants),
    })
}

#[cfg(test)]
#[cfg(feature = "cli")]
mod tests {
    use emuv_policy::Bytes;

    use super::*;
    use crate::slices::{SliceUser, definition::tests::slice};

    /// A registry with slices of one simulated GPU, and the time there.
    struct World {
        folder: tempfile::TempDir,
        registry: Registry,
        now: u64,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let registry = Registry::of(folder.path());
            std::fs::create_dir(registry.dir()).unwrap();
            let mut world = Self { folder, registry, now: 0 };
            world.pass(1_000_000);
            world
        }

        fn pass(&mut self, micros: u64) {
            self.now += micros;
            let file = File::options().write(true).create(true).truncate(false).open(self.clock()).unwrap();
            file.write_all_at(&self.now.to_ne_bytes(), 0).unwrap();
        }

        fn clock(&self) -> PathBuf {
            self.folder.path().join("clock")
        }

        fn slice(&self, name: &str, change: impl FnOnce(&mut Slice)) -> Entry {
            let user = SliceUser { uid: rustix::process::geteuid().as_raw(), gid: None };
            let (cap_percent, weight) = (None, 100);
            let mut new =
                Slice { instance: 0, overcommit: true, enabled: true, user, cap_percent, weight, ..slice(name) };
            change(&mut new);
            self.registry.create(new).unwrap()
        }

        fn open(&self, entry: &Entry) -> TurnBook {
            let clock = self.clock().display().to_string();
            TurnBook::open(entry, |name| (name == env::TURN_CLOCK).then(|| clock.clone())).unwrap()
        }
    }

    /// A process that gives the GPU work whenever it may.
    struct Greedy(TurnBook, Standing);

    impl Greedy {
        fn step(&mut self) -> Gate {
            let gate = self.0.step(&self.1).gate;
            self.1.busy = gate != Gate::Shut;
            gate
        }
    }

    const WANTS: Standing = Standing { wants: true, busy: false, vram_bytes: 1, ram_bytes: 1, held: 0 };

    #[test]
    fn equal_slices_that_fit_are_free_and_a_weight_makes_them_take_turns() {
        let mut world = World::new();
        let (a, b) = (world.slice("a", |_| {}), world.slice("b", |_| {}));
        let (mut one, mut two) = (Greedy(world.open(&a), WANTS), Greedy(world.open(&b), WANTS));
        for _ in 0..3 {
            assert_eq!((one.step(), two.step()), (Gate::Free, Gate::Free));
        }
        world.registry.change("b", |slice| slice.weight = 300).unwrap();
        // Definitions are looked at now and then.
        world.pass(LIST_MICROS);
        let (mut first, mut second) = (0, 0);
        for _ in 0..2000 {
            world.pass(1000);
            let gates = (one.step(), two.step());
            first += u64::from(gates.0 != Gate::Shut);
            second += u64::from(gates.1 != Gate::Shut);
        }
        assert!(second > 2 * first && first > 200, "{first} {second}");
        let time = look(&b).unwrap();
        assert!(time.turns > 5 && time.share_percent.is_some_and(|share| share > 50.0), "{time:?}");
    }

    #[test]
    fn who_is_gone_has_no_turn_and_who_is_stopped_loses_it() {
        let mut world = World::new();
        let (a, b) = (world.slice("a", |slice| slice.weight = 50), world.slice("b", |_| {}));
        let (mut one, mut two) = (Greedy(world.open(&a), WANTS), Greedy(world.open(&b), WANTS));
        one.step();
        two.step();
        for round in 0..2 {
            // Until it is the first one's turn.
            while !(one.step() == Gate::Turn && two.step() == Gate::Shut) {
                world.pass(1000);
            }
            if round == 0 {
                drop(one);
                assert_ne!(two.step(), Gate::Shut, "without any time passing");
                one = Greedy(world.open(&a), WANTS);
                one.step();
            }
        }
        let mut waited = 0;
        while two.step() == Gate::Shut {
            world.pass(1000);
            waited += 1;
        }
        assert!(waited <= 301, "{waited} ms");
    }

    #[test]
    fn two_processes_of_a_slice_are_one_tenant_and_its_time_is_charged_once() {
        let mut world = World::new();
        let a = world.slice("a", |slice| slice.cap_percent = Some(50));
        let (mut one, mut two) = (Greedy(world.open(&a), WANTS), Greedy(world.open(&a), WANTS));
        for _ in 0..4000 {
            world.pass(1000);
            let gates = (one.step(), two.step());
            assert!(gates.0 != Gate::Free && gates.1 != Gate::Free);
        }
        let time = look(&a).unwrap();
        assert!((1_800_000..2_200_000).contains(&time.used_micros), "{time:?}");
    }

    #[test]
    fn sets_that_do_not_fit_are_allotted_vram_by_turns() {
        let mut world = World::new();
        let large = |slice: &mut Slice| (slice.vram, slice.gpu.vram) = (Bytes::gib(24), Bytes::gib(24));
        let (a, b) = (world.slice("a", large), world.slice("b", large));
        let (one, two) = (world.open(&a), world.open(&b));
        let standing = Standing { vram_bytes: 10 << 30, ram_bytes: 8 << 30, ..WANTS };
        one.step(&standing);
        two.step(&standing);
        world.pass(1000);
        let (first, second) = (one.step(&standing), two.step(&standing));
        assert_eq!((first.gate, second.gate), (Gate::Turn, Gate::Shut));
        assert_eq!(first.allotted_bytes, 18 << 30);
        assert!(second.allotted_bytes < 6 << 30 && second.allotted_bytes > 5 << 30, "{second:?}");
    }

    #[test]
    fn rubbish_in_the_book_of_another_slice_is_survived() {
        let world = World::new();
        let (a, b) = (world.slice("a", |slice| slice.weight = 7), world.slice("b", |_| {}));
        let (one, two) = (world.open(&a), world.open(&b));
        two.step(&WANTS);
        let path = b.dir.join(USE).join(TURNS);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[8..128].fill(0xff);
        bytes[136..].fill(0xff);
        for rubbish in [bytes, vec![0xff; 1000], Vec::new()] {
            std::fs::write(&path, rubbish).unwrap();
            one.step(&WANTS);
            look(&b).unwrap();
        }
        assert_ne!(one.step(&WANTS).gate, Gate::Shut);
        std::fs::remove_file(&path).unwrap();
        world.registry.delete("b", true).unwrap();
        one.step(&WANTS);
    }

    #[test]
    fn only_a_simulated_gpu_lets_a_variable_say_what_time_it_is() {
        let world = World::new();
        let entry = world.slice("a", |slice| slice.sim = None);
        assert!(world.open(&entry).now_micros() != world.now);
    }
}
