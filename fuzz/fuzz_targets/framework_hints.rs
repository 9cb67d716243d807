//! `EMUV_HINTS`, and `/proc/self/maps`, in a program under emuV.
#![no_main]

use libfuzzer_sys::fuzz_target;

mod log {
    pub fn notice(_: std::fmt::Arguments<'_>) {}
}
#[allow(dead_code)]
#[path = "../../crates/emuv-shim/src/hints.rs"]
mod hints;

fuzz_target!(|input: (&str, &str)| {
    let (said, loaded) = input;
    for (framework, setting) in hints::chosen(said, loaded) {
        assert!(said.contains(&format!("{framework}={setting}")));
    }
});
