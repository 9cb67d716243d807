//! Slices take turns. The time by which they do is a file that the test writes; what programs have done they count themselves.
//! So nothing depends on how fast the machine is.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    process::{Child, Command, Stdio},
};

use emuv_state::slices::TimeUse;
use rustix::process::{Pid, Signal, kill_process};

use crate::place::{Place, kill, stderr, until};

/// Words of a program's account (tests/programs/busy.c).
const WORDS: u64 = 4;
const GIVEN: u64 = 1;
const END: u64 = 3;

const MILLI: u64 = 1000;

/// A quantum where only time is shared.
const QUANTUM: u64 = 100 * MILLI;

struct World {
    place: Place,
    now: u64,
    clock: File,
    accounts: File,
    programs: Vec<Option<Child>>,
    slices: Vec<String>,
}

impl World {
    fn new() -> Self {
        let place = Place::new();
        let make = |name: &str| File::options().read(true).write(true).create_new(true).open(place.path(name)).unwrap();
        let (clock, accounts) = (make("clock"), make("accounts"));
        accounts.set_len(8 * WORDS * 16).unwrap();
        let mut world = Self { place, now: 0, clock, accounts, programs: Vec::new(), slices: Vec::new() };
        world.pass(1000 * MILLI);
        world
    }

    /// A slice of a simulated GPU of 64 MiB, and a program in it that always has work.
    fn start(&mut self, name: &str, flags: &[&str], buffers: u64) {
        self.place.vgpu(&[&["create", name, "--sim=vram=64M"], flags].concat());
        self.start_in(name, buffers);
    }

    fn start_in(&mut self, name: &str, buffers: u64) {
        let number = self.programs.len();
        let mut command = self.command(name, "busy");
        command.arg(self.place.path("accounts")).args([number.to_string(), buffers.to_string()]).args(["2", "4"]);
        let program = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        self.programs.push(Some(program));
        self.slices.push(name.to_owned());
        until("it has started", || self.word(number, 0) != 0);
    }

    fn command(&self, name: &str, program: &str) -> Command {
        let mut command = self.place.run_command(name, &[], program);
        command.env("EMUV_TURN_CLOCK", self.place.path("clock"));
        command
    }

    fn word(&self, number: usize, which: u64) -> u64 {
        let mut word = [0; 8];
        self.accounts.read_exact_at(&mut word, (number as u64 * WORDS + which) * 8).unwrap();
        u64::from_ne_bytes(word)
    }

    fn given(&self, number: usize) -> u64 {
        self.word(number, GIVEN)
    }

    fn pass(&mut self, micros: u64) {
        self.now += micros;
        self.clock.write_all_at(&self.now.to_ne_bytes(), 0).unwrap();
    }

    /// Lets time pass in steps that everybody sees.
    fn pass_slowly(&mut self, micros: u64) {
        for _ in 0..micros / (4 * MILLI) {
            self.pass(4 * MILLI);
            self.all_look(&(0..self.programs.len()).collect::<Vec<_>>());
        }
    }

    /// Waits until these have looked around since the time was last changed.
    fn all_look(&self, numbers: &[usize]) {
        for number in numbers {
            let path = self.place.state().join("vgpu").join(&self.slices[*number]).join("use/turns");
            let file = File::open(path).unwrap();
            until("it looks around", || {
                let mut beat = [0; 8];
                file.read_exact_at(&mut beat, 128 + 8).is_ok() && u64::from_ne_bytes(beat) == self.now
            });
        }
    }

    fn time(&self, number: usize) -> TimeUse {
        self.place.listing(&self.slices[number]).time.unwrap()
    }

    /// Waits for more from a program, however little.
    fn goes_on(&self, number: usize) {
        let before = self.given(number);
        until("it goes on", || self.given(number) > before);
    }

    /// Whose turn it is of two, once both compete for it.
    fn holder(&mut self) -> usize {
        // Which slices there are is looked at twice a second.
        self.pass(500 * MILLI);
        self.all_look(&[0, 1]);
        for _ in 0..1000 {
            self.pass(MILLI);
            self.all_look(&[0, 1]);
            let turns = [self.time(0).in_turn, self.time(1).in_turn];
            if turns[0] != turns[1] && self.time(usize::from(turns[0])).wants {
                return usize::from(turns[1]);
            }
        }
        panic!("nobody has a turn: {:?} {:?}", self.time(0), self.time(1));
    }

    fn pid(&self, number: usize) -> Pid {
        Pid::from_raw(i32::try_from(self.word(number, 0)).unwrap()).unwrap()
    }

    fn kill(&mut self, number: usize) {
        kill(u32::try_from(self.word(number, 0)).unwrap());
        self.programs[number].take().unwrap().wait().unwrap();
    }

    /// All come to their end, and find every word right.
    fn end(mut self) {
        for number in 0..self.programs.len() {
            self.accounts.write_all_at(&1_u64.to_ne_bytes(), (number as u64 * WORDS + END) * 8).unwrap();
        }
        while let Some(number) = self.programs.iter().position(Option::is_some) {
            let mut program = self.programs[number].take().unwrap();
            loop {
                // Each needs turns to come to its end.
                self.pass(10 * MILLI);
                if program.try_wait().unwrap().is_some() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            let output = program.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
        }
    }
}

impl Drop for World {
    /// A test that fails leaves nobody at work.
    fn drop(&mut self) {
        for number in (0..self.programs.len()).filter(|number| self.programs[*number].is_some()) {
            if self.word(number, 0) != 0 {
                let _ = kill_process(self.pid(number), Signal::KILL);
            }
        }
    }
}

const SMALL: [&str; 4] = ["--vram", "16M", "--ram", "8M"];

#[test]
fn equal_slices_that_fit_together_take_no_turns() {
    let mut world = World::new();
    world.start("a", &SMALL, 1);
    world.start("b", &SMALL, 1);
    world.pass_slowly(500 * MILLI);
    // Without time, nobody would ever be given a turn.
    for _ in 0..3 {
        world.goes_on(0);
        world.goes_on(1);
    }
    assert_eq!((world.time(0).turns, world.time(1).turns), (0, 0));
    world.end();
}

#[test]
fn who_has_not_its_turn_gives_the_gpu_nothing_until_it_has() {
    let mut world = World::new();
    world.start("a", &[&SMALL[..], &["--weight", "50"]].concat(), 1);
    world.start("b", &SMALL, 1);
    let holder = world.holder();
    let other = 1 - holder;
    let before = world.given(other);
    let has = world.given(holder);
    // As long as no time passes the turn lasts.
    until("the holder goes on", || world.given(holder) > has + 5);
    assert_eq!(world.given(other), before);
    world.goes_on_in_time(other);
    assert!(world.time(other).held > 0);
    world.end();
}

#[test]
fn time_is_divided_by_weight_and_shown() {
    let mut world = World::new();
    world.start("a", &[&SMALL[..], &["--weight", "100"]].concat(), 1);
    world.start("b", &[&SMALL[..], &["--weight", "300"]].concat(), 1);
    world.holder();
    let before = [world.time(0).used_micros, world.time(1).used_micros];
    world.pass_slowly(4000 * MILLI);
    let [a, b] = [0, 1].map(|number| world.time(number).used_micros - before[number]);
    let share = b as f64 / (a + b) as f64 * 100.0;
    // How much work fits into a step of this time is the machine's to say, so the exact share is not (emuv-policy has that).
    assert!(a > 0 && b > a, "{share} %: {a} {b}");
    let shown = world.place.vgpu(&["show", "b"]);
    assert!(shown.contains("GPU time") && shown.contains(" turns"), "{shown}");
    let shown: serde_json::Value = serde_json::from_str(&world.place.vgpu(&["show", "b", "--json"])).unwrap();
    assert!(shown["time"]["turns"].as_u64().unwrap() > 0, "{shown}");
    world.end();
}

#[test]
fn a_cap_holds_for_a_slice_that_is_alone() {
    let mut world = World::new();
    world.start("a", &[&SMALL[..], &["--cap", "20"]].concat(), 1);
    let before = world.time(0).used_micros;
    world.pass_slowly(5000 * MILLI);
    let share = (world.time(0).used_micros - before) as f64 / 50_000.0;
    assert!((10.0..25.0).contains(&share), "{share} %");
    world.end();
}

#[test]
fn a_killed_holder_is_not_waited_for() {
    let mut world = World::new();
    world.start("a", &[&SMALL[..], &["--weight", "50"]].concat(), 1);
    world.start("b", &SMALL, 1);
    let holder = world.holder();
    world.kill(holder);
    // No time has passed since.
    world.goes_on(1 - holder);
    world.goes_on(1 - holder);
    world.end();
}

#[test]
fn a_stopped_holder_loses_its_turn_and_has_another_when_it_goes_on() {
    let mut world = World::new();
    world.start("a", &[&SMALL[..], &["--weight", "50"]].concat(), 1);
    world.start("b", &SMALL, 1);
    let holder = world.holder();
    kill_process(world.pid(holder), Signal::STOP).unwrap();
    let other = 1 - holder;
    world.goes_on_in_time(other);
    kill_process(world.pid(holder), Signal::CONT).unwrap();
    world.goes_on_in_time(holder);
    world.goes_on_in_time(other);
    world.end();
}

#[test]
fn a_storm_of_allocations_in_one_slice_does_not_stop_another() {
    let mut world = World::new();
    world.start("a", &SMALL, 1);
    world.place.vgpu(&["create", "b", "--vram", "16M", "--ram", "8M", "--weight", "400", "--sim=vram=64M"]);
    let mut command = world.command("b", "churn");
    command.args(["", "0", "7", "40", "0", "0"]);
    let mut storm = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("it is in its slice", || world.place.listing("b").used.unwrap().1.len() == 1);
    for _ in 0..10 {
        world.pass_slowly(QUANTUM);
        world.goes_on_in_time(0);
    }
    let pid = world.place.listing("b").used.unwrap().1[0].pid;
    kill(pid);
    storm.wait().unwrap();
    world.end();
}

impl World {
    /// Waits for more from a program; time passes.
    fn goes_on_in_time(&mut self, number: usize) {
        let before = self.given(number);
        until("it goes on", || {
            self.pass(MILLI);
            self.given(number) > before
        });
    }
}

#[test]
fn sets_that_do_not_fit_together_take_turns_and_vram_goes_with_them() {
    let mut world = World::new();
    let large = ["--vram", "64M", "--ram", "64M", "--overcommit"];
    // 20 times 2 MiB each (what is smaller does not move), of 62 that both can have.
    world.start("a", &large, 20);
    world.start("b", &large, 20);
    let both = |world: &World| world.place.used("a").0 + world.place.used("b").0;
    for _ in 0..6 {
        world.pass_slowly(600 * MILLI);
        if world.time(0).turns > 0 && world.time(1).turns > 0 {
            break;
        }
    }
    assert!(world.time(0).turns > 0 && world.time(1).turns > 0, "{:?} {:?}", world.time(0), world.time(1));
    until("what is too much has left VRAM", || both(&world) <= 64);
    world.end();
}
