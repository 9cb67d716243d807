//! `cuMemAlloc` and its kin: small allocations packed into 2 MiB slabs, larger ones in memory of their own.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use emuv_cuda::{CUresult, CuResult};

use super::{
    GRANULARITY_BYTES,
    physical::{Physical, Place, error},
    region::Access,
    space::Space,
};
use crate::{account::Account, handles, sync::lock};

/// Alignment of every allocation.
pub const ALIGNMENT_BYTES: u64 = 512;

/// What the program got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// First address.
    pub base: u64,
    /// Size as asked for, in bytes.
    pub bytes: u64,
    /// Context that owns it.
    pub context: u64,
    /// CUDA ordinal of the device whose memory it is.
    pub ordinal: i32,
    /// Number that tells allocations apart, also at the same address.
    pub id: u64,
    /// The pool it came from, 0 for none.
    pub pool: u64,
    /// Freed in the order of a stream that has not come there yet: no longer the program's.
    pub doomed: bool,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// What pays.
    pub vram: &'a Arc<Account>,
    /// CUDA ordinal of the device.
    pub ordinal: i32,
    /// The context.
    pub context: u64,
    /// The pool, 0 for none.
    pub pool: u64,
}

/// 2 MiB of one context, shared by small allocations.
#[derive(Debug)]
struct Slab {
    context: u64,
    ordinal: i32,
    /// Free parts: offset and length.
    gaps: BTreeMap<u64, u64>,
}

impl Slab {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let (&offset, &length) = self.gaps.iter().find(|(_, length)| **length >= bytes)?;
        self.gaps.remove(&offset);
        if length > bytes {
            self.gaps.insert(offset + bytes, length - bytes);
        }
        Some(offset)
    }

    fn give(&mut self, mut offset: u64, mut bytes: u64) {
        if let Some(after) = self.gaps.remove(&(offset + bytes)) {
            bytes += after;
        }
        if let Some((&before, &length)) = self.gaps.range(..offset).next_back()
            && before + length == offset
        {
            self.gaps.remove(&before);
            offset = before;
            bytes += length;
        }
        self.gaps.insert(offset, bytes);
    }

    fn is_empty(&self) -> bool {
        self.gaps.get(&0) == Some(&GRANULARITY_BYTES)
    }
}

#[derive(Debug, Default)]
struct State {
    allocations: BTreeMap<u64, Allocation>,
    slabs: BTreeMap<u64, Slab>,
}

/// All of a process's allocations in device memory.
#[derive(Debug, Default)]
pub struct Heap {
    state: Mutex<State>,
}

impl Heap {
    /// Allocates device memory.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for no bytes, `CUDA_ERROR_OUT_OF_MEMORY` when there is no room.
    pub fn allocate(&self, space: &Space, owner: Owner<'_>, bytes: u64) -> CuResult<Allocation> {
        if bytes == 0 {
            return Err(error(CUresult::INVALID_VALUE));
        }
        let mut state = lock(&self.state);
        let base = if bytes < GRANULARITY_BYTES {
            state.small(space, owner, bytes.next_multiple_of(ALIGNMENT_BYTES))?
        } else {
            let whole = bytes.checked_next_multiple_of(GRANULARITY_BYTES).ok_or(error(CUresult::OUT_OF_MEMORY))?;
            block(space, owner, whole)?
        };
        let Owner { context, ordinal, pool, .. } = owner;
        let allocation = Allocation { base, bytes, context, ordinal, id: handles::fresh(), pool, doomed: false };
        state.allocations.insert(base, allocation);
        Ok(allocation)
    }

    /// Frees the allocation that starts at `base`.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where none does.
    pub fn free(&self, space: &Space, base: u64) -> CuResult {
        let mut state = lock(&self.state);
        if state.allocations.get(&base).is_none_or(|allocation| allocation.doomed) {
            return Err(error(CUresult::INVALID_VALUE));
        }
        state.remove(space, base)
    }

    /// The program frees what starts at `base`, but it stays until [`Heap::free_doomed`]. Gives its id.
    pub fn doom(&self, base: u64) -> CuResult<u64> {
        let mut state = lock(&self.state);
        let live = state.allocations.get_mut(&base).filter(|allocation| !allocation.doomed);
        let allocation = live.ok_or(error(CUresult::INVALID_VALUE))?;
        allocation.doomed = true;
        Ok(allocation.id)
    }

    /// Frees what was doomed, unless it has gone meanwhile, e.g. with its context.
    pub fn free_doomed(&self, space: &Space, base: u64, id: u64) -> CuResult {
        let mut state = lock(&self.state);
        if state.allocations.get(&base).is_some_and(|allocation| allocation.id == id) {
            state.remove(space, base)?;
        }
        Ok(())
    }

    /// Frees everything of a context.
    pub fn free_all_of(&self, space: &Space, context: u64) {
        let mut state = lock(&self.state);
        let owned: Vec<u64> = state.allocations.values().filter(|a| a.context == context).map(|a| a.base).collect();
        for base in owned {
            if let Some(allocation) = state.allocations.remove(&base) {
                // What is listed is mapped: this cannot fail, and nobody could be told.
                let _ = state.give_back(space, allocation);
            }
        }
    }

    /// The allocation that covers an address.
    pub fn find(&self, address: u64) -> Option<Allocation> {
        let state = lock(&self.state);
        let (_, allocation) = state.allocations.range(..=address).next_back()?;
        (address - allocation.base < allocation.bytes).then_some(*allocation)
    }

    /// Whether a mapping that starts at `base` holds allocations.
    pub fn owns(&self, base: u64) -> bool {
        let state = lock(&self.state);
        state.slabs.contains_key(&base) || state.allocations.contains_key(&base)
    }

    /// Bytes that a pool's live allocations take.
    pub fn pool_bytes(&self, pool: u64) -> u64 {
        lock(&self.state).allocations.values().filter(|a| a.pool == pool).map(|a| a.bytes).sum()
    }
}

impl State {
    fn remove(&mut self, space: &Space, base: u64) -> CuResult {
        self.allocations.remove(&base).map_or(Ok(()), |allocation| self.give_back(space, allocation))
    }

    fn small(&mut self, space: &Space, owner: Owner<'_>, bytes: u64) -> CuResult<u64> {
        let own = |slab: &Slab| slab.context == owner.context && slab.ordinal == owner.ordinal;
        for (base, slab) in self.slabs.iter_mut().filter(|(_, slab)| own(slab)) {
            if let Some(offset) = slab.take(bytes) {
                return Ok(base + offset);
            }
        }
        let base = block(space, owner, GRANULARITY_BYTES)?;
        let gaps = BTreeMap::from([(bytes, GRANULARITY_BYTES - bytes)]);
        self.slabs.insert(base, Slab { context: owner.context, ordinal: owner.ordinal, gaps });
        Ok(base)
    }

    fn give_back(&mut self, space: &Space, allocation: Allocation) -> CuResult {
        let base = allocation.base;
        if allocation.bytes >= GRANULARITY_BYTES {
            return unblock(space, base, allocation.bytes.next_multiple_of(GRANULARITY_BYTES));
        }
        let slab_base = base - base % GRANULARITY_BYTES;
        let Some(slab) = self.slabs.get_mut(&slab_base) else { return Err(error(CUresult::UNKNOWN)) };
        slab.give(base - slab_base, allocation.bytes.next_multiple_of(ALIGNMENT_BYTES));
        if slab.is_empty() {
            self.slabs.remove(&slab_base);
            return unblock(space, slab_base, GRANULARITY_BYTES);
        }
        Ok(())
    }
}

/// Memory of the device at an address of its own, readable and writable.
fn block(space: &Space, owner: Owner<'_>, bytes: u64) -> CuResult<u64> {
    let physical = Physical::create(owner.vram, Place::Vram(owner.ordinal), bytes, 0)?;
    let base = space.reserve(bytes, 0, 0)?;
    let handle = space.adopt(physical);
    let mapped = space
        .map(base, bytes, 0, handle)
        .and_then(|()| space.set_access(base, bytes, &[(owner.ordinal, Access::ReadWrite)]));
    space.release(handle)?;
    if let Err(failure) = mapped {
        // Whichever step failed, the range is given back; unmapping what is not mapped changes nothing.
        let _ = space.unmap(base, bytes);
        space.unreserve(base, bytes)?;
        return Err(failure);
    }
    Ok(base)
}

fn unblock(space: &Space, base: u64, bytes: u64) -> CuResult {
    space.unmap(base, bytes)?;
    space.unreserve(base, bytes)
}

#[cfg(test)]
mod tests {
    use emuv_policy::Bytes;

    use super::*;

    fn owner(vram: &Arc<Account>) -> Owner<'_> {
        Owner { vram, ordinal: 0, context: 1, pool: 0 }
    }

    #[test]
    fn small_allocations_share_a_slab_and_give_it_back() {
        let (heap, space, vram) = (Heap::default(), Space::default(), Account::new(Bytes::mib(4)));
        let a = heap.allocate(&space, owner(&vram), 100).unwrap();
        let b = heap.allocate(&space, owner(&vram), 513).unwrap();
        assert_eq!(b.base - a.base, 512);
        assert_eq!(vram.used(), Bytes::mib(2));
        assert_eq!(heap.find(b.base + 512).map(|f| f.id), Some(b.id));
        assert_eq!(heap.find(b.base + 513), None, "beyond what was asked for");
        heap.free(&space, a.base).unwrap();
        assert!(heap.free(&space, a.base).is_err(), "a second time");
        assert!(heap.free(&space, b.base + 8).is_err(), "inside an allocation");
        heap.free(&space, b.base).unwrap();
        assert_eq!(vram.used(), Bytes::ZERO);
    }

    #[test]
    fn memory_can_be_used_to_the_last_byte_and_comes_back() {
        let (heap, space, vram) = (Heap::default(), Space::default(), Account::new(Bytes::mib(8)));
        let a = heap.allocate(&space, owner(&vram), 6 << 20).unwrap();
        let b = heap.allocate(&space, owner(&vram), (2 << 20) - 511).unwrap();
        assert_eq!(vram.used(), Bytes::mib(8));
        let failed = heap.allocate(&space, owner(&vram), 512).unwrap_err();
        assert!(failed.is_out_of_memory());
        heap.free(&space, b.base).unwrap();
        heap.allocate(&space, owner(&vram), 512).unwrap();
        heap.free(&space, a.base).unwrap();
        heap.free_all_of(&space, 1);
        assert_eq!(vram.used(), Bytes::ZERO);
        let _ = heap.allocate(&space, owner(&vram), u64::MAX).unwrap_err();
    }
}
