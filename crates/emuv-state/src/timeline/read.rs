//! Reading timelines. A file is taken as untrusted bytes, like a ledger's.

use std::{fs, io, mem::offset_of, path::Path};

use emuv_policy::{
    figure::Cost,
    timeline::{LANES, POINTS, Point, Sample},
};

use super::{
    COST_WORDS, COSTS, CostRecord, Layout, MAGIC, MARK_WORDS, MARKS, POINT_WORDS, SITE_BYTES, Site, VERSION, file_name,
};
use crate::{
    LedgerError, ProcessRecord,
    ledger::{Words, ledger_name, maker},
};

/// What a process held and moved on one device, over time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineRecord {
    /// Length of the intervals that a point stands for.
    pub interval_micros: u64,
    /// In order of time.
    pub points: Vec<Point>,
    /// Places that the program has a name for.
    pub marks: Vec<MarkRecord>,
    /// The allocations of which most was moved.
    pub costs: Vec<CostRecord>,
}

/// A place in the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkRecord {
    /// When, in microseconds from the beginning.
    pub micros: u64,
    /// Its name.
    pub label: String,
}

/// The timeline of a process on the device with this ordinal; `None` where none was kept.
///
/// # Errors
/// [`LedgerError`], with the path.
pub fn read_timeline(
    run_dir: &Path,
    process: &ProcessRecord,
    ordinal: usize,
) -> Result<Option<TimelineRecord>, LedgerError> {
    let path = run_dir.join(file_name(&ledger_name(process.pid, process.generation), ordinal));
    match fs::read(&path) {
        Ok(bytes) => parse(&path, &bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LedgerError::Read { path, source }),
    }
}

pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<TimelineRecord, LedgerError> {
    let (path, words) = (path.to_owned(), Words(bytes));
    if words.at(offset_of!(Layout, magic)) != MAGIC {
        return Err(LedgerError::NotALedger(path));
    }
    let version = words.at(offset_of!(Layout, version));
    if version != VERSION {
        return Err(LedgerError::Version { path, version });
    }
    if bytes.len() != size_of::<Layout>() {
        return Err(LedgerError::Length { path, length_bytes: bytes.len() as u64 });
    }
    let count = |offset: usize, most: usize| usize::try_from(words.at(offset)).map_or(most, |count| count.min(most));
    let mut points: Vec<Point> = (0..count(offset_of!(Layout, points), POINTS)).map(|at| point(words, at)).collect();
    // Killed while all were written anew, a process leaves some twice.
    points.sort_by_key(|point| point.micros);
    points.dedup_by_key(|point| point.micros);
    Ok(TimelineRecord {
        interval_micros: words.at(offset_of!(Layout, interval_micros)),
        points,
        marks: (0..count(offset_of!(Layout, marks), MARKS)).map(|at| mark(words, at)).collect(),
        costs: (0..count(offset_of!(Layout, costs), COSTS)).map(|at| cost(words, at)).collect(),
    })
}

fn point(words: Words<'_>, at: usize) -> Point {
    let word = |number: usize| words.at(offset_of!(Layout, point) + 8 * (at * POINT_WORDS + number));
    let last = Sample {
        used_bytes: [word(1), word(2)],
        launches: word(5),
        held_micros: word(6),
        in_place_bytes: word(7),
        remapped_bytes: word(8),
        moved_bytes: std::array::from_fn::<u64, LANES, _>(|lane| word(9 + lane)),
    };
    Point { micros: word(0), last, most_used_bytes: [word(3), word(4)] }
}

fn mark(words: Words<'_>, at: usize) -> MarkRecord {
    let offset = offset_of!(Layout, mark) + 8 * at * MARK_WORDS;
    MarkRecord { micros: words.at(offset), label: words.text(offset + 8, 8 * (MARK_WORDS - 1)) }
}

fn cost(words: Words<'_>, at: usize) -> CostRecord {
    let word = |number: usize| words.at(offset_of!(Layout, cost) + 8 * (at * COST_WORDS + number));
    let cost = Cost { offset: 0, bytes: word(0), in_bytes: word(1), out_bytes: word(2) };
    let site = Site::read(&words.text(offset_of!(Layout, site) + at * SITE_BYTES, SITE_BYTES));
    CostRecord { cost, maker: maker(word(3)), site }
}
