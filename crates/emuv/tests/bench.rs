//! `emuv bench` from outside, on the simulated GPU, with a stand-in for Python that prints recorded results.
#![allow(clippy::unwrap_used, clippy::expect_used)] // Tests: a panic is the report.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

/// What stands in for Python: `$2` is the workload (or `--check`); EMUV_RUN_DIR is set by `emuv run` alone.
const PYTHON: &str = r#"#!/bin/sh
line() {
    echo "{\"seconds\": [9, 9, $1, $1], \"digests\": [\"a\", \"$2\"], \"peak_allocated_bytes\": 3000000000,\
 \"pass_bytes\": [3000000000], \"clean_bytes\": 3000000000, \"scale\": {\"layers\": 7}, \"scale_argument\": 7}"
}
case "$LD_PRELOAD" in *libcuda*) under=emuv ;; *) under=plain ;; esac
case "$*" in *--offload*) under=offload ;; esac
echo "$under $*" >> "$FAKE_LOG"
case "$2.$under" in
    --check.*) echo "$FAKE_CHECK" ;;
    decode-1.plain) line 0.001 b ;;
    decode-1.emuv) line 0.5 "$FAKE_DIGEST" ;;
    decode-1.offload) echo '{"skipped": "accelerate is not installed"}'; exit 4 ;;
    decode-16.*) echo 'Traceback' >&2; echo 'ValueError: broken' >&2; exit 1 ;;
    moe.*) kill -INT "$PPID"; exec sleep 1000 ;;
    *) echo '{"skipped": "torchvision is not installed"}'; exit 4 ;;
esac
"#;

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("state")).unwrap();
        fs::write(place.path("emuv.toml"), "").unwrap();
        fs::write(place.path("python"), PYTHON).unwrap();
        fs::set_permissions(place.path("python"), fs::Permissions::from_mode(0o755)).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_emuv"));
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("EMUV_") || name.starts_with("CUDA_")) {
                command.env_remove(name);
            }
        }
        for name in ["LD_PRELOAD", "LD_LIBRARY_PATH"] {
            command.env_remove(name);
        }
        command
            .arg("bench")
            .args(arguments)
            .current_dir(self.0.path())
            .env("EMUV_STATE_DIR", self.path("state"))
            .env("EMUV_CONFIG", self.path("emuv.toml"))
            .env("FAKE_LOG", self.path("calls"))
            .env("FAKE_CHECK", r#"{"torch": "2.0", "problem": null, "free_bytes": 8000000000}"#)
            .env("FAKE_DIGEST", "b")
            .stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// A bench on the simulated GPU with the stand-in.
    fn bench(&self, arguments: &[&str]) -> Command {
        let python = self.path("python");
        let own = ["--sim=vram=8G", "--out", "out", "--python", python.to_str().unwrap()];
        self.command(&[&own, arguments].concat())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("out/bench.json")).unwrap()).unwrap()
    }

    fn calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("calls")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn refused(output: &Output, code: i32, begin: &str) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.starts_with(&format!("emuv: {begin}")) && said.lines().count() == 1, "{said}");
}

#[test]
fn what_is_wrong_with_the_flags_is_said_in_one_line_and_nothing_is_made() {
    let place = Place::new();
    for (flags, begin) in [
        (["--workload", "gpt"], "--workload: there is no workload 'gpt'"),
        (["--at", "0"], "invalid value '0' for '--at"),
        (["--at", "1.5,x"], "invalid value 'x' for '--at"),
        (["--baselines", "emuv,magic"], "invalid value 'magic' for '--baselines"),
        (["--repeats", "0"], "invalid value '0' for '--repeats"),
        (["--peak", "12X"], "--peak: '12X' is not a size"),
        (["--peak", "1M"], "--peak: at least 256M"),
        (["--sim=colour=red", "--quick"], "--sim: "),
    ] {
        refused(&place.output(&flags), 2, begin);
    }
    assert!(!place.path("out").exists());
}

#[test]
fn nothing_that_is_there_is_overwritten_or_cleaned_up() {
    let place = Place::new();
    fs::create_dir_all(place.path("out/logs")).unwrap();
    fs::write(place.path("out/logs/mine"), "precious").unwrap();
    refused(&place.bench(&["--quick"]).env("FAKE_CHECK", "").output().unwrap(), 2, "--out: ");
    assert_eq!(fs::read_to_string(place.path("out/logs/mine")).unwrap(), "precious");
}

#[test]
fn without_pytorch_it_says_how_to_get_it_and_leaves_nothing() {
    let place = Place::new();
    let missing = place.bench(&[]).env("FAKE_CHECK", r#"{"torch": null}"#).output().unwrap();
    refused(&missing, 3, &place.path("python").display().to_string());
    assert!(text(&missing.stderr).contains("-m pip install torch"), "{}", text(&missing.stderr));
    let blind = place.bench(&[]).env("FAKE_CHECK", r#"{"torch": "2.0", "problem": "no driver"}"#).output().unwrap();
    refused(&blind, 3, "PyTorch of ");
    let broken = place.bench(&[]).env("FAKE_CHECK", "oops").output().unwrap();
    refused(&broken, 2, "--python: ");
    let nowhere = place.output(&["--sim=vram=8G", "--out", "out", "--python", "/nonexistent/python"]);
    refused(&nowhere, 2, "--python: /nonexistent/python: not found");
    assert!(!place.path("out").exists());
}

#[test]
fn a_bench_compares_and_writes_everything_down() {
    let place = Place::new();
    let output = place.bench(&["--workload", "decode,resnet50", "--at", "0.8,1.5"]).output().unwrap();
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{table}{}", text(&output.stderr));
    assert!(table.starts_with("SIMULATED"), "{table}");
    let row = |begin: &[&str]| {
        let row = table.lines().find(|line| line.split_whitespace().take(begin.len()).eq(begin.iter().copied()));
        row.unwrap_or_else(|| panic!("no {begin:?}: {table}")).to_owned()
    };
    let cells: Vec<_> = row(&["decode-1", "1.5x"]).split_whitespace().map(str::to_owned).collect();
    assert_eq!(cells[2..11], ["2.79", "GiB", "1.86", "GiB", "1.00", "500", "500", "500", "failed"], "{table}");
    assert!(row(&["decode-1", "1.5x"]).ends_with("offload: accelerate is not installed"), "{table}");
    assert!(row(&["resnet50"]).ends_with("torchvision is not installed"), "{table}");
    assert!(row(&["decode-16"]).ends_with("exit code 1: ValueError: broken"), "{table}");

    let found = place.json();
    assert_eq!(
        (&found["schema"], &found["simulated"], &found["interrupted"]),
        (&1.into(), &true.into(), &false.into())
    );
    let at = found["rows"].as_array().unwrap().iter().find(|row| row["at"] == 1.5).unwrap();
    assert_eq!((&at["vram_bytes"], &at["same_bits"]), (&2_000_000_000_u64.into(), &true.into()));
    assert_eq!((&at["emuv"]["ratio"], &at["static"]["ratio"]), (&500.0.into(), &500.0.into()));
    assert!(at["bound"]["seconds"].as_f64().unwrap() > 0.0 && at["percent_of_bound"].as_f64().unwrap() > 0.0, "{at:#}");
    let samples = found["samples"].as_array().unwrap();
    // Twice plain, emuV at both, static and offload at 1.5; the others' plain runs fail.
    assert_eq!(samples.len(), 8, "{samples:#?}");
    assert!(samples.iter().any(|sample| sample["seconds"] == serde_json::json!([9.0, 9.0, 0.5, 0.5])), "{samples:#?}");
    assert!(samples.iter().any(|sample| sample["report"]["schema"] == 1), "{samples:#?}");
    assert!(fs::read_to_string(place.path("out/bench.svg")).unwrap().contains("decode-1"));
    assert!(fs::read_to_string(place.path("out/logs/decode-16.plain.err")).unwrap().contains("Traceback"));
    assert!(place.path("out/workloads/workload.py").exists());

    let calls = place.calls();
    let sized = |call: &&String| call.contains(" --scale 7");
    assert!(calls.iter().filter(|call| call.starts_with("emuv ")).all(|call| sized(&call)), "{calls:#?}");
    assert_eq!(calls.iter().filter(|call| call.contains("--offload-budget 2000000000")).count(), 1, "{calls:#?}");
}

#[test]
fn in_turns_everything_is_run_that_often_with_outputs_of_its_own() {
    let place = Place::new();
    let flags = ["--workload", "decode-1", "--at", "1.1,1.5", "--baselines", "emuv", "--turns", "2"];
    let output = place.bench(&flags).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let found = place.json();
    let of = |baseline| {
        let samples = found["samples"].as_array().unwrap();
        let order = samples.iter().enumerate().filter(|(_, sample)| sample["baseline"] == baseline);
        order.map(|(at, _)| at).collect::<Vec<_>>()
    };
    assert_eq!((of("plain"), of("emuv")), (vec![0, 3, 6], vec![1, 2, 4, 5]));
    assert_eq!((&found["turns"], &found["rows"][0]["emuv"]["spread"]), (&2.into(), &1.0.into()));
    let logs = ["plain", "plain.2", "plain.3", "1.1.emuv", "1.1.emuv.2", "1.5.emuv.2"];
    assert!(logs.iter().all(|log| place.path(&format!("out/logs/decode-1.{log}.out")).exists()));
}

#[test]
fn other_bits_are_exit_code_1() {
    let place = Place::new();
    let flags = ["--workload", "decode-1", "--at", "1.5", "--baselines", "emuv", "--json"];
    let output = place.bench(&flags).env("FAKE_DIGEST", "x").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["rows"][0]["same_bits"], false);
    assert_eq!(found["rows"][0]["static"], Value::Null, "it was not asked for");
}

#[test]
fn an_interrupt_ends_the_run_and_keeps_what_there_is() {
    let place = Place::new();
    let flags = ["--workload", "decode-1,moe", "--at", "1.5", "--baselines", "emuv"];
    let output = place.bench(&flags).output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    let found = place.json();
    assert_eq!((&found["interrupted"], found["rows"].as_array().unwrap().len()), (&true.into(), 1));
    assert!(text(&output.stdout).contains("Interrupted"), "{}", text(&output.stdout));
}

#[test]
fn the_scripts_can_be_had_and_the_workloads_listed() {
    let place = Place::new();
    let output = place.output(&["--write-workloads", "scripts"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "scripts/workload.py\n");
    assert!(place.path("scripts/harness.py").exists());
    let listed = text(&place.output(&["--list"]).stdout);
    assert!(listed.lines().count() > 10 && listed.contains("moe "), "{listed}");
}
