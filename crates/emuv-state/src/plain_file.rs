//! Reading small files in places where others may have put anything.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Opens a plain file to read it, and says how many bytes it has. A link is not followed, and nothing that is waited for (a pipe) is opened.
///
/// # Errors
/// The system's own; it is no plain file.
pub(crate) fn open_plain(path: &Path) -> io::Result<(File, u64)> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let data = file.metadata()?;
    if data.is_file() {
        return Ok((file, data.len()));
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "not a plain file"))
}

/// The beginning of a plain file, at most `most` bytes.
///
/// # Errors
/// As [`open_plain`].
pub(crate) fn read_plain(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let (mut file, length) = open_plain(path)?;
    let length = usize::try_from(length).unwrap_or(most).min(most);
    // As long as it is said to be, and read at once: whoever watches reads many of these.
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
