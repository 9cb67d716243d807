//! A machine with many slices and processes: all are seen, and what that costs is printed.
//!
//! `cargo test --release -p emuv-watch --test many -- --ignored --nocapture` measures 32 slices with 192 processes and
//! with 3,840, EMUV_ROUNDS times each (6).
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss)] // A failed unwrap is a failed test; a measurement is printed.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use emuv_policy::Bytes;
use emuv_state::{
    Ledger, RunDir,
    slices::{Account, Demand, FileAccount, Registry, SLICE_FILE, Slice, SliceGpu, SliceUser},
};
use emuv_watch::{Moment, NoGpus, Places, Sampler};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Slices and processes, as long as it lives.
struct Machine {
    _accounts: Vec<FileAccount>,
    state: tempfile::TempDir,
}

impl Machine {
    /// Each process has a run of its own: as programs are started by hand. All are this one.
    fn new(slices: usize, processes_each: usize) -> Self {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
        let state = tempfile::tempdir().unwrap();
        let registry = Registry::of(state.path());
        fs::create_dir(registry.dir()).unwrap();
        let ledger = ledger(state.path());
        let mut accounts = Vec::new();
        for number in 0..slices {
            let entry = registry.create(slice(number)).unwrap();
            for process in 0..processes_each {
                let account = FileAccount::open(&entry).unwrap();
                account.charge(Demand { vram: 1 << 20, ram: 1 << 20 }).unwrap();
                account.say(Demand { vram: 1 << 20, ram: 1 << 20 });
                accounts.push(account);
                let run = state.path().join(format!("run-{}-{process}", 100_000 + number));
                fs::DirBuilder::new().mode(0o700).create(&run).unwrap();
                fs::write(run.join(SLICE_FILE), entry.dir.as_os_str().as_encoded_bytes()).unwrap();
                fs::write(run.join("1.ledger"), &ledger).unwrap();
                // They were not started just now.
                let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
                fs::File::open(&run).unwrap().set_modified(an_hour_ago).unwrap();
            }
        }
        Self { _accounts: accounts, state }
    }

    /// Takes some samples and prints what the best of them cost: as time passes, and of all processors.
    fn sample(&self, slices: usize, processes: usize) {
        let mut sampler = Sampler::new(Places::Only(vec![self.state.path().to_owned()]), Box::new(NoGpus::default()));
        let mut best = [f64::MAX; 2];
        for round in 0..rounds() {
            let (start, cpu) = (Instant::now(), cpu_seconds());
            let snapshot = sampler.sample(Moment { monotonic_micros: round * 1_000_000, unix_millis: 0 });
            let seconds = [start.elapsed().as_secs_f64(), cpu_seconds() - cpu];
            assert_eq!((snapshot.slices.len(), snapshot.processes.len()), (slices, processes));
            assert!(snapshot.problems.is_empty(), "{:?}", snapshot.problems);
            let in_slices = snapshot.processes.iter().filter(|process| process.slice.is_some()).count();
            let with_rates = snapshot.processes.iter().filter(|process| process.devices[0].rates.is_some()).count();
            assert_eq!((in_slices, with_rates), (processes, if round == 0 { 0 } else { processes }));
            best = [best[0].min(seconds[0]), best[1].min(seconds[1])];
        }
        let [wall, cpu] = best.map(|seconds| seconds * 1e3);
        println!("{slices} slices, {processes} processes: {wall:.2} ms a sample, {cpu:.2} ms of a processor");
    }
}

/// How often a sample is taken.
fn rounds() -> u64 {
    std::env::var("EMUV_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(6)
}

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The bytes of a ledger of this process with a device.
fn ledger(state: &Path) -> Vec<u8> {
    let run = RunDir::create(state).unwrap();
    let ledger = Ledger::open(Some(run.path()));
    ledger.device(0).unwrap().set_identity([7; 16], "A card");
    let path = run.path().join(format!("{}.ledger", std::process::id()));
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(path).unwrap();
    bytes
}

fn slice(number: usize) -> Slice {
    Slice {
        by_module: false,
        name: format!("ml-{number}"),
        instance: 0,
        id: 7,
        gpu: SliceGpu { uuid: format!("GPU-{}", number / 4), name: "A card".into(), vram: Bytes::gib(24) },
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

#[test]
fn thirty_two_slices_with_two_hundred_processes_are_all_seen() {
    Machine::new(32, 6).sample(32, 192);
}

#[test]
#[ignore = "a measurement; it needs 16,000 open files"]
fn measure() {
    Machine::new(32, 6).sample(32, 192);
    // 32 x 200 would be more files than many systems allow.
    Machine::new(32, 120).sample(32, 3840);
}
