//! The binary from outside: what it refuses and how, exit codes, signals, what it leaves behind. All of it
//! runs on the simulated GPU.
#![allow(clippy::unwrap_used, clippy::expect_used)] // In the functions that the tests share.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

/// A place of its own for each test: state directory, configuration file, no settings inherited.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.state()).unwrap();
        fs::write(place.path("emuv.toml"), "").unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn state(&self) -> PathBuf {
        self.path("state")
    }

    fn emuv(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_emuv"));
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("EMUV_") || name.starts_with("CUDA_")) {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .env("EMUV_STATE_DIR", self.state())
            .env("EMUV_CONFIG", self.path("emuv.toml"))
            .stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.emuv(arguments).output().unwrap()
    }

    /// Runs `emuv run --sim` with these flags and this program.
    fn sim(&self, flags: &[&str], program: &[&str]) -> Output {
        self.output(&[&["run", "--sim=vram=64M"], flags, &["--"], program].concat())
    }

    fn left_over(&self) -> Vec<String> {
        fs::read_dir(self.state()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("emuv itself is not killed")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One line that starts with "emuv: " and this, and nothing started.
fn assert_refused(output: &Output, exit_code: i32, start: &str) {
    let said = stderr(output);
    assert_eq!(code(output), exit_code, "{said}");
    assert!(said.starts_with(&format!("emuv: {start}")), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(stdout(output), "", "nothing was started");
}

#[test]
fn a_bad_flag_is_refused_by_its_name_and_nothing_is_started() {
    let place = Place::new();
    let report = place.path("missing/report.json");
    let cases: &[(&[&str], &str)] = &[
        (&["--ram", "lots"], "--ram: 'lots' is not a size"),
        (&["--ram", "-4G"], "--ram: '-4G' is negative"),
        (&["--ram", ""], "--ram: '' is not a size"),
        (&["--ram", "2000T"], "--ram: '2000T' is more than any machine has"),
        (&["--ram", "99999999999999999999"], "--ram: "),
        (&["--ram", "900T"], "--ram: 900 TiB is more than this host can give: it has "),
        (&["--vram", "12X"], "--vram: '12X' is not a size"),
        (&["--vram", "0"], "--vram: 0 leaves the program no VRAM"),
        (&["--gpu", "7"], "--gpu: there is no GPU 7; there are 0 (GPU-"),
        (&["--gpu", "-1"], "--gpu: '-1' is neither"),
        (&["--gpu", "GPU-ffffffff-0000"], "--gpu: there is no GPU GPU-ffffffff-0000"),
        (&["--report", report.to_str().unwrap()], "--report: cannot write "),
        (&["--sim=colour=red"], "--sim: there is no key 'colour'"),
        (&["--sim=vram=lots"], "--sim: vram: 'lots'"),
        (&["--sim=gpus=0"], "--sim: gpus: "),
        (&["--sim=h2d=fast"], "--sim: h2d: 'fast'"),
        (&["--rma", "4G"], "unexpected argument '--rma'"),
    ];
    for (flags, start) in cases {
        let mut arguments = vec!["run"];
        if !flags[0].starts_with("--sim") {
            arguments.push("--sim");
        }
        arguments.extend(*flags);
        arguments.extend(["--", "echo", "started"]);
        assert_refused(&place.output(&arguments), 2, start);
    }
    assert!(place.left_over().is_empty());
}

#[test]
fn a_bad_variable_is_refused_by_its_name() {
    let place = Place::new();
    for (name, value) in [
        ("EMUV_RAM", "lots"),
        ("EMUV_VRAM", "-1G"),
        ("EMUV_RAM_FLOOR", "2000T"),
        ("CUDA_DEVICE_MEMORY_LIMIT", "3000q"),
        ("EMUV_GPU", "9"),
        ("EMUV_REPORT", "/nonexistent/report.json"),
        ("EMUV_LOG", "loud"),
        ("EMUV_CONFIG", "/nonexistent.toml"),
        ("EMUV_STATE_DIR", "/nonexistent/state"),
        ("EMUV_STATE_DIR", "state"),
    ] {
        let output = place.emuv(&["run", "--sim", "--", "echo", "started"]).env(name, value).output().unwrap();
        assert_refused(&output, 2, &format!("{name}: "));
    }
    let output = place.emuv(&["run", "--", "echo", "started"]).env("EMUV_SIM", "colour=red").output().unwrap();
    assert_refused(&output, 2, "EMUV_SIM: ");
}

#[test]
fn a_bad_file_is_refused_by_its_name_and_key() {
    let place = Place::new();
    let file = place.path("emuv.toml");
    for (text, words) in [("rma = '4G'", "rma"), ("ram = '900T'", ": ram: "), ("ram = true", "a size such as")] {
        fs::write(&file, text).unwrap();
        let output = place.sim(&[], &["echo", "started"]);
        assert_refused(&output, 2, &file.display().to_string());
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
}

#[test]
fn a_server_that_cannot_answer_as_asked_does_not_start() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert_refused(&place.output(&["serve", "--listen", &address]), 1, &format!("--listen {address}: another program"));
    assert_refused(
        &place.output(&["serve", "--listen", "192.0.2.1:9464"]),
        1,
        "--listen 192.0.2.1:9464: this machine has",
    );
    assert_refused(&place.output(&["serve", "--admin"]), 2, "the following required arguments");
    let token = place.path("token");
    fs::write(&token, "0123456789abcdef\n").unwrap();
    fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let output =
        place.output(&["serve", "--listen", "127.0.0.1:0", "--admin", "--token-file", token.to_str().unwrap()]);
    assert_refused(&output, 2, "--token-file: ");
    assert!(stderr(&output).contains("chmod 600"), "{}", stderr(&output));
}

#[test]
fn a_server_says_where_it_answers_and_ends_when_it_is_told_to() {
    let place = Place::new();
    let mut command = place.emuv(&["serve", "--listen", "127.0.0.1:0"]);
    let mut server = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("emuv serve answers at http://").and_then(|rest| rest.strip_suffix('/'));
    assert!(std::net::TcpStream::connect(address.unwrap()).is_ok(), "{line}");
    send("-TERM", &server);
    assert!(server.wait().unwrap().success());
    assert!(place.left_over().is_empty());
}

#[test]
fn a_mistake_in_the_command_line_is_one_line() {
    let place = Place::new();
    assert_refused(&place.output(&["run", "--sim"]), 2, "the following required arguments were not provided");
    assert_refused(&place.output(&["rum"]), 2, "unrecognized subcommand 'rum'");
    assert_refused(&place.output(&["info", "--sim=x"]), 2, "--sim: 'x' is not key=value");
    assert_refused(&place.output(&["info", "--yaml"]), 2, "unexpected argument '--yaml'");
}

#[test]
fn help_and_version_go_to_standard_output() {
    let place = Place::new();
    assert_eq!(stdout(&place.output(&["--version"])), concat!("emuv ", env!("CARGO_PKG_VERSION"), "\n"));
    for arguments in [&["--help"][..], &["run", "--help"], &["run", "-h"], &["info", "--help"]] {
        let output = place.output(arguments);
        assert_eq!((code(&output), stderr(&output)), (0, String::new()), "{arguments:?}");
        assert!(stdout(&output).contains("Usage: emuv"), "{arguments:?}");
    }
    assert!(stdout(&place.output(&["run", "--help"])).contains("EMUV_RAM_FLOOR"));
}

#[test]
fn the_programs_exit_code_is_emuvs() {
    let place = Place::new();
    let not_executable = place.path("data");
    fs::write(&not_executable, "data").unwrap();
    let not_executable = not_executable.to_str().unwrap();
    let cases: &[(&[&str], i32)] = &[
        (&["true"], 0),
        (&["false"], 1),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "exit 255"], 255),
        (&["sh", "-c", "kill -TERM $$"], 128 + 15),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9),
        (&["emuv-no-such-program"], 127),
        (&["/nonexistent/program"], 127),
        (&[not_executable], 126),
        (&["/"], 126),
    ];
    for (program, expected) in cases {
        let output = place.sim(&[], program);
        assert_eq!(code(&output), *expected, "{program:?}: {}", stderr(&output));
    }
    assert!(place.left_over().is_empty());
}

#[test]
fn the_program_gets_its_arguments_and_streams_untouched() {
    let place = Place::new();
    let output = place.sim(&[], &["printf", "%s|", "--ram", "-q", "a b", "--", ""]);
    assert_eq!(stdout(&output), "--ram|-q|a b|--||");
    assert_eq!(stderr(&output), "");
    let mut child = place.emuv(&["run", "--sim", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"through").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"through");
}

#[test]
fn the_program_finds_emuv_under_every_name_of_the_driver() {
    let place = Place::new();
    let script = "for f in libcuda.so libcuda.so.1 libnvidia-ml.so libnvidia-ml.so.1; do \
                  readlink -f \"${LD_LIBRARY_PATH%%:*}/$f\"; done; readlink -f \"${LD_PRELOAD%%:*}\"";
    let found = stdout(&place.sim(&[], &["sh", "-c", script]));
    assert_eq!(found.lines().count(), 5, "{found}");
    assert!(found.lines().all(|line| line.ends_with("/libemuv_shim.so")), "{found}");
}

/// The variables that matter, as the program sees them.
fn environment_of(output: &Output) -> impl Fn(&str) -> Option<String> + use<> {
    let text = stdout(output);
    move |name| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

#[test]
fn the_limits_reach_the_program_in_bytes() {
    let place = Place::new();
    let seen = environment_of(&place.sim(&["--ram", "1M", "--vram", "10.5M", "-q"], &["env"]));
    assert_eq!(seen("EMUV_RAM").as_deref(), Some("1048576"));
    assert_eq!(seen("EMUV_VRAM").as_deref(), Some("11010048"));
    assert_eq!(seen("EMUV_QUIET").as_deref(), Some("1"));
    assert_eq!(seen("EMUV_SIM").as_deref(), Some("vram=64M"));
    assert!(seen("EMUV_RAM_FLOOR").is_some_and(|floor| floor.parse::<u64>().is_ok()));
    let plain = environment_of(&place.sim(&["--ram", "0"], &["env"]));
    assert_eq!(plain("EMUV_RAM").as_deref(), Some("0"));
    assert_eq!((plain("EMUV_VRAM"), plain("EMUV_QUIET"), plain("CUDA_VISIBLE_DEVICES")), (None, None, None));
}

#[test]
fn a_gpu_is_chosen_by_its_number_and_seen_by_its_uuid() {
    let place = Place::new();
    let info = place.output(&["info", "--json", "--sim=gpus=2"]);
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    let uuid = info["gpus"][1]["uuid"].as_str().unwrap().to_owned();
    for wanted in ["1", uuid.as_str()] {
        let output = place
            .emuv(&["run", "--sim=gpus=2", "--gpu", wanted, "--", "env"])
            .env("CUDA_VISIBLE_DEVICES", "0")
            .output()
            .unwrap();
        assert_eq!(environment_of(&output)("CUDA_VISIBLE_DEVICES"), Some(uuid.clone()), "{}", stderr(&output));
    }
}

#[test]
fn inside_a_run_another_run_works_and_keeps_what_is_behind_emuv() {
    let place = Place::new();
    let output = place.sim(&["--ram", "1M"], &[env!("CARGO_BIN_EXE_emuv"), "run", "--", "env"]);
    let seen = environment_of(&output);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(seen("EMUV_REAL_LIBCUDA").unwrap().ends_with("/libemuv_simgpu.so"));
    assert_eq!(seen("EMUV_RAM").as_deref(), Some("1048576"));
    assert!(!seen("LD_PRELOAD").unwrap().contains(':'), "one entry of emuV's is enough");
}

#[test]
fn without_a_usable_driver_one_line_says_what_can_be_tried() {
    let place = Place::new();
    let mut command = place.emuv(&["run", "--", "echo", "started"]);
    let output = command.env("EMUV_REAL_LIBCUDA", "/nonexistent/libcuda.so.1").output().unwrap();
    assert_refused(&output, 125, "no NVIDIA driver: ");
    assert!(stderr(&output).contains("emuv run --sim"), "{}", stderr(&output));
    let output = place.output(&["run", "--sim=driver=12010", "--", "echo", "started"]);
    assert_refused(&output, 125, "the driver is for CUDA 12.1; emuV needs CUDA 12.2 or newer");
}

#[test]
fn the_report_says_what_was_run_and_how_it_ended() {
    let place = Place::new();
    let path = place.path("report.json");
    let output = place.sim(&["--ram", "1M", "--report", path.to_str().unwrap()], &["sh", "-c", "exit 3"]);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(report["schema"], 1);
    assert_eq!(report["emuv"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["command"], serde_json::json!(["sh", "-c", "exit 3"]));
    assert_eq!((&report["exit_code"], &report["simulated"]), (&Value::from(3), &Value::from(true)));
    assert_eq!(
        (&report["limits"]["ram_bytes"], &report["limits"]["vram_bytes"]),
        (&Value::from(1 << 20), &Value::Null)
    );
    assert_eq!(report["processes"], serde_json::json!([]), "this program uses no CUDA");
}

#[test]
fn a_report_that_can_no_longer_be_written_leaves_the_exit_code() {
    let place = Place::new();
    let folder = place.path("reports");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("report.json");
    let program = ["sh", "-c", "rm -r \"$0\"; exit 4", folder.to_str().unwrap()];
    let output = place.sim(&["--report", path.to_str().unwrap()], &program);
    assert_eq!(code(&output), 4);
    assert!(stderr(&output).starts_with("emuv: --report: cannot write "), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1);
}

#[test]
fn info_has_the_documented_shape() {
    let place = Place::new();
    let output = place.output(&["info", "--json", "--sim=gpus=2,vram=64M"]);
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&info["schema"], &info["simulated"], &info["problem"]), (&1.into(), &true.into(), &Value::Null));
    assert_eq!(info["gpus"].as_array().unwrap().len(), 2);
    for (index, gpu) in info["gpus"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&gpu["index"], &gpu["vram_total_bytes"]), (&index.into(), &(64 << 20).into()), "{gpu}");
        assert!(gpu["uuid"].as_str().unwrap().starts_with("GPU-"), "{gpu}");
        for key in ["name", "vram_free_bytes", "pcie_generation", "pcie_width", "pcie_generation_max"] {
            assert!(gpu.get(key).is_some(), "{key} in {gpu}");
        }
    }
    assert!(info["host"]["ram_total_bytes"].as_u64() >= info["host"]["ram_available_bytes"].as_u64());
    assert!(info["limits"]["ram_bytes"].is_u64() && info["limits"]["ram_floor_bytes"].is_u64());
    assert_eq!(info["state_dir"], place.state().to_str().unwrap());
    assert!(info["libraries"]["shim"].as_str().unwrap().ends_with("libemuv_shim.so"));
}

#[test]
fn info_without_a_driver_still_tells_the_rest() {
    let place = Place::new();
    let mut command = place.emuv(&["info", "--json"]);
    let output = command.env("EMUV_REAL_LIBCUDA", "/nonexistent/libcuda.so.1").output().unwrap();
    assert_eq!((code(&output), stderr(&output)), (9, String::new()));
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(info["gpus"], serde_json::json!([]));
    assert!(info["problem"].as_str().unwrap().contains("no NVIDIA driver"), "{info}");
    assert!(info["host"]["ram_total_bytes"].is_u64());
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let place = Place::new();
    let mut child = place.emuv(&["info", "--sim"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
}

/// Starts a shell script under emuv and waits for its line "ready".
fn start(place: &Place, script: &str) -> (Child, ChildStdin, BufReader<ChildStdout>) {
    let mut child = place
        .emuv(&["run", "--sim", "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    // Waiting for a child closes its input first, so that has to be held apart.
    let input = child.stdin.take().unwrap();
    (child, input, reader)
}

fn send(signal: &str, process: &Child) {
    let sent = Command::new("kill").args([signal, &process.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn a_signal_sent_to_emuv_reaches_the_program_and_the_program_decides() {
    for (signal, name) in [("-TERM", "TERM"), ("-INT", "INT"), ("-HUP", "HUP"), ("-USR1", "USR1"), ("-QUIT", "QUIT")] {
        let place = Place::new();
        // A shell runs a trap at once only in `wait`, and gives a background command no input unless by
        // another number.
        let script = format!(
            "trap 'kill -KILL $child; wait $child; exit 5' {name}
             exec 3<&0; cat <&3 & child=$!; echo ready; wait $child"
        );
        let (mut emuv, _input, _reader) = start(&place, &script);
        send(signal, &emuv);
        assert_eq!(emuv.wait().unwrap().code(), Some(5), "{name}");
        assert!(place.left_over().is_empty(), "{name}");
    }
}

#[test]
fn a_program_that_a_passed_on_signal_kills_ends_emuv_with_128_and_its_number() {
    let place = Place::new();
    let (mut emuv, _input, _reader) = start(&place, "echo ready; exec cat");
    send("-TERM", &emuv);
    assert_eq!(emuv.wait().unwrap().code(), Some(128 + 15));
    assert!(place.left_over().is_empty());
}

fn is_running_for(place: &Place) -> bool {
    !place.left_over().is_empty()
}

#[test]
fn after_emuv_is_killed_the_directory_lives_as_long_as_the_program_and_the_next_run_removes_it() {
    let place = Place::new();
    let (mut emuv, input, mut reader) = start(&place, "echo ready; exec cat");
    let run_dir = place.state().join(&place.left_over()[0]);
    emuv.kill().unwrap();
    emuv.wait().unwrap();
    assert_eq!(code(&place.sim(&[], &["true"])), 0);
    assert!(run_dir.join("lib/libcuda.so.1").exists(), "the program still needs it");

    drop(input);
    reader.read_to_end(&mut Vec::new()).unwrap();
    // The program has closed its streams and is about to be gone; each try is a whole run, none is a pause.
    let tries = (0..100).take_while(|_| {
        assert_eq!(code(&place.sim(&[], &["true"])), 0);
        is_running_for(&place)
    });
    assert!(tries.count() < 100, "left over: {:?}", place.left_over());
}

#[test]
fn two_runs_at_once_do_not_touch_each_other() {
    let place = Place::new();
    let (mut first, input, _reader) = start(&place, "echo ready; exec cat");
    let first_dir = place.state().join(&place.left_over()[0]);
    let second = place.sim(&[], &["sh", "-c", "test -d \"$EMUV_RUN_DIR/lib\" && echo \"$EMUV_RUN_DIR\""]);
    let second_dir = stdout(&second).trim().to_owned();
    assert!(code(&second) == 0 && Path::new(&second_dir) != first_dir);
    assert!(first_dir.is_dir() && !Path::new(&second_dir).exists());
    drop(input);
    assert!(first.wait().unwrap().success());
    assert!(place.left_over().is_empty());
}
