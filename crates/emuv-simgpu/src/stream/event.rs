//! Events: marks in a stream that others can wait for and measure between.

use std::{
    sync::{Arc, Mutex, OnceLock},
    time::Instant,
};

use emuv_cuda::{CUresult, CuResult};

use super::queue::Ticket;
use crate::{graph::capture::Mark, machine::Engine, memory::physical::error, sync::lock};

/// One recording of an event.
#[derive(Debug, Clone)]
pub struct Record {
    /// The mark in the stream.
    pub ticket: Ticket,
    /// When the stream reached it.
    pub reached: Arc<OnceLock<Instant>>,
}

/// An event.
#[derive(Debug)]
pub struct Event {
    /// What it was created on.
    pub engine: Arc<Engine>,
    /// Whether times are kept.
    pub timed: bool,
    last: Mutex<Last>,
}

/// Where an event was recorded last.
#[derive(Debug, Clone)]
enum Last {
    Nowhere,
    InStream(Record),
    InCapture(Mark),
}

impl Event {
    /// An event that was not recorded yet.
    pub fn new(engine: Arc<Engine>, timed: bool) -> Self {
        Self { engine, timed, last: Mutex::new(Last::Nowhere) }
    }

    /// Replaces the recording.
    pub fn set(&self, record: Record) {
        *lock(&self.last) = Last::InStream(record);
    }

    /// Replaces the recording by a place in a capture.
    pub fn set_captured(&self, mark: Mark) {
        *lock(&self.last) = Last::InCapture(mark);
    }

    /// The place in a capture where it was recorded last.
    pub fn captured(&self) -> Option<Mark> {
        match &*lock(&self.last) {
            Last::InCapture(mark) => Some(mark.clone()),
            _ => None,
        }
    }

    /// The recording that counts now.
    pub fn record(&self) -> Option<Record> {
        match &*lock(&self.last) {
            Last::InStream(record) => Some(record.clone()),
            _ => None,
        }
    }

    /// Whether the recorded mark is reached; an event that was never recorded counts as reached.
    pub fn is_done(&self) -> bool {
        self.record().is_none_or(|record| record.ticket.is_done())
    }

    /// Waits until the recorded mark is reached.
    pub fn wait(&self) {
        if let Some(record) = self.record() {
            record.ticket.wait();
        }
    }

    /// Milliseconds from this event to `end`.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_HANDLE` for events that keep no time or were not recorded,
    /// `CUDA_ERROR_NOT_READY` while one is not reached.
    pub fn elapsed_ms(&self, end: &Self) -> CuResult<f32> {
        let invalid = || error(CUresult::CUDA_ERROR_INVALID_HANDLE);
        if !self.timed || !end.timed {
            return Err(invalid());
        }
        let (Some(from), Some(to)) = (self.record(), end.record()) else { return Err(invalid()) };
        let not_ready = || error(CUresult::CUDA_ERROR_NOT_READY);
        if !from.ticket.is_done() || !to.ticket.is_done() {
            return Err(not_ready());
        }
        let (from, to) = (from.reached.get().ok_or_else(not_ready)?, to.reached.get().ok_or_else(not_ready)?);
        // The events may have been reached in either order.
        let forward = to.saturating_duration_since(*from).as_secs_f32();
        let backward = from.saturating_duration_since(*to).as_secs_f32();
        Ok((forward - backward) * 1e3)
    }
}
