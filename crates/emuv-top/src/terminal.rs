//! The terminal: keys, time and signals in, frames out. It is left as it was found, however this ends (but for SIGKILL).

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use emuv_watch::{Moment, Sampler};
use ratatui::crossterm::event::{self, Event as Input, KeyEventKind};
use rustix::process::{Signal, getpid, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::{
    model::{Effect, Event, Model},
    screen::draw,
    target::Held,
};

/// How long a signal may go unnoticed.
const LOOK: Duration = Duration::from_millis(250);

/// The screen, until it is dropped. A panic gives the terminal back before it says what it has to say.
struct Screen(ratatui::DefaultTerminal);

impl Screen {
    fn open() -> io::Result<Self> {
        let opened = ratatui::try_init();
        if opened.is_err() {
            // It may have come half-way.
            ratatui::restore();
        }
        opened.map(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.0.show_cursor();
        ratatui::restore();
    }
}

/// Shows samples until somebody has seen enough.
///
/// # Errors
/// The terminal's own.
pub fn run(sampler: &mut Sampler, mut model: Model) -> io::Result<u8> {
    let signal = Arc::new(AtomicUsize::new(0));
    for number in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
        let value = usize::try_from(number).unwrap_or(0);
        signal_hook::flag::register_usize(number, Arc::clone(&signal), value)?;
    }
    let mut screen = Screen::open()?;
    let mut held: Option<Held> = None;
    let mut due = Instant::now();
    loop {
        if signal.load(Relaxed) != 0 {
            break;
        }
        if !model.paused && Instant::now() >= due {
            model.update(Event::Sample(Box::new(sampler.sample(Moment::now()))));
            due = Instant::now() + Duration::from_millis(model.interval_millis);
            screen.0.draw(|frame| draw(frame, &model))?;
        }
        let wait = if model.paused { LOOK } else { due.saturating_duration_since(Instant::now()).min(LOOK) };
        match event::poll(wait) {
            Ok(false) => continue,
            Ok(true) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if let Input::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
        {
            match model.update(Event::Key(key)) {
                Effect::Nothing => {}
                Effect::Sample => {
                    due = Instant::now();
                    screen.0.clear()?;
                }
                Effect::Hold(key) => {
                    let taken = Held::take(&key).map(|(process, target)| {
                        held = Some(process);
                        target
                    });
                    model.update(Event::Held(taken));
                }
                Effect::Release => held = None,
                Effect::Signal(ending) => {
                    let words = held.take().map(|held| held.end(ending));
                    model.update(Event::Signalled(words.unwrap_or_default()));
                }
                Effect::Suspend => {
                    drop(screen);
                    kill_process(getpid(), Signal::TSTP)?;
                    screen = Screen::open()?;
                }
                Effect::Quit => break,
            }
            due = due.min(Instant::now() + Duration::from_millis(model.interval_millis));
        }
        // A key, or another size.
        screen.0.draw(|frame| draw(frame, &model))?;
    }
    drop(screen);
    let signal = u8::try_from(signal.load(Relaxed)).unwrap_or(0);
    Ok(if signal == 0 { 0 } else { 128 + signal })
}
