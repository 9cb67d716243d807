//! The live figure is what the simulator, which knows everything, says of the same run; and never more than can be.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)] // A failed unwrap is a failed test; sizes as rates.

mod synthetic;

use std::{collections::HashSet, fs, io::Read, path::Path};

use emuv_policy::{
    Policy, Tier,
    figure::{Card, Summary, Unknown, Watch},
    machine::{Action, Cost, FreeBytes, Link, Machine, Online, Placement, Script, Turn},
    replay::Program,
    simulate::{Setting, Way, compare},
    trace,
};
use flate2::read::GzDecoder;
use proptest::prelude::*;
use synthetic::{CHUNK, Loop};

/// How often the mover looks, in microseconds.
const LOOK_US: f64 = 50.0;

/// Until a held program goes on, in microseconds.
const WAKE_US: f64 = 50.0;

/// emuV, and a mover that watches it.
struct Watched<'a> {
    online: Online<'a>,
    script: &'a Script,
    watch: Watch,
    /// Chunks that are moving with their bytes, and where to.
    copying: Vec<(u32, Tier)>,
    free_vram_bytes: u64,
    issued: u32,
    done: u32,
    held: bool,
    woken: f64,
    now: f64,
    looked: f64,
    said: Option<String>,
}

impl<'a> Watched<'a> {
    fn new(script: &'a Script, link: Link) -> Self {
        let online = Online::new(script, Policy::Dynamic { safe: false }, link.in_bytes_per_us);
        let mut watch = Watch::default();
        watch.set_link(link);
        Self {
            online,
            script,
            watch,
            copying: Vec::new(),
            free_vram_bytes: 0,
            issued: 0,
            done: 0,
            held: false,
            woken: 0.0,
            now: 0.0,
            looked: 0.0,
            said: None,
        }
    }
}

impl Placement for Watched<'_> {
    fn mapped(&mut self, chunk: u32, tier: Tier) {
        self.online.mapped(chunk, tier);
    }
    fn unmapped(&mut self, chunk: u32) -> bool {
        self.online.unmapped(chunk)
    }
    fn allocated(&mut self, offset: u64, bytes: u64) {
        self.online.allocated(offset, bytes);
    }
    fn freed(&mut self, offset: u64) {
        self.online.freed(offset);
    }
    fn begin(&mut self, work: u32, patient: bool) -> Turn {
        let turn = self.online.begin(work, patient);
        if self.held && turn == Turn::Go {
            // Until then it counts as held.
            self.woken = self.now + WAKE_US;
        }
        self.held = turn == Turn::Hold;
        self.issued += u32::from(!self.held);
        turn
    }
    fn done(&mut self, works: u32) {
        self.done = works;
    }
    fn fence(&self) -> Option<u64> {
        self.online.fence()
    }
    fn reached(&mut self, number: u64) {
        self.online.reached(number);
    }
    fn took(&mut self, work: u32, micros: f64) {
        self.online.took(work, micros);
    }
    fn next(&mut self, free: FreeBytes) -> Action {
        self.free_vram_bytes = free.vram;
        let action = self.online.next(free);
        if let Action::Move { chunk, to, copy: true, .. } = action {
            self.copying.push((chunk, to));
        }
        action
    }
    fn finished(&mut self, chunk: u32) {
        if let Some(at) = self.copying.iter().position(|(copying, _)| *copying == chunk) {
            let (_, to) = self.copying.swap_remove(at);
            let (offset, bytes) = (self.script.chunks[chunk as usize].offset, self.script.chunks[chunk as usize].bytes);
            self.watch.moved(to, bytes, self.online.residency().extent_at(offset));
        }
        self.online.finished(chunk);
    }
    fn passed(&mut self, micros: f64) {
        self.now = micros;
        if micros < self.looked + LOOK_US {
            return;
        }
        self.looked = micros;
        let mut sight = self.online.residency().sight();
        // On a real GPU a fence is recorded where a work is held.
        sight.starved = (self.held || micros < self.woken) && self.done == self.issued;
        if self.watch.look(micros, &sight) {
            self.watch.reckon(self.online.residency().last_round(), self.free_vram_bytes);
        }
        self.watch.think(256);
        if self.watch.is_to_be_said() {
            self.said = self.watch.summary().reason();
        }
    }
}

struct Run {
    summary: Summary,
    costs: Vec<Cost>,
    said: Option<String>,
    last: emuv_policy::ReadInPlace,
}

fn run(program: &Program, setting: &Setting) -> Run {
    let most_bytes = setting.vram_bytes + setting.ram_bytes;
    let repeated = program.repeated(setting.iterations);
    let script = Script::new(&repeated.as_ref().unwrap_or(program).ops(most_bytes));
    let machine = Machine {
        vram_bytes: setting.vram_bytes,
        ram_bytes: setting.ram_bytes,
        link: setting.link,
        issue_us: program.issue_us,
        wake_us: WAKE_US,
    };
    let mut watched = Watched::new(&script, setting.link);
    let costs = machine.play(&script, &mut watched).unwrap();
    watched.watch.finish();
    let last = watched.online.residency().sight().in_place;
    Run { last, summary: watched.watch.summary(), costs, said: watched.said }
}

fn setting(vram_bytes: u64, iterations: usize) -> Setting {
    Setting { vram_bytes, ram_bytes: 64 << 30, link: Link::gb_per_s(54.8, 54.9, 100.7), iterations }
}

fn shipped(name: &str) -> Program {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces").join(name);
    let mut bytes = Vec::new();
    GzDecoder::new(fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    Program::from_trace(trace::events(&bytes).unwrap().into_iter())
}

/// What of the figure is not an iteration's, or cannot be.
fn assert_possible(run: &Run) {
    let summary = &run.summary;
    assert!(summary.bound_micros <= summary.iterations_micros, "{summary:?}");
    assert!(summary.in_vram_micros <= summary.iterations_micros, "{summary:?}");
    assert!(summary.iterations_micros <= summary.watched_micros + 1, "{summary:?}");
    assert!(summary.starved_micros <= summary.watched_micros, "{summary:?}");
    let whole: f64 = run.costs.iter().map(|cost| cost.micros).sum();
    assert!(summary.watched_micros as f64 <= whole + 1.0, "{summary:?} in {whole}");
    if let Ok(percent) = summary.percent_of_bound() {
        assert!((0.0..=100.0).contains(&percent), "{percent}");
    }
}

#[test]
fn compare_all() {
    for name in ["llama-1-token.trc.gz", "llama-512-tokens.trc.gz", "resnet50-batch128.trc.gz"] {
        let program = shipped(name);
        for percent in [105, 110, 150, 200, 300] {
            let vram_bytes = program.peak_bytes() * 100 / percent;
            let setting = setting(vram_bytes, 40);
            let told = compare(&program, &setting, &[Way::Emuv]).unwrap();
            let took = told.outcomes[0].micros;
            let run = run(&program, &setting);
            assert_possible(&run);
            let s = &run.summary;
            let rounds = program.rounds().unwrap();
            println!(
                "works {} in place per it: sim {:.0} MB, live {:.0} MB {:?} starved {:.1} total {}",
                rounds.works,
                told.outcomes[0].in_place_bytes / 1e6,
                s.iterations_in_place_bytes as f64 / s.iterations as f64 / 1e6,
                run.last,
                s.starved_micros as f64 / s.watched_micros as f64,
                s.watched_micros
            );
            let n = s.iterations.max(1) as f64 * 1e3;
            println!(
                "{name} {percent}: simulator {:.1} ms bound {:.1} C {:.1} in {:.0} out {:.0} -> {:.1} % | live {:?} its {} {:.1} ms bound {:.1} C {:.1} unsure {:.1} in {:.0} out {:.0} {} {:?} {:?}",
                took / 1e3,
                told.bound_micros() / 1e3,
                told.in_vram_micros / 1e3,
                told.bound.in_bytes / 1e6,
                told.bound.out_bytes / 1e6,
                told.bound_micros() / took * 100.0,
                s.percent_of_bound(),
                s.iterations,
                s.iterations_micros as f64 / n,
                s.bound_micros as f64 / n,
                s.in_vram_micros as f64 / n,
                s.unsure_micros as f64 / n,
                s.bound_in_bytes as f64 / n / 1e3,
                s.bound_out_bytes as f64 / n / 1e3,
                s.works_per_iteration,
                run.said,
                s.remedy(Card { budget_bytes: vram_bytes, physical_bytes: 0 }),
            );
        }
    }
}
