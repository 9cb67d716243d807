//! Traces that are made, not recorded: loops over chunks of 32 MiB, in a given order.
#![allow(clippy::unwrap_used, dead_code)] // Not every test uses all of it.

use emuv_policy::{
    StreamId, Tier,
    replay::Program,
    trace::{self, Event, Recorder, WorkFlags},
};

pub const CHUNK: u64 = 32 << 20;

/// A loop of works.
pub struct Loop {
    /// How many chunks there are.
    pub chunks: u64,
    /// How long a work takes with its chunk in VRAM, in microseconds.
    pub micros: u64,
    /// How much slower than the link it reads it in place.
    pub slowness: u64,
}

impl Loop {
    /// Each round touches the chunks in the order that `order` gives for it.
    pub fn trace(&self, rounds: u64, order: impl Fn(u64) -> Vec<u64>) -> Vec<u8> {
        let mut recorder = Recorder::new();
        recorder.record(&Event::Link { bytes_per_milli: 50_000_000 });
        for chunk in 0..self.chunks {
            let offset = chunk * CHUNK;
            recorder.record(&Event::Chunk { offset, bytes: CHUNK, tier: Tier::Vram, fixed: false });
            recorder.record(&Event::Extent { offset, bytes: CHUNK });
        }
        let stream = StreamId(1);
        let mut number = 0;
        for chunk in (0..rounds).flat_map(order) {
            number += 1;
            let chunks = vec![chunk * CHUNK];
            recorder.record(&Event::Begun { stream, number, kind: 5, flags: WorkFlags::default(), chunks });
            recorder.set_time(number * self.micros);
            recorder.record(&Event::Completed { stream, number });
        }
        let micros = CHUNK / 50_000 * self.slowness + self.micros;
        recorder.record(&Event::Measured { kind: 5, ram_bytes: CHUNK, micros });
        recorder.take()
    }

    pub fn program(&self, rounds: u64, order: impl Fn(u64) -> Vec<u64>) -> Program {
        Program::from_trace(trace::events(&self.trace(rounds, order)).unwrap().into_iter())
    }

    /// In order, again and again.
    pub fn cyclic(&self) -> Program {
        self.program(8, |_| (0..self.chunks).collect())
    }

    /// In order and back.
    pub fn palindromic(&self) -> Program {
        self.program(8, |_| (0..self.chunks).chain((0..self.chunks).rev()).collect())
    }

    /// Any chunk, at random: there is no loop.
    pub fn random(&self, works: u64, seed: u64) -> Program {
        let mut number = numbers(seed);
        let order: Vec<u64> = (0..works).map(|_| number() % self.chunks).collect();
        self.program(1, |_| order.clone())
    }
}

/// Numbers at random, of 31 bits.
pub fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    }
}
