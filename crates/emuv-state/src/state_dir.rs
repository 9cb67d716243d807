//! Where emuV keeps what runs need: chosen, made and checked.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use crate::env;

const STICKY: u32 = 0o1000;
const OTHERS_MAY_WRITE: u32 = 0o022;

/// The state directory, made if need be: `EMUV_STATE_DIR`, else `$XDG_RUNTIME_DIR/emuv`, else `/run/emuv`,
/// else `/tmp/emuv-<uid>`, whichever is the first that can be used. `get` looks a variable up.
///
/// # Errors
/// One line: a directory that is given but cannot be used, or none at all. A directory that others could
/// write to is refused, since programs load a library through it.
pub fn state_dir(get: impl Fn(&str) -> Option<String>) -> Result<PathBuf, String> {
    let uid = rustix::process::geteuid().as_raw();
    if let Some(given) = get(env::STATE_DIR).filter(|value| !value.is_empty()) {
        let path = PathBuf::from(&given);
        if !path.is_absolute() {
            return Err(format!("{}: '{given}' is not an absolute path", env::STATE_DIR));
        }
        return usable(&path, uid).map(|()| path).map_err(|why| format!("{}: {given}: {why}", env::STATE_DIR));
    }
    let runtime = get("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let candidates =
        [runtime.map(|path| path.join("emuv")), Some("/run/emuv".into()), Some(format!("/tmp/emuv-{uid}").into())];
    let mut reasons = Vec::new();
    for path in candidates.into_iter().flatten() {
        match usable(&path, uid) {
            Ok(()) => return Ok(path),
            Err(why) => reasons.push(format!("{}: {why}", path.display())),
        }
    }
    Err(format!("no state directory can be used ({}); set {} to one", reasons.join("; "), env::STATE_DIR))
}

/// Makes the directory if it is missing and checks that only this user, or the administrator, controls it.
fn usable(path: &Path, uid: u32) -> Result<(), String> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(plain(&error)),
        _ => {}
    }
    // Not following a link: somebody else's link in /tmp must not lead us anywhere.
    let data = fs::symlink_metadata(path).map_err(|error| plain(&error))?;
    if !data.is_dir() {
        return Err("not a directory".to_owned());
    }
    if data.uid() != uid && data.uid() != 0 {
        return Err(format!("belongs to another user (uid {})", data.uid()));
    }
    if data.mode() & OTHERS_MAY_WRITE != 0 && data.mode() & STICKY == 0 {
        return Err(format!("others may write to it (mode {:o}); chmod go-w makes it safe", data.mode() & 0o7777));
    }
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
        .map_err(|error| plain(&error.into()))
}

/// The system's words without the error's number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error").map_or(text.as_str(), |(words, _)| words).to_lowercase()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn given(path: &Path) -> Result<PathBuf, String> {
        state_dir(|name| (name == env::STATE_DIR).then(|| path.display().to_string()))
    }

    #[test]
    fn the_one_given_is_made_for_its_owner_only() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state");
        assert_eq!(given(&path), Ok(path.clone()));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(given(&path), Ok(path));
    }

    #[test]
    fn the_one_given_is_refused_when_it_cannot_be_used() {
        let root = tempfile::tempdir().unwrap();
        let (file, link, open) = (root.path().join("file"), root.path().join("link"), root.path().join("open"));
        fs::write(&file, b"").unwrap();
        symlink(root.path(), &link).unwrap();
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        for (path, words) in [
            (file.as_path(), "not a directory"),
            (&link, "not a directory"),
            (&open, "others may write"),
            (Path::new("/nonexistent/state"), "no such file"),
            (Path::new("relative"), "not an absolute path"),
        ] {
            let error = given(path).unwrap_err();
            assert!(error.starts_with("EMUV_STATE_DIR: ") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_shared_directory_must_be_sticky() {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(given(root.path()).is_ok());
    }

    #[test]
    fn the_users_runtime_directory_comes_first_when_nothing_is_given() {
        let root = tempfile::tempdir().unwrap();
        let found = state_dir(|name| (name == "XDG_RUNTIME_DIR").then(|| root.path().display().to_string()));
        assert_eq!(found, Ok(root.path().join("emuv")));
    }
}
