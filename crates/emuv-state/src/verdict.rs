//! What `emuv verify` has found in a process so far: a small file in the run's directory, rewritten after each piece of
//! work, so that it is there however the process ends.

use std::path::{Path, PathBuf};

use crate::process::ProcessId;

const EXTENSION: &str = "verify";

/// See the module's head.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Launches of kernels and graphs that were checked.
    pub launches: u64,
    /// Other works (copies, memsets) that were checked.
    pub copies: u64,
    /// How many of all these may touch anything, so that nothing was unmapped.
    pub open: u64,
    /// Works given to the GPU while something was captured, which cannot be checked.
    pub unchecked: u64,
    /// Who touched what it should not have, in one line.
    pub offender: Option<String>,
}

/// Where this process's verdict goes.
pub fn verdict_file(run_dir: &Path) -> PathBuf {
    run_dir.join(format!("{}.{EXTENSION}", ProcessId::current().pid))
}

impl Verdict {
    /// Its text: what is written later is never shorter than what was before.
    pub fn text(&self) -> String {
        let Self { launches, copies, open, unchecked, offender } = self;
        let offender = offender.as_deref().unwrap_or_default();
        format!("{launches:020} {copies:020} {open:020} {unchecked:020}\n{offender}\n")
    }

    /// Reads the text back; `None` if it is none.
    pub fn read(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut numbers = lines.next()?.split(' ').map(str::parse);
        let mut number = || numbers.next()?.ok();
        let verdict = Self {
            launches: number()?,
            copies: number()?,
            open: number()?,
            unchecked: number()?,
            offender: lines.next().map(str::trim_end).filter(|line| !line.is_empty()).map(str::to_owned),
        };
        Some(verdict)
    }
}

/// The verdicts of all processes of a run.
#[cfg(feature = "cli")]
pub fn read_verdicts(run_dir: &Path) -> Vec<Verdict> {
    let entries = std::fs::read_dir(run_dir).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == EXTENSION));
    files.filter_map(|path| Verdict::read(&std::fs::read_to_string(path).ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut verdict = Verdict { launches: 7, copies: 2, open: 1, unchecked: u64::MAX, offender: None };
        assert_eq!(Verdict::read(&verdict.text()), Some(verdict.clone()));
        let before = verdict.text().len();
        verdict.offender = Some("kernel x (launch 3)".to_owned());
        assert_eq!(Verdict::read(&verdict.text()), Some(verdict.clone()));
        assert!(verdict.text().len() > before);
    }

    #[test]
    fn an_offender_of_blanks_is_none() {
        assert_eq!(Verdict::read("1 2 3 4\n \r\r\n").unwrap().offender, None);
    }

    #[test]
    fn anything_else_is_no_verdict() {
        for text in ["", "1 2 3", "a b c d\n", "\n"] {
            assert_eq!(Verdict::read(text), None, "{text:?}");
        }
    }
}
