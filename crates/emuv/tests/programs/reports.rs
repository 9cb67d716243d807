//! What reports say of real programs.

use std::{fs, path::PathBuf, process::Command};

use serde_json::Value;

use super::{MIB, NO_RAM, Run, SPILLED, STATIC, Under, sources};

#[test]
fn the_report_says_what_a_loop_moved_and_how_close_to_the_bound_that_was() {
    let run = Run::start("steady", &["12", "32", "8"], SPILLED).expect_code(0);
    let device = &run.report["processes"][0]["devices"][0];
    let movement = &device["movement"];
    let number = |field: &str| movement[field].as_f64().unwrap_or_else(|| panic!("{field}: {movement}"));
    assert!(number("watched_seconds") > 0.0 && number("gpu_waited_seconds") <= number("watched_seconds"), "{movement}");
    assert!(movement["link"]["both_gb_per_s"].as_f64().unwrap() > 0.0, "{movement}");
    assert_eq!(movement["works_per_iteration"], 12);
    // Known, or it is said why not.
    match movement["percent_of_bound"].as_f64() {
        Some(percent) => assert!((0.0..=100.0).contains(&percent), "{movement}"),
        None => assert!(movement["unknown_because"].is_string(), "{movement}"),
    }
    let most = movement["most_moved"].as_array().unwrap();
    // How it was allocated is not known any more of what was given back meanwhile.
    let how = |moved: &Value| moved["allocated_by"] == "cuMemAlloc" || moved["allocated_by"].is_null();
    assert!(most.iter().all(|moved| how(moved) && moved["bytes"] == 32 * MIB), "{movement}");
    assert!(!run.all_output().contains("moved into VRAM"), "it was told to be quiet: {}", run.all_output());
}

#[test]
fn the_link_is_measured_even_if_vram_is_full_to_the_last_byte_when_data_begins_to_move() {
    let full = Under::Emuv(&["--sim=vram=64M", "--ram", "1G"]);
    let run = Run::start("steady", &["60", "2", "4"], full).expect_code(0);
    let movement = &run.report["processes"][0]["devices"][0]["movement"];
    assert!(movement["link"]["h2d_gb_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{movement}");
}

#[test]
fn what_does_not_move_has_no_figure() {
    for under in [NO_RAM, STATIC] {
        let run = Run::start("steady", &["7", "32", "2"], under).expect_code(0);
        assert!(run.report["processes"][0]["devices"][0]["movement"].is_null(), "{}", run.report);
    }
}

#[test]
fn what_ram_has_already_is_not_copied_there_again() {
    let under = Under::Emuv(&["--sim=vram=256M", "--ram", "1G", "--policy", "torture:7"]);
    let run = Run::start("frozen", &["12", "32", "24"], under).expect_code(0);
    let device = &run.report["processes"][0]["devices"][0];
    let [exchanged, evicted] = ["remapped_bytes", "evicted_bytes"].map(|field| device[field].as_u64().unwrap());
    assert!(evicted > 0, "what was written to is copied: {device}");
    // Nothing that it allocates is ever nobody's, so nothing else is exchanged without a copy.
    assert!(exchanged > 0, "what RAM has already is recognised: {device}");
}

/// The allocations of which something was copied; how many they are is up to the machine.
fn costliest(run: &Run) -> Vec<Value> {
    run.report["processes"][0]["devices"][0]["costliest"].as_array().unwrap_or_else(|| panic!("{}", run.what)).clone()
}

#[test]
fn the_report_says_where_what_moved_most_was_allocated() {
    let run = Run::start("steady", &["12", "32", "8"], SPILLED).expect_code(0);
    for cost in costliest(&run) {
        let frame = &cost["allocated_at"]["native"][0];
        assert!(frame["library"].as_str().unwrap().ends_with("/steady") && frame["symbol"] == "main", "{cost}");
        assert!(frame["offset"].as_str().unwrap().starts_with("0x"), "{cost}");
        assert_eq!(cost["allocated_at"]["python"], Value::Array(Vec::new()), "{cost}");
    }
    let without = Under::Emuv(&["--sim=vram=256M", "--ram", "512M", "--no-call-sites"]);
    let run = Run::start("steady", &["12", "32", "8"], without).expect_code(0);
    assert!(costliest(&run).iter().all(|cost| cost["allocated_at"].is_null()), "{}", run.report);
}

#[test]
fn of_a_python_program_the_report_says_the_line() {
    let source = sources().join("call_sites.py");
    let marker = "# the line of weights";
    let weights = fs::read_to_string(&source).unwrap().lines().position(|line| line.ends_with(marker)).unwrap() + 1;
    let version = Command::new("python3").args(["-c", "import sys; print(sys.version_info[1])"]).output().unwrap();
    let version: u32 = String::from_utf8_lossy(&version.stdout).trim().parse().unwrap();
    let python = find_program("python3");
    let run = Run::start(python.to_str().unwrap(), &[source.to_str().unwrap()], SPILLED).expect_code(0);
    for cost in costliest(&run) {
        let python = cost["allocated_at"]["python"].as_array().unwrap();
        if !(11..=13).contains(&version) {
            assert!(python.is_empty(), "{cost}");
            continue;
        }
        let frame = &python[0];
        assert_eq!(frame["file"].as_str(), source.to_str(), "{cost}");
        match frame["function"].as_str().unwrap() {
            "Weights.allocate" => assert_eq!(frame["line"], weights, "{cost}"),
            function => assert_eq!(function, "activations", "{cost}"),
        }
        let outermost = python.last().unwrap()["function"].as_str().unwrap();
        assert!(matches!(outermost, "<module>" | "Thread._bootstrap"), "{cost}");
    }
}

/// Where a program of that name is.
fn find_program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file()).unwrap()
}
