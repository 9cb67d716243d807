//! What could be read where it is, in a loop that the link limits: whether it changes decides, and only what moves shows that.

use std::collections::BTreeMap;

use emuv_policy::{Begin, GRANULE, MoveRoom, Policy, Residency, Step, StreamId, Tier, Work};

const STREAM: StreamId = StreamId(1);
const CHUNKS: u64 = 48;
const KIND: u64 = 1;

/// A loop over chunks of which half are in VRAM, by works that read at the link's speed.
struct Loop {
    residency: Residency,
    tiers: BTreeMap<u64, Tier>,
    /// What is said of a chunk that goes: whether it holds what it held before.
    same: Option<bool>,
    free_bytes: u64,
    /// Chunks brought, and read in place.
    brought: u64,
    in_place: u64,
}

impl Loop {
    fn new(same: Option<bool>) -> Self {
        let mut residency = Residency::new(Policy::Dynamic { safe: false });
        let mut tiers = BTreeMap::new();
        for at in 0..CHUNKS {
            let tier = if at % 2 == 0 { Tier::Vram } else { Tier::Ram };
            residency.add_chunk(at * GRANULE, GRANULE, tier, false);
            residency.add_extent(at * GRANULE, GRANULE);
            tiers.insert(at * GRANULE, tier);
        }
        residency.quiesced();
        residency.set_link(50e3);
        residency.measured(KIND, GRANULE, 50.0);
        Self { residency, tiers, same, free_bytes: 4 * GRANULE, brought: 0, in_place: 0 }
    }

    /// Does what there is to do. Moves take no time.
    fn settle(&mut self) {
        loop {
            let room = MoveRoom {
                vram_bytes: self.free_bytes,
                ram_bytes: 64 * GRANULE,
                vram_coming_bytes: 0,
                vram_excess_bytes: 0,
            };
            match self.residency.next_step(room) {
                Step::Move { offset, to, .. } => {
                    if to == Tier::Vram {
                        self.brought += 1;
                        self.free_bytes -= GRANULE;
                    } else {
                        self.free_bytes += GRANULE;
                        self.same.into_iter().for_each(|same| self.residency.compared(offset, same));
                    }
                    self.residency.finish(offset, true);
                    self.tiers.insert(offset, to);
                }
                Step::Show { offset, .. } => self.residency.finish(offset, true),
                Step::Search(_) => self.residency.searched_all(Some(&[])),
                Step::Rest => return,
                other => panic!("{other:?}"),
            }
        }
    }

    /// Chunks brought in a round, and read in place.
    fn round(&mut self) -> (u64, u64) {
        (self.brought, self.in_place) = (0, 0);
        for at in 0..CHUNKS {
            let offsets = [at * GRANULE];
            let work = Work { kind: KIND, ..Work::naming(STREAM, &offsets) };
            let mut hold = None;
            let begun = loop {
                self.settle();
                match self.residency.begin(&work, hold) {
                    Begin::Go(begun) => break begun,
                    Begin::Hold(id) => hold = Some(id),
                }
            };
            self.residency.issued(&begun);
            self.in_place += u64::from(self.tiers[&offsets[0]] == Tier::Ram);
            self.residency.completed(STREAM, begun.number);
        }
        (self.brought, self.in_place)
    }

    fn rounds(&mut self, count: usize) -> Vec<(u64, u64)> {
        (0..count).map(|_| self.round()).collect()
    }
}

#[test]
fn it_is_moved_until_that_is_known() {
    let rounds = Loop::new(None).rounds(12);
    assert!(rounds[3..].iter().all(|(brought, in_place)| *brought >= 20 && *in_place == 0), "{rounds:?}");
}

#[test]
fn what_changes_is_read_where_it_is_as_soon_as_that_was_seen() {
    let rounds = Loop::new(Some(false)).rounds(12);
    assert!(rounds[3..].iter().all(|(brought, in_place)| *brought <= 2 && *in_place >= 20), "{rounds:?}");
}

#[test]
fn what_does_not_change_is_brought() {
    let rounds = Loop::new(Some(true)).rounds(12);
    assert!(rounds[3..].iter().all(|(brought, in_place)| *brought >= 20 && *in_place == 0), "{rounds:?}");
}
