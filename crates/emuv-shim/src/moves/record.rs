//! The file that everything is recorded in (`emuv run --trace`).

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::Path,
};

use emuv_cuda::types::CUdevice;

use crate::{arena::Arena, log};

/// How much is collected before it is written.
const BLOCK_BYTES: usize = 256 << 10;

/// See the module's head. One per device.
#[derive(Debug, Default)]
pub(super) struct Recording(Option<File>);

impl Recording {
    /// Makes the file. Of all processes and devices of a run the first gets `path` itself, others `path.PID.DEVICE`.
    pub fn open(path: Option<&Path>, ordinal: CUdevice) -> Self {
        let Some(path) = path else { return Self(None) };
        let new = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
        let file = new(path).or_else(|error| {
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
            let mut other = OsString::from(path);
            other.push(format!(".{}.{ordinal}", std::process::id()));
            new(Path::new(&other))
        });
        if let Err(error) = &file {
            log::error(format_args!("cannot write the trace {}: {error}", path.display()));
        }
        Self(file.ok())
    }

    /// Writes what has come together: a good deal, or (`all`) whatever there is.
    pub fn write(&mut self, arena: &Arena, all: bool) {
        let Some(file) = &mut self.0 else { return };
        let bytes = {
            let mut residency = arena.residency();
            let Some(recorder) = residency.recorder() else { return };
            if !all && recorder.pending_bytes() < BLOCK_BYTES {
                return;
            }
            recorder.take()
        };
        if let Err(error) = file.write_all(&bytes) {
            log::error(format_args!("the trace ends here: {error}"));
            self.0 = None;
        }
    }
}
