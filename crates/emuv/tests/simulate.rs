//! `emuv simulate` from outside: what it prints and what it refuses.
#![allow(clippy::unwrap_used, clippy::expect_used)] // In the functions that the tests share.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

fn trace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/llama-1-token.trc.gz")
}

fn unpacked() -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(fs::File::open(trace()).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

fn simulate(file: &Path, flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_emuv")).arg("simulate").arg(file).args(flags).output().unwrap()
}

fn json(file: &Path, flags: &[&str]) -> Value {
    let output = simulate(file, &[flags, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// One line on standard error with these words in it, nothing on standard output, exit code 2.
fn assert_refused(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty());
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "no '{word}' in: {said}");
    }
}

#[test]
fn json_has_every_policy_and_what_it_was_asked() {
    let json = json(&trace(), &["--vram", "9G", "--ram", "16G", "--link", "50,51,90", "--iterations", "6"]);
    assert_eq!(json["schema"], 1);
    assert_eq!(json["vram_bytes"], 9_u64 << 30);
    assert_eq!(json["ram_bytes"], 16_u64 << 30);
    assert_eq!(json["link"]["d2h_gb_per_s"], 51.0);
    assert_eq!(json["trace"]["works_per_iteration"], 1671);
    assert!(json["peak_bytes"].as_u64().unwrap() > 12 << 30);
    let bound = json["bound_seconds_per_iteration"].as_f64().unwrap();
    for policy in ["emuv", "lru", "static", "in-place", "optimal"] {
        let of = &json["policies"][policy];
        let seconds = of["seconds_per_iteration"].as_f64().unwrap();
        let percent = of["percent_of_bound"].as_f64().unwrap();
        assert!((percent - 100.0 * bound / seconds).abs() < 1e-6 && percent <= 100.1, "{policy}: {percent}");
        for bytes in ["bytes_in_per_iteration", "bytes_out_per_iteration", "bytes_in_place_per_iteration"] {
            assert!(of[bytes].as_f64().unwrap() >= 0.0, "{policy}: {bytes}");
        }
    }
    assert!(json["policies"]["optimal"]["schedule"].is_string());
}

#[test]
fn the_card_may_be_given_as_a_part_of_what_the_program_holds() {
    let json = json(&trace(), &["--oversubscribe", "2", "--policy", "static", "--iterations", "2"]);
    let (vram, peak) = (json["vram_bytes"].as_u64().unwrap(), json["peak_bytes"].as_u64().unwrap());
    assert!(peak / 2 - vram < 2 << 20);
    assert_eq!(json["policies"].as_object().unwrap().len(), 1);
}

#[test]
fn the_table_has_a_line_for_each_policy() {
    let output = simulate(&trace(), &["--policy", "in-place,lru", "--iterations", "3"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(text.contains("% of bound") && text.contains("\nlru ") && text.contains("\nin-place "), "{text}");
    assert!(!text.contains("\nemuv "), "{text}");
}

#[test]
fn a_compressed_trace_and_a_plain_one_say_the_same() {
    let place = tempfile::tempdir().unwrap();
    let plain = place.path().join("plain.trc");
    fs::write(&plain, unpacked()).unwrap();
    let flags = ["--policy", "in-place", "--iterations", "3"];
    assert_eq!(json(&plain, &flags)["policies"], json(&trace(), &flags)["policies"]);
}

#[test]
fn flags_that_exclude_each_other_or_make_no_sense_are_refused() {
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--vram", "8G", "--oversubscribe", "1.5"], &["--vram", "--oversubscribe", "cannot be used with"]),
        (&["--vram", "lots"], &["--vram", "'lots' is not a size"]),
        (&["--vram", "1M"], &["--vram", "less than one chunk"]),
        (&["--oversubscribe", "-1"], &["--oversubscribe", "'-1'"]),
        (&["--ram", "1G", "--vram", "1G"], &["--ram", "holds up to"]),
        (&["--link", "pcie9"], &["--link", "pcie9", "pcie4"]),
        (&["--link", "25,25,20"], &["--link", "less than one of them"]),
        (&["--policy", "emuv,belady"], &["--policy", "'belady'", "in-place"]),
        (&["--iterations", "0"], &["--iterations", "'0'"]),
    ];
    for (flags, words) in cases {
        assert_refused(&simulate(&trace(), flags), words);
    }
}

#[test]
fn a_file_that_is_no_whole_trace_of_this_version_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let refused = |name: &str, bytes: &[u8], words: &[&str]| {
        let path = place.path().join(name);
        fs::write(&path, bytes).unwrap();
        assert_refused(&simulate(&path, &[]), &[&[name], words].concat());
    };
    let whole = unpacked();
    let packed = fs::read(trace()).unwrap();
    refused("empty", b"", &["is not a trace"]);
    refused("picture.png", b"\x89PNG\r\n", &["is not a trace"]);
    refused("newer", b"emuvtrc3\x01\x02", &["version 3", "update emuv"]);
    refused("cut", &whole[..whole.len() - 1], &["is cut off", "byte"]);
    refused("cut.gz", &packed[..packed.len() / 2], &["is cut off"]);
    refused("damaged", &[&whole[..], b"\xff\x00\x00"].concat(), &["is damaged at byte"]);
    refused("nothing", b"emuvtrc1", &["no work"]);
    assert_refused(&simulate(&place.path().join("absent"), &[]), &["absent", "No such file"]);
}
