//! Locks on byte ranges of a file, held by an open file description.
//!
//! # Safety
//! The unsafe steps are `fcntl` with a lock command on a live descriptor and a live, fully initialised `flock`, which the
//! kernel reads or overwrites and does not keep; and `dup3` onto a descriptor that the caller owns and keeps owning.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io, mem,
    ops::Range,
    os::fd::{AsRawFd, OwnedFd},
};

/// Locks a range for this description alone. False: another one has part of it, and nothing has changed.
///
/// # Errors
/// The system's own.
pub(super) fn try_lock(file: &File, range: &Range<u64>) -> io::Result<bool> {
    match call(file, libc::F_OFD_SETLK, libc::F_WRLCK, range) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives a range, or a part of one, back.
///
/// # Errors
/// The system's own, e.g. when it has no memory to split a lock.
pub(super) fn unlock(file: &File, range: &Range<u64>) -> io::Result<()> {
    call(file, libc::F_OFD_SETLK, libc::F_UNLCK, range).map(|_| ())
}

/// Some range that another description has locked and that overlaps this one.
///
/// # Errors
/// The system's own.
pub(super) fn conflict(file: &File, range: &Range<u64>) -> io::Result<Option<Range<u64>>> {
    let found = call(file, libc::F_OFD_GETLK, libc::F_WRLCK, range)?;
    if i32::from(found.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let start = u64::try_from(found.l_start).unwrap_or(0);
    // A length of zero means to the end of all offsets.
    let length = u64::try_from(found.l_len).ok().filter(|length| *length > 0).unwrap_or(i64::MAX as u64);
    Ok(Some(start..start.saturating_add(length)))
}

fn call(file: &File, command: libc::c_int, kind: libc::c_int, range: &Range<u64>) -> io::Result<libc::flock> {
    let offset = |offset: u64| i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    // SAFETY: plain integers, for which zero is a value.
    let mut lock: libc::flock = unsafe { mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).unwrap_or_default();
    lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default();
    lock.l_start = offset(range.start)?;
    lock.l_len = offset(range.end.saturating_sub(range.start))?;
    loop {
        // SAFETY: a live descriptor and a live lock; see the module's head.
        if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } != -1 {
            return Ok(lock);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// In a forked child: puts `idle` in the place of the file, so that the parent's locks end with the parent.
pub(super) fn replace(file: &File, idle: &OwnedFd) {
    // SAFETY: both are live. The number keeps meaning an open file that `file` owns, only another one.
    unsafe { libc::dup3(idle.as_raw_fd(), file.as_raw_fd(), libc::O_CLOEXEC) };
}
