//! The directory of a run: made for it, gone with it.
//!
//! A run's directory is in use while its owner lives, a process that was started with it in its environment,
//! or one with a ledger in it. Directories that are in use by nobody are swept by the next run. Whether the
//! owner lives is told by a lock on the file `owner`, which ends with the process and also works where process
//! numbers mean nothing, as between containers. What the file says is for people.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::{env, process::ProcessId, read_ledgers};

const OWNER: &str = "owner";
const PREFIX: &str = "run-";
/// A directory that is being made: it gets its name when it has its owner, so that no sweep sees it half made.
const NEW_PREFIX: &str = ".new-";

/// The directory of this run, removed when dropped unless processes of the run still live.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Keeps the lock.
    _owner: File,
}

impl RunDir {
    /// Makes `<state_dir>/run-<pid>-<n>`, for its owner only, after removing what dead runs left there.
    ///
    /// # Errors
    /// The system's own.
    pub fn create(state_dir: &Path) -> io::Result<Self> {
        sweep(state_dir);
        let me = ProcessId::current();
        let new = make_first_free(state_dir, &format!("{NEW_PREFIX}{}", me.pid))?;
        let made = write_owner(&new, me).and_then(|owner| {
            let path = rename_to_first_free(&new, state_dir, &format!("{PREFIX}{}", me.pid))?;
            Ok(Self { path, _owner: owner })
        });
        if made.is_err() {
            let _ = fs::remove_dir_all(&new);
        }
        made
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // A program may leave processes behind that still need the libraries in here. What stays now, for
        // this or another reason, is swept by a later run.
        if !is_used_by_a_process(&self.path) {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// What is named as a run's directory in a state directory, in no order.
///
/// # Errors
/// The system's own, but for a directory that is not there: that has no runs.
pub fn run_paths(state_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(state_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let is_run = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(is_run_name);
    Ok(entries.flatten().filter(is_run).map(|entry| entry.path()).collect())
}

fn is_run_name(name: &str) -> bool {
    name.strip_prefix(PREFIX).and_then(pid_of).is_some()
}

fn write_owner(folder: &Path, me: ProcessId) -> io::Result<File> {
    let mut owner = OpenOptions::new().append(true).create_new(true).mode(0o600).open(folder.join(OWNER))?;
    flock(&owner, FlockOperation::NonBlockingLockExclusive)?;
    writeln!(owner, "owner {} {}", me.pid, me.start_ticks)?;
    Ok(owner)
}

fn make_first_free(folder: &Path, stem: &str) -> io::Result<PathBuf> {
    first_free(folder, stem, |path| DirBuilder::new().mode(0o700).create(path))
}

fn rename_to_first_free(from: &Path, folder: &Path, stem: &str) -> io::Result<PathBuf> {
    // Renaming onto a directory works only if that one is empty, and then nobody uses it.
    first_free(folder, stem, |path| fs::rename(from, path))
}

fn first_free(folder: &Path, stem: &str, take: impl Fn(&Path) -> io::Result<()>) -> io::Result<PathBuf> {
    for n in 0..10_000 {
        let path = folder.join(format!("{stem}-{n}"));
        match take(&path) {
            Ok(()) => return Ok(path),
            Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Removes the directories that nobody uses any more. Whatever cannot be read or removed is left.
fn sweep(state_dir: &Path) {
    let Ok(entries) = fs::read_dir(state_dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        // A directory half made by a process that died: its name is all there is.
        let half_made =
            name.strip_prefix(NEW_PREFIX).and_then(pid_of).is_some_and(|pid| !ProcessId::of(pid).is_alive());
        if half_made || (is_run_name(name) && is_abandoned(&entry.path())) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The process number out of `<pid>-<n>`.
pub fn pid_of(name: &str) -> Option<u32> {
    let (pid, n) = name.split_once('-')?;
    n.parse::<u32>().ok()?;
    pid.parse().ok()
}

fn is_abandoned(folder: &Path) -> bool {
    let Ok(owner) = File::open(folder.join(OWNER)) else {
        // Without an owner it was being removed when its remover died, or it cannot be read by us.
        return fs::read_dir(folder).is_ok() && !folder.join(OWNER).exists();
    };
    if flock(&owner, FlockOperation::NonBlockingLockExclusive).is_err() {
        return false;
    }
    !is_used_by_a_process(folder)
}

/// Whether a process lives that belongs to the run. A program may overwrite the environment that the kernel
/// shows of it, to change its title; what then tells of it is its ledger.
fn is_used_by_a_process(folder: &Path) -> bool {
    if read_ledgers(folder).processes.iter().any(|record| record.alive) {
        return true;
    }
    let Ok(folder) = fs::canonicalize(folder) else { return false };
    let is_process = |name: &OsStr| name.as_bytes().iter().all(u8::is_ascii_digit);
    let processes =
        fs::read_dir("/proc").into_iter().flatten().flatten().filter(|entry| is_process(&entry.file_name()));
    processes.into_iter().any(|process| {
        // Another user's process cannot be read, and has no use for a directory that is ours alone.
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| {
            variable
                .strip_prefix(env::RUN_DIR.as_bytes())
                .and_then(|rest| rest.strip_prefix(b"="))
                .is_some_and(|path| fs::canonicalize(OsStr::from_bytes(path)).is_ok_and(|path| path == folder))
        })
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn entries(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What a run leaves when its process is killed.
    fn left_behind(state: &Path, name: &str, owner: &str) -> PathBuf {
        let folder = state.join(name);
        fs::create_dir_all(folder.join("lib")).unwrap();
        fs::write(folder.join(OWNER), owner).unwrap();
        folder
    }

    #[test]
    fn it_is_for_its_owner_only_and_goes_when_dropped() {
        let state = tempfile::tempdir().unwrap();
        let run = RunDir::create(state.path()).unwrap();
        assert_eq!(fs::metadata(run.path()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(entries(state.path()), [format!("run-{}-0", std::process::id())]);
        fs::write(run.path().join("1.ledger"), b"").unwrap();
        drop(run);
        assert!(entries(state.path()).is_empty());
    }

    #[test]
    fn two_runs_of_one_process_have_two_directories() {
        let state = tempfile::tempdir().unwrap();
        let (a, b) = (RunDir::create(state.path()).unwrap(), RunDir::create(state.path()).unwrap());
        assert_ne!(a.path(), b.path());
        assert!(a.path().is_dir(), "a live run's directory is not swept");
    }

    #[test]
    fn what_dead_runs_left_is_swept_and_nothing_else() {
        let state = tempfile::tempdir().unwrap();
        // No process has this number: it is above what Linux gives out.
        left_behind(state.path(), "run-4194305-0", "owner 4194305 77\n");
        left_behind(state.path(), ".new-4194305-0", "");
        fs::create_dir(state.path().join("run-4194305-1")).unwrap();
        left_behind(state.path(), "run-notes", "mine\n");
        fs::write(state.path().join("run-1-0"), b"a file").unwrap();
        let run = RunDir::create(state.path()).unwrap();
        let own = run.path().file_name().unwrap().to_str().unwrap().to_owned();
        let mut expected = vec!["run-1-0".to_owned(), "run-notes".to_owned(), own];
        expected.sort();
        assert_eq!(entries(state.path()), expected);
    }

    #[test]
    fn while_a_process_of_the_run_lives_the_directory_stays_after_its_owner_died() {
        let state = tempfile::tempdir().unwrap();
        let folder = left_behind(state.path(), "run-4194305-0", "owner 4194305 77\n");
        let mut program = std::process::Command::new("cat")
            .env(env::RUN_DIR, &folder)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(RunDir::create(state.path()).unwrap());
        assert!(folder.is_dir());
        program.wait().unwrap();
        drop(RunDir::create(state.path()).unwrap());
        assert!(!folder.exists());
    }

    #[test]
    fn while_a_process_with_a_ledger_lives_the_directory_stays() {
        let state = tempfile::tempdir().unwrap();
        let run = RunDir::create(state.path()).unwrap();
        let path = run.path().to_owned();
        // This process is the one that lives.
        let _ledger = crate::Ledger::open(Some(&path));
        drop(run);
        drop(RunDir::create(state.path()).unwrap());
        assert!(path.is_dir());
    }
}
