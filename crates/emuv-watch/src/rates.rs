//! Rates: what has changed since the sample before.
//!
//! A sample that comes less than [`SHORTEST_MICROS`] after the one that rates were last measured from shows those rates
//! again: two readers of one sampler do not spoil each other's. What a process publishes of its speed
//! ([`emuv_policy::figure`]) it publishes every half second; so that is measured over at least [`FIGURE_MICROS`].

use std::{collections::HashMap, sync::Arc};

use emuv_policy::figure::Summary;
use emuv_state::{DeviceRecord, ProcessRecord};

use crate::snapshot::Rates;

/// The shortest time that rates are measured over.
pub(crate) const SHORTEST_MICROS: u64 = 100_000;

/// The same, for what is published every half second.
const FIGURE_MICROS: u64 = 900_000;

/// How long an old percentage counts as the last few iterations'.
const LATELY_MICROS: u64 = 30_000_000;

/// One program's use of one device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    run: Arc<str>,
    pid: u32,
    start_ticks: u64,
    generation: u64,
    ordinal: usize,
}

/// What was known of it.
#[derive(Debug)]
struct Known {
    moved_in: u64,
    moved_out: u64,
    launches: u64,
    rates: Option<Rates>,
    figure_at: u64,
    starved_micros: u64,
    in_place_bytes: u64,
    iterations_at: u64,
    iterations: Summary,
    lately: Option<f64>,
    round: u64,
}

/// What changed of one program's use of one device.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Change {
    pub rates: Option<Rates>,
    pub percent_of_bound_lately: Option<f64>,
}

/// The sample before.
#[derive(Debug, Default)]
pub(crate) struct History {
    at: Option<u64>,
    now: u64,
    round: u64,
    /// Since [`Self::at`]; `None` in a first sample and in one that shows old rates.
    over_micros: Option<u64>,
    measured_over: Option<u64>,
    known: HashMap<Key, Known>,
}

impl History {
    /// A sample begins. Gives over how long the rates are measured that it will show.
    pub fn begin(&mut self, now_micros: u64) -> Option<u64> {
        self.round += 1;
        self.now = now_micros;
        let over = self.at.map(|at| now_micros.saturating_sub(at));
        self.over_micros = over.filter(|over| *over >= SHORTEST_MICROS);
        if self.over_micros.is_some() || self.at.is_none() {
            self.at = Some(now_micros);
            self.measured_over = self.over_micros.or(self.measured_over);
        }
        self.measured_over
    }

    /// What has changed of this device.
    pub fn change(&mut self, run: &Arc<str>, process: &ProcessRecord, device: &DeviceRecord) -> Change {
        let key = Key {
            run: Arc::clone(run),
            pid: process.pid,
            start_ticks: process.start_ticks,
            generation: process.generation,
            ordinal: device.ordinal,
        };
        let (now, round, over) = (self.now, self.round, self.over_micros);
        // In a sample that shows old rates a new process waits for the next: it was not there when they were measured.
        if over.is_none() && self.at != Some(now) && !self.known.contains_key(&key) {
            return Change::default();
        }
        let known = self.known.entry(key).or_insert_with(|| Known::new(device, now));
        known.round = round;
        if let Some(over) = over.filter(|_| known.figure_at != now || known.rates.is_some()) {
            known.measure(device, now, over);
        }
        Change { rates: known.rates, percent_of_bound_lately: known.lately }
    }

    /// The sample ends: who was not in it is forgotten.
    pub fn end(&mut self) {
        let round = self.round;
        self.known.retain(|_, known| known.round == round);
    }
}

impl Known {
    fn new(device: &DeviceRecord, now: u64) -> Self {
        Self {
            moved_in: device.promoted_bytes,
            moved_out: device.evicted_bytes,
            launches: device.launches,
            rates: None,
            figure_at: now,
            starved_micros: device.figure.starved_micros,
            in_place_bytes: device.figure.in_place_bytes,
            iterations_at: now,
            iterations: device.figure,
            lately: None,
            round: 0,
        }
    }

    fn measure(&mut self, device: &DeviceRecord, now: u64, over: u64) {
        let figure = &device.figure;
        let mut rates = Rates {
            in_bytes_per_second: per_second(device.promoted_bytes, self.moved_in, over),
            out_bytes_per_second: per_second(device.evicted_bytes, self.moved_out, over),
            launches_per_second: per_second(device.launches, self.launches, over),
            ..self.rates.unwrap_or_default()
        };
        (self.moved_in, self.moved_out) = (device.promoted_bytes, device.evicted_bytes);
        self.launches = device.launches;
        let figure_over = now.saturating_sub(self.figure_at);
        if figure_over >= FIGURE_MICROS {
            rates.in_place_bytes_per_second = per_second(figure.in_place_bytes, self.in_place_bytes, figure_over);
            let waited = per_second(figure.starved_micros, self.starved_micros, figure_over) / 1e4;
            rates.gpu_waited_percent = waited.min(100.0);
            (self.in_place_bytes, self.starved_micros) = (figure.in_place_bytes, figure.starved_micros);
            self.figure_at = now;
        }
        self.rates = Some(rates);
        let lately = since(figure, &self.iterations);
        if let Ok(percent) = lately.percent_of_bound() {
            self.lately = Some(percent);
            (self.iterations, self.iterations_at) = (*figure, now);
        } else if now.saturating_sub(self.iterations_at) > LATELY_MICROS {
            self.lately = None;
            (self.iterations, self.iterations_at) = (*figure, now);
        }
    }
}

/// The iterations after `before`.
fn since(figure: &Summary, before: &Summary) -> Summary {
    Summary {
        iterations: figure.iterations.saturating_sub(before.iterations),
        iterations_micros: figure.iterations_micros.saturating_sub(before.iterations_micros),
        in_vram_micros: figure.in_vram_micros.saturating_sub(before.in_vram_micros),
        bound_micros: figure.bound_micros.saturating_sub(before.bound_micros),
        unsure_micros: figure.unsure_micros.saturating_sub(before.unsure_micros),
        ..*figure
    }
}

/// Counters of a process that went backwards (its file was damaged) did not change.
#[allow(clippy::cast_precision_loss)] // Figures for people.
fn per_second(now: u64, before: u64, over_micros: u64) -> f64 {
    now.saturating_sub(before) as f64 * 1e6 / over_micros.max(1) as f64
}
