//! The screen: what the model looks like. Pure, and good for any size: what has no room is left out, the least important first.

mod dialogs;
mod gpus;
mod table;

use ratatui::{
    Frame,
    layout::Rect,
    style::{Color, Modifier, Style},
    text::{Line, Span},
};

use super::{
    model::{Mode, Model},
    words::{Look, rate},
};

/// What is not worth drawing into.
const LEAST: (u16, u16) = (10, 2);

/// From so many lines on, each GPU has two and the graphs have their place.
const TALL: u16 = 18;

/// From so many lines on, graphs are higher and details are always there.
const TALLER: u16 = 36;

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, model: &Model) {
    let area = frame.area();
    if (area.width, area.height) < LEAST || area.height < LEAST.1 {
        return;
    }
    let mut rest = Column(area);
    header(frame, model, rest.take(1));
    let footer_area = rest.take_last(1);
    if area.height >= TALL
        && let Some(words) = left_out(model)
    {
        put(frame, rest.take_last(1), vec![Span::styled(words, model.look.style(Paint::Bad))]);
    }
    gpus::gpus(frame, model, &mut rest, area.height);
    gpus::slices(frame, model, &mut rest, area.height);
    if area.height >= TALL && !model.snapshot.gpus.is_empty() {
        gpus::graphs(frame, model, rest.take(if area.height >= TALLER { 8 } else { 4 }));
    }
    let details = match area.height {
        TALLER.. if model.selected.is_some() || model.details => 8,
        height @ 10.. if model.details => height / 3,
        _ => 0,
    };
    let details = rest.take_last(details);
    table::table(frame, model, rest.0);
    dialogs::details(frame, model, details);
    dialogs::footer(frame, model, footer_area);
    match &model.mode {
        Mode::Ask(target) => dialogs::ask(frame, model, target, area),
        Mode::Help => dialogs::help(frame, model, area),
        Mode::Table | Mode::Filter(_) => {}
    }
}

/// An area that parts are taken from, at the top and at the bottom.
struct Column(Rect);

impl Column {
    fn take(&mut self, lines: u16) -> Rect {
        let lines = lines.min(self.0.height);
        let taken = Rect { height: lines, ..self.0 };
        self.0.y += lines;
        self.0.height -= lines;
        taken
    }

    fn take_last(&mut self, lines: u16) -> Rect {
        let lines = lines.min(self.0.height);
        self.0.height -= lines;
        Rect { y: self.0.y + self.0.height, height: lines, ..self.0 }
    }
}

/// What a piece of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paint {
    Plain,
    /// Names of what follows.
    Quiet,
    Strong,
    Vram,
    Ram,
    Other,
    Into,
    Out,
    Bad,
    /// Head lines and what is selected.
    Reverse,
}

impl Look {
    fn style(self, paint: Paint) -> Style {
        let style = Style::new();
        let colour = |colour| if self.colour { style.fg(colour) } else { style };
        match paint {
            Paint::Plain => style,
            Paint::Quiet => style.add_modifier(Modifier::DIM),
            Paint::Strong => style.add_modifier(Modifier::BOLD),
            Paint::Vram => colour(Color::Green),
            Paint::Ram => colour(Color::Yellow),
            Paint::Other => colour(Color::Magenta),
            Paint::Into => colour(Color::Cyan),
            Paint::Out => colour(Color::Blue),
            Paint::Bad => colour(Color::Red).add_modifier(Modifier::BOLD),
            Paint::Reverse => style.add_modifier(Modifier::REVERSED),
        }
    }

    fn span(self, paint: Paint, text: impl Into<String>) -> Span<'static> {
        Span::styled(text.into(), self.style(paint))
    }
}

/// Writes one line; what does not fit is cut.
fn put(frame: &mut Frame<'_>, area: Rect, spans: Vec<Span<'static>>) {
    if area.height > 0 && area.width > 0 {
        frame.buffer_mut().set_line(area.x, area.y, &Line::from(spans), area.width);
    }
}

fn header(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let snapshot = &model.snapshot;
    let counted = |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    let mut words = vec![
        format!("emuv top {}", clock(snapshot.time_unix_millis)),
        counted(snapshot.gpus.len(), "GPU", "GPUs"),
        counted(snapshot.processes.len(), "process", "processes"),
    ];
    if !snapshot.slices.is_empty() {
        words.insert(2, counted(snapshot.slices.len(), "slice", "slices"));
    }
    if !snapshot.others.is_empty() {
        words.push(format!("{} without emuV", snapshot.others.len()));
    }
    #[allow(clippy::cast_precision_loss)] // At most some minutes.
    let every = format!("every {} s", model.interval_millis as f64 / 1000.0);
    words.push(if model.paused { "paused".to_owned() } else { every });
    let width = usize::from(area.width);
    put(frame, area, vec![model.look.span(Paint::Reverse, format!("{:width$}", words.join("  ")))]);
}

/// The time of day, as `date -u` has it.
pub fn clock(unix_millis: u64) -> String {
    let seconds = unix_millis / 1000 % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// A line about state that could not be used, if there is such.
fn left_out(model: &Model) -> Option<String> {
    let kept = emuv_watch::ProblemKind::NotAllowed;
    let mut problems = model.snapshot.problems.iter().filter(|problem| problem.kind != kept);
    let first = problems.next()?;
    let more = match problems.count() {
        0 => String::new(),
        count => format!(" (and {count} more, see ?)"),
    };
    Some(format!("left out{more}: {}", first.words))
}

/// A rate and what it can be at most, e.g. `12.1/25.0G/s`.
fn rate_of(now: f64, most: Option<u64>) -> String {
    #[allow(clippy::cast_precision_loss)] // A rate for people.
    let most = most.map_or_else(String::new, |most| format!("/{}", rate(most as f64)));
    format!("{}{most}/s", rate(now))
}
