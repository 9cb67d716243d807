// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only

//! GPU models by name, with the VRAM that they are sold with.
//!
//! For labels and for catching mistakes ("a 4070 has no 24 GB"), never for what a real card has: that is the driver's word.
//! Sources: NVIDIA's product pages and data sheets. Sizes are the marketed GB, taken as GiB.

/// A GPU model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// What it is called for short.
    pub label: &'static str,
    /// The product's name.
    pub name: &'static str,
    /// VRAM sizes in which it is sold, GiB, smallest first.
    pub vram_gib: &'static [u32],
}

impl Gpu {
    /// Most VRAM with which the model is sold, GiB.
    #[must_use]
    pub fn most_vram_gib(&self) -> u32 {
        self.vram_gib.iter().copied().max().unwrap_or(0)
    }
}

const fn gpu(label: &'static str, name: &'static str, vram_gib: &'static [u32]) -> Gpu {
    Gpu { label, name, vram_gib }
}

/// The models that are known: GeForce 40 and 50 series, and cards of data centres.
pub static GPUS: &[Gpu] = &[
    gpu("4060", "NVIDIA GeForce RTX 4060", &[8]),
    gpu("4060ti", "NVIDIA GeForce RTX 4060 Ti", &[8, 16]),
    gpu("4070", "NVIDIA GeForce RTX 4070", &[12]),
    gpu("4070super", "NVIDIA GeForce RTX 4070 SUPER", &[12]),
    gpu("4070ti", "NVIDIA GeForce RTX 4070 Ti", &[12]),
    gpu("4070tisuper", "NVIDIA GeForce RTX 4070 Ti SUPER", &[16]),
    gpu("4080", "NVIDIA GeForce RTX 4080", &[16]),
    gpu("4080super", "NVIDIA GeForce RTX 4080 SUPER", &[16]),
    gpu("4090", "NVIDIA GeForce RTX 4090", &[24]),
    gpu("4090d", "NVIDIA GeForce RTX 4090 D", &[24]),
    gpu("5050", "NVIDIA GeForce RTX 5050", &[8]),
    gpu("5060", "NVIDIA GeForce RTX 5060", &[8]),
    gpu("5060ti", "NVIDIA GeForce RTX 5060 Ti", &[8, 16]),
    gpu("5070", "NVIDIA GeForce RTX 5070", &[12]),
    gpu("5070ti", "NVIDIA GeForce RTX 5070 Ti", &[16]),
    gpu("5080", "NVIDIA GeForce RTX 5080", &[16]),
    gpu("5090", "NVIDIA GeForce RTX 5090", &[32]),
    gpu("5090d", "NVIDIA GeForce RTX 5090 D", &[32]),
    gpu("t4", "Tesla T4", &[16]),
    gpu("p100", "Tesla P100", &[12, 16]),
    gpu("v100", "Tesla V100", &[16, 32]),
    gpu("a2", "NVIDIA A2", &[16]),
    gpu("a10", "NVIDIA A10", &[24]),
    gpu("a16", "NVIDIA A16", &[16]),
    gpu("a30", "NVIDIA A30", &[24]),
    gpu("a40", "NVIDIA A40", &[48]),
    gpu("a100", "NVIDIA A100", &[40, 80]),
    gpu("a6000", "NVIDIA RTX A6000", &[48]),
    gpu("6000ada", "NVIDIA RTX 6000 Ada Generation", &[48]),
    gpu("pro6000", "NVIDIA RTX PRO 6000 Blackwell", &[96]),
    gpu("l4", "NVIDIA L4", &[24]),
    gpu("l40", "NVIDIA L40", &[48]),
    gpu("l40s", "NVIDIA L40S", &[48]),
    gpu("h20", "NVIDIA H20", &[96]),
    gpu("h100", "NVIDIA H100", &[80, 94]),
    gpu("h200", "NVIDIA H200", &[141]),
    gpu("b200", "NVIDIA B200", &[180]),
    gpu("b300", "NVIDIA B300", &[288]),
    // Whatever is not in the table, so that the table forbids no card.
    gpu("other", "another GPU", &[1024]),
];

/// Words before the model that may be left out.
const FIRST_WORDS: &[&str] = &["NVIDIA", "Tesla", "GeForce", "RTX"];

/// The model that `asked` means: its label, or its name from any of the words that may be left out on. `4070`, `RTX 4070`,
/// `4070ti`, `NVIDIA GeForce RTX 4070 Ti`, `a100`. Letter case, spaces, `-` and `_` do not matter.
#[must_use]
pub fn find(asked: &str) -> Option<&'static Gpu> {
    GPUS.iter().find(|gpu| {
        let mut names = core::iter::successors(Some(gpu.name), |name| without_first_word(name));
        same(gpu.label, asked) || names.any(|name| same(name, asked))
    })
}

/// `name` without its first word, if that may be left out.
fn without_first_word(name: &'static str) -> Option<&'static str> {
    let (first, rest) = name.split_once(' ')?;
    FIRST_WORDS.contains(&first).then_some(rest)
}

fn same(left: &str, right: &str) -> bool {
    letters(left).eq(letters(right))
}

fn letters(text: &str) -> impl Iterator<Item = char> + '_ {
    text.chars().filter(|letter| !matches!(letter, ' ' | '-' | '_')).map(|letter| letter.to_ascii_lowercase())
}
