//! What a device's arena has exported. An allocation is on the list from its export until its memory is given back;
//! that waits while the server is making descriptors of it.

use std::{
    collections::HashMap,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use emuv_cuda::{CUresult, CuError, CuResult, Handle};
use emuv_policy::{AllocationId, Chunk};
use emuv_state::sharing::Key;

use crate::arena::{Arena, lock};

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
