//! Reading small files in places where others may have put anything.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Opens a plain file to read it. A link is not followed, and nothing that is waited for (a pipe) is opened.
///
/// # Errors
/// The system's own; it is no plain file.
pub(crate) fn open_plain(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "not a plain file"))
}

/// The beginning of a plain file, at most `most` bytes.
///
/// # Errors
/// As [`open_plain`].
pub(crate) fn read_plain(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    // In most cases that is all of it.
    let mut bytes = Vec::with_capacity(most);
    open_plain(path)?.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}
