//! Real C programs, one per way into the driver and one per oddity of its memory calls, on the simulated
//! GPU: with the plain driver, with emuV and half of the data in RAM, with chunks moved at random all the
//! time, and with emuV and no RAM. What a program checks itself is the same in all of them; here it is
//! checked that data really was spilled.
//!
//! The sources are in `tests/programs/`; `tests/gpu/run.sh` runs the same programs on a real GPU.
#![allow(clippy::unwrap_used, clippy::expect_used)] // Tests: a panic is the report.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::LazyLock,
};

use serde_json::Value;
use tempfile::TempDir;

#[path = "programs/reports.rs"]
mod reports;
#[path = "programs/several_gpus.rs"]
mod several_gpus;

/// Longer than any of these programs takes on a slow machine: a guard against one that hangs.
const GUARD: [&str; 3] = ["timeout", "--kill-after=5", "300"];

const MIB: u64 = 1 << 20;

/// Variables that change what a program sees, besides emuV's own; a test sets what it needs and inherits none.
const CLEARED: [&str; 3] = ["LD_PRELOAD", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"];

/// The compiled programs and the folder that plays the part of the installed driver.
struct Bench {
    root: TempDir,
}

static BENCH: LazyLock<Bench> = LazyLock::new(Bench::build);

impl Bench {
    fn build() -> Self {
        let root = tempfile::tempdir().unwrap();
        let driver = root.path().join("driver");
        fs::create_dir(&driver).unwrap();
        let simulated = built_library("libemuv_simgpu.so");
        for name in ["libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", "libnvidia-ml.so"] {
            std::os::unix::fs::symlink(&simulated, driver.join(name)).unwrap();
        }
        let bench = Self { root };
        for entry in fs::read_dir(sources()).unwrap() {
            let source = entry.unwrap().path();
            if source.extension().is_some_and(|extension| extension == "c") {
                bench.compile(&source);
            }
        }
        bench
    }

    fn driver(&self) -> PathBuf {
        self.root.path().join("driver")
    }

    fn program(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn compile(&self, source: &Path) {
        let name = source.file_stem().unwrap().to_str().unwrap();
        let text = fs::read_to_string(source).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIE", "-pie", "-o"])
            .arg(self.program(name))
            .arg(source);
        // A program that opens the library itself must not be linked with it.
        if !text.contains("#define EMUV_PROGRAM_WITHOUT_LINKING") {
            cc.arg("-L").arg(self.driver()).arg("-lcuda");
        }
        if name == "rpath" {
            cc.arg(format!("-Wl,--disable-new-dtags,-rpath,{}", self.driver().display()));
        }
        let output = cc.args(["-ldl", "-lpthread"]).output().expect("a C compiler named cc");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/programs")
}

/// A shared object of the workspace, from the same places and in the same order as emuV takes it: it must be
/// the very same file, and the copy beside the binary may be older.
fn built_library(name: &str) -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_emuv")).parent().unwrap();
    let found = [beside.join("deps").join(name), beside.join(name)].into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not in {}: build the workspace first", beside.display()))
}

/// How a program is run.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Under {
    /// The simulated driver alone, with this much VRAM.
    Plain { vram: &'static str },
    /// emuV over a simulated card, with the options of `emuv run` that set the sizes.
    Emuv(&'static [&'static str]),
}

const PLAIN: Under = Under::Plain { vram: "1G" };
const SPILLED: Under = Under::Emuv(&["--sim=vram=256M", "--ram", "512M"]);
/// Moves chunks at random all the time; the seed is part of the name.
const TORTURE: Under = Under::Emuv(&["--sim=vram=256M", "--ram", "512M", "--policy", "torture:7"]);
const STATIC: Under = Under::Emuv(&["--sim=vram=256M", "--ram", "512M", "--policy", "static"]);
const NO_RAM: Under = Under::Emuv(&["--sim=vram=1G", "--ram", "0"]);

struct Run {
    what: String,
    output: Output,
    /// The report of `emuv run`; null for a plain run.
    report: Value,
}

impl Run {
    fn start(name: &str, arguments: &[&str], under: Under) -> Self {
        Self::start_with(name, arguments, under, &[])
    }

    /// Starts it with more variables, which `emuv run` finds set.
    fn start_with(name: &str, arguments: &[&str], under: Under, variables: &[(&str, &OsStr)]) -> Self {
        let bench = &*BENCH;
        let scratch = tempfile::tempdir().unwrap();
        let report = scratch.path().join("report.json");
        let mut command = Command::new(GUARD[0]);
        command.args(&GUARD[1..]);
        let own = std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("EMUV_"));
        for name in own.chain(CLEARED.map(Into::into)) {
            command.env_remove(name);
        }
        match under {
            Under::Plain { vram } => {
                command.env("LD_LIBRARY_PATH", bench.driver());
                command.env("EMUV_SIM", format!("vram={vram}"));
                command.env("EMUV_TEST_EXPECT", "plain");
            }
            Under::Emuv(options) => {
                command.arg(env!("CARGO_BIN_EXE_emuv")).args(["run", "--quiet"]).args(options);
                command.arg("--report").arg(&report).arg("--");
                command.env("EMUV_TEST_EXPECT", "emuv");
            }
        }
        command.arg(bench.program(name)).args(arguments).envs(variables.iter().copied());
        command.env("EMUV_STATE_DIR", scratch.path().join("state"));
        command.env("EMUV_TEST_PTX", Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emuv.ptx"));
        // The installed file itself: under emuV a program that opens it must still get emuV.
        command.env("EMUV_TEST_LIBCUDA", bench.driver().join("libcuda.so.1"));
        let output = command.output().unwrap();
        let report = fs::read(&report).ok().map_or(Value::Null, |text| serde_json::from_slice(&text).unwrap());
        Self { what: format!("{name} {} under {under:?}", arguments.join(" ")), output, report }
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    fn all_output(&self) -> String {
        format!("{}\n{}{}", self.what, self.stdout(), String::from_utf8_lossy(&self.output.stderr))
    }

    fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.output.status.code(), Some(code), "{}", self.all_output());
        self
    }

    /// The largest amount of RAM that any process of the run held for the device.
    fn ram_peak_bytes(&self) -> u64 {
        let processes = self.report["processes"].as_array().unwrap_or_else(|| panic!("{}: no report", self.what));
        let devices = processes.iter().flat_map(|process| process["devices"].as_array().into_iter().flatten());
        devices.filter_map(|device| device["ram"]["peak_bytes"].as_u64()).max().unwrap_or(0)
    }

    /// The one line of JSON that the program printed.
    fn json(&self) -> Value {
        let stdout = self.stdout();
        let line = stdout.lines().find(|line| line.starts_with('{'));
        serde_json::from_str(line.unwrap_or_else(|| panic!("{}: no JSON", self.all_output()))).unwrap()
    }
}

/// Runs a program all four ways; it must succeed in each. Gives the run whose memory is half in RAM.
fn everywhere(name: &str, arguments: &[&str]) -> Run {
    Run::start(name, arguments, PLAIN).expect_code(0);
    let unspilled = Run::start(name, arguments, NO_RAM).expect_code(0);
    assert_eq!(unspilled.ram_peak_bytes(), 0, "{}", unspilled.what);
    Run::start(name, arguments, TORTURE).expect_code(0);
    Run::start(name, arguments, SPILLED).expect_code(0)
}

/// As [`everywhere`], and a part of the memory must really have been in RAM.
fn everywhere_and_spilled(name: &str, arguments: &[&str]) -> Run {
    let run = everywhere(name, arguments);
    assert!(run.ram_peak_bytes() >= 16 * MIB, "{}: only {} bytes in RAM", run.what, run.ram_peak_bytes());
    run
}

#[test]
fn a_program_linked_with_libcuda() {
    everywhere("linked", &[]);
}

#[test]
fn a_program_with_the_drivers_folder_in_its_rpath() {
    everywhere("rpath", &[]);
}

#[test]
fn a_program_that_opens_libcuda_by_name() {
    everywhere("dlopened", &[]);
}

#[test]
fn a_program_that_opens_the_drivers_file_by_its_path() {
    everywhere("abspath", &[]);
}

#[test]
fn a_program_with_the_static_runtime_asks_cu_get_proc_address_for_everything() {
    everywhere("static_style", &[]);
}

#[test]
fn a_forked_child_gets_errors_and_the_parent_is_undisturbed() {
    everywhere_and_spilled("forking", &["288"]);
}

#[test]
fn programs_started_by_exec_and_spawn_see_the_same_memory() {
    everywhere("exec_child", &[]);
}

#[test]
fn memory_is_shared_with_another_process() {
    everywhere("ipc", &["0"]);
    everywhere_and_spilled("ipc", &["336"]);
    // Nothing moves, except what is exported.
    let fixed = Run::start("ipc", &["336"], STATIC).expect_code(0);
    assert!(fixed.ram_peak_bytes() >= 16 * MIB, "{}: only {} bytes in RAM", fixed.what, fixed.ram_peak_bytes());
}

#[test]
fn eight_threads_leave_nothing_behind() {
    // An empty seed means a fresh one, which the program prints.
    everywhere_and_spilled("threads", &["320", "", "12", "250"]);
}

#[test]
fn memory_calls_answer_as_the_real_driver_does() {
    everywhere("semantics", &["0"]);
    everywhere_and_spilled("semantics", &["256"]);
}

#[test]
fn copies_and_memsets_cross_chunk_and_tier_boundaries() {
    everywhere_and_spilled("spanning", &["150", "", "100"]);
}

#[test]
fn memory_goes_with_its_context() {
    everywhere_and_spilled("contexts", &["320"]);
}

#[test]
fn hints_change_nothing_but_what_was_discarded() {
    // Buffers of 13 to 24 MiB: even the smallest 24 are more than the VRAM.
    everywhere_and_spilled("hints", &["24", "24", "", "60"]);
    let run = Run::start("hints", &["16", "24", "7", "30"], TORTURE).expect_code(0);
    let timeline = &run.report["processes"][0]["devices"][0]["timeline"];
    let labels: Vec<_> = timeline["marks"].as_array().unwrap().iter().map(|mark| &mark["label"]).collect();
    assert_eq!(labels, ["hints <begin>", "end"], "{timeline}");
    assert!(
        timeline["into_vram_bytes"]["torture"].as_array().unwrap().last().unwrap().as_u64() > Some(0),
        "{timeline}"
    );
}

#[test]
fn stream_ordered_memory_spills_and_is_never_given_out_too_early() {
    everywhere_and_spilled("pools", &["320", "", "60"]);
}

#[test]
fn handles_that_the_program_maps_itself_spill() {
    everywhere_and_spilled("own_vmm", &["320"]);
}

#[test]
fn memory_of_other_interfaces_is_used_beside_memory_that_moves_and_is_charged() {
    let run = everywhere_and_spilled("external", &["96", "288"]);
    assert!(run.stdout().contains("external object used, buffer of OpenGL used"), "{}", run.all_output());
}

#[test]
fn buffers_that_only_an_array_of_pointers_names() {
    everywhere_and_spilled("pointer_array", &["12", "24", "6"]);
}

#[test]
fn memory_that_comes_and_goes_in_each_round_of_a_loop() {
    everywhere_and_spilled("activations", &["16", "16", "6"]);
    // Much less than all of it fits: what holds nothing changes places all the time.
    Run::start("activations", &["16", "16", "8"], Under::Emuv(&["--sim=vram=64M", "--ram", "512M"])).expect_code(0);
}

#[test]
fn a_linked_list_through_many_buffers() {
    everywhere_and_spilled("device_list", &["12", "24", "3"]);
}

#[test]
fn pointers_that_change_in_host_memory_without_a_call() {
    everywhere_and_spilled("mapped_pointers", &["12", "24", "6"]);
    // Never behind the stream's back: then only what the tables lead to is held in place.
    everywhere_and_spilled("mapped_pointers", &["12", "24", "8", "3", "0"]);
}

#[test]
fn events_alone_order_what_several_streams_do() {
    everywhere_and_spilled("producers", &["12", "24", "60"]);
}

#[test]
fn cooperative_launches() {
    everywhere_and_spilled("cooperative", &["12", "24", "4"]);
}

#[test]
fn old_addresses_come_back_as_other_buffers() {
    everywhere_and_spilled("reuse", &["176", "144", "120"]);
}

#[test]
fn graphs_keep_addresses_and_name_them_no_more() {
    everywhere_and_spilled("graphs", &["12", "24", "40"]);
    // Nothing moves, except where the driver refuses to change a graph otherwise.
    Run::start("graphs", &["12", "24", "40"], STATIC).expect_code(0);
    // That waits for what the GPU has to do, however long it takes.
    Run::start("graphs", &["12", "24", "40", "7", "200"], STATIC).expect_code(0);
}

#[test]
fn a_pointer_in_a_variable_of_the_module() {
    everywhere_and_spilled("global_pointer", &["12", "24", "12"]);
}

#[test]
fn a_loop_over_more_than_vram_holds() {
    everywhere_and_spilled("steady", &["12", "24", "3", "2"]);
}

#[test]
fn what_lies_beside_a_table_of_pointers_goes_on_moving() {
    everywhere("neighbours", &["6", "24", "4"]);
    for under in [
        Under::Emuv(&["--sim=vram=96M", "--ram", "512M"]),
        Under::Emuv(&["--sim=vram=96M", "--ram", "512M", "--policy", "torture:3"]),
    ] {
        let run = Run::start("neighbours", &["6", "24", "6"], under).expect_code(0);
        assert!(run.ram_peak_bytes() >= 48 * MIB, "{}: {} bytes in RAM", run.what, run.ram_peak_bytes());
        let escaped = run.report["processes"][0]["devices"][0]["escaped_bytes"].as_u64();
        assert_eq!(escaped, Some(2 * 24 * MIB), "{}: what the table leads to, and no more", run.what);
    }
}

/// Calls of the driver that fail while data moves: once, or from some call on. What is asked of the mover fails; the
/// program's own calls come before.
const FAULTS: [&str; 14] = [
    "fail=cuMemCreate:30",
    "fail=cuMemCreate:34-",
    "fail=cuMemMap:40",
    "fail=cuMemMap:41+cuMemMap:42+cuMemMap:43",
    "fail=cuMemMap:40:999",
    "fail=cuMemSetAccess:41+cuMemSetAccess:42",
    "fail=cuMemUnmap:6:999",
    "fail=cuMemcpyAsync:5",
    "fail=cuMemcpyAsync:6-",
    "fail=cuEventRecord:30-",
    "fail=cuEventQuery:40:999",
    "fail=cuStreamCreateWithPriority:1-",
    "fail=cuMemHostAlloc:1-",
    "pin=128M",
];

#[test]
fn faults_while_data_moves_cost_time_and_no_data() {
    const MOVED: Under = Under::Emuv(&["--ram", "512M"]);
    const TORTURED: Under = Under::Emuv(&["--ram", "512M", "--policy", "torture:3"]);
    for fault in FAULTS {
        let sim = format!("vram=256M,{fault}");
        // Long enough that the sixth unmapping is the mover's. Of a mover that is very slow it is the program's own at its end,
        // and a chunk of memory cannot be given back.
        let (rounds, slack_mib) = if fault.contains("cuMemUnmap") { ("10", "32") } else { ("2", "0") };
        for under in [MOVED, TORTURED] {
            let variables = [("EMUV_SIM", OsStr::new(&sim)), ("EMUV_TEST_SLACK_MIB", OsStr::new(slack_mib))];
            let run = Run::start_with("steady", &["12", "24", rounds, "2"], under, &variables);
            assert_eq!(run.output.status.code(), Some(0), "{fault}: {}", run.all_output());
        }
    }
}

#[test]
fn a_lost_gpu_is_told_to_the_program_and_ends_every_wait() {
    for under in [Under::Emuv(&["--ram", "512M"]), Under::Emuv(&["--ram", "512M", "--policy", "torture:3"])] {
        let sim = ("EMUV_SIM", OsStr::new("vram=256M,lost_after=60"));
        let run = Run::start_with("steady", &["12", "24", "4", "2"], under, &[sim]).expect_code(1);
        assert!(run.all_output().contains("gave 719"), "{}", run.all_output());
    }
}

#[test]
fn a_program_that_preloads_another_interposer() {
    let bench = &*BENCH;
    let other = bench.program("other.so");
    let source = sources().join("preload/other.c");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&other).arg(&source).arg("-ldl").status();
    assert!(built.unwrap().success(), "{} does not compile", source.display());
    for program in ["linked", "dlopened", "abspath", "static_style"] {
        let preload = ("LD_PRELOAD", other.as_os_str());
        Run::start_with(program, &[], SPILLED, &[preload]).expect_code(0);
    }
}

#[test]
fn random_sequences_of_every_allocation_call_agree_with_a_plain_model() {
    everywhere_and_spilled("model", &["400", "", "250", "240"]);
}

#[test]
fn all_memory_can_be_had_and_the_next_byte_is_out_of_memory() {
    Run::start("oom", &["32", "", "960", "1024"], PLAIN).expect_code(0);
    Run::start("oom", &["32", "", "960", "1024"], NO_RAM).expect_code(0);
    for under in [SPILLED, TORTURE] {
        let spilled = Run::start("oom", &["32", "", "700", "768"], under).expect_code(0);
        assert!(spilled.ram_peak_bytes() > 400 * MIB, "{}: {} bytes in RAM", spilled.what, spilled.ram_peak_bytes());
    }
}

#[test]
fn every_way_to_ask_for_the_size_gives_the_same_answer() {
    let total = |under| Run::start("meminfo", &[], under).expect_code(0).json()["total"].as_u64();
    assert_eq!(total(PLAIN), Some(1024 * MIB));
    assert_eq!(total(NO_RAM), Some(1024 * MIB));
    assert_eq!(total(SPILLED), Some(768 * MIB));
    assert_eq!(total(Under::Emuv(&["--sim=vram=1G", "--vram", "256M", "--ram", "512M"])), Some(768 * MIB));
    assert_eq!(total(Under::Emuv(&["--sim=vram=1G", "--vram", "256M", "--ram", "0"])), Some(256 * MIB));
}

#[test]
fn a_computation_in_half_the_vram_gives_the_checksums_of_one_that_fits() {
    let arguments = ["384", "20260101"];
    let fits = Run::start("compute", &arguments, PLAIN).expect_code(0).json();
    assert_eq!(fits["checksums"].as_array().map(Vec::len), Some(7));
    for under in [SPILLED, TORTURE, NO_RAM, Under::Emuv(&["--sim=vram=1G", "--vram", "200M", "--ram", "512M"])] {
        let run = Run::start("compute", &arguments, under).expect_code(0);
        assert_eq!(run.json(), fits, "{}", run.what);
        if under != NO_RAM {
            assert!(run.ram_peak_bytes() >= 100 * MIB, "{}: {} bytes in RAM", run.what, run.ram_peak_bytes());
        }
    }
}

#[test]
fn without_ram_the_same_computation_is_out_of_memory() {
    let arguments = ["384", "20260101"];
    for under in [Under::Plain { vram: "256M" }, Under::Emuv(&["--sim=vram=256M", "--ram", "0"])] {
        let run = Run::start("compute", &arguments, under).expect_code(2);
        assert_eq!(run.json()["error"], 2, "{}", run.what);
    }
}
