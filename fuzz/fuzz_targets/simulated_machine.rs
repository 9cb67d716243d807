//! `--sim`: what `emuv run` lets through, the simulated driver understands.
#![no_main]

use emuv_simgpu::config::Config;
use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../crates/emuv/src/run/sim.rs"]
mod sim;

fuzz_target!(|text: &str| {
    let read = text.parse::<Config>();
    if let Err(error) = &read {
        assert!(emuv_fuzz::is_one_line(&error.to_string(), &[text]), "{error}");
    }
    match sim::checked(text) {
        Ok(checked) => {
            let again = checked.parse::<Config>();
            assert!(again.is_ok() && read.is_ok(), "{checked:?} is let through, and then: {again:?}, {read:?}");
        }
        Err(error) => assert!(emuv_fuzz::is_one_line(&error, &[text]), "{error}"),
    }
});
