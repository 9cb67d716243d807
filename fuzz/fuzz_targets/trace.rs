//! A recorded trace: read as far as it makes sense, written and read again the same, and made into a program.
#![no_main]

use emuv_policy::{
    replay::Program,
    trace::{self, Event, MAGIC, Recorder},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    assert!(trace::read(data).is_none() || data.starts_with(&MAGIC));
    let bytes = [&MAGIC[..], data].concat();
    let events: Vec<(u64, Event)> = trace::read(&bytes).expect("it begins as one").collect();
    let mut recorder = Recorder::new();
    for (time, event) in &events {
        recorder.set_time(*time);
        recorder.record(event);
    }
    let again: Vec<(u64, Event)> = trace::read(&recorder.take()).expect("it begins as one").collect();
    assert_eq!(again, events);
    let program = Program::from_trace(events.into_iter());
    let _ = program.period();
    assert!(program.round_micros().is_finite());
});
