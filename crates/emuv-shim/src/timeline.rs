//! What a device holds and moves over time, kept for the report of a run (`emuv run --report`). Without one, each of these
//! calls is a look at an option. Nothing of it is on the way of a launch: samples are taken where counters are published, and
//! by the mover.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use emuv_cuda::types::CUdevice;
use emuv_policy::{Tier, Why, timeline::Sample};
use emuv_state::{CostRecord, DeviceCounters};

use crate::{
    arena::lock,
    log,
    sync::{Instant, Mutex},
};

/// The mover takes a sample that often while anything is going on.
const EACH_MICROS: u64 = 1000;

/// Allocations of which it is kept what was moved.
const COSTS: usize = 16;

/// See the module's head. One per device.
#[derive(Default)]
pub(crate) struct Timeline {
    kept: Option<Mutex<emuv_state::Timeline>>,
    /// When the last sample was taken.
    last_micros: AtomicU64,
}

impl Timeline {
    /// One that is kept beside the ledger of that name.
    pub fn create(run_dir: &Path, ledger: Option<&str>, ordinal: CUdevice) -> Self {
        let ordinal = usize::try_from(ordinal).ok();
        let kept = ledger.zip(ordinal).and_then(|(ledger, ordinal)| {
            let made = emuv_state::Timeline::create(run_dir, ledger, ordinal);
            made.map_err(|error| log::debug(format_args!("no timeline for the report: {error}"))).ok()
        });
        Self { kept: kept.map(Mutex::new), last_micros: AtomicU64::new(0) }
    }

    /// So much was copied.
    pub fn moved(&self, why: Why, to: Tier, bytes: u64) {
        if let Some(kept) = &self.kept {
            lock(kept).moved(why, to, bytes);
        }
    }

    /// Something has changed.
    pub fn sample(&self, began: Instant, counters: &DeviceCounters) {
        let Some(kept) = &self.kept else { return };
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        let sample = Sample {
            used_bytes: [load(&counters.vram.used_bytes), load(&counters.ram.used_bytes)],
            launches: load(&counters.launches),
            held_micros: load(&counters.held_micros),
            in_place_bytes: counters.figure.in_place_bytes(),
            remapped_bytes: load(&counters.remapped_bytes),
            ..Sample::default()
        };
        let mut kept = lock(kept);
        let micros = micros_since(began);
        kept.sample(micros, sample);
        self.last_micros.store(micros, Relaxed);
    }

    /// The same now and then.
    pub fn sample_if_due(&self, began: Instant, counters: &DeviceCounters) {
        if self.kept.is_some() && micros_since(began) >= self.last_micros.load(Relaxed) + EACH_MICROS {
            self.sample(began, counters);
        }
    }

    /// The program is at a place that it has a name for. False: nothing is kept.
    pub fn mark(&self, began: Instant, label: &str) -> bool {
        if let Some(kept) = &self.kept {
            lock(kept).mark(micros_since(began), label);
        }
        self.kept.is_some()
    }

    /// Keeps what was moved of so many allocations.
    pub fn set_costs(&self, costs: impl FnOnce(usize) -> Vec<CostRecord>) {
        if let Some(kept) = &self.kept {
            let costs = costs(COSTS);
            lock(kept).set_costs(&costs);
        }
    }
}

fn micros_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}
