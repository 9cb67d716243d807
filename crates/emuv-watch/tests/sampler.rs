//! Samples of directories that the tests make: what lies in them is seen, whatever it is, and nothing is changed.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)] // A failed unwrap is a failed test; sizes as rates.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::Ordering::Relaxed,
};

use emuv_policy::{Bytes, figure::Summary};
use emuv_state::{
    DeviceCounters, Ledger, RunDir,
    slices::{Account, Demand, FileAccount, Registry, SLICE_FILE, Slice, SliceGpu, SliceUser},
};
use emuv_watch::{GpuProcess, GpuReading, Gpus, Moment, NoGpus, Places, ProblemKind, Sampler, Snapshot};

const CARD: [u8; 16] = *b"0123456789abcdef";
const CARD_TEXT: &str = "GPU-30313233-3435-3637-3839-616263646566";
const GIB: u64 = 1 << 30;

fn at(millis: u64) -> Moment {
    Moment { monotonic_micros: millis * 1000, unix_millis: 1_700_000_000_000 + millis }
}

fn sampler(dir: &Path) -> Sampler {
    Sampler::new(Places::Only(vec![dir.to_owned()]), Box::new(NoGpus("no driver".into())))
}

/// This process as a program under emuV, in a run of its own.
fn program(state: &Path) -> (RunDir, Ledger) {
    let run = RunDir::create(state).unwrap();
    let ledger = Ledger::open(Some(run.path()));
    device(&ledger).set_identity(CARD, "A card");
    (run, ledger)
}

fn device(ledger: &Ledger) -> &DeviceCounters {
    ledger.device(0).unwrap()
}

fn slice(name: &str) -> Slice {
    Slice {
        by_module: false,
        name: name.into(),
        instance: 0,
        id: 7,
        gpu: SliceGpu { uuid: CARD_TEXT.into(), name: "A card".into(), vram: Bytes::gib(24) },
        more_gpus: Vec::new(),
        sim: None,
        vram: Bytes::gib(6),
        ram: Bytes::gib(2),
        weight: 100,
        cap_percent: None,
        schedule: None,
        gpu_model: None,
        user: SliceUser { uid: rustix::process::geteuid().as_raw(), gid: None },
        overcommit: false,
        enabled: true,
    }
}

fn registry(state: &Path) -> Registry {
    let registry = Registry::of(state);
    fs::create_dir(registry.dir()).unwrap();
    registry
}

fn words(snapshot: &Snapshot) -> Vec<(ProblemKind, &str)> {
    snapshot.problems.iter().map(|problem| (problem.kind, problem.words.as_str())).collect()
}

#[test]
fn an_empty_machine_is_an_empty_snapshot() {
    let state = tempfile::tempdir().unwrap();
    let snapshot = sampler(&state.path().join("none")).sample(at(0));
    let expected = Snapshot {
        schema: 1,
        time_unix_millis: 1_700_000_000_000,
        no_driver_because: Some("no driver".into()),
        ..Snapshot::default()
    };
    assert_eq!(snapshot, expected);
}

#[test]
fn a_program_is_shown_with_what_it_uses_and_its_gpu_is_known_by_it() {
    let state = tempfile::tempdir().unwrap();
    let (run, ledger) = program(state.path());
    let counters = device(&ledger);
    counters.vram.budget_bytes.store(8 * GIB, Relaxed);
    counters.vram.set_used(6 * GIB);
    counters.ram.set_used(3 * GIB);
    counters.vram_physical_bytes.store(24 * GIB, Relaxed);
    counters.spilled_bytes.store(5 * GIB, Relaxed);
    let snapshot = sampler(state.path()).sample(at(0));
    let [process] = snapshot.processes.as_slice() else { panic!("{snapshot:?}") };
    assert_eq!((process.pid, process.run.as_deref()), (std::process::id(), run.path().to_str()));
    assert!(process.program.starts_with("sampler-"), "{}", process.program);
    assert_eq!((process.slice.as_deref(), process.same_pid_namespace), (None, true));
    let [used] = process.devices.as_slice() else { panic!("{process:?}") };
    assert_eq!((used.vram.used_bytes, used.vram.budget_bytes), (6 * GIB, Some(8 * GIB)));
    assert_eq!((used.counters.unwrap().spilled_bytes, used.rates, used.speed.clone()), (5 * GIB, None, None));
    let [gpu] = snapshot.gpus.as_slice() else { panic!("{snapshot:?}") };
    assert_eq!((gpu.uuid.as_str(), gpu.name.as_deref(), gpu.index), (CARD_TEXT, Some("A card"), None));
    assert_eq!((gpu.vram_total_bytes, gpu.vram_used_bytes, gpu.link), (Some(24 * GIB), Some(6 * GIB), None));
    assert_eq!((gpu.under_emuv.process_count, gpu.under_emuv.ram_bytes), (1, 3 * GIB));
}

#[test]
fn rates_are_changes_by_the_second_and_a_sample_that_comes_soon_shows_them_again() {
    let state = tempfile::tempdir().unwrap();
    let (_run, ledger) = program(state.path());
    let mut sampler = sampler(state.path());
    let rates = |snapshot: &Snapshot| snapshot.processes[0].devices[0].rates;
    assert_eq!(rates(&sampler.sample(at(0))), None);
    device(&ledger).promoted_bytes.fetch_add(6 * GIB, Relaxed);
    device(&ledger).launches.fetch_add(500, Relaxed);
    assert_eq!(rates(&sampler.sample(at(50))), None, "too short to measure");
    let snapshot = sampler.sample(at(2000));
    let measured = rates(&snapshot).unwrap();
    assert_eq!(measured.in_bytes_per_second, (3 * GIB) as f64);
    assert_eq!((measured.out_bytes_per_second, measured.launches_per_second), (0.0, 250.0));
    assert_eq!((snapshot.rates_over_micros, snapshot.gpus[0].under_emuv.rates), (Some(2_000_000), Some(measured)));
    device(&ledger).launches.fetch_add(1000, Relaxed);
    let (_other, _ledger) = program(state.path());
    let soon = sampler.sample(at(2001));
    assert_eq!(soon.processes[0].devices[0].rates, Some(measured));
    assert_eq!((soon.processes.len(), soon.processes[1].devices[0].rates), (2, None));
    let later = sampler.sample(at(3000));
    assert_eq!(later.processes[0].devices[0].rates.unwrap().launches_per_second, 1000.0);
    assert_eq!(later.processes[1].devices[0].rates, None, "new since rates were last measured");
}

#[test]
fn counters_that_go_backwards_are_no_change() {
    let state = tempfile::tempdir().unwrap();
    let (_run, ledger) = program(state.path());
    device(&ledger).launches.store(u64::MAX, Relaxed);
    let mut sampler = sampler(state.path());
    sampler.sample(at(0));
    device(&ledger).launches.store(3, Relaxed);
    let rates = sampler.sample(at(1000)).processes[0].devices[0].rates.unwrap();
    assert_eq!(rates.launches_per_second, 0.0);
}

#[test]
fn the_percent_of_bound_is_that_of_all_iterations_and_of_the_last_few() {
    let state = tempfile::tempdir().unwrap();
    let (_run, ledger) = program(state.path());
    let mut summary = Summary {
        watched_micros: 1_000_000,
        starved_micros: 100_000,
        link_bytes_per_milli: [25_000_000, 20_000_000, 40_000_000],
        works_per_iteration: 10,
        iterations: 10,
        iterations_micros: 1_000_000,
        bound_micros: 900_000,
        ..Summary::default()
    };
    device(&ledger).figure.store(&summary);
    let mut sampler = sampler(state.path());
    sampler.sample(at(0));
    summary.watched_micros += 1_000_000;
    summary.starved_micros += 250_000;
    summary.iterations += 10;
    summary.iterations_micros += 1_000_000;
    summary.bound_micros += 500_000;
    device(&ledger).figure.store(&summary);
    let snapshot = sampler.sample(at(1000));
    let used = &snapshot.processes[0].devices[0];
    let speed = used.speed.as_ref().unwrap();
    assert_eq!((speed.percent_of_bound, speed.percent_of_bound_lately), (Some(70.0), Some(50.0)));
    assert_eq!(used.rates.unwrap().gpu_waited_percent, 25.0);
    assert_eq!(snapshot.gpus[0].link.unwrap().in_bytes_per_second, 25_000_000_000);
    // A program that has not needed the link yet has not measured it.
    device(&ledger).figure.store(&Summary::default());
    assert_eq!(sampler.sample(at(2000)).gpus[0].link, snapshot.gpus[0].link);
}

#[test]
fn a_slice_is_shown_with_its_processes_and_those_without_a_ledger_too() {
    let state = tempfile::tempdir().unwrap();
    let registry = registry(state.path());
    let (entry, other) = (registry.create(slice("ml-1")).unwrap(), registry.create(slice("ml-2")).unwrap());
    let (account, second) = (FileAccount::open(&entry).unwrap(), FileAccount::open(&other).unwrap());
    account.charge(Demand { vram: GIB, ram: 2 }).unwrap();
    second.say(Demand { vram: 5, ram: 6 });
    // The first one's program has a ledger as well, the second one's has none.
    let (run, _ledger) = program(state.path());
    fs::write(run.path().join(SLICE_FILE), entry.dir.as_os_str().as_encoded_bytes()).unwrap();
    let snapshot = sampler(state.path()).sample(at(0));
    let slices: Vec<_> =
        snapshot.slices.iter().map(|s| (s.name.as_str(), s.vram_used_bytes, s.process_count)).collect();
    assert_eq!(slices, [("ml-1", Some(GIB), Some(1)), ("ml-2", Some(0), Some(1))]);
    let processes: Vec<_> =
        snapshot.processes.iter().map(|p| (p.slice.as_deref(), p.start_ticks.is_some(), p.pid)).collect();
    let me = std::process::id();
    assert_eq!(processes, [(Some("ml-1"), true, me), (Some("ml-2"), false, me)]);
    assert_eq!(snapshot.processes[1].devices[0].vram.used_bytes, 5);
    assert_eq!((snapshot.gpus.len(), snapshot.gpus[0].vram_total_bytes), (1, Some(24 * GIB)));
}

#[test]
fn a_slice_that_is_not_there_does_not_count() {
    let state = tempfile::tempdir().unwrap();
    let (run, _ledger) = program(state.path());
    fs::write(run.path().join(SLICE_FILE), "/somewhere/ml-1").unwrap();
    assert_eq!(sampler(state.path()).sample(at(0)).processes[0].slice, None);
}

#[test]
fn whatever_cannot_be_used_is_named_and_hides_nothing_else_and_stays_as_it_is() {
    let state = tempfile::tempdir().unwrap();
    let registry = registry(state.path());
    registry.create(slice("good")).unwrap();
    let bad = registry.dir().join("bad");
    fs::create_dir(&bad).unwrap();
    fs::write(bad.join("slice"), b"\xff\x1b[2J").unwrap();
    let newer = registry.create(Slice { vram: Bytes::gib(1), ..slice("newer") });
    assert!(newer.is_err(), "what cannot be read may have the number");
    let (run, _ledger) = program(state.path());
    let own = run.path().join(format!("{}.ledger", std::process::id()));
    let mut other_version = fs::read(&own).unwrap();
    other_version[8] = 9;
    let mut huge = fs::read(&own).unwrap();
    huge.resize(1 << 20, 7);
    let rubbish: [(&str, &[u8]); 5] = [
        ("1.ledger", b"\x1b]0;rubbish\x07"),
        ("2.ledger", &other_version),
        ("3.ledger", &huge),
        ("4.ledger", b""),
        ("emuv-slice", b"\0\xff\xff"),
    ];
    for (name, bytes) in rubbish {
        fs::write(run.path().join(name), bytes).unwrap();
    }
    fs::create_dir(state.path().join("run-5-0")).unwrap();
    fs::write(state.path().join("run-6-0"), b"a file").unwrap();
    let before = contents(state.path());
    let snapshot = sampler(state.path()).sample(at(0));
    assert_eq!((snapshot.processes.len(), snapshot.slices.len()), (1, 1));
    let mut kinds: Vec<_> = words(&snapshot).iter().map(|(kind, _)| *kind).collect();
    kinds.sort();
    let damaged = ProblemKind::Damaged;
    assert_eq!(kinds, [damaged, damaged, damaged, ProblemKind::OtherVersion], "{:?}", words(&snapshot));
    assert!(words(&snapshot).iter().all(|(_, words)| words.starts_with('/') && !words.contains('\x1b')));
    assert_eq!(contents(state.path()), before);
}

/// All files below a folder with their bytes, but for ledgers that live.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

#[test]
fn a_thousand_pieces_of_rubbish_are_told_of_in_a_hundred_lines() {
    let state = tempfile::tempdir().unwrap();
    let (run, _ledger) = program(state.path());
    (0..1000).for_each(|n| fs::write(run.path().join(format!("x{n}.ledger")), b"rubbish").unwrap());
    let snapshot = sampler(state.path()).sample(at(0));
    assert_eq!(snapshot.problems.len(), 101);
    assert_eq!(snapshot.problems.last().unwrap().words, "900 more like these");
}

#[test]
fn a_hostile_name_is_made_harmless() {
    let state = tempfile::tempdir().unwrap();
    let (run, ledger) = program(state.path());
    device(&ledger).set_identity(CARD, "\x1b[31mcard\u{202e}");
    let path = run.path().join(format!("{}.ledger", std::process::id()));
    let mut bytes = fs::read(&path).unwrap();
    let name = b"/tmp/\x1b]52;c;AAAA\x07evil\x1b[2J";
    bytes[80..80 + name.len()].copy_from_slice(name);
    bytes[48..56].copy_from_slice(&(name.len() as u64).to_ne_bytes());
    // In place: the file is mapped.
    std::os::unix::fs::FileExt::write_all_at(&fs::File::options().write(true).open(&path).unwrap(), &bytes, 0).unwrap();
    let snapshot = sampler(state.path()).sample(at(0));
    assert_eq!(snapshot.processes[0].program, "?]52;c;AAAA?evil?[2J");
    assert_eq!(snapshot.gpus[0].name.as_deref(), Some("?[31mcard?"));
    assert!(!serde_json::to_string(&snapshot).unwrap().contains("u001b"));
}

#[test]
fn who_has_ended_is_gone() {
    let state = tempfile::tempdir().unwrap();
    let (run, _ledger) = program(state.path());
    let path = run.path().join(format!("{}.ledger", std::process::id()));
    let mut bytes = fs::read(path).unwrap();
    // No process has this number: it is above what Linux gives out.
    bytes[24..32].copy_from_slice(&4_194_305_u64.to_ne_bytes());
    fs::write(run.path().join("4194305.ledger"), bytes).unwrap();
    assert_eq!(sampler(state.path()).sample(at(0)).processes.len(), 1);
}

#[test]
fn a_ledger_that_names_anothers_process_does_not_count() {
    if !rustix::process::geteuid().is_root() {
        // Only root can give a directory to another user.
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let (run, _ledger) = program(state.path());
    std::os::unix::fs::chown(run.path(), Some(1000), None).unwrap();
    let snapshot = sampler(state.path()).sample(at(0));
    assert!(snapshot.processes.is_empty());
    let [(ProblemKind::Foreign, words)] = words(&snapshot)[..] else { panic!("{snapshot:?}") };
    assert!(words.contains("which is user 0's"), "{words}");
}

struct TwoGpus(Vec<u32>);

impl Gpus for TwoGpus {
    fn look(&mut self) -> Result<Vec<GpuReading>, String> {
        let gpu = |index: u32, uuid: &str| GpuReading {
            index,
            uuid: Some(uuid.into()),
            name: Some("A driver's card".into()),
            vram_total_bytes: Some(24 * GIB),
            vram_used_bytes: Some(9 * GIB),
            busy_percent: Some(40),
            processes: self.0.iter().map(|pid| GpuProcess { pid: *pid, vram_bytes: Some(GIB) }).collect(),
        };
        Ok(vec![gpu(0, CARD_TEXT), gpu(1, "GPU-1")])
    }
}

/// A process that runs until it is dropped.
struct Cat(Child);

impl Cat {
    fn start() -> Self {
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Once it answers it has its name.
        let mut byte = *b"x";
        cat.stdin.as_mut().unwrap().write_all(&byte).unwrap();
        cat.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        Self(cat)
    }
}

impl Drop for Cat {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_drivers_gpus_come_first_and_processes_that_only_it_knows_are_others() {
    let state = tempfile::tempdir().unwrap();
    let (_run, ledger) = program(state.path());
    device(&ledger).vram.set_used(3);
    let cat = Cat::start();
    let gpus = TwoGpus(vec![std::process::id(), cat.0.id()]);
    let snapshot = Sampler::new(Places::Only(vec![state.path().to_owned()]), Box::new(gpus)).sample(at(0));
    let gpus: Vec<_> = snapshot.gpus.iter().map(|g| (g.index, g.vram_used_bytes, g.under_emuv.vram_bytes)).collect();
    assert_eq!(gpus, [(Some(0), Some(9 * GIB), 3), (Some(1), Some(9 * GIB), 0)]);
    let others: Vec<_> = snapshot.others.iter().map(|p| (p.pid, p.program.as_str(), p.gpu_uuid.as_str())).collect();
    assert_eq!(others, [(cat.0.id(), "cat", CARD_TEXT), (cat.0.id(), "cat", "GPU-1")]);
}
