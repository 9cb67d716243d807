//! `emuv doctor` and `emuv demo` on the simulated GPU, as a program that calls them sees them.
#![allow(clippy::unwrap_used, clippy::expect_used)] // Tests: a panic is the report.

use std::process::{Command, Output};

use serde_json::Value;

fn emuv(arguments: &[&str]) -> Output {
    let state = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_emuv"));
    let own = std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("EMUV_"));
    for name in own.chain(["LD_PRELOAD", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"].map(Into::into)) {
        command.env_remove(name);
    }
    command.args(arguments).env("EMUV_STATE_DIR", state.path().join("state")).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn status<'a>(findings: &'a Value, id: &str) -> Option<&'a str> {
    let checks = findings["checks"].as_array()?;
    checks.iter().find(|check| check["id"] == id)?["status"].as_str()
}

#[test]
fn the_doctor_finds_nothing_wrong_with_the_simulated_gpu() {
    let output = emuv(&["doctor", "--json", "--sim"]);
    let findings = json(&output);
    assert_eq!(output.status.code(), Some(0), "{findings:#}");
    assert_eq!((&findings["schema"], &findings["simulated"]), (&Value::from(1), &Value::from(true)));
    for id in ["driver", "version", "gpu", "vmm", "host-vmm", "mixed-mapping", "bandwidth", "preload"] {
        assert_eq!(status(&findings, id), Some("ok"), "{id}: {findings:#}");
    }
    assert!(findings["link"]["both_gbps"].as_f64().is_some_and(|rate| rate > 0.0), "{findings:#}");
}

#[test]
fn the_doctor_names_what_is_missing_and_what_to_do() {
    for (sim, id) in [("driver=12010", "version"), ("vmm=0", "vmm"), ("numa=0", "host-vmm")] {
        let output = emuv(&["doctor", "--json", &format!("--sim={sim}")]);
        let findings = json(&output);
        assert_eq!(output.status.code(), Some(255), "{sim}: {findings:#}");
        assert_eq!(status(&findings, id), Some("fail"), "{sim}: {findings:#}");
        for check in findings["checks"].as_array().unwrap() {
            assert_eq!(check["status"] == "ok", check["advice"].is_null(), "{sim}: {check:#}");
        }
    }
}

#[test]
fn the_doctor_refuses_a_setting_that_it_does_not_know() {
    let output = emuv(&["doctor", "--sim=colour=red"]);
    assert_eq!(output.status.code(), Some(2));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.starts_with("emuv: --sim: ") && words.lines().count() == 1, "{words}");
}

#[test]
fn too_little_pinned_memory_is_found() {
    let findings = json(&emuv(&["doctor", "--json", "--sim=pin=100M"]));
    assert_eq!(status(&findings, "pinning"), Some("warn"), "{findings:#}");
    let findings = json(&emuv(&["doctor", "--json", "--sim=pin=40M"]));
    assert_eq!(status(&findings, "pinning"), Some("fail"), "{findings:#}");
}

#[test]
fn the_demo_shows_refusal_completion_and_equal_results() {
    let output = emuv(&["demo", "--json", "--sim", "--seed", "4711"]);
    let outcome = json(&output);
    assert_eq!(output.status.code(), Some(0), "{outcome:#}");
    assert_eq!((&outcome["schema"], &outcome["simulated"], &outcome["seed"]), (&1.into(), &true.into(), &4711.into()));
    for point in ["refused_without_emuv", "completed_with_emuv", "spilled", "checksums_equal"] {
        assert_eq!(outcome[point], true, "{point}: {outcome:#}");
    }
    let runs = outcome["runs"].as_array().unwrap();
    assert_eq!(runs[0]["error"], "CUDA_ERROR_OUT_OF_MEMORY (2)");
    assert!(runs[1]["ram_peak_bytes"].as_u64() > Some(64 << 20), "{outcome:#}");
}

#[test]
fn the_demo_says_at_once_that_it_is_simulated() {
    let output = emuv(&["demo", "--sim"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("On a SIMULATED GPU"), "{text}");
}
