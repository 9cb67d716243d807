//! Belady's rule (MIN, with bypass), byte for byte: of what is in VRAM and what a work touches, that stays which is needed
//! soonest. No way of placing misses fewer bytes, as chunks may be cut anywhere and nothing takes time. (L. A. Belady, "A
//! study of replacement algorithms for a virtual-storage computer", 1966.)

use std::collections::BTreeMap;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Belady {
    vram_bytes: u64,
    /// What is in VRAM of each chunk, by when it is needed next.
    resident: BTreeMap<(u32, u32), u64>,
    held_bytes: u64,
}

impl Belady {
    /// An empty VRAM of this size.
    pub fn new(vram_bytes: u64) -> Self {
        Self { vram_bytes, resident: BTreeMap::new(), held_bytes: 0 }
    }

    /// The work `now` touches all `bytes` of a chunk; `next` is the work that needs them after it (`None`: nobody, or they
    /// are overwritten first). How many of them were not in VRAM.
    pub fn touch(&mut self, now: u32, chunk: u32, bytes: u64, next: Option<u32>) -> u64 {
        let had = self.resident.remove(&(now, chunk)).unwrap_or(0);
        self.held_bytes -= had;
        if let Some(next) = next {
            self.resident.insert((next, chunk), bytes);
            self.held_bytes += bytes;
        }
        bytes - had
    }

    /// The work has touched everything that it does: what is too much goes.
    pub fn done(&mut self) {
        while self.held_bytes > self.vram_bytes {
            let Some((last, bytes)) = self.resident.pop_last() else { break };
            let gone = bytes.min(self.held_bytes - self.vram_bytes);
            self.held_bytes -= gone;
            if bytes > gone {
                self.resident.insert(last, bytes - gone);
            }
        }
    }
}
