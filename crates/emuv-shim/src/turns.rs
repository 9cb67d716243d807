//! The gate in front of the GPU, for processes in a slice: works pass while the slice has its turn, or nobody needs turns
//! (`emuv_policy::turns` says whose it is, `emuv_state::slices::TurnBook` how the slices tell each other).
//!
//! ```text
//!             the driver divides the time as it is to be
//!   Free  <------------------------------------------------>  in turns:  open <--> shut
//!   a launch looks at one flag                                a launch asks here, and is fenced
//! ```
//!
//! A thread of each process looks around: every [`LOOK_FREE`] while turns are not needed (launches leave a mark that it takes
//! away again, so it knows whether the process wants the GPU), every [`LOOK`] while they are. While they are, each stream
//! has an event behind its last work, by which it is known when what was given is done, and one, the mark, behind some work
//! before. Until the mark is reached the stream gets so many works and no more, and then the next mark: as many as take about
//! [`AHEAD`], which is learned from mark to mark. So little is left to do when the turn ends, and the GPU never waits for more.
//!
//! Nobody waits here inside a capture, which gives the GPU nothing. A thread that is held keeps no lock; it is let go when the
//! gate opens, and in any case when the thread that looks around has died. What it would have given may be what the GPU
//! waits for: then the slice's turn passes, and it goes on in the next one; waiting for the stream to come further is
//! given up after [`PATIENCE`].

use std::time::Duration;

use emuv_cuda::{
    CUresult,
    types::{CUdevice, CUstream},
};
use emuv_policy::{Owner, hash::FastMap, turns::Gate};
use emuv_state::slices::Standing;

use crate::{
    arena::lock,
    calls, log, moves,
    session::{self, Session},
    slice::Slice,
    streams::Name,
    sync::{
        Condvar, Instant, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    thread,
};

/// Between two looks around while turns are taken, while they are not, and while the process does not want the GPU.
const LOOK: Duration = Duration::from_millis(1);
const LOOK_FREE: Duration = Duration::from_millis(50);

/// A process wants the GPU for so long after its last work: while turns are not needed, while they are, and while
/// losing one means that memory is exchanged.
const LINGER_FREE: Duration = Duration::from_millis(100);
const LINGER: Duration = Duration::from_millis(10);
const LINGER_MEMORY: Duration = Duration::from_millis(100);

/// About as much work a stream has ahead of it.
const AHEAD: Duration = Duration::from_millis(10);

/// Works between two marks: at first, and at most.
const FIRST_WORKS: u32 = 32;
const MOST_WORKS: u32 = 4096;

/// How long a launch waits for its stream to come further.
const PATIENCE: Duration = Duration::from_millis(100);

/// A change of the VRAM that the slice may have that is worth moving anything.
const LEAST_BYTES: u64 = 16 << 20;

/// The gate as launches see it. There is no gate.
const NONE: u8 = 0;
/// Turns are not needed; no work since the last look around.
const UNSEEN: u8 = 1;
/// Turns are not needed.
const SEEN: u8 = 2;
/// Turns are taken.
const TURNS: u8 = 3;

/// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD` as handles, which mean the same in every form of a call.
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

/// See the module's head. One per process.
#[derive(Default)]
pub(crate) struct Turns {
    gate: AtomicU8,
    state: Mutex<State>,
    /// The gate has opened, or a stream has come further.
    opened: Condvar,
    /// The thread has something to look at.
    woken: Condvar,
}

#[derive(Default)]
struct State {
    open: bool,
    stop: bool,
    /// Threads that are held.
    waiting: u32,
    /// Works that have been held.
    held: u64,
    /// Threads between the gate and the event behind their work.
    giving: u32,
    /// Work was given since the last look around.
    worked: bool,
    /// When that was so last, by the clock that turns go by.
    last_micros: Option<u64>,
    streams: FastMap<Name, Stream>,
    /// The thread is asking events.
    asking: bool,
}

#[derive(Clone, Copy)]
struct Stream {
    context: Owner,
    /// Works that it has been given.
    given: u64,
    /// Behind the last one.
    last: Option<usize>,
    /// That one is done, as far as it can be known.
    done: bool,
    /// Behind some work, given at that time; `None`: reached.
    mark: Option<usize>,
    marked: Option<Instant>,
    /// Works since then, and how many there may be.
    works: u32,
    may_have: u32,
}

/// Makes a call that gives the GPU work when it is the slice's turn.
pub(crate) fn around(
    session: &Session,
    stream: CUstream,
    per_thread: bool,
    call: impl FnOnce() -> CUresult,
) -> CUresult {
    let turns = &session.turns;
    match turns.gate.load(Ordering::Relaxed) {
        NONE | SEEN => call(),
        UNSEEN => {
            // Lost if the thread closes the gate at this moment; the next launch says it again.
            let _ = turns.gate.compare_exchange(UNSEEN, SEEN, Ordering::Relaxed, Ordering::Relaxed);
            call()
        }
        _ => turns.in_turn(session, stream, per_thread, call),
    }
}

impl Turns {
    fn in_turn(
        &self,
        session: &Session,
        stream: CUstream,
        per_thread: bool,
        call: impl FnOnce() -> CUresult,
    ) -> CUresult {
        if session.captures.any() && calls::is_capturing(session.real, stream, per_thread) {
            return call();
        }
        let Some((context, _)) = session.whereabouts() else { return call() };
        let name = Name::of(stream, per_thread, context);
        self.wait(name);
        let result = call();
        self.fence(session, name, context);
        result
    }

    /// Waits until the stream may be given work.
    fn wait(&self, name: Name) {
        let mut state = lock(&self.state);
        let start = Instant::now();
        let may = |state: &State| {
            let full = |stream: &Stream| stream.marked.is_some() && stream.works >= stream.may_have;
            let full = state.streams.get(&name).is_some_and(full) && start.elapsed() < PATIENCE;
            self.gate.load(Ordering::Relaxed) != TURNS || state.open && !full
        };
        if !may(&state) {
            state.held += u64::from(!state.open);
            state.waiting += 1;
            while !may(&state) {
                self.woken.notify_all();
                state = self.opened.wait_timeout(state, AHEAD).unwrap_or_else(PoisonError::into_inner).0;
            }
            state.waiting -= 1;
        }
        state.giving += 1;
        state.worked = true;
    }

    /// Records events behind a work that has just been given. In the calling thread's context.
    fn fence(&self, session: &Session, name: Name, context: Owner) {
        let fresh = Stream {
            context,
            given: 0,
            last: None,
            done: true,
            mark: None,
            marked: None,
            works: 0,
            may_have: FIRST_WORKS,
        };
        let stream = lock(&self.state).streams.get(&name).copied().filter(|s| s.context == context).unwrap_or(fresh);
        let handle = match name {
            Name::Created(handle) => handle,
            Name::PerThread(..) => PER_THREAD,
            Name::Legacy(_) | Name::AllOf(_) => LEGACY,
        };
        // On the default stream, for which a stream in capture would have to wait, nothing is recorded.
        let may = handle != LEGACY || !session.captures.any();
        let record = |event: Option<usize>| {
            let recorded = calls::record_event(session.real, event, handle as CUstream);
            // One of a context that was there before, under the same handle.
            recorded.or_else(|_| calls::record_event(session.real, None, handle as CUstream)).ok()
        };
        let last = if may { record(stream.last) } else { None };
        let mark = if may && stream.marked.is_none() { record(stream.mark) } else { None };
        let mut state = lock(&self.state);
        state.giving -= 1;
        let known = state.streams.entry(name).or_insert(fresh);
        if known.context != context {
            *known = fresh;
        }
        known.given += 1;
        known.works = known.works.saturating_add(1);
        (known.last, known.done) = (last.or(known.last), last.is_none());
        if mark.is_some() && known.marked.is_none() {
            (known.mark, known.marked, known.works) = (mark, Some(Instant::now()), 0);
        }
    }

    /// Finds out how far the streams are; says whether anything that was given is not done.
    fn ask(&self, session: &Session) -> bool {
        let streams: Vec<(Name, Stream)> = {
            let mut state = lock(&self.state);
            let open = |stream: &Stream| !stream.done || stream.marked.is_some();
            let streams: Vec<_> = state.streams.iter().filter(|(_, s)| open(s)).map(|(n, s)| (*n, *s)).collect();
            state.asking = !streams.is_empty();
            streams
        };
        for (name, stream) in streams {
            let reached = |event: Option<usize>| {
                let asked = event.map(|event| {
                    // Any other answer is the context's end: nothing runs there any more.
                    calls::in_context(session.real, stream.context, || Ok(calls::query_event(session.real, event)))
                });
                asked.is_none_or(|answer| answer != Ok(CUresult::CUDA_ERROR_NOT_READY))
            };
            let marked = stream.marked.is_some() && reached(stream.mark);
            let done = stream.done || reached(stream.last);
            let mut state = lock(&self.state);
            if let Some(known) = state.streams.get_mut(&name) {
                if marked && let Some(since) = known.marked.take() {
                    let took = since.elapsed();
                    known.may_have = match () {
                        () if took > AHEAD => (known.may_have / 2).max(1),
                        () if took < AHEAD / 2 && known.works >= known.may_have => (known.may_have * 2).min(MOST_WORKS),
                        () => known.may_have,
                    };
                }
                // What was given meanwhile is asked for the next time.
                known.done |= done && known.given == stream.given;
            }
        }
        let mut state = lock(&self.state);
        state.asking = false;
        let busy = state.giving > 0 || state.streams.values().any(|stream| !stream.done);
        drop(state);
        self.opened.notify_all();
        busy
    }

    /// Contexts are about to be destroyed, and their events with them.
    pub fn contexts_going(&self, owners: &[Owner]) {
        let mut state = lock(&self.state);
        state.streams.retain(|_, stream| !owners.contains(&stream.context));
        while state.asking {
            state = self.opened.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The process ends: nothing is held, the driver is left alone. Returns when it is.
    fn stop(&self) {
        let mut state = lock(&self.state);
        state.stop = true;
        self.gate.store(NONE, Ordering::Relaxed);
        self.opened.notify_all();
        self.woken.notify_all();
        // Bounded, as the mover's.
        for _ in 0..1000 {
            if !state.asking {
                return;
            }
            state = self.opened.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Looks around once; gives how long to wait before the next time, and `None` when it is over.
    fn look(&self, session: &Session, ordinal: CUdevice, slice: &Slice, linger: &mut Duration) -> Option<Duration> {
        let device = session.device(ordinal)?;
        let in_turns = self.gate.load(Ordering::Relaxed) == TURNS;
        // A launch that is under way closes the question by itself.
        let seen = self.gate.compare_exchange(SEEN, UNSEEN, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        let busy = in_turns && self.ask(session);
        let (vram_bytes, ram_bytes) =
            device.arena.with_memory(|memory| (memory.budgets().vram.used_bytes(), memory.budgets().ram.used_bytes()));
        // What is kept to move chunks into is nothing to be brought; but all comes only to where some VRAM is left over.
        let ram_bytes = ram_bytes.saturating_sub(device.moves.spare_ram_bytes());
        let left_bytes = if ram_bytes > 0 { device.moves.left_vram_bytes(&device.arena) } else { 0 };
        let ram_bytes = ram_bytes + left_bytes;
        let (wants, held) = {
            let mut state = lock(&self.state);
            if state.stop {
                return None;
            }
            let now = slice.turn_micros();
            if std::mem::take(&mut state.worked) || seen {
                state.last_micros = Some(now);
            }
            let linger_micros = u64::try_from(linger.as_micros()).unwrap_or(u64::MAX);
            let lately = state.last_micros.is_some_and(|last| now.saturating_sub(last) < linger_micros);
            (state.waiting > 0 || state.giving > 0 || busy || lately, state.held)
        };
        let stepped = slice.take_step(&Standing { wants, busy, vram_bytes, ram_bytes, held })?;
        let free = stepped.gate == Gate::Free;
        *linger = match () {
            () if stepped.allotted_bytes != u64::MAX => LINGER_MEMORY,
            () if free => LINGER_FREE,
            () => LINGER,
        };
        if free == in_turns {
            log::debug(format_args!("turns are {}", if free { "not needed any more" } else { "taken from now on" }));
        }
        {
            let mut state = lock(&self.state);
            state.open = stepped.gate != Gate::Shut;
            if free && in_turns {
                self.gate.store(SEEN, Ordering::Relaxed);
            } else if !free && !state.stop {
                self.gate.store(TURNS, Ordering::Relaxed);
            }
        }
        self.opened.notify_all();
        if let Some(account) = device.slice(session) {
            device.allot(account, stepped.allotted_bytes, LEAST_BYTES);
        }
        Some(if free || !wants { LOOK_FREE } else { LOOK })
    }

    fn run(&self, session: &Session, ordinal: CUdevice, slice: &Slice) {
        let mut linger = LINGER_FREE;
        while let Some(pause) = self.look(session, ordinal, slice, &mut linger) {
            let state = lock(&self.state);
            // Held threads have said so already if they came since.
            let pause = if state.waiting > 0 { LOOK.min(pause) } else { pause };
            if !state.stop {
                drop(self.woken.wait_timeout(state, pause));
            }
        }
    }
}

/// Starts the thread that looks around.
///
/// # Errors
/// The system's own.
pub(crate) fn follow(session: &Session, ordinal: CUdevice, slice: &'static Slice) -> std::io::Result<()> {
    if !slice.takes_turns() {
        return Ok(());
    }
    // Under a cap nothing passes that was not asked for.
    session.turns.gate.store(UNSEEN, Ordering::Relaxed);
    thread::spawn("emuv-turns", move || {
        let Some(session) = session::current() else { return };
        // Asking an event is nothing to a capture of the program's.
        let _ = moves::settle_thread(session.real, None);
        let turns = &session.turns;
        let run = std::panic::AssertUnwindSafe(|| turns.run(session, ordinal, slice));
        if std::panic::catch_unwind(run).is_err() {
            session.degrade("taking turns");
            turns.stop();
        }
    })?;
    thread::at_exit(|| {
        if let Some(session) = session::current() {
            session.turns.stop();
        }
    });
    Ok(())
}
