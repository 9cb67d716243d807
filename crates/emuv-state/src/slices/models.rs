//! The GPUs that a slice may be labelled as: GeForce 40 and 50 series, and cards of data centres.

use emuv_policy::Bytes;

/// A product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    /// How people call it for short: what `gpu_model` may be.
    pub label: &'static str,
    /// The product's name.
    pub name: &'static str,
    /// Its VRAM in GiB, each size that it is sold with.
    pub vram_gib: &'static [u64],
}

impl Model {
    /// The most VRAM that one of them has.
    pub fn most_vram(&self) -> Bytes {
        Bytes::gib(self.vram_gib.iter().copied().max().unwrap_or(0))
    }
}

macro_rules! models {
    ($($label:literal, $name:literal, $vram:expr;)*) => {
        /// The table. Sizes are those of NVIDIA's product pages.
        pub static MODELS: &[Model] = &[$(Model { label: $label, name: $name, vram_gib: &$vram },)*];
    };
}

models! {
    "4060", "NVIDIA GeForce RTX 4060", [8];
    "4060ti", "NVIDIA GeForce RTX 4060 Ti", [8, 16];
    "4070", "NVIDIA GeForce RTX 4070", [12];
    "4070super", "NVIDIA GeForce RTX 4070 SUPER", [12];
    "4070ti", "NVIDIA GeForce RTX 4070 Ti", [12];
    "4070tisuper", "NVIDIA GeForce RTX 4070 Ti SUPER", [16];
    "4080", "NVIDIA GeForce RTX 4080", [16];
    "4080super", "NVIDIA GeForce RTX 4080 SUPER", [16];
    "4090", "NVIDIA GeForce RTX 4090", [24];
    "4090d", "NVIDIA GeForce RTX 4090 D", [24];
    "5050", "NVIDIA GeForce RTX 5050", [8];
    "5060", "NVIDIA GeForce RTX 5060", [8];
    "5060ti", "NVIDIA GeForce RTX 5060 Ti", [8, 16];
    "5070", "NVIDIA GeForce RTX 5070", [12];
    "5070ti", "NVIDIA GeForce RTX 5070 Ti", [16];
    "5080", "NVIDIA GeForce RTX 5080", [16];
    "5090", "NVIDIA GeForce RTX 5090", [32];
    "5090d", "NVIDIA GeForce RTX 5090 D", [32];
    "t4", "Tesla T4", [16];
    "p100", "Tesla P100", [12, 16];
    "v100", "Tesla V100", [16, 32];
    "a2", "NVIDIA A2", [16];
    "a10", "NVIDIA A10", [24];
    "a16", "NVIDIA A16", [16];
    "a30", "NVIDIA A30", [24];
    "a40", "NVIDIA A40", [48];
    "a100", "NVIDIA A100", [40, 80];
    "a6000", "NVIDIA RTX A6000", [48];
    "6000ada", "NVIDIA RTX 6000 Ada Generation", [48];
    "pro6000", "NVIDIA RTX PRO 6000 Blackwell", [96];
    "l4", "NVIDIA L4", [24];
    "l40", "NVIDIA L40", [48];
    "l40s", "NVIDIA L40S", [48];
    "h20", "NVIDIA H20", [96];
    "h100", "NVIDIA H100", [80, 94];
    "h200", "NVIDIA H200", [141];
    "b200", "NVIDIA B200", [180];
    "b300", "NVIDIA B300", [288];
}

/// The model that a label or a product's name means, however it is spaced and capitalised: `4090`, `RTX 4070 Ti`,
/// `NVIDIA GeForce RTX 4090`.
pub fn find(label: &str) -> Option<&'static Model> {
    let wanted = squeezed(label);
    MODELS.iter().find(|model| squeezed(model.label) == wanted || squeezed(model.name) == wanted)
}

/// Every label, for messages.
pub fn labels() -> String {
    MODELS.iter().map(|model| model.label).collect::<Vec<_>>().join(", ")
}

fn squeezed(text: &str) -> String {
    let mut text: String = text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    for maker in ["nvidia", "geforce", "tesla", "rtx"] {
        if let Some(rest) = text.strip_prefix(maker).filter(|rest| !rest.is_empty()) {
            text = rest.to_owned();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_found_by_its_label_and_by_its_name() {
        for (text, name) in [
            ("4090", "NVIDIA GeForce RTX 4090"),
            ("RTX 4070 Ti", "NVIDIA GeForce RTX 4070 Ti"),
            ("nvidia geforce rtx 4070 ti super", "NVIDIA GeForce RTX 4070 Ti SUPER"),
            ("H200", "NVIDIA H200"),
            ("NVIDIA RTX 6000 Ada Generation", "NVIDIA RTX 6000 Ada Generation"),
        ] {
            assert_eq!(find(text).map(|model| model.name), Some(name), "{text}");
        }
        for text in ["", "RTX", "3dfx", "4071", "nvidia"] {
            assert_eq!(find(text), None, "{text}");
        }
    }

    #[test]
    fn no_two_models_answer_to_the_same_text() {
        for model in MODELS {
            assert!(std::ptr::eq(find(model.label).unwrap(), model), "{}", model.label);
            assert!(std::ptr::eq(find(model.name).unwrap(), model), "{}", model.name);
            assert!(model.most_vram() > Bytes::ZERO);
        }
    }
}
