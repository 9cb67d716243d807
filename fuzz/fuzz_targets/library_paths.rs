//! `LD_LIBRARY_PATH` and what `ldconfig -p` prints: the driver is looked for at absolute paths only.
#![no_main]

use emuv_cuda::{Locator, Which};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str)| {
    let (library_path, cache) = input;
    let locator = Locator {
        library_path: Some(library_path.to_owned()),
        loader_cache: Some(cache.to_owned()),
        own_files: Vec::new(),
    };
    for which in [Which::Cuda, Which::Nvml] {
        for path in locator.candidates(which) {
            assert!(path.is_absolute(), "{path:?}");
        }
    }
});
