//! A process's ledger as another process, or a damaged disk, may leave it: refused by name, or a record that can be
//! summed up and shown.
#![no_main]

use std::{path::Path, sync::LazyLock};

use emuv_policy::Bytes;
use emuv_state::{Limits, parsers, uuid_text};
use libfuzzer_sys::fuzz_target;

mod log {
    pub fn error(_: std::fmt::Arguments<'_>) {}
}
#[allow(dead_code)]
#[path = "../../crates/emuv-shim/src/view.rs"]
mod view;

static GOOD: LazyLock<Vec<u8>> = LazyLock::new(parsers::new_ledger);

// Words to put into a good ledger, by place; or, without any, raw bytes.
fuzz_target!(|input: (Vec<(u16, u64)>, &[u8])| {
    let (words, raw) = input;
    let mut bytes = if words.is_empty() { raw.to_vec() } else { GOOD.clone() };
    for (place, word) in words {
        let at = usize::from(place) % (bytes.len() / 8) * 8;
        bytes[at..at + 8].copy_from_slice(&word.to_ne_bytes());
    }
    match parsers::ledger(Path::new("/run/7.ledger"), &bytes) {
        Ok(mut record) => {
            record.alive = true;
            let uuids = record.devices.iter().filter_map(|device| uuid_text(&device.uuid));
            let uuid = uuids.last().unwrap_or_default();
            let card = view::Card { total: 80 << 30, free: 70 << 30 };
            let limits = Limits { vram: None, ram: Bytes(64 << 30), ram_floor: Bytes(2 << 30) };
            let seen = view::combine(card, &limits, &uuid, &[record.clone(), record]);
            assert!(seen.free <= seen.total, "{seen:?}");
        }
        Err(error) => assert!(error.to_string().starts_with("/run/7.ledger: ")),
    }
});
