//! Child processes with a time limit, whose output is kept in files.
//!
//! A child gets a process group of its own, so that all that it started ends with it; Ctrl-C therefore reaches
//! emuV alone, which ends the child.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGINT, SIGTERM};

/// How long a child that is asked to end may take.
const GRACE: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(20);

/// Set once the user wants to stop.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Watches for Ctrl-C and SIGTERM from here on.
    ///
    /// # Errors
    /// The system's own.
    pub fn watch() -> io::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        Ok(Self(flag))
    }

    /// Whether to stop.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a shell makes of an end by Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// What it wrote to standard output.
    pub stdout: String,
    /// The end of what it wrote to standard error.
    pub stderr: String,
    /// In words: `exit code 3`, `over the limit of 240 s`.
    pub words: String,
    /// Start and end included.
    pub wall: Duration,
}

/// Runs a program to its end or to its limit. Its output is kept in `logs` as NAME.out and NAME.err.
///
/// # Errors
/// It could not be started, or the files not be written.
pub fn run(
    command: &mut Command,
    logs: &Path,
    name: &str,
    limit: Duration,
    interrupt: &Interrupt,
) -> io::Result<Finished> {
    let (out, err) = (logs.join(format!("{name}.out")), logs.join(format!("{name}.err")));
    command.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&err)?).process_group(0);
    let start = Instant::now();
    let mut child = command.spawn()?;
    let words = wait(&mut child, start, limit, interrupt)?;
    let read = |path: &Path| fs::read(path).map(|text| String::from_utf8_lossy(&text).into_owned());
    Ok(Finished { stdout: read(&out)?, stderr: read(&err)?, words, wall: start.elapsed() })
}

fn wait(child: &mut Child, start: Instant, limit: Duration, interrupt: &Interrupt) -> io::Result<String> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(ended(status));
        }
        if interrupt.requested() {
            end(child)?;
            return Ok("interrupted".to_owned());
        }
        if start.elapsed() > limit {
            end(child)?;
            return Ok(format!("over the limit of {} s", limit.as_secs()));
        }
        sleep(GLANCE);
    }
}

/// Ends a child and all that it started, politely first: `emuv run` then cleans up.
fn end(child: &mut Child) -> io::Result<()> {
    let group = Pid::from_child(child);
    // It is not collected yet, so the number is still its own; there may be nobody left to ask.
    let _ = kill_process_group(group, Signal::TERM);
    let asked = Instant::now();
    while child.try_wait()?.is_none() {
        if asked.elapsed() > GRACE {
            let _ = kill_process_group(group, Signal::KILL);
            child.wait()?;
        } else {
            sleep(GLANCE);
        }
    }
    Ok(())
}

fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(script: &str, limit: Duration, interrupt: &Interrupt) -> Finished {
        let folder = tempfile::tempdir().unwrap();
        run(Command::new("sh").args(["-c", script]), folder.path(), "x", limit, interrupt).unwrap()
    }

    fn calm() -> Interrupt {
        Interrupt(Arc::default())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn output_and_end_are_kept() {
        let found = finished("echo result; echo trouble >&2; exit 3", LONG, &calm());
        assert_eq!((found.stdout.as_str(), found.stderr.as_str()), ("result\n", "trouble\n"));
        assert_eq!(found.words, "exit code 3");
        assert_eq!(finished("kill -9 $$", LONG, &calm()).words, "ended by signal 9");
    }

    #[test]
    fn a_child_over_its_limit_is_ended_with_all_that_it_started() {
        let found = finished("sleep 1000 & echo begun; wait", Duration::ZERO, &calm());
        assert_eq!(found.words, "over the limit of 0 s");
    }

    #[test]
    fn an_interrupt_ends_the_child() {
        let interrupt = Interrupt(Arc::new(AtomicBool::new(true)));
        assert_eq!(finished("sleep 1000", LONG, &interrupt).words, "interrupted");
    }
}
