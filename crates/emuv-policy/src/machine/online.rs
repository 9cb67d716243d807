//! emuV itself on the machine: the same state machine that runs in a program's process.

use std::collections::HashMap;

use super::{Action, FreeBytes, Placement, Script, Turn};
use crate::{Begin, Begun, HoldId, MoveRoom, Policy, Residency, Step, StreamId, Tier, Work};

/// The only stream.
const STREAM: StreamId = StreamId(1);

/// See the module's head.
#[derive(Debug)]
pub struct Online<'a> {
    script: &'a Script,
    residency: Residency,
    /// Offset -> number of the chunk that is there now.
    there: HashMap<u64, u32>,
    held: Option<HoldId>,
    /// Works that are to be measured.
    measured: HashMap<u32, Begun>,
}

impl<'a> Online<'a> {
    /// Nothing is there yet.
    pub fn new(script: &'a Script, policy: Policy, link_bytes_per_us: f64) -> Self {
        let mut residency = Residency::new(policy);
        residency.set_link(link_bytes_per_us);
        residency.quiesced();
        Self { script, residency, there: HashMap::new(), held: None, measured: HashMap::new() }
    }

    /// The state machine.
    pub fn residency(&self) -> &Residency {
        &self.residency
    }

    fn offset(&self, chunk: u32) -> u64 {
        self.script.chunks[chunk as usize].offset
    }
}

impl Placement for Online<'_> {
    fn mapped(&mut self, chunk: u32, tier: Tier) {
        let (offset, bytes) = (self.offset(chunk), self.script.chunks[chunk as usize].bytes);
        self.there.insert(offset, chunk);
        self.residency.add_chunk(offset, bytes, tier, false);
    }

    fn unmapped(&mut self, chunk: u32) -> bool {
        self.residency.remove_chunk(self.offset(chunk))
    }

    fn allocated(&mut self, offset: u64, bytes: u64) {
        self.residency.add_extent(offset, bytes);
    }

    fn freed(&mut self, offset: u64) {
        self.residency.remove_extent(offset);
    }

    fn begin(&mut self, number: u32, patient: bool) -> Turn {
        let work = &self.script.works[number as usize];
        let named = Work::naming(STREAM, &work.named);
        let asked = Work { everything: work.everything, kind: work.kind, patient, ..named };
        match self.residency.begin(&asked, self.held) {
            Begin::Go(begun) => {
                self.held = None;
                self.residency.issued(&begun);
                if begun.measure {
                    self.measured.insert(number, begun);
                }
                Turn::Go
            }
            Begin::Hold(id) => {
                self.held = Some(id);
                Turn::Hold
            }
        }
    }

    fn fence(&self) -> Option<u64> {
        self.residency.fence(STREAM)
    }

    fn reached(&mut self, number: u64) {
        self.residency.completed(STREAM, number);
    }

    fn took(&mut self, work: u32, micros: f64) {
        if let Some(begun) = self.measured.remove(&work) {
            self.residency.measured(self.script.works[work as usize].kind, begun.ram_bytes, micros);
        }
    }

    fn next(&mut self, free: FreeBytes) -> Action {
        let room = MoveRoom {
            vram_bytes: free.vram,
            ram_bytes: free.ram,
            vram_coming_bytes: free.coming,
            vram_excess_bytes: 0,
        };
        loop {
            return match self.residency.next_step(room) {
                Step::Move { offset, to, copy, map, .. } => Action::Move { chunk: self.there[&offset], to, copy, map },
                Step::Show { offset, .. } => Action::Show(self.there[&offset]),
                // Nothing here has pointers in it.
                Step::Search(_) => {
                    self.residency.searched_all(Some(&[]));
                    continue;
                }
                Step::Collect => {
                    let searches = self.residency.collecting();
                    self.residency.collected(&searches, &[], &[]);
                    continue;
                }
                Step::Learn(_) => Action::Learn,
                Step::Rest => Action::Rest,
            };
        }
    }

    fn compared(&mut self, chunk: u32, same: bool) {
        self.residency.compared(self.offset(chunk), same);
    }

    fn finished(&mut self, chunk: u32) {
        self.residency.finish(self.offset(chunk), true);
    }
}
