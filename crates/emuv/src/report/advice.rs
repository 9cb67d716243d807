//! What a report says, in sentences: what there is to know first, and what would help.

use emuv_policy::Bytes;
use emuv_state::report::{CostReport, DeviceReport};

use super::sites::headline;

/// Time in percent from which on it is worth a sentence.
const WORTH_SAYING: f64 = 10.0;

/// A percent of the bound from which on there is nothing to win by moving better, and one below which there is.
const GOOD: f64 = 90.0;
const POOR: f64 = 70.0;

/// The part of what moved, in percent, from which on an allocation is to blame.
const BLAMED: f64 = 25.0;

/// A sentence, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// What there is.
    pub found: String,
    /// What to do.
    pub remedy: Option<String>,
}

fn say(found: impl Into<String>, remedy: impl Into<Option<&'static str>>) -> Advice {
    Advice { found: found.into(), remedy: remedy.into().map(str::to_owned) }
}

#[allow(clippy::cast_precision_loss)] // For people.
pub(super) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

/// What there is to say of a device, the weightiest first.
pub fn advice(device: &DeviceReport) -> Vec<Advice> {
    let mut advice = Vec::new();
    if device.refused > 0 {
        let found = format!("{} allocations were refused: neither VRAM nor RAM had room.", device.refused);
        advice.push(say(found, "Give the program more RAM (--ram), or a smaller problem."));
    }
    if let Some(warning) = device.movement.as_ref().and_then(|movement| movement.warning.as_ref()) {
        advice.push(Advice { found: sentence(&warning.reason), remedy: warning.remedy.as_deref().map(sentence) });
    }
    if device.ram.peak_bytes == 0 {
        advice.push(say("Everything fitted in VRAM: emuV had nothing to move.", None));
        return advice;
    }
    let moved_bytes = device.promoted_bytes.saturating_add(device.evicted_bytes);
    match &device.movement {
        None if moved_bytes == 0 => advice.push(say(
            format!("Up to {} lay in RAM and was read in place; nothing moved.", Bytes(device.ram.peak_bytes)),
            "Where --policy static was chosen, the default (dynamic) brings what is needed.",
        )),
        None => {}
        Some(movement) => {
            advice.extend(of_bound(movement.percent_of_bound, movement.unknown_because.as_deref()));
            let of_time = |seconds: f64| 100.0 * seconds / movement.watched_seconds.max(1e-9);
            let waited = of_time(movement.gpu_waited_seconds);
            if waited >= WORTH_SAYING {
                advice.push(say(format!("For {waited:.0} % of the time the GPU waited for data."), None));
            }
            let in_place = of_time(movement.in_place_seconds);
            if in_place >= WORTH_SAYING {
                let found = format!("Reading in RAM over the link took up to {in_place:.0} % of the time.");
                advice.push(say(found, "What is used all the time can be kept in VRAM with a hint: hot."));
            }
        }
    }
    advice.extend(device.costliest.as_deref().and_then(|costs| to_blame(costs, moved_bytes)));
    if percent(device.escaped_bytes, device.vram.peak_bytes.saturating_add(device.ram.peak_bytes)) >= BLAMED {
        let found = format!(
            "Pointers in GPU memory lead to {}, which therefore moves only while the GPU is idle.",
            Bytes(device.escaped_bytes)
        );
        advice.push(say(found, "Kernels that get their buffers as arguments leave them free to move."));
    }
    advice
}

fn of_bound(percent: Option<f64>, unknown: Option<&str>) -> Option<Advice> {
    match (percent, unknown) {
        (Some(percent), _) if percent >= GOOD => Some(say(
            format!("{percent:.0} % of the bound: about as fast as GPU and link allow."),
            "Only more VRAM, a faster link or fewer bytes would make it faster.",
        )),
        (Some(percent), _) if percent < POOR => Some(say(
            format!("{percent:.0} % of the bound: GPU and link would allow more."),
            "Hints say what emuV cannot foresee; a trace (emuv run --trace) for 'emuv simulate' shows what other policies do.",
        )),
        (Some(percent), _) => Some(say(format!("{percent:.0} % of the bound that GPU and link set."), None)),
        (None, unknown) => unknown.map(|why| say(format!("How close to the bound is not known: {why}."), None)),
    }
}

/// What was copied of an allocation, both ways.
pub(super) fn both(cost: &CostReport) -> u64 {
    cost.into_vram_bytes.saturating_add(cost.out_of_vram_bytes)
}

/// The allocations of one size of which most was moved, where that is much of all.
fn to_blame(costs: &[CostReport], moved_bytes: u64) -> Option<Advice> {
    let size = costs.first()?.bytes;
    let alike: Vec<&CostReport> = costs.iter().filter(|cost| cost.bytes == size).collect();
    let moved = alike.iter().fold(0_u64, |sum, cost| sum.saturating_add(both(cost)));
    let part = percent(moved, moved_bytes);
    let what = match alike.len() {
        1 => format!("one allocation of {}", Bytes(size)),
        count => format!("{count} allocations of {}", Bytes(size)),
    };
    (part >= BLAMED).then(|| {
        say(
            format!("{part:.0} % of what moved was of {what}{}.", made_at(&alike)),
            "If what they hold is not needed between two uses, discard it (a hint): then nothing is copied. \
             If they are rarely used, say that they are cold.",
        )
    })
}

/// Where they were made, if all of them were at one place.
fn made_at(costs: &[&CostReport]) -> String {
    let mut places = costs.iter().map(|cost| cost.allocated_at.as_ref().and_then(headline));
    let first = places.next().flatten();
    let same = first.filter(|first| places.all(|place| place.as_ref() == Some(first)));
    same.map(|place| format!(", made at {place}")).unwrap_or_default()
}

/// With a capital letter and a full stop.
fn sentence(words: &str) -> String {
    let mut letters = words.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    let end = if words.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{first}{}{end}", letters.as_str())
}

#[cfg(test)]
mod tests {
    use emuv_state::report::Report;
    use serde_json::json;

    use super::*;

    /// A device as a report has it, with some fields set.
    pub fn device(fields: &serde_json::Value) -> DeviceReport {
        let tier = json!({"budget_bytes": 8 << 30, "used_bytes": 0, "peak_bytes": 8_u64 << 30});
        let mut device = json!({
            "ordinal": 0, "uuid": null, "name": "card", "vram": tier, "ram": tier, "vram_physical_bytes": null,
            "unspilled_bytes": 0, "allocations": 1, "frees": 1, "refused": 0, "spilled_bytes": 0, "launches": 9,
            "promoted_bytes": 1000, "evicted_bytes": 1000, "held": 0, "held_micros": 0, "searches": 0, "movement": null,
        });
        for (name, value) in fields.as_object().unwrap() {
            device[name] = value.clone();
        }
        let report = json!({
            "schema": 1, "emuv": "0", "command": [], "exit_code": 0, "simulated": false,
            "limits": {"vram_bytes": null, "ram_bytes": 0, "ram_floor_bytes": 0},
            "processes": [{"pid": 1, "command": "", "internal_errors": 0, "devices": [device]}],
        });
        Report::parse(report.to_string().as_bytes()).unwrap().processes.remove(0).devices.remove(0)
    }

    fn found(fields: &serde_json::Value) -> String {
        advice(&device(fields)).into_iter().map(|advice| advice.found + "\n").collect()
    }

    #[test]
    fn where_nothing_spilled_there_is_nothing_to_do() {
        let none = json!({"ram": {"budget_bytes": 1, "used_bytes": 0, "peak_bytes": 0}, "promoted_bytes": 0});
        assert_eq!(found(&none), "Everything fitted in VRAM: emuV had nothing to move.\n");
    }

    #[test]
    fn a_refusal_comes_first() {
        assert!(found(&json!({"refused": 3})).starts_with("3 allocations were refused"));
    }

    #[test]
    fn allocations_of_one_size_are_blamed_together() {
        let cost = json!({"bytes": 64 << 20, "into_vram_bytes": 300, "out_of_vram_bytes": 300, "allocated_by": null});
        let text = found(&json!({"costliest": [cost, cost, {"bytes": 1, "into_vram_bytes": 9, "out_of_vram_bytes": 0,
            "allocated_by": null}]}));
        assert_eq!(text, "60 % of what moved was of 2 allocations of 64 MiB.\n");
        let at = |line: u32| {
            let python = json!([{"file": "train.py", "line": line, "function": "f"}]);
            json!({"bytes": 64 << 20, "into_vram_bytes": 300, "out_of_vram_bytes": 300, "allocated_by": null,
                "allocated_at": {"python": python, "native": []}})
        };
        let text = found(&json!({"costliest": [at(7), at(7)]}));
        assert_eq!(text, "60 % of what moved was of 2 allocations of 64 MiB, made at train.py:7 in f.\n");
        assert!(!found(&json!({"costliest": [at(7), at(8)]})).contains("made at"));
    }

    #[test]
    fn what_is_said_of_pointers_and_of_nothing_moved() {
        let text = found(&json!({"escaped_bytes": 8_u64 << 30, "promoted_bytes": 0, "evicted_bytes": 0}));
        assert!(
            text.starts_with("Up to 8 GiB lay in RAM and was read in place") && text.contains("8 GiB, which"),
            "{text}"
        );
    }

    #[test]
    fn the_bound_is_put_in_words_or_the_reason_why_it_is_not_known() {
        let said = |percent, why| of_bound(percent, why).unwrap().found;
        assert!(said(Some(95.0), None).contains("as fast as"));
        assert!(said(Some(50.0), None).contains("would allow more"));
        assert_eq!(said(None, Some("no loop")), "How close to the bound is not known: no loop.");
        assert_eq!(sentence("é is slow"), "É is slow.");
    }
}
