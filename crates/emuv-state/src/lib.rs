//! What emuV's processes share: the environment variables, the memory limits, the live counters of every
//! process ([`Ledger`]), the directory of a run ([`RunDir`]) and memory that one gives to another ([`sharing`]).
//!
//! Part of this crate is loaded into other people's programs. So nothing here panics or writes to the
//! standard streams, and what only the command line needs is behind the feature `cli`.

#[cfg(feature = "config")]
pub mod config;
pub mod env;
mod host;
mod ledger;
mod limits;
mod log_setting;
mod movement;
mod plain_file;
mod process;
#[cfg(feature = "cli")]
pub mod report;
mod run_dir;
mod runs;
pub mod sharing;
pub mod slices;
mod state_dir;
#[cfg(feature = "config")]
pub mod system;
mod timeline;
mod verdict;

/// Parsers of foreign bytes that nothing outside this crate calls but the fuzz targets (`fuzz/`).
#[doc(hidden)]
pub mod parsers {
    pub use crate::{
        ledger::{new_ledger, parse as ledger},
        process::parse_stat as process_stat,
        run_dir::pid_of as run_dir_pid,
    };
}

pub use host::HostMemory;
pub use ledger::{
    DeviceCounters, DeviceRecord, FigureCounters, Ledger, LedgerError, Ledgers, MAX_DEVICES, ProcessCounters,
    ProcessRecord, TierCounters, TierRecord, read_ledgers, uuid_text,
};
pub use limits::{Limits, MAX_SIZE, Setting};
pub use log_setting::{LogLevel, LogSetting};
pub use movement::Movement;
pub use process::process_start_ticks;
pub use run_dir::{RunDir, run_paths};
pub use runs::{RunEntry, Runs};
pub use state_dir::state_dir;
pub use timeline::{
    CostRecord, MOST_NATIVE_FRAMES, MOST_PYTHON_FRAMES, MarkRecord, NativeFrame, PythonFrame, Site, Timeline,
    TimelineRecord, read_timeline,
};
#[cfg(feature = "cli")]
pub use verdict::read_verdicts;
pub use verdict::{Verdict, verdict_file};
