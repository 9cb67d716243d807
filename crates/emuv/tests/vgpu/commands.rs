//! `emuv vgpu` and `emuv run --vgpu`: what they say and refuse.

use std::{fs, process::Output};

use serde_json::Value;

use crate::place::{Place, stderr};

/// One line that starts with "emuv: ", with these words, and this exit code.
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.starts_with("emuv: ") && said.lines().count() == 1, "{said}");
    assert!(words.iter().all(|words| said.contains(words)), "{said}");
}

fn list(place: &Place) -> Vec<Value> {
    let all: Value = serde_json::from_str(&place.vgpu(&["list", "--json"])).unwrap();
    all["slices"].as_array().unwrap().clone()
}

#[test]
fn a_slice_is_made_shown_changed_and_removed() {
    let place = Place::new();
    let said = place.vgpu(&[
        "create",
        "ml-1",
        "--vram",
        "6G",
        "--ram",
        "64M",
        "--sim=vram=24G,gpus=2",
        "--weight",
        "300",
        "--cap",
        "40",
        "--schedule",
        "00:00-24:00 UTC+03:00",
        "--gpu",
        "1",
        "--instance",
        "7",
    ]);
    assert!(said.starts_with("ml-1: instance 7 on emuV simulated GPU (GPU-"), "{said}");
    let shown: Value = serde_json::from_str(&place.vgpu(&["show", "ml-1", "--json"])).unwrap();
    for (key, value) in [("vram_bytes", 6_u64 << 30), ("ram_bytes", 64 << 20), ("weight", 300), ("cap_percent", 40)] {
        assert_eq!(shown[key], value, "{key}");
    }
    place.vgpu(&["resize", "ml-1", "--vram", "4G", "--weight", "50"]);
    let text = place.vgpu(&["show", "ml-1"]);
    for line in ["VRAM         4 GiB, 0 B in use", "weight       50", "schedule     00:00-24:00 UTC+03:00"] {
        assert!(text.contains(line), "{text}");
    }
    place.vgpu(&["disable", "ml-1"]);
    assert_eq!(list(&place)[0]["enabled"], false);
    place.vgpu(&["delete", "ml-1"]);
    assert!(list(&place).is_empty());
}

#[test]
fn vram_is_promised_once_unless_asked_for() {
    let place = Place::new();
    for name in ["a", "b"] {
        place.vgpu(&["create", name, "--vram", "100M", "--sim=vram=256M"]);
    }
    let third = ["vgpu", "create", "c", "--vram", "100M", "--sim=vram=256M"];
    assert_refused(&place.output(&third), 1, &["256 MiB", "200 MiB", "--overcommit"]);
    assert_refused(&place.output(&["vgpu", "resize", "a", "--vram", "200M"]), 1, &["--overcommit"]);
    place.vgpu(&[&third[1..], &["--overcommit"]].concat());
    assert_eq!(list(&place).len(), 3);
}

#[test]
fn without_a_choice_the_gpu_with_the_most_left_is_taken() {
    let place = Place::new();
    for name in ["a", "b", "c", "d"] {
        place.vgpu(&["create", name, "--vram", "100M", "--sim=vram=256M,gpus=2"]);
    }
    let gpus: Vec<_> = list(&place).iter().map(|slice| slice["gpu"]["uuid"].as_str().unwrap().to_owned()).collect();
    assert!(gpus[0] == gpus[2] && gpus[1] == gpus[3] && gpus[0] != gpus[1], "{gpus:?}");
}

#[test]
fn the_articles_profiles_become_slices() {
    let place = Place::new();
    let file = place.path("profiles.conf");
    let section = |number: u32, id: &str| {
        format!("[vGPU-Profile-{number}]\ngpu_model=4090\nphysical_vram_gb=6\nvirtual_vram_gb=2\npci_device_id={id}\n")
    };
    let text: String =
        [(1, "0x2684"), (2, "0x2685"), (3, "0x2686"), (4, "0x2687")].map(|(n, id)| section(n, id)).concat();
    fs::write(&file, format!("# /etc/emuv/vgpu-profiles.conf\n{text}")).unwrap();
    let file = file.to_str().unwrap();
    let checked = place.vgpu(&["check", file]);
    assert!(checked.contains("vGPU-Profile-3: 6 GiB VRAM, 2 GiB RAM, NVIDIA GeForce RTX 4090"), "{checked}");
    assert!(checked.ends_with("4 profiles, no mistakes\n"), "{checked}");
    place.vgpu(&["create", "vGPU-Profile-2", "--profiles", file, "--sim=vram=24G", "--overcommit"]);
    place.vgpu(&["create", "--all", "--profiles", file, "--sim=vram=24G", "--overcommit"]);
    let all = list(&place);
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|slice| slice["vram_bytes"] == 6_u64 << 30 && slice["gpu_model"] == "4090"), "{all:#?}");
}

#[test]
fn a_profile_file_with_mistakes_is_refused_with_each_line() {
    let place = Place::new();
    let file = place.path("profiles.conf");
    fs::write(&file, "[a]\nphysical_vram_gb=6\ncolour=red\n[b]\n").unwrap();
    let output = place.output(&["vgpu", "check", file.to_str().unwrap()]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("profiles.conf: line 3: there is no key 'colour'") && said.contains("line 4: [b]"), "{said}");
    let output = place.output(&["vgpu", "create", "--all", "--profiles", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn what_is_wrong_is_said_in_one_line_and_nothing_is_made() {
    let place = Place::new();
    let create = |more: &[&str]| place.output(&[&["vgpu", "create", "x", "--sim=vram=256M"], more].concat());
    for (more, words) in [
        (&["--vram", "big"][..], &["--vram", "'big'"][..]),
        (&["--vram", "0"], &["--vram", "0 is no share"]),
        (&["--vram", "64M", "--ram", "-1G"], &["--ram", "negative"]),
        (&["--vram", "64M", "--gpu", "3"], &["--gpu", "there is no GPU 3"]),
        (&["--vram", "64M", "--gpu-model", "4091"], &["--gpu-model", "'4091'"]),
        (&["--vram", "64M", "--user", "nobody-of-that-name"], &["--user", "/etc/passwd"]),
        (&["--vram", "64M", "--ram", "900T"], &["--ram", "more than"]),
        (&["--vram", "64M", "--weight", "0"], &["--weight"]),
        (&["--vram", "64M", "--cap", "101"], &["--cap"]),
        (&["--vram", "64M", "--schedule", "8-9"], &["--schedule", "time zone"]),
    ] {
        assert_refused(&create(more), 2, words);
    }
    assert_refused(&place.output(&["vgpu", "create", ".x", "--vram", "64M", "--sim"]), 2, &["'.x' is no name"]);
    assert_refused(&place.output(&["vgpu", "delete", "x"]), 1, &["there is no slice 'x'"]);
    assert_refused(&place.output(&["vgpu", "show", "x"]), 1, &["there is no slice 'x'"]);
    assert_refused(&place.output(&["vgpu", "resize", "x"]), 2, &["nothing to change"]);
    assert!(list(&place).is_empty());
}

#[test]
fn a_run_takes_its_limits_from_the_slice_alone() {
    let place = Place::new();
    place.slice("ml-1", 64, 0);
    assert_refused(&place.output(&["run", "--vgpu", "ml-2", "--", "true"]), 1, &["there is no slice 'ml-2'"]);
    assert_refused(&place.output(&["run", "--vgpu", "ml-1", "--vram", "1G", "--", "true"]), 2, &["--vram"]);
    let other = place.output(&["run", "--vgpu", "ml-1", "--sim=vram=1G", "--", "true"]);
    assert_refused(&other, 2, &["--sim", "another simulated machine"]);
    let mut command = place.run_command("ml-1", &[], "on_command");
    let output = command.arg("info").env("EMUV_VRAM", "1G").output().unwrap();
    assert!(stderr(&output).contains("EMUV_VRAM does not count in a slice"), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1), Some("64"));
}

#[test]
fn a_slice_outside_its_hours_lets_nothing_in() {
    let place = Place::new();
    // The window of an hour that is twelve hours away from now.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() / 3600 % 24;
    let hour = (now + 12) % 24;
    let schedule = format!("{hour:02}:00-{:02}:00 UTC", hour + 1);
    place.vgpu(&["create", "a", "--vram", "64M", "--sim=vram=256M", "--schedule", &schedule]);
    assert_refused(&place.output(&["run", "--vgpu", "a", "--", "true"]), 1, &["may be used at", &schedule]);
}
