//! What `EMUV_SIM` says: the simulated machine, and what goes wrong in it.
//!
//! `fail=CALL:N[:CODE]` makes the N-th call of a function return CODE (2, out of memory, where none is given);
//! `N-` is every call from the N-th on, `*` every call; several are separated by `+`. `jitter_us=N` holds every
//! stream operation and every virtual memory call up for a random time of up to N µs, to shake out races;
//! `seed=` picks which times.

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
    pub vram: PerGpu<Bytes>,
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
    /// Whether each GPU has virtual memory management.
    pub vmm: PerGpu<bool>,
    /// Whether the GPUs can reach each other's memory.
    pub p2p: bool,
    /// Whether host memory can be mapped through it.
    pub numa: bool,
    /// Whether new `cuMemAlloc` memory is filled with a pattern.
    pub poison: bool,
    /// Calls that are made to fail.
    pub faults: Vec<Fault>,
    /// Kernel launches after which the GPU is lost.
    pub lost_after: Option<u64>,
    /// The longest time in µs that an operation or a virtual memory call is held up at random; 0 is never.
    pub jitter_us: u64,
    /// Where the random times begin.
    pub seed: u64,
}

/// A value for each GPU, written `A/B/...`; where there are fewer values than GPUs, the last one holds for the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerGpu<T>(Vec<T>);

impl<T: Copy + Default> PerGpu<T> {
    /// The same for all.
    pub fn all(value: T) -> Self {
        Self(vec![value])
    }

    /// The value of the GPU at that position in the machine.
    pub fn of(&self, index: usize) -> T {
        self.0.get(index).or(self.0.last()).copied().unwrap_or_default()
    }

    fn read(value: &str, one: impl Fn(&str) -> Result<T, ConfigError>) -> Result<Self, ConfigError> {
        value.split('/').map(|part| one(part.trim())).collect::<Result<_, _>>().map(Self)
    }
}

/// A call that is made to fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Exported symbol (`cuMemAlloc_v2`) or base name (`cuMemAlloc`, any form of it).
    pub call: String,
    /// Which calls.
    pub calls: Calls,
    /// What it returns.
    pub code: u32,
}

/// Which calls of a function a fault means, counted from 1 in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// Every one.
    All,
    /// This one alone.
    Only(u64),
    /// This one and all after it.
    From(u64),
}

impl Calls {
    /// Whether the call of that number is meant.
    pub fn includes(self, number: u64) -> bool {
        match self {
            Self::All => true,
            Self::Only(nth) => number == nth,
            Self::From(first) => number >= first,
        }
    }
}

impl FromStr for Calls {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |digits: &str| digits.parse().ok().filter(|nth| *nth > 0).ok_or(());
        match text.strip_suffix('-') {
            _ if text == "*" => Ok(Self::All),
            Some(digits) => number(digits).map(Self::From),
            None => number(text).map(Self::Only),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vram: PerGpu::all(Bytes::gib(8)),
            h2d_bytes_per_s: None,
            d2h_bytes_per_s: None,
            latency: Duration::ZERO,
            gpus: 1,
            pin: None,
            driver: 13_000,
            vmm: PerGpu::all(true),
            p2p: true,
            numa: true,
            poison: false,
            faults: Vec::new(),
            lost_after: None,
            jitter_us: 0,
            seed: 0,
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
            "vram" => self.vram = PerGpu::read(value, |part| size(key, part))?,
            "pin" => self.pin = Some(size(key, value)?),
            "h2d" => self.h2d_bytes_per_s = rate(key, value)?,
            "d2h" => self.d2h_bytes_per_s = rate(key, value)?,
            "latency_us" => self.latency = Duration::from_micros(number(key, value)?),
            "gpus" => self.gpus = gpus(value)?,
            "driver" => self.driver = version(value)?,
            "vmm" => self.vmm = PerGpu::read(value, |part| switch(key, part))?,
            "p2p" => self.p2p = switch(key, value)?,
            "numa" => self.numa = switch(key, value)?,
            "poison" => self.poison = switch(key, value)?,
            "fail" => self.faults = value.split('+').map(fault).collect::<Result<_, _>>()?,
            "lost_after" => self.lost_after = Some(number(key, value)?),
            "jitter_us" => self.jitter_us = number(key, value)?,
            "seed" => self.seed = number(key, value)?,
            _ => {
                let known = "vram, pin, h2d, d2h, latency_us, gpus, driver, vmm, p2p, numa, poison, fail, \
                             lost_after, jitter_us, seed";
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

/// What a fault without a code returns: `CUDA_ERROR_OUT_OF_MEMORY`.
const DEFAULT_CODE: u32 = 2;

fn fault(text: &str) -> Result<Fault, ConfigError> {
    let wrong = |what: &str| {
        let form = "write CALL:N or CALL:N:CODE, N a number, a number with '-' after it, or *";
        ConfigError(format!("fail: '{text}': {what}; {form}"))
    };
    let parts: Vec<&str> = text.split(':').map(str::trim).collect();
    let (call, nth, code) = match parts[..] {
        [call, nth] => (call, nth, None),
        [call, nth, code] => (call, nth, Some(code)),
        _ => return Err(wrong("neither two parts nor three")),
    };
    if call.is_empty() {
        return Err(wrong("no call"));
    }
    let calls = nth.parse().map_err(|()| wrong("N counts from 1"))?;
    match code.map_or(Ok(DEFAULT_CODE), str::parse) {
        Ok(code) if code > 0 => Ok(Fault { call: call.to_owned(), calls, code }),
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
        assert_eq!(Config::default().vram.of(0), Bytes::gib(8));
        assert_eq!(Config::default().gpus, 1);
    }

    #[test]
    fn every_key_is_read() {
        let text = "vram=256M, h2d=12.5,d2h=0,latency_us=7,gpus=2,pin=1G,driver=12020,vmm=0,p2p=0,numa=0,poison=1,\
                    fail=cuMemCreate:3:2+cuInit:*:999+cuMemMap:4-,lost_after=5,jitter_us=50,seed=9";
        let config: Config = text.parse().unwrap();
        assert_eq!(config.vram, PerGpu::all(Bytes::mib(256)));
        assert_eq!(config.h2d_bytes_per_s, Some(12.5e9));
        assert_eq!(config.d2h_bytes_per_s, None);
        assert_eq!(config.latency, Duration::from_micros(7));
        assert_eq!((config.gpus, config.pin, config.driver), (2, Some(Bytes::gib(1)), 12_020));
        assert_eq!((config.vmm.of(1), config.p2p, config.numa, config.poison), (false, false, false, true));
        let fault = |call: &str, calls, code| Fault { call: call.to_owned(), calls, code };
        let wanted = [("cuMemCreate", Calls::Only(3), 2), ("cuInit", Calls::All, 999), ("cuMemMap", Calls::From(4), 2)];
        assert_eq!(config.faults, wanted.map(|(call, calls, code)| fault(call, calls, code)));
        assert_eq!((config.lost_after, config.jitter_us, config.seed), (Some(5), 50, 9));
    }

    #[test]
    fn what_differs_between_gpus_is_written_one_after_the_other() {
        let config: Config = "gpus=3,vram=1G/512M,vmm=1/0".parse().unwrap();
        assert_eq!([0, 1, 2].map(|gpu| config.vram.of(gpu)), [Bytes::gib(1), Bytes::mib(512), Bytes::mib(512)]);
        assert_eq!([0, 1, 2].map(|gpu| config.vmm.of(gpu)), [true, false, false]);
        assert!(error("vram=1G/").contains("vram: "));
        assert!(error("vmm=1/2").contains("vmm: '2'"));
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
    fn a_fault_needs_a_call_and_a_number_and_its_code_is_no_success() {
        for text in ["cuInit", ":1:2", "cuInit:0:2", "cuInit:0-", "cuInit:-", "cuInit:1:0", "cuInit:1:", "a:1:2:3"] {
            assert!(error(&format!("fail={text}")).contains("CALL:N:CODE"), "{text}");
        }
    }
}
