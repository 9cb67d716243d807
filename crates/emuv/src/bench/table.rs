//! The table on standard output.

use std::fmt::Write;

use emuv_policy::Bytes;

use super::rows::{Cell, Row};

const HEAD: [&str; 13] = [
    "workload",
    "at",
    "peak",
    "VRAM",
    "plain ms",
    "emuV ms",
    "ratio",
    "static",
    "offload",
    "bound ms",
    "% of bound",
    "same bits",
    "",
];
/// The first is aligned to the left, as is the last.
const LAST: usize = HEAD.len() - 1;

/// From this ratio between runs of a kind on it is said that they differ.
const UNEVEN: f64 = 1.1;

/// What the columns mean.
const LEGEND: &str = "\
at: peak / VRAM budget. Times are medians per iteration of all runs; ratio, static and offload are ratios to plain (all in VRAM).
static: data stays where it was put, and what lies in RAM is read and written in place; there is no other in-place policy.
offload: accelerate for inference, save_on_cpu for training; * means that it takes more VRAM than the budget.
bound: what the computation and the link make unavoidable, whatever the plan.
";

/// The rows as aligned text, and what the columns mean.
pub fn table(rows: &[Row]) -> String {
    let lines: Vec<[String; HEAD.len()]> = rows.iter().map(line).collect();
    let mut widths = HEAD.map(|head| head.chars().count());
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in [HEAD.map(str::to_owned)].iter().chain(&lines) {
        let mut row = String::new();
        for (place, (cell, width)) in line.iter().zip(widths).enumerate() {
            // Writing to a string cannot fail.
            let _ = match place {
                0 => write!(row, "{cell:<width$}"),
                LAST => write!(row, "  {cell}"),
                _ => write!(row, "  {cell:>width$}"),
            };
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text.push('\n');
    text.push_str(LEGEND);
    text
}

fn line(row: &Row) -> [String; HEAD.len()] {
    let dash = || "-".to_owned();
    let size = |bytes: Option<u64>| bytes.map_or_else(dash, |bytes| Bytes(bytes).to_string());
    let millis = |seconds: Option<f64>| seconds.map_or_else(dash, |seconds| three_digits(seconds * 1e3));
    [
        row.workload.to_owned(),
        row.at.map_or_else(dash, |at| format!("{at}x")),
        size(row.peak_bytes),
        size(row.vram_bytes),
        millis(row.plain_seconds),
        millis(row.emuv.as_ref().and_then(|cell| cell.seconds)),
        ratio(row.emuv.as_ref()),
        ratio(row.fixed.as_ref()),
        ratio(row.offload.as_ref()),
        millis(row.bound.map(|bound| bound.seconds)),
        row.percent_of_bound.map_or_else(dash, |percent| format!("{percent:.0}")),
        row.same_bits.map_or_else(dash, |same| if same { "yes" } else { "NO" }.to_owned()),
        whys(row),
    ]
}

fn ratio(cell: Option<&Cell>) -> String {
    match cell {
        Some(Cell { ratio: Some(ratio), why, .. }) => {
            format!("{}{}", three_digits(*ratio), if why.is_some() { "*" } else { "" })
        }
        Some(_) => "failed".to_owned(),
        None => "-".to_owned(),
    }
}

/// Everything that did not go as planned, in one line.
fn whys(row: &Row) -> String {
    let cells = [("emuV", &row.emuv), ("static", &row.fixed), ("offload", &row.offload)];
    let of_cells = cells.into_iter().filter_map(|(name, cell)| {
        let cell = cell.as_ref()?;
        match (&cell.why, cell.seconds, cell.same_bits) {
            (Some(why), None, _) => Some(format!("{name}: {why}")),
            (_, _, Some(false)) => Some(format!("{name}: other bits")),
            _ => None,
        }
    });
    let spreads = [("plain", row.plain_spread), ("emuV", row.emuv.as_ref().and_then(|cell| cell.spread))];
    let uneven = spreads.into_iter().filter_map(|(name, spread)| {
        let spread = spread.filter(|spread| *spread >= UNEVEN)?;
        Some(format!("{name} runs differ by {:.0} %", 100.0 * (spread - 1.0)))
    });
    row.why.clone().into_iter().chain(uneven).chain(of_cells).collect::<Vec<_>>().join("; ")
}

fn three_digits(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            plan::{Baseline, Ratio},
            rows::{
                rows,
                tests::{LINK, failed, ran},
            },
        },
        *,
    };

    #[test]
    fn plain_runs_that_take_different_times_are_named() {
        let plain = |seconds| ran(Baseline::Plain, None, seconds, "a");
        let last = |second| {
            let samples = [plain(0.002), ran(Baseline::Emuv, Some(1.5), 0.025, "a"), plain(second)];
            table(&rows("decode-1", &samples, &[Ratio(1.5)], Some(&LINK))).lines().nth(1).unwrap().to_owned()
        };
        assert!(last(0.0027).ends_with("yes  plain runs differ by 35 %"), "{}", last(0.0027));
        assert!(last(0.0021).ends_with("yes"), "{}", last(0.0021));
    }

    #[test]
    fn so_are_those_under_emuv() {
        let emuv = |seconds| ran(Baseline::Emuv, Some(1.5), seconds, "a");
        let samples = [ran(Baseline::Plain, None, 0.002, "a"), emuv(0.02), emuv(0.03)];
        let text = table(&rows("decode-1", &samples, &[Ratio(1.5)], Some(&LINK)));
        assert!(text.contains("yes  emuV runs differ by 50 %"), "{text}");
    }

    #[test]
    fn columns_are_aligned_and_what_failed_says_why() {
        let samples = [
            ran(Baseline::Plain, None, 0.002, "a"),
            ran(Baseline::Emuv, Some(1.5), 0.025, "a"),
            failed(Baseline::Static, Some(1.5), "over the limit of 240 s"),
        ];
        let text = table(&rows("decode-1", &samples, &[Ratio(1.5)], Some(&LINK)));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "workload    at      peak      VRAM  plain ms  emuV ms  ratio  static  offload  bound ms  % of bound  same bits"
        );
        assert_eq!(
            lines[1],
            "decode-1  1.5x  2.79 GiB  1.86 GiB      2.00     25.0   12.5  failed        -      20.0          80        \
             yes  static: over the limit of 240 s"
        );
        assert!(text.ends_with(LEGEND));
    }

    #[test]
    fn other_bits_cannot_be_overlooked() {
        let samples = [ran(Baseline::Plain, None, 0.002, "a"), ran(Baseline::Emuv, Some(1.5), 0.025, "b")];
        let text = table(&rows("decode-1", &samples, &[Ratio(1.5)], Some(&LINK)));
        assert!(text.contains("NO  emuV: other bits"), "{text}");
    }
}
