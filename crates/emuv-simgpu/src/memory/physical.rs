//! Physical memory: a file in memory, charged to the GPU or to the host as long as it lives.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use emuv_cuda::{CUresult, CuResult};
use emuv_policy::Bytes;
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};

use crate::account::{Account, Charge};

/// Where physical memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the memory of the GPU with this CUDA ordinal.
    Vram(i32),
    /// In host memory: any (`None`) or of one NUMA node.
    Host(Option<i32>),
}

/// A piece of physical memory. It lives while a handle or a mapping does.
#[derive(Debug)]
pub struct Physical {
    file: OwnedFd,
    bytes: u64,
    place: Place,
    /// `requestedHandleTypes` of its creator.
    pub handle_types: u32,
    inode: u64,
    _charge: Option<Charge>,
}

impl Physical {
    /// Takes memory from an account.
    ///
    /// # Errors
    /// `CUDA_ERROR_OUT_OF_MEMORY` when the account or the system has no more.
    pub fn create(account: &Arc<Account>, place: Place, bytes: u64, handle_types: u32) -> CuResult<Arc<Self>> {
        let Some(charge) = account.charge(Bytes(bytes)) else {
            return Err(error(CUresult::OUT_OF_MEMORY));
        };
        let file = file(bytes).map_err(|_| error(CUresult::OUT_OF_MEMORY))?;
        let inode = fstat(&file).map_or(0, |stat| stat.st_ino);
        Ok(Arc::new(Self { file, bytes, place, handle_types, inode, _charge: Some(charge) }))
    }

    /// Memory of another interface, which makes room for it by its own means.
    ///
    /// # Errors
    /// `CUDA_ERROR_OUT_OF_MEMORY` when the system has no more.
    pub fn uncharged(place: Place, bytes: u64) -> CuResult<Arc<Self>> {
        Self::import(file(bytes).map_err(|_| error(CUresult::OUT_OF_MEMORY))?, place)
    }

    /// Memory that another process created and charged.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where the descriptor is no file.
    pub fn import(file: OwnedFd, place: Place) -> CuResult<Arc<Self>> {
        let stat = fstat(&file).map_err(|_| error(CUresult::INVALID_VALUE))?;
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if bytes == 0 || !bytes.is_multiple_of(super::GRANULARITY_BYTES) {
            return Err(error(CUresult::INVALID_VALUE));
        }
        Ok(Arc::new(Self { file, bytes, place, handle_types: 1, inode: stat.st_ino, _charge: None }))
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The file's identity, the same in every process.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// A descriptor for another process.
    ///
    /// # Errors
    /// The system's own.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.file.try_clone()
    }
}

impl AsFd for Physical {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn file(bytes: u64) -> io::Result<OwnedFd> {
    let file = memfd_create("emuv-sim-memory", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, bytes)?;
    Ok(file)
}

/// A result code that is known to be an error.
pub fn error(code: CUresult) -> emuv_cuda::CuError {
    // A success here would be a mistake of the simulator: it must not pass for one.
    code.ok().and_then(|()| CUresult::UNKNOWN.ok()).err().unwrap_or_else(|| error(CUresult::UNKNOWN))
}
