//! The program while it runs: signals go to it, and emuV ends and stops as it does.
//!
//! What the terminal sends (Ctrl-C, Ctrl-Z, a new window size) goes to the whole foreground group, so the
//! program has it already. What another process sends to emuv alone is meant for the program, and is passed
//! on. emuv itself takes no default action on any of them: it ends when the program ends, and stops when
//! the program is stopped from the terminal, so that the shell sees it.

use std::{fs, io, process::Command};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};
use signal_hook::{
    consts::{
        SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH,
    },
    iterator::{SignalsInfo, exfiltrator::raw::WithRawSiginfo},
};

/// Signals that another process may send to emuv and mean the program.
const PASSED_ON: [i32; 9] = [SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT, SIGTSTP];

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With this exit code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl Ending {
    /// What a shell makes of it.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128_u8.saturating_add(signal),
        }
    }
}

/// Signals are held from here on, until there is a program to pass them to.
pub struct Signals(SignalsInfo<WithRawSiginfo>);

impl Signals {
    /// Takes over the signals that are not ignored already, as under nohup: the program inherits that.
    ///
    /// # Errors
    /// The system's own.
    pub fn take() -> io::Result<Self> {
        let ignored = ignored_signals();
        let taken = PASSED_ON.into_iter().filter(|signal| !is_in(ignored, *signal)).chain([SIGCHLD]);
        // A handler, unlike "ignore", is not inherited: the program starts with the default actions.
        Ok(Self(SignalsInfo::with_exfiltrator(taken, WithRawSiginfo)?))
    }

    /// Starts the program.
    ///
    /// # Errors
    /// The system's own, e.g. that there is no such program.
    pub fn start(self, command: &mut Command) -> io::Result<Program> {
        let child = command.spawn()?;
        Ok(Program { pid: Pid::from_child(&child), signals: self.0 })
    }
}

/// The set of ignored signals, as the kernel shows it; empty where it does not.
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

fn is_in(set: u64, signal: i32) -> bool {
    u32::try_from(signal - 1).ok().and_then(|bit| set.checked_shr(bit)).is_some_and(|set| set & 1 == 1)
}

/// The program.
pub struct Program {
    pid: Pid,
    signals: SignalsInfo<WithRawSiginfo>,
}

impl Program {
    /// Waits until it ends.
    ///
    /// # Errors
    /// The system's own.
    pub fn wait(mut self) -> io::Result<Ending> {
        loop {
            for info in self.signals.wait() {
                // Codes above zero are the kernel's own, and those of a terminal are among them.
                let from_a_process = info.si_code <= 0;
                if info.si_signo != SIGCHLD
                    && from_a_process
                    && let Some(signal) = Signal::from_named_raw(info.si_signo)
                {
                    // It may have ended meanwhile; it is not collected yet, so the number is still its own.
                    let _ = kill_process(self.pid, signal);
                }
            }
            while let Some((_, status)) = waitpid(Some(self.pid), WaitOptions::NOHANG | WaitOptions::UNTRACED)? {
                if let Some(code) = status.exit_status() {
                    return Ok(Ending::Code(low_byte(code)));
                }
                if let Some(signal) = status.terminating_signal() {
                    return Ok(Ending::Signal(low_byte(signal)));
                }
                if matches!(status.stopping_signal(), Some(SIGTSTP | SIGTTIN | SIGTTOU)) {
                    kill_process(getpid(), Signal::STOP)?;
                }
            }
        }
    }
}

/// Exit codes and signal numbers are below 256 on Linux.
fn low_byte(value: i32) -> u8 {
    u8::try_from(value & 0xff).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_is_what_a_shell_would_say() {
        assert_eq!(Ending::Code(7).exit_code(), 7);
        assert_eq!(Ending::Signal(15).exit_code(), 143);
    }

    #[test]
    fn a_set_of_signals_counts_from_one() {
        assert!(is_in(0b1, 1) && is_in(1 << 63, 64));
        assert!(!is_in(0b1, 2) && !is_in(u64::MAX, 0) && !is_in(u64::MAX, 65));
    }
}
