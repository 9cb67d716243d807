//! The address space: reservations, the memory mapped in them, and host memory that the GPU can reach.
//!
//! Mapping and unmapping take effect at once: they wait for no stream and are ordered with none.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use emuv_cuda::{CUresult, CuResult};

use super::{
    GRANULARITY_BYTES,
    physical::{Physical, Place, error},
    region::{Access, Region},
};
use crate::{account::Charge, handles, sync::lock};

/// Memory mapped at an address.
#[derive(Debug)]
struct Mapping {
    physical: Arc<Physical>,
    handle: u64,
    /// What each device may do, by CUDA ordinal; a device that is not listed may do nothing.
    access: Vec<(i32, Access)>,
}

#[derive(Debug)]
struct Reservation {
    region: Region,
    mappings: BTreeMap<u64, Mapping>,
}

/// A program's handle to physical memory.
#[derive(Debug)]
struct Handle {
    physical: Arc<Physical>,
    references: u64,
}

/// Host memory that devices can reach.
#[derive(Debug)]
pub struct HostMemory {
    /// Size in bytes.
    pub bytes: u64,
    /// Flags that the program gave.
    pub flags: u32,
    /// Whether the program brought the memory (`cuMemHostRegister`).
    pub registered: bool,
    /// The context that it belongs to.
    pub context: u64,
    /// Number that tells allocations apart.
    pub id: u64,
    /// The memory itself, where it is ours.
    pub region: Option<Region>,
    /// What it takes of the pinned memory.
    pub charge: Option<Charge>,
}

/// What a device finds at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Bytes from the address on for which this holds.
    pub bytes: u64,
    /// Whether the access goes over the link.
    pub over_link: bool,
}

/// A mapping as others see it.
#[derive(Debug, Clone)]
pub struct Mapped {
    /// First address.
    pub base: u64,
    /// The memory there.
    pub physical: Arc<Physical>,
    /// What each device may do.
    pub access: Vec<(i32, Access)>,
}

#[derive(Debug, Default)]
struct State {
    reservations: BTreeMap<u64, Reservation>,
    handles: HashMap<u64, Handle>,
    hosts: BTreeMap<u64, HostMemory>,
}

/// The process's one device address space.
#[derive(Debug, Default)]
pub struct Space {
    state: Mutex<State>,
}

fn invalid<T>() -> CuResult<T> {
    Err(error(CUresult::INVALID_VALUE))
}

fn is_range(address: u64, bytes: u64) -> bool {
    bytes > 0
        && bytes.is_multiple_of(GRANULARITY_BYTES)
        && address.is_multiple_of(GRANULARITY_BYTES)
        && address.checked_add(bytes).is_some()
}

impl State {
    fn reservation(&mut self, address: u64, bytes: u64) -> CuResult<&mut Reservation> {
        let found = self.reservations.range_mut(..=address).next_back().map(|(_, reservation)| reservation);
        match found {
            Some(r) if address + bytes <= r.region.base() + r.region.bytes() => Ok(r),
            _ => invalid(),
        }
    }

    fn mapping(&self, address: u64) -> Option<(u64, &Mapping)> {
        let (_, reservation) = self.reservations.range(..=address).next_back()?;
        let (&base, mapping) = reservation.mappings.range(..=address).next_back()?;
        (address < base + mapping.physical.bytes()).then_some((base, mapping))
    }

    fn host(&self, address: u64) -> Option<(u64, &HostMemory)> {
        let (&base, host) = self.hosts.range(..=address).next_back()?;
        (address < base + host.bytes).then_some((base, host))
    }
}

impl Reservation {
    /// The bases of the mappings that fill a range exactly, in order.
    fn exactly(&self, address: u64, bytes: u64) -> CuResult<Vec<u64>> {
        let mut at = address;
        let mut bases = Vec::new();
        while at < address + bytes {
            let Some(mapping) = self.mappings.get(&at) else { return invalid() };
            bases.push(at);
            at += mapping.physical.bytes();
        }
        if at == address + bytes { Ok(bases) } else { invalid() }
    }
}

impl Space {
    /// Reserves addresses.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for a size that is no multiple of the granularity,
    /// `CUDA_ERROR_OUT_OF_MEMORY` when the address space is used up.
    pub fn reserve(&self, bytes: u64, alignment_bytes: u64, hint: u64) -> CuResult<u64> {
        if bytes == 0 || !bytes.is_multiple_of(GRANULARITY_BYTES) {
            return invalid();
        }
        if alignment_bytes != 0 && !alignment_bytes.is_power_of_two() {
            return invalid();
        }
        let region = Region::reserve(bytes, alignment_bytes, hint).map_err(|_| error(CUresult::OUT_OF_MEMORY))?;
        let base = region.base();
        lock(&self.state).reservations.insert(base, Reservation { region, mappings: BTreeMap::new() });
        Ok(base)
    }

    /// Gives a whole reservation back; nothing may be mapped in it.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` otherwise.
    pub fn unreserve(&self, address: u64, bytes: u64) -> CuResult {
        let mut state = lock(&self.state);
        match state.reservations.get(&address) {
            Some(r) if r.region.bytes() == bytes && r.mappings.is_empty() => {
                state.reservations.remove(&address);
                Ok(())
            }
            _ => invalid(),
        }
    }

    /// Makes a handle for physical memory.
    pub fn adopt(&self, physical: Arc<Physical>) -> u64 {
        let handle = handles::fresh();
        lock(&self.state).handles.insert(handle, Handle { physical, references: 1 });
        handle
    }

    /// Makes a handle for memory that came as a file: the same memory, if this process knows it.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where the file is no exported memory.
    pub fn import(&self, file: OwnedFd, otherwise: Place) -> CuResult<u64> {
        let imported = Physical::import(file, otherwise)?;
        let known = {
            let state = lock(&self.state);
            let mapped = state.reservations.values().flat_map(|r| r.mappings.values()).map(|m| &m.physical);
            let mut all = state.handles.values().map(|h| &h.physical).chain(mapped);
            all.find(|physical| physical.inode() == imported.inode()).cloned()
        };
        Ok(self.adopt(known.unwrap_or(imported)))
    }

    /// The memory of a handle.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for a handle that was released.
    pub fn physical(&self, handle: u64) -> CuResult<Arc<Physical>> {
        match lock(&self.state).handles.get(&handle) {
            Some(found) => Ok(Arc::clone(&found.physical)),
            None => invalid(),
        }
    }

    /// Gives one reference to a handle back. Its memory stays while it is mapped.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for a handle that was released.
    pub fn release(&self, handle: u64) -> CuResult {
        let mut state = lock(&self.state);
        let Some(found) = state.handles.get_mut(&handle) else { return invalid() };
        found.references -= 1;
        if found.references == 0 {
            state.handles.remove(&handle);
        }
        Ok(())
    }

    /// One more reference to the handle that is mapped at an address.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where nothing is mapped.
    pub fn retain(&self, address: u64) -> CuResult<u64> {
        let mut state = lock(&self.state);
        let Some((_, mapping)) = state.mapping(address) else { return invalid() };
        let (handle, physical) = (mapping.handle, Arc::clone(&mapping.physical));
        state.handles.entry(handle).or_insert(Handle { physical, references: 0 }).references += 1;
        Ok(handle)
    }

    /// Maps a handle's memory, at first without access.
    ///
    /// # Errors
    /// `CUDA_ERROR_NOT_SUPPORTED` for part of a handle, `CUDA_ERROR_INVALID_VALUE` where the range is not
    /// reserved or not free.
    pub fn map(&self, address: u64, bytes: u64, offset: u64, handle: u64) -> CuResult {
        let mut state = lock(&self.state);
        let Some(physical) = state.handles.get(&handle).map(|h| Arc::clone(&h.physical)) else { return invalid() };
        if offset != 0 {
            return Err(error(CUresult::NOT_SUPPORTED));
        }
        if !is_range(address, bytes) || bytes != physical.bytes() {
            return invalid();
        }
        let reservation = state.reservation(address, bytes)?;
        let before = reservation.mappings.range(..address + bytes).next_back();
        if before.is_some_and(|(base, mapping)| base + mapping.physical.bytes() > address) {
            return invalid();
        }
        let mapped = reservation.region.map(address, bytes, physical.as_ref());
        mapped.map_err(|_| error(CUresult::CUDA_ERROR_MAP_FAILED))?;
        reservation.mappings.insert(address, Mapping { physical, handle, access: Vec::new() });
        Ok(())
    }

    /// Sets what devices may do with whole mappings.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where the range is not exactly one or several mappings.
    pub fn set_access(&self, address: u64, bytes: u64, grants: &[(i32, Access)]) -> CuResult {
        if !is_range(address, bytes) {
            return invalid();
        }
        let mut state = lock(&self.state);
        let reservation = state.reservation(address, bytes)?;
        for base in reservation.exactly(address, bytes)? {
            let Some(mapping) = reservation.mappings.get_mut(&base) else { continue };
            for &(ordinal, access) in grants {
                mapping.access.retain(|(device, _)| *device != ordinal);
                mapping.access.push((ordinal, access));
            }
            let widest = mapping.access.iter().map(|(_, access)| *access).max().unwrap_or_default();
            let changed = reservation.region.protect(base, mapping.physical.bytes(), widest);
            changed.map_err(|_| error(CUresult::UNKNOWN))?;
        }
        Ok(())
    }

    /// Removes one or several whole mappings.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where the range is not exactly one or several mappings.
    pub fn unmap(&self, address: u64, bytes: u64) -> CuResult {
        if !is_range(address, bytes) {
            return invalid();
        }
        let mut state = lock(&self.state);
        let reservation = state.reservation(address, bytes)?;
        let bases = reservation.exactly(address, bytes)?;
        let cleared = reservation.region.clear(address, bytes);
        cleared.map_err(|_| error(CUresult::CUDA_ERROR_UNMAP_FAILED))?;
        for base in bases {
            reservation.mappings.remove(&base);
        }
        Ok(())
    }

    /// Whether an address belongs to a reservation, whatever is mapped there.
    pub fn is_reserved(&self, address: u64) -> bool {
        let state = lock(&self.state);
        let found = state.reservations.range(..=address).next_back();
        found.is_some_and(|(base, reservation)| address - base < reservation.region.bytes())
    }

    /// The mapping that covers an address.
    pub fn mapped(&self, address: u64) -> Option<Mapped> {
        let state = lock(&self.state);
        let (base, mapping) = state.mapping(address)?;
        Some(Mapped { base, physical: Arc::clone(&mapping.physical), access: mapping.access.clone() })
    }

    /// Makes host memory reachable for devices.
    ///
    /// # Errors
    /// `CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED` where it overlaps memory that is.
    pub fn add_host(&self, base: u64, host: HostMemory) -> CuResult {
        let mut state = lock(&self.state);
        let end = base.checked_add(host.bytes).ok_or(error(CUresult::INVALID_VALUE))?;
        if state.hosts.range(..end).next_back().is_some_and(|(at, other)| at + other.bytes > base) {
            return Err(error(CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED));
        }
        state.hosts.insert(base, host);
        Ok(())
    }

    /// Ends host memory that starts at `base`, if it is of the wanted kind.
    pub fn remove_host(&self, base: u64, registered: bool) -> Option<HostMemory> {
        let mut state = lock(&self.state);
        state.hosts.get(&base).filter(|host| host.registered == registered)?;
        state.hosts.remove(&base)
    }

    /// Ends all host memory of a context.
    pub fn remove_hosts_of(&self, context: u64) {
        lock(&self.state).hosts.retain(|_, host| host.context != context);
    }

    /// Looks at the host memory that covers an address.
    pub fn with_host<T>(&self, address: u64, look: impl FnOnce(u64, &HostMemory) -> T) -> Option<T> {
        let state = lock(&self.state);
        state.host(address).map(|(base, host)| look(base, host))
    }

    /// What a device finds at an address; `None` is a fault.
    pub fn reach(&self, address: u64, ordinal: i32, write: bool) -> Option<Reach> {
        let state = lock(&self.state);
        if let Some((base, mapping)) = state.mapping(address) {
            let needed = if write { Access::ReadWrite } else { Access::Read };
            let allowed = mapping.access.iter().any(|&(device, access)| device == ordinal && access >= needed);
            let over_link = mapping.physical.place() != Place::Vram(ordinal);
            let bytes = base + mapping.physical.bytes() - address;
            return allowed.then_some(Reach { bytes, over_link });
        }
        let (base, host) = state.host(address)?;
        Some(Reach { bytes: base + host.bytes - address, over_link: true })
    }
}
