//! What `EMUV_SIM` says: the simulated machine, and what goes wrong in it.

use std::{fmt, str::FromStr, time::Duration};

use emuv_policy::Bytes;

/// The variable that configures the simulator.
pub const VARIABLE: &str = "EMUV_SIM";

/// GPUs that a simulated machine may have.
const MAX_GPUS: usize = 16;

/// A simulated machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Memory of each GPU.
    pub vram: Bytes,
    /// Rate of transfers to the GPU in bytes per second; `None` is as fast as it goes.
    pub h2d_bytes_per_s: Option<f64>,
    /// Rate of transfers from the GPU in bytes per second.
    pub d2h_bytes_per_s: Option<f64>,
    /// Time that every copy and launch takes at least.
    pub latency: Duration,
    /// Number of GPUs.
    pub gpus: usize,
    /// Limit of pinned host memory; `None` is no limit.
    pub pin: Option<Bytes>,
    /// Interface version that the driver reports; newer functions are hidden.
    pub driver: u32,
    /// Whether the GPUs have virtual memory management.
    pub vmm: bool,
    /// Whether host memory can be mapped through it.
    pub numa: bool,
    /// Whether new `cuMemAlloc` memory is filled with a pattern.
    pub poison: bool,
    /// Calls that are made to fail.
    pub faults: Vec<Fault>,
    /// Kernel launches after which the GPU is lost.
    pub lost_after: Option<u64>,
}

/// A call that is made to fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Exported symbol (`cuMemAlloc_v2`) or base name (`cuMemAlloc`, any form of it).
    pub call: String,
    /// Which call, counted from 1; `None` is every call.
    pub nth: Option<u64>,
    /// What it returns.
    pub code: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vram: Bytes::gib(8),
            h2d_bytes_per_s: None,
            d2h_bytes_per_s: None,
            latency: Duration::ZERO,
            gpus: 1,
            pin: None,
            driver: 13_000,
            vmm: true,
            numa: true,
            poison: false,
            faults: Vec::new(),
            lost_after: None,
        }
    }
}

/// What is wrong with the text, in words for its author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VARIABLE}: {}", self.0)
    }
}

impl std::error::Error for ConfigError {}

impl FromStr for Config {
    type Err = ConfigError;

    /// Reads `key=value,key=value`. An empty text is the default machine.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (key, value) =
                item.split_once('=').ok_or_else(|| ConfigError(format!("'{item}' is not of the form key=value")))?;
            config.set(key.trim(), value.trim())?;
        }
        Ok(config)
    }
}

impl Config {
    fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        match key {
            "vram" => self.vram = size(key, value)?,
            "pin" => self.pin = Some(size(key, value)?),
            "h2d" => self.h2d_bytes_per_s = rate(key, value)?,
            "d2h" => self.d2h_bytes_per_s = rate(key, value)?,
            "latency_us" => self.latency = Duration::from_micros(number(key, value)?),
            "gpus" => self.gpus = gpus(value)?,
            "driver" => self.driver = version(value)?,
            "vmm" => self.vmm = switch(key, value)?,
            "numa" => self.numa = switch(key, value)?,
            "poison" => self.poison = switch(key, value)?,
            "fail" => self.faults = value.split('+').map(fault).collect::<Result<_, _>>()?,
            "lost_after" => self.lost_after = Some(number(key, value)?),
            _ => {
                let known = "vram, pin, h2d, d2h, latency_us, gpus, driver, vmm, numa, poison, fail, lost_after";
                return Err(ConfigError(format!("unknown key '{key}'; known are {known}")));
            }
        }
        Ok(())
    }
}

fn size(key: &str, value: &str) -> Result<Bytes, ConfigError> {
    value.parse().map_err(|error| ConfigError(format!("{key}: {error}")))
}

fn number(key: &str, value: &str) -> Result<u64, ConfigError> {
    value.parse().map_err(|_| ConfigError(format!("{key}: '{value}' is not a whole number")))
}

fn switch(key: &str, value: &str) -> Result<bool, ConfigError> {
    match value {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(ConfigError(format!("{key}: '{value}' is neither 0 nor 1"))),
    }
}

fn rate(key: &str, value: &str) -> Result<Option<f64>, ConfigError> {
    match value.parse::<f64>() {
        Ok(gb_per_s) if gb_per_s.is_finite() && gb_per_s >= 0.0 => Ok((gb_per_s > 0.0).then_some(gb_per_s * 1e9)),
        _ => Err(ConfigError(format!("{key}: '{value}' is not a rate in GB/s"))),
    }
}

fn gpus(value: &str) -> Result<usize, ConfigError> {
    match value.parse() {
        Ok(count) if (1..=MAX_GPUS).contains(&count) => Ok(count),
        _ => Err(ConfigError(format!("gpus: '{value}' is not a number from 1 to {MAX_GPUS}"))),
    }
}

fn version(value: &str) -> Result<u32, ConfigError> {
    match value.parse() {
        Ok(version) if (2_000..100_000).contains(&version) => Ok(version),
        _ => Err(ConfigError(format!("driver: '{value}' is not an interface version such as 12020 or 13000"))),
    }
}

fn fault(text: &str) -> Result<Fault, ConfigError> {
    let wrong = |what: &str| ConfigError(format!("fail: '{text}': {what}; write CALL:N:CODE, N a number or *"));
    let mut parts = text.split(':').map(str::trim);
    let (Some(call), Some(nth), Some(code), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(wrong("not three parts"));
    };
    if call.is_empty() {
        return Err(wrong("no call"));
    }
    let nth = match nth {
        "*" => None,
        digits => match digits.parse() {
            Ok(nth) if nth > 0 => Some(nth),
            _ => return Err(wrong("N counts from 1")),
        },
    };
    match code.parse() {
        Ok(code) if code > 0 => Ok(Fault { call: call.to_owned(), nth, code }),
        _ => Err(wrong("CODE is a result code above 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<Config>().unwrap_err().to_string()
    }

    #[test]
    fn no_text_is_the_default_machine() {
        assert_eq!("".parse(), Ok(Config::default()));
        assert_eq!(Config::default().vram, Bytes::gib(8));
        assert_eq!(Config::default().gpus, 1);
    }

    #[test]
    fn every_key_is_read() {
        let text = "vram=256M, h2d=12.5,d2h=0,latency_us=7,gpus=2,pin=1G,driver=12020,vmm=0,numa=0,poison=1,\
                    fail=cuMemCreate:3:2+cuInit:*:999,lost_after=5";
        let config: Config = text.parse().unwrap();
        assert_eq!(config.vram, Bytes::mib(256));
        assert_eq!(config.h2d_bytes_per_s, Some(12.5e9));
        assert_eq!(config.d2h_bytes_per_s, None);
        assert_eq!(config.latency, Duration::from_micros(7));
        assert_eq!((config.gpus, config.pin, config.driver), (2, Some(Bytes::gib(1)), 12_020));
        assert_eq!((config.vmm, config.numa, config.poison), (false, false, true));
        let fault = |call: &str, nth, code| Fault { call: call.to_owned(), nth, code };
        assert_eq!(config.faults, [fault("cuMemCreate", Some(3), 2), fault("cuInit", None, 999)]);
        assert_eq!(config.lost_after, Some(5));
    }

    #[test]
    fn an_error_names_the_key_and_what_would_be_right() {
        assert!(error("vrma=1G").contains("unknown key 'vrma'; known are vram"));
        assert!(error("vram").contains("'vram' is not of the form key=value"));
        assert!(error("vram=lots").contains("vram: 'lots' is not a size"));
        assert!(error("gpus=0").contains("1 to 16"));
        assert!(error("h2d=-1").contains("GB/s"));
        assert!(error("poison=yes").contains("neither 0 nor 1"));
        assert!(error("driver=13").contains("12020"));
    }

    #[test]
    fn a_fault_needs_a_call_a_number_and_a_code() {
        for text in ["fail=cuInit", "fail=cuInit:1", "fail=:1:2", "fail=cuInit:0:2", "fail=cuInit:1:0", "fail=a:1:2:3"]
        {
            assert!(error(text).contains("CALL:N:CODE"), "{text}");
        }
    }
}
