//! The settings of the simulated GPU, checked before anything starts. The simulator reads the same text.

use emuv_policy::Bytes;

/// What `--sim` without a value means: the simulator's defaults, said so that a program under emuV finds the
/// variable set.
const DEFAULTS: &str = "gpus=1";

const KNOWN: &str = "vram, h2d, d2h, latency_us, gpus, pin, driver, vmm, p2p, numa, poison, fail, \
                     lost_after, jitter_us, seed";

/// The text for `EMUV_SIM`.
///
/// # Errors
/// One line, without the flag's name.
pub fn checked(text: &str) -> Result<String, String> {
    let items: Vec<_> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    for item in &items {
        let Some((key, value)) = item.split_once('=') else {
            return Err(format!("'{item}' is not key=value, as in vram=8G; the keys are {KNOWN}"));
        };
        check(key.trim(), value.trim())?;
    }
    Ok(if items.is_empty() { DEFAULTS.to_owned() } else { items.join(",") })
}

fn check(key: &str, value: &str) -> Result<(), String> {
    let whole = || value.parse::<u64>().map_err(|_| format!("{key}: '{value}' is not a whole number"));
    match key {
        // One value for each GPU.
        "vram" | "vmm" if value.contains('/') => value.split('/').try_for_each(|part| check(key, part.trim()))?,
        "vram" | "pin" => {
            let bytes: Bytes = value.parse().map_err(|error| format!("{key}: {error}"))?;
            if bytes == Bytes::ZERO || bytes > emuv_state::MAX_SIZE {
                return Err(format!("{key}: {bytes} is no size for a simulated machine; write for example {key}=8G"));
            }
        }
        "h2d" | "d2h" => {
            let rate = value.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate >= 0.0);
            rate.ok_or_else(|| format!("{key}: '{value}' is not a rate in GB/s; write for example {key}=25"))?;
        }
        "gpus" => {
            whole()?;
            if !matches!(value.parse(), Ok(1..=16)) {
                return Err(format!("gpus: {value} is not between 1 and 16"));
            }
        }
        "driver" => {
            if !matches!(whole()?, 2_000..100_000) {
                return Err(format!("driver: {value} is not an interface version such as 12020 or 13000"));
            }
        }
        "latency_us" | "lost_after" | "jitter_us" | "seed" => {
            whole()?;
        }
        "vmm" | "p2p" | "numa" | "poison" => {
            if !matches!(value, "0" | "1") {
                return Err(format!("{key}: '{value}' is neither 0 nor 1"));
            }
        }
        "fail" => value.split('+').try_for_each(fault)?,
        _ => return Err(format!("there is no key '{key}'; the keys are {KNOWN}")),
    }
    Ok(())
}

fn fault(text: &str) -> Result<(), String> {
    let fields: Vec<_> = text.split(':').map(str::trim).collect();
    // N- is every call from the N-th on; without a code it fails for want of memory.
    let counts = |nth: &str| nth == "*" || nth.strip_suffix('-').unwrap_or(nth).parse::<u64>().is_ok_and(|nth| nth > 0);
    let good = match fields[..] {
        [call, nth] => !call.is_empty() && counts(nth),
        [call, nth, code] => !call.is_empty() && counts(nth) && code.parse::<u32>().is_ok_and(|code| code > 0),
        _ => false,
    };
    let form = "CALL:N or CALL:N:CODE, as in cuMemAlloc:3:2; N may be '3-' (from the third on) or '*'";
    if good { Ok(()) } else { Err(format!("fail: '{text}' is not {form}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_simulator_is_known() {
        let all = "vram=256M/1G,h2d=25,d2h=12.5,latency_us=5,gpus=2,pin=1G,driver=12020,vmm=1/0,p2p=0,numa=0,poison=1,\
                   fail=cuMemAlloc:3:2+cuMemCreate:*:2+cuMemMap:4-,lost_after=100,jitter_us=50,seed=9";
        assert_eq!(checked(all), Ok(all.to_owned()));
    }

    #[test]
    fn nothing_said_is_one_gpu() {
        assert_eq!(checked(""), Ok("gpus=1".to_owned()));
        assert_eq!(checked(" vram=1G , "), Ok("vram=1G".to_owned()));
    }

    #[test]
    fn each_mistake_names_the_key() {
        for (text, words) in [
            ("ram=1G", "'ram'"),
            ("vram", "'vram'"),
            ("vram=big", "vram: 'big'"),
            ("vram=0", "vram: 0 B"),
            ("vram=-1G", "vram: '-1G' is negative"),
            ("vram=2000T", "vram: "),
            ("gpus=0", "gpus: 0"),
            ("gpus=x", "gpus: 'x'"),
            ("h2d=-1", "h2d: '-1'"),
            ("d2h=inf", "d2h: 'inf'"),
            ("vmm=yes", "vmm: 'yes'"),
            ("vmm=1/", "vmm: ''"),
            ("vram=1G/0", "vram: 0 B"),
            ("fail=cuMemAlloc", "fail: 'cuMemAlloc'"),
            ("fail=cuMemAlloc:0-", "fail: 'cuMemAlloc:0-'"),
            ("fail=cuMemAlloc:1:0", "fail: "),
            ("fail=cuInit:1+ :1", "fail: ' :1'"),
            ("driver=120", "driver: 120"),
            ("driver=x", "driver: 'x'"),
            ("latency_us=1.5", "latency_us: '1.5'"),
        ] {
            let error = checked(text).unwrap_err();
            assert!(error.contains(words) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
