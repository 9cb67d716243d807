//! The executor of [`StreamPools`]: stream-ordered allocation over the arena, so that it spills like any
//! other. A hit takes no driver call beyond finding out whose it is; fences are recorded only when one
//! stream wants what another has freed.
//!
//! Only a device's default pool and pools that the program made for plain device memory are *ours*. Pools
//! that it means to share with another process or that lie elsewhere stay the
//! driver's: their memory can neither lie in RAM nor move. Those are only accounted.

use std::{
    cell::OnceCell,
    collections::{HashMap, HashSet},
};

use emuv_cuda::types::*;
use emuv_policy::{Allocation, Block, Owner, PoolId, SMALL_BYTES, StreamId, StreamPools, Tier, Waste, block_bytes};

use crate::{
    arena::{Arena, Refusal, lock},
    calls,
    device::Device,
    session::Session,
    streams::{Name, Streams},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// The owner of pools' blocks in the arena: they die with their pool, not with a context.
pub(crate) const POOL_OWNER: Owner = Owner(u64::MAX);

/// The stream that a call names, with all that is needed to act on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct On {
    /// As the program passed it.
    pub handle: CUstream,
    /// Whether the call was of the per-thread form.
    pub per_thread: bool,
    /// The calling thread's current context.
    pub context: Owner,
}

impl On {
    fn name(self) -> Name {
        Name::of(self.handle, self.per_thread, self.context)
    }
}

/// See the module's head. One per device.
#[derive(Default)]
pub(crate) struct Pools {
    policy: Mutex<StreamPools>,
    streams: Streams,
    ours: Mutex<Ours>,
    /// One of those, by its handle; zero: none is known. Changed only while `ours` is locked.
    served: AtomicU64,
    /// Upper limits that the program set when it created a pool, in bytes.
    limits: Mutex<HashMap<PoolId, u64>>,
    /// The device's current pool by its handle; zero: to be asked for.
    current: AtomicU64,
    /// Some pool may hold more than its release threshold.
    surplus: AtomicBool,
    /// Blocks of no pool any more, not yet given back.
    late: Mutex<Vec<u64>>,
}

/// Which pools emuV serves.
#[derive(Debug, Default)]
struct Ours {
    pools: HashSet<PoolId>,
    /// The device's default pool is known (and among them, unless the program shares it).
    default_seen: bool,
}

impl Pools {
    /// Whether emuV serves this pool.
    pub fn is_ours(&self, session: &Session, device: &Device, pool: PoolId) -> bool {
        if self.served.load(Ordering::Acquire) == pool.0 && pool.0 != 0 {
            return true;
        }
        {
            let ours = lock(&self.ours);
            if ours.pools.contains(&pool) {
                self.served.store(pool.0, Ordering::Release);
                return true;
            }
            if ours.default_seen {
                return false;
            }
        }
        // Looked up once: a device's default pool never changes.
        let default = calls::default_pool(session.real, device.ordinal).map(|pool| PoolId(pool as u64));
        let mut ours = lock(&self.ours);
        if !std::mem::replace(&mut ours.default_seen, true) {
            ours.pools.extend(default);
        }
        ours.pools.contains(&pool)
    }

    /// The pool that allocations take from unless they name one.
    pub fn current(&self, session: &Session, device: &Device) -> Option<PoolId> {
        let known = self.current.load(Ordering::Acquire);
        if known != 0 {
            return Some(PoolId(known));
        }
        let pool = calls::current_pool(session.real, device.ordinal).ok()? as u64;
        self.current.store(pool, Ordering::Release);
        Some(PoolId(pool))
    }

    /// The program has chosen another current pool (or destroyed it).
    pub fn current_changed(&self) {
        self.current.store(0, Ordering::Release);
    }

    /// From now on emuV serves this pool; `limit_bytes` is the most it may hold.
    pub fn adopt(&self, pool: PoolId, limit_bytes: u64) {
        lock(&self.ours).pools.insert(pool);
        lock(&self.limits).insert(pool, limit_bytes);
    }

    fn serve_no_more(&self, pool: PoolId) {
        let mut ours = lock(&self.ours);
        ours.pools.remove(&pool);
        self.served.store(0, Ordering::Release);
    }

    /// Whether some pool may hold more than its release threshold.
    pub fn has_surplus(&self) -> bool {
        self.surplus.load(Ordering::Relaxed)
    }

    /// Looks at (or changes) the pools' state.
    pub fn with<T>(&self, look: impl FnOnce(&mut StreamPools) -> T) -> T {
        look(&mut lock(&self.policy))
    }

    /// The block that `address` lies in, with its start, if it came from a pool of emuV's.
    pub fn find(&self, address: u64) -> Option<(u64, Block)> {
        self.with(|pools| pools.find(address))
    }

    /// Allocates `bytes` (at least 1) from `pool` in the order of a stream.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn allocate(
        &self,
        session: &Session,
        device: &Device,
        pool: PoolId,
        bytes: u64,
        on: On,
    ) -> Result<u64, Refusal> {
        let address = self.find_or_make(session, device, pool, bytes, on)?;
        // What of a larger block it did not ask for, it does not touch: that stays where it is.
        let size = block_bytes(bytes);
        if size > SMALL_BYTES {
            device.arena.add_extent(address, size);
        }
        Ok(address)
    }

    fn find_or_make(
        &self,
        session: &Session,
        device: &Device,
        pool: PoolId,
        bytes: u64,
        on: On,
    ) -> Result<u64, Refusal> {
        let stream = self.streams.id(on.name(), on.context);
        let arena = &device.arena;
        let take = |waste| {
            // Locked once, if it is asked at all.
            let residency = OnceCell::new();
            let stayed =
                |address: u64| residency.get_or_init(|| arena.residency_as_it_is()).has_stayed(address - arena.base());
            self.with(|pools| pools.take(pool, stream, bytes, waste, &stayed))
        };
        if let Some(address) = take(Waste::Little) {
            return Ok(address);
        }
        let capturing = session.captures.any();
        if !capturing {
            let mut others = self.with(|pools| pools.clocks.unsettled());
            others.retain(|other| *other != stream);
            if !others.is_empty() {
                self.poll(session, &others);
                if let Some(address) = take(Waste::Little) {
                    return Ok(address);
                }
            }
        }
        let size = block_bytes(bytes);
        let limit = lock(&self.limits).get(&pool).copied().unwrap_or(u64::MAX);
        if self.with(|pools| pools.usage(pool).reserved).saturating_add(size) > limit {
            return take(Waste::Any).ok_or(Refusal::NoRoom);
        }
        // Where data moves, what is used is in VRAM wherever it was put, and tight blocks at lasting addresses are worth more.
        let may_go_to_ram = || session.moves() && device.has_ram_for(session, size);
        let is_short = size > SMALL_BYTES && !device.has_vram_for(session, size);
        if is_short {
            self.with(StreamPools::keep_tight);
        }
        if is_short && !may_go_to_ram() {
            // Before anything goes to RAM: waste VRAM that is there, or exchange it for what is needed.
            if let Some(address) = take(Waste::Any) {
                return Ok(address);
            }
            self.make_room(session, arena, size, true);
        }
        match self.new_block(session, device, pool, bytes) {
            Err(Refusal::NoRoom) if !capturing => self.wait_for_another(session, pool, bytes, stream, on),
            result => result,
        }
    }

    fn new_block(&self, session: &Session, device: &Device, pool: PoolId, bytes: u64) -> Result<u64, Refusal> {
        let size = block_bytes(bytes);
        let (address, chunks) = if size > SMALL_BYTES {
            let chunks = device.place_chunks(session, size)?;
            (chunks.first().ok_or(Refusal::NoRoom)?.0, chunks)
        } else {
            (device.place(session, POOL_OWNER, size)?.address, Vec::new())
        };
        self.with(|pools| pools.add(pool, address, bytes, &chunks));
        Ok(address)
    }

    /// Memory that another stream is about to free can be had by waiting for it on the GPU.
    fn wait_for_another(
        &self,
        session: &Session,
        pool: PoolId,
        bytes: u64,
        stream: StreamId,
        on: On,
    ) -> Result<u64, Refusal> {
        let waiting = self.with(|pools| pools.clocks.unsettled());
        let found = waiting.into_iter().filter(|from| *from != stream).find_map(|from| {
            let number = self.with(|pools| pools.clocks.fenced(from));
            let ready = self.streams.make_wait(session.real, on.handle, on.per_thread, from);
            ready.then(|| self.with(|pools| pools.take_after(pool, stream, from, number, bytes))).flatten()
        });
        found.ok_or(Refusal::NoRoom)
    }

    /// Frees a block in the order of a stream. False: that is no block of a pool.
    pub fn free(&self, session: &Session, address: u64, on: On) -> bool {
        let name = on.name();
        let stream = self.streams.id(name, on.context);
        if !self.give(address, Some(stream)) {
            return false;
        }
        // Only its own thread can put a fence on such a stream, so it is done now.
        if matches!(name, Name::PerThread(..)) && !session.captures.any() {
            self.fence(session, stream);
        }
        true
    }

    fn give(&self, address: u64, stream: Option<StreamId>) -> bool {
        let (given, surplus) =
            self.with(|pools| (pools.give(address, stream), pools.over_threshold().next().is_some()));
        if surplus {
            self.surplus.store(true, Ordering::Relaxed);
        }
        given
    }

    /// Frees a block that any work of the context may still touch, when that may not be waited for now.
    pub fn free_with_context(&self, address: u64, context: Owner) {
        let all = self.streams.id(Name::AllOf(context), context);
        self.give(address, Some(all));
    }

    /// Frees a block that nothing in flight touches. False: that is no block of a pool.
    pub fn free_idle(&self, address: u64) -> bool {
        self.give(address, None)
    }

    fn note_surplus(&self) {
        if self.with(|pools| pools.over_threshold().next().is_some()) {
            self.surplus.store(true, Ordering::Relaxed);
        }
    }

    fn fence(&self, session: &Session, stream: StreamId) {
        // Marked first: the fence may cover more than is marked, never less.
        let freed = self.with(|pools| pools.clocks.freed(stream));
        if self.streams.record(session.real, stream) == Ok(true) {
            self.with(|pools| pools.clocks.fence_recorded(stream, freed));
        }
    }

    /// Finds out, without waiting, which of the streams' frees have taken effect.
    fn poll(&self, session: &Session, streams: &[StreamId]) {
        for &stream in streams {
            let freed = self.with(|pools| pools.clocks.freed(stream));
            if self.streams.is_idle(session.real, stream) {
                self.with(|pools| pools.clocks.settled(stream, freed));
                continue;
            }
            self.ask(session, stream);
            let (wants, awaits) =
                self.with(|pools| (pools.clocks.wants_fence(stream), pools.clocks.awaits_fence(stream)));
            // A fence that is awaited is not put off by a later one.
            if wants && !awaits {
                self.fence(session, stream);
                self.ask(session, stream);
            }
        }
    }

    fn ask(&self, session: &Session, stream: StreamId) {
        let (fenced, awaits) = self.with(|pools| (pools.clocks.fenced(stream), pools.clocks.awaits_fence(stream)));
        if awaits && self.streams.reached(session.real, stream) {
            self.with(|pools| pools.clocks.settled(stream, fenced));
        }
    }

    /// Gives free blocks back so that `bytes` become free; with `wait`, after waiting for what streams have
    /// freed. Says whether anything was given back.
    pub fn make_room(&self, session: &Session, arena: &Arena, bytes: u64, wait: bool) -> bool {
        if session.captures.any() || self.with(|pools| pools.free_bytes()) == 0 && lock(&self.late).is_empty() {
            return false;
        }
        // The first wait may be for a fence that was there already; what was freed behind it gets its own after that.
        for _ in 0..if wait { 2 } else { 1 } {
            let unsettled = self.with(|pools| pools.clocks.unsettled());
            self.poll(session, &unsettled);
            let late = if wait { self.with(|pools| pools.clocks.unsettled()) } else { Vec::new() };
            for stream in late {
                let fenced = self.with(|pools| pools.clocks.fenced(stream));
                if self.streams.wait(session.real, stream) {
                    self.with(|pools| pools.clocks.settled(stream, fenced));
                }
            }
        }
        let gone = self.with(|pools| pools.trim_bytes(bytes));
        self.retire(arena, gone, wait)
    }

    /// Gives the free blocks of a pool back until it holds no more than `keep_bytes`.
    pub fn trim(&self, session: &Session, arena: &Arena, pool: PoolId, keep_bytes: u64) {
        if !session.captures.any() {
            let unsettled = self.with(|pools| pools.clocks.unsettled());
            self.poll(session, &unsettled);
        }
        self.retire(arena, self.with(|pools| pools.trim(pool, keep_bytes)), false);
    }

    /// A pool is destroyed. What the program still holds of it stays until it is freed.
    pub fn destroyed(&self, session: &Session, arena: &Arena, pool: PoolId) {
        self.with(|pools| pools.set_release_threshold(pool, 0));
        lock(&self.limits).remove(&pool);
        self.serve_no_more(pool);
        self.current_changed();
        self.trim(session, arena, pool, 0);
        self.note_surplus();
    }

    /// What the program is about to wait for: to be given to [`Self::synchronized`] afterwards. `None` when
    /// nothing depends on it.
    pub fn before_wait(&self, what: Wait) -> Option<Vec<(StreamId, u64)>> {
        if !self.has_surplus() {
            return None;
        }
        let streams = match what {
            Wait::Stream(on) => self.streams.known(on.name()).into_iter().collect(),
            Wait::Context(context) => self.streams.of_context(context),
        };
        Some(self.with(|pools| streams.into_iter().map(|stream| (stream, pools.clocks.freed(stream))).collect()))
    }

    /// The program has waited: pools go down to their release thresholds, as the driver's do.
    pub fn synchronized(&self, session: &Session, device: &Device, waited: &[(StreamId, u64)]) {
        self.surplus.store(false, Ordering::Relaxed);
        let gone: Vec<u64> = self.with(|pools| {
            for &(stream, number) in waited {
                pools.clocks.settled(stream, number);
            }
            let over: Vec<PoolId> = pools.over_threshold().collect();
            over.into_iter().flat_map(|pool| pools.trim_to_threshold(pool)).collect()
        });
        if self.retire(&device.arena, gone, false) {
            device.publish(session);
        }
        self.note_surplus();
    }

    /// The program destroys a stream: what it has freed gets a last fence.
    pub fn stream_gone(&self, session: &Session, on: On) {
        let name = on.name();
        let Some(stream) = self.streams.known(name) else { return };
        if self.with(|pools| pools.clocks.wants_fence(stream)) && !session.captures.any() {
            self.fence(session, stream);
        }
        self.streams.gone(name);
    }

    /// A context is gone, and with it all work and the fences on it. If it was the primary one, so are the
    /// device's pools.
    pub fn context_gone(&self, arena: &Arena, context: Owner, primary: bool) {
        for stream in self.streams.context_gone(context) {
            let freed = self.with(|pools| pools.clocks.freed(stream));
            self.with(|pools| pools.clocks.settled(stream, freed));
        }
        if primary {
            let gone: Vec<u64> =
                self.with(|pools| pools.pools().into_iter().flat_map(|pool| pools.remove(pool)).collect());
            self.retire(arena, gone, true);
        }
    }

    /// Gives blocks' memory back, as far as that can be done at once (or, where `wait` is set, in any case): what is being
    /// searched for pointers stays until that is over. Says whether any was given back.
    fn retire(&self, arena: &Arena, mut blocks: Vec<u64>, wait: bool) -> bool {
        blocks.append(&mut lock(&self.late));
        let is_late = |address: &mut u64| !wait && arena.residency().is_searched(*address - arena.base());
        let late: Vec<u64> = blocks.extract_if(.., is_late).collect();
        lock(&self.late).extend(late);
        for address in &blocks {
            if let Ok(release) = arena.free(*address) {
                arena.retire(release.id);
            }
        }
        !blocks.is_empty()
    }

    /// Bytes of blocks that nobody holds.
    pub fn free_bytes(&self) -> u64 {
        self.with(|pools| pools.free_bytes())
    }

    /// Bytes of blocks that are to be given back.
    pub fn late_bytes(&self, arena: &Arena) -> u64 {
        self.late_blocks(arena).map(|block| block.bytes).sum()
    }

    /// Those of them that lie in RAM.
    pub fn late_ram_bytes(&self, arena: &Arena) -> u64 {
        let in_ram = |block: Allocation| arena.residency().bytes_in(block.offset, block.bytes, Tier::Ram);
        self.late_blocks(arena).map(in_ram).sum()
    }

    fn late_blocks(&self, arena: &Arena) -> impl Iterator<Item = Allocation> {
        let late = lock(&self.late).clone();
        late.into_iter().filter_map(|address| Some(arena.find(address)?.1))
    }
}

/// What a program waits for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait {
    /// One stream.
    Stream(On),
    /// All of a context.
    Context(Owner),
}

/// The stream that a call names.
pub(crate) fn on(session: &Session, handle: CUstream, per_thread: bool) -> Option<On> {
    // A thread without a context may name a stream all the same: that has one.
    let context = calls::current_context(session.real).or_else(|_| calls::stream_context(session.real, handle));
    Some(On { handle, per_thread, context: calls::owner(context.ok()?) })
}
