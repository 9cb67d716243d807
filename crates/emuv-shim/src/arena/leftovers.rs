//! Mappings that outlive their chunk's memory. A chunk that holds nothing gives its memory in VRAM to another one, and may be given
//! the same memory again when it is next used. So its mapping is left as it is: nothing need be unmapped while something waits
//! for the memory, and nothing mapped if it is the same. The program does not touch what is nobody's (it would touch other data
//! there with any allocator that uses memory again), and whatever is given to it is held until it has memory of its own. The
//! mapping is taken away when other memory is to be behind the address, or when the memory is released. What a chunk is being
//! copied to is mapped at its address before, in the same way.

use std::collections::HashMap;

use emuv_cuda::{CuResult, Handle};

use super::{Arena, lock};
use crate::sync::{Condvar, Mutex, PoisonError};

/// See the module's head. One per arena; the lock is not held while a mapping is taken away.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    state: Mutex<State>,
    gone: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// By the chunk's offset.
    of: HashMap<u64, Leftover>,
    /// How many there are of each memory.
    on: HashMap<Handle, usize>,
}

impl State {
    fn remove(&mut self, offset: u64) {
        let Some(left) = self.of.remove(&offset) else { return };
        if let Some(count) = self.on.get_mut(&left.handle) {
            *count -= 1;
            if *count == 0 {
                self.on.remove(&left.handle);
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Leftover {
    bytes: u64,
    handle: Handle,
    /// The other devices that may touch it by this mapping, a bit for each.
    peers: u32,
    /// It is being taken away.
    going: bool,
}

impl Leftovers {
    /// A chunk's memory goes, and its mapping, its own until now, is left.
    pub fn leave(&self, offset: u64, bytes: u64, handle: Handle, peers: u32) {
        let mut state = lock(&self.state);
        state.of.insert(offset, Leftover { bytes, handle, peers, going: false });
        *state.on.entry(handle).or_default() += 1;
    }

    /// What is left mapped at a chunk, if it is open to just these other devices.
    fn find(&self, offset: u64, peers: u32) -> Option<Handle> {
        let left = lock(&self.state).of.get(&offset).copied()?;
        (!left.going && left.peers == peers).then_some(left.handle)
    }

    /// The mapping is the chunk's own again.
    pub fn taken(&self, offset: u64) {
        lock(&self.state).remove(offset);
    }

    /// Begins to take a mapping away: its size, and [`Self::end`] is to follow. `None`: there is none (any more).
    fn begin(&self, offset: u64) -> Option<u64> {
        let mut state = lock(&self.state);
        while state.of.get(&offset).is_some_and(|left| left.going) {
            state = self.gone.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let left = state.of.get_mut(&offset)?;
        left.going = true;
        Some(left.bytes)
    }

    fn end(&self, offset: u64, is_gone: bool) {
        let mut state = lock(&self.state);
        if is_gone {
            state.remove(offset);
        } else if let Some(left) = state.of.get_mut(&offset) {
            left.going = false;
        }
        self.gone.notify_all();
    }

    fn on(&self, handle: Handle) -> Vec<u64> {
        let state = lock(&self.state);
        if !state.on.contains_key(&handle) {
            return Vec::new();
        }
        state.of.iter().filter(|(_, left)| left.handle == handle).map(|(offset, _)| *offset).collect()
    }
}

impl Arena {
    /// The memory that a chunk without a mapping of its own would find at its address.
    pub fn leftover(&self, offset: u64) -> Option<Handle> {
        self.leftovers.find(offset, self.gpu.peers())
    }

    /// Whether this memory is still mapped where a chunk had it.
    pub fn is_left_somewhere(&self, handle: Handle) -> bool {
        lock(&self.leftovers.state).on.contains_key(&handle)
    }

    /// Maps the memory that a chunk is about to come to at its address, where nothing of its own is, so that its bytes are copied there and
    /// it is in place as soon as they are. Until then it is a mapping that is left over. Gives the address; `None`: its address is its own,
    /// or nothing may be left there.
    ///
    /// # Errors
    /// The driver's own.
    pub fn map_ahead(&self, offset: u64, bytes: u64, handle: Handle) -> CuResult<Option<u64>> {
        if self.maps_ahead(offset, handle) {
            self.clear(offset)?;
            let peers = self.gpu.peers();
            self.gpu.map(self.base + offset, bytes, handle)?;
            self.leftovers.leave(offset, bytes, handle, peers);
        }
        Ok((self.leaves && self.is_hidden(offset)).then_some(self.base + offset))
    }

    /// Whether [`Self::map_ahead`] has something to map.
    pub fn maps_ahead(&self, offset: u64, handle: Handle) -> bool {
        self.leaves && self.is_hidden(offset) && self.leftover(offset) != Some(handle)
    }

    /// Takes away what is left mapped at a chunk's address, if anything is.
    ///
    /// # Errors
    /// The driver's own: then it is still there.
    pub(super) fn clear(&self, offset: u64) -> CuResult {
        let Some(bytes) = self.leftovers.begin(offset) else { return Ok(()) };
        let unmapped = self.gpu.unmap(self.base + offset, bytes);
        self.leftovers.end(offset, unmapped.is_ok());
        unmapped
    }

    /// The same wherever this memory is left mapped.
    pub(super) fn clear_all(&self, handle: Handle) -> CuResult {
        self.leftovers.on(handle).into_iter().map(|offset| self.clear(offset)).fold(Ok(()), CuResult::and)
    }
}
