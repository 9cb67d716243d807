//! Stream-ordered pools: which freed memory may be given out again, and to whom.
//!
//! A pool holds whole chunks (for requests above [`SMALL_BYTES`]) and small pieces of slabs. A chunk belongs to
//! one block of the program at a time, so that moving a chunk moves one tensor's bytes and nothing else. A
//! block is a run of chunks with adjacent addresses; freed chunks of different blocks may be joined into a new
//! block, or a large one's split, at chunk borders.
//!
//! Memory freed on a stream may be taken by that stream at once (it works in order), and by others when the
//! free has taken effect ([`StreamClocks`]).

mod pool;
mod slots;

use std::collections::{BTreeMap, BTreeSet};

use self::{pool::Pool, slots::Slots};
use crate::{
    chunk::GRANULE,
    memory::SMALL_BYTES,
    stream_clock::{Freed, StreamClocks, StreamId},
};

pub use pool::Stayed;

/// A pool by its driver handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(pub u64);

/// What a pool holds and has given out, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolUse {
    /// Given to the program, now.
    pub used: u64,
    /// The most that was, since it was last reset.
    pub used_high: u64,
    /// Held, used or not, now.
    pub reserved: u64,
    /// The most that was, since it was last reset.
    pub reserved_high: u64,
}

/// How much larger than needed a reused block may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waste {
    /// An eighth: what is worth more than making a new block.
    Little,
    /// Anything: when a new block would have to lie in RAM.
    Any,
}

/// What the program holds at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its pool.
    pub pool: PoolId,
    /// The size asked for.
    pub bytes: u64,
    /// The size of the memory behind it.
    pub block_bytes: u64,
}

/// All stream-ordered pools of a device.
#[derive(Debug, Default)]
pub struct StreamPools {
    /// When frees take effect.
    pub clocks: StreamClocks,
    pools: BTreeMap<PoolId, Pool>,
    used: BTreeMap<u64, Block>,
    /// VRAM is short: what has been given out since.
    tight: Option<Slots>,
}

/// The size of the memory that serves a request: 512-byte steps up to 4 KiB, eighths of a power of two up to
/// [`SMALL_BYTES`], granules beyond.
pub fn block_bytes(bytes: u64) -> u64 {
    const UNIT: u64 = 512;
    let bytes = bytes.max(1);
    if bytes > SMALL_BYTES {
        return bytes.checked_next_multiple_of(GRANULE).unwrap_or(u64::MAX);
    }
    bytes.next_multiple_of((bytes.next_power_of_two() / 16).max(UNIT))
}

impl StreamPools {
    /// The program wants `bytes` (at least 1) of `pool` on `stream`: an address that it may use at once, or
    /// `None` if nothing free fits. `stayed` is asked only where blocks are kept tight.
    pub fn take(
        &mut self,
        pool: PoolId,
        stream: StreamId,
        bytes: u64,
        waste: Waste,
        stayed: Stayed<'_>,
    ) -> Option<u64> {
        let clocks = &self.clocks;
        let usable = |freed: Option<Freed>| freed.is_none_or(|freed| freed.stream == stream || clocks.is_done(freed));
        let tight = self.tight.as_ref().map(|slots| (slots, stayed));
        let found = self.pools.entry(pool).or_default().take(block_bytes(bytes), waste, tight, &usable);
        found.map(|(address, block_bytes)| self.hand_out(pool, address, bytes, block_bytes))
    }

    /// As [`Self::take`], for a stream that has been made to wait for the first `number` frees of `from`.
    pub fn take_after(
        &mut self,
        pool: PoolId,
        stream: StreamId,
        from: StreamId,
        number: u64,
        bytes: u64,
    ) -> Option<u64> {
        let clocks = &self.clocks;
        let usable = |freed: Option<Freed>| {
            freed.is_none_or(|freed| {
                let waited = freed.stream == from && freed.number <= number;
                waited || freed.stream == stream || clocks.is_done(freed)
            })
        };
        let tight = self.tight.as_ref().map(|slots| (slots, &(|_| true) as Stayed<'_>));
        let found = self.pools.get_mut(&pool)?.take(block_bytes(bytes), Waste::Any, tight, &usable);
        found.map(|(address, block_bytes)| self.hand_out(pool, address, bytes, block_bytes))
    }

    /// From now on blocks are chosen to lie tightly: the lowest that fit exactly, whatever they were before, and in a loop those that
    /// have stayed in VRAM. That takes a look at all free chunks, and is worth it where VRAM is short: what is free, but not where it
    /// is wanted, has to be exchanged.
    pub fn keep_tight(&mut self) {
        self.tight.get_or_insert_default();
    }

    /// New memory for the program, made because nothing free fitted: a small piece (no chunks), or chunks
    /// (address, bytes) with adjacent addresses.
    pub fn add(&mut self, pool: PoolId, address: u64, bytes: u64, chunks: &[(u64, u64)]) {
        let entry = self.pools.entry(pool).or_default();
        let size = if bytes > SMALL_BYTES { chunks.iter().map(|(_, bytes)| bytes).sum() } else { block_bytes(bytes) };
        if bytes > SMALL_BYTES {
            entry.chunks.extend(chunks.iter().copied());
        }
        entry.usage.reserved += size;
        entry.usage.reserved_high = entry.usage.reserved_high.max(entry.usage.reserved);
        self.hand_out(pool, address, bytes, size);
    }

    fn hand_out(&mut self, pool: PoolId, address: u64, bytes: u64, block_bytes: u64) -> u64 {
        let Pool { chunks, usage, .. } = self.pools.entry(pool).or_default();
        if let Some(slots) = self.tight.as_mut().filter(|_| block_bytes > SMALL_BYTES) {
            let chunks = chunks.range(address..address + block_bytes).map(|(start, _)| *start);
            slots.note(self::block_bytes(bytes), address, block_bytes, chunks);
        }
        usage.used += block_bytes;
        usage.used_high = usage.used_high.max(usage.used);
        self.used.insert(address, Block { pool, bytes, block_bytes });
        address
    }

    /// The block of the program's that `address` lies in, with its start.
    pub fn find(&self, address: u64) -> Option<(u64, Block)> {
        let (&start, &block) = self.used.range(..=address).next_back()?;
        (address - start < block.bytes).then_some((start, block))
    }

    /// The program frees the block that starts at `address` on `stream`, or (`None`) with nothing in flight
    /// that could touch it. False: that is no block of a pool.
    pub fn give(&mut self, address: u64, stream: Option<StreamId>) -> bool {
        let Some(block) = self.used.remove(&address) else { return false };
        if let Some(slots) = &mut self.tight {
            slots.freed(address);
        }
        let freed = stream.map(|stream| self.clocks.free(stream));
        let pool = self.pools.entry(block.pool).or_default();
        pool.usage.used -= block.block_bytes;
        if block.block_bytes <= SMALL_BYTES {
            pool.small.entry(block.block_bytes).or_default().push((address, freed));
        } else {
            let chunks = pool.chunks.range(address..address + block.block_bytes);
            pool.free.extend(chunks.map(|(&start, &bytes)| (start, (bytes, freed))));
            pool.hints.entry(block.block_bytes).or_default().insert(address);
        }
        true
    }

    /// Takes memory out of `pool` so that it holds no more than `keep_bytes`, as far as nothing in flight can
    /// touch it: the addresses to give back, chunk by chunk and piece by piece.
    pub fn trim(&mut self, pool: PoolId, keep_bytes: u64) -> Vec<u64> {
        let Some(entry) = self.pools.get_mut(&pool) else { return Vec::new() };
        let (clocks, tight) = (&self.clocks, &mut self.tight);
        let settled = |freed: Option<Freed>| freed.is_none_or(|freed| clocks.is_done(freed));
        let mut gone = Vec::new();
        let mut reserved = entry.usage.reserved;
        entry.free.retain(|&address, &mut (bytes, freed)| {
            let go = reserved > keep_bytes && settled(freed);
            if go {
                reserved -= bytes;
                gone.push(address);
                entry.chunks.remove(&address);
                if let Some(slots) = tight {
                    slots.forget(address);
                }
            }
            !go
        });
        for (&size, free) in &mut entry.small {
            free.retain(|&(address, freed)| {
                let go = reserved > keep_bytes && settled(freed);
                if go {
                    reserved -= size;
                    gone.push(address);
                }
                !go
            });
        }
        entry.usage.reserved = reserved;
        gone
    }

    /// Takes `bytes` out of whichever pools, as [`Self::trim`] does.
    pub fn trim_bytes(&mut self, bytes: u64) -> Vec<u64> {
        let mut gone = Vec::new();
        let mut left = bytes;
        for pool in self.pools() {
            let before = self.usage(pool).reserved;
            gone.extend(self.trim(pool, before.saturating_sub(left)));
            left = left.saturating_sub(before - self.usage(pool).reserved);
        }
        gone
    }

    /// Pools that hold more than they use and more than their release thresholds allow.
    pub fn over_threshold(&self) -> impl Iterator<Item = PoolId> {
        let over = |pool: &Pool| pool.usage.reserved > pool.usage.used.max(pool.release_threshold);
        self.pools.iter().filter(move |(_, pool)| over(pool)).map(|(id, _)| *id)
    }

    /// Trims a pool to its release threshold, as the driver does when the program synchronises.
    pub fn trim_to_threshold(&mut self, pool: PoolId) -> Vec<u64> {
        self.trim(pool, self.release_threshold(pool))
    }

    /// Bytes that a pool keeps when the program synchronises; zero at first.
    pub fn release_threshold(&self, pool: PoolId) -> u64 {
        self.pools.get(&pool).map_or(0, |pool| pool.release_threshold)
    }

    /// Sets [`Self::release_threshold`].
    pub fn set_release_threshold(&mut self, pool: PoolId, bytes: u64) {
        self.pools.entry(pool).or_default().release_threshold = bytes;
    }

    /// What a pool holds and has given out.
    pub fn usage(&self, pool: PoolId) -> PoolUse {
        self.pools.get(&pool).map_or_else(PoolUse::default, |pool| pool.usage)
    }

    /// Sets the high marks back to what is now.
    pub fn reset_high(&mut self, pool: PoolId, used: bool, reserved: bool) {
        let Some(pool) = self.pools.get_mut(&pool) else { return };
        if used {
            pool.usage.used_high = pool.usage.used;
        }
        if reserved {
            pool.usage.reserved_high = pool.usage.reserved;
        }
    }

    /// Every pool that has ever been used.
    pub fn pools(&self) -> Vec<PoolId> {
        self.pools.keys().copied().collect()
    }

    /// Bytes held and not used, of all pools.
    pub fn free_bytes(&self) -> u64 {
        self.pools.values().map(|pool| pool.usage.reserved - pool.usage.used).sum()
    }

    /// The addresses of everything that a pool holds, used or free, as [`Self::trim`] would give them back.
    pub fn held(&self, pool: PoolId) -> Vec<u64> {
        let Some(entry) = self.pools.get(&pool) else { return Vec::new() };
        let mut held: BTreeSet<u64> = entry.chunks.keys().copied().collect();
        held.extend(entry.small.values().flatten().map(|(address, _)| *address));
        held.extend(self.used.iter().filter(|(_, block)| block.pool == pool).map(|(address, _)| *address));
        held.into_iter().collect()
    }

    /// A pool goes with its device's primary context: everything that it held, to be given back.
    pub fn remove(&mut self, pool: PoolId) -> Vec<u64> {
        let held = self.held(pool);
        self.pools.remove(&pool);
        self.used.retain(|_, block| block.pool != pool);
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{Rooms, place};

    const MIB: u64 = 1 << 20;
    const POOL: PoolId = PoolId(1);
    const ALL: fn(u64) -> bool = |_| true;
    const A: StreamId = StreamId(10);
    const B: StreamId = StreamId(11);

    /// Adds blocks of whole MiB side by side; gives their addresses.
    fn add(pools: &mut StreamPools, sizes: &[u64]) -> Vec<u64> {
        let mut next = 1 << 40;
        let mut addresses = Vec::new();
        for size in sizes {
            let rooms = Rooms { vram: u64::MAX, ram: 0, vram_reserve: 0 };
            let chunks = place(next, block_bytes(size * MIB), rooms).unwrap();
            let chunks: Vec<_> = chunks.iter().map(|chunk| (chunk.offset, chunk.bytes)).collect();
            pools.add(POOL, next, size * MIB, &chunks);
            addresses.push(next);
            next += block_bytes(size * MIB);
        }
        addresses
    }

    fn with_blocks(sizes: &[u64]) -> (StreamPools, Vec<u64>) {
        let mut pools = StreamPools::default();
        let addresses = add(&mut pools, sizes);
        (pools, addresses)
    }

    #[test]
    fn the_stream_that_freed_a_block_may_have_it_at_once() {
        let (mut pools, at) = with_blocks(&[5]);
        assert!(pools.give(at[0], Some(A)));
        assert_eq!(pools.take(POOL, B, 5 * MIB, Waste::Any, &ALL), None);
        assert_eq!(pools.take(POOL, A, 5 * MIB, Waste::Little, &ALL), Some(at[0]));
    }

    #[test]
    fn another_stream_may_have_it_when_the_free_has_taken_effect() {
        let (mut pools, at) = with_blocks(&[5]);
        pools.give(at[0], Some(A));
        pools.clocks.settled(A, 1);
        assert_eq!(pools.take(POOL, B, 5 * MIB, Waste::Little, &ALL), Some(at[0]));
    }

    #[test]
    fn a_stream_made_to_wait_may_have_what_it_waits_for() {
        let (mut pools, at) = with_blocks(&[5, 5]);
        pools.give(at[0], Some(A));
        pools.give(at[1], Some(A));
        assert_eq!(pools.take_after(POOL, B, A, 1, 5 * MIB), Some(at[0]));
        assert_eq!(pools.take_after(POOL, B, A, 1, 5 * MIB), None);
    }

    #[test]
    fn a_larger_block_is_split_at_a_chunk_border() {
        let (mut pools, at) = with_blocks(&[98]);
        pools.give(at[0], Some(A));
        let first = pools.take(POOL, A, 30 * MIB, Waste::Little, &ALL).unwrap();
        let rest = pools.take(POOL, A, 66 * MIB, Waste::Little, &ALL).unwrap();
        assert_eq!((first, rest), (at[0], at[0] + 32 * MIB));
        assert_eq!(pools.usage(POOL).used, 98 * MIB);
    }

    #[test]
    fn adjacent_free_chunks_are_joined() {
        let (mut pools, at) = with_blocks(&[32, 32, 32]);
        pools.give(at[0], Some(A));
        pools.give(at[1], None);
        assert_eq!(pools.take(POOL, A, 64 * MIB, Waste::Little, &ALL), Some(at[0]));
        assert_eq!(pools.find(at[1] + 5).map(|(start, block)| (start, block.bytes)), Some((at[0], 64 * MIB)));
    }

    #[test]
    fn kept_tight_the_lowest_that_fits_exactly_is_taken_even_if_it_has_to_be_split_or_joined() {
        for (tight, expected) in [(false, 2), (true, 0)] {
            let (mut pools, at) = with_blocks(&[32, 32, 64]);
            at.iter().for_each(|at| _ = pools.give(*at, None));
            if tight {
                pools.keep_tight();
            }
            assert_eq!(pools.take(POOL, A, 64 * MIB, Waste::Little, &ALL), Some(at[expected]));
        }
    }

    /// A loop that gets and frees these sizes (MiB) one after the other; gives the addresses of a round.
    fn go_round(pools: &mut StreamPools, sizes: &[u64], stayed: Stayed<'_>) -> Vec<u64> {
        let one = |size: &u64| {
            let address = pools.take(POOL, A, size * MIB, Waste::Little, stayed).unwrap();
            pools.give(address, Some(A));
            address
        };
        sizes.iter().map(one).collect()
    }

    #[test]
    fn where_vram_is_short_a_loop_gets_what_it_got_a_round_ago_as_long_as_that_stays_in_vram() {
        let (mut pools, at) = with_blocks(&[32, 32, 32, 32]);
        pools.keep_tight();
        pools.give(at[2], None);
        let sizes = [32; 60];
        assert_eq!(go_round(&mut pools, &sizes, &ALL), [at[2]; 60]);
        at.iter().take(2).for_each(|at| _ = pools.give(*at, None));
        assert_eq!(go_round(&mut pools, &sizes, &ALL), [at[2]; 60], "though it is not the lowest any more");
        let third_has_left = |address| address != at[2];
        assert_eq!(go_round(&mut pools, &sizes, &third_has_left), [at[0]; 60]);
        assert_eq!(go_round(&mut pools, &sizes, &ALL), [at[0]; 60], "there it stays");
        assert_eq!(go_round(&mut pools, &sizes, &|_| false), [at[0]; 60], "nothing else would be better");
    }

    #[test]
    fn nobody_takes_what_another_of_the_loop_got_a_round_ago() {
        let (mut pools, at) = with_blocks(&[32, 64]);
        pools.keep_tight();
        at.iter().for_each(|at| _ = pools.give(*at, None));
        // The first lives while the second is made.
        let round = |pools: &mut StreamPools, stayed: Stayed<'_>| {
            let [first, second] = [32, 64].map(|size| pools.take(POOL, A, size * MIB, Waste::Little, stayed).unwrap());
            pools.give(first, Some(A));
            pools.give(second, Some(A));
            [first, second]
        };
        for _ in 0..60 {
            assert_eq!(round(&mut pools, &ALL), [at[0], at[1]]);
        }
        assert_eq!(round(&mut pools, &|address| address >= at[1]), [at[0], at[1]]);
    }

    #[test]
    fn much_waste_is_accepted_only_when_asked_for() {
        let (mut pools, at) = with_blocks(&[32]);
        pools.give(at[0], Some(A));
        assert_eq!(pools.take(POOL, A, 20 * MIB, Waste::Little, &ALL), None);
        assert_eq!(pools.take(POOL, A, 20 * MIB, Waste::Any, &ALL), Some(at[0]));
    }

    #[test]
    fn small_pieces_are_reused_by_size() {
        let mut pools = StreamPools::default();
        pools.add(POOL, 0x1000, 700, &[]);
        pools.give(0x1000, Some(A));
        assert_eq!(pools.take(POOL, A, 5000, Waste::Any, &ALL), None);
        assert_eq!(pools.take(POOL, A, 1000, Waste::Little, &ALL), Some(0x1000));
    }

    #[test]
    fn a_trim_leaves_what_work_in_flight_may_touch() {
        let (mut pools, at) = with_blocks(&[4, 4, 4]);
        pools.give(at[0], Some(A));
        pools.give(at[1], None);
        assert_eq!(pools.trim(POOL, 0), [at[1]]);
        assert_eq!(pools.usage(POOL).reserved, 8 * MIB);
        pools.clocks.settled(A, 1);
        assert_eq!(pools.trim(POOL, 8 * MIB), [0_u64; 0]);
        assert_eq!(pools.trim(POOL, 4 * MIB), [at[0]]);
        assert_eq!(pools.take(POOL, A, 4 * MIB, Waste::Any, &ALL), None);
    }

    #[test]
    fn the_figures_follow_what_happens() {
        let (mut pools, at) = with_blocks(&[4, 2]);
        pools.give(at[0], Some(A));
        let usage = PoolUse { used: 2 * MIB, used_high: 6 * MIB, reserved: 6 * MIB, reserved_high: 6 * MIB };
        assert_eq!(pools.usage(POOL), usage);
        pools.reset_high(POOL, true, false);
        assert_eq!(pools.usage(POOL).used_high, 2 * MIB);
        assert_eq!(pools.over_threshold().collect::<Vec<_>>(), [POOL]);
        pools.set_release_threshold(POOL, u64::MAX);
        assert_eq!(pools.over_threshold().next(), None);
    }

    #[test]
    fn freeing_twice_or_inside_is_noticed() {
        let (mut pools, at) = with_blocks(&[4]);
        assert!(!pools.give(at[0] + 512, Some(A)));
        assert!(pools.give(at[0], Some(A)));
        assert!(!pools.give(at[0], Some(A)));
    }

    #[test]
    fn block_sizes_waste_at_most_an_eighth() {
        for bytes in (1..3 * MIB).step_by(777) {
            let block = block_bytes(bytes);
            assert!(block >= bytes && block.is_multiple_of(512));
            assert!(block - bytes < 512 || block - bytes <= bytes / 8 || bytes > SMALL_BYTES, "{bytes} -> {block}");
        }
    }
}
