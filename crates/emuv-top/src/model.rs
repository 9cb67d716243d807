//! The state of the screen, and how it changes. Pure: an event comes in, what is to be done outside comes out.
//!
//! ```text
//!            /                 k (a process is held, and named by the kernel)
//!  Filter <---- Table  ----------------------------------> Ask
//!     |  enter,   | ^ ?, h  any key                          | y: SIGTERM, K: SIGKILL, any other: nothing
//!     +-- esc ----+ +-----> Help                             +--> Table
//! ```
//!
//! *What holds:* a signal goes only to a process that was held when the question was asked, and only after an answer to that
//! question; whatever samples come meanwhile, it is that one. The selection is a process, not a place: it stays with it
//! when the order changes.

use emuv_watch::Snapshot;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{
    history::History,
    rows::{Key, Row, Sort, arrange, rows},
    words::Look,
};

/// Intervals that `+` and `-` go through, in milliseconds.
const INTERVALS: [u64; 8] = [250, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000];

/// Rows that a page key goes over.
const PAGE: usize = 10;

/// The longest filter.
const MOST_LETTERS: usize = 60;

/// What comes in.
#[derive(Debug, Clone)]
pub enum Event {
    Sample(Box<Snapshot>),
    Key(KeyEvent),
    /// The process that was to be held: it is, or why not.
    Held(Result<Target, String>),
    /// What became of a signal, in words.
    Signalled(String),
}

/// What is to be done outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Nothing,
    /// Take a sample now.
    Sample,
    /// Hold on to a process, so that its number cannot come to mean another.
    Hold(Key),
    /// Let go of it.
    Release,
    /// Send the signal to the process that is held.
    Signal(Ending),
    /// Stop, as Ctrl-Z does.
    Suspend,
    Quit,
}

/// How a process is made to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM.
    Asked,
    /// SIGKILL.
    Killed,
}

/// A process that is held, as the kernel names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub pid: u32,
    pub name: String,
    pub uid: Option<u32>,
}

/// What keys mean now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    Table,
    /// A filter is typed; with what it was before.
    Filter(String),
    Ask(Target),
    Help,
}

/// See the module's head.
#[derive(Debug, Clone)]
pub struct Model {
    pub look: Look,
    pub snapshot: Snapshot,
    pub history: History,
    /// Filtered and sorted.
    pub rows: Vec<Row>,
    pub sort: Sort,
    pub reversed: bool,
    pub filter: String,
    pub mode: Mode,
    pub selected: Option<Key>,
    /// Whose graphs are shown, by place.
    pub gpu: usize,
    /// More about the selected process.
    pub details: bool,
    pub paused: bool,
    pub interval_millis: u64,
    /// A word about what was just done; until the next key.
    pub said: Option<String>,
}

impl Model {
    /// Nothing is known yet.
    pub fn new(look: Look, interval_millis: u64) -> Self {
        Self {
            look,
            snapshot: Snapshot::default(),
            history: History::default(),
            rows: Vec::new(),
            sort: Sort::Memory,
            reversed: false,
            filter: String::new(),
            mode: Mode::Table,
            selected: None,
            gpu: 0,
            details: false,
            paused: false,
            interval_millis,
            said: None,
        }
    }

    /// Takes an event in.
    pub fn update(&mut self, event: Event) -> Effect {
        match event {
            Event::Sample(snapshot) => {
                self.history.add(&snapshot);
                self.snapshot = *snapshot;
                self.gpu = self.gpu.min(self.snapshot.gpus.len().saturating_sub(1));
                self.arrange();
                Effect::Nothing
            }
            Event::Key(key) => {
                self.said = None;
                if key.modifiers.contains(KeyModifiers::CONTROL) {
                    return self.control(key.code);
                }
                match std::mem::replace(&mut self.mode, Mode::Table) {
                    Mode::Table => self.table_key(key.code),
                    Mode::Filter(before) => self.filter_key(key.code, before),
                    Mode::Ask(_) => answer(key.code),
                    Mode::Help => Effect::Nothing,
                }
            }
            Event::Held(Ok(target)) => {
                self.mode = Mode::Ask(target);
                Effect::Nothing
            }
            Event::Held(Err(words)) | Event::Signalled(words) => {
                self.said = Some(words);
                Effect::Nothing
            }
        }
    }

    /// The place of the selected row.
    pub fn selected_place(&self) -> Option<usize> {
        let key = self.selected.as_ref()?;
        self.rows.iter().position(|row| row.key == *key)
    }

    fn arrange(&mut self) {
        let place = self.selected_place();
        self.rows = arrange(rows(&self.snapshot), self.sort, self.reversed, &self.filter);
        if self.selected.is_some() && self.selected_place().is_none() {
            // It is gone: what is in its place now.
            let place = place.unwrap_or(0).min(self.rows.len().saturating_sub(1));
            self.selected = self.rows.get(place).map(|row| row.key.clone());
        }
    }

    fn control(&mut self, code: KeyCode) -> Effect {
        match code {
            KeyCode::Char('c' | 'C') => Effect::Quit,
            KeyCode::Char('z' | 'Z') => Effect::Suspend,
            // Draws anew what another program has written over.
            KeyCode::Char('l' | 'L') => Effect::Sample,
            _ => Effect::Nothing,
        }
    }

    fn table_key(&mut self, code: KeyCode) -> Effect {
        match code {
            KeyCode::Char('q') => return Effect::Quit,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.mode = Mode::Help,
            KeyCode::Char('/') => self.mode = Mode::Filter(self.filter.clone()),
            KeyCode::Char('k') | KeyCode::F(9) | KeyCode::Delete => return self.ask(),
            KeyCode::Char('s' | '>') => self.sort_by(self.sort.step(true)),
            KeyCode::Char('S' | '<') => self.sort_by(self.sort.step(false)),
            KeyCode::Char('r') => {
                self.reversed = !self.reversed;
                self.arrange();
            }
            KeyCode::Char('g') => self.gpu = (self.gpu + 1) % self.snapshot.gpus.len().max(1),
            KeyCode::Char('+' | '=') => self.change_interval(true),
            KeyCode::Char('-') => self.change_interval(false),
            KeyCode::Char(' ' | 'p') => {
                self.paused = !self.paused;
                return if self.paused { Effect::Nothing } else { Effect::Sample };
            }
            KeyCode::Enter | KeyCode::Char('d') => {
                self.details = !self.details;
                if self.selected.is_none() {
                    self.select(|_, _| 0);
                }
            }
            KeyCode::Esc if self.selected.is_some() => (self.selected, self.details) = (None, false),
            KeyCode::Esc => {
                self.filter.clear();
                self.arrange();
            }
            KeyCode::Up => self.select(|place, _| place.map_or(0, |place| place.saturating_sub(1))),
            KeyCode::Down => self.select(|place, _| place.map_or(0, |place| place + 1)),
            KeyCode::PageUp => self.select(|place, _| place.map_or(0, |place| place.saturating_sub(PAGE))),
            KeyCode::PageDown => self.select(|place, _| place.map_or(0, |place| place + PAGE)),
            KeyCode::Home => self.select(|_, _| 0),
            KeyCode::End => self.select(|_, last| last),
            _ => {}
        }
        Effect::Nothing
    }

    /// Selects another row: by the place of the one that is selected, and the last place.
    fn select(&mut self, to: impl FnOnce(Option<usize>, usize) -> usize) {
        let last = self.rows.len().saturating_sub(1);
        let place = to(self.selected_place(), last).min(last);
        self.selected = self.rows.get(place).map(|row| row.key.clone());
    }

    fn sort_by(&mut self, sort: Sort) {
        self.sort = sort;
        self.arrange();
    }

    fn change_interval(&mut self, longer: bool) {
        let now = self.interval_millis;
        let next = if longer {
            INTERVALS.into_iter().find(|millis| *millis > now)
        } else {
            INTERVALS.into_iter().rev().find(|millis| *millis < now)
        };
        self.interval_millis = next.unwrap_or(now);
    }

    fn ask(&mut self) -> Effect {
        let row = self.selected_place().and_then(|place| self.rows.get(place));
        match row {
            None => self.said = Some("choose a process first, with the arrow keys".to_owned()),
            Some(row) if !row.same_pid_namespace => {
                self.said = Some("it runs in a container: its number means another process here".to_owned());
            }
            Some(row) => return Effect::Hold(row.key.clone()),
        }
        Effect::Nothing
    }

    fn filter_key(&mut self, code: KeyCode, before: String) -> Effect {
        match code {
            KeyCode::Enter => return Effect::Nothing,
            KeyCode::Esc => {
                self.filter = before;
                self.arrange();
                return Effect::Nothing;
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(letter) if self.filter.chars().count() < MOST_LETTERS && !letter.is_control() => {
                self.filter.push(letter);
            }
            _ => {}
        }
        self.mode = Mode::Filter(before);
        self.arrange();
        Effect::Nothing
    }
}

fn answer(code: KeyCode) -> Effect {
    match code {
        KeyCode::Char('y') => Effect::Signal(Ending::Asked),
        KeyCode::Char('K') => Effect::Signal(Ending::Killed),
        _ => Effect::Release,
    }
}
