//! Taking samples.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use emuv_policy::figure::Card;
use emuv_state::{
    DeviceRecord, LedgerError, Ledgers, ProcessRecord, RunEntry, Runs, TierRecord,
    slices::{Entry, Listing, Registry, SliceError, SliceProcess},
    uuid_text,
};

use crate::{
    gpus::{GpuReading, Gpus},
    moment::Moment,
    places::Places,
    rates::{Change, History},
    snapshot::{
        Counters, Gpu, GpuUse, Link, OtherProcess, Problem, ProblemKind, Process, ProcessDevice, Rates, SCHEMA, Slice,
        SliceTime, Snapshot, Speed, Tier,
    },
    text::{harmless, program},
};

/// What `emuv-simgpu` calls its cards.
const SIMULATED: &str = "emuV simulated GPU";

/// So many are worth another thread.
const MANY_RUNS: usize = 512;

/// So many a thread takes at a time.
const RUNS_AT_ONCE: usize = 32;

/// Problems that are told of one by one; of more, only how many.
const MOST_PROBLEMS: usize = 100;

/// Takes samples, and keeps of each what the next needs for its rates. See the crate's head for what holds.
pub struct Sampler {
    places: Places,
    gpus: Box<dyn Gpus>,
    runs: Runs,
    history: History,
    /// Links that were measured, by GPU: they outlive who has measured them.
    links: HashMap<String, Link>,
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler").field("places", &self.places).finish_non_exhaustive()
    }
}

impl Sampler {
    /// A sampler of these places and GPUs.
    pub fn new(places: Places, gpus: Box<dyn Gpus>) -> Self {
        Self { places, gpus, runs: Runs::default(), history: History::default(), links: HashMap::new() }
    }

    /// What goes on now. `now` must not be before that of the last sample.
    pub fn sample(&mut self, now: Moment) -> Snapshot {
        let mut snapshot = Snapshot {
            schema: SCHEMA,
            time_unix_millis: now.unix_millis,
            rates_over_micros: self.history.begin(now.monotonic_micros),
            ..Snapshot::default()
        };
        let dirs = self.places.list(&mut snapshot.problems);
        let mut seen = Seen::default();
        let (slices, runs) = look_at(&dirs, &mut self.runs);
        // All slices first: a run in one directory may be in a slice of another.
        for (listings, problems) in slices {
            snapshot.problems.extend(problems.iter().map(slice_problem));
            for listing in listings {
                snapshot.slices.push(slice(&listing));
                seen.add_slice(listing);
            }
        }
        for (dir, runs) in dirs.iter().zip(runs) {
            match runs {
                Ok(runs) => runs.iter().for_each(|(run, ledgers)| self.run(run, ledgers, &mut seen, &mut snapshot)),
                Err(error) => snapshot.problems.push(unreadable(dir, &error)),
            }
        }
        self.history.end();
        seen.without_ledgers(&mut snapshot.processes);
        snapshot.processes.sort_by_key(|process| (process.start_ticks.is_none(), process.start_ticks, process.pid));
        let readings = self.gpus.look().unwrap_or_else(|why| {
            snapshot.no_driver_because = Some(why);
            Vec::new()
        });
        others(&readings, &mut snapshot);
        self.gather_gpus(readings, &seen, &mut snapshot);
        gather_slices(&mut snapshot);
        shorten(&mut snapshot.problems);
        snapshot
    }

    /// The processes of one run that live.
    fn run(&mut self, run: &RunEntry, ledgers: &Ledgers, seen: &mut Seen, snapshot: &mut Snapshot) {
        snapshot.problems.extend(ledgers.problems.iter().filter_map(|problem| ledger_problem(problem, run)));
        let place: Arc<str> = run.path.to_string_lossy().into();
        for record in ledgers.processes.iter().filter(|record| record.alive) {
            // Root may run programs as whoever it likes.
            let owner = if run.uid == 0 { None } else { process_uid(record.pid) };
            if let Some(owner) = owner.filter(|owner| *owner != run.uid) {
                let words = format!("{place}: a ledger names process {}, which is user {owner}'s", record.pid);
                snapshot.problems.push(Problem { kind: ProblemKind::Foreign, words: harmless(&words) });
                continue;
            }
            let mut process = process(record, run, seen);
            for device in &record.devices {
                let change = self.history.change(&place, record, device);
                self.note_link(device);
                process.devices.push(process_device(device, change));
            }
            seen.add_names(record);
            snapshot.processes.push(process);
        }
    }

    fn note_link(&mut self, device: &DeviceRecord) {
        let [into, out, both] = device.figure.link_bytes_per_milli.map(|bytes| bytes.saturating_mul(1000));
        if let Some(uuid) = uuid_text(&device.uuid).filter(|_| into > 0 && out > 0) {
            let link = Link { in_bytes_per_second: into, out_bytes_per_second: out, both_bytes_per_second: both };
            self.links.insert(uuid, link);
        }
    }

    /// The driver's GPUs, then those that only processes or slices name.
    fn gather_gpus(&self, readings: Vec<GpuReading>, seen: &Seen, snapshot: &mut Snapshot) {
        let mut gpus: Vec<Gpu> = readings.into_iter().map(gpu).collect();
        let mut at: HashMap<String, usize> = HashMap::new();
        for (index, gpu) in gpus.iter().enumerate() {
            at.entry(gpu.uuid.clone()).or_insert(index);
        }
        let named = snapshot.processes.iter().flat_map(|process| &process.devices).map(|device| &device.gpu_uuid);
        for uuid in named.chain(snapshot.slices.iter().map(|slice| &slice.gpu_uuid)) {
            at.entry(uuid.clone()).or_insert_with(|| {
                gpus.push(Gpu { uuid: uuid.clone(), ..seen.gpus.get(uuid).cloned().unwrap_or_default() });
                gpus.len() - 1
            });
        }
        for process in &snapshot.processes {
            for device in &process.devices {
                if let Some(gpu) = at.get(&device.gpu_uuid).and_then(|index| gpus.get_mut(*index)) {
                    gpu.under_emuv.add(device);
                }
            }
        }
        for gpu in &mut gpus {
            gpu.link = self.links.get(&gpu.uuid).copied();
            if gpu.index.is_none() {
                gpu.vram_used_bytes = Some(gpu.under_emuv.vram_bytes);
            }
        }
        snapshot.gpus = gpus;
    }
}

/// The slices of a directory, and what could not be used.
type Slices = (Vec<Listing>, Vec<SliceError>);

/// The runs of a directory, and what their processes say.
type RunsRead = io::Result<Vec<(RunEntry, Ledgers)>>;

/// Reads what there is, directory by directory. Where there is much, another thread reads the slices meanwhile, and then helps.
fn look_at(dirs: &[PathBuf], runs: &mut Runs) -> (Vec<Slices>, Vec<RunsRead>) {
    let found = runs.look(dirs);
    let slices = || dirs.iter().map(|dir| Registry::of(dir).listings()).collect::<Vec<_>>();
    let entries: Vec<&RunEntry> = found.iter().flatten().flatten().collect();
    let next = AtomicUsize::new(0);
    let runs = &*runs;
    // A few runs at a time, by whoever has time; of all that were read, where they stand.
    let read = || {
        let mut all = Vec::new();
        loop {
            let start = next.fetch_add(RUNS_AT_ONCE, Ordering::Relaxed);
            let Some(some) = entries.get(start..).filter(|rest| !rest.is_empty()) else { return all };
            all.extend((start..).zip(some.iter().take(RUNS_AT_ONCE).map(|run| runs.ledgers(run))));
        }
    };
    let (slices, mut ledgers) = if entries.len() < MANY_RUNS {
        (slices(), read())
    } else {
        thread::scope(|scope| {
            let other = thread::Builder::new().spawn_scoped(scope, || (slices(), read()));
            let mut ledgers = read();
            let other = other.ok().and_then(|other| other.join().ok());
            let (slices, more) = other.unwrap_or_else(|| (slices(), Vec::new()));
            ledgers.extend(more);
            (slices, ledgers)
        })
    };
    ledgers.sort_by_key(|(at, _)| *at);
    let mut ledgers = ledgers.into_iter().map(|(_, ledgers)| ledgers);
    let mut with_ledgers = |run: RunEntry| (run, ledgers.next().unwrap_or_default());
    let runs = found.into_iter().map(|found| Ok(found?.into_iter().map(&mut with_ledgers).collect())).collect();
    (slices, runs)
}

/// What a sample has come across so far.
#[derive(Default)]
struct Seen {
    /// Slices by folder, with who says to be in them.
    slices: HashMap<PathBuf, (Entry, Vec<SliceProcess>)>,
    /// Processes with ledgers, by the slice's folder: the same are in the slice's own list.
    with_ledgers: HashMap<PathBuf, HashSet<u32>>,
    /// What is said of GPUs, by UUID.
    gpus: HashMap<String, Gpu>,
}

impl Seen {
    fn add_slice(&mut self, listing: Listing) {
        for gpu in listing.entry.slice.gpus() {
            let said = Gpu {
                name: Some(harmless(&gpu.name)).filter(|name| !name.is_empty()),
                simulated: listing.entry.slice.sim.is_some(),
                vram_total_bytes: known(gpu.vram.0),
                ..Gpu::default()
            };
            self.gpus.entry(harmless(&gpu.uuid)).or_insert(said);
        }
        let processes = listing.used.map(|(_, processes)| processes).unwrap_or_default();
        self.slices.insert(listing.entry.dir.clone(), (listing.entry, processes));
    }

    /// What a process says of its GPUs, where no slice has said it.
    fn add_names(&mut self, record: &ProcessRecord) {
        for device in &record.devices {
            self.gpus.entry(gpu_key(&device.uuid)).or_insert_with(|| Gpu {
                name: Some(harmless(&device.name)).filter(|name| !name.is_empty()),
                simulated: device.name == SIMULATED,
                vram_total_bytes: known(device.vram_physical_bytes),
                ..Gpu::default()
            });
        }
    }

    /// Processes that are in a slice and have no ledger that this user may read: in containers, or another user's.
    fn without_ledgers(&self, processes: &mut Vec<Process>) {
        let mut slices: Vec<_> = self.slices.iter().collect();
        slices.sort_by_key(|(dir, _)| *dir);
        for (dir, (entry, members)) in slices {
            let known = self.with_ledgers.get(dir);
            let is_known = |member: &&SliceProcess| {
                member.same_namespace && known.is_some_and(|known| known.contains(&member.pid))
            };
            let unknown = members.iter().filter(|member| !is_known(member));
            processes.extend(unknown.map(|member| slice_process(dir, entry, member)));
        }
    }
}

fn gpu_key(uuid: &[u8; 16]) -> String {
    uuid_text(uuid).unwrap_or_else(|| "unknown".to_owned())
}

fn known(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}

fn gpu(reading: GpuReading) -> Gpu {
    let name = reading.name.map(|name| harmless(&name));
    Gpu {
        index: Some(reading.index),
        uuid: reading.uuid.unwrap_or_else(|| "unknown".to_owned()),
        simulated: name.as_deref() == Some(SIMULATED),
        name,
        vram_total_bytes: reading.vram_total_bytes,
        vram_used_bytes: reading.vram_used_bytes,
        busy_percent: reading.busy_percent,
        ..Gpu::default()
    }
}

impl GpuUse {
    fn add(&mut self, device: &ProcessDevice) {
        self.process_count += 1;
        self.vram_bytes = self.vram_bytes.saturating_add(device.vram.used_bytes);
        self.ram_bytes = self.ram_bytes.saturating_add(device.ram.used_bytes);
        add(&mut self.rates, device.rates.as_ref());
    }
}

fn add(sum: &mut Option<Rates>, rates: Option<&Rates>) {
    if let Some(rates) = rates {
        sum.get_or_insert_default().add(rates);
    }
}

fn slice(listing: &Listing) -> Slice {
    let slice = &listing.entry.slice;
    let used = listing.used.as_ref();
    Slice {
        name: slice.name.clone(),
        dir: harmless(&listing.entry.dir.to_string_lossy()),
        instance: slice.instance,
        gpu_uuid: harmless(&slice.gpu.uuid),
        simulated: slice.sim.is_some(),
        enabled: slice.enabled,
        vram_limit_bytes: slice.vram.0.saturating_mul(slice.gpu_count() as u64),
        ram_limit_bytes: slice.ram.0,
        vram_used_bytes: used.map(|(used, _)| used.vram),
        ram_used_bytes: used.map(|(used, _)| used.ram),
        process_count: used.map(|(_, processes)| processes.len()),
        weight: slice.weight,
        cap_percent: slice.cap_percent,
        schedule: slice.schedule.as_ref().map(ToString::to_string),
        uid: slice.user.uid,
        gid: slice.user.gid,
        time: listing.time.map(|time| SliceTime {
            used_micros: time.used_micros,
            // Where nobody is, nobody has counted lately.
            share_percent: time.share_percent.filter(|_| used.is_none_or(|(_, processes)| !processes.is_empty())),
            turns: time.turns,
            held: time.held,
            in_turn: time.in_turn,
            wants: time.wants,
        }),
        rates: None,
    }
}

/// What the processes of each slice move.
fn gather_slices(snapshot: &mut Snapshot) {
    let mut sums: HashMap<&str, Option<Rates>> = HashMap::new();
    for process in &snapshot.processes {
        if let Some(dir) = process.slice_dir.as_deref() {
            let sum = sums.entry(dir).or_default();
            process.devices.iter().for_each(|device| add(sum, device.rates.as_ref()));
        }
    }
    for slice in &mut snapshot.slices {
        slice.rates = sums.remove(slice.dir.as_str()).flatten();
    }
}

fn process(record: &ProcessRecord, run: &RunEntry, seen: &mut Seen) -> Process {
    // The file that names it is the run's user's: only a slice that is really there counts.
    let slice = run.slice.as_ref().and_then(|dir| seen.slices.get(dir));
    let slice = slice.map(|(entry, _)| (entry.slice.name.clone(), entry.dir.clone()));
    if let Some((_, dir)) = &slice {
        seen.with_ledgers.entry(dir.clone()).or_default().insert(record.pid);
    }
    let command = harmless(&record.command);
    Process {
        pid: record.pid,
        start_ticks: Some(record.start_ticks),
        same_pid_namespace: true,
        uid: Some(run.uid),
        program: program(&command),
        command,
        run: Some(harmless(&run.path.to_string_lossy())),
        slice_dir: slice.as_ref().map(|(_, dir)| harmless(&dir.to_string_lossy())),
        slice: slice.map(|(name, _)| name),
        ram: tier(record.ram, Some(record.ram.budget_bytes)),
        internal_errors: record.internal_errors,
        devices: Vec::new(),
    }
}

fn slice_process(dir: &Path, entry: &Entry, member: &SliceProcess) -> Process {
    let command = harmless(&member.command);
    let used = |used_bytes| Tier { used_bytes, budget_bytes: None, peak_bytes: None };
    Process {
        pid: member.pid,
        same_pid_namespace: member.same_namespace,
        program: program(&command),
        command,
        slice: Some(entry.slice.name.clone()),
        slice_dir: Some(harmless(&dir.to_string_lossy())),
        ram: used(member.ram_bytes),
        devices: (entry.slice.gpus().zip(&member.on_gpus))
            .map(|(gpu, on)| ProcessDevice {
                gpu_uuid: harmless(&gpu.uuid),
                vram: used(on.vram),
                ram: used(on.ram),
                ..ProcessDevice::default()
            })
            .collect(),
        ..Process::default()
    }
}

fn tier(record: TierRecord, budget_bytes: Option<u64>) -> Tier {
    Tier { used_bytes: record.used_bytes, budget_bytes, peak_bytes: Some(record.peak_bytes) }
}

fn process_device(device: &DeviceRecord, change: Change) -> ProcessDevice {
    let figure = &device.figure;
    ProcessDevice {
        ordinal: Some(device.ordinal),
        gpu_uuid: gpu_key(&device.uuid),
        // No device works on a VRAM budget of 0, so there it means "never set"; for RAM it means "off".
        vram: tier(device.vram, known(device.vram.budget_bytes)),
        ram: tier(device.ram, Some(device.ram.budget_bytes)),
        counters: Some(Counters {
            unspilled_bytes: device.unspilled_bytes,
            allocations: device.allocations,
            frees: device.frees,
            refused: device.refused,
            spilled_bytes: device.spilled_bytes,
            launches: device.launches,
            in_bytes: device.promoted_bytes,
            out_bytes: device.evicted_bytes,
            in_place_bytes: figure.in_place_bytes,
            held: device.held,
            held_micros: device.held_micros,
            gpu_waited_micros: figure.starved_micros,
            watched_micros: figure.watched_micros,
        }),
        speed: (figure.watched_micros > 0).then(|| speed(device, change.percent_of_bound_lately)),
        rates: change.rates,
    }
}

#[allow(clippy::cast_precision_loss)] // Figures for people.
fn speed(device: &DeviceRecord, percent_of_bound_lately: Option<f64>) -> Speed {
    let figure = &device.figure;
    let bound = figure.percent_of_bound();
    let card = Card { budget_bytes: device.vram.budget_bytes, physical_bytes: device.vram_physical_bytes };
    Speed {
        percent_of_bound: bound.ok(),
        percent_of_bound_lately,
        unknown_because: bound.err().map(|why| why.to_string()),
        percent_of_vram_speed: figure.percent_of_vram_speed().ok(),
        iterations: figure.iterations,
        seconds_per_iteration: (figure.iterations > 0)
            .then(|| figure.iterations_micros as f64 / 1e6 / figure.iterations as f64),
        warning: figure.reason(),
        remedy: figure.remedy(card),
    }
}

/// Whose process it is; `None` where it has ended.
fn process_uid(pid: u32) -> Option<u32> {
    let uid = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    if uid != 0 {
        return Some(uid);
    }
    // Root's, or one that may not be dumped: then only this file tells.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok())
}

/// What the driver shows and is not in the snapshot yet.
fn others(readings: &[GpuReading], snapshot: &mut Snapshot) {
    let under_emuv: HashSet<u32> =
        snapshot.processes.iter().filter(|process| process.same_pid_namespace).map(|process| process.pid).collect();
    for reading in readings {
        for process in reading.processes.iter().filter(|process| !under_emuv.contains(&process.pid)) {
            let command = fs::read_to_string(format!("/proc/{}/comm", process.pid)).unwrap_or_default();
            snapshot.others.push(OtherProcess {
                pid: process.pid,
                uid: process_uid(process.pid),
                program: harmless(command.trim_end_matches('\n')),
                gpu_uuid: reading.uuid.clone().unwrap_or_else(|| "unknown".to_owned()),
                vram_bytes: process.vram_bytes,
            });
        }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    let (kind, words) = match error.kind() {
        ErrorKind::PermissionDenied => (ProblemKind::NotAllowed, "this user may not look into it".to_owned()),
        ErrorKind::InvalidData => (ProblemKind::Damaged, error.to_string()),
        _ => (ProblemKind::Unreadable, error.to_string()),
    };
    Problem { kind, words: harmless(&format!("{}: {words}", path.display())) }
}

fn slice_problem(error: &SliceError) -> Problem {
    match error {
        SliceError::System(path, error) => unreadable(path, error),
        other => Problem { kind: ProblemKind::Unreadable, words: harmless(&other.to_string()) },
    }
}

/// `None`: the run has ended meanwhile.
fn ledger_problem(error: &LedgerError, run: &RunEntry) -> Option<Problem> {
    let kind = match error {
        LedgerError::Read { source, .. } if source.kind() == ErrorKind::NotFound => return None,
        // A run of another user's in a directory that all may enter.
        LedgerError::Read { path, source } if source.kind() == ErrorKind::PermissionDenied && *path == run.path => {
            let words = format!("{}: user {}'s: what runs there is not shown", path.display(), run.uid);
            return Some(Problem { kind: ProblemKind::NotAllowed, words: harmless(&words) });
        }
        LedgerError::Read { path, source } => return Some(unreadable(path, source)),
        LedgerError::Version { .. } => ProblemKind::OtherVersion,
        LedgerError::NotALedger(_) | LedgerError::Length { .. } => ProblemKind::Damaged,
    };
    Some(Problem { kind, words: harmless(&error.to_string()) })
}

/// Whoever fills a directory with rubbish does not fill the snapshot.
fn shorten(problems: &mut Vec<Problem>) {
    let more = problems.len().saturating_sub(MOST_PROBLEMS);
    if more > 0 {
        problems.truncate(MOST_PROBLEMS);
        let words = format!("{more} more like these");
        problems.push(Problem { kind: ProblemKind::Unreadable, words });
    }
}
