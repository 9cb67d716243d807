//! What a CUDA call works on: the simulator, the current context, a stream.

use std::sync::Arc;

use emuv_cuda::{CUresult, CuResult};

use crate::{
    context::Context,
    graph::{Graphs, capture::Member, step::Step},
    memory::physical::error,
    process,
    simulator::{Device, Simulator},
    stream::{
        queue::{Op, Ticket},
        set::Stream,
    },
};

/// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD`.
const LEGACY: u64 = 1;
const PER_THREAD: u64 = 2;

/// A call in progress.
#[derive(Debug)]
pub struct Call {
    /// The process's simulator.
    pub simulator: &'static Simulator,
    per_thread: bool,
}

/// A stream together with its context.
#[derive(Debug)]
pub struct Target {
    /// The stream's context.
    pub context: Arc<Context>,
    /// The stream.
    pub stream: Arc<Stream>,
    graphs: &'static Graphs,
}

impl Target {
    /// The stream as captures know it.
    pub fn member(&self) -> Member {
        Member { stream: self.stream.id, context: self.context.handle(), is_blocking: self.stream.is_blocking() }
    }

    /// Whether the stream's work goes into a graph.
    pub fn is_captured(&self) -> bool {
        self.graphs.captures.includes(self.stream.id)
    }

    /// What no captured stream allows.
    ///
    /// # Errors
    /// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`, `CUDA_ERROR_STREAM_CAPTURE_IMPLICIT`.
    pub fn forbid_capture(&self) -> CuResult {
        self.graphs.captures.forbid_on(self.member(), self.stream.is_legacy())
    }

    /// Adds work to the stream that no graph can hold.
    ///
    /// # Errors
    /// `CUDA_ERROR_OUT_OF_MEMORY` when no thread can be started; what a captured stream does not allow.
    pub fn submit(&self, op: Op) -> CuResult<Ticket> {
        self.forbid_capture()?;
        self.context.streams.submit(&self.stream, op)
    }

    /// Adds a step to the stream, or to the graph that it is captured into.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn enqueue(&self, step: Step) -> CuResult {
        match self.graphs.captures.add(self.graphs, self.stream.id, step)? {
            Some(step) => self.submit(step.into_op()).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Adds work to the stream and waits for it.
    ///
    /// # Errors
    /// The error that broke the context.
    pub fn carry_out(&self, op: Op) -> CuResult {
        self.submit(op)?.wait();
        self.context.engine.status.ok()
    }

    /// Waits for the stream.
    ///
    /// # Errors
    /// The error that broke the context; what a captured stream does not allow.
    pub fn synchronize(&self) -> CuResult {
        self.forbid_capture()?;
        for ticket in self.context.streams.unfinished(&self.stream) {
            ticket.wait();
        }
        self.context.engine.status.ok()
    }
}

impl Call {
    /// A call of an exported symbol; its suffix says what its default stream is.
    ///
    /// # Errors
    /// `CUDA_ERROR_NOT_INITIALIZED` before `cuInit`.
    pub fn new(symbol: &str) -> CuResult<Self> {
        let per_thread = symbol.ends_with("_ptsz") || symbol.ends_with("_ptds");
        Ok(Self { simulator: process::simulator()?, per_thread })
    }

    /// A device.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_DEVICE`.
    pub fn device(&self, ordinal: i32) -> CuResult<&'static Device> {
        self.simulator.device(ordinal)
    }

    /// The current context, whether broken or not.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_CONTEXT` for none, `CUDA_ERROR_CONTEXT_IS_DESTROYED` for one that is gone.
    pub fn current_or_broken(&self) -> CuResult<Arc<Context>> {
        match process::with_current(|stack| stack.last().copied().unwrap_or(0)) {
            0 => Err(error(CUresult::INVALID_CONTEXT)),
            handle => {
                let found = self.simulator.contexts.get(handle);
                found.ok_or(error(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED))
            }
        }
    }

    /// The current context.
    ///
    /// # Errors
    /// Also the error that broke it.
    pub fn current(&self) -> CuResult<Arc<Context>> {
        let context = self.current_or_broken()?;
        context.engine.status.ok()?;
        Ok(context)
    }

    /// A context by handle; 0 is the current one.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_CONTEXT` for a handle that is none.
    pub fn context(&self, handle: u64) -> CuResult<Arc<Context>> {
        if handle == 0 {
            return self.current_or_broken();
        }
        self.simulator.contexts.get(handle).ok_or(error(CUresult::INVALID_CONTEXT))
    }

    /// A stream by handle, default streams included.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_HANDLE` for a handle that is none, and the error that broke its context.
    pub fn stream(&self, handle: u64) -> CuResult<Target> {
        if handle > PER_THREAD {
            let stream = self.simulator.streams.get(handle).ok_or(error(CUresult::CUDA_ERROR_INVALID_HANDLE))?;
            let context = self.context(stream.engine.context)?;
            context.engine.status.ok()?;
            return Ok(self.target(context, stream));
        }
        let context = self.current()?;
        let per_thread = handle == PER_THREAD || (handle != LEGACY && self.per_thread);
        let stream = if per_thread { context.streams.per_thread() } else { context.streams.legacy() };
        Ok(self.target(context, stream))
    }

    fn target(&self, context: Arc<Context>, stream: Arc<Stream>) -> Target {
        Target { context, stream, graphs: &self.simulator.graphs }
    }

    /// Comes first in calls that a thread must not make while it captures, or another one does for all threads.
    ///
    /// # Errors
    /// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`.
    pub fn unsafe_in_capture(&self) -> CuResult {
        self.simulator.graphs.captures.forbid_unsafe()
    }

    /// The stream that a call without a stream argument uses.
    ///
    /// # Errors
    /// As [`Self::stream`].
    pub fn default_stream(&self) -> CuResult<Target> {
        self.stream(0)
    }
}
