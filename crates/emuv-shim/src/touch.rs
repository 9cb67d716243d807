//! What a piece of GPU work may touch, as far as its call shows.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::{host_ranges::Reach, session::Session};

/// Addresses that most kernels have fewer of.
const INLINE: usize = 16;

/// Pinned memory in which the host has left pointers.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub start: u64,
    pub bytes: u64,
    /// The pointers, sorted.
    pub shown: Arc<[u64]>,
}

/// See the module's head. Filled by the entries, read by `moves`.
#[derive(Debug, Clone)]
pub(crate) struct Touch {
    addresses: SmallVec<[u64; INLINE]>,
    /// It may touch anything: its arguments cannot be read, or it can reach memory of the host in which not all pointers
    /// can be seen.
    pub everything: bool,
    /// Pinned memory that it can reach (address, bytes), in which no pointers are now; it may store some.
    pub pinned: Vec<(u64, u64)>,
    /// Such memory in which there are some: what they lead to is added.
    pub tables: Vec<Table>,
    /// Addresses in arenas that it brings from the host, all of them.
    pub brought: Vec<u64>,
    /// It may leave pointers into the arenas in memory that it writes, which no later argument shows.
    pub may_store_pointers: bool,
    /// Those pointers are from memory that is not searched, and may lead anywhere.
    pub may_bring_pointers: bool,
    /// The code that runs: a function or an executable graph, by its handle. Zero: none that could choose what to store.
    pub maker: u64,
    /// It runs on the current device alone, and reaches only what that device may touch.
    pub only_here: bool,
    /// Names what the work does whatever the data: function and grid, without arguments. Works of a kind read their
    /// data alike. Zero: not worth one.
    pub kind: u64,
}

impl Touch {
    /// Work that touches nothing of ours.
    pub fn nothing() -> Self {
        Self {
            addresses: SmallVec::new(),
            everything: false,
            pinned: Vec::new(),
            tables: Vec::new(),
            brought: Vec::new(),
            may_store_pointers: false,
            may_bring_pointers: false,
            maker: 0,
            only_here: false,
            kind: 0,
        }
    }

    /// Work that may touch everything.
    pub fn everything() -> Self {
        Self { everything: true, may_store_pointers: true, may_bring_pointers: true, ..Self::nothing() }
    }

    /// It brings pointers from memory that is not searched.
    pub fn brings_pointers(&mut self) {
        self.may_store_pointers = true;
        self.may_bring_pointers = true;
    }

    /// It copies `bytes` from the host's memory at `from` to `to`.
    pub fn brings(&mut self, session: &Session, to: u64, from: u64, bytes: usize) {
        let each = |word| self.brought.extend(session.device_at(word).map(|_| word));
        if !session.host_ranges.brought(to, from, bytes as u64, each) {
            self.brings_pointers();
        }
    }

    /// Adds an address in some arena; it stands for the whole allocation that it lies in.
    pub fn add(&mut self, address: u64) {
        self.addresses.push(address);
    }

    /// To take words for what they may be: addresses in an arena, or through which the host's memory is reached. Most are
    /// neither, which is seen by one comparison.
    pub fn looker(session: &Session) -> impl Fn(&mut Self, u64) {
        let concerning = session.concerning();
        move |touch, word| {
            if concerning.contains(&word) {
                touch.look_at(session, word);
            }
        }
    }

    fn look_at(&mut self, session: &Session, word: u64) {
        if session.device_at(word).is_some() {
            self.add(word);
            return;
        }
        let lies_in = |start: u64, bytes: u64| word.wrapping_sub(start) < bytes;
        if self.pinned.iter().any(|(start, bytes)| lies_in(*start, *bytes))
            || self.tables.iter().any(|table| lies_in(table.start, table.bytes))
        {
            return;
        }
        let mut found = Vec::new();
        match session.host_ranges.reach(word, |word| found.extend(session.device_at(word).map(|_| word))) {
            Reach::Nothing => {}
            Reach::Shown(start, bytes) if found.is_empty() => self.pinned.push((start, bytes)),
            Reach::Shown(start, bytes) => {
                found.sort_unstable();
                found.dedup();
                self.addresses.extend_from_slice(&found);
                self.tables.push(Table { start, bytes, shown: found.into() });
            }
            Reach::Anything => self.everything = true,
        }
    }

    /// The addresses, in the order in which they were added.
    pub fn addresses(&self) -> impl Iterator<Item = u64> {
        self.addresses.iter().copied()
    }
}
