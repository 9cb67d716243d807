//! `emuv top`, while programs run.

use serde_json::{Value, json};

use crate::place::{Obedient, Place, stderr};

fn snapshot(place: &Place) -> Value {
    let output = place.output(&["top", "--json", "-i", "0"]);
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn top_shows_who_has_what_in_a_slice_and_outside() {
    let place = Place::new();
    place.slice("ml-1", 32, 32);
    let mut inside = place.start("ml-1");
    let mut outside = place.command(&["run", "-q", "--sim=vram=256M", "--ram=64M", "--"]);
    outside.arg(crate::place::program("on_command"));
    let mut outside = Obedient::start(outside);
    assert_eq!((inside.tell("alloc 40"), outside.tell("alloc 20")), ("ok 0".to_owned(), "ok 0".to_owned()));
    let seen = snapshot(&place);
    assert_eq!((&seen["schema"], &seen["problems"]), (&json!(1), &json!([])));
    let process = |pid: u32| {
        let processes = seen["processes"].as_array().unwrap();
        processes.iter().find(|process| process["pid"] == json!(pid)).unwrap_or_else(|| panic!("{seen:#}"))
    };
    let (one, two) = (process(inside.pid), process(outside.pid));
    assert_eq!((&one["program"], &one["slice"], &two["slice"]), (&json!("on_command"), &json!("ml-1"), &Value::Null));
    let mib = |process: &Value, tier: &str| process["devices"][0][tier]["used_bytes"].as_u64().unwrap() >> 20;
    assert!(mib(one, "vram") <= 32 && mib(one, "vram") + mib(one, "ram") >= 40, "{one:#}");
    // Its code takes some too.
    assert!((20..=24).contains(&mib(two, "vram")) && mib(two, "ram") == 0, "{two:#}");
    // Chunks that are made to be moved into are charged, and hold nothing yet.
    assert!(seen["slices"][0]["ram_used_bytes"].as_u64().unwrap() >> 20 >= mib(one, "ram"), "{seen:#}");
    let uuid = &one["devices"][0]["gpu_uuid"];
    let gpu = seen["gpus"].as_array().unwrap().iter().find(|gpu| gpu["uuid"] == *uuid).unwrap();
    assert_eq!((&gpu["simulated"], &gpu["under_emuv"]["process_count"]), (&json!(true), &json!(2)));
    let output = place.output(&["top", "-i", "0"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("slice ml-1") && text.matches("on_command").count() == 2, "{text}");
    inside.kill();
    outside.end();
    assert_eq!(snapshot(&place)["processes"], json!([]));
}

/// Shows a screen on a terminal of its own, ends it, and prints its exit code and the last of what it wrote.
const ON_A_TERMINAL: &str = r#"
import fcntl, os, pty, signal, struct, subprocess, sys, termios
signal.alarm(120)
ours, theirs = pty.openpty()
fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
before = termios.tcgetattr(theirs)
# No controlling terminal: when it goes, no signal says so.
top = subprocess.Popen([sys.argv[1], "top"], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
seen = b""
while b"every 1 s" not in seen:
    seen += os.read(ours, 65536)
if sys.argv[2] == "gone":
    os.close(theirs)
    os.close(ours)
    print(top.wait())
else:
    if sys.argv[2] == "term":
        top.send_signal(signal.SIGTERM)
    else:
        os.write(ours, b"q")
    while b"\x1b[?1049l" not in seen:
        seen += os.read(ours, 65536)
    print(top.wait(), termios.tcgetattr(theirs) == before)
"#;

#[test]
fn the_terminal_is_as_it_was_when_top_ends_and_top_ends_with_the_terminal() {
    let place = Place::new();
    for (how, said) in [("quit", "0 True"), ("term", "143 True"), ("gone", "129")] {
        let mut python = std::process::Command::new("python3");
        python.args(["-c", ON_A_TERMINAL, env!("CARGO_BIN_EXE_emuv"), how]);
        python.env("EMUV_STATE_DIR", place.state()).env("TERM", "xterm").env_remove("NO_COLOR");
        let output = python.output().expect("python3");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), said, "{how}: {}", stderr(&output));
    }
}

#[test]
fn top_refuses_an_interval_that_is_none() {
    let place = Place::new();
    for interval in ["-1", "x", "nan", "1e9", ""] {
        let output = place.output(&["top", "--json", "-i", interval]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).starts_with(&format!("emuv: --interval: '{interval}' is no")), "{}", stderr(&output));
    }
}
