// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only

//! GPU models by name, with the VRAM that they are sold with.
//!
//! For labels and for catching mistakes ("a 4070 has no 24 GB"), never for what a real card has: that is the driver's word.
//! Sources: NVIDIA's product pages and data sheets. Sizes are the marketed GB, taken as GiB.

/// A GPU model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Name as the driver prints it.
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

const fn gpu(name: &'static str, vram_gib: &'static [u32]) -> Gpu {
    Gpu { name, vram_gib }
}

/// The models that are known, newest series first.
pub const GPUS: &[Gpu] = &[
    gpu("NVIDIA GeForce RTX 5050", &[8]),
    gpu("NVIDIA GeForce RTX 5060", &[8]),
    gpu("NVIDIA GeForce RTX 5060 Ti", &[8, 16]),
    gpu("NVIDIA GeForce RTX 5070", &[12]),
    gpu("NVIDIA GeForce RTX 5070 Ti", &[16]),
    gpu("NVIDIA GeForce RTX 5080", &[16]),
    gpu("NVIDIA GeForce RTX 5090", &[32]),
    gpu("NVIDIA GeForce RTX 5090 D", &[32]),
    gpu("NVIDIA GeForce RTX 4060", &[8]),
    gpu("NVIDIA GeForce RTX 4060 Ti", &[8, 16]),
    gpu("NVIDIA GeForce RTX 4070", &[12]),
    gpu("NVIDIA GeForce RTX 4070 SUPER", &[12]),
    gpu("NVIDIA GeForce RTX 4070 Ti", &[12]),
    gpu("NVIDIA GeForce RTX 4070 Ti SUPER", &[16]),
    gpu("NVIDIA GeForce RTX 4080", &[16]),
    gpu("NVIDIA GeForce RTX 4080 SUPER", &[16]),
    gpu("NVIDIA GeForce RTX 4090", &[24]),
    gpu("NVIDIA GeForce RTX 4090 D", &[24]),
    gpu("NVIDIA GeForce RTX 3050", &[6, 8]),
    gpu("NVIDIA GeForce RTX 3060", &[8, 12]),
    gpu("NVIDIA GeForce RTX 3060 Ti", &[8]),
    gpu("NVIDIA GeForce RTX 3070", &[8]),
    gpu("NVIDIA GeForce RTX 3070 Ti", &[8]),
    gpu("NVIDIA GeForce RTX 3080", &[10, 12]),
    gpu("NVIDIA GeForce RTX 3080 Ti", &[12]),
    gpu("NVIDIA GeForce RTX 3090", &[24]),
    gpu("NVIDIA GeForce RTX 3090 Ti", &[24]),
    gpu("NVIDIA RTX PRO 6000 Blackwell", &[96]),
    gpu("NVIDIA RTX 6000 Ada Generation", &[48]),
    gpu("NVIDIA RTX A6000", &[48]),
    gpu("NVIDIA B200", &[180, 192]),
    gpu("NVIDIA B300", &[288]),
    gpu("NVIDIA GH200", &[96, 144]),
    gpu("NVIDIA H200", &[141]),
    gpu("NVIDIA H100", &[80, 94]),
    gpu("NVIDIA A100", &[40, 80]),
    gpu("NVIDIA L40S", &[48]),
    gpu("NVIDIA L40", &[48]),
    gpu("NVIDIA L4", &[24]),
    gpu("NVIDIA A40", &[48]),
    gpu("NVIDIA A30", &[24]),
    gpu("NVIDIA A16", &[16]),
    gpu("NVIDIA A10", &[24]),
    gpu("NVIDIA A2", &[16]),
    gpu("Tesla V100", &[16, 32]),
    gpu("Tesla T4", &[16]),
];

/// Words before the model that may be left out.
const FIRST_WORDS: &[&str] = &["NVIDIA", "Tesla", "GeForce", "RTX"];

/// The model that `asked` names: `4070`, `RTX 4070`, `4070ti`, `NVIDIA GeForce RTX 4070 Ti`, `a100`. Letter case, spaces, `-` and
/// `_` do not matter.
#[must_use]
pub fn find(asked: &str) -> Option<&'static Gpu> {
    GPUS.iter().find(|gpu| {
        let mut rest = gpu.name;
        loop {
            if same(rest, asked) {
                return true;
            }
            match without_first_word(rest) {
                Some(shorter) => rest = shorter,
                None => return false,
            }
        }
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
