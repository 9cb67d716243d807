//! Made-up figures: of a full machine, and of one where much is unknown and names are hostile.

use emuv_watch::{
    Counters, Gpu, GpuUse, Link, OtherProcess, Problem, ProblemKind, Process, ProcessDevice, Rates, SCHEMA, Slice,
    SliceTime, Snapshot, Speed, Tier,
};

pub const HOSTILE: &str = "</script><img src=x onerror=\"alert(1)\">\\\n# EOF\n{{nonce}}";

fn uuid(number: usize) -> String {
    format!("GPU-{number:08x}-1111-2222-3333-444444444444")
}

fn slice(number: usize) -> Slice {
    Slice {
        name: format!("ml-{number}"),
        dir: format!("/run/emuv/vgpu/ml-{number}"),
        instance: u32::try_from(number).unwrap() + 1,
        gpu_uuid: uuid(number % 8),
        simulated: false,
        enabled: number % 5 != 4,
        vram_limit_bytes: 6 << 30,
        ram_limit_bytes: 2 << 30,
        vram_used_bytes: Some(5 << 30),
        ram_used_bytes: Some(1 << 30),
        process_count: Some(200),
        weight: 100,
        cap_percent: Some(50),
        schedule: Some("00:00-08:00 UTC".to_owned()),
        uid: 1000,
        gid: Some(100),
        time: Some(SliceTime { used_micros: 1_500_000, share_percent: Some(33.3), turns: 7, ..SliceTime::default() }),
        rates: Some(rates()),
    }
}

fn rates() -> Rates {
    Rates { in_bytes_per_second: 1.5e9, out_bytes_per_second: 1e9, launches_per_second: 250.0, ..Rates::default() }
}

fn process(number: usize, slice: &Slice) -> Process {
    let tier = |bytes| Tier { used_bytes: bytes, budget_bytes: Some(6 << 30), peak_bytes: Some(bytes) };
    Process {
        pid: 1000 + u32::try_from(number).unwrap(),
        start_ticks: Some(12_345),
        same_pid_namespace: true,
        uid: Some(1000),
        program: "python3".to_owned(),
        command: "python3 train.py --batch 128".to_owned(),
        run: Some("/run/emuv/run-999-0".to_owned()),
        slice: Some(slice.name.clone()),
        slice_dir: Some(slice.dir.clone()),
        ram: tier(1 << 20),
        internal_errors: 0,
        devices: vec![ProcessDevice {
            ordinal: Some(0),
            gpu_uuid: slice.gpu_uuid.clone(),
            vram: tier(20 << 20),
            ram: tier(1 << 20),
            counters: Some(Counters { in_bytes: 1 << 40, launches: 123_456, held_micros: 2500, ..Counters::default() }),
            speed: Some(Speed { percent_of_bound: Some(75.0), iterations: 24, ..Speed::default() }),
            rates: Some(rates()),
        }],
    }
}

/// Eight GPUs, so many slices, and so many processes in each.
pub fn machine(slices: usize, processes: usize) -> Snapshot {
    let slices: Vec<_> = (0..slices).map(slice).collect();
    let gpu = |number| Gpu {
        index: u32::try_from(number).ok(),
        uuid: uuid(number),
        name: Some("NVIDIA H200".to_owned()),
        vram_total_bytes: Some(141 << 30),
        vram_used_bytes: Some(100 << 30),
        busy_percent: Some(97),
        link: Some(Link { in_bytes_per_second: 55_000_000_000, ..Link::default() }),
        under_emuv: GpuUse { process_count: 4, rates: Some(rates()), ..GpuUse::default() },
        ..Gpu::default()
    };
    Snapshot {
        schema: SCHEMA,
        time_unix_millis: 1_795_647_110_941,
        rates_over_micros: Some(1_000_000),
        gpus: (0..8).map(gpu).collect(),
        processes: (0..slices.len() * processes).map(|number| process(number, &slices[number / processes])).collect(),
        slices,
        ..Snapshot::default()
    }
}

/// Nothing is known that need not be, texts are hostile, and what should be unique is not.
pub fn odd() -> Snapshot {
    let bare = |name: &str, dir: &str| Slice {
        name: name.to_owned(),
        dir: dir.to_owned(),
        vram_used_bytes: None,
        ram_used_bytes: None,
        process_count: None,
        cap_percent: None,
        schedule: None,
        gid: None,
        time: None,
        rates: None,
        ..slice(0)
    };
    let device = ProcessDevice { gpu_uuid: uuid(0), ..ProcessDevice::default() };
    let contained = Process {
        pid: 7,
        program: HOSTILE.to_owned(),
        command: HOSTILE.to_owned(),
        slice: Some("ml-0".to_owned()),
        slice_dir: Some("/tmp/emuv-1000/vgpu/ml-0".to_owned()),
        devices: vec![device.clone(), device],
        ..Process::default()
    };
    let other = OtherProcess { pid: 9, program: HOSTILE.to_owned(), gpu_uuid: uuid(0), ..OtherProcess::default() };
    let kinds = [
        ProblemKind::NotAllowed,
        ProblemKind::Unreadable,
        ProblemKind::Damaged,
        ProblemKind::OtherVersion,
        ProblemKind::Foreign,
    ];
    Snapshot {
        schema: SCHEMA,
        gpus: vec![Gpu { uuid: uuid(0), name: Some(HOSTILE.to_owned()), ..Gpu::default() }],
        no_driver_because: Some("no NVIDIA driver".to_owned()),
        slices: vec![bare("ml-0", "/run/emuv/vgpu/ml-0"), bare("ml-0", "/tmp/emuv-1000/vgpu/ml-0")],
        processes: vec![contained.clone(), contained],
        others: vec![other.clone(), OtherProcess { vram_bytes: Some(5), ..other }],
        problems: kinds.map(|kind| Problem { kind, words: HOSTILE.to_owned() }).to_vec(),
        ..Snapshot::default()
    }
}
