//! Streams that are being captured into graphs. While one is, the context may not be synchronised (that
//! would break the capture, measured), so frees wait.

use std::collections::HashSet;

use crate::{
    arena::lock,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// The streams in capture, by handle.
#[derive(Debug, Default)]
pub(crate) struct Captures {
    streams: Mutex<HashSet<u64>>,
    /// Their number, for the question that every allocation asks.
    count: AtomicUsize,
}

impl Captures {
    /// A capture began on `stream`.
    pub fn began(&self, stream: u64) {
        self.change(|streams| streams.insert(stream));
    }

    /// The capture on `stream` ended, in whichever way, or the stream is gone.
    pub fn ended(&self, stream: u64) {
        if self.any() {
            self.change(|streams| streams.remove(&stream));
        }
    }

    fn change(&self, change: impl FnOnce(&mut HashSet<u64>) -> bool) {
        let mut streams = lock(&self.streams);
        change(&mut streams);
        self.count.store(streams.len(), Ordering::Release);
    }

    /// Whether any stream is being captured.
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }
}
