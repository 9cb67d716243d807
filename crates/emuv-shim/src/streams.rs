//! Streams by identity, and fences on them.
//!
//! # Safety
//! Each block is one driver call; out-pointers are live locals, events were created here, and a stream's
//! handle is used only until the program destroys it ([`Streams::gone`]).
#![allow(unsafe_code)]

use emuv_cuda::{CUresult, CuResult, types::*};
use emuv_policy::{Owner, StreamId, hash::FastMap};

use crate::{
    arena::lock,
    calls,
    real::Real,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
        thread_local,
    },
};

/// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD` as handles.
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

/// A stream as the program named it in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Name {
    /// A stream that the program created.
    Created(usize),
    /// The default stream of a context.
    Legacy(Owner),
    /// A thread's own default stream in a context; only that thread can name it.
    PerThread(Owner, u64),
    /// No stream: all work of a context, which only waiting for the context settles.
    AllOf(Owner),
}

/// A number for the calling thread that no other thread has or had.
pub(crate) fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static NUMBER: u64 = NEXT.fetch_add(1, Ordering::Relaxed));
    NUMBER.with(|number| *number)
}

impl Name {
    /// Resolves a handle; `per_thread` for the `_ptsz` forms of the interface, in which 0 means the
    /// calling thread's own stream.
    pub fn of(stream: CUstream, per_thread: bool, context: Owner) -> Self {
        match stream as usize {
            PER_THREAD => Self::PerThread(context, thread_number()),
            0 if per_thread => Self::of(PER_THREAD as CUstream, true, context),
            0 | LEGACY => Self::Legacy(context),
            handle => Self::Created(handle),
        }
    }
}

struct Stream {
    id: StreamId,
    context: Owner,
}

/// The streams that have freed something, and their fences. One per device.
#[derive(Default)]
pub(crate) struct Streams(Mutex<State>);

#[derive(Default)]
struct State {
    known: FastMap<Name, Stream>,
    /// The last fence of each stream, kept for the next one; also of streams that are gone.
    fences: FastMap<StreamId, (Owner, usize)>,
    next: u64,
}

impl Streams {
    /// The stream's identity.
    pub fn id(&self, name: Name, context: Owner) -> StreamId {
        let mut state = lock(&self.0);
        if let Some(stream) = state.known.get(&name) {
            return stream.id;
        }
        state.next += 1;
        let id = StreamId(state.next);
        state.known.insert(name, Stream { id, context });
        id
    }

    /// The stream's identity if it is known.
    pub fn known(&self, name: Name) -> Option<StreamId> {
        lock(&self.0).known.get(&name).map(|stream| stream.id)
    }

    /// The streams of a context.
    pub fn of_context(&self, context: Owner) -> Vec<StreamId> {
        lock(&self.0).known.values().filter(|stream| stream.context == context).map(|stream| stream.id).collect()
    }

    /// The program destroys a stream: its handle means nothing from now on.
    pub fn gone(&self, name: Name) {
        lock(&self.0).known.remove(&name);
    }

    /// A context is gone, and its streams and events with it.
    pub fn context_gone(&self, context: Owner) -> Vec<StreamId> {
        let mut state = lock(&self.0);
        state.fences.retain(|_, (owner, _)| *owner != context);
        let gone: Vec<StreamId> = state.known.values().filter(|s| s.context == context).map(|s| s.id).collect();
        state.known.retain(|_, stream| stream.context != context);
        gone
    }

    /// The stream's handle, for calls with its context current. `None` where nothing can be asked of it from
    /// here (another thread's own stream, or one that is gone).
    fn handle(&self, id: StreamId) -> Option<(usize, Owner)> {
        let state = lock(&self.0);
        let (name, stream) = state.known.iter().find(|(_, stream)| stream.id == id)?;
        let handle = match *name {
            Name::Created(handle) => handle,
            Name::Legacy(_) => LEGACY,
            own @ Name::PerThread(..) if Name::of(PER_THREAD as CUstream, true, stream.context) == own => PER_THREAD,
            Name::PerThread(..) | Name::AllOf(_) => return None,
        };
        Some((handle, stream.context))
    }

    /// Whether the stream has no work left at this moment.
    pub fn is_idle(&self, real: &Real, id: StreamId) -> bool {
        let Some((handle, context)) = self.handle(id) else { return false };
        // SAFETY: see the module's head.
        calls::in_context(real, context, || unsafe { real.driver.cuStreamQuery(handle as CUstream) }.ok()).is_ok()
    }

    /// Records a fence behind everything issued on the stream so far. False where that cannot be done from
    /// here.
    pub fn record(&self, real: &Real, id: StreamId) -> CuResult<bool> {
        let Some((handle, context)) = self.handle(id) else { return Ok(false) };
        let fence = lock(&self.0).fences.get(&id).map(|(_, event)| *event);
        calls::in_context(real, context, || {
            let event = match fence {
                Some(event) => event,
                None => {
                    let mut event = std::ptr::null_mut();
                    // SAFETY: see the module's head.
                    unsafe { real.driver.cuEventCreate(&raw mut event, CU_EVENT_DISABLE_TIMING) }.ok()?;
                    lock(&self.0).fences.insert(id, (context, event as usize));
                    event as usize
                }
            };
            // SAFETY: see the module's head.
            unsafe { real.driver.cuEventRecord(event as CUevent, handle as CUstream) }.ok()?;
            Ok(true)
        })
    }

    /// Whether the stream's last fence has been reached.
    pub fn reached(&self, real: &Real, id: StreamId) -> bool {
        let Some((_, event)) = lock(&self.0).fences.get(&id).copied() else { return false };
        // SAFETY: see the module's head.
        unsafe { real.driver.cuEventQuery(event as CUevent) == CUresult::SUCCESS }
    }

    /// Makes the program's stream `handle` wait for the last fence of `id`.
    pub fn make_wait(&self, real: &Real, handle: CUstream, per_thread: bool, id: StreamId) -> bool {
        let Some((_, event)) = lock(&self.0).fences.get(&id).copied() else { return false };
        let event = event as CUevent;
        // SAFETY: see the module's head; the stream is the program's own argument.
        let result = unsafe {
            if per_thread {
                real.driver.cuStreamWaitEvent_ptsz(handle, event, 0)
            } else {
                real.driver.cuStreamWaitEvent(handle, event, 0)
            }
        };
        result == CUresult::SUCCESS
    }

    /// Waits for the last fence of `id`.
    pub fn wait(&self, real: &Real, id: StreamId) -> bool {
        let Some((_, event)) = lock(&self.0).fences.get(&id).copied() else { return false };
        // SAFETY: see the module's head.
        unsafe { real.driver.cuEventSynchronize(event as CUevent) == CUresult::SUCCESS }
    }
}
