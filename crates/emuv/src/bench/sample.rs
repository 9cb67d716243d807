//! One run of a workload: what was started and what it said.

use std::path::Path;

use emuv_policy::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{bound::Work, plan::Baseline};

/// The line that a workload prints (`workloads/workload.py`). What is missing after an error is `None` or empty.
#[allow(missing_docs)] // The meanings stand there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    pub schema: u32,
    pub skipped: Option<String>,
    pub error: Option<String>,
    pub device: Option<String>,
    pub torch: Option<String>,
    pub cuda: Option<String>,
    pub python: Option<String>,
    pub seconds: Vec<f64>,
    pub forward_seconds: Option<Vec<f64>>,
    pub sweep_seconds: Option<Vec<f64>>,
    pub digests: Vec<String>,
    pub final_sha256: Option<String>,
    pub peak_allocated_bytes: Option<u64>,
    pub peak_reserved_bytes: Option<u64>,
    pub setup_peak_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
    pub scale: Value,
    pub scale_argument: Option<u64>,
    pub pass_bytes: Vec<Option<u64>>,
    pub clean_bytes: u64,
    pub stack: bool,
    pub sweep_bytes: u64,
    pub random_bytes: u64,
    pub touched_bytes: u64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum Ended {
    /// It printed its result.
    Ran(Box<Outcome>),
    /// It cannot run here.
    Skipped {
        /// Why, and what to do.
        why: String,
    },
    /// It went wrong.
    Failed {
        /// What it said.
        why: String,
    },
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// The workload's name.
    pub workload: &'static str,
    /// What of.
    pub baseline: Baseline,
    /// peak / VRAM budget; `None` for plain runs.
    pub at: Option<f64>,
    /// The VRAM that it might use; `None`: all.
    pub vram_bytes: Option<u64>,
    /// What was started.
    pub command: Vec<String>,
    /// Of the whole process.
    pub wall_seconds: f64,
    /// How it ended, with everything that was measured.
    #[serde(flatten)]
    pub ended: Ended,
    /// `emuv run --report` of it.
    pub report: Option<Value>,
}

impl Sample {
    /// What was measured, if it ran.
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.ended {
            Ended::Ran(outcome) => Some(outcome),
            Ended::Skipped { .. } | Ended::Failed { .. } => None,
        }
    }

    /// Why nothing was measured.
    pub fn why(&self) -> Option<&str> {
        match &self.ended {
            Ended::Ran(_) => None,
            Ended::Skipped { why } | Ended::Failed { why } => Some(why),
        }
    }
}

impl Ended {
    /// Reads what a workload left: its last line that is JSON, or the end of what it complained of.
    pub fn read(stdout: &str, stderr: &str, ended: &str) -> Self {
        let line = stdout.lines().rev().find(|line| line.starts_with('{'));
        let outcome = line.and_then(|line| serde_json::from_str::<Outcome>(line).ok());
        match outcome {
            Some(Outcome { skipped: Some(why), .. }) => Self::Skipped { why: one_line(&why) },
            Some(Outcome { error: Some(why), .. }) => Self::Failed { why: one_line(&why) },
            Some(outcome) if !outcome.seconds.is_empty() => Self::Ran(Box::new(outcome)),
            _ => Self::Failed { why: one_line(&format!("{ended}: {}", last_line(stderr))) },
        }
    }
}

/// What a program said last, where Python says what went wrong.
pub fn last_line(stderr: &str) -> &str {
    stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing")
}

/// Foreign text for one line of a table: no control characters, not too long.
fn one_line(text: &str) -> String {
    let clean: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    let mut short: String = clean.trim().chars().take(160).collect();
    if short.len() < clean.trim().len() {
        short.push_str("...");
    }
    short
}

impl Outcome {
    /// The iterations that count: the second half; the first is warm-up.
    pub fn counted(&self) -> &[f64] {
        second_half(&self.seconds)
    }

    /// The median of those.
    pub fn median_seconds(&self) -> Option<f64> {
        median_seconds(&[self])
    }

    /// Whether both computed the same, as far as both went: every output of every iteration, to the bit.
    pub fn same_bits(&self, other: &Self) -> bool {
        let both = self.digests.len().min(other.digests.len());
        let all = self.digests.len() == other.digests.len();
        both > 0 && self.digests[..both] == other.digests[..both] && (!all || self.final_sha256 == other.final_sha256)
    }
}

fn second_half(values: &[f64]) -> &[f64] {
    &values[values.len() / 2..]
}

/// The middle one, or the mean of the two in the middle; `None` of nothing.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// The median of all iterations that count.
pub fn median_seconds(runs: &[&Outcome]) -> Option<f64> {
    median(runs.iter().flat_map(|run| run.counted().iter().copied()).collect())
}

/// What plain runs say that an iteration does; `None` without a run, or without its peak (not on a GPU).
pub fn work(plain: &[&Outcome]) -> Option<Work> {
    let first = plain.first()?;
    let seconds = median_seconds(plain)?;
    let part = |seconds: fn(&Outcome) -> Option<&[f64]>| {
        let runs = plain.iter().filter_map(|run| seconds(run));
        median(runs.flat_map(|values| second_half(values).iter().copied()).collect())
    };
    let forward = part(|run| run.forward_seconds.as_deref());
    let sweep = part(|run| run.sweep_seconds.as_deref());
    let peak_bytes = first.peak_allocated_bytes.filter(|&bytes| bytes > 0)?;
    Some(Work {
        seconds,
        stack_forward_seconds: forward.filter(|_| first.stack),
        sweep: sweep.filter(|_| first.sweep_bytes > 0).map(|seconds| (seconds, first.sweep_bytes)),
        peak_bytes,
        pass_bytes: first.pass_bytes.iter().map(|bytes| bytes.unwrap_or(peak_bytes)).collect(),
        clean_bytes: first.clean_bytes,
        random_bytes: first.random_bytes,
        touched_bytes: first.touched_bytes,
    })
}

/// RAM for what does not fit: everything could be there, with room for chunks that are only partly used.
pub fn ram_for(peak_bytes: u64) -> u64 {
    Bytes(peak_bytes).saturating_add(Bytes(peak_bytes / 4)).saturating_add(Bytes::gib(1)).0
}

/// The report that `emuv run` wrote, if it did.
pub fn report(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(digests: &[&str], last: Option<&str>) -> Outcome {
        Outcome {
            digests: digests.iter().map(|&digest| digest.into()).collect(),
            final_sha256: last.map(Into::into),
            ..Outcome::default()
        }
    }

    #[test]
    fn results_are_compared_as_far_as_both_went() {
        let long = outcome(&["a", "b", "c"], Some("end"));
        assert!(long.same_bits(&outcome(&["a", "b"], Some("earlier"))));
        assert!(!long.same_bits(&outcome(&["a", "x"], None)));
        assert!(!long.same_bits(&outcome(&["a", "b", "c"], Some("other"))), "the weights differ in the end");
        assert!(!long.same_bits(&outcome(&[], None)), "nothing was compared");
    }

    #[test]
    fn the_second_half_counts() {
        let run = Outcome { seconds: vec![9.0, 9.0, 1.0, 2.0, 3.0], ..Outcome::default() };
        assert_eq!(median(run.counted().to_vec()), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn what_a_workload_leaves_is_read_or_its_complaint_kept() {
        let ran = Ended::read("noise\n{\"seconds\": [0.5]}\n", "", "exit code 0");
        assert!(matches!(ran, Ended::Ran(outcome) if outcome.seconds == [0.5]));
        let skipped = Ended::read("{\"skipped\": \"no torchvision\"}", "warning", "exit code 4");
        assert_eq!(skipped, Ended::Skipped { why: "no torchvision".into() });
        let failed = Ended::read("{\"error\": \"CUDA out\\nof memory\"}", "", "exit code 3");
        assert_eq!(failed, Ended::Failed { why: "CUDA out of memory".into() });
        let broken = Ended::read("{\"seco", "Traceback\nValueError: x\n\n", "exit code 1");
        assert_eq!(broken, Ended::Failed { why: "exit code 1: ValueError: x".into() });
        assert_eq!(
            Ended::read("", "", "over the limit of 240 s"),
            Ended::Failed { why: "over the limit of 240 s: it said nothing".into() }
        );
    }

    #[test]
    fn work_needs_a_peak_and_stacks_or_sweeps_only_where_the_workload_says_so() {
        let run = Outcome {
            seconds: vec![1.0],
            forward_seconds: Some(vec![0.4]),
            sweep_seconds: Some(vec![0.1]),
            peak_allocated_bytes: Some(7),
            pass_bytes: vec![None, Some(3)],
            ..Outcome::default()
        };
        let found = work(&[&run]).unwrap();
        assert_eq!((found.stack_forward_seconds, found.sweep, found.pass_bytes), (None, None, vec![7, 3]));
        assert_eq!(work(&[&Outcome { sweep_bytes: 5, ..run.clone() }]).unwrap().sweep, Some((0.1, 5)));
        assert_eq!(work(&[&Outcome { stack: true, ..run.clone() }]).unwrap().stack_forward_seconds, Some(0.4));
        assert_eq!(work(&[&Outcome { peak_allocated_bytes: None, ..run }]), None);
    }
}
