//! `emuv verify` on the simulated GPU, which refuses what is not mapped as a real one does: programs that keep to what
//! their launches name pass, and one that does not is named.
#![allow(clippy::unwrap_used, clippy::expect_used)] // Tests: a panic is the report.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

/// Longer than any of these programs takes on a slow machine: a guard against one that hangs.
const GUARD: [&str; 3] = ["timeout", "--kill-after=5", "300"];

/// A simulated card that all programs here fit on, and one on which they spill.
const FITS: &str = "--sim=vram=1G";
const SPILLS: [&str; 3] = ["--sim=vram=96M", "--ram", "512M"];

/// A place with the driver's library and one compiled program.
struct Place {
    root: TempDir,
    program: PathBuf,
}

impl Place {
    fn with(name: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let beside = Path::new(env!("CARGO_BIN_EXE_emuv")).parent().unwrap();
        let file = "libemuv_simgpu.so";
        let library = [beside.join("deps").join(file), beside.join(file)].into_iter().find(|path| path.is_file());
        let library = library.expect("the simulated driver: build the workspace first");
        for link in ["libcuda.so.1", "libcuda.so"] {
            std::os::unix::fs::symlink(&library, root.path().join(link)).unwrap();
        }
        let program = root.path().join(name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/programs").join(format!("{name}.c"));
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-o"]).arg(&program).arg(source);
        let output = cc.arg("-L").arg(root.path()).args(["-lcuda", "-ldl", "-lpthread"]).output();
        let output = output.expect("a C compiler named cc");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { root, program }
    }

    fn emuv(&self, subcommand: &str, flags: &[&str], arguments: &[&str]) -> Output {
        let mut command = Command::new(GUARD[0]);
        let inherited = std::env::vars_os().map(|(name, _)| name);
        for name in inherited.filter(|name| name.to_string_lossy().starts_with("EMUV_")) {
            command.env_remove(name);
        }
        command.args(&GUARD[1..]).arg(env!("CARGO_BIN_EXE_emuv")).args([subcommand, "--quiet"]).args(flags);
        command.arg("--").arg(&self.program).args(arguments);
        command.env_remove("LD_PRELOAD").env_remove("LD_LIBRARY_PATH").env_remove("CUDA_VISIBLE_DEVICES");
        command.env("EMUV_STATE_DIR", self.root.path().join("state"));
        command.env("EMUV_TEST_PTX", Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emuv.ptx"));
        command.output().unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The last line that emuv itself said.
fn verdict(output: &Output) -> String {
    let said = stderr(output);
    let line = said.lines().rfind(|line| line.starts_with("emuv: verify: "));
    line.unwrap_or_else(|| panic!("no verdict: {said}")).to_owned()
}

fn assert_passes(name: &str, flags: &[&str], arguments: &[&str]) {
    let output = Place::with(name).emuv("verify", flags, arguments);
    assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
    let verdict = verdict(&output);
    assert!(verdict.contains("each touched only what it was expected to"), "{name}: {verdict}");
    assert!(!verdict.contains(" 0 launches"), "{name}: {verdict}");
}

#[test]
fn a_loop_over_many_buffers_keeps_to_what_its_launches_name() {
    assert_passes("steady", &[FITS], &["6", "8", "4"]);
}

#[test]
fn data_in_ram_is_taken_away_and_comes_back_as_it_was() {
    assert_passes("steady", &SPILLS, &["12", "16", "2", "3"]);
}

#[test]
fn lists_of_addresses_in_memory_are_followed() {
    assert_passes("compute", &[FITS], &["64", "20260101"]);
}

#[test]
fn memory_comes_and_goes_between_launches() {
    for (name, arguments) in [("threads", &["96", "", "4", "60"]), ("pools", &["96", "", "20", ""])] {
        assert_passes(name, &[FITS], arguments);
    }
}

#[test]
fn a_kernel_that_reaches_what_it_does_not_name_is_named_with_its_launch() {
    let place = Place::with("hidden_pointer");
    let fine = place.emuv("run", &[FITS], &[]);
    assert_eq!(fine.status.code(), Some(0), "{}", stderr(&fine));

    let found = place.emuv("verify", &[FITS], &[]);
    assert_eq!(found.status.code(), Some(3), "{}", stderr(&found));
    // Two fills, then the gather.
    for line in [verdict(&found), stderr(&found).lines().next().unwrap().to_owned()] {
        assert!(line.contains("kernel emuv_gather (launch 3, stream 0x0)"), "{line}");
        assert!(line.contains("outside the 3 allocations that it names"), "{line}");
        assert!(line.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{line}");
    }
    assert!(verdict(&found).contains("failed after 3 launches"), "{}", verdict(&found));
    assert_eq!(fs::read_dir(place.root.path().join("state")).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn the_same_kernel_with_its_data_named_passes() {
    assert_passes("hidden_pointer", &[FITS], &["8", "1"]);
}

#[test]
fn a_program_that_gives_the_gpu_no_work_keeps_its_exit_code() {
    let mut place = Place::with("hidden_pointer");
    place.program = "false".into();
    let output = place.emuv("verify", &[FITS], &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(verdict(&output).contains("the program gave the GPU no work"), "{}", stderr(&output));
}
