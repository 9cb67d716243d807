//! Streams whose work goes into a graph instead of to the GPU.

use std::{
    cell::Cell,
    collections::HashMap,
    sync::{Arc, Mutex},
    thread::{self, ThreadId},
};

use emuv_cuda::{CUresult, CuResult, types};

use super::{Graph, Graphs, step::Step};
use crate::{handles, memory::physical::error, sync::lock};

thread_local! {
    /// How this thread's calls mind captures (`cuThreadExchangeStreamCaptureMode`).
    static THREAD_MODE: Cell<types::CUstreamCaptureMode> = const { Cell::new(types::CU_STREAM_CAPTURE_MODE_GLOBAL) };
}

/// Sets how the calling thread's calls mind captures; gives what was set before.
pub fn exchange_thread_mode(mode: types::CUstreamCaptureMode) -> types::CUstreamCaptureMode {
    THREAD_MODE.replace(mode)
}

/// A stream as captures know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The stream's number.
    pub stream: u64,
    /// Handle of its context.
    pub context: u64,
    /// Whether the legacy stream's work and its work wait for each other.
    pub is_blocking: bool,
}

/// A place in a capture that an event stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    capture: u64,
    nodes: Vec<u64>,
}

/// A capture as `cuStreamGetCaptureInfo` shows it.
#[derive(Debug)]
pub struct Info {
    /// Number that no other capture has.
    pub id: u64,
    /// Whether a forbidden call has spoiled it.
    pub is_invalid: bool,
    /// Handle of the graph.
    pub graph: u64,
    /// Address of the nodes that the stream's next work follows; it holds until the stream is used.
    pub tail: u64,
    /// How many nodes those are.
    pub count: usize,
}

#[derive(Debug)]
struct Session {
    id: u64,
    graph: Arc<Graph>,
    /// Whether the graph is the program's own and stays when the capture fails.
    is_given: bool,
    mode: types::CUstreamCaptureMode,
    thread: ThreadId,
    /// The stream that began it.
    origin: u64,
    is_invalid: bool,
    /// By stream: the nodes that its next work follows.
    tails: HashMap<u64, (Member, Vec<u64>)>,
}

/// All captures under way.
#[derive(Debug, Default)]
pub struct Captures {
    sessions: Mutex<Vec<Session>>,
}

fn of(sessions: &mut [Session], stream: u64) -> Option<&mut Session> {
    sessions.iter_mut().find(|session| session.tails.contains_key(&stream))
}

fn spoil<'a>(sessions: impl Iterator<Item = &'a mut Session>) -> bool {
    sessions.map(|session| session.is_invalid = true).count() > 0
}

impl Captures {
    /// Begins to capture a stream into a graph, after some of its nodes.
    ///
    /// # Errors
    /// `CUDA_ERROR_ILLEGAL_STATE` for a stream that is being captured, `CUDA_ERROR_INVALID_VALUE` for no mode.
    pub fn begin(
        &self,
        member: Member,
        mode: types::CUstreamCaptureMode,
        (graph, is_given): (Arc<Graph>, bool),
        tail: Vec<u64>,
    ) -> CuResult {
        if mode > types::CU_STREAM_CAPTURE_MODE_RELAXED {
            return Err(error(CUresult::INVALID_VALUE));
        }
        let mut sessions = lock(&self.sessions);
        if of(&mut sessions, member.stream).is_some() {
            return Err(error(CUresult::CUDA_ERROR_ILLEGAL_STATE));
        }
        sessions.push(Session {
            id: handles::fresh(),
            graph,
            is_given,
            mode,
            thread: thread::current().id(),
            origin: member.stream,
            is_invalid: false,
            tails: HashMap::from([(member.stream, (member, tail))]),
        });
        Ok(())
    }

    /// The capture of a stream.
    pub fn info(&self, stream: u64) -> Option<Info> {
        let mut sessions = lock(&self.sessions);
        let session = of(&mut sessions, stream)?;
        let (_, tail) = session.tails.get(&stream)?;
        Some(Info {
            id: session.id,
            is_invalid: session.is_invalid,
            graph: session.graph.handle,
            tail: tail.as_ptr().expose_provenance() as u64,
            count: tail.len(),
        })
    }

    /// Whether a stream is being captured.
    pub fn includes(&self, stream: u64) -> bool {
        of(&mut lock(&self.sessions), stream).is_some()
    }

    /// Fails, and spoils the capture, where the stream is being captured; also where the stream is the legacy
    /// stream and one is being captured that would have to wait for it.
    ///
    /// # Errors
    /// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`, `CUDA_ERROR_STREAM_CAPTURE_IMPLICIT`.
    pub fn forbid_on(&self, member: Member, is_legacy: bool) -> CuResult {
        let mut sessions = lock(&self.sessions);
        if spoil(of(&mut sessions, member.stream).into_iter()) {
            return Err(error(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED));
        }
        let waits = |session: &&mut Session| {
            session.tails.values().any(|(other, _)| other.context == member.context && other.is_blocking)
        };
        if is_legacy && spoil(sessions.iter_mut().filter(waits)) {
            return Err(error(CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT));
        }
        Ok(())
    }

    /// Fails, and spoils the captures, where a stream of the context is being captured.
    ///
    /// # Errors
    /// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`.
    pub fn forbid_in(&self, context: u64) -> CuResult {
        let mut sessions = lock(&self.sessions);
        let belongs = |session: &&mut Session| session.tails.values().any(|(member, _)| member.context == context);
        if spoil(sessions.iter_mut().filter(belongs)) {
            return Err(error(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED));
        }
        Ok(())
    }

    /// Fails, and spoils the captures, where the calling thread must make no call that may be unsafe.
    ///
    /// # Errors
    /// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`.
    pub fn forbid_unsafe(&self) -> CuResult {
        let (mine, thread_mode) = (thread::current().id(), THREAD_MODE.get());
        if thread_mode == types::CU_STREAM_CAPTURE_MODE_RELAXED {
            return Ok(());
        }
        let mut sessions = lock(&self.sessions);
        let minds = |session: &&mut Session| match session.mode {
            types::CU_STREAM_CAPTURE_MODE_RELAXED => false,
            types::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL => session.thread == mine,
            _ => session.thread == mine || thread_mode == types::CU_STREAM_CAPTURE_MODE_GLOBAL,
        };
        if spoil(sessions.iter_mut().filter(minds)) {
            return Err(error(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED));
        }
        Ok(())
    }

    /// Changes what the next work of a captured stream follows.
    ///
    /// # Errors
    /// `CUDA_ERROR_ILLEGAL_STATE` for a stream that is not being captured, `CUDA_ERROR_INVALID_VALUE` for nodes of
    /// another graph.
    pub fn follow(&self, graphs: &Graphs, stream: u64, nodes: &[u64], keep: bool) -> CuResult {
        let mut sessions = lock(&self.sessions);
        let session = of(&mut sessions, stream).ok_or(error(CUresult::CUDA_ERROR_ILLEGAL_STATE))?;
        graphs.check(&session.graph, nodes)?;
        if let Some((_, tail)) = session.tails.get_mut(&stream) {
            if !keep {
                tail.clear();
            }
            extend(tail, nodes);
        }
        Ok(())
    }

    /// Where a captured stream is now.
    ///
    /// # Errors
    /// `CUDA_ERROR_STREAM_CAPTURE_INVALIDATED`.
    pub fn mark(&self, stream: u64) -> CuResult<Option<Mark>> {
        let mut sessions = lock(&self.sessions);
        let Some(session) = of(&mut sessions, stream) else { return Ok(None) };
        session.usable()?;
        let nodes = session.tails.get(&stream).map(|(_, tail)| tail.clone()).unwrap_or_default();
        Ok(Some(Mark { capture: session.id, nodes }))
    }

    /// Makes a stream's next work follow a place in a capture; a stream that is not being captured joins it.
    ///
    /// # Errors
    /// `CUDA_ERROR_CAPTURED_EVENT` for a capture that has ended, `CUDA_ERROR_STREAM_CAPTURE_MERGE` for a stream of
    /// another one, `CUDA_ERROR_STREAM_CAPTURE_INVALIDATED`.
    pub fn join(&self, member: Member, mark: &Mark) -> CuResult {
        let mut sessions = lock(&self.sessions);
        if let Some(other) = of(&mut sessions, member.stream)
            && other.id != mark.capture
        {
            let both =
                |session: &&mut Session| session.id == mark.capture || session.tails.contains_key(&member.stream);
            spoil(sessions.iter_mut().filter(both));
            return Err(error(CUresult::CUDA_ERROR_STREAM_CAPTURE_MERGE));
        }
        let session = sessions.iter_mut().find(|session| session.id == mark.capture);
        let session = session.ok_or(error(CUresult::CUDA_ERROR_CAPTURED_EVENT))?;
        session.usable()?;
        let (_, tail) = session.tails.entry(member.stream).or_insert((member, Vec::new()));
        extend(tail, &mark.nodes);
        Ok(())
    }

    /// Fails, and spoils the capture, where a captured stream would wait for work outside of the capture.
    ///
    /// # Errors
    /// `CUDA_ERROR_STREAM_CAPTURE_ISOLATION`.
    pub fn forbid_outside(&self, stream: u64) -> CuResult {
        if spoil(of(&mut lock(&self.sessions), stream).into_iter()) {
            return Err(error(CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION));
        }
        Ok(())
    }

    /// Adds a step to a captured stream's graph; gives the step back for a stream that is not being captured.
    ///
    /// # Errors
    /// `CUDA_ERROR_STREAM_CAPTURE_INVALIDATED`.
    pub fn add(&self, graphs: &Graphs, stream: u64, step: Step) -> CuResult<Option<Step>> {
        let mut sessions = lock(&self.sessions);
        let Some(session) = of(&mut sessions, stream) else { return Ok(Some(step)) };
        session.usable()?;
        if let Some((_, tail)) = session.tails.get_mut(&stream) {
            let node = graphs.add(&session.graph, tail, step)?;
            *tail = vec![node];
        }
        Ok(None)
    }

    /// Ends a capture.
    ///
    /// # Errors
    /// `CUDA_ERROR_ILLEGAL_STATE` for a stream that is not being captured, `CUDA_ERROR_STREAM_CAPTURE_UNMATCHED` for
    /// one that did not begin it, `CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD`; after these it goes on. It ends without
    /// a graph with `CUDA_ERROR_STREAM_CAPTURE_INVALIDATED` and, where the last work of another stream does not
    /// lead back to this one, `CUDA_ERROR_STREAM_CAPTURE_UNJOINED`.
    pub fn end(&self, graphs: &Graphs, stream: u64) -> CuResult<Arc<Graph>> {
        let mut sessions = lock(&self.sessions);
        let session = of(&mut sessions, stream).ok_or(error(CUresult::CUDA_ERROR_ILLEGAL_STATE))?;
        if session.origin != stream {
            return Err(error(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED));
        }
        let is_bound = session.mode != types::CU_STREAM_CAPTURE_MODE_RELAXED;
        if is_bound && session.thread != thread::current().id() {
            return Err(error(CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD));
        }
        let outcome = session.usable().and_then(|()| {
            let end = session.tails.get(&stream).map(|(_, tail)| tail.as_slice()).unwrap_or_default();
            let joined = session.graph.with_ancestors(end);
            let is_joined = session.tails.values().flat_map(|(_, tail)| tail).all(|node| joined.contains(node));
            if is_joined { Ok(()) } else { Err(error(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED)) }
        });
        let (id, graph, is_given) = (session.id, Arc::clone(&session.graph), session.is_given);
        sessions.retain(|session| session.id != id);
        if outcome.is_err() && !is_given {
            graphs.destroy(graph.handle)?;
        }
        outcome.map(|()| graph)
    }

    /// Forgets the captures of a context that is gone.
    pub fn end_all_of(&self, context: u64) {
        lock(&self.sessions).retain(|session| session.tails.values().all(|(member, _)| member.context != context));
    }
}

impl Session {
    fn usable(&self) -> CuResult {
        if self.is_invalid { Err(error(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)) } else { Ok(()) }
    }
}

fn extend(tail: &mut Vec<u64>, nodes: &[u64]) {
    for node in nodes {
        if !tail.contains(node) {
            tail.push(*node);
        }
    }
}
