//! Placement, budgets and address space: every decision that emuV takes, as pure functions of what has
//! happened.
//!
//! Nothing here does I/O, reads a clock, starts a thread or fails: time is an argument, and "no room" is a
//! value. The crate knows nothing of CUDA, so all of it is tested without a GPU.
//!
//! [`DeviceMemory`] is the whole state of one device. What happens goes in as a method call, what to do
//! comes out as a plan, and the caller reports back how the plan went ([`DeviceMemory::commit`],
//! [`DeviceMemory::refused`], [`DeviceMemory::abandon`]). The caller carries plans out *without* holding
//! the lock that guards this state.

pub mod baselines;
mod budget;
mod chunk;
pub mod figure;
pub mod hash;
pub mod machine;
mod memory;
pub mod replay;
mod residency;
pub mod simulate;
mod slab;
mod space;
mod stream_clock;
mod stream_pool;
pub mod timeline;
pub mod trace;
pub mod turns;
mod units;

pub use budget::{Budget, Budgets};
pub use chunk::{CHUNK_CLASSES, Chunk, GRANULE};
pub use memory::{
    Allocation, AllocationId, Answer, DeviceMemory, FreeError, HOT_BYTES, Owner, Plan, Release, Room, SMALL_BYTES,
    Ticket, left_to_small_bytes,
};
pub use residency::{
    Begin, Begun, Heat, Hint, HoldId, LastRound, Looped, Manner, Mode, MoveRoom, Policy, ReadInPlace, Residency,
    RoundChunk, SearchRanges, Sight, Step, Touch, Unfenced, Why, Work,
};
pub use stream_clock::{Freed, StreamClocks, StreamId};
pub use stream_pool::{Block, PoolId, PoolUse, Stayed, StreamPools, Waste, block_bytes};
pub use units::{Bytes, ParseBytesError};

/// Where a chunk's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The card's own memory.
    Vram,
    /// Pinned host memory, read and written by the GPU over the link.
    Ram,
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vram => "VRAM",
            Self::Ram => "RAM",
        })
    }
}
