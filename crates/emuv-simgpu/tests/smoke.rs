//! Runs C programs on the built library, through its exported symbols only.

// The linter's exception for tests does not reach a test's own small functions.
#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The library, built beside this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let library = test.parent().unwrap().join("libemuv_simgpu.so");
    assert!(library.exists(), "{} is missing; build the whole package", library.display());
    library
}

fn run(directory: &Path, source: &str, environment: &str) -> Output {
    let program = directory.join("program");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(source);
    // Old-style declarations are how the programs call symbols of any type.
    let built =
        Command::new("cc").args(["-std=gnu11", "-w", "-o"]).arg(&program).arg(source).arg("-ldl").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let mut command = Command::new(program);
    command.arg(library()).env("EMUV_SIM", environment).env_remove("CUDA_VISIBLE_DEVICES");
    command.output().unwrap()
}

#[test]
fn a_c_program_computes_fails_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(directory.path(), "smoke.c", "vram=256M,gpus=2,fail=cuEventCreate:2:999");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert_eq!(output.stdout, b"ok\n");
}

#[test]
fn a_wrong_configuration_is_named_and_stops_cuinit() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(directory.path(), "smoke.c", "vrma=1G");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("EMUV_SIM: unknown key 'vrma'"), "{said}");
    assert!(said.contains("gave 1, not 0"), "{said}");
}
