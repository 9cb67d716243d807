//! The GPUs that a slice may be labelled as: the table that the kernel module has as well.

use emuv_policy::Bytes;
pub use emuv_uapi::gpus::{GPUS as MODELS, Gpu as Model};

/// The label of cards that the table does not have.
pub const OTHER: &str = "other";

/// The most VRAM that one of a model has.
pub fn most_vram(model: &Model) -> Bytes {
    Bytes::gib(u64::from(model.most_vram_gib()))
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
            assert!(most_vram(model) > Bytes::ZERO);
        }
    }
}
