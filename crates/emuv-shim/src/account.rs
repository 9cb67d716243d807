//! Memory that a program takes by ways that emuV does not place (yet): it is charged against the VRAM
//! budget, so that the budget holds whichever way a program allocates.

use std::collections::{BTreeMap, HashMap};

use emuv_policy::Tier;

use crate::{arena::lock, device::Device, leases::Wants, session::Session, sync::Mutex};

/// The kinds, each with handles of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// CUDA arrays and mipmapped arrays.
    Array,
    /// Memory of `cuMemAllocManaged`.
    Managed,
    /// A stream-ordered pool: what it holds, used or not.
    Pool,
    /// All memory nodes of a device's graphs.
    Graph,
    /// A handle of `cuMemCreate`.
    Handle,
    /// The image of a module or library.
    Image,
    /// What a limit of a context takes (stacks, heap, print buffer).
    Limit,
    /// Memory of another interface (Vulkan, OpenGL, EGL), used from CUDA.
    External,
}

#[derive(Debug, Default)]
struct Entry {
    bytes: u64,
    /// References: of handles, creations and retains not yet released, and mappings.
    references: u64,
}

/// What is charged, by kind and driver handle. One per device.
#[derive(Debug, Default)]
pub(crate) struct Accounts(Mutex<HashMap<(Kind, u64), Entry>>);

impl Accounts {
    /// Books a charge under the handle that it got, with one reference.
    pub fn book(&self, kind: Kind, handle: u64, bytes: u64) {
        let entry = Entry { bytes, references: 1 };
        lock(&self.0).insert((kind, handle), entry);
    }

    /// One more reference. False if the handle is not booked here.
    pub fn retain(&self, kind: Kind, handle: u64) -> bool {
        let mut entries = lock(&self.0);
        let entry = entries.get_mut(&(kind, handle));
        entry.map(|entry| entry.references += 1).is_some()
    }

    /// One reference less; with the last one the charge goes. False if the handle is not booked here.
    pub fn release(&self, device: &Device, kind: Kind, handle: u64) -> bool {
        let mut entries = lock(&self.0);
        let Some(entry) = entries.get_mut(&(kind, handle)) else { return false };
        entry.references = entry.references.saturating_sub(1);
        if entry.references > 0 {
            return true;
        }
        let bytes = entry.bytes;
        entries.remove(&(kind, handle));
        drop(entries);
        device.arena.with_memory(|memory| memory.credit_unspilled(bytes));
        true
    }

    /// Sets what something that grows and shrinks by itself holds now. What goes beyond the budget is there all the same,
    /// so it is charged as far as the budget goes; memory of other interfaces beyond it, so that chunks make room for it.
    pub fn settle(&self, session: &Session, device: &Device, kind: Kind, handle: u64, bytes: u64) {
        let before = lock(&self.0).get(&(kind, handle)).map_or(0, |entry| entry.bytes);
        let lease = device.lease(session, Wants::UpTo(Tier::Vram, bytes.saturating_sub(before)));
        let mut entries = lock(&self.0);
        let entry = entries.entry((kind, handle)).or_default();
        device.arena.with_memory(|memory| {
            memory.credit_unspilled(entry.bytes);
            let most = if kind == Kind::External { u64::MAX } else { memory.budgets().vram.room_bytes() };
            entry.bytes = memory.charge_lent(bytes.min(most));
        });
        drop(entries);
        device.end_lease(lease);
    }

    /// The handles of a kind.
    pub fn handles(&self, kind: Kind) -> Vec<u64> {
        lock(&self.0).keys().filter(|(k, _)| *k == kind).map(|(_, handle)| *handle).collect()
    }
}

/// Where the program mapped handles of its own: address -> (size in bytes, handle).
#[derive(Debug, Default)]
pub(crate) struct Mappings(Mutex<BTreeMap<u64, (u64, u64)>>);

impl Mappings {
    /// The program mapped a handle.
    pub fn add(&self, address: u64, bytes: u64, handle: u64) {
        lock(&self.0).insert(address, (bytes, handle));
    }

    /// The program unmapped a range; gives the handles that were mapped in it.
    pub fn take(&self, address: u64, bytes: u64) -> Vec<u64> {
        let mut mappings = lock(&self.0);
        let gone: Vec<u64> = mappings.range(address..address.saturating_add(bytes)).map(|(start, _)| *start).collect();
        gone.into_iter().filter_map(|start| Some(mappings.remove(&start)?.1)).collect()
    }
}
