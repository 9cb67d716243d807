//! The upper part: GPUs, slices, graphs.

use emuv_watch::{Gpu, Slice};
use ratatui::{Frame, layout::Rect, text::Span};

use super::{Column, Paint, TALL, put, rate_of};
use crate::{
    model::Model,
    words::{Look, count, percent, places, rate, size},
};

/// The GPUs; the number of lines depends on how many there are and on the height.
pub(super) fn gpus(frame: &mut Frame<'_>, model: &Model, rest: &mut Column, height: u16) {
    let snapshot = &model.snapshot;
    let look = model.look;
    if snapshot.gpus.is_empty() {
        if height >= 8 {
            let why = snapshot.no_driver_because.as_deref();
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            put(frame, rest.take(1), vec![look.span(Paint::Quiet, format!("no GPU{why}"))]);
        }
        return;
    }
    let room = usize::from(height / 3).max(1);
    let each = if height >= TALL && snapshot.gpus.len() * 2 <= room { 2 } else { 1 };
    let shown = if snapshot.gpus.len() * each <= room { snapshot.gpus.len() } else { room - 1 };
    for gpu in snapshot.gpus.iter().take(shown) {
        let place = snapshot.gpus.iter().position(|other| other.uuid == gpu.uuid).unwrap_or(0);
        memory_line(frame, look, gpu, place, rest.take(1));
        if each == 2 {
            link_line(frame, look, gpu, rest.take(1));
        }
    }
    if shown < snapshot.gpus.len() {
        let more = format!("and {} more GPUs", snapshot.gpus.len() - shown);
        put(frame, rest.take(1), vec![look.span(Paint::Quiet, more)]);
    }
}

fn memory_line(frame: &mut Frame<'_>, look: Look, gpu: &Gpu, place: usize, area: Rect) {
    let number = gpu.index.map_or(place, |index| index as usize);
    let name = gpu.name.as_ref().unwrap_or(&gpu.uuid);
    let name = name.strip_prefix("NVIDIA ").unwrap_or(name);
    let width = usize::from(area.width);
    // The name gives way to the bar.
    let name_width = if width >= 120 { 28 } else { width.saturating_sub(56).min(20) };
    let label = format!("GPU {number} {:name_width$.name_width$} ", name);
    let of = gpu.vram_total_bytes.map_or_else(String::new, |total| format!("/{}", size(total)));
    let used = gpu.vram_used_bytes.map_or_else(|| "?".to_owned(), size);
    let mut figures = format!(" VRAM {used}{of}  RAM {}", size(gpu.under_emuv.ram_bytes));
    if let Some(busy) = gpu.busy_percent {
        figures.push_str(&format!("  busy {}", percent(f64::from(busy))));
    }
    let bar_width = width.saturating_sub(label.chars().count() + figures.len()).min(72);
    let mut spans = vec![look.span(Paint::Strong, label)];
    if bar_width >= 6 {
        spans.extend(gpu_bar(look, gpu, bar_width));
    }
    spans.push(look.span(Paint::Plain, figures));
    put(frame, area, spans);
}

/// VRAM as far as it goes, and to the same scale the RAM that comes on top of it.
fn gpu_bar(look: Look, gpu: &Gpu, width: usize) -> Vec<Span<'static>> {
    let ours = gpu.under_emuv;
    let used = gpu.vram_used_bytes.unwrap_or(ours.vram_bytes).max(ours.vram_bytes);
    let total = gpu.vram_total_bytes.unwrap_or(used).max(used);
    let others = used - ours.vram_bytes;
    let inside = width.saturating_sub(3);
    let [ram_width] = places([ours.ram_bytes], total.saturating_add(ours.ram_bytes), inside);
    let vram_width = inside - ram_width;
    let [vram, other] = places([ours.vram_bytes, others], total, vram_width);
    let run = |letter: char, count: usize| letter.to_string().repeat(count);
    vec![
        look.span(Paint::Quiet, "["),
        look.span(Paint::Vram, run(look.vram(), vram)),
        look.span(Paint::Other, run(look.other(), other)),
        look.span(Paint::Quiet, run(look.free(), vram_width - vram - other)),
        look.span(Paint::Quiet, "|"),
        look.span(Paint::Ram, run(look.ram(), ram_width)),
        look.span(Paint::Quiet, "]"),
    ]
}

fn link_line(frame: &mut Frame<'_>, look: Look, gpu: &Gpu, area: Rect) {
    let Some(rates) = gpu.under_emuv.rates else {
        return put(frame, area, vec![look.span(Paint::Quiet, "      nothing of it runs under emuV, or not for long")]);
    };
    let bar_width = usize::from(area.width / 10).min(16);
    let into = rates.in_bytes_per_second + rates.in_place_bytes_per_second;
    let mut spans = Vec::new();
    let both = [
        ("      in ", into, gpu.link.map(|link| link.in_bytes_per_second), Paint::Into),
        ("  out ", rates.out_bytes_per_second, gpu.link.map(|link| link.out_bytes_per_second), Paint::Out),
    ];
    for (label, now, most, paint) in both {
        spans.push(look.span(Paint::Quiet, label));
        if let Some(most) = most {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A rate for people.
            let [filled] = places([now as u64], most, bar_width);
            spans.push(look.span(paint, look.vram().to_string().repeat(filled)));
            spans.push(look.span(Paint::Quiet, look.free().to_string().repeat(bar_width - filled)));
            spans.push(look.span(Paint::Plain, " "));
        }
        spans.push(look.span(Paint::Plain, rate_of(now, most)));
    }
    let waited = format!("  {} launches/s", count(rates.launches_per_second));
    spans.push(look.span(Paint::Plain, waited));
    put(frame, area, spans);
}

/// The slices, a line each, as far as there is room.
pub(super) fn slices(frame: &mut Frame<'_>, model: &Model, rest: &mut Column, height: u16) {
    let slices = &model.snapshot.slices;
    let room = usize::from(height / 4);
    if slices.is_empty() || room < 3 {
        return;
    }
    let shown = if slices.len() <= room { slices.len() } else { room - 1 };
    let name_width = slices.iter().map(|slice| slice.name.len()).max().unwrap_or(0).min(16);
    let widest = |shares: fn(&Slice) -> String| slices.iter().take(shown).map(|slice| shares(slice).len()).max();
    let widths = [name_width, widest(vram_of).unwrap_or(0), widest(ram_of).unwrap_or(0)];
    for slice in slices.iter().take(shown) {
        slice_line(frame, model, slice, widths, rest.take(1));
    }
    if shown < slices.len() {
        let more = format!("and {} more slices: emuv vgpu list", slices.len() - shown);
        put(frame, rest.take(1), vec![model.look.span(Paint::Quiet, more)]);
    }
}

/// What a slice has and may have, e.g. `4.0G/6.0G`.
fn vram_of(slice: &Slice) -> String {
    used_of(slice.vram_used_bytes, slice.vram_limit_bytes)
}

fn ram_of(slice: &Slice) -> String {
    used_of(slice.ram_used_bytes, slice.ram_limit_bytes)
}

fn used_of(used: Option<u64>, limit: u64) -> String {
    format!("{}/{}", used.map_or_else(|| "?".to_owned(), size), size(limit))
}

/// The widths are those of the name and of both shares: these stand below each other.
fn slice_line(frame: &mut Frame<'_>, model: &Model, slice: &Slice, widths: [usize; 3], area: Rect) {
    let look = model.look;
    let (vram, ram) = (slice.vram_used_bytes, slice.ram_used_bytes);
    let whole = slice.vram_limit_bytes.saturating_add(slice.ram_limit_bytes);
    let bar_width = usize::from(area.width / 6).clamp(6, 30);
    let [vram_places, ram_places] = places([vram.unwrap_or(0), ram.unwrap_or(0)], whole, bar_width);
    let [name_width, vram_width, ram_width] = widths;
    let paint = |now: Option<u64>, limit| if now.is_some_and(|now| now > limit) { Paint::Bad } else { Paint::Plain };
    let name = &slice.name;
    let mut spans = vec![
        look.span(Paint::Strong, format!("{name:name_width$.name_width$} ")),
        look.span(Paint::Vram, look.vram().to_string().repeat(vram_places)),
        look.span(Paint::Ram, look.ram().to_string().repeat(ram_places)),
        look.span(Paint::Quiet, look.free().to_string().repeat(bar_width - vram_places - ram_places)),
        look.span(paint(vram, slice.vram_limit_bytes), format!(" VRAM {:>vram_width$}", vram_of(slice))),
        look.span(paint(ram, slice.ram_limit_bytes), format!("  RAM {:>ram_width$}", ram_of(slice))),
    ];
    if !slice.enabled {
        spans.push(look.span(Paint::Bad, "  disabled"));
    }
    let mut words = Vec::new();
    if let Some(time) = slice.time.filter(|time| time.used_micros > 0) {
        words.extend(time.share_percent.map(|share| format!("{share:.0} % of time")));
        words.push(format!("{} turns{}", count_whole(time.turns), if time.in_turn { ", now" } else { "" }));
    }
    words.push(format!("weight {}", slice.weight));
    words.extend(slice.cap_percent.map(|cap| format!("cap {cap} %")));
    words.extend(slice.schedule.as_ref().map(|schedule| format!("open {schedule}")));
    // Whole words, as far as they fit.
    let mut left = usize::from(area.width).saturating_sub(spans.iter().map(Span::width).sum());
    for word in words {
        let Some(after) = left.checked_sub(word.len() + 2) else { break };
        left = after;
        spans.push(look.span(Paint::Plain, format!("  {word}")));
    }
    put(frame, area, spans);
}

#[allow(clippy::cast_precision_loss)] // A count for people.
fn count_whole(number: u64) -> String {
    if number < 100_000 { number.to_string() } else { count(number as f64) }
}

/// What crossed the link of one GPU: into VRAM on the left, out of it on the right.
pub(super) fn graphs(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let Some(gpu) = model.snapshot.gpus.get(model.gpu) else { return };
    if area.height < 2 || area.width < 20 {
        return;
    }
    let half = area.width / 2;
    let points = model.history.last(&gpu.uuid, usize::from(half) - 1);
    let (into, out) = model.history.scale(&gpu.uuid, gpu.link);
    let of = if gpu.link.is_some() { "link" } else { "most seen" };
    let many = model.snapshot.gpus.len() > 1;
    let which = if many { format!("GPU {} ", gpu.index.map_or(model.gpu, |i| i as usize)) } else { String::new() };
    let sides = [
        (0, format!("{which}in, {of} {}/s", rate(into)), into, Paint::Into),
        (half, format!("{which}out, {of} {}/s", rate(out)), out, Paint::Out),
    ];
    for (index, (x, title, scale, paint)) in sides.into_iter().enumerate() {
        let side = Rect { x: area.x + x, width: half - 1, ..area };
        let title = if scale <= 1.0 { format!("{which}{}: nothing moves", ["in", "out"][index]) } else { title };
        put(frame, Rect { height: 1, ..side }, vec![model.look.span(Paint::Quiet, title)]);
        let values: Vec<f64> = points.iter().map(|point| if index == 0 { point.into } else { point.out }).collect();
        graph(frame, model.look, &values, scale, paint, Rect { y: side.y + 1, height: side.height - 1, ..side });
    }
}

/// Columns from the right, newest last.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Steps of a column.
fn graph(frame: &mut Frame<'_>, look: Look, values: &[f64], scale: f64, paint: Paint, area: Rect) {
    let letters: &[char] =
        if look.blocks { &['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'] } else { &['.', ':', '#'] };
    let steps = letters.len();
    let style = look.style(paint);
    for (place, value) in values.iter().rev().take(usize::from(area.width)).enumerate() {
        let x = area.right() - 1 - u16::try_from(place).unwrap_or(0);
        let full = usize::from(area.height) * steps;
        let height = ((value / scale * full as f64).round() as usize).min(full).max(usize::from(*value > 0.0));
        for line in 0..area.height {
            let level = height.saturating_sub(usize::from(line) * steps).min(steps);
            if let Some(letter) = level.checked_sub(1).and_then(|level| letters.get(level)) {
                frame.buffer_mut().set_string(x, area.bottom() - 1 - line, letter.to_string(), style);
            }
        }
    }
}
