//! What other processes look like in `/proc`, and names of run directories.
#![no_main]

use emuv_state::parsers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some((state, _)) = parsers::process_stat(text) {
        assert!(!state.is_whitespace());
    }
    if let Some(pid) = parsers::run_dir_pid(text) {
        let (number, _) = text.split_once('-').expect("a number, a dash and a number");
        assert_eq!(number.trim_start_matches('+').parse(), Ok(pid));
    }
});
