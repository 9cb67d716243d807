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
    assert_eq!((mib(two, "vram"), mib(two, "ram")), (20, 0), "{two:#}");
    assert_eq!(seen["slices"][0]["ram_used_bytes"].as_u64().unwrap() >> 20, mib(one, "ram"));
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

#[test]
fn top_refuses_an_interval_that_is_none() {
    let place = Place::new();
    for interval in ["-1", "x", "nan", "1e9", ""] {
        let output = place.output(&["top", "--json", "-i", interval]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).starts_with(&format!("emuv: --interval: '{interval}' is no")), "{}", stderr(&output));
    }
}
