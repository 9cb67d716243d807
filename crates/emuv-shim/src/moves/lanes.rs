//! The program's streams as the mover knows them, and the fences that tell how far they are.
//!
//! Fences are events. A thread of the program records one behind every sixteenth work of a stream, less often where works
//! come fast; what is left over (the last works before a pause) the mover fences itself when it needs to know. It may not
//! do that on a thread's own default stream, which only that thread can name: there every work is fenced; nor while a
//! capture begins, because the fence would become part of the graph.

use std::{cell::Cell, collections::VecDeque};

use emuv_cuda::{CUresult, types::CUstream};
use emuv_policy::{Owner, StreamId, Unfenced, hash::FastMap};

use crate::{
    arena::{Arena, lock},
    calls,
    real::Real,
    session,
    streams::Name,
    sync::{
        Condvar, Instant, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
        thread_local,
    },
};

/// Works between two fences of a stream, at least and at most, and the time between two that makes the difference, in
/// microseconds. Works that touch so many bytes take the GPU long enough for one fence more, and what they free is worth
/// knowing of.
const WORKS_PER_FENCE: u64 = 16;
const MOST_WORKS_PER_FENCE: u64 = 256;
const MICROS_PER_FENCE: u64 = 100;
const BYTES_PER_FENCE: u64 = 1 << 30;

/// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD` as handles, which mean the same in every form of a call.
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

/// Samples that wait to be read at most.
const MOST_SAMPLES: usize = 64;

/// A stream in a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lane {
    /// Its number.
    pub stream: StreamId,
    handle: usize,
    context: Owner,
    /// Only its own thread can name it.
    private: bool,
}

impl Lane {
    /// Its handle, for calls of the plain form in its context.
    pub fn handle(self) -> CUstream {
        self.handle as CUstream
    }
}

struct Fence {
    number: u64,
    event: usize,
}

struct Stream {
    lane: Lane,
    /// The program has destroyed it.
    gone: bool,
    fences: VecDeque<Fence>,
}

/// Two events around a work that reads from RAM in place.
struct Sample {
    kind: u64,
    ram_bytes: u64,
    context: Owner,
    before: usize,
    after: usize,
}

/// See the module's head.
#[derive(Default)]
pub(crate) struct Lanes {
    state: Mutex<State>,
    /// The mover has stopped recording.
    recorded: Condvar,
    works: AtomicU64,
    /// Raised when streams go: their names may come again for others.
    generation: AtomicU64,
    /// When a fence was recorded last, in microseconds since `since`.
    fenced_micros: AtomicU64,
    since: OnceLock<Instant>,
}

#[derive(Default)]
struct State {
    names: FastMap<Name, StreamId>,
    streams: FastMap<StreamId, Stream>,
    next: u64,
    /// Events that are free to be recorded again, by context.
    events: FastMap<Owner, Vec<usize>>,
    samples: Vec<Sample>,
    /// Captures that are beginning now.
    forbidden: u32,
    /// The mover is recording.
    recording: bool,
}

impl Lanes {
    /// The stream of that name, called from `context`. Most calls of a thread name the same one.
    pub fn of(&self, name: Name, context: Owner) -> Lane {
        type Near = (usize, u64, Name, Lane);
        thread_local!(static LAST: Cell<Option<Near>> = const { Cell::new(None) });
        let (this, generation) = (std::ptr::from_ref(self) as usize, self.generation.load(Ordering::Acquire));
        let near = LAST.with(Cell::get).filter(|near| (near.0, near.1, near.2) == (this, generation, name));
        if let Some((.., lane)) = near {
            return lane;
        }
        let lane = self.look_up(name, context);
        LAST.with(|last| last.set(Some((this, generation, name, lane))));
        lane
    }

    fn look_up(&self, name: Name, context: Owner) -> Lane {
        let mut state = lock(&self.state);
        if let Some(stream) = state.names.get(&name).and_then(|id| state.streams.get(id)) {
            return stream.lane;
        }
        state.next += 1;
        let id = StreamId(state.next);
        let (handle, private) = match name {
            Name::Created(handle) => (handle, false),
            Name::PerThread(..) => (PER_THREAD, true),
            Name::Legacy(_) | Name::AllOf(_) => (LEGACY, false),
        };
        let lane = Lane { stream: id, handle, context, private };
        state.names.insert(name, id);
        state.streams.insert(id, Stream { lane, gone: false, fences: VecDeque::new() });
        lane
    }

    /// Whether this is one of the works at which the mover looks ahead.
    pub fn nudges(&self) -> bool {
        self.works.fetch_add(1, Ordering::Relaxed).is_multiple_of(WORKS_PER_FENCE)
    }

    /// A call on the stream has returned, the last of those that no fence covers: fences it if it is time to.
    pub fn issued(&self, real: &Real, arena: &Arena, lane: Lane, unfenced: Unfenced, now: bool) {
        let late = || self.micros().saturating_sub(self.fenced_micros.load(Ordering::Relaxed)) >= MICROS_PER_FENCE;
        let many = unfenced.works >= WORKS_PER_FENCE && (unfenced.works >= MOST_WORKS_PER_FENCE || late());
        if now || lane.private || many || unfenced.bytes >= BYTES_PER_FENCE {
            self.fence(real, arena, lane);
        }
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.since.get_or_init(Instant::now).elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Fences the calling thread's stream.
    pub fn mark_now(&self, arena: &Arena, lane: Lane) {
        if let Some(session) = session::current() {
            self.fence(session.real, arena, lane);
        }
    }

    /// Records a fence behind what has been issued. In the stream's context.
    fn fence(&self, real: &Real, arena: &Arena, lane: Lane) {
        let Some(number) = arena.residency().record_fence(lane.stream) else { return };
        self.fenced_micros.store(self.micros(), Ordering::Relaxed);
        let event = {
            let mut state = lock(&self.state);
            let Some(stream) = state.streams.get_mut(&lane.stream) else { return };
            if stream.fences.back().is_some_and(|fence| fence.number >= number) {
                return;
            }
            state.events.entry(lane.context).or_default().pop()
        };
        let event = match calls::record_event(real, event, lane.handle as CUstream) {
            Ok(event) => event,
            Err(_) => {
                // Without a fence there is only waiting; if that fails as well nothing runs there any more.
                let _ = calls::synchronize_stream(real, lane.handle as CUstream);
                arena.residency().completed(lane.stream, number);
                return;
            }
        };
        let mut state = lock(&self.state);
        match state.streams.get_mut(&lane.stream) {
            Some(stream) => stream.fences.push_back(Fence { number, event }),
            None => state.events.entry(lane.context).or_default().push(event),
        }
    }

    /// Records fences behind the last works of these streams, as far as the mover may.
    pub fn fence_all(&self, real: &Real, arena: &Arena, streams: &[StreamId]) {
        for stream in streams {
            let lane = {
                let mut state = lock(&self.state);
                let Some(lane) = state.streams.get(stream).filter(|s| !s.gone).map(|s| s.lane) else { continue };
                if state.forbidden > 0 || lane.private {
                    continue;
                }
                state.recording = true;
                lane
            };
            // A fence on a stream in capture would become part of the graph, or spoil it; so would one on the default stream,
            // for which a blocking stream in capture would have to wait.
            let captures = session::current().is_some_and(|session| session.captures.any());
            let forbidden = || lane.handle == LEGACY || calls::is_capturing(real, lane.handle(), false);
            let _ = calls::in_context(real, lane.context, || {
                if !captures || !forbidden() {
                    self.fence(real, arena, lane);
                }
                Ok(())
            });
            lock(&self.state).recording = false;
            self.recorded.notify_all();
        }
    }

    /// A capture is about to begin: nothing is recorded by the mover when this returns.
    pub fn forbid(&self) {
        let mut state = lock(&self.state);
        state.forbidden += 1;
        while state.recording {
            state = self.recorded.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The capture has begun (and is known by now), or has failed.
    pub fn allow(&self) {
        let mut state = lock(&self.state);
        state.forbidden = state.forbidden.saturating_sub(1);
    }

    /// The program is about to destroy the stream, in its own thread.
    pub fn going(&self, real: &Real, arena: &Arena, name: Name) {
        let lane = {
            let state = lock(&self.state);
            let Some(stream) = state.names.get(&name).and_then(|id| state.streams.get(id)) else { return };
            stream.lane
        };
        let _ = calls::in_context(real, lane.context, || {
            self.fence(real, arena, lane);
            Ok(())
        });
        let mut state = lock(&self.state);
        state.names.remove(&name);
        self.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(stream) = state.streams.get_mut(&lane.stream) {
            stream.gone = true;
        }
        while state.recording {
            state = self.recorded.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Contexts are gone with their streams and events; gives those streams.
    pub fn contexts_gone(&self, owners: &[Owner]) -> Vec<StreamId> {
        let mut state = lock(&self.state);
        let gone = |stream: &Stream| owners.contains(&stream.lane.context);
        let ids: Vec<StreamId> = state.streams.values().filter(|s| gone(s)).map(|s| s.lane.stream).collect();
        state.streams.retain(|_, stream| !gone(stream));
        state.names.retain(|_, id| !ids.contains(id));
        self.generation.fetch_add(1, Ordering::AcqRel);
        state.events.retain(|owner, _| !owners.contains(owner));
        state.samples.retain(|sample| !owners.contains(&sample.context));
        ids
    }

    /// What has been issued on the streams of a context so far: to be told to be done once it has been waited for.
    pub fn issued_in(&self, arena: &Arena, context: Owner) -> Vec<(StreamId, u64)> {
        let ids: Vec<StreamId> = {
            let state = lock(&self.state);
            state.streams.values().filter(|s| s.lane.context == context).map(|s| s.lane.stream).collect()
        };
        let residency = arena.residency();
        ids.into_iter().filter_map(|stream| Some((stream, residency.fence(stream)?))).collect()
    }

    /// Remembers two events around a work, to be read when they are reached. False: there are too many already.
    pub fn sample(&self, kind: u64, ram_bytes: u64, context: Owner, before: usize, after: usize) -> bool {
        let mut state = lock(&self.state);
        if state.samples.len() < MOST_SAMPLES {
            state.samples.push(Sample { kind, ram_bytes, context, before, after });
            return true;
        }
        drop(state);
        if let Some(session) = session::current() {
            calls::drop_event(session.real, before);
            calls::drop_event(session.real, after);
        }
        false
    }

    /// Reads what has been reached. Says whether anything has, and whether anything is still awaited.
    pub fn poll(&self, real: &Real, arena: &Arena) -> (bool, bool) {
        let (mut reached, mut awaited) = (false, false);
        let fronts: Vec<(StreamId, usize)> = {
            let state = lock(&self.state);
            let front = |(id, stream): (&StreamId, &Stream)| Some((*id, stream.fences.front()?.event));
            state.streams.iter().filter_map(front).collect()
        };
        for (id, first) in fronts {
            // Works of a stream are done in order: the last fence that is reached covers those before it.
            let mut next = Some(first);
            let mut number = None;
            let mut gone = false;
            while let Some(event) = next {
                if calls::query_event(real, event) == CUresult::CUDA_ERROR_NOT_READY {
                    awaited = true;
                    break;
                }
                // Any other failure is the context's end: nothing runs there any more.
                let mut state = lock(&self.state);
                let Some(stream) = state.streams.get_mut(&id) else { break };
                let Some(fence) = stream.fences.pop_front() else { break };
                number = Some(fence.number);
                next = stream.fences.front().map(|fence| fence.event);
                let context = stream.lane.context;
                if stream.gone && next.is_none() {
                    gone = true;
                    state.streams.remove(&id);
                }
                state.events.entry(context).or_default().push(fence.event);
            }
            let Some(number) = number else { continue };
            reached = true;
            let mut residency = arena.residency();
            residency.completed(id, number);
            if gone {
                residency.stream_gone(id);
            }
        }
        awaited |= self.read_samples(real, arena);
        (reached, awaited)
    }

    fn read_samples(&self, real: &Real, arena: &Arena) -> bool {
        let samples = std::mem::take(&mut lock(&self.state).samples);
        let mut waiting = Vec::new();
        for sample in samples {
            if calls::query_event(real, sample.after) == CUresult::CUDA_ERROR_NOT_READY {
                waiting.push(sample);
                continue;
            }
            match calls::elapsed_micros(real, sample.before, sample.after) {
                Ok(micros) => arena.residency().measured(sample.kind, sample.ram_bytes, micros),
                Err(_) => arena.residency().unmeasured(sample.kind),
            }
            arena.settled.notify_all();
            calls::drop_event(real, sample.before);
            calls::drop_event(real, sample.after);
        }
        let any = !waiting.is_empty();
        lock(&self.state).samples.extend(waiting);
        any
    }
}
