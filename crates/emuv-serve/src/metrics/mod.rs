//! The snapshot as metrics. Names follow the rules of OpenMetrics: base units (bytes, seconds, ratios), the unit last.
//!
//! What belongs to a process has the labels `gpu` (its UUID), `slice` (empty outside one), `pid` and `program`. Rates are not
//! here: Prometheus makes its own from the counters.

mod exposition;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use emuv_watch::{Gpu, OtherProcess, ProblemKind, Process, ProcessDevice, Slice, Snapshot};

pub use exposition::Format;
use exposition::{Family, Kind, Labels, Value, Writer};

/// Metrics of one kind of thing, and how each is read from it.
type Table<T> = &'static [(Family, fn(&T) -> Option<Value>)];

const BYTES: Option<&str> = Some("bytes");
const SECONDS: Option<&str> = Some("seconds");
const RATIO: Option<&str> = Some("ratio");
const SPEED: Option<&str> = Some("bytes_per_second");

const fn gauge(name: &'static str, unit: Option<&'static str>, help: &'static str) -> Family {
    Family { name, kind: Kind::Gauge, unit, help }
}

const fn counter(name: &'static str, unit: Option<&'static str>, help: &'static str) -> Family {
    Family { name, kind: Kind::Counter, unit, help }
}

const fn info(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Info, unit: None, help }
}

const BUILD: Family = info("emuv_build", "The version of emuV that answers");
const DRIVER: Family = gauge("emuv_driver_answers", None, "1 if NVIDIA's driver says something of the GPUs here");
const PROBLEMS: Family = gauge("emuv_problems", None, "What could not be read, by kind; the snapshot has the words");
const SAMPLE: Family = gauge("emuv_sample_seconds", SECONDS, "How long the look took that these figures are from");
const GPU_INFO: Family =
    info("emuv_gpu", "A GPU: its product's name, its number in nvidia-smi, whether it is simulated");
const SLICE_INFO: Family = info("emuv_slice", "A slice: its number and where it is kept");
const OTHER: Family = gauge(
    "emuv_other_process_vram_bytes",
    BYTES,
    "VRAM of a process that does not run under emuV, by the driver's word",
);

const GPUS: Table<Gpu> = &[
    (gauge("emuv_gpu_vram_size_bytes", BYTES, "All VRAM of a GPU"), |g| whole(g.vram_total_bytes)),
    (gauge("emuv_gpu_vram_used_bytes", BYTES, "VRAM in use by everybody"), |g| whole(g.vram_used_bytes)),
    (gauge("emuv_gpu_busy_ratio", RATIO, "Of the time lately, how much something ran"), |g| {
        percent(g.busy_percent.map(f64::from))
    }),
    (gauge("emuv_gpu_link_in_bytes_per_second", SPEED, "What the link brings into VRAM, as measured"), |g| {
        whole(g.link.map(|link| link.in_bytes_per_second))
    }),
    (gauge("emuv_gpu_link_out_bytes_per_second", SPEED, "What the link takes out of VRAM, as measured"), |g| {
        whole(g.link.map(|link| link.out_bytes_per_second))
    }),
    (gauge("emuv_gpu_processes", None, "Processes under emuV on a GPU"), |g| {
        Some(Value::Whole(g.under_emuv.process_count as u64))
    }),
    (gauge("emuv_gpu_emuv_vram_bytes", BYTES, "VRAM of the processes under emuV"), |g| {
        whole(Some(g.under_emuv.vram_bytes))
    }),
    (gauge("emuv_gpu_emuv_ram_bytes", BYTES, "Pinned RAM of the processes under emuV: what has spilled"), |g| {
        whole(Some(g.under_emuv.ram_bytes))
    }),
];

const SLICES: Table<Slice> = &[
    (gauge("emuv_slice_enabled", None, "1 if programs are let in"), |s| Some(s.enabled.into())),
    (gauge("emuv_slice_vram_limit_bytes", BYTES, "A slice's share of VRAM"), |s| whole(Some(s.vram_limit_bytes))),
    (gauge("emuv_slice_ram_limit_bytes", BYTES, "A slice's share of RAM"), |s| whole(Some(s.ram_limit_bytes))),
    (gauge("emuv_slice_vram_used_bytes", BYTES, "VRAM in use in a slice"), |s| whole(s.vram_used_bytes)),
    (gauge("emuv_slice_ram_used_bytes", BYTES, "RAM in use in a slice"), |s| whole(s.ram_used_bytes)),
    (gauge("emuv_slice_processes", None, "Processes in a slice"), |s| whole(s.process_count.map(|count| count as u64))),
    (gauge("emuv_slice_weight", None, "Weight for the GPU's time"), |s| Some(s.weight.into())),
    (gauge("emuv_slice_cap_ratio", RATIO, "The most of the GPU's time that a slice may have"), |s| {
        percent(s.cap_percent.map(f64::from))
    }),
    (gauge("emuv_slice_in_turn", None, "1 while a slice has its turn"), |s| s.time.map(|time| time.in_turn.into())),
    (gauge("emuv_slice_wants", None, "1 while a slice has work for the GPU"), |s| s.time.map(|time| time.wants.into())),
    (counter("emuv_slice_gpu_seconds", SECONDS, "The GPU's time that a slice has had"), |s| {
        micros(s.time.map(|time| time.used_micros))
    }),
    (counter("emuv_slice_turns", None, "Turns that a slice has had"), |s| whole(s.time.map(|time| time.turns))),
    (counter("emuv_slice_held_works", None, "Works that waited for a turn"), |s| whole(s.time.map(|time| time.held))),
];

/// A process on one GPU.
const USES: Table<ProcessDevice> = &[
    (gauge("emuv_process_vram_bytes", BYTES, "VRAM in use by a process"), |d| whole(Some(d.vram.used_bytes))),
    (gauge("emuv_process_vram_budget_bytes", BYTES, "VRAM that a process may use"), |d| whole(d.vram.budget_bytes)),
    (gauge("emuv_process_vram_peak_bytes", BYTES, "The most VRAM that a process has used"), |d| {
        whole(d.vram.peak_bytes)
    }),
    (gauge("emuv_process_ram_bytes", BYTES, "Pinned RAM in use by a process: what has spilled"), |d| {
        whole(Some(d.ram.used_bytes))
    }),
    (gauge("emuv_process_ram_peak_bytes", BYTES, "The most RAM that a process has used"), |d| whole(d.ram.peak_bytes)),
    (counter("emuv_process_spilled_bytes", BYTES, "Bytes placed in RAM"), |d| {
        whole(d.counters.map(|c| c.spilled_bytes))
    }),
    (counter("emuv_process_in_bytes", BYTES, "Bytes moved into VRAM"), |d| whole(d.counters.map(|c| c.in_bytes))),
    (counter("emuv_process_out_bytes", BYTES, "Bytes moved out of VRAM"), |d| whole(d.counters.map(|c| c.out_bytes))),
    (counter("emuv_process_in_place_bytes", BYTES, "Bytes read in RAM, over the link"), |d| {
        whole(d.counters.map(|c| c.in_place_bytes))
    }),
    (counter("emuv_process_launches", None, "Kernels and graphs launched"), |d| whole(d.counters.map(|c| c.launches))),
    (counter("emuv_process_allocations", None, "Allocations made"), |d| whole(d.counters.map(|c| c.allocations))),
    (counter("emuv_process_frees", None, "Allocations freed"), |d| whole(d.counters.map(|c| c.frees))),
    (counter("emuv_process_refused_allocations", None, "Allocations refused: out of memory"), |d| {
        whole(d.counters.map(|c| c.refused))
    }),
    (counter("emuv_process_held_calls", None, "Calls that waited for data to move"), |d| {
        whole(d.counters.map(|c| c.held))
    }),
    (counter("emuv_process_held_seconds", SECONDS, "How long they waited"), |d| {
        micros(d.counters.map(|c| c.held_micros))
    }),
    (counter("emuv_process_gpu_waited_seconds", SECONDS, "How long the GPU had nothing to do meanwhile"), |d| {
        micros(d.counters.map(|c| c.gpu_waited_micros))
    }),
    (
        gauge("emuv_process_bound_ratio", RATIO, "How close to what GPU and link allow, over all measured iterations"),
        |d| percent(d.speed.as_ref().and_then(|speed| speed.percent_of_bound)),
    ),
    (gauge("emuv_process_recent_bound_ratio", RATIO, "The same, over the last few iterations"), |d| {
        percent(d.speed.as_ref().and_then(|speed| speed.percent_of_bound_lately))
    }),
    (gauge("emuv_process_iteration_seconds", SECONDS, "How long an iteration of the program's loop takes"), |d| {
        d.speed.as_ref().and_then(|speed| speed.seconds_per_iteration).map(Value::Real)
    }),
];

const PROCESSES: Table<Process> = &[
    (gauge("emuv_process_ram_budget_bytes", BYTES, "RAM that a process may use, on all its GPUs"), |p| {
        whole(p.ram.budget_bytes)
    }),
    (counter("emuv_process_internal_errors", None, "Errors of emuV's own in a process"), |p| {
        Some(Value::Whole(p.internal_errors))
    }),
];

const PROBLEM_KINDS: &[(ProblemKind, &str)] = &[
    (ProblemKind::NotAllowed, "not_allowed"),
    (ProblemKind::Unreadable, "unreadable"),
    (ProblemKind::Damaged, "damaged"),
    (ProblemKind::OtherVersion, "other_version"),
    (ProblemKind::Foreign, "foreign"),
];

fn whole(value: Option<u64>) -> Option<Value> {
    value.map(Value::Whole)
}

fn micros(value: Option<u64>) -> Option<Value> {
    value.map(|micros| Value::Real(Duration::from_micros(micros).as_secs_f64()))
}

fn percent(value: Option<f64>) -> Option<Value> {
    value.map(|percent| Value::Real(percent / 100.0))
}

/// The names of all samples that there can be.
pub fn sample_names() -> Vec<String> {
    let single = [BUILD, DRIVER, PROBLEMS, SAMPLE, GPU_INFO, SLICE_INFO, OTHER];
    let tables = GPUS.iter().map(|(family, _)| *family).chain(SLICES.iter().map(|(family, _)| *family));
    let tables =
        tables.chain(USES.iter().map(|(family, _)| *family)).chain(PROCESSES.iter().map(|(family, _)| *family));
    single.into_iter().chain(tables).map(|family| family.sample_name()).collect()
}

/// The whole answer.
pub fn text(snapshot: &Snapshot, took: Duration, version: &str, format: Format) -> String {
    let names = Names::of(snapshot);
    let bare = Labels::new(&[]);
    let uses: usize = snapshot.processes.iter().map(|process| process.devices.len()).sum();
    let mut writer = Writer::new(format, 20_000 + uses * USES.len() * 200);
    let build = Labels::new(&[("version", version)]);
    writer.family(&BUILD, [(&build, Some(Value::Whole(1)))].into_iter());
    writer.family(&DRIVER, [(&bare, Some(snapshot.no_driver_because.is_none().into()))].into_iter());
    writer.family(&SAMPLE, [(&bare, Some(took.as_secs_f64().into()))].into_iter());
    problems(&mut writer, snapshot);
    gpus(&mut writer, snapshot);
    slices(&mut writer, snapshot, &names);
    processes(&mut writer, snapshot, &names);
    others(&mut writer, snapshot);
    writer.finish()
}

fn table<T>(writer: &mut Writer, table: Table<T>, things: &[(Labels, &T)]) {
    for (family, value) in table {
        writer.family(family, things.iter().map(|(labels, thing)| (labels, value(thing))));
    }
}

fn problems(writer: &mut Writer, snapshot: &Snapshot) {
    let count = |kind| snapshot.problems.iter().filter(|problem| problem.kind == kind).count() as u64;
    let samples: Vec<_> =
        PROBLEM_KINDS.iter().map(|(kind, name)| (Labels::new(&[("kind", name)]), count(*kind))).collect();
    writer.family(&PROBLEMS, samples.iter().map(|(labels, count)| (labels, whole(Some(*count)))));
}

fn gpus(writer: &mut Writer, snapshot: &Snapshot) {
    let mut seen = HashSet::new();
    let gpus: Vec<_> = snapshot.gpus.iter().filter(|gpu| seen.insert(gpu.uuid.as_str())).collect();
    let infos = gpus.iter().map(|gpu| {
        let index = gpu.index.map(|index| index.to_string()).unwrap_or_default();
        let (name, simulated) = (gpu.name.as_deref().unwrap_or_default(), gpu.simulated.to_string());
        Labels::new(&[("gpu", &gpu.uuid), ("name", name), ("index", &index), ("simulated", &simulated)])
    });
    let infos: Vec<_> = infos.collect();
    writer.family(&GPU_INFO, infos.iter().map(|labels| (labels, Some(Value::Whole(1)))));
    let labelled: Vec<_> = gpus.iter().map(|gpu| (Labels::new(&[("gpu", &gpu.uuid)]), *gpu)).collect();
    table(writer, GPUS, &labelled);
}

fn slices(writer: &mut Writer, snapshot: &Snapshot, names: &Names<'_>) {
    let name = |slice: &Slice| names.slice(&slice.name, Some(&slice.dir)).to_owned();
    let infos = snapshot.slices.iter().map(|slice| {
        let instance = slice.instance.to_string();
        Labels::new(&[("gpu", &slice.gpu_uuid), ("slice", &name(slice)), ("instance", &instance), ("dir", &slice.dir)])
    });
    let infos: Vec<_> = infos.collect();
    writer.family(&SLICE_INFO, infos.iter().map(|labels| (labels, Some(Value::Whole(1)))));
    let labels = |slice: &Slice| Labels::new(&[("gpu", &slice.gpu_uuid), ("slice", &name(slice))]);
    let labelled: Vec<_> = snapshot.slices.iter().map(|slice| (labels(slice), slice)).collect();
    table(writer, SLICES, &labelled);
}

fn processes(writer: &mut Writer, snapshot: &Snapshot, names: &Names<'_>) {
    let (mut uses, mut all) = (Vec::new(), Vec::new());
    let (mut seen_uses, mut seen) = (Seen::default(), Seen::default());
    for process in &snapshot.processes {
        let slice = process.slice.as_deref().map(|name| names.slice(name, process.slice_dir.as_deref()));
        let slice = slice.unwrap_or_default();
        for device in &process.devices {
            let labels = seen_uses.labels(process.pid, |pid| {
                Labels::new(&[("gpu", &device.gpu_uuid), ("slice", slice), ("pid", pid), ("program", &process.program)])
            });
            uses.push((labels, device));
        }
        let labels = seen
            .labels(process.pid, |pid| Labels::new(&[("slice", slice), ("pid", pid), ("program", &process.program)]));
        all.push((labels, process));
    }
    table(writer, USES, &uses);
    table(writer, PROCESSES, &all);
}

fn others(writer: &mut Writer, snapshot: &Snapshot) {
    let mut seen = Seen::default();
    let labelled: Vec<(Labels, &OtherProcess)> = snapshot
        .others
        .iter()
        .map(|other| {
            let labels =
                |pid: &str| Labels::new(&[("gpu", &other.gpu_uuid), ("pid", pid), ("program", &other.program)]);
            (seen.labels(other.pid, labels), other)
        })
        .collect();
    writer.family(&OTHER, labelled.iter().map(|(labels, other)| (labels, whole(other.vram_bytes))));
}

/// Slices as they are called: by name, where two have the same (they are of different users) by their folders.
struct Names<'s>(HashMap<&'s str, usize>);

impl<'s> Names<'s> {
    fn of(snapshot: &'s Snapshot) -> Self {
        let mut counts = HashMap::new();
        snapshot.slices.iter().for_each(|slice| *counts.entry(slice.name.as_str()).or_insert(0) += 1);
        Self(counts)
    }

    fn slice<'n>(&self, name: &'n str, dir: Option<&'n str>) -> &'n str {
        let shared = self.0.get(name).is_some_and(|count| *count > 1);
        dir.filter(|_| shared).unwrap_or(name)
    }
}

/// Keeps two series from having the same labels: processes of two containers may have the same number and name.
#[derive(Default)]
struct Seen(HashSet<Labels>);

impl Seen {
    fn labels(&mut self, pid: u32, labels: impl Fn(&str) -> Labels) -> Labels {
        let mut found = labels(&pid.to_string());
        for number in 2_u32.. {
            if !self.0.contains(&found) {
                break;
            }
            found = labels(&format!("{pid}#{number}"));
        }
        self.0.insert(found.clone());
        found
    }
}
