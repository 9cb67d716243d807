//! Where to look: the state directories of this machine, this user's and others'.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use emuv_state::env;

use crate::{
    snapshot::{Problem, ProblemKind},
    text::harmless,
};

/// The state directory of the machine: its slices count for users whatever directory they choose.
const SYSTEM: &str = "/run/emuv";

/// Where state directories are. Those of a machine are looked for at each sample, as users come and go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Places {
    /// These.
    Only(Vec<PathBuf>),
    /// All of a machine: `run`/emuv, `run`/user/UID/emuv, `tmp`/emuv-UID, and this user's where it is elsewhere.
    Machine {
        /// `/run`.
        run: PathBuf,
        /// `/tmp`.
        tmp: PathBuf,
        /// Of the user who looks.
        own: Option<PathBuf>,
    },
}

impl Places {
    /// As the environment says: `EMUV_STATE_DIR` where it is set, and the machine's slices, else all of the machine. `get`
    /// looks a variable up.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Self {
        let path = |name: &str| get(name).map(PathBuf::from).filter(|path| path.is_absolute());
        match path(env::STATE_DIR) {
            Some(given) if rustix::process::geteuid().is_root() => Self::Only(vec![given]),
            Some(given) => Self::Only(vec![given, SYSTEM.into()]),
            None => Self::Machine {
                run: "/run".into(),
                tmp: "/tmp".into(),
                own: path("XDG_RUNTIME_DIR").map(|path| path.join("emuv")),
            },
        }
    }

    /// The directories that are there and that this user may enter, each once; what is kept from this user is a problem.
    pub(crate) fn list(&self, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
        let mut found = Vec::new();
        match self {
            Self::Only(dirs) => dirs.iter().for_each(|dir| enter(dir, None, &mut found, problems)),
            Self::Machine { run, tmp, own } => {
                enter(&run.join("emuv"), Some(0), &mut found, problems);
                own.iter().for_each(|dir| enter(dir, None, &mut found, problems));
                for (uid, dir) in users(&run.join("user"), "") {
                    enter(&dir.join("emuv"), Some(uid), &mut found, problems);
                }
                for (uid, dir) in users(tmp, "emuv-") {
                    enter(&dir, Some(uid), &mut found, problems);
                }
            }
        }
        found
    }
}

/// The entries of a folder whose names are a prefix and a user's number.
fn users(folder: &Path, prefix: &str) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let uid = |name: &str| name.strip_prefix(prefix)?.parse().ok();
    let mut found: Vec<_> =
        entries.filter_map(|entry| Some((uid(entry.file_name().to_str()?)?, entry.path()))).collect();
    found.sort();
    found
}

/// Takes a directory that is there, if it is whose it should be: in a place where all may write, a directory may bear
/// another user's name.
fn enter(dir: &Path, owner: Option<u32>, found: &mut Vec<PathBuf>, problems: &mut Vec<Problem>) {
    let mut problem =
        |kind, why: &str| problems.push(Problem { kind, words: harmless(&format!("{}: {why}", dir.display())) });
    match fs::symlink_metadata(dir) {
        // A closed folder around it shows nothing of whether it is there.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => return,
        Err(error) => return problem(ProblemKind::Unreadable, &error.to_string()),
        Ok(data) if owner.is_some() && !data.is_dir() => return problem(ProblemKind::Foreign, "not a directory"),
        Ok(data) if owner.is_some_and(|uid| data.uid() != uid && data.uid() != 0) => {
            return problem(ProblemKind::Foreign, &format!("it belongs to user {}", data.uid()));
        }
        Ok(_) => {}
    }
    if found.iter().any(|known| known == dir) {
        return;
    }
    // Slices in a directory that may be entered but not listed can be seen; so that is no problem.
    if rustix::fs::access(dir, rustix::fs::Access::EXEC_OK).is_err() {
        return problem(ProblemKind::NotAllowed, "another user's: what runs there is not shown");
    }
    found.push(dir.to_owned());
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn machine(root: &Path) -> Places {
        Places::Machine { run: root.join("run"), tmp: root.join("tmp"), own: None }
    }

    #[test]
    fn a_given_directory_counts_and_one_that_is_not_there_is_empty() {
        let places = Places::from_env(|name| (name == env::STATE_DIR).then(|| "/x/y".to_owned()));
        let Places::Only(dirs) = places else { panic!("{places:?}") };
        assert_eq!(dirs[0], Path::new("/x/y"));
        assert!(Places::Only(vec!["/x/y".into()]).list(&mut Vec::new()).is_empty());
    }

    #[test]
    fn all_users_directories_are_found_each_once() {
        let root = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let dirs = ["run/emuv".to_owned(), format!("run/user/{uid}/emuv"), format!("tmp/emuv-{uid}")];
        dirs.iter().for_each(|dir| fs::create_dir_all(root.path().join(dir)).unwrap());
        fs::create_dir_all(root.path().join("tmp/emuv-notes")).unwrap();
        let own = Some(root.path().join(&dirs[1]));
        let Places::Machine { run, tmp, .. } = machine(root.path()) else { panic!("not a machine") };
        let mut problems = Vec::new();
        let found = Places::Machine { run, tmp, own }.list(&mut problems);
        // Of a user other than root, run/emuv belongs to somebody else here.
        let expected: Vec<_> = dirs.iter().skip(usize::from(uid != 0)).map(|dir| root.path().join(dir)).collect();
        assert_eq!((found, problems.len()), (expected, usize::from(uid != 0)));
    }

    #[test]
    fn a_directory_that_bears_another_users_name_is_left_out_and_said() {
        let root = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let tmp = root.path().join("tmp");
        fs::create_dir_all(&tmp).unwrap();
        symlink("/run", tmp.join(format!("emuv-{uid}"))).unwrap();
        let mut problems = Vec::new();
        assert!(machine(root.path()).list(&mut problems).is_empty());
        assert_eq!(problems.len(), 1, "{problems:?}");
        if uid == 0 {
            fs::create_dir(tmp.join("emuv-7")).unwrap();
            std::os::unix::fs::chown(tmp.join("emuv-7"), Some(1000), None).unwrap();
            fs::set_permissions(tmp.join("emuv-7"), fs::Permissions::from_mode(0o700)).unwrap();
            problems.clear();
            machine(root.path()).list(&mut problems);
            assert!(problems.iter().any(|problem| problem.words.ends_with("belongs to user 1000")), "{problems:?}");
        }
    }
}
