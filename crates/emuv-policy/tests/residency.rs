//! The obligations of `residency` as properties: random programs, random completions, random moves, random hints. The
//! model knows what each work really touches, through pointers in memory as well, and which contents are somebody's.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A failed unwrap is a failed test; seeds are printed.

use std::collections::{BTreeMap, BTreeSet};

use emuv_policy::{Begin, Begun, GRANULE, Heat, Hint, HoldId, MoveRoom, Policy, Residency, Step, StreamId, Tier, Work};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }
    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

const CHUNKS_PER_EXTENT: u64 = 3;
const EXTENTS: u64 = 24;
const STREAMS: u64 = 3;

fn extent_offset(extent: u64) -> u64 {
    extent * CHUNKS_PER_EXTENT * GRANULE
}

fn extent_of(offset: u64) -> u64 {
    offset / GRANULE / CHUNKS_PER_EXTENT
}

#[derive(Clone)]
struct Planned {
    stream: u64,
    extents: Vec<u64>,
    everything: bool,
    /// Stores a pointer at the first extent to the second.
    stores: Option<(u64, u64)>,
    /// The launch is one that is searched.
    searched: bool,
    /// A copy from memory that is not searched: it does not name what its pointer leads to.
    brings: bool,
    maker: u64,
    kind: u64,
}

struct Running {
    planned: Planned,
    begun: Begun,
    /// Extents that it really touches, through pointers as well.
    touches: BTreeSet<u64>,
    call_returned: bool,
    /// What the search behind it finds, and whether it makes its code a storer.
    finds: Vec<u64>,
    stored: bool,
}

struct World {
    residency: Residency,
    random: Random,
    running: Vec<Running>,
    held: Vec<(HoldId, Planned)>,
    /// Pointers in memory: extent -> extents that it points to.
    pointers: BTreeMap<u64, BTreeSet<u64>>,
    moving: BTreeSet<u64>,
    /// Chunks without a mapping, and those that the move under way leaves without one.
    unmapped: BTreeSet<u64>,
    leaving: BTreeSet<u64>,
    tiers: BTreeMap<u64, Tier>,
    /// Chunks whose contents the program has discarded, and no work that touches them has begun since.
    discarded: BTreeSet<u64>,
    without_copy: u64,
    fences: Vec<(u64, u64)>,
    /// What searches behind works have found, and whose works they were.
    found: BTreeSet<u64>,
    storers: BTreeSet<u64>,
    launches: BTreeMap<u64, u64>,
    shown: BTreeSet<u64>,
    moves: u64,
    left: u64,
    beside: u64,
}

impl World {
    fn new(seed: u64, policy: Policy) -> Self {
        let mut residency = Residency::new(policy);
        let mut tiers = BTreeMap::new();
        for extent in 0..EXTENTS {
            let tier = if extent % 2 == 0 { Tier::Vram } else { Tier::Ram };
            for chunk in 0..CHUNKS_PER_EXTENT {
                let offset = extent_offset(extent) + chunk * GRANULE;
                residency.add_chunk(offset, GRANULE, tier, false);
                tiers.insert(offset, tier);
            }
            residency.add_extent(extent_offset(extent), CHUNKS_PER_EXTENT * GRANULE);
        }
        residency.quiesced();
        Self {
            residency,
            random: Random(seed),
            running: Vec::new(),
            held: Vec::new(),
            pointers: BTreeMap::new(),
            moving: BTreeSet::new(),
            unmapped: BTreeSet::new(),
            leaving: BTreeSet::new(),
            tiers,
            discarded: BTreeSet::new(),
            without_copy: 0,
            fences: Vec::new(),
            found: BTreeSet::new(),
            storers: BTreeSet::new(),
            launches: BTreeMap::new(),
            shown: BTreeSet::new(),
            moves: 0,
            left: 0,
            beside: 0,
        }
    }

    /// Everything that a work touches: what it names and what can be reached from there.
    fn reach(&self, planned: &Planned) -> BTreeSet<u64> {
        let mut reached: BTreeSet<u64> =
            if planned.everything { (0..EXTENTS).collect() } else { planned.extents.iter().copied().collect() };
        let mut front: Vec<u64> = reached.iter().copied().collect();
        while let Some(extent) = front.pop() {
            for &to in self.pointers.get(&extent).into_iter().flatten() {
                if reached.insert(to) {
                    front.push(to);
                }
            }
        }
        reached
    }

    fn plan_work(&mut self) -> Planned {
        let r = &mut self.random;
        let stores = r.chance(60).then(|| (r.below(EXTENTS), r.below(EXTENTS)));
        let mut extents: Vec<u64> = (0..=r.below(3)).map(|_| r.below(EXTENTS)).collect();
        let brings = stores.is_some() && r.chance(4);
        if let Some((at, to)) = stores {
            extents.push(at);
            extents.extend((!brings).then_some(to));
        }
        let everything = r.chance(150);
        let (stream, kind) = (r.below(STREAMS), r.below(20) + 1);
        // Some code stores whenever it runs, the rest never does; each is searched behind ever more rarely.
        let maker = if brings {
            0
        } else if stores.is_some() {
            r.below(2) + 1
        } else {
            r.below(6) + 3
        };
        let launches = self.launches.entry(maker).or_default();
        *launches += u64::from(!everything);
        let searched = everything || brings || launches.is_power_of_two();
        Planned { stream, extents, everything, stores, searched, brings, maker, kind }
    }

    fn begin(&mut self, planned: Planned, hold: Option<HoldId>) {
        let offsets: Vec<u64> =
            planned.extents.iter().map(|extent| extent_offset(*extent) + self.random.below(GRANULE)).collect();
        let work = Work {
            stream: StreamId(planned.stream),
            offsets: &offsets,
            everything: planned.everything,
            may_store_pointers: planned.searched,
            may_bring_pointers: planned.brings,
            maker: planned.maker,
            kind: planned.kind,
            patient: true,
        };
        match self.residency.begin(&work, hold) {
            Begin::Go(begun) => {
                let touches = self.reach(&planned);
                for offset in self.moving.iter().chain(&self.unmapped) {
                    assert!(!touches.contains(&extent_of(*offset)), "a work began whose chunk is moving or not mapped");
                }
                self.discarded.retain(|offset| !touches.contains(&extent_of(*offset)));
                if begun.measure {
                    self.residency.measured(planned.kind, begun.ram_bytes, 1e6);
                }
                // Memory written by a work is a pointer's home from its beginning at the earliest.
                if let Some((at, to)) = planned.stores {
                    self.pointers.entry(at).or_default().insert(to);
                }
                let (mut finds, mut stored) = (Vec::new(), false);
                if begun.search {
                    // The search stands behind the work on its stream.
                    let ranges = self.residency.ranges(&offsets, Some(&begun));
                    let extents = |ranges: &[(u64, u64)]| -> BTreeSet<u64> {
                        ranges.iter().map(|(offset, _)| extent_of(*offset)).collect()
                    };
                    let (written, named) = (extents(&ranges.written), extents(&ranges.named));
                    finds = self.targets(|at| written.contains(&at));
                    stored = planned.maker != 0 && finds.iter().any(|to| named.contains(&extent_of(*to)));
                }
                self.running.push(Running { planned, begun, touches, call_returned: false, finds, stored });
            }
            Begin::Hold(id) => self.held.push((id, planned)),
        }
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..2 => {
                let planned = self.plan_work();
                self.begin(planned, None);
            }
            2..5 => self.return_a_call(),
            5..7 => self.fence(),
            7..9 => self.complete(),
            9 => self.retry(),
            10..14 => self.advance_mover(),
            14 => self.hint(),
            _ => self.finish_move(),
        }
    }

    /// The program says something of a part of an extent.
    fn hint(&mut self) {
        let (extent, r) = (self.random.below(EXTENTS), &mut self.random);
        let first = extent_offset(extent) + r.below(CHUNKS_PER_EXTENT) * GRANULE;
        let (offset, bytes) = (first + r.below(2), r.below(2 * CHUNKS_PER_EXTENT * GRANULE));
        let hint = match r.below(6) {
            0 => Hint::Heat(Heat::Hot),
            1 => Hint::Heat(Heat::Cold),
            2 => Hint::Heat(Heat::Usual),
            _ => Hint::Discard,
        };
        self.residency.hint(offset, bytes, hint);
        if hint == Hint::Discard {
            // It ends with the extent, and what lies there in part is kept.
            let end = (offset + bytes).min(extent_offset(extent + 1));
            let chunks = (0..CHUNKS_PER_EXTENT).map(|chunk| extent_offset(extent) + chunk * GRANULE);
            self.discarded.extend(chunks.filter(|chunk| *chunk >= offset && chunk + GRANULE <= end));
        }
    }

    fn return_a_call(&mut self) {
        let open: Vec<usize> = (0..self.running.len()).filter(|i| !self.running[*i].call_returned).collect();
        if open.is_empty() {
            return;
        }
        let at = open[usize::try_from(self.random.below(open.len() as u64)).unwrap()];
        self.running[at].call_returned = true;
        self.residency.issued(&self.running[at].begun);
    }

    fn fence(&mut self) {
        let stream = self.random.below(STREAMS);
        if let Some(number) = self.residency.fence(StreamId(stream)) {
            let covered = |work: &Running| work.planned.stream == stream && work.begun.number <= number;
            assert!(self.running.iter().filter(|w| covered(w)).all(|w| w.call_returned), "a fence before its work");
            self.fences.push((stream, number));
        }
    }

    /// The GPU works a stream off up to a fence.
    fn complete(&mut self) {
        if self.fences.is_empty() {
            return;
        }
        let at = usize::try_from(self.random.below(self.fences.len() as u64)).unwrap();
        let (stream, number) = self.fences.remove(at);
        let done = |work: &mut Running| work.planned.stream == stream && work.begun.number <= number;
        for work in self.running.extract_if(.., done) {
            self.found.extend(work.finds);
            self.storers.extend(work.stored.then_some(work.planned.maker));
        }
        self.residency.completed(StreamId(stream), number);
    }

    fn retry(&mut self) {
        for (id, planned) in std::mem::take(&mut self.held) {
            self.begin(planned, Some(id));
        }
    }

    fn advance_mover(&mut self) {
        let room =
            MoveRoom { vram_bytes: 4 * GRANULE, ram_bytes: 4 * GRANULE, vram_coming_bytes: 0, vram_excess_bytes: 0 };
        match self.residency.next_step(room) {
            Step::Show { offset, .. } => {
                assert!(self.unmapped.contains(&offset), "mapped twice");
                assert!(self.shown.insert(offset) && !self.moving.contains(&offset));
            }
            Step::Move { offset, copy, map, .. } => {
                assert!(copy || self.discarded.contains(&offset), "contents that are somebody's are not copied");
                self.without_copy += u64::from(!copy);
                if !map {
                    self.left += 1;
                    self.leaving.insert(offset);
                }
                for work in &self.running {
                    assert!(!work.touches.contains(&extent_of(offset)), "a chunk moves under a work");
                }
                self.moves += 1;
                self.beside += u64::from(!self.running.is_empty());
                assert!(self.moving.insert(offset), "moved twice at once");
            }
            Step::Search(ranges) => {
                assert!(self.running.is_empty(), "a search through all memory beside work");
                assert!(self.unmapped.is_empty(), "a search of what is not mapped");
                let ranges: BTreeSet<u64> = ranges.iter().map(|(offset, _)| extent_of(*offset)).collect();
                let found = self.targets(|at| ranges.contains(&at));
                self.residency.searched_all(Some(&found));
            }
            Step::Collect => {
                let searches = self.residency.collecting();
                let list = |set: &BTreeSet<u64>| set.iter().copied().collect::<Vec<_>>();
                self.residency.collected(&searches, &list(&self.found), &list(&self.storers));
            }
            Step::Learn(streams) => {
                assert!(!streams.is_empty());
                self.fence();
            }
            Step::Rest => {}
        }
    }

    fn targets(&self, within: impl Fn(u64) -> bool) -> Vec<u64> {
        let from = self.pointers.iter().filter(|(at, _)| within(**at));
        from.flat_map(|(_, to)| to.iter().map(|extent| extent_offset(*extent))).collect()
    }

    fn finish_move(&mut self) {
        if let Some(offset) = self.shown.pop_first() {
            self.residency.finish(offset, true);
            self.unmapped.remove(&offset);
        }
        let Some(offset) = self.moving.pop_first() else { return };
        let moved = !self.random.chance(5);
        self.residency.finish(offset, moved);
        if moved {
            let tier = self.tiers.get_mut(&offset).unwrap();
            *tier = if *tier == Tier::Vram { Tier::Ram } else { Tier::Vram };
            self.unmapped.remove(&offset);
            if self.leaving.contains(&offset) {
                self.unmapped.insert(offset);
            }
        }
        self.leaving.remove(&offset);
        assert_eq!(self.residency.tier(offset), Some(self.tiers[&offset]));
        assert_eq!(self.residency.without_mapping().len(), self.unmapped.len());
    }

    /// The program stops: everything that is held must get its turn.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            if self.held.is_empty() && self.running.is_empty() {
                return;
            }
            self.return_a_call();
            for _ in 0..STREAMS {
                self.fence();
            }
            self.complete();
            self.advance_mover();
            while !self.moving.is_empty() || !self.shown.is_empty() {
                self.finish_move();
            }
            self.retry();
        }
        panic!("{} works held for ever", self.held.len());
    }
}

/// Moves in all, beside work, left without a mapping, without a copy.
fn run(policy: impl Fn(u64) -> Policy) -> [u64; 4] {
    let seed = std::env::var("EMUV_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::try_from(now.as_nanos() % 1_000_000_007).unwrap()
    });
    println!("EMUV_SEED={seed}");
    let mut sums = [0; 4];
    for case in 0..300 {
        let mut world = World::new(seed + case, policy(seed + case));
        for _ in 0..400 {
            world.step();
        }
        world.drain();
        let counts = [world.moves, world.beside, world.left, world.without_copy];
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    sums
}

#[test]
fn nothing_moves_under_a_work_and_no_work_begins_on_what_moves() {
    let [moves, beside, left, without_copy] = run(|state| Policy::Torture { state, safe: false });
    assert!(
        moves > 1000 && beside > 100 && left > 20 && without_copy > 20,
        "the test tested little: {moves} moves, {beside} beside work, {left} left unmapped, {without_copy} not copied"
    );
}

#[test]
fn in_safe_mode_nothing_moves_beside_work() {
    let [moves, beside, left, ..] = run(|state| Policy::Torture { state, safe: true });
    assert!(moves > 10 && beside == 0 && left == 0, "{moves} moves, {beside} beside work");
}

#[test]
fn held_works_get_their_turn_while_chunks_are_brought_for_them() {
    let [moves, ..] = run(|_| Policy::Dynamic { safe: false });
    assert!(moves > 100, "{moves} moves");
}

#[test]
fn nothing_moves_under_the_static_policy() {
    assert_eq!(run(|_| Policy::Static), [0; 4]);
}
