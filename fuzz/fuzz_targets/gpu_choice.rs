//! `--gpu`: a GPU that is there, or one line that says what is.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, unused_imports)]
#[path = "../../crates/emuv/src/run/gpu.rs"]
mod gpu;
#[allow(dead_code, unused_imports)]
#[path = "../../crates/emuv/src/gpus.rs"]
mod gpus;
#[allow(dead_code, unused_imports)]
#[path = "../../crates/emuv/src/libs.rs"]
mod libs;

fuzz_target!(|wanted: &str| {
    let fact = |index: u32, uuid: Option<&str>| gpus::GpuFacts {
        index,
        name: None,
        uuid: uuid.map(str::to_owned),
        vram_total: None,
        vram_free: None,
        link: gpus::Link::default(),
    };
    let there = [fact(0, Some("GPU-aa11")), fact(1, Some("GPU-ab22")), fact(2, None)];
    match gpu::choose(wanted, &there) {
        Ok(uuid) => assert!(there.iter().any(|gpu| gpu.uuid.as_ref() == Some(&uuid))),
        Err(error) => assert!(emuv_fuzz::is_one_line(&error, &[wanted]), "{error:?}"),
    }
});
