//! The Python module's own tests (`python/tests`), without emuV and under it on the simulated GPU.
#![allow(clippy::unwrap_used, clippy::expect_used)] // Tests: a panic is the report.

use std::{path::Path, process::Command};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Runs the tests, behind these words.
fn passes(before: &[&str]) {
    let test = root().join("python/tests/test_emuv.py");
    let (program, arguments) = before.split_first().map_or(("python3", &[][..]), |(first, rest)| (*first, rest));
    let state = tempfile::tempdir().unwrap();
    let mut command = Command::new(program);
    let own = std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("EMUV_"));
    for name in own.chain(["LD_PRELOAD", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"].map(Into::into)) {
        command.env_remove(name);
    }
    command.args(arguments).arg(test).env("PYTHONPATH", root().join("python/src"));
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("EMUV_STATE_DIR", state.path().join("state"));
    let output = command.output().expect("python3");
    assert!(output.status.success(), "{before:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn without_emuv_the_module_does_nothing_and_says_so_once() {
    passes(&[]);
}

#[test]
fn under_emuv_hints_statistics_and_marks_arrive() {
    let emuv = env!("CARGO_BIN_EXE_emuv");
    passes(&[emuv, "run", "-q", "--sim=vram=256M", "--ram", "256M", "--", "python3"]);
}
