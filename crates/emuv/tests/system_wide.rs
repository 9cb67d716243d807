//! Programs that nobody starts with `emuv run`, with the library preloaded as `emuv install --system` does for all:
//! which of them use it, by what settings, and what is left when they end. On the simulated GPU.
#![allow(clippy::unwrap_used, clippy::expect_used)] // In the functions that the tests share.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A machine in a folder: a driver that is simulated, a configuration file, a state directory.
struct Machine(TempDir);

impl Machine {
    fn new(config: &str) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for folder in ["driver", "state", "other/lib"] {
            fs::create_dir_all(machine.path(folder)).unwrap();
        }
        fs::write(machine.path("emuv.toml"), config).unwrap();
        for name in ["libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1"] {
            symlink(built("libemuv_simgpu.so"), machine.path("driver").join(name)).unwrap();
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A program of `tests/programs`, compiled under a name of its own.
    fn compile(&self, source: &str, name: &str) -> PathBuf {
        let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/programs");
        let program = self.path(name);
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-O1", "-o"]).arg(&program).arg(programs.join(source));
        cc.arg("-L").arg(self.path("driver")).args(["-lcuda", "-ldl", "-lpthread"]);
        assert!(cc.status().expect("a C compiler named cc").success());
        program
    }

    /// The same environment for all.
    fn clean(&self, mut command: Command) -> Command {
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("EMUV_") || name.starts_with("CUDA_")) {
                command.env_remove(name);
            }
        }
        command
            .env("LD_LIBRARY_PATH", self.path("driver"))
            .env("EMUV_CONFIG", self.path("emuv.toml"))
            .env("EMUV_STATE_DIR", self.path("state"))
            .env("EMUV_SIM", "vram=256M")
            .env("EMUV_TEST_PTX", Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emuv.ptx"))
            .stdin(Stdio::null());
        command
    }

    /// A program with the library in it.
    fn preloaded(&self, program: &Path) -> Command {
        let mut command = self.clean(Command::new(program));
        command.env("LD_PRELOAD", built("libemuv_shim.so"));
        command
    }

    fn left_over(&self) -> usize {
        fs::read_dir(self.path("state")).unwrap().count()
    }
}

fn built(name: &str) -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_emuv")).parent().unwrap();
    let found = [beside.join("deps").join(name), beside.join(name)].into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not in {}: build the workspace first", beside.display()))
}

/// The GPU memory that `meminfo` was told there is, in MiB.
fn total_mib(output: &Output) -> u64 {
    told_mib(output, "total")
}

/// A figure that `meminfo` was told, in MiB.
fn told_mib(output: &Output, figure: &str) -> u64 {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    line[figure].as_u64().unwrap() / MIB
}

#[test]
fn a_program_that_nobody_starts_with_emuv_uses_it_by_the_configuration_file() {
    let machine = Machine::new("ram = '512M'\nvram = '128M'\n");
    let program = machine.compile("meminfo.c", "meminfo");
    // The program sees to it itself that the driver and NVML agree.
    let output = machine.preloaded(&program).env("EMUV_TEST_EXPECT", "emuv").output().unwrap();
    assert_eq!(total_mib(&output), 640);
    assert_eq!(machine.left_over(), 0, "its run's directory went with it");
    let output = machine.preloaded(&program).env("EMUV_RAM", "64M").output().unwrap();
    assert_eq!(total_mib(&output), 192, "a variable counts more");
}

#[test]
fn with_nothing_said_the_defaults_of_a_run_count_and_all_numbers_agree() {
    let machine = Machine::new("");
    let program = machine.compile("meminfo.c", "meminfo");
    let output = machine.preloaded(&program).env("EMUV_TEST_EXPECT", "emuv").output().unwrap();
    assert!(total_mib(&output) > 256);
}

#[test]
fn a_program_that_is_left_alone_meets_the_driver() {
    let config = "ram = '512M'\n[system]\nonly = ['mem*']\nexcept = ['memory-server']\n";
    let machine = Machine::new(config);
    for (name, total) in [("meminfo", 768), ("memory-server", 256), ("another", 256)] {
        let program = machine.compile("meminfo.c", name);
        assert_eq!(total_mib(&machine.preloaded(&program).output().unwrap()), total, "{name}");
    }
    fs::write(machine.path("emuv.toml"), "ram = '512M'\n[system]\nenabled = false\n").unwrap();
    assert_eq!(total_mib(&machine.preloaded(&machine.path("meminfo")).output().unwrap()), 256, "switched off");
    assert_eq!(machine.left_over(), 0);
}

#[test]
fn every_way_to_the_driver_ends_at_emuv_or_for_a_program_left_alone_at_the_driver() {
    for source in ["linked.c", "dlopened.c", "abspath.c"] {
        let machine = Machine::new("ram = '512M'\n[system]\nexcept = ['alone']\n");
        for name in ["program", "alone"] {
            let program = machine.compile(source, name);
            let mut command = machine.preloaded(&program);
            command.env("EMUV_TEST_LIBCUDA", machine.path("driver").join("libcuda.so.1"));
            if name == "program" {
                command.env("EMUV_TEST_EXPECT", "emuv");
            }
            let output = command.output().unwrap();
            assert!(output.status.success(), "{source} {name}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

#[test]
fn a_configuration_file_that_is_wrong_is_named_once_and_the_program_runs_without_emuv() {
    let machine = Machine::new("ram = '512M'\n[system]\nonyl = []\n");
    let program = machine.compile("meminfo.c", "meminfo");
    let output = machine.preloaded(&program).output().unwrap();
    assert_eq!(total_mib(&output), 256);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("emuv: ") && said.contains("emuv.toml: line 3: unknown field `onyl`"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn the_command_looks_at_the_machine_as_it_is() {
    let machine = Machine::new("ram = '512M'\n");
    let mut info = machine.preloaded(Path::new(env!("CARGO_BIN_EXE_emuv")));
    let output = info.args(["info", "--json"]).output().unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = found.to_string();
    assert!(text.contains(&(256 * MIB).to_string()) && !text.contains(&(768 * MIB).to_string()), "{text}");
}

#[test]
fn inside_a_run_that_runs_own_library_serves_and_this_one_stands_aside() {
    let machine = Machine::new("ram = '512M'\n");
    let program = machine.compile("meminfo.c", "meminfo");
    // Another copy of emuV's libraries: other files, so both are loaded.
    for name in ["libemuv_shim.so", "libemuv_simgpu.so"] {
        fs::copy(built(name), machine.path("other/lib").join(name)).unwrap();
    }
    let mut run = machine.clean(Command::new(env!("CARGO_BIN_EXE_emuv")));
    run.args(["run", "--sim=vram=256M", "--ram", "64M", "--"]).arg(&program);
    run.env("EMUV_LIB_DIR", machine.path("other/lib")).env("EMUV_TEST_EXPECT", "emuv");
    // As on the loader's list: in every program, emuv itself too.
    run.env("LD_PRELOAD", built("libemuv_shim.so"));
    assert_eq!(total_mib(&run.output().unwrap()), 320);
    assert_eq!(machine.left_over(), 0);
}

#[test]
fn what_a_killed_program_leaves_goes_with_the_next_and_until_then_others_see_what_it_uses() {
    let machine = Machine::new("ram = '512M'\n");
    let waiting = machine.compile("on_command.c", "waiting");
    let mut child = machine.preloaded(&waiting).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    writeln!(child.stdin.as_mut().unwrap(), "alloc 300").unwrap();
    assert!(lines.next().unwrap().unwrap().starts_with("ready"));
    assert_eq!(lines.next().unwrap().unwrap(), "ok 0");
    assert_eq!(machine.left_over(), 1, "its live counters");
    let program = machine.compile("meminfo.c", "meminfo");
    let seen = machine.preloaded(&program).output().unwrap();
    assert!(told_mib(&seen, "nvml_free") + 300 <= 768, "NVML counts what other programs of the user use");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(machine.left_over(), 1);
    total_mib(&machine.preloaded(&program).output().unwrap());
    assert_eq!(machine.left_over(), 0);
}
