//! What goes on under emuV on this machine, as one value: [`Snapshot`]. `emuv top` shows it, `emuv serve` publishes it.
//!
//! ```text
//! Places (state directories) -> runs -> ledgers  \
//!                            -> slices            >  Sampler::sample(now)  ->  Snapshot
//! Gpus (the driver's word)                       /        keeps the counters of the sample before: rates
//! ```
//!
//! *What holds:*
//!
//! 1. **Watching changes nothing.** Nothing is written, locked or swept, and no process is spoken to: who is watched pays
//!    nothing.
//! 2. **Whatever lies in the directories, there is a snapshot.** What cannot be used (damaged, of another emuV, somebody
//!    else's) is left out and named in [`Snapshot::problems`]. What others wrote is taken as untrusted: texts are made
//!    harmless ([`harmless`]), and a ledger counts only if the process that it names belongs to whoever wrote it, so that
//!    nobody can lend another's process a false name.
//! 3. **Unknown is `None`, never 0.**
//!
//! Time, directories and the driver are arguments.

mod gpus;
mod moment;
mod places;
mod rates;
mod sampler;
mod snapshot;
mod text;

pub use gpus::{GpuProcess, GpuReading, Gpus, NoGpus};
pub use moment::Moment;
pub use places::Places;
pub use sampler::Sampler;
pub use snapshot::{
    Counters, Gpu, GpuUse, Link, OtherProcess, Problem, ProblemKind, Process, ProcessDevice, Rates, SCHEMA, Slice,
    SliceTime, Snapshot, Speed, Tier,
};
pub use text::harmless;
