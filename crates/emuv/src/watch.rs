//! What `emuv top` and `emuv serve` look at: this machine, through `emuv-watch`.

use std::env;

use emuv_watch::{Places, Sampler};

use crate::gpus::live::LiveGpus;

/// A sampler of this machine.
pub fn sampler() -> Sampler {
    Sampler::new(Places::from_env(|name| env::var(name).ok()), Box::new(LiveGpus::find()))
}
