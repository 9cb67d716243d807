//! The snapshot: what is shown and published. Sizes are bytes; what is unknown is `null`, never 0. Fields are only added
//! within a [`SCHEMA`]; one that changes its meaning makes a new one.

use serde::Serialize;

/// The version of the format.
pub const SCHEMA: u32 = 1;

/// Everything, at one moment.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Snapshot {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Milliseconds since 1970.
    pub time_unix_millis: u64,
    /// Over how long the rates were measured; `None` in a first sample, which has none.
    pub rates_over_micros: Option<u64>,
    /// The GPUs: those of the driver in its order, then others that programs and slices name (simulated ones).
    pub gpus: Vec<Gpu>,
    /// Why the driver says nothing, where it does not.
    pub no_driver_because: Option<String>,
    /// The slices, by registry and number.
    pub slices: Vec<Slice>,
    /// The processes that run under emuV, by start time.
    pub processes: Vec<Process>,
    /// Processes that the driver shows and that do not run under emuV.
    pub others: Vec<OtherProcess>,
    /// What was left out, and why.
    pub problems: Vec<Problem>,
}

/// A GPU.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Gpu {
    /// As in nvidia-smi; `None`: the driver does not show it.
    pub index: Option<u32>,
    pub uuid: String,
    pub name: Option<String>,
    pub simulated: bool,
    pub vram_total_bytes: Option<u64>,
    /// By everybody, by the driver's word; of a GPU that the driver does not show: by processes under emuV.
    pub vram_used_bytes: Option<u64>,
    /// Of the time lately, how much something ran on it.
    pub busy_percent: Option<u32>,
    /// The link to the host, as the last process that needed it has measured it.
    pub link: Option<Link>,
    /// What processes under emuV use of it.
    pub under_emuv: GpuUse,
}

/// A link's speeds.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Link {
    /// Into VRAM.
    pub in_bytes_per_second: u64,
    /// Out of it.
    pub out_bytes_per_second: u64,
    /// Both ways at once, together.
    pub both_bytes_per_second: u64,
}

/// What a group of processes uses.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct GpuUse {
    pub process_count: usize,
    pub vram_bytes: u64,
    pub ram_bytes: u64,
    /// `None` until two samples were taken.
    pub rates: Option<Rates>,
}

/// A slice of a GPU.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Slice {
    pub name: String,
    /// Its folder: unlike the name, it is one slice's on the machine.
    pub dir: String,
    pub instance: u32,
    pub gpu_uuid: String,
    pub simulated: bool,
    pub enabled: bool,
    pub vram_limit_bytes: u64,
    pub ram_limit_bytes: u64,
    /// `None`, here and below: this user may not see it.
    pub vram_used_bytes: Option<u64>,
    pub ram_used_bytes: Option<u64>,
    pub process_count: Option<usize>,
    pub weight: u32,
    pub cap_percent: Option<u32>,
    pub schedule: Option<String>,
    pub uid: u32,
    pub gid: Option<u32>,
    pub time: Option<SliceTime>,
    /// Of its processes that are in [`Snapshot::processes`].
    pub rates: Option<Rates>,
}

/// The GPU's time, as a slice has had it.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct SliceTime {
    pub used_micros: u64,
    /// Lately, of wall time.
    pub share_percent: Option<f64>,
    pub turns: u64,
    /// Works that had to wait for a turn.
    pub held: u64,
    pub in_turn: bool,
    pub wants: bool,
}

/// A process under emuV.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Process {
    pub pid: u32,
    /// Clock ticks from the machine's start to the process's: with the pid, unique while the machine is up. `None` for a
    /// process that is known only by what it says in its slice.
    pub start_ticks: Option<u64>,
    /// Whether the pid means something here; it does not for one in a container.
    pub same_pid_namespace: bool,
    pub uid: Option<u32>,
    /// The program's name, without its path.
    pub program: String,
    /// The beginning of the command line.
    pub command: String,
    /// The run's directory.
    pub run: Option<String>,
    /// The name of its slice.
    pub slice: Option<String>,
    /// The folder of its slice.
    pub slice_dir: Option<String>,
    /// Pinned RAM over all devices; the budget is the process's.
    pub ram: Tier,
    /// Errors of emuV's own.
    pub internal_errors: u64,
    pub devices: Vec<ProcessDevice>,
}

/// A GPU as one process uses it.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ProcessDevice {
    /// CUDA's number of it in the process.
    pub ordinal: Option<usize>,
    pub gpu_uuid: String,
    pub vram: Tier,
    pub ram: Tier,
    /// `None`: the process has no ledger (a container's), or it has none that can be read.
    pub counters: Option<Counters>,
    /// How fast it is, next to what GPU and link allow.
    pub speed: Option<Speed>,
    /// `None` until two samples were taken.
    pub rates: Option<Rates>,
}

/// One tier.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Tier {
    pub used_bytes: u64,
    pub budget_bytes: Option<u64>,
    pub peak_bytes: Option<u64>,
}

/// Counts since the process started; the fields are those of [`emuv_state::DeviceCounters`].
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    pub unspilled_bytes: u64,
    pub allocations: u64,
    pub frees: u64,
    pub refused: u64,
    /// Bytes placed in RAM, ever.
    pub spilled_bytes: u64,
    pub launches: u64,
    /// Bytes moved into VRAM.
    pub in_bytes: u64,
    /// Bytes moved out of it.
    pub out_bytes: u64,
    /// Bytes read in place, over the link.
    pub in_place_bytes: u64,
    /// Calls that waited for data to move.
    pub held: u64,
    /// How long they waited, all together.
    pub held_micros: u64,
    /// How long the GPU had nothing to do meanwhile.
    pub gpu_waited_micros: u64,
    /// How long that was looked at.
    pub watched_micros: u64,
}

/// How close a process is to what GPU and link allow ([`emuv_policy::figure`]).
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Speed {
    /// Over all measured iterations.
    pub percent_of_bound: Option<f64>,
    /// Over the last few.
    pub percent_of_bound_lately: Option<f64>,
    pub unknown_because: Option<String>,
    /// Of the speed with everything in VRAM.
    pub percent_of_vram_speed: Option<f64>,
    pub iterations: u64,
    pub seconds_per_iteration: Option<f64>,
    /// What was said of it if it is very slow, and what helps.
    pub warning: Option<String>,
    pub remedy: Option<String>,
}

/// Changes by the second, between the last two samples.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Rates {
    pub in_bytes_per_second: f64,
    pub out_bytes_per_second: f64,
    pub in_place_bytes_per_second: f64,
    pub launches_per_second: f64,
    /// Of the time, how much the GPU waited for data, in percent; of a group: all together.
    pub gpu_waited_percent: f64,
}

/// A process that uses a GPU without emuV.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct OtherProcess {
    pub pid: u32,
    pub uid: Option<u32>,
    pub program: String,
    pub gpu_uuid: String,
    pub vram_bytes: Option<u64>,
}

/// Something that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What kind of thing it is.
    pub kind: ProblemKind,
    /// One line, with the file.
    pub words: String,
}

/// Why something was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// It is another user's.
    NotAllowed,
    /// It cannot be read.
    Unreadable,
    /// It is damaged, or nothing of emuV's.
    Damaged,
    /// It is of another version of emuV.
    OtherVersion,
    /// It names a process that is not its writer's.
    Foreign,
}

impl Snapshot {
    /// The GPU of that UUID.
    pub fn gpu(&self, uuid: &str) -> Option<&Gpu> {
        self.gpus.iter().find(|gpu| gpu.uuid == uuid)
    }
}

impl Rates {
    /// Adds those of another process.
    pub(crate) fn add(&mut self, other: &Self) {
        self.in_bytes_per_second += other.in_bytes_per_second;
        self.out_bytes_per_second += other.out_bytes_per_second;
        self.in_place_bytes_per_second += other.in_place_bytes_per_second;
        self.launches_per_second += other.launches_per_second;
        self.gpu_waited_percent += other.gpu_waited_percent;
    }
}
