//! Address ranges of the process and what is mapped in them.
//!
//! # Safety
//! A [`Region`] owns its address range from `mmap` to `munmap`: every `MAP_FIXED` mapping and every change of
//! protection is bounds-checked to lie inside it, so nothing that belongs to others is ever replaced. No Rust
//! reference into a region is ever made (its bytes are reached through the kernel, see `scratch.rs`), so
//! changing what is mapped there cannot invalidate one.
#![allow(unsafe_code)]

use std::{ffi::c_void, io, os::fd::AsFd, ptr};

use rustix::mm::{self, MapFlags, MprotectFlags, ProtFlags};

use super::{GRANULARITY_BYTES, length};

/// What the GPU may do with a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Access {
    /// Nothing: a touch is a fault.
    #[default]
    None,
    /// Read.
    Read,
    /// Read and write.
    ReadWrite,
}

/// An owned address range, at first without memory and without access.
#[derive(Debug)]
pub struct Region {
    base: u64,
    bytes: u64,
}

const RESERVED: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);

fn pointer(address: u64) -> *mut c_void {
    ptr::with_exposed_provenance_mut(length(address))
}

impl Region {
    /// Reserves addresses: `alignment_bytes` is a power of two, `hint` a wish (0: none).
    ///
    /// # Errors
    /// The system's own, e.g. when the address space is used up.
    pub fn reserve(bytes: u64, alignment_bytes: u64, hint: u64) -> io::Result<Self> {
        let alignment_bytes = alignment_bytes.max(GRANULARITY_BYTES);
        if bytes == 0 || !alignment_bytes.is_power_of_two() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let whole = bytes.checked_add(alignment_bytes).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: no MAP_FIXED: the kernel picks free addresses, the hint is only a wish.
        let start = unsafe { mm::mmap_anonymous(pointer(hint), length(whole), ProtFlags::empty(), RESERVED) }?;
        let start = start.expose_provenance() as u64;
        let base = start.next_multiple_of(alignment_bytes);
        let (end, whole_end) = (base + bytes, start + whole);
        for (address, surplus) in [(start, base - start), (end, whole_end - end)] {
            if surplus > 0 {
                // SAFETY: part of the mapping just made, outside of what is kept.
                unsafe { mm::munmap(pointer(address), length(surplus)) }?;
            }
        }
        Ok(Self { base, bytes })
    }

    /// Ordinary zeroed memory, for pinned host allocations.
    ///
    /// # Errors
    /// The system's own.
    pub fn host(bytes: u64) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: no MAP_FIXED: the kernel picks free addresses.
        let start =
            unsafe { mm::mmap_anonymous(ptr::null_mut(), length(bytes), ProtFlags::READ | ProtFlags::WRITE, flags) }?;
        Ok(Self { base: start.expose_provenance() as u64, bytes })
    }

    /// The first address.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn inside(&self, address: u64, bytes: u64) -> io::Result<*mut c_void> {
        let offset = address.checked_sub(self.base).ok_or(io::ErrorKind::InvalidInput)?;
        let fits = bytes > 0 && offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        if fits { Ok(pointer(address)) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// Maps a file's first `bytes` bytes at `address`, still without access.
    ///
    /// # Errors
    /// The system's own; `InvalidInput` outside of the region.
    pub fn map(&self, address: u64, bytes: u64, file: impl AsFd) -> io::Result<()> {
        let at = self.inside(address, bytes)?;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: replaces only addresses of this region, into which no reference exists.
        unsafe { mm::mmap(at, length(bytes), ProtFlags::empty(), flags, file, 0) }?;
        Ok(())
    }

    /// Removes what is mapped at `address`; the addresses stay reserved.
    ///
    /// # Errors
    /// The system's own; `InvalidInput` outside of the region.
    pub fn clear(&self, address: u64, bytes: u64) -> io::Result<()> {
        let at = self.inside(address, bytes)?;
        // SAFETY: replaces only addresses of this region, into which no reference exists.
        unsafe { mm::mmap_anonymous(at, length(bytes), ProtFlags::empty(), RESERVED | MapFlags::FIXED) }?;
        Ok(())
    }

    /// Sets what may be done with mapped addresses.
    ///
    /// # Errors
    /// The system's own; `InvalidInput` outside of the region.
    pub fn protect(&self, address: u64, bytes: u64, access: Access) -> io::Result<()> {
        let at = self.inside(address, bytes)?;
        let flags = match access {
            Access::None => MprotectFlags::empty(),
            Access::Read => MprotectFlags::READ,
            Access::ReadWrite => MprotectFlags::READ | MprotectFlags::WRITE,
        };
        // SAFETY: changes only addresses of this region, into which no reference exists.
        unsafe { mm::mprotect(at, length(bytes), flags) }?;
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range is owned since `mmap` and nobody refers to it any more. An error cannot be
        // handled here and would only leave addresses unused.
        let _ = unsafe { mm::munmap(pointer(self.base), length(self.bytes)) };
    }
}
