//! The lowest lines, and what lies over the others for a moment.

use ratatui::{
    Frame,
    layout::Rect,
    symbols::border,
    text::{Line, Text},
    widgets::{Block, Clear, Paragraph, Wrap},
};

use super::{Paint, put};
use crate::{
    model::{Mode, Model, Target},
    words::size,
};

/// Keys, or a filter that is typed, or what was just done.
pub(super) fn footer(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let look = model.look;
    let spans = match (&model.mode, &model.said) {
        (Mode::Filter(_), _) => {
            vec![look.span(Paint::Strong, "filter: "), look.span(Paint::Plain, format!("{}_", model.filter))]
        }
        (_, Some(said)) => vec![look.span(Paint::Strong, said.clone())],
        _ => {
            let order = if model.reversed { ", reversed" } else { "" };
            let filter =
                if model.filter.is_empty() { String::new() } else { format!("  only '{}' (esc: all)", model.filter) };
            let sort = format!("s sort ({}{order})", model.sort.name());
            let keys = format!("q quit  ? help  {sort}  / filter  k end  d details{filter}");
            vec![look.span(Paint::Quiet, keys)]
        }
    };
    put(frame, area, spans);
}

/// More about the selected process.
pub(super) fn details(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let row = model.selected_place().and_then(|place| model.rows.get(place));
    let Some(row) = row.filter(|_| area.height >= 2) else { return };
    let look = model.look;
    let budget = row.vram_budget_bytes.map_or_else(String::new, |bytes| format!(" of {}", size(bytes)));
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), size);
    let mut lines = vec![
        Line::from(look.span(Paint::Strong, row.command.clone())),
        Line::from(format!(
            "VRAM {}{budget}, RAM {}, spilled in all {}; GPU {} ({})",
            bytes(row.vram_bytes),
            bytes(row.ram_bytes),
            bytes(row.spilled_bytes),
            row.gpu,
            row.key.gpu_uuid,
        )),
    ];
    if !row.under_emuv {
        lines.push(Line::from("it does not run under emuV: only the driver's word is known"));
    }
    lines.extend(row.notes.iter().cloned().map(Line::from));
    let block = bordered(model).title(format!(" process {} ", row.key.pid));
    frame.render_widget(Paragraph::new(Text::from(lines)).wrap(Wrap { trim: true }).block(block), area);
}

const ASCII: border::Set<'static> = border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};

fn bordered(model: &Model) -> Block<'static> {
    let block = Block::bordered();
    if model.look.blocks { block } else { block.border_set(ASCII) }
}

/// Asks before a process is made to end.
pub(super) fn ask(frame: &mut Frame<'_>, model: &Model, target: &Target, area: Rect) {
    let user = target.uid.map_or_else(String::new, |uid| format!(", user {uid}"));
    let lines = vec![
        Line::from(model.look.span(Paint::Strong, format!("End process {} ({}{user})?", target.pid, target.name))),
        Line::from(""),
        Line::from("y  ask it to end (SIGTERM)"),
        Line::from("K  kill it at once (SIGKILL): it saves nothing"),
        Line::from("any other key: leave it alone"),
    ];
    over(frame, model, " end a process ", lines, area);
}

const HELP: &str = "\
q, Ctrl-C    quit           up, down, home, end   choose a process
d, enter     more about it
k            end it, after a question
s, S         sort by the next column, the one before
r            reverse the order
/            show only what contains a text; esc shows all
g            graphs of the next GPU
space        pause
+, -         look less often, more often

PROGRAM   in parentheses: it runs without emuV
VRAM/RAM  what it has, to the scale of the largest process
SPILL     bytes that were placed in RAM, in all
IN, OUT   bytes that cross the link to the GPU, from it, a second
READ      the part of IN that is read in place in RAM
WAIT      of the time, how much the GPU waited for data
BOUND     how close it is to what GPU and link allow
TURNS     turns that its slice has had on a shared GPU";

/// What keys and columns mean, and what was left out.
pub(super) fn help(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let look = model.look;
    let legend = format!(
        "bars: {} VRAM  {} RAM  {} VRAM of others  {} free",
        look.vram(),
        look.ram(),
        look.other(),
        look.free()
    );
    let mut lines: Vec<Line<'static>> = HELP.lines().map(Line::from).collect();
    lines.push(Line::from(legend));
    if !model.snapshot.problems.is_empty() {
        lines.push(Line::from(""));
        lines.push(Line::from(look.span(Paint::Strong, "left out:")));
        lines.extend(model.snapshot.problems.iter().map(|problem| Line::from(problem.words.clone())));
    }
    over(frame, model, " emuv top: any key goes back ", lines, area);
}

/// A box over the middle of the screen, as large as its text where there is room.
fn over(frame: &mut Frame<'_>, model: &Model, title: &'static str, lines: Vec<Line<'static>>, area: Rect) {
    let width = lines.iter().map(Line::width).chain([title.len()]).max().unwrap_or(0) + 4;
    let width = u16::try_from(width).unwrap_or(u16::MAX).min(area.width);
    let inner = usize::from(width.saturating_sub(4)).max(1);
    let height: usize = lines.iter().map(|line| line.width().div_ceil(inner).max(1)).sum();
    let height = u16::try_from(height + 2).unwrap_or(u16::MAX).min(area.height);
    let place = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    let block = bordered(model)
        .title(title)
        .padding(ratatui::widgets::Padding::horizontal(1))
        .border_style(model.look.style(Paint::Strong));
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(Text::from(lines)).wrap(Wrap { trim: false }).block(block), place);
}
