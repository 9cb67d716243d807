//! Chunks with nothing behind their address: sent away by plan, or out of reach under `emuv verify`.

use emuv_cuda::CuResult;

use super::{Arena, Mutex, lock};

impl Arena {
    /// From now on chunks may be hidden ([`Self::show_only`]); `leaves`: what holds nothing may keep its mapping for that.
    pub fn may_hide(&mut self, leaves: bool) {
        self.hidden = Some(Mutex::default());
        self.leaves = leaves;
    }

    /// Maps the chunks that a work may touch and takes the mapping of all others away; their memory stays. Nothing
    /// runs. Gives how many are not mapped.
    ///
    /// # Errors
    /// The driver's own, at the first chunk that it refuses.
    pub fn show_only(&self, offsets: &[u64], everything: bool) -> CuResult<usize> {
        let Some(hidden) = &self.hidden else { return Ok(0) };
        // Held over all of it: what is looked at now is not given back, and nothing new comes in its place.
        let mut hidden = lock(hidden);
        let (within, outside) = self.residency().access_set(offsets, everything);
        for (offset, bytes) in within {
            if hidden.contains(&offset) {
                self.map_again(offset, bytes)?;
                hidden.remove(&offset);
                self.is_within_reach(offset);
            }
        }
        for (offset, bytes) in outside {
            if !hidden.contains(&offset) && lock(&self.handles).contains_key(&offset) {
                self.gpu.unmap(self.base + offset, bytes)?;
                hidden.insert(offset);
            }
        }
        Ok(hidden.len())
    }

    /// Maps a chunk that was left without a mapping.
    ///
    /// # Errors
    /// The driver's own.
    pub fn show(&self, offset: u64, bytes: u64) -> CuResult {
        if self.is_hidden(offset) {
            self.map_again(offset, bytes)?;
            self.set_hidden(offset, false);
        }
        Ok(())
    }

    /// Whether nothing is behind the chunk's address.
    pub fn is_hidden(&self, offset: u64) -> bool {
        self.hidden.as_ref().is_some_and(|hidden| lock(hidden).contains(&offset))
    }

    pub(super) fn set_hidden(&self, offset: u64, to: bool) {
        let Some(hidden) = &self.hidden else { return };
        if to {
            lock(hidden).insert(offset);
            return;
        }
        lock(hidden).remove(&offset);
        self.is_within_reach(offset);
    }

    /// The program may write to the chunk from now on.
    fn is_within_reach(&self, offset: u64) {
        if let Some(handle) = lock(&self.handles).get(&offset) {
            self.contents.forget(*handle);
        }
    }
}
