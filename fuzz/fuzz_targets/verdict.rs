//! What `emuv verify` finds in the run's directory.
#![no_main]

use emuv_state::Verdict;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(verdict) = Verdict::read(text) {
        assert_eq!(Verdict::read(&verdict.text()), Some(verdict));
    }
});
