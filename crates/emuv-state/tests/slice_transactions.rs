//! Sixteen processes that charge and give back in one slice as fast as they can: nothing is lost, nothing exceeded, and
//! (in the long form, which measures) fast enough.
//!
//! The processes are this test's own executable, started again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // Tests: a panic is the report, a line the answer.
#![cfg(feature = "cli")]

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use emuv_policy::Bytes;
use emuv_state::slices::{Account, Demand, FileAccount, Registry, Slice, SliceGpu, SliceUser};

const MIB: u64 = 1 << 20;
const PROCESSES: u64 = 16;
const VRAM: u64 = 256 * MIB;
const RAM: u64 = 64 * MIB;

const STATE: &str = "SLICE_TRANSACTIONS_STATE";
const SEED: &str = "SLICE_TRANSACTIONS_SEED";
const COUNT: &str = "SLICE_TRANSACTIONS_COUNT";

fn registry() -> (tempfile::TempDir, Registry) {
    let state = tempfile::tempdir().unwrap();
    let registry = Registry::of(state.path());
    std::fs::create_dir(registry.dir()).unwrap();
    let slice = Slice {
        name: "ml-1".to_owned(),
        instance: 0,
        id: 1,
        gpu: SliceGpu { uuid: "GPU-1".to_owned(), name: String::new(), vram: Bytes(VRAM) },
        more_gpus: Vec::new(),
        sim: None,
        vram: Bytes(VRAM),
        ram: Bytes(RAM),
        weight: 100,
        cap_percent: None,
        schedule: None,
        gpu_model: None,
        user: SliceUser { uid: rustix::process::geteuid().as_raw(), gid: None },
        overcommit: false,
        enabled: true,
        by_module: false,
    };
    registry.create(slice).unwrap();
    (state, registry)
}

fn start(state: &Path, seed: u64, count: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "one_of_the_processes", "--ignored", "--nocapture"])
        .env(STATE, state)
        .env(SEED, seed.to_string())
        .env(COUNT, count.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Not a test: what the processes do. They hold what they hold until their standard input ends.
#[test]
#[ignore = "a part of the others"]
fn one_of_the_processes() {
    let Ok(state) = std::env::var(STATE) else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let (mut random, count) = (number(SEED), number(COUNT));
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let account = FileAccount::open(&Registry::of(Path::new(&state)).entry("ml-1").unwrap()).unwrap();
    println!("\nready");
    let mut wait = [0];
    std::io::stdin().read_exact(&mut wait).unwrap();
    let mut held: Vec<Demand> = Vec::new();
    let (mut done, mut refused) = (0, 0_u64);
    while done < count {
        // Now and then much, mostly a few chunks.
        let size = if next() % 16 == 0 { 32 * MIB } else { (1 + next() % 4) * 2 * MIB };
        let demand = if next() % 4 == 0 { Demand { vram: 0, ram: size } } else { Demand { vram: size, ram: 0 } };
        if held.len() < 6 && next() % 3 != 0 {
            match account.charge(demand) {
                Ok(()) => held.push(demand),
                Err(_) => refused += 1,
            }
        } else if !held.is_empty() {
            let index = usize::try_from(next()).unwrap_or(0) % held.len();
            account.release(held.swap_remove(index));
        } else {
            continue;
        }
        done += 1;
    }
    let sum = |of: fn(&Demand) -> u64| held.iter().map(of).sum::<u64>();
    let usage = account.usage();
    assert_eq!((usage.own_vram, usage.own_ram), (sum(|d| d.vram), sum(|d| d.ram)));
    println!("\nholds {} {} {refused}", sum(|d| d.vram), sum(|d| d.ram));
    let _ = std::io::stdin().read_exact(&mut wait);
}

/// Runs them; gives how many transactions a second they made together.
fn run(processes_count: u64, count: u64) -> f64 {
    let (state, registry) = registry();
    let mut children: Vec<Child> = (1..=processes_count).map(|seed| start(state.path(), seed * 7919, count)).collect();
    let mut answers: Vec<_> = children.iter_mut().map(|child| BufReader::new(child.stdout.take().unwrap())).collect();
    let mut orders: Vec<_> = children.iter_mut().map(|child| child.stdin.take().unwrap()).collect();
    let line = |reader: &mut BufReader<_>, start: &str| loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0, "it ended before '{start}'");
        if let Some(rest) = line.trim_end().strip_prefix(start) {
            return rest.to_owned();
        }
    };
    answers.iter_mut().for_each(|reader| drop(line(reader, "ready")));
    let begin = Instant::now();
    orders.iter_mut().for_each(|order| std::io::Write::write_all(order, b"x").unwrap());
    let looks = (0..20).map(|_| registry.listings().0.remove(0).used.unwrap().0);
    for usage in looks {
        assert!(usage.vram <= VRAM && usage.ram <= RAM, "{usage:?}");
    }
    let mut held = Demand::default();
    let mut refused = 0;
    for reader in &mut answers {
        let numbers: Vec<u64> = line(reader, "holds ").split(' ').map(|number| number.parse().unwrap()).collect();
        held.vram += numbers[0];
        held.ram += numbers[1];
        refused += numbers[2];
    }
    let seconds = begin.elapsed().as_secs_f64();
    let (usage, processes) = registry.listings().0.remove(0).used.unwrap();
    assert_eq!((usage.vram, usage.ram), (held.vram, held.ram), "what is charged is what they hold");
    assert_eq!(processes.len() as u64, processes_count);
    drop(orders);
    children.iter_mut().for_each(|child| assert!(child.wait().unwrap().success()));
    let (usage, processes) = registry.listings().0.remove(0).used.unwrap();
    assert_eq!((usage.vram, usage.ram, processes.len()), (0, 0, 0));
    #[allow(clippy::cast_precision_loss)] // A rate.
    let rate = (processes_count * count) as f64 / seconds;
    println!(
        "{processes_count} processes: {rate:.0} transactions a second, {refused} of {} refused",
        processes_count * count
    );
    rate
}

#[test]
fn sixteen_processes_lose_nothing() {
    run(PROCESSES, 300);
}

/// `cargo test --release -p emuv-state --features cli --test slice_transactions -- --ignored measured --nocapture`
#[test]
#[ignore = "depends on the machine's speed"]
fn sixteen_processes_measured() {
    run(1, 100_000);
    assert!(run(PROCESSES, 20_000) >= 10_000.0);
}
