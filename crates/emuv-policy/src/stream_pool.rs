//! Stream-ordered pools: which freed block may be given out again, and to whom.
//!
//! `cuMemFreeAsync(p, s)` takes effect when stream `s` comes to it. From then on the block may be used by
//! anyone; before that, only by later work of the same stream. So a free block carries the stream that freed
//! it and the number of that free on that stream, and each stream has a clock:
//!
//! ```text
//!   freed   number of frees issued on the stream so far
//!   fenced  frees that the last recorded fence (an event) covers       done <= fenced <= freed
//!   done    frees that are known to have taken effect
//! ```
//!
//! A block freed as number `n` on stream `s` may be taken by `s` at any time, by others once `n <= done(s)`.
//! Nothing is recorded on the fast path: a fence is recorded only when some other stream (or a trim) wants
//! what a stream has freed, and covers all its frees until then.

use std::collections::{BTreeMap, HashMap};

use crate::{chunk::GRANULE, memory::SMALL_BYTES};

/// A stream, unique in the process (a driver handle may come again after a stream is destroyed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

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

/// Answer to [`StreamPools::take`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// This address, at once.
    Hit(u64),
    /// Nothing free fits. Make a block of `block_bytes` and [`StreamPools::add`] it, unless a fence on one
    /// of `streams` (which have freed something that fits) shows that it may be had.
    Miss {
        /// The size that blocks for this request have.
        block_bytes: u64,
        /// Streams whose frees would help if they had taken effect.
        streams: Vec<StreamId>,
    },
}

/// What the program holds at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its pool.
    pub pool: PoolId,
    /// The size asked for.
    pub bytes: u64,
    /// The size of the block behind it.
    pub block_bytes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Clock {
    freed: u64,
    fenced: u64,
    done: u64,
}

#[derive(Debug, Clone, Copy)]
struct FreeBlock {
    address: u64,
    /// Who freed it, and as which of its frees; `None`: nobody's work can touch it.
    freed: Option<(StreamId, u64)>,
}

#[derive(Debug, Default)]
struct Pool {
    /// By block size; the most recently freed last.
    free: BTreeMap<u64, Vec<FreeBlock>>,
    usage: PoolUse,
    release_threshold: u64,
}

/// All stream-ordered pools of a device.
#[derive(Debug, Default)]
pub struct StreamPools {
    clocks: HashMap<StreamId, Clock>,
    pools: BTreeMap<PoolId, Pool>,
    used: HashMap<u64, Block>,
}

/// The size of the block that serves a request: 512-byte steps up to 4 KiB, eighths of a power of two up to
/// [`SMALL_BYTES`], granules beyond.
pub fn block_bytes(bytes: u64) -> u64 {
    const UNIT: u64 = 512;
    let bytes = bytes.max(1);
    if bytes > SMALL_BYTES {
        return bytes.checked_next_multiple_of(GRANULE).unwrap_or(u64::MAX);
    }
    let step = (bytes.next_power_of_two() / 16).max(UNIT);
    bytes.next_multiple_of(step)
}

/// How much larger than asked for a reused block may be: an eighth, or nothing for small ones.
fn acceptable(block_bytes: u64) -> u64 {
    if block_bytes > SMALL_BYTES { block_bytes + block_bytes / 8 } else { block_bytes }
}

impl StreamPools {
    /// The program wants `bytes` (at least 1) of `pool` on `stream`.
    pub fn take(&mut self, pool: PoolId, stream: StreamId, bytes: u64) -> Taken {
        let block_bytes = block_bytes(bytes);
        let entry = self.pools.entry(pool).or_default();
        let mut streams = Vec::new();
        for (&size, free) in entry.free.range_mut(block_bytes..=acceptable(block_bytes)) {
            let fits = |block: &FreeBlock| match block.freed {
                None => true,
                Some((who, number)) => who == stream || self.clocks.get(&who).is_none_or(|clock| number <= clock.done),
            };
            if let Some(index) = free.iter().rposition(fits) {
                let block = free.swap_remove(index);
                self.hand_out(pool, block.address, bytes, size);
                return Taken::Hit(block.address);
            }
            streams.extend(free.iter().filter_map(|block| block.freed.map(|(who, _)| who)));
        }
        streams.sort_unstable();
        streams.dedup();
        Taken::Miss { block_bytes, streams }
    }

    /// Takes a block for a stream that has been made to wait for the first `number` frees of `from`.
    pub fn take_after(&mut self, pool: PoolId, from: StreamId, number: u64, bytes: u64) -> Option<u64> {
        let block_bytes = block_bytes(bytes);
        let entry = self.pools.get_mut(&pool)?;
        for (&size, free) in entry.free.range_mut(block_bytes..=acceptable(block_bytes)) {
            let fits = |block: &FreeBlock| block.freed.is_some_and(|(who, freed)| who == from && freed <= number);
            if let Some(index) = free.iter().rposition(fits) {
                let block = free.swap_remove(index);
                self.hand_out(pool, block.address, bytes, size);
                return Some(block.address);
            }
        }
        None
    }

    /// A new block for the program, made after a miss.
    pub fn add(&mut self, pool: PoolId, address: u64, bytes: u64, block_bytes: u64) {
        let usage = &mut self.pools.entry(pool).or_default().usage;
        usage.reserved += block_bytes;
        usage.reserved_high = usage.reserved_high.max(usage.reserved);
        self.hand_out(pool, address, bytes, block_bytes);
    }

    fn hand_out(&mut self, pool: PoolId, address: u64, bytes: u64, block_bytes: u64) {
        let usage = &mut self.pools.entry(pool).or_default().usage;
        usage.used += block_bytes;
        usage.used_high = usage.used_high.max(usage.used);
        self.used.insert(address, Block { pool, bytes, block_bytes });
    }

    /// What the program holds at `address`, if it came from a pool.
    pub fn find(&self, address: u64) -> Option<&Block> {
        self.used.get(&address)
    }

    /// The program frees `address` on `stream`, or (`None`) with nothing in flight that could touch it.
    /// False: that is no block of a pool.
    pub fn give(&mut self, address: u64, stream: Option<StreamId>) -> bool {
        let Some(block) = self.used.remove(&address) else { return false };
        let freed = stream.map(|stream| {
            let clock = self.clocks.entry(stream).or_default();
            clock.freed += 1;
            (stream, clock.freed)
        });
        let pool = self.pools.entry(block.pool).or_default();
        pool.usage.used -= block.block_bytes;
        pool.free.entry(block.block_bytes).or_default().push(FreeBlock { address, freed });
        true
    }

    /// Whether a stream has freed something that no fence covers yet.
    pub fn wants_fence(&self, stream: StreamId) -> bool {
        self.clocks.get(&stream).is_some_and(|clock| clock.fenced < clock.freed)
    }

    /// Whether a fence on the stream has been recorded and is not known to have been reached.
    pub fn awaits_fence(&self, stream: StreamId) -> bool {
        self.clocks.get(&stream).is_some_and(|clock| clock.done < clock.fenced)
    }

    /// A fence was recorded on the stream; it covers at least the first `number` frees ([`Self::freed`],
    /// taken before).
    pub fn fence_recorded(&mut self, stream: StreamId, number: u64) {
        if let Some(clock) = self.clocks.get_mut(&stream) {
            clock.fenced = clock.fenced.max(number.min(clock.freed));
        }
    }

    /// How many of the stream's frees its last fence covers: taken before asking whether the fence has been
    /// reached, given to [`Self::settled`] if it has.
    pub fn fenced(&self, stream: StreamId) -> u64 {
        self.clocks.get(&stream).map_or(0, |clock| clock.fenced)
    }

    /// How many frees the stream has issued: taken before waiting for the stream, given to
    /// [`Self::settled`] after.
    pub fn freed(&self, stream: StreamId) -> u64 {
        self.clocks.get(&stream).map_or(0, |clock| clock.freed)
    }

    /// The first `number` frees of the stream have taken effect.
    pub fn settled(&mut self, stream: StreamId, number: u64) {
        if let Some(clock) = self.clocks.get_mut(&stream) {
            clock.done = clock.done.max(number.min(clock.freed));
            clock.fenced = clock.fenced.max(clock.done);
        }
    }

    /// Streams that have freed something which is not known to have taken effect.
    pub fn unsettled(&self) -> Vec<StreamId> {
        let mut streams: Vec<StreamId> =
            self.clocks.iter().filter(|(_, clock)| clock.done < clock.freed).map(|(stream, _)| *stream).collect();
        streams.sort_unstable();
        streams
    }

    /// Blocks of `pool` to give back so that it holds no more than `keep_bytes`, as far as nothing in flight
    /// can touch them; the largest first. They are the pool's no more.
    pub fn trim(&mut self, pool: PoolId, keep_bytes: u64) -> Vec<u64> {
        let Some(entry) = self.pools.get_mut(&pool) else { return Vec::new() };
        let clocks = &self.clocks;
        let mut gone = Vec::new();
        for (&size, free) in entry.free.iter_mut().rev() {
            free.retain(|block| {
                let settled = block.freed.is_none_or(|(who, number)| clocks.get(&who).is_none_or(|c| number <= c.done));
                let go = settled && entry.usage.reserved > keep_bytes;
                if go {
                    entry.usage.reserved -= size;
                    gone.push(block.address);
                }
                !go
            });
        }
        entry.free.retain(|_, free| !free.is_empty());
        gone
    }

    /// Blocks to give back so that `bytes` become free, as far as nothing in flight can touch them; from
    /// every pool. They are the pools' no more.
    pub fn trim_bytes(&mut self, bytes: u64) -> Vec<u64> {
        let mut gone = Vec::new();
        let mut left = bytes;
        for pool in self.pools() {
            let before = self.usage(pool).reserved;
            gone.extend(self.trim(pool, before.saturating_sub(left)));
            left = left.saturating_sub(before - self.usage(pool).reserved);
            if left == 0 {
                break;
            }
        }
        gone
    }

    /// Whether a pool holds more free memory than its release threshold allows.
    pub fn over_threshold(&self) -> Vec<PoolId> {
        let over = |pool: &Pool| pool.usage.reserved > pool.usage.used && pool.usage.reserved > pool.release_threshold;
        self.pools.iter().filter(|(_, pool)| over(pool)).map(|(id, _)| *id).collect()
    }

    /// Trims a pool to its release threshold, as the driver does when the program synchronises.
    pub fn trim_to_threshold(&mut self, pool: PoolId) -> Vec<u64> {
        let keep = self.pools.get(&pool).map_or(0, |pool| pool.release_threshold);
        self.trim(pool, keep)
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

    /// The addresses of every block of a pool, used or free.
    pub fn blocks(&self, pool: PoolId) -> Vec<u64> {
        let used = self.used.iter().filter(|(_, block)| block.pool == pool).map(|(address, _)| *address);
        let free = self.pools.get(&pool).into_iter().flat_map(|pool| pool.free.values().flatten());
        used.chain(free.map(|block| block.address)).collect()
    }

    /// Bytes held in free blocks, of all pools.
    pub fn free_bytes(&self) -> u64 {
        self.pools.values().map(|pool| pool.usage.reserved - pool.usage.used).sum()
    }

    /// A pool goes (destroyed, or its device's primary context is): all its addresses, used or not. The
    /// caller has waited for the device.
    pub fn remove(&mut self, pool: PoolId) -> Vec<u64> {
        let free = self.pools.remove(&pool).map(|pool| pool.free).unwrap_or_default();
        let mut gone: Vec<u64> = free.into_values().flatten().map(|block| block.address).collect();
        gone.extend(self.used.iter().filter(|(_, block)| block.pool == pool).map(|(address, _)| *address));
        self.used.retain(|_, block| block.pool != pool);
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const POOL: PoolId = PoolId(1);
    const A: StreamId = StreamId(10);
    const B: StreamId = StreamId(11);

    fn pools_with(blocks: &[(u64, u64)]) -> StreamPools {
        let mut pools = StreamPools::default();
        for &(address, bytes) in blocks {
            pools.add(POOL, address, bytes, block_bytes(bytes));
        }
        pools
    }

    #[test]
    fn the_stream_that_freed_a_block_may_have_it_at_once() {
        let mut pools = pools_with(&[(0x100, 5 * MIB)]);
        assert!(pools.give(0x100, Some(A)));
        assert_eq!(pools.take(POOL, A, 5 * MIB), Taken::Hit(0x100));
    }

    #[test]
    fn another_stream_waits_for_the_fence() {
        let mut pools = pools_with(&[(0x100, 5 * MIB)]);
        pools.give(0x100, Some(A));
        let miss = Taken::Miss { block_bytes: 6 * MIB, streams: vec![A] };
        assert_eq!(pools.take(POOL, B, 5 * MIB), miss);
        let freed = pools.freed(A);
        pools.fence_recorded(A, freed);
        assert_eq!(pools.take(POOL, B, 5 * MIB), miss);
        let fenced = pools.fenced(A);
        pools.settled(A, fenced);
        assert_eq!(pools.take(POOL, B, 5 * MIB), Taken::Hit(0x100));
    }

    #[test]
    fn a_fence_covers_only_the_frees_before_it() {
        let mut pools = pools_with(&[(0x100, 5 * MIB), (0x200, 5 * MIB)]);
        pools.give(0x100, Some(A));
        let freed = pools.freed(A);
        pools.fence_recorded(A, freed);
        pools.give(0x200, Some(A));
        let fenced = pools.fenced(A);
        pools.settled(A, fenced);
        assert_eq!(pools.take(POOL, B, 5 * MIB), Taken::Hit(0x100));
        assert!(matches!(pools.take(POOL, B, 5 * MIB), Taken::Miss { .. }));
        assert!(pools.wants_fence(A));
    }

    #[test]
    fn a_stream_made_to_wait_may_have_what_the_fence_covers() {
        let mut pools = pools_with(&[(0x100, 5 * MIB), (0x200, 5 * MIB)]);
        pools.give(0x100, Some(A));
        let freed = pools.freed(A);
        pools.fence_recorded(A, freed);
        pools.give(0x200, Some(A));
        assert_eq!(pools.take_after(POOL, A, 1, 5 * MIB), Some(0x100));
        assert_eq!(pools.take_after(POOL, A, 1, 5 * MIB), None);
    }

    #[test]
    fn a_block_serves_requests_a_little_smaller_and_no_others() {
        let mut pools = pools_with(&[(0x100, 32 * MIB)]);
        pools.give(0x100, Some(A));
        assert!(matches!(pools.take(POOL, A, 20 * MIB), Taken::Miss { .. }));
        assert!(matches!(pools.take(POOL, A, 33 * MIB), Taken::Miss { .. }));
        assert_eq!(pools.take(POOL, A, 30 * MIB), Taken::Hit(0x100));
    }

    #[test]
    fn a_trim_leaves_what_work_in_flight_may_touch() {
        let mut pools = pools_with(&[(0x100, 4 * MIB), (0x200, 4 * MIB), (0x300, 4 * MIB)]);
        pools.give(0x100, Some(A));
        pools.give(0x200, None);
        assert_eq!(pools.trim(POOL, 0), [0x200]);
        assert_eq!(pools.usage(POOL).reserved, 8 * MIB);
        let freed = pools.freed(A);
        pools.fence_recorded(A, freed);
        let fenced = pools.fenced(A);
        pools.settled(A, fenced);
        assert_eq!(pools.trim(POOL, 8 * MIB), [0_u64; 0]);
        assert_eq!(pools.trim(POOL, 4 * MIB), [0x100]);
    }

    #[test]
    fn the_figures_follow_what_happens() {
        let mut pools = pools_with(&[(0x100, 4 * MIB), (0x200, 2 * MIB)]);
        pools.give(0x100, Some(A));
        let usage = PoolUse { used: 2 * MIB, used_high: 6 * MIB, reserved: 6 * MIB, reserved_high: 6 * MIB };
        assert_eq!(pools.usage(POOL), usage);
        pools.reset_high(POOL, true, false);
        assert_eq!(pools.usage(POOL).used_high, 2 * MIB);
        assert_eq!(pools.over_threshold(), [POOL]);
        pools.set_release_threshold(POOL, u64::MAX);
        assert_eq!(pools.over_threshold(), []);
    }

    #[test]
    fn freeing_twice_is_noticed() {
        let mut pools = pools_with(&[(0x100, 4 * MIB)]);
        assert!(pools.give(0x100, Some(A)));
        assert!(!pools.give(0x100, Some(A)));
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
