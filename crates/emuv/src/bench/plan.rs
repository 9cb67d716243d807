//! What is run, in which order.

use std::{fmt, str::FromStr};

use serde::Serialize;

/// How frameworks offload a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// They do not.
    None,
    /// Layers that are over the budget live in RAM (accelerate): one run for each budget.
    Weights,
    /// Activations live in RAM (`save_on_cpu`), whatever the budget: one run.
    Activations,
}

/// One workload.
#[derive(Debug, PartialEq, Eq)]
pub struct Workload {
    /// As on the command line; `family-variant`.
    pub name: &'static str,
    /// In a few words.
    pub words: &'static str,
    /// Whether it is among those of `--quick`.
    pub quick: bool,
    /// How frameworks offload it.
    pub offload: Offload,
}

const fn workload(name: &'static str, words: &'static str, quick: bool, offload: Offload) -> Workload {
    Workload { name, words, quick, offload }
}

/// All of them; `workloads/workload.py` has the same.
pub const WORKLOADS: [Workload; 15] = [
    workload("cyclic", "buffers read and written in turn", true, Offload::None),
    workload("palindromic", "the same there and back", false, Offload::None),
    workload("gemm", "an activation times many matrices", false, Offload::None),
    workload("gather", "random rows of a large table", false, Offload::None),
    workload("resnet50", "ResNet-50 training (torchvision), fp32", true, Offload::Activations),
    workload("unet", "Stable-Diffusion-shaped UNet, fp16 inference", true, Offload::Weights),
    workload("prefill-512", "LLaMA-shaped, reading 512 tokens", false, Offload::Weights),
    workload("prefill-2k", "LLaMA-shaped, reading 2,048 tokens", true, Offload::Weights),
    workload("prefill-8k", "LLaMA-shaped, reading 8,192 tokens", false, Offload::Weights),
    workload("decode-1", "LLaMA-shaped, one token for one sequence", true, Offload::Weights),
    workload("decode-16", "LLaMA-shaped, one token for 16 sequences", false, Offload::Weights),
    workload("kv-growth", "a growing KV cache", false, Offload::None),
    workload("finetune", "full fine-tuning with AdamW", true, Offload::Activations),
    workload("lora", "LoRA fine-tuning on frozen weights", true, Offload::Activations),
    workload("moe", "mixture of experts, one token, random routing", true, Offload::Weights),
];

/// The oversubscriptions of a full run: peak / VRAM budget. At 0.8 everything fits.
pub const RATIOS: [f64; 5] = [0.8, 1.1, 1.5, 2.0, 3.0];
/// Those of `--quick`.
pub const QUICK_RATIOS: [f64; 1] = [1.5];

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Baseline {
    /// Everything in VRAM, without emuV.
    Plain,
    /// `emuv run`.
    Emuv,
    /// `emuv run --policy static`: data stays where it was put; what is in RAM is read and written in place.
    Static,
    /// The framework's own way.
    Offload,
}

impl FromStr for Baseline {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "plain" => Ok(Self::Plain),
            "emuv" => Ok(Self::Emuv),
            "static" => Ok(Self::Static),
            "offload" => Ok(Self::Offload),
            other => Err(format!("'{other}' is none of plain, emuv, static, offload")),
        }
    }
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Emuv => "emuv",
            Self::Static => "static",
            Self::Offload => "offload",
        })
    }
}

/// peak / VRAM budget.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio(pub f64);

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().parse() {
            Ok(ratio) if (0.1..=100.0).contains(&ratio) => Ok(Self(ratio)),
            _ => Err(format!("'{}' is no oversubscription; write for example 1.5", text.trim())),
        }
    }
}

impl Ratio {
    /// Whether everything is in VRAM.
    pub fn fits(self) -> bool {
        self.0 <= 1.0
    }

    /// The VRAM for a program that needs this much.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn budget(self, peak_bytes: u64) -> u64 {
        (peak_bytes as f64 / self.0) as u64
    }
}

/// The workloads that the user named: exact names, or families (`decode` is `decode-1` and `decode-16`).
///
/// # Errors
/// One line that names what is wrong.
pub fn chosen(names: &[String], quick: bool) -> Result<Vec<&'static Workload>, String> {
    if names.is_empty() {
        return Ok(WORKLOADS.iter().filter(|workload| workload.quick || !quick).collect());
    }
    for name in names {
        if !WORKLOADS.iter().any(|workload| workload.answers_to(name)) {
            return Err(format!("there is no workload '{}'; --list shows them", name.trim()));
        }
    }
    Ok(WORKLOADS.iter().filter(|workload| names.iter().any(|name| workload.answers_to(name))).collect())
}

impl Workload {
    fn answers_to(&self, name: &str) -> bool {
        let name = name.trim();
        self.name == name || self.name.rsplit_once('-').is_some_and(|(family, _)| family == name)
    }

    /// The runs between two plain ones, which frame them: baselines at one oversubscription stand side by side.
    pub fn runs(&self, ratios: &[Ratio], baselines: &[Baseline]) -> Vec<(Ratio, Baseline)> {
        let mut runs = Vec::new();
        let mut offloaded = false;
        for &ratio in ratios {
            for &baseline in baselines {
                let wanted = match baseline {
                    Baseline::Plain => false,
                    Baseline::Emuv => true,
                    // What fits is placed alike by both policies, and needs no offload.
                    Baseline::Static => !ratio.fits(),
                    Baseline::Offload => {
                        let once = self.offload == Offload::Activations && offloaded;
                        !ratio.fits() && self.offload != Offload::None && !once
                    }
                };
                offloaded |= wanted && baseline == Baseline::Offload;
                if wanted {
                    runs.push((ratio, baseline));
                }
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(workloads: &[&Workload]) -> Vec<&'static str> {
        workloads.iter().map(|workload| workload.name).collect()
    }

    #[test]
    fn the_scripts_know_the_same_workloads() {
        let script = include_str!("../../workloads/workload.py");
        let entries = script.lines().filter(|line| line.starts_with("    \"") && line.contains("\": (\"")).count();
        assert_eq!(entries, WORKLOADS.len());
        for workload in &WORKLOADS {
            let line = script.lines().find(|line| line.starts_with(&format!("    \"{}\": ", workload.name)));
            assert!(line.is_some_and(|line| line.contains(&format!("\"{}\"", workload.words))), "{workload:?}");
        }
    }

    #[test]
    fn a_name_or_a_family_chooses_and_a_wrong_one_is_told() {
        let chosen = |text: &[&str]| chosen(&text.iter().map(|&name| name.to_owned()).collect::<Vec<_>>(), false);
        assert_eq!(names(&chosen(&["decode"]).unwrap()), ["decode-1", "decode-16"]);
        assert_eq!(names(&chosen(&["prefill-8k", " cyclic"]).unwrap()), ["cyclic", "prefill-8k"]);
        assert_eq!(chosen(&["gpt"]).unwrap_err(), "there is no workload 'gpt'; --list shows them");
        assert!(chosen(&[""]).is_err());
    }

    #[test]
    fn quick_is_a_part() {
        let quick = chosen(&[], true).unwrap();
        assert!(!quick.is_empty() && quick.len() < chosen(&[], false).unwrap().len());
    }

    #[test]
    fn what_fits_is_run_under_emuv_alone_and_activations_are_offloaded_once() {
        let all = [Baseline::Plain, Baseline::Emuv, Baseline::Static, Baseline::Offload];
        let ratios = [Ratio(0.8), Ratio(1.5), Ratio(2.0)];
        let count = |workload: &Workload, baseline| {
            workload.runs(&ratios, &all).iter().filter(|(_, found)| *found == baseline).count()
        };
        let [cyclic, resnet, decode] = ["cyclic", "resnet50", "decode-1"]
            .map(|name| WORKLOADS.iter().find(|workload| workload.name == name).unwrap());
        assert_eq!(count(cyclic, Baseline::Emuv), 3);
        assert_eq!(count(cyclic, Baseline::Static), 2);
        assert_eq!([cyclic, resnet, decode].map(|workload| count(workload, Baseline::Offload)), [0, 1, 2]);
    }

    #[test]
    fn an_oversubscription_is_a_number_of_sense() {
        for text in ["0", "-1", "x", "", "nan", "1e9"] {
            assert!(text.parse::<Ratio>().is_err(), "{text}");
        }
        assert_eq!("1.5".parse(), Ok(Ratio(1.5)));
        assert_eq!(Ratio(1.5).budget(3000), 2000);
    }
}
