//! What is searched for pointers around a work: before it what it is given, behind it what it may have written.

use emuv_cuda::types::*;
use emuv_policy::{Owner, SearchRanges};

use super::{Device, Entered, Lane, Moves, offsets, search::Search};
use crate::{arena::Arena, session::Session, sync::atomic::Ordering, touch::Touch};

/// A copy is about to bring what the host has there: what that leads to is known now.
pub(super) fn brought(session: &Session, touch: &Touch) {
    if touch.brought.is_empty() {
        return;
    }
    for device in session.devices() {
        let offsets = offsets(&device.arena, touch.brought.iter().copied());
        device.moves.searcher.know(&offsets);
        device.arena.residency().brought(&offsets);
    }
}

/// What to search behind a work on device `here` for pointers into the arena of `device`: what it may have written there,
/// and in memory of other devices that may touch the arena; and whether that is all of it.
pub(super) fn search_for(
    session: &Session,
    device: &Device,
    here: CUdevice,
    entered: &Entered<'_>,
    touch: &Touch,
) -> (Search, bool) {
    let mut sources = session.others(device.ordinal).peekable();
    let begun = |of: &Device| entered.iter().find(|(other, ..)| other.ordinal == of.ordinal).map(|(.., begun)| begun);
    let ranges = |of: &Device, begun| of.arena.residency().ranges(&offsets(&of.arena, touch.addresses()), begun);
    let in_reach = session.peers.may_touch(here, device.ordinal);
    let mut search = searching(&device.arena, ranges(device, begun(device).filter(|_| in_reach)), touch.maker);
    if in_reach && sources.peek().is_none() {
        search.ranges.extend(&touch.pinned);
        return (search, true);
    }
    // Code writes where pointers to this arena are of use; a copy brings what lies where it comes from.
    let copies = touch.maker == 0;
    let mut complete = in_reach && session.peers.are_readers_placed(session, device.ordinal);
    if !in_reach {
        search.ranges.clear();
    }
    search.ranges.extend(&touch.pinned);
    for source in sources.filter(|source| session.peers.may_touch(here, source.ordinal)) {
        if !copies && !session.peers.may_touch(source.ordinal, device.ordinal) {
            continue;
        }
        let named = touch.addresses().any(|address| source.arena.contains(address));
        if named || !copies {
            search.ranges.extend(searching(&source.arena, ranges(source, begun(source)), 0).ranges);
        }
        complete |= named && copies && !in_reach;
        if session.peers.may_touch(source.ordinal, device.ordinal) && source.arena.residency().is_unsearched() {
            complete = false;
        }
    }
    (search, complete)
}

/// A search behind a work of `maker`.
pub(super) fn searching(arena: &Arena, ranges: SearchRanges, maker: u64) -> Search {
    Search {
        ranges: ranges.written.into_iter().map(|(at, bytes)| (arena.base() + at, bytes)).collect(),
        by: (maker != 0).then_some((maker, ranges.named)),
    }
}

impl Moves {
    /// Issues a search in what a kernel is given, right before it: what stands there already (memory is not cleared when it is
    /// freed) is not what the kernel stores. Where it cannot be issued more is taken for that.
    pub(super) fn search_before(
        &self,
        session: &Session,
        device: &Device,
        here: CUdevice,
        (context, lane): (Owner, Lane),
        touch: &Touch,
    ) {
        // A copy is no code; and a search reads what this device may touch, no more.
        if touch.maker == 0 || !session.peers.may_touch(here, device.ordinal) {
            return;
        }
        let arena = &device.arena;
        let mut ranges = arena.residency().ranges(&offsets(arena, touch.addresses()), None);
        ranges.written.truncate(ranges.own);
        let search = searching(arena, ranges, 0);
        self.prepare_search(session, arena, context);
        let _ = self.searcher.issue(session.real, context, lane.handle(), &search, (arena.base(), arena.bytes()));
    }

    fn prepare_search(&self, session: &Session, arena: &Arena, context: Owner) {
        // Loading code is not allowed while something is captured.
        if !self.searcher.is_ready(context) && !session.captures.any() {
            let _ = self.searcher.prepare(session.real, context, (arena.base(), arena.bytes()));
        }
    }

    /// Issues a search for pointers in what a work of `maker` may have written, right behind it; `complete`: it looks through all of
    /// that.
    pub(super) fn search_behind(
        &self,
        session: &Session,
        device: &Device,
        (context, lane): (Owner, Lane),
        maker: u64,
        (mut search, complete): (Search, bool),
    ) {
        let arena = &device.arena;
        if let Some(counters) = session.counters(device.ordinal) {
            counters.searches.fetch_add(1, Ordering::Relaxed);
        }
        let window = (arena.base(), arena.bytes());
        self.prepare_search(session, arena, context);
        search.ranges.extend(session.globals.of(Some(context)));
        let issued = self.searcher.issue(session.real, context, lane.handle(), &search, window);
        if issued.is_err() || !complete {
            arena.residency().search_failed(maker);
        }
    }
}
