//! The part of a report that says how fast a program was, next to what GPU and link allow. What is not known is `null`; the
//! words for it are `emuv simulate`'s.

use emuv_policy::figure::{Card, Moved, Summary};
use serde::{Deserialize, Serialize};

use crate::DeviceRecord;

/// See the module's head. `docs/report.md` describes the fields.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MovementReport {
    pub watched_seconds: f64,
    pub gpu_waited_seconds: f64,
    pub in_place_seconds: f64,
    pub in_place_bytes: u64,
    pub link: Option<LinkReport>,
    pub percent_of_bound: Option<f64>,
    pub unknown_because: Option<String>,
    pub percent_of_vram_speed: Option<f64>,
    pub iterations: u64,
    pub works_per_iteration: Option<u64>,
    pub seconds_per_iteration: Option<f64>,
    pub in_vram_seconds_per_iteration: Option<f64>,
    pub bound_seconds_per_iteration: Option<f64>,
    pub bytes_in_per_iteration: Option<u64>,
    pub bytes_out_per_iteration: Option<u64>,
    pub bytes_in_place_per_iteration: Option<u64>,
    pub bound_bytes_in_per_iteration: Option<u64>,
    pub bound_bytes_out_per_iteration: Option<u64>,
    pub most_moved: Vec<MovedReport>,
    pub warning: Option<WarningReport>,
}

/// The link's speeds, in 10^9 bytes a second.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkReport {
    pub h2d_gb_per_s: f64,
    pub d2h_gb_per_s: f64,
    pub both_gb_per_s: f64,
}

/// An allocation of which much was moved.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MovedReport {
    pub bytes: u64,
    pub moved_bytes: u64,
    pub allocated_by: Option<String>,
}

/// What was said of a program that is slow.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WarningReport {
    pub reason: String,
    pub remedy: Option<String>,
}

#[allow(clippy::cast_precision_loss)] // Figures of a report.
pub(super) fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[allow(clippy::cast_precision_loss)]
fn gigabytes(bytes_per_milli: u64) -> f64 {
    bytes_per_milli as f64 / 1e6
}

/// To a tenth.
fn percent(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

impl MovementReport {
    pub(super) fn of(record: &DeviceRecord) -> Option<Self> {
        let figure = &record.figure;
        if figure.watched_micros == 0 {
            return None;
        }
        let card = Card { budget_bytes: record.vram.budget_bytes, physical_bytes: record.vram_physical_bytes };
        let [into, out, both] = figure.link_bytes_per_milli;
        let link =
            LinkReport { h2d_gb_per_s: gigabytes(into), d2h_gb_per_s: gigabytes(out), both_gb_per_s: gigabytes(both) };
        let counted = figure.iterations > 0;
        let each = |sum: u64| counted.then(|| sum / figure.iterations.max(1));
        #[allow(clippy::cast_precision_loss)]
        let each_seconds = |micros: u64| counted.then(|| seconds(micros) / figure.iterations as f64);
        let bound = figure.percent_of_bound();
        Some(Self {
            watched_seconds: seconds(figure.watched_micros),
            gpu_waited_seconds: seconds(figure.starved_micros),
            in_place_seconds: seconds(figure.in_place_micros),
            in_place_bytes: figure.in_place_bytes,
            link: (into > 0).then_some(link),
            percent_of_bound: bound.ok().map(percent),
            unknown_because: bound.err().map(|why| why.to_string()),
            percent_of_vram_speed: figure.percent_of_vram_speed().ok().map(percent),
            iterations: figure.iterations,
            works_per_iteration: Some(figure.works_per_iteration).filter(|works| *works > 0),
            seconds_per_iteration: each_seconds(figure.iterations_micros),
            in_vram_seconds_per_iteration: each_seconds(figure.in_vram_micros).filter(|_| bound.is_ok()),
            bound_seconds_per_iteration: each_seconds(figure.bound_micros).filter(|_| bound.is_ok()),
            bytes_in_per_iteration: each(figure.in_bytes),
            bytes_out_per_iteration: each(figure.out_bytes),
            bytes_in_place_per_iteration: each(figure.iterations_in_place_bytes),
            bound_bytes_in_per_iteration: each(figure.bound_in_bytes),
            bound_bytes_out_per_iteration: each(figure.bound_out_bytes),
            most_moved: figure.most_moved.iter().filter(|moved| moved.moved_bytes > 0).map(MovedReport::of).collect(),
            warning: WarningReport::of(figure, card),
        })
    }
}

impl MovedReport {
    fn of(moved: &Moved) -> Self {
        Self { bytes: moved.bytes, moved_bytes: moved.moved_bytes, allocated_by: moved.maker.name().map(str::to_owned) }
    }
}

impl WarningReport {
    fn of(figure: &Summary, card: Card) -> Option<Self> {
        Some(Self { reason: figure.reason()?, remedy: figure.remedy(card) })
    }
}

#[cfg(test)]
mod tests {
    use emuv_policy::figure::Maker;
    use serde_json::json;

    use super::*;
    use crate::TierRecord;

    fn record(figure: Summary) -> DeviceRecord {
        let tier = TierRecord { budget_bytes: 9 << 30, used_bytes: 0, peak_bytes: 0 };
        DeviceRecord {
            ordinal: 0,
            uuid: [0; 16],
            name: String::new(),
            vram: tier,
            ram: tier,
            vram_physical_bytes: 24 << 30,
            unspilled_bytes: 0,
            allocations: 0,
            frees: 0,
            refused: 0,
            spilled_bytes: 0,
            launches: 0,
            promoted_bytes: 0,
            evicted_bytes: 0,
            held: 0,
            held_micros: 0,
            searches: 0,
            remapped_bytes: 0,
            escaped_bytes: 0,
            figure,
        }
    }

    #[test]
    fn it_has_the_documented_shape() {
        let mut figure = Summary {
            watched_micros: 3_000_000,
            starved_micros: 500_000,
            in_place_micros: 250_000,
            in_place_bytes: 7,
            moved_bytes: 1000,
            link_bytes_per_milli: [54_800_000, 54_900_000, 100_700_000],
            works_per_iteration: 100,
            iterations: 10,
            iterations_micros: 1_000_000,
            in_vram_micros: 600_000,
            bound_micros: 841_000,
            in_bytes: 100,
            out_bytes: 200,
            iterations_in_place_bytes: 300,
            bound_in_bytes: 90,
            bound_out_bytes: 80,
            ..Summary::default()
        };
        figure.most_moved[0] = Moved { offset: 0, bytes: 64, moved_bytes: 640, maker: Maker::Pool };
        let expected = json!({
            "watched_seconds": 3.0, "gpu_waited_seconds": 0.5, "in_place_seconds": 0.25, "in_place_bytes": 7,
            "link": {"h2d_gb_per_s": 54.8, "d2h_gb_per_s": 54.9, "both_gb_per_s": 100.7},
            "percent_of_bound": 84.1, "unknown_because": null, "percent_of_vram_speed": 60.0,
            "iterations": 10, "works_per_iteration": 100, "seconds_per_iteration": 0.1,
            "in_vram_seconds_per_iteration": 0.06, "bound_seconds_per_iteration": 0.0841,
            "bytes_in_per_iteration": 10, "bytes_out_per_iteration": 20, "bytes_in_place_per_iteration": 30,
            "bound_bytes_in_per_iteration": 9, "bound_bytes_out_per_iteration": 8,
            "most_moved": [{"bytes": 64, "moved_bytes": 640, "allocated_by": "cuMemAllocAsync"}],
            "warning": null,
        });
        assert_eq!(serde_json::to_value(MovementReport::of(&record(figure))).unwrap(), expected);
    }

    #[test]
    fn what_is_not_known_is_null_with_the_reason() {
        let figure = Summary { watched_micros: 1, link_bytes_per_milli: [1; 3], ..Summary::default() };
        let report = serde_json::to_value(MovementReport::of(&record(figure))).unwrap();
        assert_eq!(report["unknown_because"], "the program was not seen to repeat itself");
        for field in ["percent_of_bound", "percent_of_vram_speed", "seconds_per_iteration", "bytes_in_per_iteration"] {
            assert!(report[field].is_null(), "{field}");
        }
        assert_eq!(MovementReport::of(&record(Summary::default())), None);
    }
}
