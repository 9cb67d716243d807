//! Says once, in a process that really uses the framework, what `emuv run` chose for it.

use emuv_state::env;

use crate::{log, system};

/// What a framework's process has loaded.
const MARKS: [(&str, &str); 3] =
    [("PyTorch", "libtorch_cuda"), ("JAX", "xla_cuda_plugin"), ("TensorFlow", "libtensorflow")];

/// Looks at what is loaded and says what was chosen for it.
pub(crate) fn say() {
    let Some(hints) = system::variable(env::HINTS) else { return };
    let Ok(loaded) = std::fs::read_to_string("/proc/self/maps") else { return };
    for (framework, setting) in chosen(&hints, &loaded) {
        log::notice(format_args!("{framework} runs with {setting} (--no-framework-hints leaves it as it is)"));
    }
}

/// The framework and the setting of each hint whose framework is loaded.
pub(crate) fn chosen<'h>(hints: &'h str, loaded: &str) -> Vec<(&'h str, &'h str)> {
    let hints = hints.split(';').filter_map(|hint| hint.split_once('='));
    let is_loaded = |framework: &str| MARKS.iter().any(|(name, mark)| *name == framework && loaded.contains(mark));
    hints.filter(|(framework, _)| is_loaded(framework)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_loaded_is_spoken_of() {
        let hints = "PyTorch=PYTORCH_ALLOC_CONF=backend:cudaMallocAsync;JAX=A=b";
        let maps = "7f00-7f01 r-xp 0 0 1 /site-packages/torch/lib/libtorch_cuda.so\n";
        assert_eq!(chosen(hints, maps), [("PyTorch", "PYTORCH_ALLOC_CONF=backend:cudaMallocAsync")]);
        assert!(chosen(hints, "7f00-7f01 r-xp 0 0 1 /usr/bin/true\n").is_empty());
    }
}
