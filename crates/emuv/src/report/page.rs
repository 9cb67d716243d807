//! The page: one HTML document that needs nothing else. Names in a report are foreign text and are escaped.

use std::fmt::Write as _;

use emuv_policy::Bytes;
use emuv_state::report::{CostReport, DeviceReport, MovementReport, ProcessReport, Report, TimelineReport};

use super::{
    GENERATOR,
    advice::{advice, both, percent},
    chart::{Chart, Column, duration, parts, rates},
    sites,
};
use crate::markup::escaped;

const STYLE: &str = include_str!("style.css");

/// What chunks moved for: how it is called in a report, and in words.
const INTO_VRAM: [(&str, &str); 4] = [
    ("demand", "needed now: a piece of work waited for it"),
    ("ahead", "ahead of its next use"),
    ("hint", "the program said that it is hot"),
    ("torture", "at random (--policy torture)"),
];
const OUT_OF_VRAM: [(&str, &str); 4] = [
    ("room", "room for what was needed now"),
    ("plan", "by plan: not used for a while"),
    ("limit", "less VRAM was allowed"),
    ("torture", "at random (--policy torture)"),
];

/// No run is longer, in seconds: thirty years.
const LONGEST: f64 = 1e9;

/// The whole document.
pub fn page(report: &Report) -> String {
    let command = escaped(&report.command.join(" "));
    let mut body = String::new();
    header(&mut body, report, &command);
    let devices: Vec<(&ProcessReport, &DeviceReport)> = report
        .processes
        .iter()
        .flat_map(|process| process.devices.iter().map(move |device| (process, device)))
        .collect();
    if devices.is_empty() {
        body.push_str("<p>No program of this run used a GPU through CUDA.</p>\n");
    }
    for (process, device) in &devices {
        section(&mut body, process, device, devices.len() > 1);
    }
    let _ = writeln!(
        body,
        "<footer>Made by emuv {} from a report of emuv {}. Sizes are binary (1 GiB = 2<sup>30</sup> bytes), speeds decimal \
         (1 GB = 10<sup>9</sup> bytes).</footer>",
        env!("CARGO_PKG_VERSION"),
        escaped(&report.emuv)
    );
    let name = report.command.first().map(|name| escaped(name)).unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n{GENERATOR}\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>emuV report: {name}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

fn header(out: &mut String, report: &Report, command: &str) {
    let _ = writeln!(out, "<header>\n<h1>emuV report</h1>\n<p class=\"command\"><code>{command}</code></p>");
    let limits = &report.limits;
    let vram = limits
        .vram_bytes
        .map_or_else(|| "all of the card's VRAM".to_owned(), |bytes| format!("{} of VRAM", Bytes(bytes)));
    let _ = writeln!(
        out,
        "<p class=\"soft\">Exit code {}. Allowed: {vram}, {} of RAM; {} left to the host.</p>",
        report.exit_code,
        Bytes(limits.ram_bytes),
        Bytes(limits.ram_floor_bytes)
    );
    if report.simulated {
        out.push_str(
            "<p class=\"bad\">The GPU was simulated: times and speeds here say nothing about a real one.</p>\n",
        );
    }
    for process in report.processes.iter().filter(|process| process.internal_errors > 0) {
        let _ = writeln!(
            out,
            "<p class=\"bad\">Process {} had {} internal errors of emuV's; from then on calls were left to the driver.</p>",
            process.pid, process.internal_errors
        );
    }
    out.push_str("</header>\n");
}

fn section(out: &mut String, process: &ProcessReport, device: &DeviceReport, many: bool) {
    let name = device.name.as_deref().unwrap_or("unknown GPU");
    let _ = writeln!(out, "<section>\n<h2>GPU {}: {}</h2>", device.ordinal, escaped(name));
    if many {
        let (pid, command) = (process.pid, escaped(&process.command));
        let _ = writeln!(out, "<p class=\"soft\">Process {pid}: <code>{command}</code></p>");
    }
    cards(out, device);
    let advice = advice(device);
    if !advice.is_empty() {
        out.push_str("<ul class=\"advice\">\n");
        for advice in advice {
            let remedy = advice.remedy.map(|remedy| format!("<span>{}</span>", escaped(&remedy))).unwrap_or_default();
            let _ = writeln!(out, "<li>{}{remedy}</li>", escaped(&advice.found));
        }
        out.push_str("</ul>\n");
    }
    match &device.timeline {
        Some(timeline) if !timeline.seconds.is_empty() => over_time(out, device, timeline),
        _ => out.push_str("<p class=\"soft\">This report has no timeline.</p>\n"),
    }
    if let Some(movement) = &device.movement {
        bound(out, movement);
    }
    if let Some(costs) = device.costliest.as_deref().filter(|costs| !costs.is_empty()) {
        costliest(out, costs, device.promoted_bytes.saturating_add(device.evicted_bytes));
    }
    numbers(out, device);
    out.push_str("</section>\n");
}

fn card(out: &mut String, name: &str, value: &str, more: &str) {
    let small = if more.is_empty() { String::new() } else { format!("<small>{}</small>", escaped(more)) };
    let _ = writeln!(out, "<div><dt>{}</dt><dd>{}{small}</dd></div>", escaped(name), escaped(value));
}

fn cards(out: &mut String, device: &DeviceReport) {
    let of = |budget: Option<u64>| budget.map_or_else(String::new, |bytes| format!("of {}", Bytes(bytes)));
    out.push_str("<dl class=\"cards\">\n");
    card(out, "VRAM, peak", &Bytes(device.vram.peak_bytes).to_string(), &of(device.vram.budget_bytes));
    card(out, "RAM, peak", &Bytes(device.ram.peak_bytes).to_string(), &of(device.ram.budget_bytes));
    card(out, "Moved into VRAM", &Bytes(device.promoted_bytes).to_string(), "");
    card(out, "Moved out of it", &Bytes(device.evicted_bytes).to_string(), "");
    if let Some(movement) = &device.movement {
        card(out, "Read in place", &Bytes(movement.in_place_bytes).to_string(), "in RAM, over the link");
        let bound = movement.percent_of_bound.map_or_else(|| "unknown".to_owned(), |percent| format!("{percent:.0} %"));
        let speed = movement.percent_of_vram_speed;
        card(
            out,
            "Of the bound",
            &bound,
            &speed.map_or_else(String::new, |percent| format!("{percent:.0} % of the speed in VRAM")),
        );
    }
    card(out, "Calls that waited", &device.held.to_string(), &duration(micros(device.held_micros)));
    card(out, "Launches", &device.launches.to_string(), "");
    out.push_str("</dl>\n");
}

#[allow(clippy::cast_precision_loss)] // For people.
fn micros(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[allow(clippy::cast_precision_loss)]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

fn over_time(out: &mut String, device: &DeviceReport, timeline: &TimelineReport) {
    let times: Vec<f64> = timeline.seconds.iter().map(|seconds| seconds.clamp(0.0, LONGEST)).collect();
    let end = times.iter().copied().fold(0.0, f64::max);
    let marks: Vec<f64> = timeline.marks.iter().map(|mark| mark.seconds).collect();
    let most = |column: &[u64]| column.iter().copied().max().unwrap_or(0);

    let vram_budget = device.vram.budget_bytes.unwrap_or(0);
    let top = most(&timeline.vram_most_bytes).max(most(&timeline.ram_most_bytes)).max(vram_budget);
    let mut chart =
        Chart::new("VRAM and RAM in use over time", end, (0.0, "0".to_owned()), (float(top), Bytes(top).to_string()));
    chart.marks.clone_from(&marks);
    if vram_budget > 0 {
        chart.level("budget", float(vram_budget));
    }
    for (class, column) in [("vram-line", &timeline.vram_most_bytes), ("ram-line", &timeline.ram_most_bytes)] {
        let values: Vec<(f64, f64)> = times.iter().copied().zip(column.iter().map(|bytes| float(*bytes))).collect();
        chart.steps(class, &values);
    }
    out.push_str("<h3>VRAM and RAM</h3>\n");
    out.push_str(&chart.html(&[("vram-line", "VRAM in use"), ("ram-line", "RAM in use"), ("budget", "VRAM allowed")]));

    let spans = spans(&times, timeline.interval_seconds.clamp(1e-6, LONGEST));
    movement(out, device, timeline, &spans, end, &marks);
    waits(out, timeline, &times, &marks);
    if !timeline.marks.is_empty() {
        out.push_str("<p class=\"soft\">The program's marks: ");
        let list: Vec<String> = timeline
            .marks
            .iter()
            .map(|mark| format!("{} at {}", escaped(&mark.label), duration(mark.seconds)))
            .collect();
        let _ = writeln!(out, "{}.</p>", list.join("; "));
    }
}

/// For each point the time that its changes fall in: where nothing was sampled, nothing changed.
fn spans(times: &[f64], interval: f64) -> Vec<(f64, f64)> {
    let mut before = 0.0;
    let mut spans = Vec::new();
    for &end in times {
        let start = f64::max(before, end - interval).min(end);
        spans.push((start, end.max(start + 1e-6)));
        before = end;
    }
    spans
}

/// What each point added to a count.
fn added(column: &[u64]) -> impl Iterator<Item = u64> {
    let before = std::iter::once(0).chain(column.iter().copied());
    column.iter().zip(before).map(|(now, before)| now.saturating_sub(before))
}

fn movement(
    out: &mut String,
    device: &DeviceReport,
    timeline: &TimelineReport,
    spans: &[(f64, f64)],
    end: f64,
    marks: &[f64],
) {
    let (mut up, mut down): (Vec<f64>, Vec<f64>) = parts(end).map(|_| (0.0, 0.0)).unzip();
    let mut layers = Vec::new();
    let ways = [
        (&INTO_VRAM, &timeline.into_vram_bytes, &mut up, 1.0),
        (&OUT_OF_VRAM, &timeline.out_of_vram_bytes, &mut down, -1.0),
    ];
    for (known, lanes, heights, sign) in ways {
        for (name, column) in lanes {
            let class = known.iter().find(|(known, _)| known == name).map_or("other", |(known, _)| known);
            let rates = rates(spans, added(column).map(float), end);
            let columns = parts(end).zip(heights.iter_mut()).zip(rates).map(|(((start, end), height), rate)| {
                let from = *height;
                *height += sign * rate;
                Column { start, end, from, to: *height }
            });
            layers.push((class, columns.collect::<Vec<Column>>()));
        }
    }
    let link = device.movement.as_ref().and_then(|movement| movement.link.as_ref());
    let measured = |of: Option<f64>| of.map_or(0.0, |gigabytes| gigabytes * 1e9);
    let most = up.iter().copied().fold(measured(link.map(|link| link.h2d_gb_per_s)), f64::max);
    let least = down.iter().copied().fold(-measured(link.map(|link| link.d2h_gb_per_s)), f64::min);
    out.push_str("<h3>What moved, and why</h3>\n");
    if up.iter().all(|height| *height <= 0.0) && down.iter().all(|height| *height >= 0.0) {
        out.push_str("<p class=\"soft\">Nothing was copied between VRAM and RAM.</p>\n");
        return;
    }
    let rate = |bytes: f64| format!("{:.1} GB/s", bytes.abs() / 1e9);
    let mut chart = Chart::new(
        "Copies into VRAM (up) and out of it (down) over time",
        end,
        (least, rate(least)),
        (most, rate(most)),
    );
    chart.marks = marks.to_vec();
    layers.iter().for_each(|(class, columns)| chart.columns(class, columns));
    let mut legend = used(&INTO_VRAM, &timeline.into_vram_bytes);
    for entry in used(&OUT_OF_VRAM, &timeline.out_of_vram_bytes) {
        if !legend.contains(&entry) {
            legend.push(entry);
        }
    }
    if let Some(link) = link {
        chart.level("link", link.h2d_gb_per_s * 1e9);
        chart.level("link", -link.d2h_gb_per_s * 1e9);
        legend.push(("link", "the link's speed, as measured"));
    }
    out.push_str(&chart.html(&legend));
    reasons(out, timeline);
}

type Lanes = std::collections::BTreeMap<String, Vec<u64>>;

fn total(lanes: &Lanes, name: &str) -> u64 {
    lanes.get(name).and_then(|column| column.last()).copied().unwrap_or(0)
}

/// The reasons that occurred.
fn used(known: &[(&'static str, &'static str); 4], lanes: &Lanes) -> Vec<(&'static str, &'static str)> {
    known.iter().filter(|(name, _)| total(lanes, name) > 0).copied().collect()
}

fn reasons(out: &mut String, timeline: &TimelineReport) {
    out.push_str("<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">Why</th><th scope=\"col\">copied</th><th scope=\"col\"></th></tr></thead>\n<tbody>\n");
    let ways = [
        ("into VRAM", &INTO_VRAM, &timeline.into_vram_bytes),
        ("out of VRAM", &OUT_OF_VRAM, &timeline.out_of_vram_bytes),
    ];
    let all: u64 =
        ways.iter().flat_map(|(_, _, lanes)| lanes.keys().map(|name| total(lanes, name))).fold(0, u64::saturating_add);
    for (way, known, lanes) in ways {
        for name in lanes.keys() {
            let bytes = total(lanes, name);
            if bytes == 0 {
                continue;
            }
            let found = known.iter().find(|(known, _)| known == name);
            let (class, words) = found.map_or(("other", name.as_str()), |(class, words)| (*class, *words));
            let part = percent(bytes, all);
            let _ = writeln!(
                out,
                "<tr><td><i class=\"{class}\"></i>{way}: {}</td><td>{}</td><td>{part:.0} %</td></tr>",
                escaped(words),
                Bytes(bytes)
            );
        }
    }
    out.push_str("</tbody></table></div>\n");
}

fn waits(out: &mut String, timeline: &TimelineReport, times: &[f64], marks: &[f64]) {
    let end = times.iter().copied().fold(0.0, f64::max);
    let most = micros(timeline.held_micros.last().copied().unwrap_or(0));
    if most <= 0.0 {
        return;
    }
    let zero = (0.0, "0".to_owned());
    let mut chart = Chart::new("How long calls have waited for data so far", end, zero, (most, duration(most)));
    chart.marks = marks.to_vec();
    let held = timeline.held_micros.iter().map(|held| micros(*held));
    chart.steps("held-line", &times.iter().copied().zip(held).collect::<Vec<_>>());
    out.push_str("<h3>Waiting for data</h3>\n");
    out.push_str(
        &chart.html(&[("held-line", "time that calls of the program have waited so far, all threads together")]),
    );
}

fn bound(out: &mut String, movement: &MovementReport) {
    out.push_str("<h3>The bound</h3>\n");
    let link = movement.link.as_ref().map_or_else(
        || "The link could not be measured.".to_owned(),
        |link| {
            format!(
                "The link carries {:.1} GB/s into VRAM, {:.1} GB/s out of it, {:.1} GB/s both at once.",
                link.h2d_gb_per_s, link.d2h_gb_per_s, link.both_gb_per_s
            )
        },
    );
    let (Some(real), Some(least), Some(best)) =
        (movement.seconds_per_iteration, movement.bound_seconds_per_iteration, movement.in_vram_seconds_per_iteration)
    else {
        let why = movement.unknown_because.as_deref().unwrap_or("not enough was seen");
        let _ = writeln!(out, "<p>Not known: {}. {link}</p>", escaped(why));
        return;
    };
    let _ = writeln!(
        out,
        "<p>{link} An iteration ({} pieces of work, {} iterations measured) took:</p>",
        movement.works_per_iteration.unwrap_or(0),
        movement.iterations
    );
    out.push_str("<div class=\"scroll\"><table>\n<tbody>\n");
    let widest = real.max(least).max(best).max(1e-9);
    for (words, seconds, class) in [
        ("as it was", real, ""),
        ("at best, with this link and this VRAM (the bound)", least, " bound"),
        ("with everything in VRAM", best, " best"),
    ] {
        let _ = writeln!(
            out,
            "<tr><td>{words}</td><td>{}</td><td class=\"bars\"><span class=\"bar{class}\" style=\"width:{:.1}%\"></span></td></tr>",
            duration(seconds),
            100.0 * seconds / widest
        );
    }
    out.push_str("</tbody></table></div>\n");
    let each = |bytes: Option<u64>| Bytes(bytes.unwrap_or(0));
    let _ = writeln!(
        out,
        "<p class=\"soft\">Each iteration {} came in and {} went out; {} and {} had to. {} was read in place.</p>",
        each(movement.bytes_in_per_iteration),
        each(movement.bytes_out_per_iteration),
        each(movement.bound_bytes_in_per_iteration),
        each(movement.bound_bytes_out_per_iteration),
        each(movement.bytes_in_place_per_iteration)
    );
}

fn costliest(out: &mut String, costs: &[CostReport], moved_bytes: u64) {
    out.push_str(
        "<h3>What cost most</h3>\n<p class=\"soft\">Allocations by what was copied of them. Those of one size that were made one \
         after the other at one address count as one.</p>\n<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">Allocation</th>\
         <th scope=\"col\">in</th><th scope=\"col\">out</th><th scope=\"col\">times</th><th scope=\"col\">of all</th>\
         <th scope=\"col\"></th></tr></thead>\n<tbody>\n",
    );
    let most = costs.iter().map(both).max().unwrap_or(1);
    for cost in costs {
        let place = cost.allocated_at.as_ref().map(sites::place).unwrap_or_default();
        let by = cost
            .allocated_by
            .as_deref()
            .map_or_else(String::new, |by| format!(" <span class=\"soft\">{}</span>", escaped(by)));
        let _ = writeln!(
            out,
            "<tr{}><td>{}{by}</td><td>{}</td><td>{}</td><td>{:.1}</td><td>{:.1} %</td><td class=\"bars\"><span class=\"bar\" \
             style=\"width:{:.1}%\"></span></td></tr>",
            if place.is_empty() { "" } else { " class=\"made\"" },
            Bytes(cost.bytes),
            Bytes(cost.into_vram_bytes),
            Bytes(cost.out_of_vram_bytes),
            percent(both(cost), cost.bytes) / 100.0,
            percent(both(cost), moved_bytes),
            percent(both(cost), most)
        );
        if !place.is_empty() {
            let _ = writeln!(out, "<tr><td colspan=\"6\">{place}</td></tr>");
        }
    }
    out.push_str("</tbody></table></div>\n");
}

fn numbers(out: &mut String, device: &DeviceReport) {
    out.push_str("<details>\n<summary>More numbers</summary>\n<div class=\"scroll\"><table>\n<tbody>\n");
    let unknown = || "unknown".to_owned();
    let rows = [
        ("The card's VRAM", device.vram_physical_bytes.map_or_else(unknown, |bytes| Bytes(bytes).to_string())),
        ("VRAM in use at the end", Bytes(device.vram.used_bytes).to_string()),
        ("RAM in use at the end", Bytes(device.ram.used_bytes).to_string()),
        ("Taken by ways that do not spill", Bytes(device.unspilled_bytes).to_string()),
        ("Allocations", device.allocations.to_string()),
        ("Frees", device.frees.to_string()),
        ("Refused allocations", device.refused.to_string()),
        ("Placed in RAM at first", Bytes(device.spilled_bytes).to_string()),
        ("Exchanged without copying (contents were nobody's)", Bytes(device.remapped_bytes).to_string()),
        ("Led to by pointers in GPU memory", Bytes(device.escaped_bytes).to_string()),
        ("Searches for pointers", device.searches.to_string()),
        ("UUID", device.uuid.as_deref().map_or_else(unknown, escaped)),
    ];
    for (name, value) in rows {
        let _ = writeln!(out, "<tr><td>{name}</td><td>{value}</td></tr>");
    }
    out.push_str("</tbody></table></div>\n</details>\n");
}
