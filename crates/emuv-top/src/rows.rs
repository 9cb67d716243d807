//! The rows of the table: one for each process and GPU, under emuV or not.

use std::cmp::Ordering;

use emuv_watch::Snapshot;

/// One process on one GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What it is of; the same in each sample.
    pub key: Key,
    /// Whether it runs under emuV.
    pub under_emuv: bool,
    /// The pid means something here.
    pub same_pid_namespace: bool,
    pub uid: Option<u32>,
    pub program: String,
    pub command: String,
    pub slice: Option<String>,
    /// The slice's turns.
    pub turns: Option<u64>,
    /// As in nvidia-smi, else the place in the list.
    pub gpu: usize,
    pub vram_bytes: Option<u64>,
    pub vram_budget_bytes: Option<u64>,
    pub ram_bytes: Option<u64>,
    pub spilled_bytes: Option<u64>,
    /// Moved and read in place: all that crosses the link this way.
    pub in_rate: Option<f64>,
    pub out_rate: Option<f64>,
    pub in_place_rate: Option<f64>,
    pub launch_rate: Option<f64>,
    pub waited_percent: Option<f64>,
    pub bound_percent: Option<f64>,
    /// More about its speed, for who looks at this one.
    pub notes: Vec<String>,
}

/// What a row is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub pid: u32,
    pub start_ticks: Option<u64>,
    pub gpu_uuid: String,
    /// Where a pid alone may be several processes'.
    pub slice_dir: Option<String>,
}

/// The rows of a snapshot, in its order.
pub fn rows(snapshot: &Snapshot) -> Vec<Row> {
    let mut rows = Vec::new();
    let gpu_number = |uuid: &str| {
        let place = snapshot.gpus.iter().position(|gpu| gpu.uuid == uuid);
        place.map_or(0, |place| snapshot.gpus[place].index.map_or(place, |index| index as usize))
    };
    for process in &snapshot.processes {
        let slice = snapshot.slices.iter().find(|slice| Some(&slice.dir) == process.slice_dir.as_ref());
        let turns = slice.and_then(|slice| slice.time).map(|time| time.turns);
        for device in &process.devices {
            let (rates, speed, counters) = (device.rates, device.speed.as_ref(), device.counters);
            rows.push(Row {
                key: Key {
                    pid: process.pid,
                    start_ticks: process.start_ticks,
                    gpu_uuid: device.gpu_uuid.clone(),
                    slice_dir: process.slice_dir.clone(),
                },
                under_emuv: true,
                same_pid_namespace: process.same_pid_namespace,
                uid: process.uid,
                program: process.program.clone(),
                command: process.command.clone(),
                slice: process.slice.clone(),
                turns,
                gpu: gpu_number(&device.gpu_uuid),
                vram_bytes: Some(device.vram.used_bytes),
                vram_budget_bytes: device.vram.budget_bytes,
                ram_bytes: Some(device.ram.used_bytes),
                spilled_bytes: counters.map(|counters| counters.spilled_bytes),
                in_rate: rates.map(|rates| rates.in_bytes_per_second + rates.in_place_bytes_per_second),
                out_rate: rates.map(|rates| rates.out_bytes_per_second),
                in_place_rate: rates.map(|rates| rates.in_place_bytes_per_second),
                launch_rate: rates.map(|rates| rates.launches_per_second),
                waited_percent: rates.map(|rates| rates.gpu_waited_percent),
                bound_percent: speed.and_then(|speed| speed.percent_of_bound_lately.or(speed.percent_of_bound)),
                notes: speed.map(notes).unwrap_or_default(),
            });
        }
    }
    for other in &snapshot.others {
        rows.push(Row {
            key: Key { pid: other.pid, start_ticks: None, gpu_uuid: other.gpu_uuid.clone(), slice_dir: None },
            under_emuv: false,
            same_pid_namespace: true,
            uid: other.uid,
            program: other.program.clone(),
            command: other.program.clone(),
            slice: None,
            turns: None,
            gpu: gpu_number(&other.gpu_uuid),
            vram_bytes: other.vram_bytes,
            vram_budget_bytes: None,
            ram_bytes: None,
            spilled_bytes: None,
            in_rate: None,
            out_rate: None,
            in_place_rate: None,
            launch_rate: None,
            waited_percent: None,
            bound_percent: None,
            notes: Vec::new(),
        });
    }
    rows
}

fn notes(speed: &emuv_watch::Speed) -> Vec<String> {
    let mut notes = Vec::new();
    match (&speed.unknown_because, speed.percent_of_bound) {
        (Some(why), _) => notes.push(format!("percent of bound unknown: {why}")),
        (None, Some(bound)) => {
            let vram = speed.percent_of_vram_speed.map_or_else(String::new, |p| format!(", {p:.0} % of VRAM speed"));
            let each = speed.seconds_per_iteration.map_or_else(String::new, |s| format!(" of {:.1} ms", s * 1e3));
            notes.push(format!("{bound:.0} % of bound{vram} over {} iterations{each}", speed.iterations));
        }
        (None, None) => {}
    }
    notes.extend(speed.warning.iter().map(|words| format!("was slow: {words}")));
    notes.extend(speed.remedy.iter().map(|words| format!("what helps: {words}")));
    notes
}

impl Row {
    /// VRAM and RAM.
    pub fn memory_bytes(&self) -> u64 {
        self.vram_bytes.unwrap_or(0).saturating_add(self.ram_bytes.unwrap_or(0))
    }

    /// Whether any of its words contain this, whatever the case.
    pub fn matches(&self, filter: &str) -> bool {
        let filter = filter.to_lowercase();
        let words = [&self.program, &self.command, self.slice.as_ref().unwrap_or(&self.program)];
        filter.is_empty()
            || words.iter().any(|word| word.to_lowercase().contains(&filter))
            || self.key.pid.to_string().contains(&filter)
    }
}

/// What the table is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    Memory,
    Vram,
    Ram,
    Spilled,
    Traffic,
    Launches,
    Waited,
    Bound,
    Pid,
    Program,
}

impl Sort {
    pub const ALL: [Self; 10] = [
        Self::Memory,
        Self::Vram,
        Self::Ram,
        Self::Spilled,
        Self::Traffic,
        Self::Launches,
        Self::Waited,
        Self::Bound,
        Self::Pid,
        Self::Program,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Vram => "VRAM",
            Self::Ram => "RAM",
            Self::Spilled => "spill",
            Self::Traffic => "traffic",
            Self::Launches => "launches",
            Self::Waited => "waiting",
            Self::Bound => "bound",
            Self::Pid => "pid",
            Self::Program => "program",
        }
    }

    /// The next one, or the one before.
    pub fn step(self, forward: bool) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        let step = if forward { 1 } else { Self::ALL.len() - 1 };
        Self::ALL[(at + step) % Self::ALL.len()]
    }

    /// What is looked for first comes first: most memory, most traffic, but the lowest percent of bound and pid.
    fn compare(self, one: &Row, other: &Row) -> Ordering {
        let most = |value: fn(&Row) -> Option<f64>| {
            // Unknown comes last.
            value(other).unwrap_or(-1.0).total_cmp(&value(one).unwrap_or(-1.0))
        };
        match self {
            Self::Memory => other.memory_bytes().cmp(&one.memory_bytes()),
            Self::Vram => other.vram_bytes.cmp(&one.vram_bytes),
            Self::Ram => other.ram_bytes.cmp(&one.ram_bytes),
            Self::Spilled => other.spilled_bytes.cmp(&one.spilled_bytes),
            Self::Traffic => most(|row| Some(row.in_rate? + row.out_rate?)),
            Self::Launches => most(|row| row.launch_rate),
            Self::Waited => most(|row| row.waited_percent),
            Self::Bound => {
                let percent = |row: &Row| row.bound_percent.unwrap_or(f64::MAX);
                percent(one).total_cmp(&percent(other))
            }
            Self::Pid => one.key.pid.cmp(&other.key.pid),
            Self::Program => one.program.cmp(&other.program),
        }
    }
}

/// Filters and sorts; rows that are equal keep the order of their pids.
pub fn arrange(mut rows: Vec<Row>, sort: Sort, reversed: bool, filter: &str) -> Vec<Row> {
    rows.retain(|row| row.matches(filter));
    rows.sort_by(|one, other| {
        let order = sort.compare(one, other);
        let order = if reversed { order.reverse() } else { order };
        order.then_with(|| (one.key.pid, one.gpu).cmp(&(other.key.pid, other.gpu)))
    });
    rows
}
