//! Moving chunks between the tiers while the program runs.

use emuv_cuda::{CUresult, types::CUstream};

use crate::{session::Session, touch::Touch};

/// Whether anything may move now. If not, work need not be looked at.
pub(crate) fn active(_session: &Session) -> bool {
    false
}

/// Makes a call that gives the GPU work: waits until what it touches is in place, calls, and remembers until
/// when the work may touch it.
pub(crate) fn around(
    session: &Session,
    stream: CUstream,
    per_thread: bool,
    touch: &Touch,
    call: impl FnOnce() -> CUresult,
) -> CUresult {
    let _ = (session, stream, per_thread, touch);
    call()
}

/// Pointers into the allocation that `address` lies in are kept where emuV does not see them (a texture object,
/// say): from now on it moves only when the device is idle.
pub(crate) fn escaped(_session: &Session, _address: u64) {}

/// The allocation that `address` lies in is known to others by its physical memory: it never moves.
pub(crate) fn pinned(_session: &Session, _address: u64) {}

/// A range outside the arenas that kernels reach without an argument (a module's global): pointers may be kept
/// there. `bytes` 0: it is gone.
pub(crate) fn watch_range(_session: &Session, _address: u64, _bytes: u64) {}
