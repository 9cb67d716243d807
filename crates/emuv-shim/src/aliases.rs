//! Second mappings of handles: while a chunk's bytes are copied into a handle, its own address still shows the
//! old one, so the new one is reached through an address here. A handle keeps its alias for life.

use std::collections::HashMap;

use emuv_cuda::{CuError, CuResult, Gpu, Handle};

use crate::{arena::lock, sync::Mutex};

/// Address space for aliases: more than any machine has memory for.
const WINDOW_BYTES: u64 = 1 << 40;

/// See the module's head. One per arena.
#[derive(Debug, Default)]
pub(crate) struct Aliases(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Start and size of the reserved range, and what of it has never been used.
    window: Option<(u64, u64)>,
    unused: u64,
    /// Addresses to be used again, by size.
    free: HashMap<u64, Vec<u64>>,
    /// Address and size in bytes.
    of: HashMap<Handle, (u64, u64)>,
}

impl State {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        if let Some(address) = self.free.get_mut(&bytes).and_then(Vec::pop) {
            return Some(address);
        }
        let (start, size) = self.window?;
        if self.unused + bytes > size {
            return None;
        }
        self.unused += bytes;
        Some(start + self.unused - bytes)
    }
}

impl Aliases {
    /// The handle's alias, made now if it has none.
    ///
    /// # Errors
    /// The driver's own.
    pub fn of(&self, gpu: &dyn Gpu, handle: Handle, bytes: u64) -> CuResult<u64> {
        if let Some((address, _)) = lock(&self.0).of.get(&handle) {
            return Ok(*address);
        }
        if lock(&self.0).window.is_none() {
            let start = gpu.reserve(WINDOW_BYTES, 0)?;
            lock(&self.0).window.get_or_insert((start, WINDOW_BYTES));
        }
        let address = lock(&self.0).take(bytes).ok_or(CuError::INVALID_VALUE)?;
        if let Err(error) = gpu.map(address, bytes, handle) {
            lock(&self.0).free.entry(bytes).or_default().push(address);
            return Err(error);
        }
        lock(&self.0).of.insert(handle, (address, bytes));
        Ok(address)
    }

    /// Releases a handle that is mapped nowhere but at its alias, if it has one.
    ///
    /// # Errors
    /// The driver's own.
    pub fn release(&self, gpu: &dyn Gpu, handle: Handle) -> CuResult {
        let alias = lock(&self.0).of.remove(&handle);
        let unmapped = alias.map_or(Ok(()), |(address, bytes)| {
            let unmapped = gpu.unmap(address, bytes);
            if unmapped.is_ok() {
                lock(&self.0).free.entry(bytes).or_default().push(address);
            }
            unmapped
        });
        unmapped.and(gpu.release(handle))
    }
}
