//! `emuv top --once`: the same as on the screen, as lines of text without colours.

use std::fmt::Write;

use emuv_watch::{Gpu, Slice, Snapshot};
use ratatui::text::Span;

use super::{
    rows::{Row, Sort, arrange, rows},
    screen::clock,
    words::{Look, bar, count, percent, rate, size},
};

/// Places of the bars.
const BAR: usize = 16;

/// All of it; processes by memory.
pub fn text(snapshot: &Snapshot, look: Look) -> String {
    let mut text = format!("emuv top {}\n", clock(snapshot.time_unix_millis));
    // Writing to a string cannot fail.
    let mut line = |words: String| {
        let _ = writeln!(text, "{}", words.trim_end());
    };
    if let Some(why) = &snapshot.no_driver_because {
        line(format!("the driver shows no GPU: {why}"));
    }
    for (place, gpu) in snapshot.gpus.iter().enumerate() {
        line(gpu_line(gpu, place, look));
    }
    for slice in &snapshot.slices {
        line(slice_line(slice, look));
    }
    let rows = arrange(rows(snapshot), Sort::Memory, false, "");
    if rows.is_empty() {
        line("nothing runs under emuV".to_owned());
    } else {
        line(String::new());
        table(&rows, look).into_iter().for_each(&mut line);
    }
    for problem in &snapshot.problems {
        line(format!("left out: {}", problem.words));
    }
    text
}

fn gpu_line(gpu: &Gpu, place: usize, look: Look) -> String {
    let ours = gpu.under_emuv;
    let used = gpu.vram_used_bytes.unwrap_or(ours.vram_bytes).max(ours.vram_bytes);
    let total = gpu.vram_total_bytes;
    let parts = [(ours.vram_bytes, look.vram()), (used - ours.vram_bytes, look.other())];
    let mut text = format!(
        "GPU {} {}  [{}] VRAM {}{}  RAM {}",
        gpu.index.map_or(place, |index| index as usize),
        gpu.name.as_ref().unwrap_or(&gpu.uuid),
        bar(parts, total.unwrap_or(used), BAR, look.free()),
        size(used),
        total.map_or_else(String::new, |total| format!("/{}", size(total))),
        size(ours.ram_bytes),
    );
    if let Some(rates) = ours.rates {
        let into = rates.in_bytes_per_second + rates.in_place_bytes_per_second;
        #[allow(clippy::cast_precision_loss)] // Rates for people.
        let link = gpu.link.map(|link| [link.in_bytes_per_second as f64, link.out_bytes_per_second as f64]);
        let of = |place: usize| link.map_or_else(String::new, |link| format!("/{}", rate(link[place])));
        let (out, launches) = (rate(rates.out_bytes_per_second), count(rates.launches_per_second));
        text.push_str(&format!("  in {}{}/s  out {out}{}/s  {launches} launches/s", rate(into), of(0), of(1)));
    }
    text.push_str(&gpu.busy_percent.map_or_else(String::new, |busy| format!("  busy {busy} %")));
    text
}

fn slice_line(slice: &Slice, look: Look) -> String {
    let parts = [(slice.vram_used_bytes.unwrap_or(0), look.vram()), (slice.ram_used_bytes.unwrap_or(0), look.ram())];
    let whole = slice.vram_limit_bytes.saturating_add(slice.ram_limit_bytes);
    let used = |used: Option<u64>| used.map_or_else(|| "?".to_owned(), size);
    let mut text = format!(
        "slice {}  [{}] VRAM {}/{}  RAM {}/{}  weight {}",
        slice.name,
        bar(parts, whole, BAR, look.free()),
        used(slice.vram_used_bytes),
        size(slice.vram_limit_bytes),
        used(slice.ram_used_bytes),
        size(slice.ram_limit_bytes),
        slice.weight,
    );
    text.push_str(&slice.cap_percent.map_or_else(String::new, |cap| format!("  cap {cap} %")));
    if let Some(time) = slice.time.filter(|time| time.used_micros > 0) {
        text.push_str(&time.share_percent.map_or_else(String::new, |share| format!("  {share:.0} % of time")));
        text.push_str(&format!("  {} turns", time.turns));
    }
    if !slice.enabled {
        text.push_str("  disabled");
    }
    text
}

fn table(rows: &[Row], look: Look) -> Vec<String> {
    let head = [
        "PID", "GPU", "SLICE", "VRAM/RAM", "VRAM", "RAM", "SPILL", "IN/s", "OUT/s", "READ/s", "WAIT", "BOUND", "LAUN/s",
    ];
    let most = rows.iter().map(Row::memory_bytes).max().unwrap_or(0);
    let mut lines = vec![(head.map(str::to_owned), "COMMAND".to_owned())];
    for row in rows {
        let unknown = || "-".to_owned();
        let bytes = |bytes: Option<u64>| bytes.map_or_else(unknown, size);
        let number = |number: Option<f64>, text: fn(f64) -> String| number.map_or_else(unknown, text);
        let vram = if row.under_emuv { look.vram() } else { look.other() };
        let parts = [(row.vram_bytes.unwrap_or(0), vram), (row.ram_bytes.unwrap_or(0), look.ram())];
        let pid = row.key.pid;
        let cells = [
            if row.same_pid_namespace { pid.to_string() } else { format!("({pid})") },
            row.gpu.to_string(),
            row.slice.clone().unwrap_or_else(unknown),
            bar(parts, most, BAR, look.free()),
            bytes(row.vram_bytes),
            bytes(row.ram_bytes),
            bytes(row.spilled_bytes),
            number(row.in_rate, rate),
            number(row.out_rate, rate),
            number(row.in_place_rate, rate),
            number(row.waited_percent, percent),
            number(row.bound_percent, percent),
            number(row.launch_rate, count),
        ];
        let command = if row.under_emuv { row.command.clone() } else { format!("{} (without emuV)", row.program) };
        lines.push((cells, command));
    }
    let wide = |text: &str| Span::raw(text.to_owned()).width();
    let widths: Vec<_> =
        (0..head.len()).map(|column| lines.iter().map(|(cells, _)| wide(&cells[column])).max().unwrap_or(0)).collect();
    let padded = |(column, cell): (usize, &String)| {
        let blanks = " ".repeat(widths[column] - wide(cell));
        if matches!(column, 2 | 3) { format!("{cell}{blanks}  ") } else { format!("{blanks}{cell}  ") }
    };
    let whole = |(cells, command): &([String; 13], String)| {
        cells.iter().enumerate().map(padded).chain([command.clone()]).collect::<String>()
    };
    lines.iter().map(whole).collect()
}
