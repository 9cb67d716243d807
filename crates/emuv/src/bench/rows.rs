//! From runs to the figures that are shown: one row for each workload and oversubscription.

use serde::Serialize;

use super::{
    bound::{Bound, Link, bound},
    plan::{Baseline, Ratio},
    sample::{Outcome, Sample, median_seconds, work},
};

/// One baseline's part of a row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    /// The median of the iterations that count, of all its runs.
    pub seconds: Option<f64>,
    /// The slowest run's median to the fastest one's; `None` of a single run.
    pub spread: Option<f64>,
    /// To the plain runs.
    pub ratio: Option<f64>,
    /// Whether every output was the plain run's to the bit.
    pub same_bits: Option<bool>,
    /// Why there is no time, or why it is not comparable.
    pub why: Option<String>,
}

/// One workload at one oversubscription.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The workload's name.
    pub workload: &'static str,
    /// peak / VRAM budget; `None` where the plain run gave no peak.
    pub at: Option<f64>,
    /// The most that the plain run's tensors took.
    pub peak_bytes: Option<u64>,
    /// What the others might use of VRAM.
    pub vram_bytes: Option<u64>,
    /// Everything in VRAM.
    pub plain_seconds: Option<f64>,
    /// The slowest plain run's median to the fastest one's: below that, nothing can be said of a ratio.
    pub plain_spread: Option<f64>,
    /// `emuv run`.
    pub emuv: Option<Cell>,
    /// `emuv run --policy static`.
    #[serde(rename = "static")]
    pub fixed: Option<Cell>,
    /// The framework's own way.
    pub offload: Option<Cell>,
    /// What no plan can beat.
    pub bound: Option<Bound>,
    /// Bound / emuV.
    pub percent_of_bound: Option<f64>,
    /// Whether all that ran agree to the bit; `None` if nothing was compared.
    pub same_bits: Option<bool>,
    /// What is wrong with the workload as a whole.
    pub why: Option<String>,
}

impl Row {
    fn empty(workload: &'static str) -> Self {
        Self {
            workload,
            at: None,
            peak_bytes: None,
            vram_bytes: None,
            plain_seconds: None,
            plain_spread: None,
            emuv: None,
            fixed: None,
            offload: None,
            bound: None,
            percent_of_bound: None,
            same_bits: None,
            why: None,
        }
    }
}

/// The rows of one workload, from all its runs.
pub fn rows(workload: &'static str, samples: &[Sample], ratios: &[Ratio], link: Option<&Link>) -> Vec<Row> {
    let own = samples.iter().filter(|sample| sample.workload == workload);
    let (plain, others): (Vec<&Sample>, Vec<&Sample>) = own.partition(|sample| sample.baseline == Baseline::Plain);
    let outcomes: Vec<&Outcome> = plain.iter().filter_map(|sample| sample.outcome()).collect();
    let Some(work) = work(&outcomes) else {
        let why = plain.iter().find_map(|sample| sample.why());
        let why = match (why, outcomes.is_empty()) {
            (Some(why), _) => why.to_owned(),
            (None, true) => return Vec::new(),
            (None, false) => "the plain run did not say how much GPU memory it took".to_owned(),
        };
        return vec![Row { why: Some(why), ..Row::empty(workload) }];
    };
    let steady = outcomes.windows(2).all(|pair| pair[0].same_bits(pair[1]));
    // A run without a budget of its own (offloaded activations) stands for all that do not fit.
    let belongs = |sample: &Sample, ratio: Ratio| match sample.vram_bytes {
        Some(_) => sample.at == Some(ratio.0),
        None => !ratio.fits(),
    };
    let plain_only = Row {
        peak_bytes: Some(work.peak_bytes),
        plain_seconds: Some(work.seconds),
        plain_spread: spread(&outcomes),
        why: (!steady).then(|| "two plain runs differ".to_owned()),
        same_bits: (outcomes.len() > 1).then_some(steady),
        ..Row::empty(workload)
    };
    if others.is_empty() {
        return vec![plain_only];
    }
    ratios
        .iter()
        .filter(|&&ratio| others.iter().any(|sample| belongs(sample, ratio)))
        .map(|&ratio| {
            let vram = ratio.budget(work.peak_bytes);
            let cell = |baseline| {
                let of_it = |sample: &&&Sample| sample.baseline == baseline && belongs(sample, ratio);
                let runs: Vec<&Sample> = others.iter().filter(of_it).copied().collect();
                (!runs.is_empty()).then(|| cell(&runs, outcomes[0], work.seconds, vram))
            };
            let [emuv, fixed, offload] = [Baseline::Emuv, Baseline::Static, Baseline::Offload].map(cell);
            let bound = link.map(|link| bound(&work, vram, link));
            let emuv_seconds = emuv.as_ref().and_then(|cell| cell.seconds);
            let compared: Vec<bool> =
                [&emuv, &fixed, &offload].into_iter().flatten().filter_map(|cell| cell.same_bits).collect();
            Row {
                at: Some(ratio.0),
                vram_bytes: Some(vram),
                percent_of_bound: bound.zip(emuv_seconds).map(|(bound, seconds)| 100.0 * bound.seconds / seconds),
                same_bits: (!compared.is_empty()).then(|| steady && compared.iter().all(|&same| same)),
                emuv,
                fixed,
                offload,
                bound,
                ..plain_only.clone()
            }
        })
        .collect()
}

fn spread(runs: &[&Outcome]) -> Option<f64> {
    let medians: Vec<f64> = runs.iter().filter_map(|run| run.median_seconds()).collect();
    let most = medians.iter().copied().reduce(f64::max)?;
    let least = medians.iter().copied().reduce(f64::min)?;
    (medians.len() > 1).then_some(most / least)
}

/// From all runs of a baseline; one that failed stands for all.
fn cell(runs: &[&Sample], plain: &Outcome, plain_seconds: f64, vram: u64) -> Cell {
    if let Some(why) = runs.iter().find_map(|run| run.why()) {
        return Cell { seconds: None, spread: None, ratio: None, same_bits: None, why: Some(why.to_owned()) };
    }
    let outcomes: Vec<&Outcome> = runs.iter().filter_map(|run| run.outcome()).collect();
    let seconds = median_seconds(&outcomes);
    // Only the framework decides what its offload keeps in VRAM.
    let is_offload = runs.iter().all(|run| run.baseline == Baseline::Offload);
    let over = outcomes.iter().filter_map(|run| run.peak_allocated_bytes).find(|&bytes| is_offload && bytes > vram);
    Cell {
        seconds,
        spread: spread(&outcomes),
        ratio: seconds.map(|seconds| seconds / plain_seconds),
        same_bits: Some(outcomes.iter().all(|outcome| outcome.same_bits(plain))),
        why: over.map(|bytes| format!("takes {} of VRAM, more than the budget", emuv_policy::Bytes(bytes))),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::bench::sample::Ended;

    pub const LINK: Link = Link { h2d_bytes_per_second: 50e9, d2h_bytes_per_second: 50e9, both_bytes_per_second: 80e9 };

    /// A run of a workload of 3 GB with clean weights.
    pub fn ran(baseline: Baseline, at: Option<f64>, seconds: f64, digest: &str) -> Sample {
        let outcome = Outcome {
            seconds: vec![9.0, seconds],
            digests: vec![digest.to_owned()],
            peak_allocated_bytes: Some(3_000_000_000),
            pass_bytes: vec![None],
            clean_bytes: 3_000_000_000,
            ..Outcome::default()
        };
        Sample {
            workload: "decode-1",
            baseline,
            at,
            vram_bytes: at.map(|at| Ratio(at).budget(3_000_000_000)),
            command: Vec::new(),
            wall_seconds: 1.0,
            ended: Ended::Ran(Box::new(outcome)),
            report: None,
        }
    }

    pub fn failed(baseline: Baseline, at: Option<f64>, why: &str) -> Sample {
        Sample { ended: Ended::Failed { why: why.to_owned() }, ..ran(baseline, at, 1.0, "") }
    }

    fn made(samples: &[Sample]) -> Vec<Row> {
        rows("decode-1", samples, &[Ratio(0.8), Ratio(1.5)], Some(&LINK))
    }

    #[test]
    fn a_row_has_ratios_the_bound_and_the_verdict_on_bits() {
        let samples = [
            ran(Baseline::Plain, None, 0.001, "a"),
            ran(Baseline::Emuv, Some(1.5), 0.025, "a"),
            ran(Baseline::Static, Some(1.5), 0.05, "a"),
            ran(Baseline::Plain, None, 0.003, "a"),
        ];
        let found = made(&samples);
        assert_eq!(found.len(), 1, "nothing ran at 0.8");
        let row = &found[0];
        assert_eq!((row.plain_seconds, row.plain_spread), (Some(0.002), Some(3.0)), "both plain runs count");
        assert_eq!(row.emuv.as_ref().unwrap().ratio, Some(12.5));
        assert_eq!(row.fixed.as_ref().unwrap().ratio, Some(25.0));
        // 1 GB at 50 GB/s.
        assert!((row.percent_of_bound.unwrap() - 80.0).abs() < 1e-9);
        assert_eq!((row.same_bits, &row.offload, &row.why), (Some(true), &None, &None));
    }

    #[test]
    fn all_runs_of_a_baseline_count() {
        let emuv = |seconds, digest| ran(Baseline::Emuv, Some(1.5), seconds, digest);
        let plain = ran(Baseline::Plain, None, 0.002, "a");
        let found = made(&[plain.clone(), emuv(0.03, "a"), emuv(0.02, "a"), emuv(0.025, "a")]);
        let cell = found[0].emuv.as_ref().unwrap();
        assert_eq!((found.len(), cell.seconds, cell.spread), (1, Some(0.025), Some(1.5)));
        let found = made(&[plain.clone(), emuv(0.03, "a"), emuv(0.02, "b")]);
        assert_eq!(found[0].same_bits, Some(false), "one of them has other bits");
        let found = made(&[plain, emuv(0.03, "a"), failed(Baseline::Emuv, Some(1.5), "out of memory")]);
        let cell = found[0].emuv.as_ref().unwrap();
        assert_eq!(
            (cell.seconds, cell.why.as_deref()),
            (None, Some("out of memory")),
            "one that failed is not left out"
        );
    }

    #[test]
    fn other_bits_are_found_in_any_baseline_and_between_plain_runs() {
        let plain = ran(Baseline::Plain, None, 0.001, "a");
        let emuv = ran(Baseline::Emuv, Some(1.5), 0.001, "a");
        let wrong = ran(Baseline::Static, Some(1.5), 0.001, "b");
        assert_eq!(made(&[plain.clone(), emuv.clone(), wrong])[0].same_bits, Some(false));
        let found = made(&[plain, emuv, ran(Baseline::Plain, None, 0.001, "b")]);
        assert_eq!(found[0].same_bits, Some(false));
        assert_eq!(found[0].why.as_deref(), Some("two plain runs differ"));
    }

    #[test]
    fn a_failed_run_is_a_cell_that_says_why() {
        let samples = [ran(Baseline::Plain, None, 0.001, "a"), failed(Baseline::Emuv, Some(1.5), "out of memory")];
        let found = made(&samples);
        assert_eq!(found[0].emuv.as_ref().unwrap().why.as_deref(), Some("out of memory"));
        assert_eq!((found[0].percent_of_bound, found[0].same_bits, found[0].plain_spread), (None, None, None));
    }

    #[test]
    fn a_failed_plain_run_is_a_row_that_says_why() {
        let found = made(&[failed(Baseline::Plain, None, "torchvision is not installed")]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].why.as_deref(), Some("torchvision is not installed"));
        assert_eq!(made(&[]), []);
    }

    #[test]
    fn an_offload_that_takes_more_than_the_budget_is_not_comparable() {
        let once = Sample { vram_bytes: None, ..ran(Baseline::Offload, Some(1.1), 0.1, "a") };
        let samples = [ran(Baseline::Plain, None, 0.001, "a"), once, ran(Baseline::Emuv, Some(1.5), 0.02, "a")];
        let cell = made(&samples)[0].offload.clone().unwrap();
        assert_eq!(cell.why.as_deref(), Some("takes 2.79 GiB of VRAM, more than the budget"));
    }

    #[test]
    fn plain_runs_alone_are_a_row() {
        let found = made(&[ran(Baseline::Plain, None, 0.001, "a"), ran(Baseline::Plain, None, 0.001, "a")]);
        assert_eq!((found.len(), found[0].plain_seconds, found[0].same_bits), (1, Some(0.001), Some(true)));
    }

    #[test]
    fn without_a_link_there_is_no_bound() {
        let samples = [ran(Baseline::Plain, None, 0.001, "a"), ran(Baseline::Emuv, Some(1.5), 0.02, "a")];
        let found = rows("decode-1", &samples, &[Ratio(1.5)], None);
        assert_eq!((found[0].bound, found[0].percent_of_bound), (None, None));
    }
}
