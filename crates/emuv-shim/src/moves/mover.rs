//! The thread that moves chunks of one device. It asks the state machine what to do, copies on streams of its own,
//! replaces mappings when a copy is over, and finds out how far the program's streams are. It waits for the GPU
//! only to search all memory for pointers, and is in nobody's way: when it dies or the driver fails, everything stays
//! where it is and the program goes on.

mod link;
mod searches;
mod transfers;

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use emuv_cuda::{CUresult, CuError, CuResult, Handle, types::CUdevice};
use emuv_policy::{MoveRoom, Owner, Sight, Step, Tier, Why};
use emuv_state::HostMemory;

use super::{
    copies::{self, Copies, UnderWay},
    figure::Figure,
    hasher::Hasher,
    outgoing::Outgoing,
    record::Recording,
};
use crate::{
    arena::lock,
    calls,
    contents::Hash,
    device::Device,
    leases::Wants,
    log,
    session::Session,
    sync::{Instant, PoisonError, atomic::Ordering, sleep},
    thread,
};

/// Between two looks at copies and fences while the program waits for them.
const POLL: Duration = Duration::from_micros(20);

/// The same while it does not: each look takes the driver's lock, for which its launches then wait.
const POLL_BESIDE: Duration = Duration::from_micros(100);

/// The same while the engine that copies out is used: a piece takes twice as long.
const POLL_PIECES: Duration = Duration::from_micros(40);

/// Between two looks at fences when nothing waits for them.
const POLL_IDLE: Duration = Duration::from_micros(500);

/// Between two looks at what could be had of the slice, and while slices exchange memory: at the link's speed they do some
/// fifty megabytes in a millisecond.
const LOOK_AT_SLICE: Duration = Duration::from_millis(10);
const LOOK_IN_TURNS: Duration = Duration::from_millis(1);

/// How long to wait for an order when there is nothing to look at.
const SLEEP: Duration = Duration::from_secs(1);

/// Steps between two looks at copies and fences.
const STEPS: u32 = 16;

/// How long the end of the process waits for the mover.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// How often to try to map again what the driver would not map.
const REMAP_ATTEMPTS: u32 = 1000;

/// A chunk on its way.
#[derive(Debug, Clone, Copy)]
struct Job {
    offset: u64,
    bytes: u64,
    to: Tier,
    /// What it is moving into.
    handle: Handle,
    /// Its bytes are copied.
    copy: bool,
    /// Whether it is mapped there.
    map: bool,
    why: Why,
    /// Of its bytes, if it was taken.
    hash: Option<Hash>,
}

/// What the state machine wants.
#[derive(Debug, Clone, Copy)]
struct Move {
    offset: u64,
    bytes: u64,
    to: Tier,
    copy: bool,
    map: bool,
    why: Why,
}

/// What was seen when `changes` were made.
struct Seen {
    changes: u64,
    waited_for: bool,
    searching: bool,
    sight: Sight,
}

struct Mover {
    session: &'static Session,
    device: &'static Device,
    /// The context whose streams are used, and what was made in it.
    context: Option<Owner>,
    /// How many contexts had been lost when `copies` were made.
    losses: u64,
    copies: Option<Copies>,
    prepared: bool,
    /// The link's speed is known, or could not be measured though there was memory for it.
    link_is_settled: bool,
    quiesced: bool,
    into_vram: UnderWay<Job>,
    into_ram: Outgoing<Job>,
    /// Chunks that are to go, unless RAM has their bytes already, and the hasher's name of each.
    hashed: UnderWay<(Move, usize)>,
    hasher: Option<Hasher>,
    /// What is to be mapped, and then copied to VRAM, once the engine that copies out is quiet.
    coming: VecDeque<Job>,
    /// What is to be mapped once that engine is quiet.
    arrived: VecDeque<Job>,
    recording: Recording,
    figure: Figure,
    /// When fences were last recorded.
    learned: Instant,
    /// The context would not give any streams.
    without_streams: bool,
    /// When the slice was last looked at.
    looked: Instant,
    seen: Option<Seen>,
    /// There was nothing to do with that room when so many changes had been made, and when that was.
    rested: Option<(MoveRoom, u64, Instant)>,
}

/// Starts the thread.
pub(super) fn start(session: &'static Session, ordinal: CUdevice) -> io::Result<()> {
    thread::spawn("emuv-mover", move || {
        let Some(device) = session.device(ordinal) else { return };
        let mut mover = Mover {
            session,
            device,
            context: None,
            losses: 0,
            copies: None,
            prepared: false,
            link_is_settled: false,
            quiesced: false,
            into_vram: UnderWay::new(),
            into_ram: Outgoing::new(),
            hashed: UnderWay::new(),
            hasher: None,
            coming: VecDeque::new(),
            arrived: VecDeque::new(),
            recording: Recording::open(session.trace.as_deref(), ordinal),
            figure: Figure::new(session.policy),
            learned: Instant::now(),
            without_streams: false,
            looked: Instant::now(),
            seen: None,
            rested: None,
        };
        if catch_unwind(AssertUnwindSafe(|| mover.run())).is_err() {
            session.degrade("moving data");
        }
        mover.recording.write(&device.arena, true);
        mover.figure.finish(session, device);
        mover.end();
    })?;
    // Not by the new thread: the process may end before that has run for the first time.
    if let Some(device) = session.device(ordinal) {
        thread::at_exit(|| device.moves.stop());
    }
    Ok(())
}

impl super::Moves {
    /// The process ends: the mover stops at the next opportunity; returns when it has.
    fn stop(&self) {
        let mut state = lock(&self.state);
        state.stop = true;
        self.woken.store(true, Ordering::SeqCst);
        self.wake.notify_all();
        let began = Instant::now();
        // Bounded: a driver call that never returns must not keep the process from ending. By time: others are told by the same signal.
        while !state.still && began.elapsed() < LAST_WAIT {
            let waited = self.wake.wait_timeout(state, Duration::from_millis(10));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Mover {
    fn run(&mut self) {
        let mut wait = Some(POLL);
        while self.orders(wait) {
            let mut busy = self.finish_copies();
            let (reached, awaited) = self.device.moves.lanes.poll(self.session.real, &self.device.arena);
            busy |= reached;
            if reached {
                self.device.arena.settled.notify_all();
            }
            if self.ready() && !self.keeps_link_quiet() {
                busy |= self.take_steps();
            }
            self.recording.write(&self.device.arena, false);
            let copying = self.is_moving();
            let (waited_for, searching) = self.look();
            if let Some(counters) = self.session.counters(self.device.ordinal) {
                self.device.timeline.sample_if_due(self.session.began, counters);
            }
            wait = match () {
                () if busy || !self.arrived.is_empty() => None,
                () if self.is_to_map() => Some(POLL),
                () if !self.quiesced || waited_for => Some(POLL),
                () if !self.into_ram.is_quiet() => Some(POLL_PIECES),
                () if copying => Some(POLL_BESIDE),
                () if awaited || searching => Some(POLL_IDLE),
                () => Some(SLEEP),
            };
        }
    }

    /// Says whether works are held, and whether searches are awaited; and tells the live figure what there is to see.
    fn look(&mut self) -> (bool, bool) {
        let arena = &self.device.arena;
        if self.seen.as_ref().is_none_or(|seen| seen.changes != arena.changes()) {
            let residency = arena.residency_as_it_is();
            self.seen = Some(Seen {
                changes: arena.changes(),
                waited_for: residency.is_waited_for(),
                searching: residency.awaits_findings() || residency.is_unsearched(),
                sight: residency.sight(),
            });
        }
        let Some(seen) = &self.seen else { return (true, true) };
        self.figure.look(self.session, self.device, &seen.sight);
        (seen.waited_for, seen.searching)
    }

    /// Waits for at most `wait`, keeps still as long as somebody wants that. False: it is over.
    fn orders(&mut self, wait: Option<Duration>) -> bool {
        let moves = &self.device.moves;
        if let Some(wait) = wait.filter(|wait| *wait < SLEEP) {
            sleep(wait);
        }
        let mut state = lock(&moves.state);
        if wait == Some(SLEEP) {
            moves.asleep.store(true, Ordering::SeqCst);
            if !moves.woken.load(Ordering::SeqCst) {
                state = moves.wake.wait_timeout(state, SLEEP).unwrap_or_else(PoisonError::into_inner).0;
            }
            moves.asleep.store(false, Ordering::SeqCst);
        }
        // What it was woken for is seen from here on.
        moves.woken.swap(false, Ordering::SeqCst);
        if state.pauses > 0 && !state.stop {
            drop(state);
            self.come_to_rest();
            state = lock(&moves.state);
            state.still = true;
            moves.wake.notify_all();
            while state.pauses > 0 && !state.stop {
                state = moves.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.still = false;
        }
        let (context, losses, stop) = (state.context, state.losses, state.stop);
        drop(state);
        if losses != self.losses {
            // What was made in the old context went with it, and is not to be touched even if this is the end.
            self.losses = losses;
            (self.copies, self.hasher) = (None, None);
        }
        if stop {
            return false;
        }
        if context != self.context {
            self.context = context;
            if copies::settle_thread(self.session.real, context).is_err() {
                self.context = None;
            }
        }
        true
    }

    /// Whether moves can be made: there is a context, and nothing is left from before works were tracked.
    fn ready(&mut self) -> bool {
        let (real, arena) = (self.session.real, &self.device.arena);
        if self.context.is_none() {
            return false;
        }
        if self.copies.is_none() {
            match Copies::new(real) {
                Ok(copies) => {
                    (self.copies, self.without_streams) = (Some(copies), false);
                    // Without it every chunk is copied.
                    self.hasher = Hasher::new(real)
                        .inspect_err(|error| log::debug(format_args!("what goes is not compared: {error}")))
                        .ok();
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.without_streams, true) {
                        log::debug(format_args!("no streams to move data with: {error}"));
                        // A context that is being destroyed has none; any other that has none now will have none later.
                        if !is_destroyed(error) {
                            self.give_up();
                        }
                    }
                    return false;
                }
            }
        }
        if !self.quiesced {
            self.prepare();
        }
        if !self.quiesced && !self.session.captures.any() && super::nobody_entering() {
            self.quiesced = self.device.contexts().into_iter().all(|context| calls::synchronize(real, context).is_ok())
                && self.session.peers.wait_for_readers(self.session, self.device.ordinal);
            if self.quiesced {
                arena.residency().quiesced();
            }
        }
        self.quiesced
    }

    /// Loads what will be needed, and measures the link. What fails here fails again where it matters.
    fn prepare(&mut self) {
        let (real, arena) = (self.session.real, &self.device.arena);
        if std::mem::replace(&mut self.prepared, true) {
            return;
        }
        if let Some(context) = self.context {
            let _ = self.device.moves.searcher.prepare(real, context, (arena.base(), arena.bytes()));
        }
        self.measure_first();
    }

    /// Does what the state machine says, as far as it goes now. Says whether it did anything.
    fn take_steps(&mut self) -> bool {
        let arena = &self.device.arena;
        let (mut any, excess) = self.shrink();
        let pause = if self.device.goes_by_turns() { LOOK_IN_TURNS } else { LOOK_AT_SLICE };
        if self.looked.elapsed() >= pause {
            self.device.look_at_slice(self.session);
            self.looked = Instant::now();
        }
        // Bounded, so that copies that end meanwhile are not kept waiting.
        for _ in 0..STEPS {
            let spares = &self.device.moves.spares;
            let over_limit = self.device.vram_excess_bytes();
            let room = MoveRoom {
                vram_bytes: if over_limit == 0 { spares.room_bytes(arena, Tier::Vram) } else { 0 },
                ram_bytes: spares.room_bytes(arena, Tier::Ram),
                vram_coming_bytes: self.coming_bytes(),
                vram_excess_bytes: over_limit.max(excess),
            };
            if self.rested.is_some_and(|(with, changes, when)| {
                with == room && changes == arena.changes() && when.elapsed() < POLL_IDLE
            }) {
                break;
            }
            let (step, changes) = {
                let mut residency = arena.residency();
                (residency.next_step(room), arena.changes())
            };
            self.rested = (step == Step::Rest).then(|| (room, changes, Instant::now()));
            match step {
                Step::Show { offset, bytes } => self.show(offset, bytes),
                Step::Move { offset, bytes, to, copy, map, why } => {
                    if !self.begin_move(Move { offset, bytes, to, copy, map, why }) {
                        self.settle(offset, false);
                        break;
                    }
                }
                Step::Search(ranges) => {
                    if !self.search_all(&ranges) {
                        break;
                    }
                }
                Step::Collect => self.collect(),
                Step::Learn(streams) => {
                    if arena.residency().is_waited_for() || self.learned.elapsed() >= POLL_BESIDE {
                        self.learned = Instant::now();
                        self.device.moves.lanes.fence_all(self.session.real, arena, &streams);
                    }
                    break;
                }
                Step::Rest => break,
            }
            any = true;
        }
        if arena.residency_as_it_is().is_hopeless() {
            arena.settled.notify_all();
        }
        any
    }

    /// Memory to move into ([`Spares::take`]), got from the slice if need be.
    fn spare(
        &self,
        tier: Tier,
        bytes: u64,
        offset: Option<u64>,
        may_make: impl Fn() -> bool,
    ) -> CuResult<Option<Handle>> {
        let (device, spares) = (self.device, &self.device.moves.spares);
        let wants = if spares.has(tier, bytes) { Wants::Nothing } else { Wants::All(tier, bytes) };
        let lease = device.lease(self.session, wants);
        let taken = spares.take(&device.arena, tier, bytes, offset, may_make);
        device.end_lease(lease);
        device.settle_slice(self.session);
        taken
    }

    /// Gives spares in VRAM back, as far as there is to be less. Says whether there were any, and how much chunks are to give up.
    fn shrink(&self) -> (bool, u64) {
        let (arena, spares) = (&self.device.arena, &self.device.moves.spares);
        // Small allocations do not move, so they find room at once; what they took is made free again.
        let excess = || match self.device.vram_excess_bytes() {
            0 if self.session.moves() && !self.device.goes_by_turns() => spares.taken_by_small_bytes(arena),
            excess => excess,
        };
        let before = excess();
        let given = if before == 0 { 0 } else { spares.give_back_of(arena, Tier::Vram, before) };
        if given > 0 {
            self.device.publish(self.session);
        }
        (given > 0, if given > 0 { excess() } else { before })
    }

    /// Maps a chunk that was sent away without a mapping; something waits for it.
    fn show(&mut self, offset: u64, bytes: u64) {
        let shown = self.device.arena.show(offset, bytes);
        self.settle(offset, shown.is_ok());
        if let Err(error) = shown {
            self.fail("a mapping", error);
        }
    }

    fn settle(&self, offset: u64, moved: bool) {
        self.device.arena.residency().finish(offset, moved);
        // What does not move is nothing to wait for.
        self.device.moves.ended.fetch_add(u64::from(moved), Ordering::AcqRel);
        self.device.arena.settled.notify_all();
    }

    /// Something went wrong. Want of memory passes; anything else ends all moving.
    fn fail(&mut self, what: &str, error: CuError) {
        log::debug(format_args!("{what}: {error}"));
        if !error.is_out_of_memory() {
            log::error(format_args!("{what} failed ({error}); from now on data stays where it is"));
            self.give_up();
        }
    }

    /// Nothing moves any more, and nothing waits for a move.
    fn give_up(&mut self) {
        let arena = &self.device.arena;
        if let Some(copies) = &self.copies {
            // From here on what they copy from and into may be given back.
            copies.wait(self.session.real);
        }
        if let Some(hasher) = &self.hasher {
            hasher.wait(self.session.real);
        }
        self.hashed.drain().for_each(drop);
        for job in self
            .into_vram
            .drain()
            .chain(self.into_ram.drain())
            .chain(self.coming.drain(..))
            .chain(self.arrived.drain(..))
        {
            self.device.moves.spares.put(job.to, job.bytes, job.handle);
        }
        arena.residency().stop();
        // By its steps: what is being mapped here is not given back meanwhile.
        let none = MoveRoom { vram_bytes: 0, ram_bytes: 0, vram_coming_bytes: 0, vram_excess_bytes: 0 };
        loop {
            let step = arena.residency().next_step(none);
            let Step::Show { offset, bytes } = step else { break };
            insist(|error| error.is_out_of_memory(), || arena.show(offset, bytes));
            // What cannot be mapped is nothing to wait for.
            arena.residency().finish(offset, true);
            arena.settled.notify_all();
        }
        arena.residency().everything_mapped();
        arena.settled.notify_all();
    }

    /// The thread ends.
    fn end(&mut self) {
        self.give_up();
        let moves = &self.device.moves;
        if lock(&moves.state).stop {
            self.device.publish_the_last(self.session);
        }
        // Not before: who finds it still takes its memory.
        lock(&moves.state).still = true;
        moves.wake.notify_all();
    }
}

/// Maps memory again, over and over as long as the driver's answer `may_pass`.
fn insist(may_pass: impl Fn(CuError) -> bool, map: impl Fn() -> CuResult) {
    for attempt in 1..=REMAP_ATTEMPTS {
        match map() {
            Ok(()) => return,
            Err(error) if attempt == REMAP_ATTEMPTS || !may_pass(error) => {
                log::error(format_args!("memory could not be mapped again: {error}"));
                return;
            }
            Err(_) => sleep(POLL_IDLE),
        }
    }
}

fn is_destroyed(error: CuError) -> bool {
    [CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED, CUresult::CUDA_ERROR_INVALID_CONTEXT].contains(&error.code())
}

/// Whether the host can spare `bytes` more.
fn host_has(session: &Session, bytes: u64) -> bool {
    HostMemory::read().is_none_or(|host| host.available.0.saturating_sub(session.limits.ram_floor.0) >= bytes)
}
