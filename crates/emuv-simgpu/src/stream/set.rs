//! A context's streams, and how the legacy default stream keeps them in order.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, Weak},
    thread::{self, ThreadId},
    time::Instant,
};

use emuv_cuda::CuResult;

use super::{
    event::{Event, Record},
    queue::{Op, Queue, Ticket},
};
use crate::{machine::Engine, sync::lock};

/// A stream of a context.
#[derive(Debug)]
pub struct Stream {
    /// The context's engine.
    pub engine: Arc<Engine>,
    /// `CUstream_flags`.
    pub flags: u32,
    /// Priority, 0 and below; lower is more urgent. It has no effect.
    pub priority: i32,
    /// Number that no other stream has.
    pub id: u64,
    kind: Kind,
    queue: Arc<Queue>,
}

impl Stream {
    /// Whether it is the legacy default stream.
    pub fn is_legacy(&self) -> bool {
        self.kind == Kind::Legacy
    }

    /// Whether its work and the legacy stream's work wait for each other.
    pub fn is_blocking(&self) -> bool {
        self.kind == Kind::Blocking
    }
}

/// How a stream relates to the legacy default stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It is the legacy default stream.
    Legacy,
    /// Its work and the legacy stream's work wait for each other.
    Blocking,
    /// It ignores the legacy stream.
    NonBlocking,
}

#[derive(Debug, Default)]
struct Members {
    queues: Vec<(Kind, Weak<Queue>)>,
    legacy: Option<Arc<Stream>>,
    per_thread: HashMap<ThreadId, Arc<Stream>>,
}

/// All streams of a context.
#[derive(Debug)]
pub struct StreamSet {
    engine: Arc<Engine>,
    /// Held while work is submitted, so that the order between streams is well defined.
    members: Mutex<Members>,
}

impl Members {
    fn add(&mut self, engine: &Arc<Engine>, kind: Kind, flags: u32, priority: i32) -> Arc<Stream> {
        let queue = Queue::new(Arc::clone(engine));
        self.queues.retain(|(_, queue)| queue.strong_count() > 0);
        self.queues.push((kind, Arc::downgrade(&queue)));
        let id = crate::handles::fresh();
        Arc::new(Stream { engine: Arc::clone(engine), flags, priority, id, kind, queue })
    }

    fn pending(&self, picked: impl Fn(Kind) -> bool) -> Vec<Ticket> {
        let queues = self.queues.iter().filter(|(kind, _)| picked(*kind)).filter_map(|(_, queue)| queue.upgrade());
        queues.filter_map(|queue| queue.pending()).collect()
    }
}

impl StreamSet {
    /// No streams yet; default streams appear when they are used.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine, members: Mutex::default() }
    }

    /// A new stream.
    pub fn create(&self, flags: u32, priority: i32) -> Arc<Stream> {
        let kind = if flags & 1 == 1 { Kind::NonBlocking } else { Kind::Blocking };
        lock(&self.members).add(&self.engine, kind, flags, priority)
    }

    /// The legacy default stream.
    pub fn legacy(&self) -> Arc<Stream> {
        let mut members = lock(&self.members);
        if let Some(stream) = &members.legacy {
            return Arc::clone(stream);
        }
        let stream = members.add(&self.engine, Kind::Legacy, 0, 0);
        members.legacy = Some(Arc::clone(&stream));
        stream
    }

    /// The calling thread's default stream.
    pub fn per_thread(&self) -> Arc<Stream> {
        let mut members = lock(&self.members);
        let thread = thread::current().id();
        if let Some(stream) = members.per_thread.get(&thread) {
            return Arc::clone(stream);
        }
        let stream = members.add(&self.engine, Kind::Blocking, 0, 0);
        members.per_thread.insert(thread, Arc::clone(&stream));
        stream
    }

    /// Adds an operation to a stream of this set.
    ///
    /// # Errors
    /// `CUDA_ERROR_OUT_OF_MEMORY` when no thread can be started.
    pub fn submit(&self, stream: &Stream, mut op: Op) -> CuResult<Ticket> {
        let members = lock(&self.members);
        match stream.kind {
            Kind::Legacy => op.after.extend(members.pending(|kind| kind == Kind::Blocking)),
            Kind::Blocking => op.after.extend(members.pending(|kind| kind == Kind::Legacy)),
            Kind::NonBlocking => {}
        }
        stream.queue.push(op)
    }

    /// Records an event in a stream.
    ///
    /// # Errors
    /// `CUDA_ERROR_OUT_OF_MEMORY` when no thread can be started.
    pub fn record(&self, stream: &Stream, event: &Event) -> CuResult {
        let reached = Arc::new(OnceLock::new());
        let mark = Arc::clone(&reached);
        let op = Op::always(move |_| {
            // Each mark is reached once.
            let _ = mark.set(Instant::now());
        });
        let ticket = self.submit(stream, op)?;
        event.set(Record { ticket, reached });
        Ok(())
    }

    /// Waits for all work that was submitted before.
    pub fn synchronize(&self) {
        let pending = lock(&self.members).pending(|_| true);
        for ticket in pending {
            ticket.wait();
        }
    }

    /// Waits for all work and lets the threads end.
    pub fn close(&self) {
        self.synchronize();
        let mut members = lock(&self.members);
        members.legacy = None;
        members.per_thread.clear();
        for (_, queue) in members.queues.drain(..) {
            if let Some(queue) = queue.upgrade() {
                queue.close();
            }
        }
    }

    /// Everything that a wait for this stream must wait for: the legacy stream also stands for the blocking
    /// streams that its next operation would follow.
    pub fn unfinished(&self, stream: &Stream) -> Vec<Ticket> {
        let members = lock(&self.members);
        match stream.kind {
            Kind::Legacy => members.pending(|kind| kind != Kind::NonBlocking),
            _ => stream.queue.pending().into_iter().collect(),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.queue.close();
    }
}
