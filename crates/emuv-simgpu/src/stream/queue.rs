//! A stream: operations that a thread of its own carries out in order.

use std::{
    collections::VecDeque,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Instant,
};

use emuv_cuda::{CUresult, CuResult};

use crate::{
    machine::Engine,
    memory::{
        physical::error,
        scratch::Scratch,
        view::{Stop, View},
    },
    sync::lock,
};

/// The position of an operation in a queue.
#[derive(Debug, Clone)]
pub struct Ticket {
    queue: Arc<Queue>,
    number: u64,
}

impl Ticket {
    /// Whether the operation is through.
    pub fn is_done(&self) -> bool {
        lock(&self.queue.state).completed >= self.number
    }

    /// Waits until the operation is through.
    pub fn wait(&self) {
        let mut state = lock(&self.queue.state);
        while state.completed < self.number {
            state = self.queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

type DeviceWork = dyn FnOnce(&mut View<'_>) -> Result<(), Stop> + Send;

/// What an operation does. It gets the state of its context: once that is broken, only bookkeeping runs.
pub enum Work {
    /// Touches memory; skipped when the context is broken or going away.
    Device(Box<DeviceWork>),
    /// Runs in any case (event records, status callbacks, freeing).
    Always(Box<dyn FnOnce(CUresult) + Send>),
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device(_) => "Device",
            Self::Always(_) => "Always",
        })
    }
}

/// An operation and what must be through before it starts.
#[derive(Debug)]
pub struct Op {
    /// Operations of other streams.
    pub after: Vec<Ticket>,
    /// What it does.
    pub work: Work,
}

impl Op {
    /// An operation that touches memory.
    pub fn device(work: impl FnOnce(&mut View<'_>) -> Result<(), Stop> + Send + 'static) -> Self {
        Self { after: Vec::new(), work: Work::Device(Box::new(work)) }
    }

    /// An operation that runs in any case.
    pub fn always(work: impl FnOnce(CUresult) + Send + 'static) -> Self {
        Self { after: Vec::new(), work: Work::Always(Box::new(work)) }
    }
}

#[derive(Debug, Default)]
struct State {
    pending: VecDeque<Op>,
    submitted: u64,
    completed: u64,
    closed: bool,
    worker: bool,
}

/// A queue of operations.
#[derive(Debug)]
pub struct Queue {
    engine: Arc<Engine>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Queue {
    /// An empty queue; its thread starts with the first operation.
    pub fn new(engine: Arc<Engine>) -> Arc<Self> {
        Arc::new(Self { engine, state: Mutex::new(State::default()), changed: Condvar::new() })
    }

    /// Adds an operation.
    ///
    /// # Errors
    /// `CUDA_ERROR_OUT_OF_MEMORY` when no thread can be started.
    pub fn push(self: &Arc<Self>, op: Op) -> CuResult<Ticket> {
        let mut state = lock(&self.state);
        if !state.worker {
            self.start().map_err(|_| error(CUresult::OUT_OF_MEMORY))?;
            state.worker = true;
        }
        state.pending.push_back(op);
        state.submitted += 1;
        let number = state.submitted;
        drop(state);
        self.changed.notify_all();
        Ok(Ticket { queue: Arc::clone(self), number })
    }

    fn start(self: &Arc<Self>) -> io::Result<()> {
        let queue = Arc::clone(self);
        let scratch = Scratch::new()?;
        thread::Builder::new().name("emuv-sim-stream".to_owned()).spawn(move || queue.run(scratch))?;
        Ok(())
    }

    /// The last operation, where it is not through yet.
    pub fn pending(self: &Arc<Self>) -> Option<Ticket> {
        let state = lock(&self.state);
        let number = state.submitted;
        (state.completed < number).then(|| Ticket { queue: Arc::clone(self), number })
    }

    /// Lets the thread end once all operations are through.
    pub fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }

    fn run(&self, mut scratch: Scratch) {
        while let Some(op) = self.next() {
            for ticket in &op.after {
                ticket.wait();
            }
            self.engine.machine.jitter.pause();
            self.carry_out(op.work, &mut scratch);
            lock(&self.state).completed += 1;
            self.changed.notify_all();
        }
    }

    /// The next operation; `None` ends the thread.
    fn next(&self) -> Option<Op> {
        let mut state = lock(&self.state);
        loop {
            if let Some(op) = state.pending.pop_front() {
                return Some(op);
            }
            if state.closed {
                state.worker = false;
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn carry_out(&self, work: Work, scratch: &mut Scratch) {
        let status = &self.engine.status;
        let outcome = catch_unwind(AssertUnwindSafe(|| match work {
            Work::Always(run) => {
                run(status.result());
                Ok(())
            }
            Work::Device(_) if status.is_stopped() => Ok(()),
            Work::Device(run) => {
                let start = Instant::now();
                let mut view = View::new(&self.engine, scratch);
                let outcome = run(&mut view);
                self.engine.gpu.link.settle(start, view.traffic());
                outcome
            }
        }));
        match outcome {
            Ok(Ok(()) | Err(Stop::Aborted)) => {}
            Ok(Err(Stop::IllegalAddress(_))) => status.fail(CUresult::ILLEGAL_ADDRESS),
            Err(_) => status.fail(CUresult::CUDA_ERROR_LAUNCH_FAILED),
        }
    }
}
