//! The settings of a run: flags, then `EMUV_*` variables, then the configuration file, then the defaults.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, Visitor},
};

use crate::{LogSetting, Movement, Setting, env, system::System};

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
    policy: Option<String>,
    safe: Option<bool>,
    system: System,
}

/// Every key of the file with its type and meaning, for the reference and the default file.
pub const KEYS: &[(&str, &str, &str)] = &[
    ("vram", "size", "Most VRAM that a program may use, per GPU. Unset: all of it."),
    (
        "ram",
        "size",
        "RAM budget of a program for what does not fit in VRAM; 0 turns spilling off. Unset: half of what is free.",
    ),
    ("ram_floor", "size", "RAM that emuV always leaves to the host. Unset: 2 GiB or a tenth of it, whichever is more."),
    ("quiet", "true or false", "No notice when memory spills."),
    ("log", "text", "off, error (the default), info or debug, to standard error; debug:/path to a file."),
    ("policy", "text", "What moves between VRAM and RAM: dynamic (the default) or static."),
    ("safe", "true or false", "Data moves only while the GPU has nothing to do."),
    (
        "system.enabled",
        "true or false",
        "After 'emuv install --system': false leaves every program as without it. Unset: true.",
    ),
    (
        "system.only",
        "list of names",
        "Only these programs use emuV; '*' stands for any text. Unset: all that are not excepted.",
    ),
    (
        "system.except",
        "list of names",
        "These programs do not use emuV. Unset: those that measure, share or debug the GPU itself.",
    ),
];

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

    /// Which programs use emuV where nobody starts them with it.
    pub fn system(&self) -> &System {
        &self.keys.system
    }

    /// What the file says in the place of a variable of this name that is not set.
    pub fn variable(&self, name: &str) -> Option<String> {
        let keys = &self.keys;
        let switch = |on: Option<bool>| on.map(|on| if on { "1" } else { "0" }.to_owned());
        match name {
            env::VRAM => keys.vram.clone(),
            env::RAM => keys.ram.clone(),
            env::RAM_FLOOR => keys.ram_floor.clone(),
            env::LOG => keys.log.clone(),
            env::POLICY => keys.policy.clone(),
            env::QUIET => switch(keys.quiet),
            env::SAFE => switch(keys.safe),
            _ => None,
        }
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
    /// The file's, which a flag or variable overrules.
    pub policy: Option<Movement>,
    /// Likewise.
    pub safe: bool,
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
        let in_file = |key: &str, error: String| format!("{}: {key}: {error}", file.path.display());
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
            policy: keys
                .policy
                .as_ref()
                .map(|policy| policy.parse())
                .transpose()
                .map_err(|error| in_file("policy", error))?,
            safe: keys.safe.unwrap_or(false),
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
    fn where_a_variable_is_unset_the_file_has_its_value() {
        let found = file("ram = '4G'\nquiet = true\nsafe = false\npolicy = 'static'\n").unwrap();
        assert_eq!(found.variable("EMUV_RAM").as_deref(), Some("4G"));
        assert_eq!(found.variable("EMUV_QUIET").as_deref(), Some("1"));
        assert_eq!(found.variable("EMUV_SAFE").as_deref(), Some("0"));
        assert_eq!((found.variable("EMUV_VRAM"), found.variable("EMUV_SIM")), (None, None));
        let settings = Settings::resolve(Flags::default(), |_| None, &found).unwrap();
        assert_eq!((settings.policy, settings.safe), (Some(Movement::Static), false));
    }

    #[test]
    fn a_policy_that_is_none_is_refused_with_file_and_key() {
        let error = Settings::resolve(Flags::default(), |_| None, &file("policy = 'magic'").unwrap()).unwrap_err();
        assert!(error.starts_with("/etc/emuv/emuv.toml: policy: 'magic' is none of"), "{error}");
    }

    #[test]
    fn every_key_of_the_table_is_one_of_the_file() {
        for (key, kind, _) in KEYS {
            let value = match *kind {
                "size" => "'4G'",
                "text" => "'x'",
                "list of names" => "['x']",
                _ => "true",
            };
            let text = match key.split_once('.') {
                Some((table, key)) => format!("[{table}]\n{key} = {value}\n"),
                None => format!("{key} = {value}\n"),
            };
            file(&text).unwrap_or_else(|error| panic!("{key}: {error}"));
        }
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
