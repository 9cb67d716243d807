//! Ending a process that somebody has chosen on the screen.
//!
//! It is held by a descriptor before the question is asked, so that its number cannot come to mean another process while
//! somebody thinks; and it is named by the kernel's word, not by what a state file says.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
};

use emuv_watch::harmless;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{
    model::{Ending, Target},
    rows::Key,
};

/// A process that cannot become another.
#[derive(Debug)]
pub struct Held {
    process: OwnedFd,
    pid: u32,
}

impl Held {
    /// Takes hold of a process.
    ///
    /// # Errors
    /// It has ended, in words.
    pub fn take(key: &Key) -> Result<(Self, Target), String> {
        let gone = || format!("process {} has ended", key.pid);
        let pid = i32::try_from(key.pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
        // Looked at after it is held: whatever this says is about the one that is held, or that one has ended.
        if key.start_ticks.is_some_and(|start| emuv_state::process_start_ticks(key.pid) != Some(start)) {
            return Err(gone());
        }
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
        let name = if command.is_empty() {
            fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
        } else {
            command
        };
        let uid = fs::metadata(format!("/proc/{pid}")).ok().map(|data| data.uid());
        let name = harmless(&name.chars().take(200).collect::<String>());
        Ok((Self { process, pid: key.pid }, Target { pid: key.pid, name, uid }))
    }

    /// Sends it the signal, and says what came of it.
    pub fn end(&self, ending: Ending) -> String {
        let (signal, name) = match ending {
            Ending::Asked => (Signal::TERM, "SIGTERM"),
            Ending::Killed => (Signal::KILL, "SIGKILL"),
        };
        match pidfd_send_signal(&self.process, signal) {
            Ok(()) => format!("{name} sent to process {}", self.pid),
            Err(rustix::io::Errno::SRCH) => format!("process {} has ended already", self.pid),
            Err(rustix::io::Errno::PERM) => format!("process {} is another user's: only root may end it", self.pid),
            Err(error) => format!("{name} could not be sent to process {}: {error}", self.pid),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::process::ExitStatusExt,
        process::{Command, Stdio},
    };

    use super::*;

    fn key(pid: u32, start_ticks: Option<u64>) -> Key {
        Key { pid, start_ticks, gpu_uuid: String::new(), slice_dir: None }
    }

    #[test]
    fn the_process_that_is_held_is_the_one_that_ends() {
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Once it answers it has its name.
        let mut byte = *b"x";
        cat.stdin.as_mut().unwrap().write_all(&byte).unwrap();
        cat.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        let start = emuv_state::process_start_ticks(cat.id());
        let (held, target) = Held::take(&key(cat.id(), start)).unwrap();
        assert_eq!((target.pid, target.name.as_str()), (cat.id(), "cat"));
        assert_eq!(held.end(Ending::Asked), format!("SIGTERM sent to process {}", cat.id()));
        assert_eq!(cat.wait().unwrap().signal(), Some(15));
        assert_eq!(held.end(Ending::Killed), format!("process {} has ended already", cat.id()));
    }

    #[test]
    fn another_process_of_the_same_number_is_not_held() {
        let me = std::process::id();
        let start = emuv_state::process_start_ticks(me).unwrap();
        assert!(Held::take(&key(me, Some(start))).is_ok());
        assert_eq!(Held::take(&key(me, Some(start + 1))).unwrap_err(), format!("process {me} has ended"));
        // No process has this number: it is above what Linux gives out.
        assert!(Held::take(&key(4_194_305, None)).is_err());
        assert!(Held::take(&key(u32::MAX, None)).is_err());
        assert!(Held::take(&key(0, None)).is_err());
    }
}
