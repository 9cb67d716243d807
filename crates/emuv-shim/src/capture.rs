//! Streams that are being captured into graphs. While one is, the context may not be synchronised (that
//! would break the capture, measured), so frees wait.

use std::{collections::HashSet, sync::Mutex};

use crate::arena::lock;

/// The streams in capture, by handle.
#[derive(Debug, Default)]
pub(crate) struct Captures(Mutex<HashSet<usize>>);

impl Captures {
    /// A capture began on `stream`.
    pub fn began(&self, stream: usize) {
        lock(&self.0).insert(stream);
    }

    /// The capture on `stream` ended, in whichever way, or the stream is gone.
    pub fn ended(&self, stream: usize) {
        lock(&self.0).remove(&stream);
    }

    /// Whether any stream is being captured.
    pub fn any(&self) -> bool {
        !lock(&self.0).is_empty()
    }
}
