//! Everything that a bench found, as it is written to `bench.json` and `bench.svg`.

use std::{fs, io, path::Path, time::SystemTime};

use emuv_policy::Bytes;
use emuv_state::HostMemory;
use serde::Serialize;

use super::{
    Options,
    bound::Link,
    plan::Ratio,
    plot::plot,
    rows::{Row, rows},
    sample::Sample,
};
use crate::{gpus::Machine, run::version_text};

/// The version of the format.
const SCHEMA: u32 = 1;
/// The figures.
const JSON: &str = "bench.json";
/// The plot.
const SVG: &str = "bench.svg";

/// All of it. What is unknown is `null`.
#[derive(Debug, Serialize)]
pub struct BenchResult {
    schema: u32,
    emuv: &'static str,
    /// Begin, UTC, as in the folder's name.
    begun: String,
    simulated: bool,
    /// Whether the user stopped it.
    pub interrupted: bool,
    machine: MachineFacts,
    torch: Option<String>,
    seed: u64,
    repeats: u32,
    turns: u32,
    peak_bytes: u64,
    /// As measured before the first run.
    link: Option<Link>,
    /// One for each workload and oversubscription.
    pub rows: Vec<Row>,
    /// One for each run, with every value that was measured.
    pub samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
struct MachineFacts {
    gpu: Option<String>,
    gpu_uuid: Option<String>,
    vram_bytes: Option<u64>,
    driver: Option<String>,
    cuda: String,
    pcie_generation: Option<u32>,
    pcie_width: Option<u32>,
    host_ram_bytes: Option<u64>,
    host_ram_available_bytes: Option<u64>,
}

impl BenchResult {
    /// Before anything was run.
    pub fn new(
        options: &Options,
        machine: &Machine,
        simulated: bool,
        torch: Option<String>,
        peak_bytes: u64,
        link: Option<Link>,
    ) -> Self {
        let gpu = machine.gpus.first();
        let host = HostMemory::read();
        Self {
            schema: SCHEMA,
            emuv: env!("CARGO_PKG_VERSION"),
            begun: stamp(),
            simulated,
            interrupted: false,
            machine: MachineFacts {
                gpu: gpu.and_then(|gpu| gpu.name.clone()),
                gpu_uuid: gpu.and_then(|gpu| gpu.uuid.clone()),
                vram_bytes: gpu.and_then(|gpu| gpu.vram_total).map(|bytes| bytes.0),
                driver: machine.driver_version.clone(),
                cuda: version_text(machine.cuda_version),
                pcie_generation: gpu.and_then(|gpu| gpu.link.generation_max),
                pcie_width: gpu.and_then(|gpu| gpu.link.width_max),
                host_ram_bytes: host.as_ref().map(|host| host.total.0),
                host_ram_available_bytes: host.as_ref().map(|host| host.available.0),
            },
            torch,
            seed: options.seed,
            repeats: options.repeats,
            turns: options.turns,
            peak_bytes,
            link,
            rows: Vec::new(),
            samples: Vec::new(),
        }
    }

    /// Makes the rows of a workload whose runs are complete, or as complete as they will be.
    pub fn update_rows(&mut self, workload: &'static str, ratios: &[Ratio]) {
        self.rows.extend(rows(workload, &self.samples, ratios, self.link.as_ref()));
    }

    /// For programs.
    pub fn json(&self) -> String {
        // Maps have text keys and numbers are finite or null: it cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// The machine in one line, and what was asked of it in another.
    pub fn heading(&self) -> [String; 2] {
        let unknown = || "unknown".to_owned();
        let link = self.link.map_or_else(unknown, |link| {
            let [h2d, d2h, both] =
                [link.h2d_bytes_per_second, link.d2h_bytes_per_second, link.both_bytes_per_second].map(|b| b / 1e9);
            format!("{h2d:.1} GB/s to the GPU, {d2h:.1} back, {both:.1} both at once")
        });
        let simulated = if self.simulated { "SIMULATED, nothing here is a measurement: " } else { "" };
        let machine = format!(
            "{simulated}{}, driver {}, PyTorch {}",
            self.machine.gpu.clone().unwrap_or_else(unknown),
            self.machine.driver.clone().unwrap_or_else(unknown),
            self.torch.clone().unwrap_or_else(unknown),
        );
        [machine, format!("link {link}; workloads of about {}, seed {}", Bytes(self.peak_bytes), self.seed)]
    }

    /// Writes both files into a folder: readers see an old file or a whole new one.
    ///
    /// # Errors
    /// The system's own.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        for (name, text) in [(JSON, self.json()), (SVG, plot(&self.rows, &self.heading()))] {
            let part = folder.join(format!(".{name}.part"));
            fs::write(&part, text)?;
            fs::rename(part, folder.join(name))?;
        }
        Ok(())
    }
}

/// Now, UTC, as a part of a file's name: 20261124-185545.
pub fn stamp() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    stamp_of(now.as_secs())
}

fn stamp_of(seconds: u64) -> String {
    let leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let (mut days, time) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year}{:02}{:02}-{hour:02}{minute:02}{second:02}", month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_reads_as_on_a_calendar() {
        assert_eq!(stamp_of(0), "19700101-000000");
        assert_eq!(stamp_of(951_782_400), "20000229-000000");
        assert_eq!(stamp_of(1_798_761_599), "20261231-235959");
    }
}
