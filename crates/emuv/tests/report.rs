//! `emuv report` as people use it: a page from a report, and clear words for what is none.
#![allow(clippy::unwrap_used, clippy::expect_used)] // Tests: a panic is the report.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};

fn emuv(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_emuv")).current_dir(folder).arg("report").args(arguments).output().unwrap()
}

fn refusal(folder: &Path, arguments: &[&str]) -> String {
    let output = emuv(folder, arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

const HOSTILE: &str = "</title><script>alert(1)</script><img src=x onerror=\"alert(2)\"> ' & \u{202e}";

fn movement() -> Value {
    json!({
        "watched_seconds": 2.0, "gpu_waited_seconds": 1.0, "in_place_seconds": 0.5, "in_place_bytes": 1 << 20,
        "link": {"h2d_gb_per_s": 25.0, "d2h_gb_per_s": 25.0, "both_gb_per_s": 46.0},
        "percent_of_bound": 50.0, "unknown_because": HOSTILE, "percent_of_vram_speed": 20.0, "iterations": 10,
        "works_per_iteration": 12, "seconds_per_iteration": 0.2, "in_vram_seconds_per_iteration": 0.04,
        "bound_seconds_per_iteration": 0.1, "bytes_in_per_iteration": 1, "bytes_out_per_iteration": 1,
        "bytes_in_place_per_iteration": 1, "bound_bytes_in_per_iteration": 1, "bound_bytes_out_per_iteration": 1,
        "most_moved": [], "warning": {"reason": HOSTILE, "remedy": HOSTILE},
    })
}

fn timeline() -> Value {
    let lanes = |names: [&str; 4]| {
        names.iter().map(|name| ((*name).to_owned(), json!([0, 1 << 20, 5 << 20]))).collect::<Value>()
    };
    json!({
        "interval_seconds": 0.001, "seconds": [0.1, 0.5, 2.0], "vram_bytes": [1, 2, 3],
        "vram_most_bytes": [1 << 29, 1 << 30, 1 << 30], "ram_bytes": [0, 1, 2], "ram_most_bytes": [0, 1, 1 << 29],
        "launches": [1, 2, 99], "held_micros": [0, 100, 700], "in_place_bytes": [0, 0, 1], "remapped_bytes": [0, 0, 0],
        "into_vram_bytes": lanes(["demand", "ahead", "hint", HOSTILE]),
        "out_of_vram_bytes": lanes(["room", "plan", "limit", "torture"]),
        "marks": [{"seconds": 0.3, "label": HOSTILE}],
    })
}

fn site() -> Value {
    json!({
        "python": [{"file": HOSTILE, "line": 7, "function": HOSTILE}],
        "native": [{"library": HOSTILE, "offset": HOSTILE, "symbol": HOSTILE}],
    })
}

/// A report whose every text is hostile.
fn report() -> Value {
    let tier = json!({"budget_bytes": 1 << 30, "used_bytes": 0, "peak_bytes": 1 << 30});
    json!({
        "schema": 1, "emuv": HOSTILE, "command": [HOSTILE, HOSTILE], "exit_code": 0, "simulated": true,
        "limits": {"vram_bytes": 1 << 30, "ram_bytes": 1 << 30, "ram_floor_bytes": 0},
        "processes": [{"pid": 7, "command": HOSTILE, "internal_errors": 1, "devices": [{
            "ordinal": 0, "uuid": HOSTILE, "name": HOSTILE, "vram": tier, "ram": tier, "vram_physical_bytes": 2_u64 << 30,
            "unspilled_bytes": 0, "allocations": 3, "frees": 3, "refused": 2, "spilled_bytes": 1, "launches": 99,
            "promoted_bytes": 20 << 20, "evicted_bytes": 20 << 20, "held": 5, "held_micros": 700, "searches": 1,
            "movement": movement(), "timeline": timeline(),
            "costliest": [{"bytes": 64 << 20, "into_vram_bytes": 20 << 20, "out_of_vram_bytes": 1 << 20, "allocated_by": HOSTILE,
                "allocated_at": site()}],
        }]}],
    })
}

#[test]
fn a_report_becomes_a_page_that_holds_no_foreign_markup() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("out.json"), report().to_string()).unwrap();
    let output = emuv(folder.path(), &["out.json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out.html\n");
    let page = fs::read_to_string(folder.path().join("out.html")).unwrap();
    for part in
        ["<h3>VRAM and RAM</h3>", "<h3>What moved, and why</h3>", "<h3>The bound</h3>", "<h3>What cost most</h3>"]
    {
        assert!(page.contains(part), "no {part}");
    }
    assert!(page.contains("2 allocations were refused") && page.contains("50 % of the bound"), "{page}");
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    for foreign in ["<script", "<img", "onerror=\"", "\u{202e}", "http:", "https:", "NaN", "url("] {
        assert!(!page.contains(foreign), "{foreign} in the page");
    }
    // The same again: its own page may be overwritten, another file not.
    assert_eq!(emuv(folder.path(), &["out.json"]).status.code(), Some(0));
    fs::write(folder.path().join("out.html"), "my notes").unwrap();
    assert!(refusal(folder.path(), &["out.json"]).contains("name another with -o"));
    assert_eq!(fs::read_to_string(folder.path().join("out.html")).unwrap(), "my notes");
    assert_eq!(emuv(folder.path(), &["out.json", "-o", "/dev/stdout"]).stdout, page.into_bytes());
}

#[test]
fn what_is_no_report_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let good = report().to_string();
    let cases = [
        (good.replacen("\"schema\":1", "\"schema\":2", 1), "emuv: out.json: a report of schema 2; this emuv ("),
        (good[..good.len() / 2].to_owned(), "emuv: out.json: it ends too early ("),
        ("[]".to_owned(), "emuv: out.json: not a report of emuv run: "),
        ("\u{0}\u{1}".to_owned(), "emuv: out.json: not JSON: "),
    ];
    for (text, words) in cases {
        fs::write(folder.path().join("out.json"), text).unwrap();
        let said = refusal(folder.path(), &["out.json"]);
        assert!(said.starts_with(words) && said.lines().count() == 1, "{said}");
    }
    assert!(refusal(folder.path(), &["missing.json"]).contains("missing.json: cannot be read"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the report");
}

#[test]
fn numbers_that_cannot_be_are_shown_without_harm() {
    let folder = tempfile::tempdir().unwrap();
    let mut odd = report();
    let device = &mut odd["processes"][0]["devices"][0];
    for field in ["promoted_bytes", "evicted_bytes", "escaped_bytes", "held_micros"] {
        device[field] = u64::MAX.into();
    }
    device["timeline"]["vram_most_bytes"] = json!([u64::MAX]);
    device["timeline"]["seconds"] = json!([-5.0, 1e300, 3.0]);
    device["timeline"]["held_micros"] = json!([u64::MAX, 0, u64::MAX]);
    device["costliest"][0]["bytes"] = 0.into();
    fs::write(folder.path().join("odd.json"), odd.to_string()).unwrap();
    let output = emuv(folder.path(), &["odd.json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let page = fs::read_to_string(folder.path().join("odd.html")).unwrap();
    assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
}
