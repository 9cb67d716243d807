//! `/etc/ld.so.preload`: the libraries that the dynamic loader puts into every program it starts.
//!
//! Names stand between blanks, newlines and colons; from `#` to the end of a line is a comment. The loader reads the file
//! at each start of a program, so a file that is half written, or names a library that is not there, is everybody's
//! trouble: it is replaced whole or not at all. What others have in it is kept to the byte. Ours is a line of its own, the
//! first, as `emuv run` puts it first; taking it away again gives the file as it was.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Where the loader looks.
pub const PATH: &str = "/etc/ld.so.preload";

/// Whether a list names a library.
pub fn names(list: &[u8], library: &str) -> bool {
    entries(list).any(|entry| entry == library.as_bytes())
}

/// The list with a library first; the same if it names it already.
pub fn with(list: &[u8], library: &str) -> Vec<u8> {
    if names(list, library) {
        return list.to_vec();
    }
    let mut new = format!("{library}\n").into_bytes();
    new.extend_from_slice(list);
    new
}

/// The list without a library, wherever it stands. A line on which nothing else stood goes with it.
pub fn without(list: &[u8], library: &str) -> Vec<u8> {
    list.split_inclusive(|byte| *byte == b'\n').flat_map(|line| line_without(line, library.as_bytes())).collect()
}

fn line_without(line: &[u8], library: &[u8]) -> Vec<u8> {
    let (code, comment) = line.split_at(line.iter().position(|byte| *byte == b'#').unwrap_or(line.len()));
    let mut kept = Vec::new();
    let mut found = false;
    // Each piece is an entry (or nothing) with the separator behind it.
    for piece in code.split_inclusive(|byte| is_separator(*byte)) {
        let entry = piece.split_last().filter(|(last, _)| is_separator(**last)).map_or(piece, |(_, entry)| entry);
        if entry == library {
            found = true;
        } else {
            kept.extend_from_slice(piece);
        }
    }
    if !found {
        return line.to_vec();
    }
    kept.extend_from_slice(comment);
    if kept.iter().all(u8::is_ascii_whitespace) {
        kept.clear();
    } else if line.ends_with(b"\n") && !kept.ends_with(b"\n") {
        kept.push(b'\n');
    }
    kept
}

/// The names in a list.
fn entries(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let code = |line: &'_ [u8]| line.iter().position(|byte| *byte == b'#').unwrap_or(line.len());
    let lines = list.split(|byte| *byte == b'\n').map(move |line| &line[..code(line)]);
    lines.flat_map(|line| line.split(|byte| is_separator(*byte))).filter(|entry| !entry.is_empty())
}

fn is_separator(byte: u8) -> bool {
    byte == b':' || byte.is_ascii_whitespace()
}

/// What the file at `path` says; nothing if there is none.
///
/// # Errors
/// The system's own; also for a link, as what it leads to may be something else's.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(data) if data.is_symlink() => Err(io::Error::other("it is a link; emuV changes only a plain file")),
        Ok(_) => fs::read(path),
    }
}

/// Replaces the file in one step, or removes it where nothing is left to say.
///
/// # Errors
/// The system's own; then the file is as it was.
pub fn replace(path: &Path, list: &[u8]) -> io::Result<()> {
    if list.iter().all(u8::is_ascii_whitespace) {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    let new = path.with_file_name(".ld.so.preload.emuv-new");
    let written = write_new(&new, list).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

fn write_new(path: &Path, list: &[u8]) -> io::Result<()> {
    // What an interrupted run left.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    // Whatever the umask: programs of all users read it.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.write_all(list)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "/usr/lib/emuv/libemuv_shim.so";

    #[test]
    fn ours_comes_first_and_what_others_have_stays_as_it_is() {
        for theirs in ["", "/lib/a.so\n", "/lib/a.so", "# a comment\n/lib/a.so:/lib/b.so /lib/c.so\n\n"] {
            let list = with(theirs.as_bytes(), OURS);
            assert_eq!(list, format!("{OURS}\n{theirs}").into_bytes());
            assert_eq!(without(&list, OURS), theirs.as_bytes(), "taking it away gives the file as it was");
            assert_eq!(with(&list, OURS), list, "twice is once");
        }
    }

    #[test]
    fn ours_is_found_and_taken_away_wherever_somebody_put_it() {
        let list = format!("/lib/a.so:{OURS} /lib/b.so # and {OURS}\n\t{OURS}\n{OURS}.old\n");
        assert!(names(list.as_bytes(), OURS));
        let rest = String::from_utf8(without(list.as_bytes(), OURS)).unwrap();
        assert_eq!(rest, format!("/lib/a.so:/lib/b.so # and {OURS}\n{OURS}.old\n"));
        assert!(!names(rest.as_bytes(), OURS), "a comment is no entry");
        let last = format!("/lib/a.so {OURS}");
        assert_eq!(without(last.as_bytes(), OURS), b"/lib/a.so ");
        assert_eq!(without(format!("/lib/a.so {OURS}\n").as_bytes(), OURS), b"/lib/a.so \n");
    }

    #[test]
    fn whatever_the_list_others_keep_what_they_have_in_it() {
        const PIECES: [&str; 7] = [OURS, "/lib/a.so", " ", ":", "\n", "#", "\t"];
        // All lists of up to five of these.
        for number in 0..7_usize.pow(5) * 2 {
            let digits = std::iter::successors(Some(number), |rest| Some(rest / 7).filter(|rest| *rest > 0));
            let list: String = digits.map(|rest| PIECES[rest % 7]).collect();
            let list = list.as_bytes();
            let said = || String::from_utf8_lossy(list);
            let added = with(list, OURS);
            assert!(names(&added, OURS), "{:?}", said());
            if !names(list, OURS) {
                assert_eq!(without(&added, OURS), list, "{:?}", said());
            }
            let rest = without(list, OURS);
            let theirs: Vec<_> = entries(list).filter(|entry| *entry != OURS.as_bytes()).collect();
            assert_eq!(entries(&rest).collect::<Vec<_>>(), theirs, "{:?}", said());
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_kept() {
        let theirs = b"/lib/\xff.so\n";
        assert_eq!(without(&with(theirs, OURS), OURS), theirs);
    }

    #[test]
    fn the_file_is_replaced_whole_and_goes_when_it_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ld.so.preload");
        assert_eq!(read(&path).unwrap(), b"");
        fs::write(folder.path().join(".ld.so.preload.emuv-new"), b"left by a run that was killed").unwrap();
        replace(&path, b"/lib/a.so\n").unwrap();
        assert_eq!(read(&path).unwrap(), b"/lib/a.so\n");
        replace(&path, b" \n").unwrap();
        replace(&path, b"").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ld.so.preload");
        std::os::unix::fs::symlink("/nonexistent", &path).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("a link"));
    }
}
