//! Programs on several simulated GPUs, and several processes on them.

use super::*;

/// Two devices: `everywhere` for a machine with more of them.
const TWO_GPUS: [Under; 6] = [
    Under::Plain { vram: "1G,gpus=2" },
    Under::Emuv(&["--sim=gpus=2,vram=1G", "--ram", "0"]),
    Under::Emuv(&["--sim=gpus=2,vram=64M", "--ram", "512M"]),
    Under::Emuv(&["--sim=gpus=2,vram=64M", "--ram", "512M", "--policy", "torture:7"]),
    Under::Emuv(&["--sim=gpus=2,vram=64M", "--ram", "512M", "--policy", "static"]),
    Under::Emuv(&["--sim=gpus=2,vram=64M/256M,p2p=0", "--ram", "512M"]),
];

#[test]
fn two_devices_copy_and_touch_each_others_memory() {
    for under in TWO_GPUS {
        let run = Run::start("peers", &["6", "16", "12"], under).expect_code(0);
        if let Under::Emuv([sim, ..]) = under
            && sim.contains("64M")
        {
            assert!(run.ram_peak_bytes() >= 16 * MIB, "{}: only {} bytes in RAM", run.what, run.ram_peak_bytes());
        }
    }
}

/// Code whose first launches name memory of the other device only, or could not be searched behind, stores pointers later.
#[test]
fn code_that_stores_pointers_on_one_device_is_known_to_do_so_on_the_other() {
    for _ in 0..2 {
        Run::start("peers", &["6", "16", "12", "1795683174032452"], TWO_GPUS[3]).expect_code(0);
    }
}

#[test]
fn two_devices_run_the_same_code_at_the_same_time() {
    for under in TWO_GPUS {
        Run::start("twins", &["8", "16", "6"], under).expect_code(0);
    }
}

#[test]
fn memory_is_shared_with_a_process_on_another_gpu() {
    let there = ("EMUV_TEST_PEER_DEVICE", OsStr::new("1"));
    Run::start_with("ipc", &["0"], TWO_GPUS[0], &[there]).expect_code(0);
    let spilled = Under::Emuv(&["--sim=gpus=2,vram=256M", "--ram", "512M"]);
    let run = Run::start_with("ipc", &["336"], spilled, &[there]).expect_code(0);
    assert!(run.ram_peak_bytes() >= 16 * MIB, "{}: only {} bytes in RAM", run.what, run.ram_peak_bytes());
}

/// The devices of a report: UUID, the most that was held there in VRAM and RAM, VRAM budget.
fn devices(run: &Run) -> Vec<(String, u64, u64)> {
    let processes = run.report["processes"].as_array().unwrap_or_else(|| panic!("no report: {}", run.all_output()));
    let devices = processes.iter().flat_map(|process| process["devices"].as_array().into_iter().flatten());
    // No budget is null.
    let number = |device: &Value, tier: &str, what: &str| device[tier][what].as_u64().unwrap_or(0);
    devices
        .map(|device| {
            let held = number(device, "vram", "peak_bytes") + number(device, "ram", "peak_bytes");
            (device["uuid"].as_str().unwrap().to_owned(), held, number(device, "vram", "budget_bytes"))
        })
        .collect()
}

const GPU_0: &str = "GPU-e5656d75-562d-7340-696d-806770750000";
const GPU_1: &str = "GPU-34656d75-562d-7340-696d-806770750001";

#[test]
fn budgets_and_accounts_go_by_uuid_in_every_form_of_the_list_of_visible_devices() {
    const EMUV: Under = Under::Emuv(&["--sim=gpus=2,vram=1G", "--vram", "128M", "--ram", "256M"]);
    let both_turned = format!("{GPU_1},{GPU_0}");
    let mixed = format!("{GPU_1},0");
    let lists: [(Option<&str>, &[&str]); 14] = [
        (None, &[GPU_0, GPU_1]),
        (Some("0"), &[GPU_0]),
        (Some("1"), &[GPU_1]),
        (Some("1,0"), &[GPU_1, GPU_0]),
        (Some("0,1,7"), &[GPU_0, GPU_1]),
        (Some("1,-1,0"), &[GPU_1]),
        (Some("0,0"), &[]),
        (Some(""), &[]),
        (Some("-1"), &[]),
        (Some("GPU-34"), &[GPU_1]),
        (Some(&both_turned), &[GPU_1, GPU_0]),
        (Some(&mixed), &[GPU_1, GPU_0]),
        (Some("GPU-ffffffff-ffff-ffff-ffff-ffffffffffff"), &[]),
        (Some("MIG-34656d75-562d-7340-696d-806770750001"), &[]),
    ];
    for (list, expected) in lists {
        let variables: Vec<(&str, &OsStr)> =
            list.map(|list| ("CUDA_VISIBLE_DEVICES", OsStr::new(list))).into_iter().collect();
        let plain = Run::start_with("visible", &["24"], Under::Plain { vram: "1G,gpus=2" }, &variables).expect_code(0);
        let run = Run::start_with("visible", &["24"], EMUV, &variables).expect_code(0);
        assert_eq!(run.json(), plain.json(), "{list:?}");
        assert_eq!(run.json()["uuids"].as_array().unwrap().as_slice(), expected, "{list:?}");
        let found = devices(&run);
        for (position, uuid) in (1..).zip(expected) {
            let (_, held, budget) = found.iter().find(|found| found.0 == *uuid).unwrap();
            assert_eq!((*held, *budget), (position * 24 * MIB, 128 * MIB), "{list:?}: {uuid}");
        }
        assert_eq!(found.len(), expected.len(), "{list:?}: {found:?}");
    }
}

#[test]
fn of_two_gpus_each_has_the_memory_and_the_abilities_that_it_has() {
    // The smaller one spills first.
    let run =
        Run::start("visible", &["48"], Under::Emuv(&["--sim=gpus=2,vram=1G/64M", "--ram", "256M"])).expect_code(0);
    assert_eq!(devices(&run).iter().map(|device| device.2 / MIB).collect::<Vec<_>>(), [1024, 64]);
    assert!(run.ram_peak_bytes() >= 32 * MIB, "{}: {} bytes in RAM", run.what, run.ram_peak_bytes());
    // One without virtual memory management is left to the driver, and said so; the other one goes on.
    for (sim, without) in [("--sim=gpus=2,vram=64M,vmm=1/0", "GPU 1"), ("--sim=gpus=2,vram=64M/128M,vmm=0/1", "GPU 0")]
    {
        let options: &'static [&'static str] = vec![sim, "--ram", "256M"].leak();
        let run = Run::start("visible", &["30"], Under::Emuv(options)).expect_code(0);
        let output = run.all_output();
        assert!(
            output.contains(&format!("{without}: it has no virtual memory management; its memory is left")),
            "{output}"
        );
        let budgets: Vec<u64> = devices(&run).iter().map(|device| device.2 / MIB).collect();
        assert_eq!(budgets, if without == "GPU 1" { [64, 0] } else { [0, 128] }, "{output}");
    }
}

#[test]
fn eight_gpus_and_thirty_two_processes_in_one_run_are_accounted_apart() {
    const SCRIPT: &str = "status=0; all=; for i in $(seq 0 31); do \
        CUDA_VISIBLE_DEVICES=$((i % 8)) \"$0\" $((i / 8 + 1)) > /dev/null & all=\"$all $!\"; done; \
        for one in $all; do wait $one || status=1; done; exit $status";
    let program = BENCH.program("visible");
    let under = Under::Emuv(&["--sim=gpus=8,vram=256M", "--vram", "64M", "--ram", "128M"]);
    let run = Run::start("/bin/sh", &["-c", SCRIPT, program.to_str().unwrap()], under).expect_code(0);
    let mut by_uuid: std::collections::BTreeMap<String, Vec<u64>> = Default::default();
    for (uuid, held, budget) in devices(&run) {
        assert_eq!(budget, 64 * MIB);
        by_uuid.entry(uuid).or_default().push(held.div_ceil(2 * MIB) * 2);
    }
    assert_eq!(by_uuid.len(), 8);
    for (uuid, mut held) in by_uuid {
        held.sort_unstable();
        assert_eq!(held, [2, 2, 4, 4], "MiB held by the four processes on {uuid}");
    }
}
