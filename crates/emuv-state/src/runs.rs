//! The runs of a machine, for whoever looks at them again and again.
//!
//! What a run's directory holds (which slice its programs are in, which ledgers there are) changes only when something is put into
//! it, which its time of change tells. So it is listed again only when that is another, or so young that something may have been
//! put into it since without changing it: file systems count such times in steps. What the ledgers say is read each time.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    Ledgers,
    ledger::{ledger_paths, read_these},
    plain_file::read_plain,
    read_ledgers,
    run_dir::run_paths,
    slices::SLICE_FILE,
};

/// The longest path that is read from a file.
const PATH_BYTES: usize = 4096;

/// No file system counts in longer steps, in seconds.
const LONGEST_STEP: i64 = 2;

/// A run's directory, as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunEntry {
    /// Where it is.
    pub path: PathBuf,
    /// The user whose it is.
    pub uid: u32,
    /// The folder of the slice that its programs are in.
    pub slice: Option<PathBuf>,
}

/// A directory in the state in which it was listed: the same in all of this, it holds the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

#[derive(Debug)]
struct Known {
    /// `None`: it may have changed without a trace.
    stamp: Option<Stamp>,
    slice: Option<PathBuf>,
    /// `None`: they could not be listed.
    ledgers: Option<Vec<PathBuf>>,
    round: u64,
}

/// The runs that were there when they were last looked at.
#[derive(Debug, Default)]
pub struct Runs {
    known: HashMap<PathBuf, Known>,
    round: u64,
}

impl Runs {
    /// The runs in these state directories, for each one by name: those that go on, and what others have left. Nothing is changed.
    /// An error is the system's own, but for a directory that is not there: that has no runs.
    pub fn look(&mut self, state_dirs: &[PathBuf]) -> Vec<io::Result<Vec<RunEntry>>> {
        self.round += 1;
        let found = state_dirs.iter().map(|dir| self.list(dir)).collect();
        let round = self.round;
        self.known.retain(|_, known| known.round == round);
        found
    }

    fn list(&mut self, state_dir: &Path) -> io::Result<Vec<RunEntry>> {
        let mut found: Vec<_> = run_paths(state_dir)?.into_iter().filter_map(|path| self.run(path)).collect();
        found.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(found)
    }

    fn run(&mut self, path: PathBuf) -> Option<RunEntry> {
        let data = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_dir)?;
        let now = Stamp { device: data.dev(), inode: data.ino(), changed: (data.mtime(), data.mtime_nsec()) };
        let is_known = self.known.get(&path).is_some_and(|known| known.stamp == Some(now));
        if !is_known {
            self.known.insert(path.clone(), Known::list(&path, now));
        }
        let known = self.known.get_mut(&path)?;
        known.round = self.round;
        Some(RunEntry { slice: known.slice.clone(), path, uid: data.uid() })
    }

    /// The ledgers of a run that [`Self::look`] has found.
    pub fn ledgers(&self, run: &RunEntry) -> Ledgers {
        match self.known.get(&run.path).and_then(|known| known.ledgers.as_ref()) {
            Some(paths) => read_these(paths),
            None => read_ledgers(&run.path),
        }
    }
}

impl Known {
    fn list(path: &Path, stamp: Stamp) -> Self {
        // Before it is listed: what comes later changes the directory at a later time.
        let seconds =
            SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|time| i64::try_from(time.as_secs()).ok());
        let is_settled = seconds.is_some_and(|now| now - stamp.changed.0 > LONGEST_STEP);
        let slice = read_plain(&path.join(SLICE_FILE), PATH_BYTES).ok().filter(|bytes| !bytes.is_empty());
        Self {
            stamp: is_settled.then_some(stamp),
            slice: slice.map(|bytes| PathBuf::from(OsStr::from_bytes(&bytes))),
            ledgers: ledger_paths(path).ok(),
            round: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, time::Duration};

    use super::*;

    fn look(runs: &mut Runs, state: &Path) -> Vec<RunEntry> {
        runs.look(&[state.to_owned()]).pop().unwrap().unwrap()
    }

    fn set_age(path: &Path, seconds: u64) {
        File::open(path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn runs_and_the_slices_that_they_are_in_are_listed() {
        let state = tempfile::tempdir().unwrap();
        let mut runs = Runs::default();
        assert_eq!(look(&mut runs, &state.path().join("none")), []);
        for name in ["run-7-0", "run-7-1", "run-x", "vgpu"] {
            fs::create_dir(state.path().join(name)).unwrap();
        }
        fs::write(state.path().join("run-8-0"), "a file").unwrap();
        fs::write(state.path().join("run-7-1/emuv-slice"), "/run/emuv/vgpu/ml-1").unwrap();
        let uid = fs::metadata(state.path()).unwrap().uid();
        let run = |name: &str, slice: Option<&str>| RunEntry {
            path: state.path().join(name),
            uid,
            slice: slice.map(PathBuf::from),
        };
        let expected = [run("run-7-0", None), run("run-7-1", Some("/run/emuv/vgpu/ml-1"))];
        assert_eq!(look(&mut runs, state.path()), expected);
    }

    #[test]
    fn a_directory_is_listed_again_when_it_has_changed_or_may_have() {
        let state = tempfile::tempdir().unwrap();
        let run = state.path().join("run-7-0");
        fs::create_dir(&run).unwrap();
        let mut runs = Runs::default();
        // What is no ledger shows as a problem: so many were looked at.
        let count = |runs: &mut Runs| {
            let entries = look(runs, state.path());
            runs.ledgers(&entries[0]).problems.len()
        };
        fs::write(run.join("1.ledger"), "x").unwrap();
        assert_eq!(count(&mut runs), 1);
        // At the very same time as before: it is still young.
        let young = fs::metadata(&run).unwrap().modified().unwrap();
        fs::write(run.join("2.ledger"), "x").unwrap();
        File::open(&run).unwrap().set_modified(young).unwrap();
        assert_eq!(count(&mut runs), 2);
        set_age(&run, 100);
        assert_eq!(count(&mut runs), 2);
        // Settled: what is put there with a forged time is not seen, what is put there as usual is.
        let old = fs::metadata(&run).unwrap().modified().unwrap();
        fs::write(run.join("3.ledger"), "x").unwrap();
        File::open(&run).unwrap().set_modified(old).unwrap();
        assert_eq!(count(&mut runs), 2);
        fs::write(run.join("4.ledger"), "x").unwrap();
        assert_eq!(count(&mut runs), 4);
        fs::remove_dir_all(&run).unwrap();
        assert_eq!(look(&mut runs, state.path()), []);
        assert!(runs.known.is_empty());
    }
}
