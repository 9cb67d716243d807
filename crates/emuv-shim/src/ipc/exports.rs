//! What a device's arena has exported. An allocation is on the list from its export until its memory is given back;
//! that waits while the server is making descriptors of it.

use std::collections::HashMap;

use emuv_cuda::{CUresult, CuError, CuResult, Handle};
use emuv_policy::{AllocationId, Chunk};
use emuv_state::sharing::Key;

use crate::{
    arena::{Arena, lock},
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// See the module's head. One per arena.
#[derive(Debug, Default)]
pub(crate) struct Exports {
    /// Something is or was on the list.
    any: AtomicBool,
    list: Mutex<HashMap<AllocationId, Export>>,
    returned: Condvar,
}

#[derive(Debug)]
struct Export {
    key: Key,
    chunks: Vec<Chunk>,
    /// Descriptors are being made of it, for so many clients.
    lent: u32,
}

/// An exported allocation that is not given back while this lives.
pub(crate) struct Lent<'a> {
    arena: &'a Arena,
    id: AllocationId,
    /// Its chunks: each a handle and its size in bytes.
    pub handles: Vec<(Handle, u64)>,
}

impl Exports {
    /// Puts the allocation `id`, which starts at `address` and lies still in VRAM, on the list. Gives its key, the same
    /// each time, and where it starts in its chunks.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where it has been freed meanwhile, `CUDA_ERROR_OPERATING_SYSTEM` where there are no
    /// random numbers.
    pub fn offer(&self, arena: &Arena, address: u64, id: AllocationId) -> CuResult<(Key, u64)> {
        self.any.store(true, Ordering::SeqCst);
        let offset = address - arena.base();
        let fresh = Key::new();
        let mut list = lock(&self.list);
        let chunks = arena.with_memory(|memory| {
            let is_live = memory.find(offset).is_some_and(|allocation| allocation.id == id);
            if is_live { memory.chunks(offset) } else { Vec::new() }
        });
        let first = chunks.first().ok_or(CuError::INVALID_VALUE)?.offset;
        let key = match (list.get(&id), fresh) {
            (Some(known), _) => known.key,
            (None, Ok(key)) => key,
            (None, Err(_)) => return Err(super::error(CUresult::CUDA_ERROR_OPERATING_SYSTEM)),
        };
        list.entry(id).or_insert(Export { key, chunks, lent: 0 });
        Ok((key, offset - first))
    }

    /// What was exported under a key, if it is there.
    pub fn lend<'a>(&self, arena: &'a Arena, key: Key) -> Option<Lent<'a>> {
        let (id, chunks) = {
            let mut list = lock(&self.list);
            let (id, export) = list.iter_mut().find(|(_, export)| export.key == key && !export.chunks.is_empty())?;
            export.lent += 1;
            (*id, export.chunks.clone())
        };
        let mut lent = Lent { arena, id, handles: Vec::new() };
        let known = lock(&arena.handles);
        for chunk in chunks {
            lent.handles.push((*known.get(&chunk.offset)?, chunk.bytes));
        }
        Some(lent)
    }

    /// The allocation's memory is about to be given back: nobody gets it any more.
    pub fn withdraw(&self, id: AllocationId) {
        if !self.any.load(Ordering::SeqCst) {
            return;
        }
        let mut list = lock(&self.list);
        let Some(export) = list.get_mut(&id) else { return };
        // It cannot be found any more.
        export.chunks.clear();
        while list.get(&id).is_some_and(|export| export.lent > 0) {
            list = self.returned.wait(list).unwrap_or_else(PoisonError::into_inner);
        }
        list.remove(&id);
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let exports = &self.arena.exports;
        if let Some(export) = lock(&exports.list).get_mut(&self.id) {
            export.lent -= 1;
        }
        exports.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use emuv_policy::{Owner, Room};

    use super::*;

    const MIB: u64 = 1 << 20;
    const ROOM: Room = Room { vram_bytes: 1 << 30, vram_reserve_bytes: 0, ram_bytes: 0 };

    fn arena() -> Arena {
        crate::arena::tests::arena(1024, 0).1
    }

    /// An allocation: where it starts, and its number.
    fn allocate(arena: &Arena, bytes: u64) -> (u64, AllocationId) {
        let placed = arena.allocate(Owner(1), bytes, ROOM).unwrap();
        let (start, allocation) = arena.find(placed.address).unwrap();
        (start, allocation.id)
    }

    fn free(arena: &Arena, address: u64) {
        let release = arena.free(address).unwrap();
        arena.retire(release.id);
    }

    #[test]
    fn an_allocation_has_one_key_and_all_its_chunks_are_lent() {
        let arena = arena();
        let (start, id) = allocate(&arena, 70 * MIB);
        let (key, offset) = arena.exports.offer(&arena, start, id).unwrap();
        assert_eq!(offset, 0);
        assert_eq!(arena.exports.offer(&arena, start, id).unwrap().0, key);
        let lent = arena.exports.lend(&arena, key).unwrap();
        assert_eq!(lent.handles.iter().map(|(_, bytes)| bytes / MIB).collect::<Vec<_>>(), [32, 32, 4, 2]);
        assert!(arena.exports.lend(&arena, Key::new().unwrap()).is_none(), "another key");
    }

    #[test]
    fn neighbours_in_a_slab_have_keys_of_their_own_and_one_chunk() {
        let arena = arena();
        let ((a, first), (b, second)) = (allocate(&arena, 100), allocate(&arena, 100));
        let (key, offset) = arena.exports.offer(&arena, a, first).unwrap();
        let (other, behind) = arena.exports.offer(&arena, b, second).unwrap();
        assert_ne!(key, other);
        assert_eq!((offset, behind), (0, b - a));
        free(&arena, a);
        assert!(arena.exports.lend(&arena, key).is_none(), "freed");
        assert!(arena.exports.lend(&arena, other).is_some());
    }

    #[test]
    fn what_has_been_freed_is_not_offered() {
        let arena = arena();
        let (start, id) = allocate(&arena, 5 * MIB);
        free(&arena, start);
        assert!(arena.exports.offer(&arena, start, id).is_err());
        let (again, _) = allocate(&arena, 5 * MIB);
        assert_eq!(again, start);
        assert!(arena.exports.offer(&arena, start, id).is_err(), "somebody else's now");
    }

    #[test]
    fn memory_is_given_back_when_nobody_makes_descriptors_of_it_any_more() {
        let arena = arena();
        let (start, id) = allocate(&arena, 5 * MIB);
        let (key, _) = arena.exports.offer(&arena, start, id).unwrap();
        let lent = arena.exports.lend(&arena, key).unwrap();
        let (done, freed) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                free(&arena, start);
                done.send(()).unwrap();
            });
            // It cannot be found once the other thread is waiting.
            while arena.exports.lend(&arena, key).is_some() {
                thread::yield_now();
            }
            assert!(freed.try_recv().is_err());
            drop(lent);
            freed.recv().unwrap();
        });
        assert!(lock(&arena.exports.list).is_empty() && lock(&arena.handles).is_empty());
    }
}
