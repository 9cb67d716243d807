//! The driver's memory IPC: allocations of other processes, mapped here. A handle says in which process and under which
//! descriptor the memory's file is open; whoever runs as the same user can open it there, as long as it is.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, Mutex},
};

use emuv_cuda::{CUresult, CuResult};
use rustix::fs::{Mode, OFlags, open};

use super::{
    heap::Allocation,
    physical::{Physical, Place, error},
    region::Access,
    space::Space,
};
use crate::{handles, sync::lock};

/// What begins a handle.
const MAGIC: [u8; 8] = *b"simIPC01";

/// An allocation in another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    process: u32,
    descriptor: u32,
    inode: u64,
    /// Where it starts in the file, in bytes.
    offset: u64,
    bytes: u64,
    /// CUDA ordinal of its device, the same in both processes if they see the same devices.
    ordinal: u32,
}

/// What is open here.
#[derive(Debug, Clone, Copy)]
pub struct Import {
    /// First address.
    pub base: u64,
    /// The allocation's size in bytes.
    pub bytes: u64,
    /// The context that opened it.
    pub context: u64,
    /// CUDA ordinal of its device.
    pub ordinal: i32,
    /// Number that tells allocations apart.
    pub id: u64,
    /// By what it was opened, if more than once is the same.
    name: Option<Name>,
    references: u64,
    /// The mapping: where it starts and its size in bytes.
    mapping: (u64, u64),
}

/// All that is open in this process, by first address.
#[derive(Debug, Default)]
pub struct Imports(Mutex<BTreeMap<u64, Import>>);

impl Import {
    /// Whether it came from another interface: then it is freed as memory, not closed.
    pub fn is_lent(&self) -> bool {
        self.name.is_none()
    }
}

fn gone() -> emuv_cuda::CuError {
    error(CUresult::CUDA_ERROR_INVALID_HANDLE)
}

impl Name {
    /// The name of an allocation of this process.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where it has no memory.
    pub fn of(space: &Space, allocation: &Allocation) -> CuResult<Self> {
        let mapped = space.mapped(allocation.base).ok_or(error(CUresult::INVALID_VALUE))?;
        Ok(Self {
            process: std::process::id(),
            descriptor: u32::try_from(mapped.physical.as_fd().as_raw_fd()).unwrap_or(u32::MAX),
            inode: mapped.physical.inode(),
            offset: allocation.base - mapped.base,
            bytes: allocation.bytes,
            ordinal: u32::try_from(allocation.ordinal).unwrap_or(u32::MAX),
        })
    }

    /// The name as the bytes of a handle.
    pub fn encode(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.process.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.descriptor.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.inode.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.offset.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.ordinal.to_le_bytes());
        bytes
    }

    /// Reads a handle.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for bytes that are none.
    pub fn decode(bytes: &[u8; 64]) -> CuResult<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if bytes[..8] != MAGIC {
            return Err(error(CUresult::INVALID_VALUE));
        }
        Ok(Self {
            process: word(8),
            descriptor: word(12),
            inode: long(16),
            offset: long(24),
            bytes: long(32),
            ordinal: word(40),
        })
    }

    /// Its memory, if that is still there.
    fn fetch(&self) -> CuResult<Arc<Physical>> {
        let path = format!("/proc/{}/fd/{}", self.process, self.descriptor);
        let file = open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|_| gone())?;
        let ordinal = i32::try_from(self.ordinal).map_err(|_| gone())?;
        let physical = Physical::import(file, Place::Vram(ordinal)).map_err(|_| gone())?;
        let fits = self.offset.checked_add(self.bytes).is_some_and(|end| end <= physical.bytes());
        if physical.inode() == self.inode && fits { Ok(physical) } else { Err(gone()) }
    }
}

/// Maps `part` (offset and size in bytes) of memory for a context and the device of an ordinal.
fn map(space: &Space, physical: Arc<Physical>, part: (u64, u64), owner: (u64, i32)) -> CuResult<Import> {
    let ((offset, bytes), (context, ordinal), whole) = (part, owner, physical.bytes());
    if bytes == 0 || offset.checked_add(bytes).is_none_or(|end| end > whole) {
        return Err(error(CUresult::INVALID_VALUE));
    }
    let start = space.reserve(whole, 0, 0)?;
    let handle = space.adopt(physical);
    let mapped = space
        .map(start, whole, 0, handle)
        .and_then(|()| space.set_access(start, whole, &[(ordinal, Access::ReadWrite)]));
    space.release(handle)?;
    if let Err(failure) = mapped {
        // Whichever step failed; unmapping what is not mapped changes nothing.
        let _ = space.unmap(start, whole);
        space.unreserve(start, whole)?;
        return Err(failure);
    }
    let (base, id) = (start + offset, handles::fresh());
    Ok(Import { base, bytes, context, ordinal, id, name: None, references: 1, mapping: (start, whole) })
}

impl Imports {
    /// Opens an allocation in a context, for a device.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_CONTEXT` for one of this process, `CUDA_ERROR_INVALID_HANDLE` for one that is gone.
    pub fn open(&self, space: &Space, name: Name, context: u64, ordinal: i32) -> CuResult<u64> {
        if name.process == std::process::id() {
            return Err(error(CUresult::INVALID_CONTEXT));
        }
        let mut open = lock(&self.0);
        if let Some(import) = open.values_mut().find(|import| import.name == Some(name) && import.context == context) {
            import.references += 1;
            return Ok(import.base);
        }
        let import = map(space, name.fetch()?, (name.offset, name.bytes), (context, ordinal))?;
        open.insert(import.base, Import { name: Some(name), ..import });
        Ok(import.base)
    }

    /// Maps part of memory that came another way.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for a part that is not in it.
    pub fn lend(&self, space: &Space, physical: Arc<Physical>, part: (u64, u64), owner: (u64, i32)) -> CuResult<u64> {
        let import = map(space, physical, part, owner)?;
        lock(&self.0).insert(import.base, import);
        Ok(import.base)
    }

    /// What is open at an address.
    pub fn find(&self, address: u64) -> Option<Import> {
        let open = lock(&self.0);
        let (base, import) = open.range(..=address).next_back()?;
        (address - base < import.bytes).then_some(*import)
    }

    /// Whether a mapping that starts at `start` is of an import.
    pub fn owns(&self, start: u64) -> bool {
        lock(&self.0).values().any(|import| import.mapping.0 == start)
    }

    /// Closes what was opened at `base`, once.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where nothing was.
    pub fn close(&self, space: &Space, base: u64) -> CuResult {
        let mut open = lock(&self.0);
        let import = open.get_mut(&base).ok_or(error(CUresult::INVALID_VALUE))?;
        import.references -= 1;
        if import.references > 0 {
            return Ok(());
        }
        let (start, bytes) = import.mapping;
        open.remove(&base);
        space.unmap(start, bytes)?;
        space.unreserve(start, bytes)
    }

    /// Closes everything of a context.
    pub fn close_all_of(&self, space: &Space, context: u64) {
        for import in lock(&self.0).extract_if(.., |_, import| import.context == context).map(|(_, import)| import) {
            let (start, bytes) = import.mapping;
            // What is listed is mapped: this cannot fail, and nobody could be told.
            let _ = space.unmap(start, bytes).and_then(|()| space.unreserve(start, bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: Name = Name { process: 7, descriptor: 9, inode: 1 << 40, offset: 512, bytes: 5 << 33, ordinal: 1 };

    #[test]
    fn a_handle_is_what_it_was_made_of() {
        assert_eq!(Name::decode(&NAME.encode()).unwrap(), NAME);
        assert!(Name::decode(&[0; 64]).is_err());
    }

    #[test]
    fn what_is_gone_and_what_is_ones_own_cannot_be_opened() {
        let (imports, space) = (Imports::default(), Space::default());
        let code = |name| imports.open(&space, name, 1, 0).unwrap_err().code();
        assert_eq!(code(Name { process: u32::MAX, ..NAME }), CUresult::CUDA_ERROR_INVALID_HANDLE);
        assert_eq!(code(Name { process: std::process::id(), ..NAME }), CUresult::INVALID_CONTEXT);
        assert!(imports.close(&space, 0x1000).is_err());
    }
}
