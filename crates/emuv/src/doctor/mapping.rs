//! A reserved address range with chunks of either tier mapped one after the other, as emuV lays out the
//! memory of a program.

use emuv_cuda::{CuResult, Gpu, Handle};
use emuv_policy::Tier;

use super::device::Span;

/// The range and its chunks; all of it is given back with the value. Whoever drops it has waited for the
/// GPU's work on it.
pub struct Mapping<'g> {
    gpu: &'g dyn Gpu,
    reserved: Span,
    chunks: Vec<(Span, Handle)>,
}

impl<'g> Mapping<'g> {
    /// Reserves room for that many bytes, a multiple of the granularity.
    ///
    /// # Errors
    /// The driver's own.
    pub fn reserve(gpu: &'g dyn Gpu, bytes: u64) -> CuResult<Self> {
        let address = gpu.reserve(bytes, 0)?;
        Ok(Self { gpu, reserved: Span { address, bytes }, chunks: Vec::new() })
    }

    /// Maps a new chunk behind the last one.
    ///
    /// # Errors
    /// `CUDA_ERROR_OUT_OF_MEMORY` where the tier has no room, else the driver's own.
    pub fn append(&mut self, tier: Tier, bytes: u64) -> CuResult<Span> {
        let span = Span { address: self.reserved.address + self.span().bytes, bytes };
        let handle = self.gpu.create(tier, bytes)?;
        if let Err(error) = self.gpu.map(span.address, bytes, handle) {
            let _ = self.gpu.release(handle);
            return Err(error);
        }
        self.chunks.push((span, handle));
        Ok(span)
    }

    /// What is mapped, from the first chunk to the last.
    pub fn span(&self) -> Span {
        let bytes = self.chunks.iter().map(|(span, _)| span.bytes).sum();
        Span { address: self.reserved.address, bytes }
    }
}

impl Drop for Mapping<'_> {
    fn drop(&mut self) {
        for (span, handle) in &self.chunks {
            let _ = self.gpu.unmap(span.address, span.bytes);
            let _ = self.gpu.release(*handle);
        }
        let _ = self.gpu.unreserve(self.reserved.address, self.reserved.bytes);
    }
}

/// Pinned chunks that are mapped nowhere: whether the host gives that much.
pub struct Pinned<'g> {
    gpu: &'g dyn Gpu,
    handles: Vec<Handle>,
}

impl<'g> Pinned<'g> {
    /// Creates up to `count` chunks; fewer, with the driver's error, where it refuses one.
    pub fn create(gpu: &'g dyn Gpu, chunk_bytes: u64, count: u64) -> (Self, CuResult) {
        let mut pinned = Self { gpu, handles: Vec::new() };
        for _ in 0..count {
            match gpu.create(Tier::Ram, chunk_bytes) {
                Ok(handle) => pinned.handles.push(handle),
                Err(error) => return (pinned, Err(error)),
            }
        }
        (pinned, Ok(()))
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.handles.len() as u64
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        for handle in &self.handles {
            let _ = self.gpu.release(*handle);
        }
    }
}
