//! `emuv vgpu list` and `emuv vgpu show`.

use std::fmt::Write;

use emuv_policy::Bytes;
use emuv_state::slices::{Entry, Listing, Registry, Slice, SliceError, TimeUse};
use serde_json::{Value, json};

use super::{failed, variable, write};
use crate::cli::{Failure, complain};

const SCHEMA: u32 = 1;

/// All slices that count for this user.
fn listings() -> Vec<Listing> {
    let mut all: Vec<Listing> = Vec::new();
    for registry in Registry::for_use(variable) {
        let (listings, problems) = registry.listings();
        problems.iter().for_each(|problem| complain(&problem.to_string()));
        // Of two of the same name, the first is meant.
        let new = |listing: &Listing| all.iter().all(|other| other.entry.slice.name != listing.entry.slice.name);
        let listings: Vec<_> = listings.into_iter().filter(new).collect();
        all.extend(listings);
    }
    all
}

/// Shows all of them.
///
/// # Errors
/// Standard output is closed.
pub fn list(as_json: bool) -> Result<(), Failure> {
    let all = listings();
    if as_json {
        let slices: Vec<_> = all.iter().map(json).collect();
        return write(&format!("{:#}\n", json!({ "schema": SCHEMA, "slices": slices })));
    }
    let head = ["NAME", "ID", "GPU", "VRAM", "RAM", "VRAM USED", "RAM USED", "PROCESSES", "STATE"];
    let mut rows = vec![head.map(str::to_owned)];
    for listing in &all {
        let slice = &listing.entry.slice;
        let hidden = || "-".to_owned();
        let used = listing.used.as_ref();
        rows.push([
            slice.name.clone(),
            slice.instance.to_string(),
            slice.gpus().map(|gpu| gpu.uuid.chars().take(12).collect::<String>()).collect::<Vec<_>>().join(","),
            format!("{}{}", slice.vram, each(slice)),
            slice.ram.to_string(),
            used.map_or_else(hidden, |(used, _)| Bytes(used.vram).to_string()),
            used.map_or_else(hidden, |(used, _)| Bytes(used.ram).to_string()),
            used.map_or_else(hidden, |(_, processes)| processes.len().to_string()),
            state(&listing.entry).to_owned(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    write(&text)
}

/// Shows one.
///
/// # Errors
/// There is none of that name.
pub fn one(name: &str, as_json: bool) -> Result<(), Failure> {
    let found = listings().into_iter().find(|listing| listing.entry.slice.name == name);
    let Some(listing) = found else {
        let looked_in = Registry::for_use(variable).iter().map(|registry| registry.dir().to_owned()).collect();
        return Err(failed(SliceError::NoSuch { name: name.to_owned(), looked_in }));
    };
    if as_json {
        return write(&format!("{:#}\n", json(&listing)));
    }
    let slice = &listing.entry.slice;
    let mut text = String::new();
    let mut line = |key: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{key:<12} {value}");
    };
    line("name", slice.name.clone());
    line("instance", slice.instance.to_string());
    line("state", state(&listing.entry).to_owned());
    let simulated = if slice.sim.is_some() { ", simulated" } else { "" };
    for gpu in slice.gpus() {
        line("GPU", format!("{} ({}{simulated}), {}", gpu.name, gpu.uuid, gpu.vram));
    }
    if let Some(model) = &slice.gpu_model {
        line("labelled", model.clone());
    }
    for gpu in 0..slice.gpu_count() {
        line("VRAM", format!("{}{}", share(slice.vram, listing.vram_on_gpus.get(gpu).copied()), of_gpu(slice, gpu)));
    }
    line("RAM", share(slice.ram, listing.used.as_ref().map(|(used, _)| used.ram)));
    if slice.takes_turns() {
        line("weight", slice.weight.to_string());
    }
    if let Some(cap) = slice.cap_percent {
        line("cap", format!("{cap} %"));
    }
    if let Some(time) = &listing.time {
        line("GPU time", time_use(time));
    }
    if let Some(schedule) = &slice.schedule {
        line("schedule", schedule.to_string());
    }
    let group = slice.user.gid.map_or_else(String::new, |gid| format!(", group {gid}"));
    line("for", format!("user {}{group}", slice.user.uid));
    line("kept in", listing.entry.dir.display().to_string());
    for process in listing.used.iter().flat_map(|(_, processes)| processes) {
        let pid = if process.same_namespace { process.pid.to_string() } else { format!("{} (container)", process.pid) };
        let (vram, ram) = (Bytes(process.vram_bytes), Bytes(process.ram_bytes));
        line("process", format!("{pid}: {vram} VRAM, {ram} RAM: {}", process.command));
    }
    write(&text)
}

/// What follows the share of VRAM of a slice of several GPUs.
pub fn each(slice: &Slice) -> &'static str {
    if slice.gpu_count() > 1 { " each" } else { "" }
}

/// Which GPU a figure is of, where there are several.
fn of_gpu(slice: &Slice, gpu: usize) -> String {
    let uuid = slice.gpus().nth(gpu).filter(|_| slice.gpu_count() > 1).map(|gpu| gpu.uuid.as_str());
    uuid.map_or_else(String::new, |uuid| format!(", on {uuid}"))
}

fn share(share: Bytes, used: Option<u64>) -> String {
    match used {
        Some(used) if used > share.0 => {
            format!("{share}, {} in use: {} too much", Bytes(used), Bytes(used).saturating_sub(share))
        }
        Some(used) => format!("{share}, {} in use", Bytes(used)),
        None => share.to_string(),
    }
}

fn time_use(time: &TimeUse) -> String {
    let lately = time.share_percent.map_or_else(String::new, |share| format!("{share:.1} % lately, "));
    let now = match (time.in_turn, time.wants) {
        (true, _) => ", has its turn",
        (false, true) => ", wants it",
        (false, false) => "",
    };
    let (seconds, turns, held) = (time.used_micros as f64 / 1e6, time.turns, time.held);
    format!("{lately}{seconds:.1} s in all, {turns} turns, {held} works held{now}")
}

fn state(entry: &Entry) -> &'static str {
    if entry.slice.enabled { "enabled" } else { "disabled" }
}

/// After a change: when more is in use than there is to be, what that means, in a line each.
pub fn beyond(registry: &Registry, entry: &Entry) -> Vec<String> {
    let slice = &entry.slice;
    let Ok(listing) = registry.listing(&slice.name) else { return Vec::new() };
    let Some((used, _)) = &listing.used else { return Vec::new() };
    let vram = listing.vram_on_gpus.iter().enumerate();
    let vram = vram.map(|(gpu, used)| ("VRAM", of_gpu(slice, gpu), *used, slice.vram));
    let tiers = vram.chain([("RAM", String::new(), used.ram, slice.ram)]);
    let tiers = tiers.filter(|(_, _, used, share)| *used > share.0);
    let words = |(what, of, used, share)| {
        let (name, used) = (&slice.name, Bytes(used));
        format!("{name}: {used} of {what}{of} are in use; nobody gets more until it is {share} or less")
    };
    tiers.map(words).collect()
}

fn json(listing: &Listing) -> Value {
    let slice = &listing.entry.slice;
    let processes = listing.used.as_ref().map(|(_, processes)| {
        let process = |process: &emuv_state::slices::SliceProcess| {
            json!({
                "pid": process.pid,
                "same_pid_namespace": process.same_namespace,
                "vram_bytes": process.vram_bytes,
                "ram_bytes": process.ram_bytes,
                "command": process.command,
            })
        };
        processes.iter().map(process).collect::<Vec<_>>()
    });
    let used = |gpu: usize| listing.vram_on_gpus.get(gpu);
    let gpus: Vec<_> = slice.gpus().enumerate().map(|(number, gpu)| {
        json!({ "uuid": gpu.uuid, "name": gpu.name, "vram_bytes": gpu.vram.0, "vram_used_bytes": used(number) })
    }).collect();
    json!({
        "name": slice.name,
        "instance": slice.instance,
        "enabled": slice.enabled,
        "gpu": { "uuid": slice.gpu.uuid, "name": slice.gpu.name, "vram_bytes": slice.gpu.vram.0 },
        "gpus": gpus,
        "simulated": slice.sim,
        "gpu_model": slice.gpu_model,
        "vram_bytes": slice.vram.0,
        "ram_bytes": slice.ram.0,
        "vram_used_bytes": listing.used.as_ref().map(|(used, _)| used.vram),
        "ram_used_bytes": listing.used.as_ref().map(|(used, _)| used.ram),
        "weight": slice.weight,
        "cap_percent": slice.cap_percent,
        "time": listing.time.map(|time| json!({
            "used_micros": time.used_micros,
            "share_percent": time.share_percent,
            "turns": time.turns,
            "works_held": time.held,
            "in_turn": time.in_turn,
        })),
        "schedule": slice.schedule.as_ref().map(ToString::to_string),
        "uid": slice.user.uid,
        "gid": slice.user.gid,
        "overcommit": slice.overcommit,
        "dir": listing.entry.dir,
        "processes": processes,
    })
}
