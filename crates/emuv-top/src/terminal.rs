//! The terminal: keys, time and signals in, frames out. It is left as it was found, however this ends (but for SIGKILL).

use std::{
    io,
    mem::ManuallyDrop,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use emuv_watch::{Moment, Sampler};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event as Input, KeyEventKind},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Signal, kill_current_process_group},
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::{
    model::{Effect, Event, Model},
    screen::draw,
    target::Held,
};

/// How long a signal may go unnoticed.
const LOOK: Duration = Duration::from_millis(250);

/// The screen, until it is dropped. A panic gives the terminal back before it says what it has to say.
struct Screen(ManuallyDrop<DefaultTerminal>);

impl Screen {
    fn open() -> io::Result<Self> {
        let opened = ratatui::try_init();
        if opened.is_err() {
            // It may have come half-way.
            let _ = ratatui::try_restore();
        }
        opened.map(|terminal| Self(ManuallyDrop::new(terminal)))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal's own drop, and the restoring that says what went wrong, panic where standard error is gone too: so the one
        // does not happen (there is nothing in it but memory), and the other is not used.
        let _ = self.0.show_cursor();
        let _ = ratatui::try_restore();
    }
}

/// What has come of waiting.
enum Waited {
    Input,
    InVain,
    /// There is no terminal any more.
    Gone,
}

/// Waits for keys, for a signal (another size is one), or for time to pass. The library that reads keys does not notice that a
/// terminal has gone, and would go on reading for ever.
fn wait_for_input(most: Duration) -> Waited {
    let stdin = io::stdin();
    let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
    let most = Timespec { tv_sec: i64::try_from(most.as_secs()).unwrap_or(0), tv_nsec: most.subsec_nanos().into() };
    match poll(&mut polled, Some(&most)) {
        Ok(0) => Waited::InVain,
        Ok(_) if polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) => Waited::Gone,
        Ok(_) => Waited::Input,
        Err(rustix::io::Errno::INTR) => Waited::Input,
        Err(_) => Waited::Gone,
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
        match wait_for_input(wait) {
            Waited::Gone => {
                signal.store(usize::try_from(SIGHUP).unwrap_or(0), Relaxed);
                break;
            }
            Waited::InVain => continue,
            Waited::Input => {}
        }
        // All that is there: what was read with the first is not seen by the next wait.
        while event::poll(Duration::ZERO)? {
            let Input::Key(key) = event::read()? else { continue };
            if key.kind == KeyEventKind::Release {
                continue;
            }
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
                    // The whole job, as the terminal itself would.
                    kill_current_process_group(Signal::TSTP)?;
                    screen = Screen::open()?;
                }
                Effect::Quit => return Ok(0),
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
