//! What a process held and moved on one device, over time, for the report of its run: a file beside its ledger, mapped like
//! that one, so that a process that is killed leaves what it had.
//!
//! Not every run has one (`emuv run --report` asks for it). The process calls [`Timeline::sample`] whenever its counters have
//! changed; a sample is a few stores, and now and then the whole series anew ([`emuv_policy::timeline`]).

mod read;
mod site;

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::Release},
};

use emuv_policy::{
    Tier, Why,
    figure::{Cost, Maker},
    timeline::{Changed, LANES, POINTS, Point, Sample, Series, lane},
};

pub use read::{MarkRecord, TimelineRecord, read_timeline};
pub use site::{MOST_NATIVE_FRAMES, MOST_PYTHON_FRAMES, NativeFrame, PythonFrame, Site};

use crate::ledger::{cut, maker_code, map, new_file, store_bytes};

/// The first eight bytes of a timeline.
const MAGIC: u64 = u64::from_ne_bytes(*b"emuVtime");

/// The version of the layout.
const VERSION: u64 = 2;

/// Marks of the program's that are kept: the first ones.
pub const MARKS: usize = 64;

/// Allocations of which it is kept what was moved.
pub const COSTS: usize = 16;

/// Bytes kept of a mark's name.
const LABEL_BYTES: usize = 56;

const POINT_WORDS: usize = 9 + LANES;
const MARK_WORDS: usize = 1 + LABEL_BYTES / 8;
const COST_WORDS: usize = 4;

/// Bytes kept of where an allocation was made.
const SITE_BYTES: usize = 3072;
const SITE_WORDS: usize = SITE_BYTES / 8;

/// An allocation (or those one after the other at one place) of which much was moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CostRecord {
    /// What was moved of it. Where it lay is not kept.
    pub cost: Cost,
    /// By what call it was made.
    pub maker: Maker,
    /// Where in the program; `None`: not known.
    pub site: Option<Site>,
}

/// What is where in the file. Every word is a `u64` in the machine's byte order.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Layout {
    magic: AtomicU64,
    version: AtomicU64,
    /// Odd while all points are being written anew.
    changes: AtomicU64,
    interval_micros: AtomicU64,
    points: AtomicU64,
    marks: AtomicU64,
    costs: AtomicU64,
    reserved: AtomicU64,
    point: [[AtomicU64; POINT_WORDS]; POINTS],
    mark: [[AtomicU64; MARK_WORDS]; MARKS],
    cost: [[AtomicU64; COST_WORDS]; COSTS],
    site: [[AtomicU64; SITE_WORDS]; COSTS],
}

/// The writer's side. One per device; whoever shares it keeps others from writing meanwhile.
#[derive(Debug)]
pub struct Timeline {
    layout: &'static Layout,
    series: Series,
    moved_bytes: [u64; LANES],
}

impl Timeline {
    /// Makes the file for the device with this CUDA ordinal, beside the ledger of that name.
    ///
    /// # Errors
    /// The system's own.
    pub fn create(run_dir: &Path, ledger: &str, ordinal: usize) -> io::Result<Self> {
        let mut image = vec![0; size_of::<Layout>()];
        for (bytes, word) in image.chunks_exact_mut(8).zip([MAGIC, VERSION]) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        let layout = map::map_new(new_file(&run_dir.join(file_name(ledger, ordinal)))?, &image)?;
        Ok(Self { layout, series: Series::default(), moved_bytes: [0; LANES] })
    }

    /// So much was copied.
    pub fn moved(&mut self, why: Why, to: Tier, bytes: u64) {
        self.moved_bytes[lane(why, to)] += bytes;
    }

    /// What there is `micros` after the beginning; what was copied is known here.
    pub fn sample(&mut self, micros: u64, sample: Sample) {
        let sample = Sample { moved_bytes: self.moved_bytes, ..sample };
        match self.series.add(micros, sample) {
            Changed::Point(at) => self.write(at),
            Changed::All => {
                self.layout.changes.fetch_add(1, Release);
                self.layout.interval_micros.store(self.series.interval_micros(), Relaxed);
                (0..self.series.points().len()).for_each(|at| self.write(at));
                self.layout.changes.fetch_add(1, Release);
            }
        }
        self.layout.interval_micros.store(self.series.interval_micros(), Relaxed);
        self.layout.points.store(self.series.points().len() as u64, Release);
    }

    fn write(&self, at: usize) {
        if let (Some(words), Some(point)) = (self.layout.point.get(at), self.series.points().get(at)) {
            words.iter().zip(point_words(point)).for_each(|(word, value)| word.store(value, Relaxed));
        }
    }

    /// The program is at a place that it has a name for.
    pub fn mark(&mut self, micros: u64, label: &str) {
        let count = self.layout.marks.load(Relaxed);
        let Some([time, words @ ..]) = usize::try_from(count).ok().and_then(|at| self.layout.mark.get(at)) else {
            return;
        };
        time.store(micros, Relaxed);
        store_bytes(words, cut(label, LABEL_BYTES).as_bytes());
        self.layout.marks.store(count + 1, Release);
    }

    /// The allocations of which most was moved, most first.
    pub fn set_costs(&mut self, costs: &[CostRecord]) {
        for ((words, site_words), record) in self.layout.cost.iter().zip(&self.layout.site).zip(costs) {
            let CostRecord { cost, maker, site } = record;
            let values = [cost.bytes, cost.in_bytes, cost.out_bytes, maker_code(*maker)];
            words.iter().zip(values).for_each(|(word, value)| word.store(value, Relaxed));
            let text = site.as_ref().map(|site| site.write(SITE_BYTES)).unwrap_or_default();
            store_bytes(site_words, text.as_bytes());
        }
        self.layout.costs.store(costs.len().min(COSTS) as u64, Release);
    }
}

/// Of the timeline beside the ledger of that name, for the device of that ordinal.
fn file_name(ledger: &str, ordinal: usize) -> String {
    format!("{ledger}.{ordinal}.timeline")
}

fn point_words(point: &Point) -> [u64; POINT_WORDS] {
    let last = &point.last;
    let [vram, ram] = last.used_bytes;
    let [most_vram, most_ram] = point.most_used_bytes;
    let fixed = [
        point.micros,
        vram,
        ram,
        most_vram,
        most_ram,
        last.launches,
        last.held_micros,
        last.in_place_bytes,
        last.remapped_bytes,
    ];
    let mut words = [0; POINT_WORDS];
    words.iter_mut().zip(fixed.into_iter().chain(last.moved_bytes)).for_each(|(word, value)| *word = value);
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Ledger;

    fn sample(bytes: u64) -> Sample {
        Sample { used_bytes: [bytes, bytes + 1], launches: 3, held_micros: 4, ..Sample::default() }
    }

    #[test]
    fn what_is_kept_is_read_by_others() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(Some(folder.path()));
        let mut timeline = Timeline::create(folder.path(), ledger.name().unwrap(), 2).unwrap();
        timeline.moved(Why::Plan, Tier::Ram, 100);
        timeline.moved(Why::Ahead, Tier::Vram, 40);
        timeline.sample(5, sample(7));
        timeline.sample(2000, sample(9));
        timeline.mark(1500, "epoch 1 é");
        let cost = Cost { offset: 1, bytes: 64, in_bytes: 40, out_bytes: 100 };
        let record = CostRecord { cost, maker: Maker::Pool, site: Some(site::tests::site()) };
        timeline.set_costs(&[record.clone(), CostRecord { site: None, ..record.clone() }]);

        let process = &crate::read_ledgers(folder.path()).processes[0];
        let read = read_timeline(folder.path(), process, 2).unwrap().unwrap();
        assert_eq!(read.interval_micros, 1000);
        let times: Vec<_> = read.points.iter().map(|point| (point.micros, point.last.used_bytes)).collect();
        assert_eq!(times, [(5, [7, 8]), (2000, [9, 10])]);
        assert_eq!(read.points[1].last.moved_bytes, [0, 40, 0, 0, 0, 100, 0, 0]);
        assert_eq!(read.marks, [MarkRecord { micros: 1500, label: "epoch 1 é".into() }]);
        let record = CostRecord { cost: Cost { offset: 0, ..cost }, ..record };
        assert_eq!(read.costs, [record.clone(), CostRecord { site: None, ..record }]);
        assert!(read_timeline(folder.path(), process, 3).unwrap().is_none(), "another device has none");
    }

    #[test]
    fn after_many_samples_and_marks_it_is_as_the_series_is() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(Some(folder.path()));
        let mut timeline = Timeline::create(folder.path(), ledger.name().unwrap(), 0).unwrap();
        for at in 0..5000 {
            timeline.sample(at * 777, sample(at));
            timeline.mark(at, &format!("mark {at} {}", "x".repeat(80)));
        }
        timeline.set_costs(&vec![CostRecord::default(); 40]);
        let process = &crate::read_ledgers(folder.path()).processes[0];
        let read = read_timeline(folder.path(), process, 0).unwrap().unwrap();
        assert_eq!(read.points, timeline.series.points());
        assert_eq!((read.marks.len(), read.costs.len()), (MARKS, COSTS));
        assert_eq!(read.marks[3].label.len(), LABEL_BYTES);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(words in proptest::collection::vec((0_usize..8, any::<u64>()), 0..9), more in any::<u64>()) {
            let mut bytes = vec![0; size_of::<Layout>()];
            bytes[..16].copy_from_slice(&[MAGIC.to_ne_bytes(), VERSION.to_ne_bytes()].concat());
            for (at, word) in words {
                bytes[16 + at * 8..24 + at * 8].copy_from_slice(&word.to_ne_bytes());
            }
            let length = usize::try_from(more).unwrap() % (bytes.len() + 1);
            for bytes in [&bytes[..], &bytes[..length]] {
                if let Ok(read) = read::parse(Path::new("x"), bytes) {
                    prop_assert!(read.points.len() <= POINTS && read.marks.len() <= MARKS && read.costs.len() <= COSTS);
                }
            }
        }
    }
}
