//! `CUDA_VISIBLE_DEVICES`, and bus addresses, as the simulated driver reads them.
#![no_main]

use emuv_simgpu::{entry::device::parse_bus, visible::visible};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|list: &str| {
    let uuids: Vec<String> = ["GPU-aa11", "GPU-ab22", "GPU-cc33"].map(str::to_owned).to_vec();
    let seen = visible(Some(list), &uuids);
    let mut once = seen.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), seen.len(), "each at most once");
    assert!(seen.iter().all(|gpu| *gpu < uuids.len()));
    let _ = parse_bus(list);
});
