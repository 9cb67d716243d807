//! The driver's memory IPC (`cuIpcGetMemHandle`, `cuIpcOpenMemHandle`, `cuIpcCloseMemHandle`) for memory that emuV placed.
//! The driver refuses it for memory that is mapped from handles, as emuV's is; what it gives for such memory is another
//! way, by file descriptors. So the handle that the program carries over is a token of ours, and the descriptors of the
//! allocation's chunks follow over a socket (`emuv_state::sharing`). Both processes run under emuV: a handle of the
//! driver's own goes to the driver, and a token does not get past it.
//!
//! - What is exported comes to VRAM and stays there (`moves/pins.rs`). Chunks in VRAM are made exportable from the start
//!   (`emuv_cuda::DriverGpu`): to make them anew when they are exported would need a moment in which nothing touches them,
//!   in a call that waits for nothing in the driver, and before the first chunk lies in RAM nobody knows what the GPU was
//!   given; and it would need their size once more in a VRAM that may be full.
//! - As in the driver, a handle stands for the whole allocation whichever address in it is given, is the same each time,
//!   and opening it gives the allocation's start. Small allocations share a chunk, all of which the other process then sees,
//!   as with the driver's.
//! - The exporter serves descriptors from a thread that starts with the first export (`server.rs`). An exporter that has
//!   ended, or has freed the memory, is `CUDA_ERROR_INVALID_HANDLE` to whoever opens, at once. What is open stays: the
//!   importer's handles keep the memory, whatever becomes of the exporter.
//! - Opening in the exporting process is `CUDA_ERROR_INVALID_CONTEXT`; a second time in the same context counts, and gives
//!   the address again; what is open goes with its context. Imported memory is charged to its exporter alone.
//! - Memory of stream-ordered pools is the driver's to answer for: it refuses.

mod exports;
mod imports;
mod server;

use emuv_cuda::{CUresult, CuError, CuResult, types::CUdevice};
use emuv_policy::Owner;
use emuv_state::sharing::{TOKEN_BYTES, Token};

pub(crate) use exports::Exports;
pub(crate) use imports::Imported;
use imports::Imports;
use server::Server;
pub(crate) use server::forked;

use crate::{calls, device::Device, log, moves, pools::POOL_OWNER, session::Session, sync::OnceLock};

/// See the module's head. One per process.
#[derive(Debug, Default)]
pub(crate) struct Ipc {
    server: OnceLock<Option<Server>>,
    imports: Imports,
}

/// An error of that code.
fn error(code: CUresult) -> CuError {
    code.ok().err().unwrap_or(CuError::INVALID_VALUE)
}

impl Ipc {
    /// The token of the allocation that `address` lies in, which it exports. `None`: it is the driver's to answer.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where nothing is allocated, `CUDA_ERROR_OUT_OF_MEMORY` where VRAM has no room for it,
    /// `CUDA_ERROR_OPERATING_SYSTEM` where the system refuses a socket or a thread.
    pub fn export(&self, session: &'static Session, address: u64) -> CuResult<Option<[u8; TOKEN_BYTES]>> {
        let Some(device) = session.device_at(address) else { return Ok(None) };
        let (start, allocation) = device.find(address).ok_or(CuError::INVALID_VALUE)?;
        let arena = &device.arena;
        if allocation.owner == POOL_OWNER || !arena.gpu().can_export() {
            return Ok(None);
        }
        moves::pinned(session, start)?;
        let server = self.server.get_or_init(|| {
            Server::start(session).inspect_err(|e| log::error(format_args!("no memory is exported: {e}"))).ok()
        });
        let server = server.as_ref().ok_or(error(CUresult::CUDA_ERROR_OPERATING_SYSTEM))?;
        let device_uuid = calls::uuid(session.real, device.ordinal)?;
        let (key, offset) = arena.exports.offer(arena, start, allocation.id)?;
        Ok(Some(
            Token {
                server: server.name(),
                key,
                device: device_uuid,
                bytes: allocation.bytes,
                offset_bytes: u32::try_from(offset).unwrap_or(0),
                process: std::process::id(),
            }
            .encode(),
        ))
    }

    /// Opens what a token stands for, in the current context. `None`: it is no token.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_CONTEXT` without a current context and in the process that exported it,
    /// `CUDA_ERROR_INVALID_HANDLE` where the exporter or the memory is gone, else the driver's own.
    pub fn open(&self, session: &Session, bytes: &[u8; TOKEN_BYTES]) -> CuResult<Option<u64>> {
        let Some(token) = Token::decode(bytes) else { return Ok(None) };
        let own = self.server.get().and_then(Option::as_ref).is_some_and(|server| server.name() == token.server);
        let (context, device) = session.here().filter(|_| !own).ok_or(error(CUresult::INVALID_CONTEXT))?;
        self.imports.settle(session);
        let ordinal = ordinal_of(session, &token.device).unwrap_or(device.ordinal);
        self.imports.open(device, context, &token, ordinal).map(Some)
    }

    /// Closes what was opened at `address`, once. `None`: nothing was.
    ///
    /// # Errors
    /// What waiting for the GPU gave; it is still open then.
    pub fn close(&self, session: &Session, address: u64) -> CuResult<Option<()>> {
        self.imports.close(session, address)
    }

    /// What is open at an address.
    pub fn imported_at(&self, address: u64) -> Option<Imported> {
        self.imports.at(address)
    }

    /// These contexts are gone, and what was open in them.
    pub fn contexts_gone(&self, device: &Device, contexts: &[Owner]) {
        self.imports.contexts_gone(device, contexts);
    }
}

/// The device of that UUID, if this process sees it.
fn ordinal_of(session: &Session, uuid: &[u8; 16]) -> Option<CUdevice> {
    let count = calls::device_count(session.real).ok()?;
    (0..count).find(|ordinal| calls::uuid(session.real, *ordinal).is_ok_and(|found| found == *uuid))
}
