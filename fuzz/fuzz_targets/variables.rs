//! What the interposed library reads from its environment (`EMUV_*`, HAMi's name for one): limits, policy, log, switches,
//! hints.
#![no_main]

use arbitrary::Arbitrary;
use emuv_policy::Bytes;
use emuv_state::{HostMemory, Limits, LogSetting, Movement, env};
use libfuzzer_sys::fuzz_target;

const HOST: HostMemory = HostMemory { total: Bytes(64 << 30), available: Bytes(48 << 30) };

#[derive(Arbitrary, Debug)]
struct Environment<'a> {
    vram: Option<&'a str>,
    hami_vram: Option<&'a str>,
    ram: Option<&'a str>,
    floor: Option<&'a str>,
    policy: &'a str,
    log: &'a str,
}

fuzz_target!(|given: Environment<'_>| {
    let get = |name: &str| {
        let value = match name {
            env::VRAM => given.vram,
            env::HAMI_VRAM => given.hami_vram,
            env::RAM => given.ram,
            env::RAM_FLOOR => given.floor,
            _ => None,
        };
        value.map(str::to_owned)
    };
    match Limits::from_env(get, &HOST) {
        Ok(limits) => {
            assert!(limits.vram != Some(Bytes::ZERO));
            assert!(limits.ram == Bytes::ZERO || limits.ram.saturating_add(limits.ram_floor) <= HOST.total);
        }
        Err(error) => {
            let all = [given.vram, given.hami_vram, given.ram, given.floor].map(Option::unwrap_or_default);
            assert!(emuv_fuzz::is_one_line(&error, &all), "{error:?}");
        }
    }
    match given.policy.parse::<Movement>() {
        Ok(movement) => assert_eq!(movement.to_string().parse(), Ok(movement)),
        Err(error) => assert!(emuv_fuzz::is_one_line(&error, &[given.policy])),
    }
    match given.log.parse::<LogSetting>() {
        Ok(setting) => assert!(setting.file.is_none_or(|file| file.is_absolute())),
        Err(error) => assert!(emuv_fuzz::is_one_line(&error, &[given.log])),
    }
    let _ = env::is_on(given.log);
});
