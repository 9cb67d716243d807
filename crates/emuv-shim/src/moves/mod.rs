//! Moving chunks between the tiers while the program runs: the seam between the program's calls, the state
//! machine that says what may move (`emuv_policy::Residency`) and the thread that moves it (`mover.rs`).
//!
//! Every call that gives the GPU work passes [`around`]: it is held while something that it may touch moves, and
//! remembered until a fence behind it is reached. The threads of the program and the mover meet in two locks, the
//! residency's and this module's; neither is held across a driver call, and none is taken inside the other.
//!
//! Nothing of this happens before the first chunk lies in RAM: until then a call costs one look at a flag.

mod at_hand;
mod copies;
mod figure;
mod follow;
mod hasher;
mod lanes;
mod mover;
mod outgoing;
mod overhead;
mod pins;
mod record;
mod search;
mod spares;
mod tables;
pub(crate) mod verify;

use std::time::Duration;

use emuv_cuda::{
    CUresult, CuResult,
    types::{CUdevice, CUstream},
};
use emuv_policy::{Begin, Begun, Owner, Policy, Work};
use smallvec::SmallVec;

use crate::{
    arena::{Arena, lock},
    calls,
    device::Device,
    session::{self, Session},
    streams::{self, Name},
    sync::{
        Condvar, Instant, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    touch::Touch,
    turns,
};

pub(crate) use at_hand::{at_hand, in_vram, is_in_vram};
pub(crate) use copies::settle_thread;
use follow::{brought, search_for, searching};
use lanes::{Lane, Lanes};
use overhead::{Clock, Overhead};
pub(crate) use pins::pinned;
use search::Searcher;
use spares::Spares;
use tables::Tables;
use verify::What;

/// A held work asks again after this long at the latest, whether or not it was told to.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// A work that waits for data to come to VRAM goes on without it when for so long nothing has moved: what the GPU
/// is doing may itself be waiting for the thread that is held here.
const PATIENCE: Duration = Duration::from_millis(100);

/// See the module's head. One per device.
#[derive(Default)]
pub(crate) struct Moves {
    /// Calls are tracked and chunks may move.
    active: AtomicBool,
    state: Mutex<State>,
    /// The mover has something to do, or has come to rest.
    wake: Condvar,
    /// It has been woken, and it waits for that: of the two who set one and look at the other, one sees it.
    woken: AtomicBool,
    asleep: AtomicBool,
    lanes: Lanes,
    spares: Spares,
    searcher: Searcher,
    tables: Tables,
    /// Moves that have ended.
    ended: AtomicU64,
    /// What tracking takes the program's host.
    overhead: Overhead,
}

/// How many moves had ended when the last one was seen to, when that was, and for how long since then nothing could be expected to.
struct Stillness {
    ended: u64,
    since: Instant,
    apart: Duration,
}

#[derive(Debug, Default)]
struct State {
    started: bool,
    stop: bool,
    /// The context whose streams the mover uses, and its device.
    context: Option<Owner>,
    device: CUdevice,
    /// Contexts that the mover's streams were in and that are gone.
    losses: u64,
    /// Who wants the mover to keep still, and whether it does.
    pauses: u32,
    still: bool,
}

/// Whether anything may move now. If not, work need not be looked at.
pub(crate) fn active(session: &Session) -> bool {
    session.devices().any(|device| device.moves.is_active())
}

/// Calls that were under way, untracked, when tracking began: they are counted while they last, spread over cells
/// so that threads do not meet.
static ENTERING: [Cell; 16] = [const { Cell(AtomicU64::new(0)) }; 16];

/// A counter with a cache line of its own.
#[repr(align(64))]
struct Cell(AtomicU64);

/// Makes a call that gives the GPU work, when it is this process's turn. `touch` is only asked for, and the work only
/// tracked, once something may move.
pub(crate) fn launch(
    session: &Session,
    stream: CUstream,
    per_thread: bool,
    touch: impl FnOnce() -> Touch,
    call: impl FnOnce() -> CUresult,
) -> CUresult {
    turns::around(session, stream, per_thread, || launch_now(session, stream, per_thread, touch, call))
}

fn launch_now(
    session: &Session,
    stream: CUstream,
    per_thread: bool,
    touch: impl FnOnce() -> Touch,
    call: impl FnOnce() -> CUresult,
) -> CUresult {
    if let Some(verify) = &session.verify {
        return verify.around(session, (stream, per_thread), What::Copy, touch, call);
    }
    // Once tracking is on it stays on; only before that is it counted who is on the way without.
    if !active(session) {
        let cell = &ENTERING[usize::try_from(streams::thread_number() % 16).unwrap_or(0)].0;
        cell.fetch_add(1, Ordering::SeqCst);
        if !active(session) {
            let result = call();
            cell.fetch_sub(1, Ordering::Release);
            return result;
        }
        cell.fetch_sub(1, Ordering::Release);
    }
    let clock = Clock::start();
    around(session, stream, per_thread, clock, &touch(), call)
}

/// Whether no untracked call is under way. Once tracking is on, a moment at which this is so is behind all of them.
fn nobody_entering() -> bool {
    ENTERING.iter().all(|cell| cell.0.load(Ordering::SeqCst) == 0)
}

/// Makes a call that gives the GPU work: waits until what it touches is in place, calls, and remembers until
/// when the work may touch it.
fn around(
    session: &Session,
    stream: CUstream,
    per_thread: bool,
    mut clock: Clock,
    touch: &Touch,
    call: impl FnOnce() -> CUresult,
) -> CUresult {
    if session.has_others()
        && let Ok(context) = calls::stream_context(session.real, stream).map(calls::owner)
        && calls::current_context(session.real).map(calls::owner) != Ok(context)
    {
        // A copy on a stream of another context: it is that one's work.
        let there = || around(session, stream, per_thread, clock, touch, call).ok();
        return calls::in_context(session.real, context, there).into();
    }
    let Some((context, here)) = session.whereabouts_on(stream) else { return call() };
    if session.captures.any() && calls::is_capturing(session.real, stream, per_thread) {
        // It becomes part of a graph and gives the GPU no work now. Kernels' arguments the driver does not look at.
        let copied: Vec<u64> = if touch.maker == 0 { touch.addresses().collect() } else { Vec::new() };
        return at_hand(session, &copied, call);
    }
    brought(session, touch);
    let name = Name::of(stream, per_thread, context);
    let mut entered: SmallVec<[(&Device, Lane, Begun); 1]> = SmallVec::new();
    for device in session.devices().filter(|device| device.moves.is_active() && concerns(session, here, device, touch))
    {
        if device.ordinal != here && session.peers.may_touch(here, device.ordinal) {
            // What it may touch elsewhere is known only if it is known what points where on this device.
            session.device(here).inspect(|device| device.moves.begin(session, here));
        }
        let lane = device.moves.lanes.of(name, context);
        let begun = device.moves.enter(session, device, lane, touch, &mut clock);
        entered.push((device, lane, begun));
    }
    for (device, lane, _) in entered.iter().filter(|(.., begun)| begun.search) {
        clock.forget();
        device.moves.search_before(session, device, here, (context, *lane), touch);
    }
    let timed = timed_for(here, &entered);
    let before = timed.and_then(|_| calls::timed_event(session.real, stream, per_thread).ok());
    let result = clock.without(call);
    let after = before.and_then(|_| calls::timed_event(session.real, stream, per_thread).ok());
    // All searches before the first fence: each may read memory of all devices.
    for (device, lane, begun) in entered.iter().filter(|(.., begun)| begun.search) {
        let search = search_for(session, device, here, &entered, touch);
        device.moves.search_behind(session, device, (context, *lane), touch.maker, search);
        device.moves.tables.watch(begun.work(), &touch.tables);
    }
    let first = entered.first().map(|(device, ..)| *device);
    for (device, lane, begun) in entered {
        let unfenced = device.arena.residency().issued(&begun);
        if begun.measure {
            // The events are that device's alone from now on.
            let sampled = match (before, after) {
                (Some(before), Some(after)) if timed == Some(device.ordinal) => {
                    device.moves.lanes.sample(touch.kind, begun.ram_bytes, context, before, after)
                }
                _ => false,
            };
            if !sampled {
                device.arena.residency().unmeasured(touch.kind);
                // Works of its kind may be held until it is known.
                device.arena.settled.notify_all();
            }
        }
        if begun.measure || begun.search {
            device.moves.wake_mover();
        }
        device.moves.lanes.issued(session.real, &device.arena, lane, unfenced, touch.everything);
        device.moves.nudge();
    }
    if let Some(device) = first {
        clock.stop(&device.moves.overhead);
    }
    result
}

/// Whether a work on device `here` may touch memory of `device`.
fn concerns(session: &Session, here: CUdevice, device: &Device, touch: &Touch) -> bool {
    // A graph may have nodes on several devices; a copy names what it touches, wherever that is.
    session.peers.may_touch(here, device.ordinal)
        || !touch.only_here
            && (touch.everything || touch.maker != 0 || touch.addresses().any(|address| device.arena.contains(address)))
}

/// Works that have been let through and are told to the devices that they concern.
type Entered<'s> = [(&'s Device, Lane, Begun)];

/// The device that learns from how long a work on device `here` takes, if any is to: the one that has most of what it reads in
/// place, or else its own. For the others that time tells nothing.
fn timed_for(here: CUdevice, entered: &Entered<'_>) -> Option<CUdevice> {
    let most = entered.iter().max_by_key(|(device, _, begun)| (begun.ram_bytes, device.ordinal == here))?;
    most.2.measure.then_some(most.0.ordinal)
}

/// Pointers into the allocation that `address` lies in are kept where emuV does not see them (a texture object,
/// say): from now on it moves only when the device is idle.
pub(crate) fn escaped(session: &Session, address: u64) {
    if let Some(device) = session.device_at(address) {
        device.arena.residency().escape(address - device.arena.base());
    }
}

/// A call that is no work is about to use memory by its address: all of it is mapped then.
pub(crate) fn in_reach(session: &Session) {
    if let Some(verify) = &session.verify {
        verify.show_all(session);
    }
}

/// Takes code away: the globals of `module` are not searched any more, and nothing is while `call` runs.
pub(crate) fn code_going(session: &Session, module: usize, call: impl FnOnce() -> CUresult) -> CUresult {
    let devices: Vec<&Device> = session.devices().filter(|device| device.moves.is_active()).collect();
    devices.iter().for_each(|device| device.moves.contexts_going(&[]));
    if session.globals.forget_module(module) {
        // A search through them may still be on its way behind some work.
        for device in &devices {
            for context in device.contexts() {
                let _ = calls::synchronize(session.real, context);
            }
        }
    }
    let result = call();
    devices.iter().for_each(|device| device.moves.contexts_settled(session));
    result
}

/// The program is about to destroy a stream: works on it are remembered until they are done, its handle is not
/// used any more.
pub(crate) fn stream_going(session: &Session, stream: CUstream) {
    let Some((context, _)) = session.here() else { return };
    for device in session.devices().filter(|device| device.moves.is_active()) {
        device.moves.lanes.going(session.real, &device.arena, Name::of(stream, false, context));
    }
}

/// The program is about to begin a capture: until [`capture_begun`] has been told nothing is recorded on any of
/// its streams from another thread.
pub(crate) fn capture_beginning(session: &Session) {
    session.devices().for_each(|device| device.moves.lanes.forbid());
}

/// The capture that was announced has begun, or has failed.
pub(crate) fn capture_begun(session: &Session) {
    session.devices().for_each(|device| device.moves.lanes.allow());
}

/// Where those of the addresses that lie in an arena lie there.
fn offsets(arena: &Arena, addresses: impl Iterator<Item = u64>) -> Vec<u64> {
    addresses.filter(|address| arena.contains(*address)).map(|address| address - arena.base()).collect()
}

/// A context of the device.
fn context_of(session: &Session, ordinal: CUdevice) -> Option<Owner> {
    session.devices().find(|device| device.ordinal == ordinal)?.a_context()
}

impl Moves {
    /// Whether calls are tracked and chunks may move.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// A call that gives the GPU no work; what it takes is emuV's, and counts while calls are tracked.
    pub fn timed<T>(&self, call: impl FnOnce() -> T) -> T {
        if !self.is_active() {
            return call();
        }
        let clock = Clock::start();
        let result = call();
        clock.stop(&self.overhead);
        result
    }

    /// From now on calls are tracked; the mover is started for the device if it does not run yet.
    pub fn begin(&self, session: &Session, ordinal: CUdevice) {
        if session.policy != Policy::Static {
            self.begin_anyway(ordinal);
        }
    }

    fn begin_anyway(&self, ordinal: CUdevice) {
        if !self.is_active()
            && let Some(session) = session::current()
        {
            self.begin_in(ordinal, context_of(session, ordinal));
        }
    }

    /// The same, in a context that need not be current; nothing begins without one.
    pub fn begin_in(&self, ordinal: CUdevice, context: Option<Owner>) {
        let Some(session) = session::current().filter(|_| !self.is_active() && context.is_some()) else { return };
        let mut state = lock(&self.state);
        if std::mem::replace(&mut state.started, true) {
            return;
        }
        (state.context, state.device) = (context, ordinal);
        drop(state);
        self.active.store(true, Ordering::Release);
        if let Err(error) = mover::start(session, ordinal) {
            crate::log::error(format_args!("no thread to move data with ({error}); it stays where it is"));
            self.active.store(false, Ordering::Release);
        }
    }

    fn enter(&self, session: &Session, device: &Device, lane: Lane, touch: &Touch, clock: &mut Clock) -> Begun {
        let arena = &device.arena;
        let in_arena = touch.addresses().filter(|address| arena.contains(*address));
        let offsets: SmallVec<[u64; 16]> = in_arena.map(|address| address - arena.base()).collect();
        let mut work = Work {
            stream: lane.stream,
            offsets: &offsets,
            everything: touch.everything,
            may_store_pointers: touch.may_store_pointers,
            may_bring_pointers: touch.may_bring_pointers,
            maker: touch.maker,
            kind: touch.kind,
            patient: true,
        };
        let begin = {
            let mut residency = arena.residency();
            if !touch.tables.is_empty() && touch.maker != 0 {
                residency.doubted(&[touch.maker]);
            }
            residency.begin(&work, None)
        };
        let held = match begin {
            Begin::Go(begun) => return begun,
            Begin::Hold(id) => id,
        };
        clock.forget();
        let (start, mut stillness) = (Instant::now(), self.stillness());
        // What the work waits for may itself wait for this thread's fence.
        self.lanes.mark_now(arena, lane);
        let begun = loop {
            self.wake_mover();
            work.patient &= self.still_for(&mut stillness) < PATIENCE;
            // Looked at again before sleeping: it may have settled in between.
            let mut residency = arena.residency();
            if !work.patient {
                residency.search_later();
            }
            match residency.begin(&work, Some(held)) {
                Begin::Go(begun) => break begun,
                Begin::Hold(_) => drop(arena.settled.wait_timeout(residency, ASK_AGAIN)),
            }
        };
        if let Some(counters) = session.counters(device.ordinal) {
            let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
            counters.held.fetch_add(1, Ordering::Relaxed);
            counters.held_micros.fetch_add(micros, Ordering::Relaxed);
        }
        begun
    }

    /// From now on it is looked whether anything moves.
    fn stillness(&self) -> Stillness {
        Stillness { ended: self.ended.load(Ordering::Acquire), since: Instant::now(), apart: Duration::ZERO }
    }

    /// How long no move has ended.
    fn still_for(&self, stillness: &mut Stillness) -> Duration {
        if self.ended.load(Ordering::Acquire) != stillness.ended {
            *stillness = self.stillness();
        }
        stillness.since.elapsed().saturating_sub(stillness.apart)
    }

    /// The mover has something to do.
    pub fn wake_mover(&self) {
        self.woken.store(true, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            // Until this is had it may not wait yet.
            drop(lock(&self.state));
            self.wake.notify_all();
        }
    }

    /// Wakes the mover now and then, so that it looks ahead.
    fn nudge(&self) {
        if self.lanes.nudges() {
            self.wake_mover();
        }
    }

    /// Waits for all work of a context, and remembers that it is done.
    ///
    /// # Errors
    /// What the waiting gave.
    pub fn synchronize(&self, session: &Session, arena: &Arena, context: Owner) -> CuResult {
        let issued = if self.is_active() { self.lanes.issued_in(arena, context) } else { Vec::new() };
        calls::synchronize(session.real, context)?;
        if !issued.is_empty() {
            let mut residency = arena.residency();
            issued.iter().for_each(|(stream, number)| residency.completed(*stream, *number));
            drop(residency);
            arena.settled.notify_all();
        }
        Ok(())
    }

    /// Waits for all contexts of the device. What is wrong with one is told to whoever uses it.
    fn wait_for_gpu(&self, session: &Session, device: &Device) {
        for context in device.contexts() {
            let _ = self.synchronize(session, &device.arena, context);
        }
    }

    /// Bytes that are charged to the budgets but would be given back if the program asked for them.
    pub fn spare_bytes(&self) -> u64 {
        if self.is_active() { self.spares.bytes() } else { 0 }
    }

    /// Bytes of RAM that are charged to its budget and hold nothing.
    pub fn spare_ram_bytes(&self) -> u64 {
        self.spares.ram_bytes()
    }

    /// Bytes of VRAM that no chunk is brought into.
    pub fn left_vram_bytes(&self, arena: &Arena) -> u64 {
        self.spares.left_vram_bytes(arena)
    }

    /// Gives memory that is kept to move chunks into back to the budgets, and keeps the mover from taking it again
    /// while `attempt` runs.
    pub fn without_spares<T>(&self, session: &Session, arena: &Arena, attempt: impl FnOnce() -> T) -> T {
        self.contexts_going(&[]);
        self.spares.give_back(arena, u64::MAX);
        let result = attempt();
        self.contexts_settled(session);
        result
    }

    /// Contexts are about to be destroyed: the mover keeps still and forgets them.
    pub fn contexts_going(&self, owners: &[Owner]) {
        if !self.is_active() {
            return;
        }
        let mut state = lock(&self.state);
        state.pauses += 1;
        self.woken.store(true, Ordering::SeqCst);
        self.wake.notify_all();
        while state.started && !state.still && !state.stop {
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.context.is_some_and(|context| owners.contains(&context)) {
            state.context = None;
            state.losses += 1;
        }
    }

    /// They are gone, or the attempt is over; `owners` that are gone take their streams with them.
    pub fn contexts_gone(&self, device: &Device, owners: &[Owner]) {
        self.searcher.forget(owners);
        for stream in self.lanes.contexts_gone(owners) {
            device.arena.residency().stream_gone(stream);
        }
    }

    /// The attempt that [`Self::contexts_going`] was told of is over.
    pub fn contexts_settled(&self, session: &Session) {
        if !self.is_active() {
            return;
        }
        let mut state = lock(&self.state);
        state.pauses = state.pauses.saturating_sub(1);
        // Until the last one is through, a context that is known may be one that is going.
        if state.pauses == 0 && state.context.is_none() {
            state.context = context_of(session, state.device);
        }
        self.woken.store(true, Ordering::SeqCst);
        self.wake.notify_all();
    }
}
