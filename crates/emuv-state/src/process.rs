//! Which process a number stands for: a number alone is reused, with the start time it is unique.

use std::{fs, io::Read};

/// A process, for as long as the machine is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessId {
    pub pid: u32,
    /// Clock ticks from the machine's start to the process's; 0 where it could not be found out.
    pub start_ticks: u64,
}

impl ProcessId {
    /// This process.
    pub fn current() -> Self {
        let pid = std::process::id();
        Self { pid, start_ticks: state_and_start(pid).map_or(0, |(_, start)| start) }
    }

    /// A process by its number alone, with its start time if it runs.
    pub fn of(pid: u32) -> Self {
        Self { pid, start_ticks: state_and_start(pid).map_or(0, |(_, start)| start) }
    }

    /// Whether it still runs. One that has ended and only waits to be collected does not.
    pub fn is_alive(self) -> bool {
        state_and_start(self.pid).is_some_and(|(state, start)| {
            !matches!(state, 'Z' | 'X') && (self.start_ticks == 0 || start == self.start_ticks)
        })
    }
}

/// Clock ticks from the machine's start to that of the process that has this number now; `None`: none has.
pub fn process_start_ticks(pid: u32) -> Option<u64> {
    state_and_start(pid).map(|(_, start)| start)
}

fn state_and_start(pid: u32) -> Option<(char, u64)> {
    // Never longer: a name has 16 bytes, a number 20 digits. Read at once, as whoever watches reads many of these.
    let mut text = [0; 2048];
    let length = fs::File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut text).ok()?;
    parse_stat(&String::from_utf8_lossy(text.get(..length)?))
}

/// State and start time out of `/proc/<pid>/stat`. The name in parentheses may hold anything, even ")".
pub fn parse_stat(text: &str) -> Option<(char, u64)> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // The start time is field 22 and the state is field 3.
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// This process's command line, arguments separated by blanks; empty where it cannot be read.
pub(crate) fn command_line() -> String {
    let raw = fs::read("/proc/self/cmdline").unwrap_or_default();
    let text = String::from_utf8_lossy(&raw);
    text.trim_end_matches('\0').replace('\0', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_cannot_mislead() {
        let fields = "S 1 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 987654 0 0";
        assert_eq!(parse_stat(&format!("12 (a) R 9 (b)) {fields}")), Some(('S', 987_654)));
        for text in ["", "12 (x", "12 (x)", "12 (x) S 1 2 3"] {
            assert_eq!(parse_stat(text), None, "{text:?}");
        }
    }

    #[test]
    fn this_process_is_alive_and_its_number_with_another_start_is_not() {
        let me = ProcessId::current();
        assert!(me.is_alive() && me == ProcessId::of(me.pid));
        assert!(!ProcessId { start_ticks: me.start_ticks + 1, ..me }.is_alive());
    }

    #[test]
    fn one_that_has_ended_is_dead() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let id = ProcessId::of(child.id());
        assert!(id.is_alive());
        child.wait().unwrap();
        assert!(!id.is_alive());
    }

    #[test]
    fn the_command_line_reads_as_typed() {
        assert!(command_line().contains("emuv_state"), "{}", command_line());
    }
}
