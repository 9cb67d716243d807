//! Memory of the simulated machine: files in memory, mapped where the program says.

pub mod heap;
pub mod ipc;
pub mod peers;
pub mod physical;
pub mod region;
pub mod rows;
pub mod scratch;
pub mod space;
pub mod view;

/// The unit of physical memory and of mappings.
pub const GRANULARITY_BYTES: u64 = 2 << 20;

/// A size or address as the machine's word. The simulator runs on 64-bit machines only.
#[allow(clippy::cast_possible_truncation)]
pub const fn length(bytes: u64) -> usize {
    const { assert!(usize::BITS == 64) };
    bytes as usize
}
