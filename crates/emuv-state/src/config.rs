//! The settings of a run: flags, then `EMUV_*` variables, then the configuration file, then the defaults.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, Visitor},
};

use crate::{LogSetting, Setting, env};

/// Where the configuration file is unless `EMUV_CONFIG` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/emuv/emuv.toml";

/// The configuration file. A key that is missing is not set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigFile {
    path: PathBuf,
    keys: Keys,
}

/// The keys, as in the file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Keys {
    #[serde(deserialize_with = "size")]
    vram: Option<String>,
    #[serde(deserialize_with = "size")]
    ram: Option<String>,
    #[serde(deserialize_with = "size")]
    ram_floor: Option<String>,
    quiet: Option<bool>,
    log: Option<String>,
}

impl ConfigFile {
    /// Reads the file that `EMUV_CONFIG` names, or else [`DEFAULT_PATH`] if it exists. `get` looks a variable up.
    ///
    /// # Errors
    /// One line that names the file, and the line and key in it.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let given = get(env::CONFIG).filter(|value| !value.is_empty());
        let path = PathBuf::from(given.as_deref().unwrap_or(DEFAULT_PATH));
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&path, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound && given.is_none() => Ok(Self::default()),
            Err(error) if given.is_some() => Err(format!("{}: {}: {error}", env::CONFIG, path.display())),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    /// Reads the text of a file; `path` is for error messages.
    ///
    /// # Errors
    /// As [`ConfigFile::read`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let keys = toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .and_then(|span| text.get(..span.start))
                .map_or(1, |before| 1 + before.bytes().filter(|byte| *byte == b'\n').count());
            format!("{}: line {line}: {}", path.display(), error.message().replace('\n', ", "))
        })?;
        Ok(Self { path: path.to_owned(), keys })
    }

    fn setting(&self, key: &str, value: Option<&String>) -> Option<Setting> {
        value.map(|value| Setting::new(value, format!("{}: {key}", self.path.display())))
    }
}

/// A size: text such as "4G", or a number of bytes.
fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    struct Size;

    impl Visitor<'_> for Size {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size such as \"4G\" or a number of bytes")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Some(text.to_owned()))
        }

        fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<Self::Value, E> {
            let bytes = u64::try_from(bytes).map_err(|_| E::custom(format!("'{bytes}' is negative")))?;
            Ok(Some(bytes.to_string()))
        }
    }

    from.deserialize_any(Size).map_err(D::Error::custom)
}

/// What the flags of a command say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)] // Named as the flags.
pub struct Flags {
    pub vram: Option<String>,
    pub ram: Option<String>,
    pub gpu: Option<String>,
    pub sim: Option<String>,
    pub report: Option<String>,
    pub quiet: bool,
}

/// What counts, each with its source. `None`: the default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)] // Named as the flags and variables.
pub struct Settings {
    pub vram: Option<Setting>,
    pub ram: Option<Setting>,
    pub ram_floor: Option<Setting>,
    pub gpu: Option<Setting>,
    pub sim: Option<Setting>,
    pub report: Option<Setting>,
    pub log: Option<Setting>,
    pub quiet: bool,
}

impl Settings {
    /// Puts the sources in order. `get` looks a variable up; one that is set but empty counts as unset.
    ///
    /// # Errors
    /// One line that starts with the source: a value whose meaning needs no knowledge of the machine and
    /// has none. Sizes are checked by [`crate::Limits::resolve`].
    pub fn resolve(flags: Flags, get: impl Fn(&str) -> Option<String>, file: &ConfigFile) -> Result<Self, String> {
        let variable = |name: &str| get(name).filter(|value| !value.is_empty()).map(|value| Setting::new(value, name));
        let flag = |name: &str, value: Option<String>| value.map(|value| Setting::new(value, name));
        let keys = &file.keys;
        let settings = Self {
            vram: flag("--vram", flags.vram)
                .or_else(|| variable(env::VRAM))
                .or_else(|| variable(env::HAMI_VRAM))
                .or_else(|| file.setting("vram", keys.vram.as_ref())),
            ram: flag("--ram", flags.ram)
                .or_else(|| variable(env::RAM))
                .or_else(|| file.setting("ram", keys.ram.as_ref())),
            ram_floor: variable(env::RAM_FLOOR).or_else(|| file.setting("ram_floor", keys.ram_floor.as_ref())),
            gpu: flag("--gpu", flags.gpu).or_else(|| variable(env::GPU)),
            sim: flag("--sim", flags.sim).or_else(|| variable(env::SIM)),
            report: flag("--report", flags.report).or_else(|| variable(env::REPORT)),
            log: variable(env::LOG).or_else(|| file.setting("log", keys.log.as_ref())),
            quiet: flags.quiet
                || variable(env::QUIET).map_or(keys.quiet.unwrap_or(false), |value| env::is_on(&value.value)),
        };
        if let Some(log) = &settings.log {
            log.value.parse::<LogSetting>().map_err(|error| format!("{}: {error}", log.source))?;
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HostMemory, Limits};
    use emuv_policy::Bytes;

    fn file(text: &str) -> Result<ConfigFile, String> {
        ConfigFile::parse(Path::new("/etc/emuv/emuv.toml"), text)
    }

    fn variables<'v>(list: &'v [(&'v str, &'v str)]) -> impl Fn(&str) -> Option<String> + 'v {
        move |name| list.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
        let everything = file("ram = '1G'\nvram = '1G'\nram_floor = '1G'\n").unwrap();
        let flags = Flags { ram: Some("3G".into()), ..Flags::default() };
        let env = variables(&[("EMUV_RAM", "2G"), ("EMUV_VRAM", "2G")]);
        let found = Settings::resolve(flags, env, &everything).unwrap();
        assert_eq!(found.ram, Some(Setting::new("3G", "--ram")));
        assert_eq!(found.vram, Some(Setting::new("2G", "EMUV_VRAM")));
        assert_eq!(found.ram_floor, Some(Setting::new("1G", "/etc/emuv/emuv.toml: ram_floor")));
        assert_eq!((found.gpu, found.quiet), (None, false));
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let found =
            Settings::resolve(Flags::default(), variables(&[("EMUV_RAM", "")]), &file("ram = '1G'").unwrap()).unwrap();
        assert_eq!(found.ram.unwrap().value, "1G");
    }

    #[test]
    fn quiet_can_be_turned_off_against_the_file() {
        let quiet = file("quiet = true").unwrap();
        assert!(Settings::resolve(Flags::default(), |_| None, &quiet).unwrap().quiet);
        assert!(!Settings::resolve(Flags::default(), variables(&[("EMUV_QUIET", "0")]), &quiet).unwrap().quiet);
    }

    #[test]
    fn a_size_in_the_file_is_text_or_a_number_of_bytes() {
        assert_eq!(file("ram = 4294967296").unwrap().keys.ram.as_deref(), Some("4294967296"));
        assert_eq!(file("ram = '4G'").unwrap().keys.ram.as_deref(), Some("4G"));
    }

    #[test]
    fn errors_in_the_file_name_it_the_line_and_the_key() {
        for (text, words) in [
            ("vram = '1G'\nrma = '4G'\n", ["line 2", "rma"]),
            ("ram = true", ["line 1", "a size such as"]),
            ("\nram = -1", ["line 2", "negative"]),
            ("quiet = 'yes'", ["line 1", "bool"]),
            ("ram = ", ["line 1", ""]),
        ] {
            let error = file(text).unwrap_err();
            assert!(error.starts_with("/etc/emuv/emuv.toml: ") && !error.contains('\n'), "{error}");
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn a_bad_size_in_the_file_is_reported_with_its_key() {
        let host = HostMemory { total: Bytes::gib(32), available: Bytes::gib(20) };
        let settings = Settings::resolve(Flags::default(), |_| None, &file("ram = '64G'").unwrap()).unwrap();
        let error = Limits::resolve(None, settings.ram.as_ref(), None, &host).unwrap_err();
        assert!(error.starts_with("/etc/emuv/emuv.toml: ram: 64 GiB"), "{error}");
    }

    #[test]
    fn a_log_level_that_is_none_is_refused() {
        let error = Settings::resolve(Flags::default(), variables(&[("EMUV_LOG", "loud")]), &ConfigFile::default());
        assert!(error.unwrap_err().starts_with("EMUV_LOG: "));
    }

    #[test]
    fn a_file_that_is_named_must_exist_and_the_default_one_need_not() {
        let error = ConfigFile::read(variables(&[("EMUV_CONFIG", "/nonexistent.toml")])).unwrap_err();
        assert!(error.starts_with("EMUV_CONFIG: /nonexistent.toml: "), "{error}");
        if !Path::new(DEFAULT_PATH).exists() {
            assert_eq!(ConfigFile::read(|_| None), Ok(ConfigFile::default()));
        }
    }
}
