//! One slice of two GPUs: its share on each, one RAM quota for both.

use std::{fs, process::Output};

use serde_json::Value;

use crate::place::{Place, stderr, until};

const GPU_0: &str = "GPU-e5656d75-562d-7340-696d-806770750000";
const GPU_1: &str = "GPU-34656d75-562d-7340-696d-806770750001";
const SIM: &str = "--sim=vram=256M,gpus=2";

/// 64 MiB of each of two GPUs, 32 MiB of RAM for both.
fn pair() -> Place {
    let place = Place::new();
    place.vgpu(&["create", "pair", "--vram", "64M", "--ram", "32M", SIM, "--gpu", "0,1"]);
    place
}

/// VRAM that is charged on each of its GPUs and RAM, in MiB.
fn used(place: &Place) -> (Vec<u64>, u64) {
    let listing = place.listing("pair");
    let vram = listing.vram_on_gpus.iter().map(|bytes| bytes >> 20).collect();
    (vram, listing.used.unwrap().0.ram >> 20)
}

fn show(place: &Place) -> Value {
    serde_json::from_str(&place.vgpu(&["show", "pair", "--json"])).unwrap()
}

fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.lines().count() == 1 && words.iter().all(|words| said.contains(words)), "{said}");
}

#[test]
fn a_program_sees_both_gpus_each_with_the_share() {
    // The machine has a third one.
    let place = Place::new();
    let create = ["create", "pair", "--vram", "64M", "--ram", "32M", "--sim=vram=256M,gpus=3", "--gpu"];
    let said = place.vgpu(&[&create[..], &[&format!("{GPU_1},0")]].concat());
    assert!(said.contains(GPU_0) && said.contains(GPU_1) && said.contains("64 MiB VRAM each, 32 MiB RAM"), "{said}");
    let mut program = place.start("pair");
    for (device, uuid) in [("device 1", GPU_0), ("device 0", GPU_1)] {
        assert_eq!(program.tell(device), "2", "the third is not the slice's");
        assert_eq!(program.ask("info"), [96, 96]);
        assert_eq!(program.tell("alloc 40"), if uuid == GPU_0 { "ok 0" } else { "ok 1" });
        let nvml = program.ask("nvml");
        assert_eq!((nvml[0], nvml[1], nvml[3]), (2, 96, 1), "GPUs, total and processes by NVML");
        assert_eq!(program.tell("uuid"), format!("{uuid} {uuid}"), "in the order in which they were named");
    }
    assert_eq!(program.tell("verify"), "ok");
    program.end();
    assert_eq!(used(&place), (vec![0, 0], 0));
}

#[test]
fn quotas_hold_on_each_gpu_over_all_processes_and_go_back_when_one_is_killed() {
    let place = pair();
    let (mut one, mut two) = (place.start("pair"), place.start("pair"));
    assert_eq!(one.tell("alloc 40"), "ok 0");
    assert_eq!(two.tell("alloc 50"), "ok 0", "26 MiB of it and more in RAM");
    assert_eq!(two.tell("alloc 20"), "oom", "the first GPU is full, and so is RAM");
    for program in [&mut one, &mut two] {
        program.tell("device 1");
    }
    assert_eq!(one.tell("alloc 40"), "ok 1");
    assert_eq!(
        two.tell("alloc 40"),
        "oom",
        "24 MiB of VRAM are left, and of RAM hardly any: both GPUs have it together"
    );
    assert_eq!(two.tell("alloc 16"), "ok 1");
    let (vram, ram) = used(&place);
    assert!(vram.iter().all(|vram| *vram <= 64) && ram <= 32 && vram[0] + ram >= 90 && vram[1] >= 56, "{vram:?} {ram}");
    let shown = show(&place);
    assert_eq!(shown["processes"].as_array().unwrap().len(), 2, "{shown:#}");
    assert_eq!(shown["vram_used_bytes"].as_u64().unwrap() >> 20, vram[0] + vram[1]);
    assert_eq!((one.tell("verify"), two.tell("verify")), ("ok".to_owned(), "ok".to_owned()));
    two.kill();
    let (vram, ram) = used(&place);
    assert!((40..56).contains(&vram[0]) && (40..56).contains(&vram[1]) && ram == 0, "{vram:?} {ram}");
    assert_eq!(one.tell("alloc 40"), "ok 2", "with all of RAM");
    assert_eq!(one.tell("verify"), "ok");
    one.end();
    assert_eq!(used(&place), (vec![0, 0], 0));
}

#[test]
fn ram_that_one_gpu_gives_back_is_the_others() {
    let place = pair();
    let mut program = place.start("pair");
    assert_eq!(program.tell("alloc 80"), "ok 0");
    program.tell("device 1");
    assert_eq!(program.tell("alloc 90"), "oom");
    assert_eq!(program.tell("free 0"), "ok");
    assert_eq!(program.tell("alloc 90"), "ok 1");
    assert_eq!(program.tell("verify"), "ok");
    program.end();
}

#[test]
fn a_resize_counts_on_both_gpus_and_data_goes_to_ram() {
    // RAM for what both have too much of, and for what is kept to move it.
    let place = Place::new();
    place.vgpu(&["create", "pair", "--vram", "64M", "--ram", "96M", SIM, "--gpu", "0,1"]);
    let mut program = place.start("pair");
    for (device, number) in [("device 0", "ok 0"), ("device 1", "ok 1")] {
        program.tell(device);
        assert_eq!(program.tell("alloc 48"), number);
    }
    place.vgpu(&["resize", "pair", "--vram", "40M"]);
    until("both have what is too much in RAM", || used(&place).0.iter().all(|vram| *vram <= 40));
    assert_eq!(show(&place)["vram_bytes"], 40 << 20);
    assert_eq!(program.ask("info")[1], 136);
    assert_eq!(program.tell("alloc 90"), "oom");
    place.vgpu(&["resize", "pair", "--vram", "256M"]);
    assert_eq!(program.tell("alloc 60"), "ok 2");
    program.tell("device 0");
    assert_eq!(program.tell("alloc 60"), "ok 3");
    assert_eq!(program.tell("verify"), "ok");
    place.vgpu(&["disable", "pair"]);
    // Nor does it get what it has kept to move data into, though that is charged already.
    for size in ["alloc 16", "alloc 120"] {
        assert_eq!(program.tell(size), "oom");
    }
    assert_refused(&place.output(&["run", "--vgpu", "pair", "--", "true"]), 1, &["disabled"]);
    place.vgpu(&["enable", "pair"]);
    assert_eq!(program.tell("alloc 120"), "ok 4");
    assert_refused(&place.output(&["vgpu", "delete", "pair"]), 1, &["in use by 1 processes"]);
    place.vgpu(&["delete", "--force", "pair"]);
    program.tell("device 1");
    assert_eq!(program.tell("alloc 120"), "oom");
    assert_eq!(program.tell("verify"), "ok");
    program.end();
}

#[test]
fn it_is_listed_and_shown_with_both_gpus() {
    let place = pair();
    let (table, text) = (place.vgpu(&["list"]), place.vgpu(&["show", "pair"]));
    assert!(table.contains("GPU-e5656d75,GPU-34656d75") && table.contains("64 MiB each"), "{table}");
    for words in [GPU_0, GPU_1, &format!("64 MiB, 0 B in use, on {GPU_1}"), "RAM          32 MiB, 0 B in use\n"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("weight"), "{text}");
    let shown = show(&place);
    let uuids: Vec<_> = shown["gpus"].as_array().unwrap().iter().map(|gpu| gpu["uuid"].as_str().unwrap()).collect();
    assert_eq!(uuids, [GPU_0, GPU_1]);
    assert_eq!(shown["gpus"][1]["vram_used_bytes"], 0);
    let definition = fs::read_to_string(place.state().join("vgpu/pair/slice")).unwrap();
    assert!(definition.contains(&format!("\ngpu={GPU_0}\n")) && definition.contains(&format!("\ngpu_2={GPU_1}\n")));
}

#[test]
fn its_shares_are_set_aside_on_both_gpus() {
    let place = pair();
    for gpu in ["0", "1"] {
        let create = |vram: &str, more: &[&str]| {
            place.output(&[&["vgpu", "create", "one", "--vram", vram, SIM, "--gpu", gpu], more].concat())
        };
        assert_refused(&create("200M", &[]), 1, &["256 MiB", "64 MiB"]);
        assert_refused(&create("200M", &["--overcommit"]), 1, &["256 MiB", "64 MiB"]);
        assert!(create("192M", &[]).status.success());
        place.vgpu(&["delete", "one"]);
    }
    assert_refused(&place.output(&["vgpu", "resize", "pair", "--vram", "257M"]), 1, &["256 MiB"]);
}

#[test]
fn what_several_gpus_cannot_have_is_refused_with_the_flag() {
    let place = Place::new();
    let create = |more: &[&str]| {
        place.output(&[&["vgpu", "create", "pair", "--vram", "64M", SIM, "--gpu", "0,1"], more].concat())
    };
    for (flags, words) in [
        (&["--weight", "200"][..], "--weight: 'pair' is a slice of 2 GPUs, which takes no turns"),
        (&["--cap", "50"], "--cap: "),
        (&["--overcommit"], "--overcommit: "),
    ] {
        assert_refused(&create(flags), 2, &[words, "make a slice of each GPU"]);
    }
    let gpu = |gpus: &str| place.output(&["vgpu", "create", "pair", "--vram", "64M", SIM, "--gpu", gpus]);
    assert_refused(&gpu("0,0"), 2, &["--gpu: '0,0' names GPU-", "twice"]);
    assert_refused(&gpu("0,2"), 2, &["--gpu: there is no GPU 2"]);
    assert_refused(&gpu("0,"), 2, &["--gpu: '' is neither a GPU's number nor its UUID"]);
    assert!(create(&[]).status.success());
    for flags in [["--weight", "200"], ["--cap", "50"]] {
        let output = place.output(&[&["vgpu", "resize", "pair"], &flags[..]].concat());
        assert_refused(&output, 2, &[flags[0], "takes no turns"]);
    }
    // A run by itself has one GPU or all of them.
    assert_refused(&place.output(&["run", SIM, "--gpu", "0,1", "--", "true"]), 2, &["'0,1' is neither"]);
}

#[test]
fn of_a_gpu_that_is_gone_it_is_said() {
    let place = pair();
    let definition = place.state().join("vgpu/pair/slice");
    let text = fs::read_to_string(&definition).unwrap();
    fs::write(&definition, text.replace("gpus=2", "gpus=1")).unwrap();
    let gone = place.output(&["run", "--vgpu", "pair", "--", "true"]);
    assert_refused(&gone, 2, &["slice 'pair'", GPU_1, "emuv vgpu delete pair"]);
    place.vgpu(&["delete", "pair"]);
}

#[test]
fn a_profile_names_several_gpus_too() {
    let place = Place::new();
    let file = place.path("profiles.conf");
    fs::write(&file, "[pair]\nvram=64M\nram=32M\ngpu=0,1\nsim=vram=256M,gpus=2\n").unwrap();
    let file = file.to_str().unwrap();
    place.vgpu(&["create", "--all", "--profiles", file]);
    assert_eq!(show(&place)["gpus"].as_array().unwrap().len(), 2);
    assert_refused(
        &place.output(&["vgpu", "create", "b", "--vram", "1M", "--gpu", "0,1", SIM, "--cap", "5"]),
        2,
        &["--cap"],
    );
}

#[test]
fn a_container_in_it_is_told_of_both() {
    let place = pair();
    let output = place.output(&["cdi", "generate", "--output", "-"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let spec: Value = serde_json::from_slice(&output.stdout).unwrap();
    let env = spec["devices"][0]["containerEdits"]["env"].as_array().unwrap();
    assert!(env.iter().any(|entry| *entry == format!("CUDA_VISIBLE_DEVICES={GPU_0},{GPU_1}").as_str()), "{env:?}");
}
