//! The part of a report that says what a device held and moved over time, column by column. `docs/report.md` describes the
//! fields.

use std::collections::BTreeMap;

use emuv_policy::timeline::{FIRST_LANE_OUT, LANE_NAMES, Point};
use serde::{Deserialize, Serialize};

use super::movement::seconds;
use crate::{NativeFrame, PythonFrame, Site, TimelineRecord};

/// Columns of one length each: the points, in order of time. Counts are from the beginning.
#[allow(missing_docs)]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TimelineReport {
    /// What a point stands for.
    pub interval_seconds: f64,
    pub seconds: Vec<f64>,
    pub vram_bytes: Vec<u64>,
    /// The most within the interval.
    pub vram_most_bytes: Vec<u64>,
    pub ram_bytes: Vec<u64>,
    /// The most within the interval.
    pub ram_most_bytes: Vec<u64>,
    pub launches: Vec<u64>,
    pub held_micros: Vec<u64>,
    pub in_place_bytes: Vec<u64>,
    pub remapped_bytes: Vec<u64>,
    /// By reason.
    pub into_vram_bytes: BTreeMap<String, Vec<u64>>,
    /// By reason.
    pub out_of_vram_bytes: BTreeMap<String, Vec<u64>>,
    pub marks: Vec<MarkReport>,
}

/// A place in the program that it gave a name.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MarkReport {
    pub seconds: f64,
    pub label: String,
}

/// An allocation (or those one after the other at one place) of which much was copied.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CostReport {
    pub bytes: u64,
    pub into_vram_bytes: u64,
    pub out_of_vram_bytes: u64,
    pub allocated_by: Option<String>,
    /// Where in the program, the first time; `null`: not known, or not kept.
    #[serde(default)]
    pub allocated_at: Option<SiteReport>,
}

/// Where in a program something was done: what was running then, the innermost first.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteReport {
    /// Python functions. Empty: none, or they are not known.
    pub python: Vec<PythonFrameReport>,
    /// Native ones outside the CUDA libraries.
    pub native: Vec<NativeFrameReport>,
}

/// A Python function that was running.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PythonFrameReport {
    pub file: String,
    pub line: Option<u32>,
    pub function: String,
}

/// A place in native code.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NativeFrameReport {
    pub library: String,
    /// Where in it, in hexadecimal, as `addr2line -e` takes it.
    pub offset: String,
    /// Of the function; `null`: the file has none there.
    pub symbol: Option<String>,
}

impl From<&TimelineRecord> for TimelineReport {
    fn from(record: &TimelineRecord) -> Self {
        let column = |of: &dyn Fn(&Point) -> u64| record.points.iter().map(of).collect::<Vec<u64>>();
        let lanes = |lanes: std::ops::Range<usize>| {
            let lane = |lane: usize| (LANE_NAMES[lane].to_owned(), column(&|point| point.last.moved_bytes[lane]));
            lanes.map(lane).collect::<BTreeMap<_, _>>()
        };
        Self {
            interval_seconds: seconds(record.interval_micros),
            seconds: record.points.iter().map(|point| seconds(point.micros)).collect(),
            vram_bytes: column(&|point| point.last.used_bytes[0]),
            vram_most_bytes: column(&|point| point.most_used_bytes[0]),
            ram_bytes: column(&|point| point.last.used_bytes[1]),
            ram_most_bytes: column(&|point| point.most_used_bytes[1]),
            launches: column(&|point| point.last.launches),
            held_micros: column(&|point| point.last.held_micros),
            in_place_bytes: column(&|point| point.last.in_place_bytes),
            remapped_bytes: column(&|point| point.last.remapped_bytes),
            into_vram_bytes: lanes(0..FIRST_LANE_OUT),
            out_of_vram_bytes: lanes(FIRST_LANE_OUT..LANE_NAMES.len()),
            marks: record
                .marks
                .iter()
                .map(|mark| MarkReport { seconds: seconds(mark.micros), label: mark.label.clone() })
                .collect(),
        }
    }
}

impl CostReport {
    pub(super) fn all(record: &TimelineRecord, symbol: &mut dyn FnMut(&str, u64) -> Option<String>) -> Vec<Self> {
        let costs = record.costs.iter().map(|record| Self {
            bytes: record.cost.bytes,
            into_vram_bytes: record.cost.in_bytes,
            out_of_vram_bytes: record.cost.out_bytes,
            allocated_by: record.maker.name().map(str::to_owned),
            allocated_at: record.site.as_ref().map(|site| SiteReport::new(site, symbol)),
        });
        costs.collect()
    }
}

impl SiteReport {
    fn new(site: &Site, symbol: &mut dyn FnMut(&str, u64) -> Option<String>) -> Self {
        let python = site.python.iter().cloned().map(|PythonFrame { file, line, function }| PythonFrameReport {
            file,
            line: Some(line).filter(|line| *line > 0),
            function,
        });
        let native = site.native.iter().cloned().map(|NativeFrame { library, offset }| NativeFrameReport {
            symbol: symbol(&library, offset),
            library,
            offset: format!("0x{offset:x}"),
        });
        let mut native: Vec<_> = native.collect();
        // The runtime may be part of the program's own file; what called it is what is asked for.
        let is_runtime =
            |frame: &NativeFrameReport| frame.symbol.as_deref().is_some_and(|name| name.starts_with("cudaMalloc"));
        if let Some(at) = native.iter().rposition(is_runtime) {
            native.drain(..=at);
        }
        Self { python: python.collect(), native }
    }
}

#[cfg(test)]
mod tests {
    use emuv_policy::{
        figure::{Cost, Maker},
        timeline::Sample,
    };
    use serde_json::json;

    use super::*;
    use crate::{CostRecord, MarkRecord};

    #[test]
    fn it_has_the_documented_shape() {
        let moved_bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        let last = Sample {
            used_bytes: [10, 20],
            launches: 30,
            held_micros: 40,
            in_place_bytes: 50,
            remapped_bytes: 60,
            moved_bytes,
        };
        let record = TimelineRecord {
            interval_micros: 2000,
            points: vec![Point { micros: 1_500_000, last, most_used_bytes: [11, 21] }],
            marks: vec![MarkRecord { micros: 250_000, label: "epoch 1".into() }],
            costs: vec![CostRecord {
                cost: Cost { offset: 0, bytes: 64, in_bytes: 100, out_bytes: 200 },
                maker: Maker::Plain,
                site: Some(site()),
            }],
        };
        let expected = json!({
            "interval_seconds": 0.002, "seconds": [1.5], "vram_bytes": [10], "vram_most_bytes": [11],
            "ram_bytes": [20], "ram_most_bytes": [21], "launches": [30], "held_micros": [40],
            "in_place_bytes": [50], "remapped_bytes": [60],
            "into_vram_bytes": {"demand": [1], "ahead": [2], "hint": [3], "torture": [4]},
            "out_of_vram_bytes": {"room": [5], "plan": [6], "limit": [7], "torture": [8]},
            "marks": [{"seconds": 0.25, "label": "epoch 1"}],
        });
        assert_eq!(serde_json::to_value(TimelineReport::from(&record)).unwrap(), expected);
        let native = json!([{"library": "/opt/prog", "offset": "0x20", "symbol": "main"},
            {"library": "libc.so", "offset": "0x30", "symbol": null}]);
        let python =
            json!([{"file": "a.py", "line": 3, "function": "f"}, {"file": "<string>", "line": null, "function": "g"}]);
        let costs = json!([{"bytes": 64, "into_vram_bytes": 100, "out_of_vram_bytes": 200, "allocated_by": "cuMemAlloc",
            "allocated_at": {"python": python, "native": native}}]);
        let mut symbol = |library: &str, offset| match (library, offset) {
            ("/opt/prog", 0x10) => Some("cudaMallocAsync_v2".to_owned()),
            ("/opt/prog", 0x20) => Some("main".to_owned()),
            _ => None,
        };
        assert_eq!(serde_json::to_value(CostReport::all(&record, &mut symbol)).unwrap(), costs);
    }

    /// A program that contains the runtime.
    fn site() -> Site {
        let python =
            |file: &str, line, function: &str| PythonFrame { file: file.into(), line, function: function.into() };
        let native = |library: &str, offset| NativeFrame { library: library.into(), offset };
        Site {
            python: vec![python("a.py", 3, "f"), python("<string>", 0, "g")],
            native: vec![
                native("/opt/prog", 8),
                native("/opt/prog", 0x10),
                native("/opt/prog", 0x20),
                native("libc.so", 0x30),
            ],
        }
    }
}
