//! The table of processes.

use ratatui::{
    Frame,
    layout::Rect,
    text::{Line, Span},
};

use super::{Paint, put};
use crate::{
    model::Model,
    rows::{Row, Sort},
    words::{count, percent, places, rate, size},
};

/// A column, in the order in which they stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Pid,
    User,
    Gpu,
    Slice,
    Program,
    Split,
    Vram,
    Ram,
    Spilled,
    Into,
    Out,
    InPlace,
    Waited,
    Bound,
    Launches,
    Turns,
    Command,
}

/// Title, width and rank: the highest rank gives way first. The program's column takes what is left.
const COLUMNS: [(Column, &str, u16, u8); 17] = [
    (Column::Pid, "PID", 7, 0),
    (Column::User, "UID", 6, 13),
    (Column::Gpu, "GPU", 3, 9),
    (Column::Slice, "SLICE", 8, 7),
    (Column::Program, "PROGRAM", 10, 0),
    (Column::Split, "VRAM/RAM", 10, 6),
    (Column::Vram, "VRAM", 6, 1),
    (Column::Ram, "RAM", 6, 2),
    (Column::Spilled, "SPILL", 6, 10),
    (Column::Into, "IN/s", 6, 3),
    (Column::Out, "OUT/s", 6, 4),
    (Column::InPlace, "READ/s", 6, 12),
    (Column::Waited, "WAIT", 5, 11),
    (Column::Bound, "BOUND", 5, 5),
    (Column::Launches, "LAUN/s", 6, 8),
    (Column::Turns, "TURNS", 6, 14),
    (Column::Command, "COMMAND", 20, 15),
];

/// The width of the VRAM/RAM bars where there is much room.
const WIDE_SPLIT: u16 = 20;

/// The columns that fit, and their widths.
fn columns(model: &Model, width: u16) -> Vec<(Column, &'static str, u16)> {
    let rows = &model.rows;
    let is_of_use = |column: Column| match column {
        Column::Slice | Column::Turns => rows.iter().any(|row| row.slice.is_some()),
        Column::Gpu => model.snapshot.gpus.len() > 1,
        Column::User => rows.windows(2).any(|pair| pair[0].uid != pair[1].uid),
        _ => true,
    };
    let mut chosen: Vec<_> = COLUMNS.into_iter().filter(|(column, ..)| is_of_use(*column)).collect();
    let sum = |chosen: &[(Column, &str, u16, u8)]| {
        chosen.iter().map(|(_, _, width, _)| width + 1).sum::<u16>().saturating_sub(1)
    };
    while sum(&chosen) > width && chosen.len() > 1 {
        let worst = chosen.iter().enumerate().max_by_key(|(place, (.., rank))| (*rank, *place));
        let Some((worst, _)) = worst else { break };
        chosen.remove(worst);
    }
    let mut left = width.saturating_sub(sum(&chosen));
    for (wide, most) in [(Column::Split, WIDE_SPLIT), (Column::Program, 16), (Column::Slice, 12)] {
        if let Some((_, _, width, _)) = chosen.iter_mut().find(|(column, ..)| *column == wide) {
            let more = most.saturating_sub(*width).min(left);
            *width += more;
            left -= more;
        }
    }
    let last = [Column::Command, Column::Program];
    if let Some(last) = last.into_iter().find(|last| chosen.iter().any(|(column, ..)| column == last)) {
        chosen.iter_mut().filter(|(column, ..)| *column == last).for_each(|(_, _, width, _)| *width += left);
    }
    chosen.into_iter().map(|(column, title, width, _)| (column, title, width)).collect()
}

/// Draws the table, of which the page is shown that the selected row is on.
pub(super) fn table(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    if area.height == 0 {
        return;
    }
    let columns = columns(model, area.width);
    let look = model.look;
    let mut head = Vec::new();
    for (column, title, width) in &columns {
        let paint = if is_sorted_by(*column, model.sort) { Paint::Strong } else { Paint::Plain };
        let style = look.style(Paint::Reverse).patch(look.style(paint));
        head.push(Span::styled(format!("{} ", aligned(*column, title, *width)), style));
    }
    put(frame, Rect { height: 1, ..area }, head);
    let page = usize::from(area.height) - 1;
    if model.rows.is_empty() && page > 0 {
        let words = match (&model.filter, model.snapshot.processes.is_empty()) {
            (filter, _) if !filter.is_empty() => format!("nothing matches '{filter}' (esc shows all)"),
            (_, true) => "nothing runs under emuV: emuv run -- PROGRAM starts something".to_owned(),
            _ => String::new(),
        };
        put(frame, Rect { y: area.y + 1, height: 1, ..area }, vec![look.span(Paint::Quiet, words)]);
    }
    let selected = model.selected_place();
    let first = selected.map_or(0, |place| place / page.max(1) * page);
    let most = model.rows.iter().map(Row::memory_bytes).max().unwrap_or(0);
    for (line, (place, row)) in model.rows.iter().enumerate().skip(first).take(page).enumerate() {
        let y = area.y + 1 + u16::try_from(line).unwrap_or(0);
        let mut spans = Vec::new();
        for (column, _, width) in &columns {
            spans.extend(cell(model, row, *column, *width, most));
            spans.push(Span::raw(" "));
        }
        let mut line = Line::from(spans);
        if selected == Some(place) {
            line = line.patch_style(look.style(Paint::Reverse));
        }
        frame.buffer_mut().set_line(area.x, y, &line, area.width);
        if selected == Some(place) {
            frame.buffer_mut().set_style(Rect { y, height: 1, ..area }, look.style(Paint::Reverse));
        }
    }
}

fn is_sorted_by(column: Column, sort: Sort) -> bool {
    matches!(
        (column, sort),
        (Column::Split, Sort::Memory)
            | (Column::Vram, Sort::Vram)
            | (Column::Ram, Sort::Ram)
            | (Column::Spilled, Sort::Spilled)
            | (Column::Into | Column::Out | Column::InPlace, Sort::Traffic)
            | (Column::Launches, Sort::Launches)
            | (Column::Waited, Sort::Waited)
            | (Column::Bound, Sort::Bound)
            | (Column::Pid, Sort::Pid)
            | (Column::Program, Sort::Program)
    )
}

/// Text on the left, numbers on the right, exactly as wide as its column.
fn aligned(column: Column, text: &str, width: u16) -> String {
    let width = usize::from(width);
    let is_text = matches!(column, Column::Slice | Column::Program | Column::Split | Column::Command);
    let mut cut = String::new();
    let mut taken = 0;
    for letter in text.chars() {
        // Some letters take two places, some none.
        let wide = Span::raw(letter.to_string()).width();
        if taken + wide > width {
            break;
        }
        taken += wide;
        cut.push(letter);
    }
    let blanks = " ".repeat(width - taken);
    if is_text { cut + &blanks } else { blanks + &cut }
}

fn cell(model: &Model, row: &Row, column: Column, width: u16, most: u64) -> Vec<Span<'static>> {
    let look = model.look;
    let unknown = || "-".to_owned();
    let bytes = |bytes: Option<u64>| bytes.map_or_else(unknown, size);
    let quiet_zero = |number: Option<f64>, text: fn(f64) -> String| match number {
        Some(number) if number > 0.0 => (Paint::Plain, text(number)),
        Some(_) => (Paint::Quiet, "0".to_owned()),
        None => (Paint::Quiet, unknown()),
    };
    let (paint, text) = match column {
        Column::Split => return split(model, row, width, most),
        Column::Pid if row.same_pid_namespace => (Paint::Plain, row.key.pid.to_string()),
        // In a container: another number here.
        Column::Pid => (Paint::Quiet, format!("({})", row.key.pid)),
        Column::User => (Paint::Plain, row.uid.map_or_else(unknown, |uid| uid.to_string())),
        Column::Gpu => (Paint::Plain, row.gpu.to_string()),
        Column::Slice => (Paint::Plain, row.slice.clone().unwrap_or_else(unknown)),
        Column::Program if row.under_emuv => (Paint::Strong, row.program.clone()),
        Column::Program => (Paint::Other, format!("({})", row.program)),
        Column::Command if row.under_emuv => (Paint::Plain, row.command.clone()),
        Column::Command => (Paint::Other, "(not under emuV)".to_owned()),
        Column::Vram => (Paint::Vram, bytes(row.vram_bytes)),
        Column::Ram => (if row.ram_bytes == Some(0) { Paint::Quiet } else { Paint::Ram }, bytes(row.ram_bytes)),
        Column::Spilled => (Paint::Plain, bytes(row.spilled_bytes)),
        Column::Into => quiet_zero(row.in_rate, rate),
        Column::Out => quiet_zero(row.out_rate, rate),
        Column::InPlace => quiet_zero(row.in_place_rate, rate),
        Column::Launches => quiet_zero(row.launch_rate, count),
        Column::Waited => quiet_zero(row.waited_percent, percent),
        Column::Bound => row.bound_percent.map_or((Paint::Quiet, unknown()), |bound| (Paint::Plain, percent(bound))),
        Column::Turns => (Paint::Plain, row.turns.map_or_else(unknown, |turns| turns.to_string())),
    };
    vec![look.span(paint, aligned(column, &text, width))]
}

/// What it has in VRAM and in RAM, beside the largest process.
fn split(model: &Model, row: &Row, width: u16, most: u64) -> Vec<Span<'static>> {
    let look = model.look;
    let width = usize::from(width);
    let vram_bytes = row.vram_bytes.unwrap_or(0);
    let [vram, ram] = places([vram_bytes, row.ram_bytes.unwrap_or(0)], most, width);
    let (paint, letter) = if row.under_emuv { (Paint::Vram, look.vram()) } else { (Paint::Other, look.other()) };
    vec![
        look.span(paint, letter.to_string().repeat(vram)),
        look.span(Paint::Ram, look.ram().to_string().repeat(ram)),
        Span::raw(" ".repeat(width - vram - ram)),
    ]
}
