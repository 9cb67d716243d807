//! The configuration file, beside variables, becomes settings within what the host has, or one line that names the file
//! or the variable.
#![no_main]

use std::path::Path;

use emuv_policy::Bytes;
use emuv_state::{
    HostMemory, Limits,
    config::{ConfigFile, Flags, Settings},
    env,
};
use libfuzzer_sys::fuzz_target;

const HOST: HostMemory = HostMemory { total: Bytes(64 << 30), available: Bytes(48 << 30) };
const PATH: &str = "/etc/emuv/emuv.toml";

// The file, and the value of EMUV_RAM.
fuzz_target!(|input: (&str, Option<&str>)| {
    let (text, ram) = input;
    let file = match ConfigFile::parse(Path::new(PATH), text) {
        Ok(file) => file,
        Err(error) => {
            assert!(error.starts_with(PATH) && emuv_fuzz::is_one_line(&error, &[text]), "{error:?}");
            return;
        }
    };
    let get = |name: &str| ram.filter(|_| name == env::RAM).map(str::to_owned);
    let resolved = Settings::resolve(Flags::default(), get, &file).and_then(|settings| {
        Limits::resolve(settings.vram.as_ref(), settings.ram.as_ref(), settings.ram_floor.as_ref(), &HOST)
    });
    match resolved {
        Ok(limits) => {
            assert!(limits.ram == Bytes::ZERO || limits.ram.saturating_add(limits.ram_floor) <= HOST.total);
        }
        Err(error) => {
            let named = error.starts_with(PATH) || error.starts_with(env::RAM);
            assert!(named && emuv_fuzz::is_one_line(&error, &[text, ram.unwrap_or_default()]), "{error:?}");
        }
    }
});
