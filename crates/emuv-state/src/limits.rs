//! The memory limits of a run: what was asked for, checked against what the host has.

use emuv_policy::Bytes;

use crate::{HostMemory, env};

/// No size beyond this is taken seriously.
pub const MAX_SIZE: Bytes = Bytes(1 << 50);

/// The least that is left to the host when nothing else is said.
const MIN_FLOOR: Bytes = Bytes::gib(2);

/// How much memory a process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most VRAM per GPU; `None`: all that there is.
    pub vram: Option<Bytes>,
    /// RAM budget for what does not fit in VRAM; zero: nothing spills.
    pub ram: Bytes,
    /// RAM that is left to the host, always.
    pub ram_floor: Bytes,
}

/// A value and where it was given: the flag, the variable, or the file and key. Errors start with that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// As written.
    pub value: String,
    /// E.g. `--ram`, `EMUV_RAM` or `/etc/emuv/emuv.toml: ram`.
    pub source: String,
}

impl Setting {
    /// A value with its source.
    pub fn new(value: impl Into<String>, source: impl Into<String>) -> Self {
        Self { value: value.into(), source: source.into() }
    }

    /// The value as a size.
    ///
    /// # Errors
    /// One line that names the source and says how to write a size.
    pub fn bytes(&self) -> Result<Bytes, String> {
        let bytes: Bytes = self.value.parse().map_err(|error| format!("{}: {error}", self.source))?;
        if bytes > MAX_SIZE {
            return Err(format!("{}: '{}' is more than any machine has", self.source, self.value.trim()));
        }
        Ok(bytes)
    }
}

impl Limits {
    /// The limits that the environment asks for, `get` being a look-up of a variable.
    ///
    /// # Errors
    /// One line that names the variable, what is wrong with it and what would be right.
    pub fn from_env(get: impl Fn(&str) -> Option<String>, host: &HostMemory) -> Result<Self, String> {
        let setting = |name: &str| get(name).filter(|value| !value.is_empty()).map(|value| Setting::new(value, name));
        let vram = setting(env::VRAM).or_else(|| setting(env::HAMI_VRAM));
        Self::resolve(vram.as_ref(), setting(env::RAM).as_ref(), setting(env::RAM_FLOOR).as_ref(), host)
    }

    /// The limits from settings that may each be absent. The default floor is 2 GiB or a tenth of the
    /// host's memory, whichever is more; the default RAM budget is half of what is available, and never
    /// cuts into the floor.
    ///
    /// # Errors
    /// One line that starts with the setting's source.
    pub fn resolve(
        vram: Option<&Setting>,
        ram: Option<&Setting>,
        ram_floor: Option<&Setting>,
        host: &HostMemory,
    ) -> Result<Self, String> {
        let vram_bytes = vram.map(Setting::bytes).transpose()?;
        if let (Some(setting), Some(Bytes::ZERO)) = (vram, vram_bytes) {
            return Err(format!("{}: 0 leaves the program no VRAM at all; leave it out for all of it", setting.source));
        }
        let floor = ram_floor.map(Setting::bytes).transpose()?.unwrap_or_else(|| Self::default_floor(host));
        let Some(setting) = ram else {
            return Ok(Self { vram: vram_bytes, ram: Self::default_ram(host, floor), ram_floor: floor });
        };
        let ram = setting.bytes()?;
        if ram > Bytes::ZERO && ram.saturating_add(floor) > host.total {
            let most = host.total.saturating_sub(floor);
            return Err(format!(
                "{}: {ram} is more than this host can give: it has {} and keeps {floor} for itself; \
                 ask for at most {most}, or lower {}",
                setting.source,
                host.total,
                env::RAM_FLOOR,
            ));
        }
        Ok(Self { vram: vram_bytes, ram, ram_floor: floor })
    }

    /// What is left to the host when nothing else is said.
    pub fn default_floor(host: &HostMemory) -> Bytes {
        MIN_FLOOR.max(Bytes(host.total.0 / 10))
    }

    /// The RAM budget when nothing is said.
    pub fn default_ram(host: &HostMemory, floor: Bytes) -> Bytes {
        Bytes(host.available.0 / 2).min(host.available.saturating_sub(floor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostMemory = HostMemory { total: Bytes::gib(32), available: Bytes::gib(20) };

    fn limits(vars: &[(&str, &str)]) -> Result<Limits, String> {
        Limits::from_env(|name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()), &HOST)
    }

    #[test]
    fn with_nothing_said_half_of_what_is_available_may_spill_and_a_tenth_stays_free() {
        let floor = Bytes(Bytes::gib(32).0 / 10);
        assert_eq!(limits(&[]), Ok(Limits { vram: None, ram: Bytes::gib(10), ram_floor: floor }));
    }

    #[test]
    fn on_a_small_or_busy_host_the_default_leaves_the_floor() {
        let busy = HostMemory { total: Bytes::gib(8), available: Bytes::gib(3) };
        let found = Limits::from_env(|_| None, &busy).unwrap();
        assert_eq!((found.ram, found.ram_floor), (Bytes::gib(1), Bytes::gib(2)));
        let tiny = HostMemory { total: Bytes::gib(1), available: Bytes::gib(1) };
        assert_eq!(Limits::from_env(|_| None, &tiny).unwrap().ram, Bytes::ZERO);
    }

    #[test]
    fn what_is_said_counts() {
        let found = limits(&[("EMUV_VRAM", "10.5G"), ("EMUV_RAM", "4G"), ("EMUV_RAM_FLOOR", "1G")]).unwrap();
        assert_eq!(found, Limits { vram: Some(Bytes(21 << 29)), ram: Bytes::gib(4), ram_floor: Bytes::gib(1) });
        assert_eq!(limits(&[("EMUV_RAM", "0")]).unwrap().ram, Bytes::ZERO);
    }

    #[test]
    fn hamis_variable_counts_where_ours_is_unset() {
        assert_eq!(limits(&[("CUDA_DEVICE_MEMORY_LIMIT", "3000m")]).unwrap().vram, Some(Bytes::mib(3000)));
        let both = [("CUDA_DEVICE_MEMORY_LIMIT", "3000m"), ("EMUV_VRAM", "1G")];
        assert_eq!(limits(&both).unwrap().vram, Some(Bytes::gib(1)));
    }

    #[test]
    fn a_budget_beyond_the_host_is_refused_with_both_numbers() {
        let error = limits(&[("EMUV_RAM", "31G"), ("EMUV_RAM_FLOOR", "2G")]).unwrap_err();
        for part in ["EMUV_RAM: ", "31 GiB", "32 GiB", "2 GiB", "at most 30 GiB"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(limits(&[("EMUV_RAM", "30G"), ("EMUV_RAM_FLOOR", "2G")]).is_ok());
    }

    #[test]
    fn every_error_names_the_variable_and_is_one_line() {
        for (name, value) in [
            ("EMUV_VRAM", "lots"),
            ("EMUV_VRAM", "0"),
            ("EMUV_RAM", "-4G"),
            ("EMUV_RAM", "2000T"),
            ("EMUV_RAM_FLOOR", "99999999999999999999"),
            ("CUDA_DEVICE_MEMORY_LIMIT", "3000q"),
        ] {
            let error = limits(&[(name, value)]).unwrap_err();
            assert!(error.starts_with(&format!("{name}: ")) && !error.contains('\n'), "{error}");
        }
    }
}
