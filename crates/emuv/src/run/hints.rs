//! How frameworks are asked to take GPU memory so that emuV sees each tensor: its exact extent and lifetime,
//! instead of segments that a caching allocator cuts up and keeps. Only where the user has set nothing.

use std::ffi::OsString;

use emuv_state::env;

/// What one framework is asked for.
struct Hint {
    /// Its name, and the variable that says it.
    framework: &'static str,
    variable: &'static str,
    value: &'static str,
    /// Where the user sets such things; any of these set means that they have chosen.
    chosen_by: &'static [&'static str],
}

const HINTS: [Hint; 3] = [
    Hint {
        framework: "PyTorch",
        variable: "PYTORCH_ALLOC_CONF",
        value: "backend:cudaMallocAsync",
        chosen_by: &[
            "PYTORCH_ALLOC_CONF",
            "PYTORCH_CUDA_ALLOC_CONF",
            "PYTORCH_HIP_ALLOC_CONF",
            "PYTORCH_NO_CUDA_MEMORY_CACHING",
        ],
    },
    Hint {
        framework: "JAX",
        variable: "XLA_PYTHON_CLIENT_ALLOCATOR",
        value: "cuda_async",
        chosen_by: &[
            "XLA_PYTHON_CLIENT_ALLOCATOR",
            "XLA_PYTHON_CLIENT_PREALLOCATE",
            "XLA_PYTHON_CLIENT_MEM_FRACTION",
            "XLA_CLIENT_MEM_FRACTION",
        ],
    },
    Hint {
        framework: "TensorFlow",
        variable: "TF_GPU_ALLOCATOR",
        value: "cuda_malloc_async",
        chosen_by: &["TF_GPU_ALLOCATOR", "TF_FORCE_GPU_ALLOW_GROWTH"],
    },
];

/// The variables to set, and last `EMUV_HINTS`, from which the shim says once what was chosen, in a process
/// that really uses the framework: `framework=VARIABLE=value`, separated by `;`.
pub fn changes(get: impl Fn(&str) -> Option<OsString>) -> Vec<(&'static str, Option<OsString>)> {
    let free = |hint: &&Hint| hint.chosen_by.iter().all(|variable| get(variable).is_none());
    let chosen: Vec<&Hint> = HINTS.iter().filter(free).collect();
    let mut changes: Vec<_> = chosen.iter().map(|hint| (hint.variable, Some(hint.value.into()))).collect();
    let said: Vec<_> =
        chosen.iter().map(|hint| format!("{}={}={}", hint.framework, hint.variable, hint.value)).collect();
    changes.push((env::HINTS, (!said.is_empty()).then(|| said.join(";").into())));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(set: &[&str]) -> Vec<&'static str> {
        let get = |name: &str| set.contains(&name).then(|| "x".into());
        changes(get).into_iter().filter(|(_, value)| value.is_some()).map(|(name, _)| name).collect()
    }

    #[test]
    fn without_a_choice_of_the_users_each_framework_is_asked() {
        assert_eq!(
            chosen(&[]),
            ["PYTORCH_ALLOC_CONF", "XLA_PYTHON_CLIENT_ALLOCATOR", "TF_GPU_ALLOCATOR", "EMUV_HINTS"]
        );
    }

    #[test]
    fn the_users_own_choice_stays_under_whichever_name() {
        assert!(!chosen(&["PYTORCH_CUDA_ALLOC_CONF"]).contains(&"PYTORCH_ALLOC_CONF"));
        assert!(!chosen(&["XLA_PYTHON_CLIENT_PREALLOCATE"]).contains(&"XLA_PYTHON_CLIENT_ALLOCATOR"));
        assert!(chosen(&["PYTORCH_CUDA_ALLOC_CONF", "XLA_PYTHON_CLIENT_ALLOCATOR", "TF_GPU_ALLOCATOR"]).is_empty());
    }
}
