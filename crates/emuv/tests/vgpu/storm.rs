//! Many programs that take and give back memory at random and are killed at random: no slice ever has more than its
//! share, and at the end nothing is left.
//!
//! What programs hold is known twice: from the slices' ledgers, and from the programs' own accounts (`churn.c`), which
//! emuV knows nothing of.

use std::{
    collections::HashMap,
    fs::File,
    os::unix::fs::FileExt,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use emuv_state::slices::Registry;

use crate::place::{Place, kill, until};

const MIB: u64 = 1 << 20;
const VRAM_MIB: u64 = 24;
const RAM_MIB: u64 = 16;

/// An account in the file: eight words.
const ACCOUNT_BYTES: u64 = 64;
const PROCESS: usize = 2;
const STEPS: usize = 3;
const AT_REST: usize = 4;
const STOP: u64 = 5;

struct Storm {
    place: Place,
    slices: usize,
    accounts: File,
    programs: Vec<Option<Child>>,
    /// Programs that are gone; `emuv run` may still be clearing up behind them.
    ending: Vec<Child>,
    /// Between two steps of a program, in microseconds: so many do not all want a processor at once.
    pause: &'static str,
    random: u64,
    killed: u64,
    samples: u64,
    torn: u64,
}

impl Storm {
    fn new(gpus: usize, slices: usize, programs: usize, pause: &'static str, seed: u64) -> Self {
        eprintln!("seed {seed}");
        let place = Place::new();
        let sim = format!("--sim=vram=256M,gpus={gpus}");
        for number in 0..slices {
            let (name, gpu) = (slice(number), (number % gpus).to_string());
            let (vram, ram) = (format!("{VRAM_MIB}M"), format!("{RAM_MIB}M"));
            place.vgpu(&["create", &name, "--vram", &vram, "--ram", &ram, &sim, "--gpu", &gpu]);
        }
        let path = place.path("accounts");
        let accounts = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        accounts.set_len(programs as u64 * ACCOUNT_BYTES).unwrap();
        let programs = (0..programs).map(|_| None).collect();
        Self {
            place,
            slices,
            accounts,
            programs,
            ending: Vec::new(),
            pause,
            random: seed,
            killed: 0,
            samples: 0,
            torn: 0,
        }
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn account(&self, number: usize) -> [u64; 8] {
        let mut bytes = [0; 64];
        self.accounts.read_exact_at(&mut bytes, number as u64 * ACCOUNT_BYTES).unwrap();
        std::array::from_fn(|word| u64::from_ne_bytes(bytes[word * 8..][..8].try_into().unwrap()))
    }

    fn start(&mut self, number: usize) {
        self.accounts.write_all_at(&[0; 40], number as u64 * ACCOUNT_BYTES).unwrap();
        let seed = self.random().to_string();
        let accounts = self.place.path("accounts");
        let mut command = self.place.run_command(&slice(number % self.slices), &[], "churn");
        command.arg(accounts).args([&number.to_string(), &seed, "6", "0", self.pause]);
        self.programs[number] = Some(command.stdout(Stdio::null()).spawn().unwrap());
    }

    fn kill(&mut self, number: usize) {
        let Some(program) = self.programs[number].take() else { return };
        // Killed before it says its number, it could not be found.
        until("the program has started", || self.account(number)[PROCESS] != 0);
        let pid = u32::try_from(self.account(number)[PROCESS]).unwrap();
        kill(pid);
        until("the program is gone", || is_gone(pid));
        self.ending.push(program);
        // What it held is nobody's now. Its place may be another's already, so this comes before the next look.
        self.accounts.write_all_at(&[0; 40], number as u64 * ACCOUNT_BYTES).unwrap();
        self.killed += 1;
    }

    /// Looks at one slice: by its ledger and by the accounts of its programs.
    fn look(&mut self, which: usize) {
        let listing = self.place.listing(&slice(which));
        let (usage, processes) = listing.used.unwrap();
        assert!(usage.vram <= VRAM_MIB * MIB && usage.ram <= RAM_MIB * MIB, "{usage:?}");
        assert!(processes.len() <= self.programs.len().div_ceil(self.slices), "{processes:?}");
        self.samples += 1;
        let members: Vec<usize> = (which..self.programs.len()).step_by(self.slices).collect();
        for _ in 0..10 {
            let read = |number: &usize| self.account(*number);
            let (before, after): (Vec<_>, Vec<_>) =
                (members.iter().map(read).collect(), members.iter().map(read).collect());
            // Unchanged between two readings, all of them were so at one moment.
            if before.iter().zip(&after).all(|(one, two)| one[0] == two[0] && one[0] % 2 == 0) {
                let sum: u64 = before.iter().map(|account| account[1]).sum();
                assert!(sum <= (VRAM_MIB + RAM_MIB) * MIB, "{sum} bytes are held in {}", slice(which));
                return;
            }
        }
        self.torn += 1;
    }

    fn stop(&self, stop: bool) {
        self.accounts.write_all_at(&u64::from(stop).to_ne_bytes(), STOP * 8).unwrap();
    }

    /// All programs that live stop; then every account must be exact.
    fn rest(&mut self) {
        self.stop(true);
        for number in 0..self.programs.len() {
            until("all are at rest", || self.programs[number].is_none() || self.account(number)[AT_REST] == 1);
        }
        for which in 0..self.slices {
            // The mover gives back by itself, and says so a moment later.
            until("what is charged is what is said", || {
                let (usage, processes) = self.place.listing(&slice(which)).used.unwrap();
                let said: u64 = processes.iter().map(|process| process.vram_bytes).sum();
                let said_ram: u64 = processes.iter().map(|process| process.ram_bytes).sum();
                (usage.vram, usage.ram) == (said, said_ram)
            });
            let held: u64 =
                (which..self.programs.len()).step_by(self.slices).map(|number| self.account(number)[1]).sum();
            let usage = self.place.listing(&slice(which)).used.unwrap().0;
            assert!(held <= usage.vram + usage.ram, "{held} bytes are held, {usage:?} is charged");
        }
        self.stop(false);
    }

    /// Kills all; then nothing may be left.
    fn end(&mut self) {
        let steps: u64 = (0..self.programs.len()).map(|number| self.account(number)[STEPS]).sum();
        for number in 0..self.programs.len() {
            self.kill(number);
        }
        self.ending.iter_mut().for_each(|program| assert!(program.wait().unwrap().code().is_some()));
        eprintln!(
            "{} killed, {} looks, {} of them torn, {steps} steps by the last",
            self.killed, self.samples, self.torn
        );
        let (all, problems) = Registry::of(&self.place.state()).listings();
        assert!(problems.is_empty() && all.len() == self.slices);
        for listing in all {
            let (usage, processes) = listing.used.unwrap();
            assert_eq!((usage.vram, usage.ram, processes.len()), (0, 0, 0), "{}", listing.entry.slice.name);
        }
        for number in 0..self.slices {
            self.place.vgpu(&["delete", &slice(number)]);
        }
        let names =
            std::fs::read_dir(self.place.state().join("vgpu")).unwrap().flatten().map(|entry| entry.file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["lock"]);
    }
}

/// Whether a process has ended, even if nobody has asked for its exit code yet: what it had open is closed then.
fn is_gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let ended = stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']));
    // The first thread may have ended before the others, which still have everything open.
    ended && std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) <= 1
}

fn slice(number: usize) -> String {
    format!("s-{number}")
}

#[test]
fn programs_that_are_killed_at_random_leave_no_trace_and_no_slice_exceeds_its_share() {
    let mut storm = Storm::new(2, 4, 8, "0", 1);
    (0..8).for_each(|number| storm.start(number));
    let mut steps = HashMap::new();
    for round in 0..16 {
        let number = usize::try_from(storm.random() % 8).unwrap();
        // Each gets somewhere before anybody is killed, however slow the machine is.
        let before = *steps.entry(number).or_insert(20);
        until("it works", || storm.account(number)[STEPS] >= before);
        (0..4).for_each(|which| storm.look(which));
        storm.kill(number);
        storm.look(number % 4);
        storm.start(number);
        if round % 8 == 7 {
            (0..8).for_each(|other| until("it works", || storm.account(other)[STEPS] > 0));
            storm.rest();
        }
    }
    storm.end();
}

/// The long form: `cargo test -p emuv --test vgpu -- --ignored storm --nocapture`, EMUV_STORM_SECONDS and
/// EMUV_STORM_SEED for more and other ones.
#[test]
#[ignore = "a minute and 200 programs"]
fn a_storm_of_200_programs_in_32_slices_of_8_gpus() {
    let number = |name: &str, otherwise| std::env::var(name).map_or(otherwise, |text| text.parse().unwrap());
    let mut storm = Storm::new(8, 32, 200, "200000", number("EMUV_STORM_SEED", 1));
    // Those that are there first do not keep the others from starting.
    storm.stop(true);
    (0..200).for_each(|number| storm.start(number));
    (0..200).for_each(|number| until("it has started", || storm.account(number)[AT_REST] == 1));
    storm.stop(false);
    let end = Instant::now() + Duration::from_secs(number("EMUV_STORM_SECONDS", 60));
    while Instant::now() < end {
        let number = usize::try_from(storm.random() % 200).unwrap();
        let which = usize::try_from(storm.random() % 32).unwrap();
        storm.look(which);
        if storm.account(number)[STEPS] > 0 {
            storm.kill(number);
            storm.look(number % 32);
            storm.start(number);
        }
    }
    (0..200).for_each(|other| until("it works", || storm.account(other)[STEPS] > 0));
    eprintln!("{} killed within the time", storm.killed);
    storm.rest();
    storm.end();
}
