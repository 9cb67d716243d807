//! Reading and writing any address of the process without risking a signal.
//!
//! A small file in memory is the go-between: `pwrite` from an address into the file reads memory, `pread`
//! from the file to an address writes it, and where nothing is mapped the kernel says `EFAULT` instead of
//! delivering SIGSEGV. That is also what makes a race with an unmapping harmless to the simulator.
//!
//! # Safety
//! Addresses come from the simulated program, which vouches for them as it does to a real GPU: a kernel that
//! is told to overwrite the program's own memory does so. The kernel does the access, so an address that is
//! not mapped is an error and never undefined behaviour. References are made only into the scratch file's own
//! mapping, which `&mut self` guards.
#![allow(unsafe_code)]

use std::{
    ffi::c_void,
    io,
    os::fd::{AsRawFd, OwnedFd},
    ptr, slice,
};

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::{self, MapFlags, ProtFlags},
};

use super::length;

/// Bytes that one transfer moves at most.
pub const BLOCK_BYTES: usize = 256 << 10;

/// The address could not be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreachable;

/// A thread's go-between.
#[derive(Debug)]
pub struct Scratch {
    file: OwnedFd,
    block: *mut u8,
}

// SAFETY: the mapping is owned by this object and reached only through `&mut self`.
unsafe impl Send for Scratch {}

impl Scratch {
    /// Makes the file and maps it.
    ///
    /// # Errors
    /// The system's own, e.g. no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let file = memfd_create("emuv-sim-scratch", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, BLOCK_BYTES as u64)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: no MAP_FIXED: the kernel picks free addresses.
        let block = unsafe { mm::mmap(ptr::null_mut(), BLOCK_BYTES, protection, flags, &file, 0) }?;
        Ok(Self { file, block: block.cast() })
    }

    /// Copies `bytes` (at most [`BLOCK_BYTES`]) at `address` into the block.
    fn fetch(&mut self, address: u64, bytes: usize) -> Result<(), Unreachable> {
        self.each(address, bytes, |file, at, offset, rest| {
            // SAFETY: the kernel reads `rest` bytes at `at` and reports what is not mapped.
            unsafe { libc::pwrite(file, at.cast_const(), rest, offset) }
        })
    }

    /// Copies `bytes` (at most [`BLOCK_BYTES`]) of the block to `address`.
    fn put(&mut self, address: u64, bytes: usize) -> Result<(), Unreachable> {
        self.each(address, bytes, |file, at, offset, rest| {
            // SAFETY: the kernel writes `rest` bytes at `at` and reports what is not mapped.
            unsafe { libc::pread(file, at, rest, offset) }
        })
    }

    /// Repeats a transfer until all of it is done: the kernel stops short before an unmapped page.
    fn each(
        &self,
        address: u64,
        bytes: usize,
        transfer: impl Fn(i32, *mut c_void, i64, usize) -> isize,
    ) -> Result<(), Unreachable> {
        let mut done = 0;
        while done < bytes {
            let at = address.checked_add(done as u64).ok_or(Unreachable)?;
            let offset = i64::try_from(done).map_err(|_| Unreachable)?;
            let at = ptr::with_exposed_provenance_mut(length(at));
            match usize::try_from(transfer(self.file.as_raw_fd(), at, offset, bytes - done)) {
                Ok(0) => return Err(Unreachable),
                Ok(moved) => done += moved,
                Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Unreachable),
            }
        }
        Ok(())
    }

    fn block(&mut self, bytes: usize) -> &mut [u8] {
        // SAFETY: the mapping is BLOCK_BYTES long, lives as long as `self`, and `&mut self` makes this the
        // only reference; the kernel touches it only inside `fetch` and `put`, which also need `&mut self`.
        unsafe { slice::from_raw_parts_mut(self.block, bytes.min(BLOCK_BYTES)) }
    }

    /// Reads memory at `address`.
    ///
    /// # Errors
    /// [`Unreachable`] where part of the range is not mapped or not readable.
    pub fn load(&mut self, address: u64, into: &mut [u8]) -> Result<(), Unreachable> {
        let mut at = address;
        for part in into.chunks_mut(BLOCK_BYTES) {
            self.fetch(at, part.len())?;
            part.copy_from_slice(self.block(part.len()));
            at = at.wrapping_add(part.len() as u64);
        }
        Ok(())
    }

    /// Writes memory at `address`.
    ///
    /// # Errors
    /// [`Unreachable`] where part of the range is not mapped or not writable; what lies before is written.
    pub fn store(&mut self, address: u64, from: &[u8]) -> Result<(), Unreachable> {
        let mut at = address;
        for part in from.chunks(BLOCK_BYTES) {
            self.block(part.len()).copy_from_slice(part);
            self.put(at, part.len())?;
            at = at.wrapping_add(part.len() as u64);
        }
        Ok(())
    }

    /// Copies at most [`BLOCK_BYTES`] from one address to another.
    ///
    /// # Errors
    /// [`Unreachable`] where one of the ranges is not mapped.
    pub fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), Unreachable> {
        let bytes = bytes.min(BLOCK_BYTES);
        self.fetch(from, bytes)?;
        self.put(to, bytes)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and no reference outlives `self`.
        let _ = unsafe { mm::munmap(self.block.cast(), BLOCK_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::region::{Access, Region};

    #[test]
    fn memory_is_copied_and_what_is_not_mapped_is_an_error() {
        let mut scratch = Scratch::new().unwrap();
        let region = Region::reserve(4 << 20, 0, 0).unwrap();
        assert_eq!(scratch.load(region.base(), &mut [0; 8]), Err(Unreachable));
        let file = memfd_create("t", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 2 << 20).unwrap();
        region.map(region.base(), 2 << 20, &file).unwrap();
        assert_eq!(scratch.store(region.base(), &[1]), Err(Unreachable), "mapped, but without access");
        region.protect(region.base(), 2 << 20, Access::ReadWrite).unwrap();
        let data: Vec<u8> = (0..600_000_u32).map(|i| i.to_le_bytes()[0]).collect();
        scratch.store(region.base() + 5, &data).unwrap();
        let mut back = vec![0; data.len()];
        scratch.load(region.base() + 5, &mut back).unwrap();
        assert!(back == data);
        // A range that runs out of the mapping.
        assert_eq!(scratch.load(region.base() + (2 << 20) - 4, &mut [0; 8]), Err(Unreachable));
    }
}
