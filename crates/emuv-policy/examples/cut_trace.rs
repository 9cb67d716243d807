//! Makes a small trace of a large one: `cut_trace IN OUT ROUNDS [TIMED]`.
//!
//! What is kept is the beginning and so many rounds of the loop, without what `emuv simulate` does not read. A program that
//! was recorded with everything in VRAM has nothing to say about reading RAM in place; `TIMED` is a trace of the same
//! program from which that is taken (kinds of work have other numbers there and are recognised by their order).
//! The output is compressed with gzip.

use std::{collections::HashMap, fs, io::Write};

use emuv_policy::{
    replay::Program,
    trace::{self, Event, Recorder},
};
use flate2::{Compression, write::GzEncoder};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, to, rounds, timed @ ..] = &arguments[..] else {
        return Err("usage: cut_trace IN OUT ROUNDS [TIMED]".into());
    };
    let events = read(from)?;
    let found = Program::from_trace(events.clone().into_iter()).rounds().ok_or("there is no loop in it")?;
    let works = found.first_work + rounds.parse::<usize>()?.min(found.count) * found.works;
    let mut kept = cut(events, works);
    if let Some(timed) = timed.first() {
        let measured = measured(&kept, &read(timed)?)?;
        let end = kept.last().map_or(0, |(time, _)| *time);
        kept.extend(measured.into_iter().map(|event| (end, event)));
    }
    let mut recorder = Recorder::new();
    for (time, event) in &kept {
        recorder.set_time(*time);
        recorder.record(event);
    }
    let mut file = GzEncoder::new(fs::File::create(to)?, Compression::best());
    file.write_all(&recorder.take())?;
    file.finish()?;
    Ok(())
}

fn read(path: &str) -> Outcome<Vec<(u64, Event)>> {
    trace::events(&fs::read(path)?).map_err(|why| format!("{path} {why}").into())
}

/// The events up to so many works and their completion.
fn cut(events: Vec<(u64, Event)>, works: usize) -> Vec<(u64, Event)> {
    let mut begun = 0;
    let mut over = false;
    let mut last = HashMap::new();
    let mut kept = Vec::new();
    for (time, event) in events {
        match event {
            Event::Begun { .. } if begun == works => over = true,
            Event::Begun { stream, number, .. } if !over => {
                begun += 1;
                last.insert(stream, number);
                kept.push((time, event));
            }
            // Of what comes later, only when these works were done.
            Event::Completed { stream, number } => {
                let Some(most) = last.get(&stream).copied() else { continue };
                kept.push((time, Event::Completed { stream, number: number.min(most) }));
                if over && number >= most {
                    last.remove(&stream);
                }
            }
            Event::Held { hold, for_data, .. } if !over => {
                kept.push((time, Event::Held { hold, for_data, chunks: Vec::new() }));
            }
            // Learned about the works, whenever.
            Event::Measured { .. } | Event::Link { .. } => kept.push((time, event)),
            Event::Unheld { .. } | Event::SearchAll { .. } | Event::Escaped { .. } => {}
            _ if over => {}
            _ => kept.push((time, event)),
        }
    }
    kept
}

/// What `timed` has measured, by the kinds of `events`.
fn measured(events: &[(u64, Event)], timed: &[(u64, Event)]) -> Outcome<Vec<Event>> {
    let kinds = |events: &[(u64, Event)]| -> Vec<u64> {
        let kind = |(_, event): &(u64, Event)| if let Event::Begun { kind, .. } = event { Some(*kind) } else { None };
        events.iter().filter_map(kind).collect()
    };
    let mut names = HashMap::new();
    for (there, here) in kinds(timed).into_iter().zip(kinds(events)) {
        if *names.entry(there).or_insert(here) != here {
            return Err("these are not the same program".into());
        }
    }
    let named = |(_, event): &(u64, Event)| match event {
        Event::Measured { kind, ram_bytes, micros } => {
            names.get(kind).map(|kind| Event::Measured { kind: *kind, ram_bytes: *ram_bytes, micros: *micros })
        }
        _ => None,
    };
    Ok(timed.iter().filter_map(named).collect())
}
