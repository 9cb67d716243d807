//! The mover searches memory for pointers, and reads what searches have found.

use emuv_cuda::{CuError, CuResult, types::CUfunction};
use emuv_policy::{Bytes, Tier};

use super::Mover;
use crate::{
    calls,
    device::Device,
    log,
    moves::{copies, search::Search},
    sync::atomic::Ordering,
};

impl Mover {
    /// Searches all memory for pointers, and the globals; nothing runs meanwhile. False: it cannot be done yet.
    pub(super) fn search_all(&mut self, ranges: &[(u64, u64)]) -> bool {
        let arena = &self.device.arena;
        let mut all: Vec<(u64, u64)> = ranges.iter().map(|(offset, bytes)| (arena.base() + offset, *bytes)).collect();
        all.extend(self.session.globals.of(self.context));
        // Devices that may touch this memory may keep pointers to it in theirs, where nothing moves meanwhile.
        let readers = self.session.peers.readers_of(self.session, self.device.ordinal);
        let may = readers.is_empty() || !self.session.captures.any();
        let lent = readers.iter().take_while(|reader| may && reader.arena.residency().lend()).count();
        let found = (lent == readers.len()).then(|| {
            if !self.session.peers.are_readers_placed(self.session, self.device.ordinal) {
                return Err(CuError::NOT_SUPPORTED);
            }
            readers.iter().try_for_each(|reader| self.search_at(reader))?;
            self.search_and_read(&all)
        });
        for reader in &readers[..lent] {
            reader.arena.residency().returned();
            reader.arena.settled.notify_all();
        }
        let Some(found) = found else {
            arena.residency().search_put_off();
            return false;
        };
        if let Err(error) = &found {
            log::debug(format_args!("no search for pointers ({error}): data moves only when nothing runs"));
        }
        arena.residency().searched_all(found.as_deref().ok());
        arena.settled.notify_all();
        true
    }

    fn search_and_read(&self, ranges: &[(u64, u64)]) -> CuResult<Vec<u64>> {
        let (real, arena, searcher) = (self.session.real, &self.device.arena, &self.device.moves.searcher);
        let window = (arena.base(), arena.bytes());
        let (Some(context), Some(copies)) = (self.context, &self.copies) else { return Err(CuError::INVALID_VALUE) };
        let stream = copies.stream(Tier::Vram);
        searcher.prepare(real, context, window)?;
        let search = Search { ranges: ranges.to_vec(), ..Search::default() };
        searcher.issue(real, context, stream, &search, window)?;
        calls::synchronize_stream(real, stream)?;
        Ok(searcher.findings(window).offsets)
    }

    /// Searches another device's memory for pointers to this one's, and waits for it.
    fn search_at(&self, reader: &Device) -> CuResult {
        let (real, arena, searcher) = (self.session.real, &self.device.arena, &self.device.moves.searcher);
        let window = (arena.base(), arena.bytes());
        let Some(context) = reader.a_context() else { return Ok(()) };
        let mut search = Search::default();
        for (offset, bytes) in reader.arena.residency().all() {
            search.ranges.push((reader.arena.readable_at(offset, bytes)?, bytes));
        }
        search.ranges.extend(self.session.globals.of(Some(context)));
        calls::in_context(real, context, || {
            searcher.prepare(real, context, window)?;
            copies::on_a_stream(real, |stream| searcher.issue(real, context, stream, &search, window))
        })
    }

    /// Reads what the searches behind works have found.
    pub(super) fn collect(&self) {
        let arena = &self.device.arena;
        let searches = arena.residency().collecting();
        let mut found = self.device.moves.searcher.findings((arena.base(), arena.bytes()));
        let in_tables = self.device.moves.tables.stored(&searches, &self.session.host_ranges);
        let in_arena = in_tables.into_iter().filter(|address| arena.contains(*address));
        found.offsets.extend(in_arena.map(|address| address - arena.base()));
        // What code does with pointers it does on all devices, and the searches behind a work are all done when one is.
        for other in self.session.others(self.device.ordinal) {
            found.storers.extend(other.moves.searcher.storers((other.arena.base(), other.arena.bytes())));
        }
        found.storers.sort_unstable();
        found.storers.dedup();
        let escaped_bytes = {
            let mut residency = arena.residency();
            residency.doubted(&found.doubted);
            residency.collected(&searches, &found.offsets, &found.storers);
            residency.escaped_bytes()
        };
        // Works may be held until this is known.
        arena.settled.notify_all();
        if let Some(counters) = self.session.counters(self.device.ordinal) {
            let before = counters.escaped_bytes.swap(escaped_bytes, Ordering::Relaxed);
            if escaped_bytes > before {
                let (bytes, storers, doubted) = (Bytes(escaped_bytes), found.storers.len(), found.doubted.len());
                log::debug(format_args!(
                    "pointers lead to {bytes} now; {storers} kernels or graphs store what they are given, {doubted} more may"
                ));
                for maker in self.device.moves.searcher.untold(&found.storers) {
                    // A graph has no name.
                    if self.session.functions.is_known(maker) {
                        let name = calls::function_name(self.session.real, maker as CUfunction);
                        log::debug(format_args!("it stores what it is given: {name}"));
                    }
                }
            }
        }
    }
}
