//! What is known to lie in RAM that nothing writes to.
//!
//! Memory in RAM that a chunk's bytes were copied into, and that the program cannot reach, goes on holding them: while the chunk lies
//! there without a mapping, and after it has been brought to VRAM, until the memory is used for something else or mapped for the
//! program. If a chunk that is to go holds the same bytes still, it need not be copied there again. Whether it does is found
//! by a hash of 128 bits, with a seed that is chosen at random in each process, taken while nothing may touch the chunk: no guess
//! about who writes to what. Different bytes have the same hash with a probability of 2^-128.

use std::collections::HashMap;

use emuv_cuda::Handle;

use crate::{arena::lock, sync::Mutex};

/// Of a chunk's bytes.
pub(crate) type Hash = [u64; 2];

/// See the module's head. One per arena.
#[derive(Debug, Default)]
pub(crate) struct Contents(Mutex<HashMap<Handle, Hash>>);

impl Contents {
    /// This memory now holds, and goes on holding, bytes with this hash.
    pub fn holds(&self, memory: Handle, hash: Hash) {
        lock(&self.0).insert(memory, hash);
    }

    /// This memory is about to be written to, or to be within the program's reach, or is no more.
    pub fn forget(&self, memory: Handle) {
        lock(&self.0).remove(&memory);
    }

    /// The hash of what it holds, if that is known.
    pub fn of(&self, memory: Handle) -> Option<Hash> {
        lock(&self.0).get(&memory).copied()
    }
}
