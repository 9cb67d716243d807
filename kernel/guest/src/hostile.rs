//! A client that means harm: whatever it does, the kernel's log stays clean and the ledger exact.

use std::{
    fs::{self, File},
    os::{fd::AsFd, unix::fs::FileExt},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use emuv_kernel_client::{Amount, Ledger as _, Node};
use emuv_uapi::abi;

use crate::{
    Test, debug,
    machine::{GIB, Module, assert_unused, boot_option, meminfo_kb, number, set, times},
    sys::{self, Child, End, Line, Mapping},
};

pub const TESTS: &[Test] = &[
    ("hostile: random calls", random_calls),
    ("hostile: eight threads race close, map, resize, remove, unload", races),
    ("hostile: thousands of times open, charge, be killed", killed_often),
    ("32 slices, killed while they charge", many_slices),
];

/// Numbers that look random; the same seed gives the same.
pub struct Random(pub u64);

impl Random {
    /// Printed, so that a failure can be had again.
    pub fn new(what: &str) -> Self {
        let given = boot_option("emuv_seed").and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| u64::try_from(sys::now().as_nanos()).expect("it has not run so long"));
        println!("  {what}: emuv_seed={seed}");
        Self(seed)
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Any number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Small, huge, near a limit, or anything.
    fn amount(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => self.below(64) * 4096,
            2 => self.below(8 * GIB),
            3 => u64::MAX - self.below(8192),
            4 => (1 << 63) + self.below(8192) - 4096,
            _ => self.next(),
        }
    }
}

/// One call of any kind. What it gives back does not matter.
fn any_call(random: &mut Random, file: &File) {
    let mut argument = [0; 32];
    argument.iter_mut().for_each(|word| *word = random.amount());
    if random.below(4) > 0 {
        argument[0] = u64::from(abi::VERSION);
    }
    let known = [abi::CHARGE, abi::RELEASE, abi::QUERY, abi::EXPORT];
    match random.below(8) {
        0..=3 => {
            let command = known[usize::try_from(random.below(4)).expect("it is below 4")];
            if let (Ok(_), abi::EXPORT) = (sys::raw_ioctl(file, command, Some(&mut argument)), command) {
                sys::close_number(i32::try_from(argument[3] & 0xffff_ffff).expect("a descriptor"));
            }
        }
        4 => {
            // No other file's number: none of them is this module's. Bits are changed that make it nobody's.
            let command = known[0] ^ (1 << random.below(30));
            let _ = sys::raw_ioctl(file, command, Some(&mut argument));
        }
        5 => {
            let mut buffer = vec![1; usize::try_from(random.below(9000)).expect("it is below 9000")];
            let offset = random.amount() & (u64::MAX >> 1);
            let _ =
                if random.below(2) == 0 { file.read_at(&mut buffer, offset) } else { file.write_at(&buffer, offset) };
        }
        6 => {
            let (offset, bytes) = (random.amount() & !4095, usize::try_from(random.below(1 << 20)).expect("it is"));
            if let Ok(mapping) = Mapping::new(file, offset & (u64::MAX >> 1), bytes.max(1), random.below(4) > 0) {
                drop(mapping);
            }
        }
        _ => {
            let _ = sys::raw_ioctl(file, known[usize::try_from(random.below(4)).expect("it is below 4")], None);
        }
    }
}

/// Calls of any kind, as `seed` has it; whatever is refused does not matter. Says how often the node could not be opened.
pub fn some_calls(seed: u64, calls: u32) -> i32 {
    let mut random = Random(seed);
    let (mut file, mut refused) = (None, 0);
    for _ in 0..calls {
        match &file {
            Some(open) if random.below(50) > 0 => any_call(&mut random, open),
            _ => {
                file = File::options().read(true).write(true).open("/dev/emuv0").ok();
                refused += i32::from(file.is_none());
            }
        }
    }
    refused
}

fn random_calls() {
    let _module = Module::with(6, 1);
    let mut random = Random::new("random calls");
    let mut file = File::options().read(true).write(true).open("/dev/emuv0").expect("it opens");
    for round in 0..30_000 {
        any_call(&mut random, &file);
        if round % 1000 == 0 {
            file = File::options().read(true).write(true).open("/dev/emuv0").expect("it opens");
        }
    }
    drop(file);
    assert_unused(0);
}

fn races() {
    let _module = Module::with(6, 1);
    // So that the module cannot be unloaded, however they race.
    let keeper = Node::open(&Node::path(0)).expect("it opens");
    let mut random = Random::new("races");
    let shared: Mutex<Option<Node>> = Mutex::new(None);
    let calls = AtomicU64::new(0);
    let slice = "/sys/kernel/config/emuv/race";
    let rounds = times(1000);
    thread::scope(|scope| {
        for number in 0..8 {
            let mut random = Random(random.next());
            let (shared, calls) = (&shared, &calls);
            scope.spawn(move || {
                for _ in 0..rounds {
                    match number {
                        // Two threads open, close, exchange and map; others use what there is.
                        0 | 1 => match random.below(3) {
                            0 => *shared.lock().expect("nobody panics") = Node::open(&Node::path(0)).ok(),
                            1 => drop(shared.lock().expect("nobody panics").take()),
                            _ => drop(Node::open(&Node::path(1))),
                        },
                        2 => {
                            let _ = set(0, "virtual_bytes", random.below(64) * 4096);
                            let _ = set(0, "physical_bytes", random.below(6 * GIB) + 1);
                        }
                        3 => {
                            // Instance 1 comes and goes.
                            let _ = fs::create_dir(slice);
                            for (name, value) in [
                                ("gpu_model", "4090"),
                                ("physical_vram_bytes", "4096"),
                                ("instance_id", "1"),
                                ("enable", "1"),
                            ] {
                                let _ = fs::write(format!("{slice}/{name}"), value);
                            }
                            let _ = fs::write(format!("{slice}/enable"), "0");
                            let _ = fs::remove_dir(slice);
                        }
                        4 => {
                            let _ = fs::read_to_string("/sys/class/emuv/emuv1/vram_info");
                            let _ = fs::read_to_string("/dev/emuv");
                            let _ = sys::unload_module("emuv").expect_err("it is open");
                        }
                        _ => {
                            let path = Node::path(u32::try_from(random.below(2)).expect("0 or 1"));
                            let held = match shared.lock().expect("nobody panics").as_ref() {
                                Some(node) if random.below(2) == 0 => node.as_fd().try_clone_to_owned().map(File::from),
                                _ => File::options().read(true).write(true).open(path),
                            };
                            if let Ok(file) = held {
                                any_call(&mut random, &file);
                                if let Ok(mapping) = Mapping::new(&file, 0, 4096, true) {
                                    // Its page may be refused, so a child touches it, rarely.
                                    if random.below(500) == 0 {
                                        Child::run(|| mapping.set(0, 1)).wait();
                                    }
                                }
                            }
                        }
                    }
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(calls.into_inner(), 8 * u64::from(rounds));
    drop((shared, keeper));
    assert_unused(0);
}

fn killed_often() {
    let often: u32 = boot_option("emuv_kills").and_then(|often| often.parse().ok()).unwrap_or(times(10_000));
    let _module = Module::with(6, 1);
    let keeper = Node::open(&Node::path(0)).expect("it opens");
    let (before_kb, begun) = (meminfo_kb("MemAvailable"), sys::now());
    for _ in 0..often {
        let ready = Line::new();
        let child = Child::run(|| {
            let node = Node::open(&Node::path(0)).expect("it opens");
            node.charge(Amount { vram_bytes: 6 * GIB, ram_bytes: GIB }).expect("all of it is back each time");
            ready.say();
            sys::forever();
        });
        ready.hear();
        child.kill();
        assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
    }
    let query = keeper.query().expect("it answers");
    assert_eq!((query.holders, query.vram_used_bytes, query.ram_used_bytes), (1, 0, 0));
    let lost_kb = before_kb.saturating_sub(meminfo_kb("MemAvailable"));
    println!("  {often} times in {:?}; {lost_kb} kB less memory available", sys::now() - begun);
    // A leak of one 64-byte object each would be 640 kB; the kernel's own caches move by some MB.
    // The debug kernel keeps freed memory for a while, to catch who uses it, and looks for leaks itself.
    assert!(lost_kb < 16 << 10 || debug::is_here(), "{lost_kb} kB are gone");
}

/// 32 slices, a tenant in each, all killed in the middle of charging; every share is whole again.
fn many_slices() {
    let ids: Vec<String> = (0..32).map(|id: u32| id.to_string()).collect();
    let parameters = format!("gpu_model=4090 physical_vram_gb=6 virtual_vram_gb=1 instance_id={}", ids.join(","));
    let _module = Module::load(&parameters).expect("32 instances");
    for _ in 0..3 {
        let tenants: Vec<(Child, Line)> = (0..32)
            .map(|id| {
                let charging = Line::new();
                let child = Child::run(|| {
                    let node = Node::open(&Node::path(id)).expect("it opens");
                    let amount = Amount { vram_bytes: GIB, ram_bytes: 1 << 20 };
                    node.charge(amount).expect("there is room");
                    node.charge(amount).expect("there is room");
                    charging.say();
                    loop {
                        node.release(amount).expect("it is held");
                        node.charge(amount).expect("there is room");
                    }
                });
                (child, charging)
            })
            .collect();
        tenants.iter().for_each(|(_, charging)| charging.hear());
        tenants.iter().for_each(|(child, _)| child.kill());
        let begun = sys::now();
        for (child, _) in tenants {
            assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
        }
        (0..32).for_each(assert_unused);
        println!("  32 tenants killed, all shares whole after {:?}", sys::now() - begun);
        assert_eq!(number(31, "physical_peak_bytes"), 2 * GIB);
    }
}
