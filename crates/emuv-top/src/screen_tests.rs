//! Screens as they look, at the sizes that people have. The files in `screens/` are what is expected; with
//! `EMUV_BLESS=1` they are written anew.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

use std::{fs, path::PathBuf};

use emuv_watch::{
    Counters, Gpu, GpuUse, Link, OtherProcess, Problem, ProblemKind, Process, ProcessDevice, Rates, Slice, SliceTime,
    Snapshot, Speed, Tier,
};
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
};

use super::{
    model::{Effect, Ending, Event, Mode, Model, Target},
    plain,
    screen::draw,
    words::Look,
};

const GIB: u64 = 1 << 30;
const BLOCKS: Look = Look { colour: true, blocks: true };
const ASCII: Look = Look { colour: false, blocks: false };

fn rates(into: f64, out: f64, launches: f64, waited: f64) -> Rates {
    Rates {
        in_bytes_per_second: into * 1e9,
        out_bytes_per_second: out * 1e9,
        in_place_bytes_per_second: 0.0,
        launches_per_second: launches,
        gpu_waited_percent: waited,
    }
}

fn tier(used: u64, budget: u64) -> Tier {
    Tier { used_bytes: used, budget_bytes: Some(budget), peak_bytes: Some(used) }
}

fn gpu(index: u32, total: u64, used: u64) -> Gpu {
    Gpu {
        index: Some(index),
        uuid: format!("GPU-{index}"),
        name: Some("NVIDIA GeForce RTX 4090".into()),
        vram_total_bytes: Some(total),
        vram_used_bytes: Some(used),
        busy_percent: Some(97),
        ..Gpu::default()
    }
}

fn slice(number: u32, used: u64) -> Slice {
    Slice {
        name: format!("ml-{number}"),
        dir: format!("/run/emuv/vgpu/ml-{number}"),
        instance: number,
        gpu_uuid: "GPU-1".into(),
        simulated: false,
        enabled: number != 3,
        vram_limit_bytes: 6 * GIB,
        ram_limit_bytes: 2 * GIB,
        vram_used_bytes: Some(used),
        ram_used_bytes: Some(GIB),
        process_count: Some(1),
        weight: 100,
        cap_percent: None,
        schedule: None,
        uid: 1000,
        gid: None,
        time: Some(SliceTime {
            used_micros: 1_000_000,
            share_percent: Some(48.3),
            turns: 1234,
            held: 5,
            in_turn: number == 1,
            wants: true,
        }),
        rates: None,
    }
}

struct Used(u64, u64, Rates, Option<f64>);

fn process(pid: u32, command: &str, gpu: u32, slice: Option<u32>, used: &Used) -> Process {
    let Used(vram, ram, rates, bound) = used;
    let speed = Speed {
        percent_of_bound: *bound,
        percent_of_bound_lately: *bound,
        percent_of_vram_speed: bound.map(|bound| bound / 2.0),
        iterations: 120,
        seconds_per_iteration: Some(0.0603),
        warning: Some("data that is not in VRAM takes up 81 % of the time".into()),
        remedy: Some("--vram 11.3G would allow half of VRAM speed".into()),
        ..Speed::default()
    };
    Process {
        pid,
        start_ticks: Some(u64::from(pid)),
        same_pid_namespace: true,
        uid: Some(1000),
        program: command.split(' ').next().unwrap_or_default().into(),
        command: command.into(),
        run: None,
        slice: slice.map(|number| format!("ml-{number}")),
        slice_dir: slice.map(|number| format!("/run/emuv/vgpu/ml-{number}")),
        ram: tier(*ram, 32 * GIB),
        internal_errors: 0,
        devices: vec![ProcessDevice {
            ordinal: Some(0),
            gpu_uuid: format!("GPU-{gpu}"),
            vram: tier(*vram, 22 * GIB),
            ram: tier(*ram, 32 * GIB),
            counters: Some(Counters { spilled_bytes: 2 * ram, ..Counters::default() }),
            speed: bound.map(|_| speed),
            rates: Some(*rates),
        }],
    }
}

/// Two GPUs, three slices, processes of all kinds.
fn snapshot() -> Snapshot {
    let mut first = gpu(0, 24 * GIB, 23 * GIB);
    first.link = Some(Link {
        in_bytes_per_second: 25_000_000_000,
        out_bytes_per_second: 24_100_000_000,
        both_bytes_per_second: 40_000_000_000,
    });
    let training = rates(12.1, 8.4, 1240.0, 12.0);
    let use_of = |vram_bytes, ram_bytes, rates| GpuUse { process_count: 1, vram_bytes, ram_bytes, rates: Some(rates) };
    first.under_emuv = use_of(20 * GIB, 9 * GIB, training);
    let mut second = gpu(1, 24 * GIB, 9 * GIB);
    second.under_emuv = use_of(9 * GIB, 2 * GIB, rates(0.0, 0.0, 80.0, 0.0));
    Snapshot {
        schema: 1,
        time_unix_millis: 1_764_111_065_000,
        rates_over_micros: Some(1_000_000),
        gpus: vec![first, second],
        no_driver_because: None,
        slices: vec![slice(1, 4 * GIB), slice(2, 5 * GIB), slice(3, 0)],
        processes: vec![
            process(4711, "python3 train.py --batch 128", 0, None, &Used(20 * GIB, 9 * GIB, training, Some(84.0))),
            process(4802, "server --port 80", 1, Some(1), &Used(4 * GIB, GIB, rates(0.0, 0.0, 75.0, 0.0), None)),
            process(4803, "漢字-program x", 1, Some(2), &Used(5 * GIB, GIB, rates(0.0, 0.0, 5.0, 0.0), None)),
        ],
        others: vec![OtherProcess {
            pid: 900,
            uid: Some(0),
            program: "Xorg".into(),
            gpu_uuid: "GPU-0".into(),
            vram_bytes: Some(3 * GIB),
        }],
        problems: vec![Problem {
            kind: ProblemKind::Damaged,
            words: "/run/emuv/run-1-0/1.ledger: not a ledger".into(),
        }],
    }
}

/// A minute of a training that moves more and more.
fn model(look: Look) -> Model {
    let mut model = Model::new(look, 1000);
    for second in 0..60_u32 {
        let mut snapshot = snapshot();
        let rates = rates(f64::from(second) / 3.0, f64::from(second % 10), 1240.0, 12.0);
        snapshot.gpus[0].under_emuv.rates = Some(rates);
        model.update(Event::Sample(Box::new(snapshot)));
    }
    model.update(Event::Sample(Box::new(snapshot())));
    model
}

fn screen(model: &Model, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, model)).unwrap();
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..height {
        let mut line = String::new();
        let mut skip = 0;
        for x in 0..width {
            // The second place of a wide letter is not its own.
            let symbol = buffer[(x, y)].symbol();
            if skip == 0 {
                line.push_str(symbol);
                skip = ratatui::text::Span::raw(symbol).width();
            }
            skip = usize::saturating_sub(skip, 1);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn expect(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/screens").join(name);
    if std::env::var_os("EMUV_BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "not as in {}:\n{text}", path.display());
}

fn press(model: &mut Model, code: KeyCode) -> Effect {
    model.update(Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn letter(model: &mut Model, letter: char) -> Effect {
    press(model, KeyCode::Char(letter))
}

fn programs(model: &Model) -> Vec<&str> {
    model.rows.iter().map(|row| row.program.as_str()).collect()
}

#[test]
fn it_looks_like_this_at_the_usual_size() {
    expect("80x24.txt", &screen(&model(BLOCKS), 80, 24));
}

#[test]
fn it_looks_like_this_on_a_large_screen_with_a_process_chosen() {
    let mut model = model(BLOCKS);
    press(&mut model, KeyCode::Down);
    expect("200x50.txt", &screen(&model, 200, 50));
}

#[test]
fn it_looks_like_this_without_utf_8_and_with_a_question() {
    let mut model = model(ASCII);
    press(&mut model, KeyCode::Down);
    let target = Target { pid: 4711, name: "python3 train.py --batch 128".into(), uid: Some(1000) };
    model.update(Event::Held(Ok(target)));
    let text = screen(&model, 80, 24);
    assert!(text.replace("漢字", "").is_ascii(), "{text}");
    expect("question.txt", &text);
}

#[test]
fn an_empty_machine_says_what_to_do() {
    let mut model = Model::new(BLOCKS, 1000);
    let empty = Snapshot { no_driver_because: Some("no NVIDIA driver".into()), ..Snapshot::default() };
    model.update(Event::Sample(Box::new(empty)));
    expect("empty.txt", &screen(&model, 80, 24));
}

#[test]
fn the_text_form_looks_like_this() {
    expect("once.txt", &plain::text(&snapshot(), ASCII));
}

#[test]
fn no_size_makes_it_panic_and_the_help_has_room_at_the_usual_one() {
    let mut model = model(BLOCKS);
    letter(&mut model, '?');
    expect("help.txt", &screen(&model, 80, 24));
    for mode in [Mode::Help, Mode::Filter(String::new()), Mode::Table] {
        (model.details, model.mode) = (mode == Mode::Table, mode);
        for width in [0, 1, 5, 9, 10, 11, 19, 20, 21, 30, 55, 56, 57, 79, 80, 81, 120, 300] {
            for height in (0..26).chain([36, 100]) {
                screen(&model, width, height);
            }
        }
    }
}

#[test]
fn many_gpus_and_slices_leave_room_for_the_table() {
    let mut many = snapshot();
    many.gpus = (0..16).map(|index| gpu(index, 80 * GIB, GIB)).collect();
    many.slices = (0..64).map(|number| slice(number, GIB)).collect();
    let mut model = Model::new(BLOCKS, 1000);
    model.update(Event::Sample(Box::new(many)));
    let text = screen(&model, 80, 24);
    for words in ["and 9 more GPUs", "and 59 more slices", "4711", "q quit"] {
        assert!(text.contains(words), "{words} is not in\n{text}");
    }
}

#[test]
fn without_colours_nothing_is_coloured() {
    let mut terminal = Terminal::new(TestBackend::new(120, 40)).unwrap();
    terminal.draw(|frame| draw(frame, &model(ASCII))).unwrap();
    let reset = ratatui::style::Color::Reset;
    assert!(terminal.backend().buffer().content().iter().all(|cell| (cell.fg, cell.bg) == (reset, reset)));
}

#[test]
fn the_order_is_chosen_and_reversed_and_the_selection_stays_with_its_process() {
    let mut model = model(BLOCKS);
    assert_eq!(programs(&model), ["python3", "漢字-program", "server", "Xorg"]);
    press(&mut model, KeyCode::End);
    letter(&mut model, 'r');
    assert_eq!(programs(&model), ["Xorg", "server", "漢字-program", "python3"]);
    assert_eq!(model.selected_place(), Some(0));
    letter(&mut model, 'r');
    letter(&mut model, 'S');
    assert_eq!(
        (programs(&model), model.selected_place()),
        (vec!["Xorg", "python3", "server", "漢字-program"], Some(0))
    );
    letter(&mut model, 's');
    letter(&mut model, 's');
    assert_eq!(model.sort.name(), "VRAM");
}

#[test]
fn a_filter_is_typed_kept_taken_back_and_dropped() {
    let mut model = model(BLOCKS);
    letter(&mut model, '/');
    "ML-2q".chars().for_each(|typed| drop(letter(&mut model, typed)));
    assert!(model.rows.is_empty());
    press(&mut model, KeyCode::Backspace);
    assert_eq!(programs(&model), ["漢字-program"]);
    press(&mut model, KeyCode::Enter);
    assert_eq!((model.mode.clone(), model.filter.as_str()), (Mode::Table, "ML-2"));
    letter(&mut model, '/');
    letter(&mut model, 'x');
    press(&mut model, KeyCode::Esc);
    assert_eq!(programs(&model), ["漢字-program"]);
    press(&mut model, KeyCode::Esc);
    assert_eq!(model.rows.len(), 4);
}

#[test]
fn a_signal_goes_only_to_a_process_that_was_chosen_held_and_asked_about() {
    let mut model = model(BLOCKS);
    assert_eq!(letter(&mut model, 'k'), Effect::Nothing);
    assert!(model.said.as_ref().is_some_and(|said| said.contains("choose a process")));
    assert_eq!(letter(&mut model, 'y'), Effect::Nothing, "nothing was asked");
    press(&mut model, KeyCode::Home);
    let key = model.rows[0].key.clone();
    assert_eq!(letter(&mut model, 'k'), Effect::Hold(key));
    let target = Target { pid: 4711, name: "python3".into(), uid: None };
    for (answer, effect) in [
        ('n', Effect::Release),
        ('k', Effect::Release),
        ('y', Effect::Signal(Ending::Asked)),
        ('K', Effect::Signal(Ending::Killed)),
    ] {
        model.update(Event::Held(Ok(target.clone())));
        // What comes in meanwhile changes nothing of the question.
        model.update(Event::Sample(Box::default()));
        assert_eq!(model.mode, Mode::Ask(target.clone()));
        assert_eq!((letter(&mut model, answer), model.mode.clone()), (effect, Mode::Table));
    }
    model.update(Event::Signalled("SIGTERM sent to process 4711".into()));
    assert!(screen(&model, 80, 24).contains("SIGTERM sent"));
}

#[test]
fn a_process_in_a_container_is_not_ended_by_its_number() {
    let mut model = Model::new(BLOCKS, 1000);
    let mut contained = snapshot();
    contained.processes.truncate(1);
    contained.processes[0].same_pid_namespace = false;
    contained.others.clear();
    model.update(Event::Sample(Box::new(contained)));
    press(&mut model, KeyCode::Home);
    assert_eq!(letter(&mut model, 'k'), Effect::Nothing);
    assert!(model.said.is_some_and(|said| said.contains("container")));
}

#[test]
fn when_the_chosen_process_is_gone_its_neighbour_is_chosen_and_when_all_are_gone_none() {
    let mut model = model(BLOCKS);
    press(&mut model, KeyCode::End);
    let mut fewer = snapshot();
    fewer.others.clear();
    model.update(Event::Sample(Box::new(fewer)));
    assert_eq!(model.selected_place(), Some(2));
    model.update(Event::Sample(Box::default()));
    assert_eq!((model.selected_place(), model.selected.clone()), (None, None));
    press(&mut model, KeyCode::Down);
    assert_eq!(letter(&mut model, 'k'), Effect::Nothing);
}

#[test]
fn a_pause_stops_and_the_interval_changes_by_steps() {
    let mut model = model(BLOCKS);
    assert_eq!((letter(&mut model, ' '), model.paused), (Effect::Nothing, true));
    assert_eq!((letter(&mut model, ' '), model.paused), (Effect::Sample, false));
    letter(&mut model, '+');
    assert_eq!(model.interval_millis, 2000);
    (0..20).for_each(|_| drop(letter(&mut model, '-')));
    assert_eq!(model.interval_millis, 250);
    let control = |c| Event::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL));
    assert_eq!((model.update(control('z')), model.update(control('c'))), (Effect::Suspend, Effect::Quit));
    assert_eq!(letter(&mut model, 'q'), Effect::Quit);
}
