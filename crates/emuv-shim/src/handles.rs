//! The program's own device-memory handles (`cuMemCreate`), virtualised: what the program holds is a name of
//! ours, behind it is a real handle in VRAM or in RAM. So a program that manages its own address space
//! (PyTorch's expandable segments, vLLM, ggml) spills like any other.
//!
//! A handle lives while it is held (created or retained, not yet released) or mapped, as the driver's do.

use std::collections::{BTreeMap, HashMap};

use emuv_cuda::types::{CUdevice, CUmemAllocationHandleType};
use emuv_policy::Tier;

use crate::{arena::lock, sync::Mutex};

/// Names of ours start here. The driver's own are small numbers or addresses of the user half.
const FIRST_NAME: u64 = 0xE500_0000_0000_0001;

/// What is behind a name.
#[derive(Clone, Copy)]
pub(crate) struct Backing {
    /// The driver's handle.
    pub real: u64,
    /// Where it lies.
    pub tier: Tier,
    /// Its size in bytes.
    pub bytes: u64,
    /// The device that it is for.
    pub device: CUdevice,
    /// How the program wants to be able to export it.
    pub handle_types: CUmemAllocationHandleType,
    /// Whether the program wishes it to be reachable by RDMA.
    pub rdma_capable: bool,
}

/// A mapping of memory in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spilled {
    /// Where it starts.
    pub start: u64,
    /// Its size in bytes.
    pub bytes: u64,
}

struct Entry {
    backing: Backing,
    held: u64,
    mapped: u64,
    /// It is or was mapped, or known to others: it may hold something.
    used: bool,
}

/// All names of the process, and where they are mapped.
#[derive(Default)]
pub(crate) struct Handles(Mutex<State>);

#[derive(Default)]
struct State {
    entries: HashMap<u64, Entry>,
    /// Address -> (size in bytes, name).
    mappings: BTreeMap<u64, (u64, u64)>,
    count: u64,
}

impl State {
    /// Removes an entry that is neither held nor mapped.
    fn reap(&mut self, name: u64) -> Option<Backing> {
        let entry = self.entries.get(&name)?;
        if entry.held > 0 || entry.mapped > 0 {
            return None;
        }
        self.entries.remove(&name).map(|entry| entry.backing)
    }

    /// The mapping that `address` lies in: its start, its size in bytes, the name.
    fn mapping_at(&self, address: u64) -> Option<(u64, u64, u64)> {
        let (start, (bytes, name)) = self.mappings.range(..=address).next_back()?;
        (address - start < *bytes).then_some((*start, *bytes, *name))
    }
}

impl Handles {
    /// Gives a name to a new handle.
    pub fn add(&self, backing: Backing) -> u64 {
        let mut state = lock(&self.0);
        let name = FIRST_NAME + state.count;
        state.count += 1;
        state.entries.insert(name, Entry { backing, held: 1, mapped: 0, used: false });
        name
    }

    /// Whether `handle` is a name of ours, of a live handle or not.
    pub fn is_ours(handle: u64) -> bool {
        handle >= FIRST_NAME
    }

    /// What is behind a name that the program holds.
    pub fn get(&self, name: u64) -> Option<Backing> {
        lock(&self.0).entries.get(&name).filter(|entry| entry.held > 0).map(|entry| entry.backing)
    }

    /// As [`Self::get`], for somebody who is about to map it or to make it known to others: from then on it stays.
    pub fn get_for_use(&self, name: u64) -> Option<Backing> {
        let mut state = lock(&self.0);
        let entry = state.entries.get_mut(&name).filter(|entry| entry.held > 0)?;
        entry.used = true;
        Some(entry.backing)
    }

    /// Whether what is behind a name has never been used, so that nothing has been written to it.
    pub fn is_unused(&self, name: u64) -> bool {
        lock(&self.0).entries.get(&name).is_some_and(|entry| !entry.used)
    }

    /// Puts other memory of the same size behind a name that is held and unused. Gives what is to be given back: what was
    /// there, or the new memory where that has changed meanwhile.
    pub fn exchange(&self, name: u64, to: Backing) -> Backing {
        let mut state = lock(&self.0);
        match state.entries.get_mut(&name).filter(|entry| entry.held > 0 && !entry.used) {
            Some(entry) => std::mem::replace(&mut entry.backing, to),
            None => to,
        }
    }

    /// What is mapped at `address`, if the driver would call it host memory although the program made it as
    /// device memory.
    pub fn spilled_at(&self, address: u64) -> Option<Spilled> {
        let state = lock(&self.0);
        let (start, bytes, name) = state.mapping_at(address)?;
        let spilled = state.entries.get(&name)?.backing.tier == Tier::Ram;
        spilled.then_some(Spilled { start, bytes })
    }

    /// One holder less. `None`: nobody holds it. `Some(Some(..))`: it is to be given back now.
    #[allow(clippy::option_option)]
    pub fn release(&self, name: u64) -> Option<Option<Backing>> {
        let mut state = lock(&self.0);
        let entry = state.entries.get_mut(&name).filter(|entry| entry.held > 0)?;
        entry.held -= 1;
        Some(state.reap(name))
    }

    /// One holder more of what is mapped at `address`; its name.
    pub fn retain_at(&self, address: u64) -> Option<u64> {
        let mut state = lock(&self.0);
        let (_, _, name) = state.mapping_at(address)?;
        state.entries.get_mut(&name)?.held += 1;
        Some(name)
    }

    /// It has been mapped.
    pub fn mapped(&self, name: u64, address: u64, bytes: u64) {
        let mut state = lock(&self.0);
        if let Some(entry) = state.entries.get_mut(&name) {
            entry.mapped += 1;
            state.mappings.insert(address, (bytes, name));
        }
    }

    /// A range has been unmapped; what is to be given back now.
    pub fn unmapped(&self, address: u64, bytes: u64) -> Vec<Backing> {
        let mut state = lock(&self.0);
        let end = address.saturating_add(bytes);
        let starts: Vec<u64> = state.mappings.range(address..end).map(|(start, _)| *start).collect();
        let mut gone = Vec::new();
        for start in starts {
            let Some((_, name)) = state.mappings.remove(&start) else { continue };
            if let Some(entry) = state.entries.get_mut(&name) {
                entry.mapped -= 1;
            }
            gone.extend(state.reap(name));
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backing(real: u64) -> Backing {
        Backing { real, tier: Tier::Ram, bytes: 100, device: 0, handle_types: 0, rdma_capable: false }
    }

    fn real(backing: Option<Option<Backing>>) -> Option<Option<u64>> {
        backing.map(|backing| backing.map(|backing| backing.real))
    }

    #[test]
    fn a_handle_lives_while_it_is_held_or_mapped() {
        let handles = Handles::default();
        let name = handles.add(backing(7));
        handles.mapped(name, 0x1000, 100);
        handles.mapped(name, 0x2000, 100);
        assert_eq!(real(handles.release(name)), Some(None));
        assert!(handles.get(name).is_none());
        assert!(handles.unmapped(0x1000, 100).is_empty());
        assert_eq!(handles.unmapped(0x2000, 100).iter().map(|b| b.real).collect::<Vec<_>>(), [7]);
        assert!(handles.release(name).is_none());
    }

    #[test]
    fn retaining_by_address_holds_it_again() {
        let handles = Handles::default();
        let name = handles.add(backing(7));
        handles.mapped(name, 0x1000, 100);
        assert_eq!(real(handles.release(name)), Some(None));
        assert_eq!(handles.retain_at(0x1063), Some(name));
        assert_eq!(handles.retain_at(0x1064), None);
        assert!(handles.unmapped(0x1000, 100).is_empty());
        assert_eq!(real(handles.release(name)), Some(Some(7)));
    }

    #[test]
    fn an_interior_address_finds_the_spilled_mapping() {
        let handles = Handles::default();
        let name = handles.add(backing(7));
        handles.mapped(name, 0x1000, 0x100);
        assert_eq!(handles.spilled_at(0x1080), Some(Spilled { start: 0x1000, bytes: 0x100 }));
        assert_eq!(handles.spilled_at(0x1100), None);
    }

    #[test]
    fn only_what_was_never_used_is_exchanged() {
        let handles = Handles::default();
        let name = handles.add(backing(7));
        assert!(handles.is_unused(name));
        assert_eq!(handles.exchange(name, backing(8)).real, 7);
        assert_eq!(handles.get_for_use(name).map(|backing| backing.real), Some(8));
        assert!(!handles.is_unused(name), "it may hold something");
        assert_eq!(handles.exchange(name, backing(9)).real, 9);
        assert_eq!(real(handles.release(name)), Some(Some(8)));
        assert_eq!(handles.exchange(name, backing(10)).real, 10, "it is gone");
    }

    #[test]
    fn one_unmap_may_cover_several_mappings() {
        let handles = Handles::default();
        let (a, b) = (handles.add(backing(1)), handles.add(backing(2)));
        handles.mapped(a, 0x1000, 0x100);
        handles.mapped(b, 0x1100, 0x100);
        handles.release(a);
        handles.release(b);
        assert_eq!(handles.unmapped(0x1000, 0x200).len(), 2);
    }
}
