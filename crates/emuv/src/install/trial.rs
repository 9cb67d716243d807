//! Whether programs start with a library preloaded: tried with a few that every machine needs, before it is for all of them.

use std::{
    path::Path,
    process::{Command, Stdio},
};

/// What is run, in the root where it will count. The shell starts one more.
const PROGRAMS: [&[&str]; 3] = [&["/bin/true"], &["/bin/sh", "-c", ":"], &["/bin/sh", "-c", "/bin/true"]];

/// How the library gets into the programs.
#[derive(Debug, Clone, Copy)]
pub enum Through<'l> {
    /// By `LD_PRELOAD`, for these alone.
    Variable(&'l Path),
    /// By the list of the root, as for everybody.
    List,
}

/// Runs them. `root` is another system's folder, into which only the administrator can change.
///
/// # Errors
/// One line: which program, and what it or the loader said. A loader that cannot preload a library says so and goes on, so a
/// program that says anything at all has failed.
pub fn run(root: Option<&Path>, through: Through<'_>) -> Result<(), String> {
    for program in PROGRAMS {
        let (file, arguments) = program.split_first().ok_or("nothing to try")?;
        let is_there = root.map_or(file.into(), |root| root.join(file.trim_start_matches('/')));
        if !is_there.exists() {
            // A root without programs has none that could be harmed.
            continue;
        }
        let mut command = match (root, through) {
            (None, Through::List) => Command::new(file),
            (None, Through::Variable(library)) => with_variable(Command::new("/usr/bin/env"), library, file),
            (Some(root), Through::List) => chroot(root, file),
            (Some(root), Through::Variable(library)) => with_variable(chroot(root, "/usr/bin/env"), library, file),
        };
        let output = command.args(arguments).stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("{}: {error}", program.join(" ")))?;
        if !output.status.success() || !output.stderr.is_empty() {
            let words = String::from_utf8_lossy(&output.stderr);
            let words = words.lines().next().unwrap_or_default();
            return Err(format!("{}: {}; it said '{words}'", program.join(" "), output.status));
        }
    }
    Ok(())
}

fn chroot(root: &Path, file: &str) -> Command {
    let mut command = Command::new("chroot");
    command.arg(root).arg(file);
    command
}

fn with_variable(mut env: Command, library: &Path, file: &str) -> Command {
    let mut setting = std::ffi::OsString::from("LD_PRELOAD=");
    setting.push(library);
    env.arg(setting).arg(file);
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_library_they_start() {
        assert_eq!(run(None, Through::List), Ok(()));
    }

    #[test]
    fn a_library_that_cannot_be_loaded_fails_though_the_programs_end_well() {
        let error = run(None, Through::Variable(Path::new("/nonexistent/lib.so"))).unwrap_err();
        assert!(error.starts_with("/bin/true: exit status: 0; it said 'ERROR: ld.so: object"), "{error}");
    }

    #[test]
    fn a_root_without_programs_has_nothing_to_try() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(run(Some(root.path()), Through::List), Ok(()));
    }
}
