//! The report of a run, as JSON. Sizes are bytes; what is unknown is `null`, never 0.

mod file;
mod movement;
mod timeline;

use serde::{Deserialize, Serialize};

use crate::{DeviceRecord, Limits, ProcessRecord, TierRecord, TimelineRecord, uuid_text};
pub use file::{check_writable, write_whole};
pub use movement::{MovementReport, WarningReport};
pub use timeline::{CostReport, MarkReport, NativeFrameReport, PythonFrameReport, SiteReport, TimelineReport};

/// The version of the format.
pub const SCHEMA: u32 = 1;

/// What a run did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// emuV's version.
    pub emuv: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// What `emuv run` exits with: the program's own code, or 128 + n after signal n.
    pub exit_code: u8,
    /// Whether the GPU was simulated.
    pub simulated: bool,
    /// What the run was allowed.
    pub limits: LimitsReport,
    /// One per program that used CUDA, in the order in which they started.
    pub processes: Vec<ProcessReport>,
}

/// [`Limits`], in bytes.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsReport {
    /// `null`: all that the card has.
    pub vram_bytes: Option<u64>,
    pub ram_bytes: u64,
    pub ram_floor_bytes: u64,
}

/// One process.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessReport {
    pub pid: u32,
    pub command: String,
    /// Errors of emuV's own.
    pub internal_errors: u64,
    pub devices: Vec<DeviceReport>,
}

/// One device as one process used it; the fields are those of [`crate::DeviceCounters`].
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceReport {
    pub ordinal: usize,
    pub uuid: Option<String>,
    pub name: Option<String>,
    pub vram: TierReport,
    pub ram: TierReport,
    pub vram_physical_bytes: Option<u64>,
    pub unspilled_bytes: u64,
    pub allocations: u64,
    pub frees: u64,
    pub refused: u64,
    pub spilled_bytes: u64,
    pub launches: u64,
    /// Bytes moved from RAM to VRAM.
    pub promoted_bytes: u64,
    /// Bytes moved from VRAM to RAM.
    pub evicted_bytes: u64,
    /// Calls that waited for data to move.
    pub held: u64,
    /// How long they waited, all together.
    pub held_micros: u64,
    /// Searches for pointers in GPU memory.
    pub searches: u64,
    /// Bytes of chunks exchanged between the tiers whose contents were nobody's: nothing was copied.
    #[serde(default)]
    pub remapped_bytes: u64,
    /// Bytes that pointers in GPU memory lead to: they move only while the GPU has nothing to do.
    #[serde(default)]
    pub escaped_bytes: u64,
    /// How fast it was, next to what GPU and link allow; `null`: nothing was moved ahead of need (everything fitted, or
    /// another policy than `dynamic` was chosen).
    pub movement: Option<MovementReport>,
    /// What it held and moved over time; `null`: that was not kept.
    #[serde(default)]
    pub timeline: Option<TimelineReport>,
    /// The allocations of which most was copied, most first; `null`: that was not kept.
    #[serde(default)]
    pub costliest: Option<Vec<CostReport>>,
}

/// One tier; the fields are those of [`crate::TierCounters`].
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierReport {
    pub budget_bytes: Option<u64>,
    pub used_bytes: u64,
    pub peak_bytes: u64,
}

impl From<&Limits> for LimitsReport {
    fn from(limits: &Limits) -> Self {
        Self {
            vram_bytes: limits.vram.map(|bytes| bytes.0),
            ram_bytes: limits.ram.0,
            ram_floor_bytes: limits.ram_floor.0,
        }
    }
}

impl From<&ProcessRecord> for ProcessReport {
    fn from(record: &ProcessRecord) -> Self {
        Self {
            pid: record.pid,
            command: record.command.clone(),
            internal_errors: record.internal_errors,
            devices: record.devices.iter().map(DeviceReport::from).collect(),
        }
    }
}

impl From<&DeviceRecord> for DeviceReport {
    fn from(record: &DeviceRecord) -> Self {
        Self {
            ordinal: record.ordinal,
            uuid: uuid_text(&record.uuid),
            name: Some(record.name.clone()).filter(|name| !name.is_empty()),
            // No device works on a VRAM budget of 0, so there it means "never set"; for RAM it means "off".
            vram: tier(record.vram, known(record.vram.budget_bytes)),
            ram: tier(record.ram, Some(record.ram.budget_bytes)),
            vram_physical_bytes: known(record.vram_physical_bytes),
            unspilled_bytes: record.unspilled_bytes,
            allocations: record.allocations,
            frees: record.frees,
            refused: record.refused,
            spilled_bytes: record.spilled_bytes,
            launches: record.launches,
            promoted_bytes: record.promoted_bytes,
            evicted_bytes: record.evicted_bytes,
            held: record.held,
            held_micros: record.held_micros,
            searches: record.searches,
            remapped_bytes: record.remapped_bytes,
            escaped_bytes: record.escaped_bytes,
            movement: MovementReport::of(record),
            timeline: None,
            costliest: None,
        }
    }
}

impl DeviceReport {
    /// Adds what was kept over time. `symbol` names the function at a place in a file, where that can be known.
    pub fn add_timeline(&mut self, record: &TimelineRecord, symbol: &mut dyn FnMut(&str, u64) -> Option<String>) {
        self.timeline = Some(TimelineReport::from(record));
        self.costliest = Some(CostReport::all(record, symbol));
    }
}

fn tier(record: TierRecord, budget_bytes: Option<u64>) -> TierReport {
    TierReport { budget_bytes, used_bytes: record.used_bytes, peak_bytes: record.peak_bytes }
}

fn known(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use emuv_policy::{Bytes, figure::Summary};
    use serde_json::json;

    use super::*;

    pub(super) fn report() -> Report {
        let tier = TierRecord { budget_bytes: 0, used_bytes: 1, peak_bytes: 2 };
        let device = DeviceRecord {
            ordinal: 0,
            uuid: [0; 16],
            name: String::new(),
            vram: tier,
            ram: tier,
            vram_physical_bytes: 0,
            unspilled_bytes: 0,
            allocations: 3,
            frees: 4,
            refused: 5,
            spilled_bytes: 6,
            launches: 7,
            promoted_bytes: 8,
            evicted_bytes: 9,
            held: 10,
            held_micros: 11,
            searches: 12,
            remapped_bytes: 13,
            escaped_bytes: 14,
            figure: Summary::default(),
        };
        let process = ProcessRecord {
            pid: 42,
            start_ticks: 1,
            generation: 0,
            command: "prog".into(),
            alive: false,
            ram: tier,
            internal_errors: 0,
            devices: vec![device],
        };
        Report {
            schema: SCHEMA,
            emuv: "0.1.0".into(),
            command: vec!["prog".into(), "a b".into()],
            exit_code: 7,
            simulated: true,
            limits: LimitsReport::from(&Limits { vram: None, ram: Bytes(10), ram_floor: Bytes(20) }),
            processes: vec![with_timeline(ProcessReport::from(&process))],
        }
    }

    fn with_timeline(mut process: ProcessReport) -> ProcessReport {
        process.devices[0].timeline = Some(TimelineReport { seconds: vec![0.5, 1.0], ..TimelineReport::default() });
        process.devices[0].costliest = Some(Vec::new());
        process
    }

    #[test]
    fn it_has_the_documented_shape_and_unknown_is_null() {
        let device = json!({
            "ordinal": 0, "uuid": null, "name": null,
            "vram": {"budget_bytes": null, "used_bytes": 1, "peak_bytes": 2},
            "ram": {"budget_bytes": 0, "used_bytes": 1, "peak_bytes": 2},
            "vram_physical_bytes": null, "unspilled_bytes": 0, "allocations": 3, "frees": 4, "refused": 5,
            "spilled_bytes": 6, "launches": 7, "promoted_bytes": 8, "evicted_bytes": 9,
            "held": 10, "held_micros": 11, "searches": 12, "remapped_bytes": 13, "escaped_bytes": 14,
            "movement": null, "timeline": TimelineReport { seconds: vec![0.5, 1.0], ..TimelineReport::default() },
            "costliest": [],
        });
        let expected = json!({
            "schema": 1, "emuv": "0.1.0", "command": ["prog", "a b"], "exit_code": 7, "simulated": true,
            "limits": {"vram_bytes": null, "ram_bytes": 10, "ram_floor_bytes": 20},
            "processes": [{"pid": 42, "command": "prog", "internal_errors": 0, "devices": [device]}],
        });
        assert_eq!(serde_json::to_value(report()).unwrap(), expected);
    }
}
