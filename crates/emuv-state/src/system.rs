//! Which programs use emuV where it is preloaded into all of them (`emuv install --system`): told by the name of the
//! program's file. Not a security boundary: a file can be copied under another name.

use std::path::Path;

use serde::Deserialize;

/// The command itself: it looks at the machine as it is, and gives emuV to others.
const COMMAND: &str = "emuv";

/// Left alone where the configuration file says nothing: what measures, shares or debugs the GPU itself, and has to
/// meet the driver.
pub const EXCEPTED: &[&str] = &[
    "nvidia-persistenced",
    "nvidia-cuda-mps-*",
    "nv-hostengine",
    "dcgm*",
    "cuda-gdb*",
    "nsys*",
    "ncu*",
    "compute-sanitizer*",
];

/// The table `[system]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct System {
    enabled: Option<bool>,
    only: Option<Vec<String>>,
    except: Option<Vec<String>>,
}

/// Why a program is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftAlone {
    /// It is emuV.
    Command,
    /// `system.enabled` is false.
    Disabled,
    /// `system.only` does not name it.
    NotNamed,
    /// `system.except`, or the default for it, names it.
    Excepted,
}

impl System {
    /// Whether the program of this file is left alone, and why.
    pub fn leaves_alone(&self, executable: &Path) -> Option<LeftAlone> {
        let name = executable.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        // What the kernel adds to the name of a file that was replaced while its program runs.
        let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
        let is_in = |list: &[String]| list.iter().any(|pattern| matches(pattern, name));
        let excepted = match &self.except {
            Some(list) => is_in(list),
            None => EXCEPTED.iter().any(|pattern| matches(pattern, name)),
        };
        if name == COMMAND {
            Some(LeftAlone::Command)
        } else if self.enabled == Some(false) {
            Some(LeftAlone::Disabled)
        } else if excepted {
            Some(LeftAlone::Excepted)
        } else if self.only.as_ref().is_some_and(|list| !is_in(list)) {
            Some(LeftAlone::NotNamed)
        } else {
            None
        }
    }
}

/// Whether a name is what the pattern says; `*` stands for any text, also for none.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        // The earliest place leaves most to the parts that follow.
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left_alone(text: &str, executable: &str) -> Option<LeftAlone> {
        toml::from_str::<System>(text).unwrap().leaves_alone(Path::new(executable))
    }

    #[test]
    fn by_default_all_use_it_but_the_command_and_what_must_meet_the_driver() {
        assert_eq!(left_alone("", "/usr/bin/python3.13"), None);
        assert_eq!(left_alone("", "/opt/emuv/bin/emuv"), Some(LeftAlone::Command));
        assert_eq!(left_alone("", "/usr/bin/nvidia-cuda-mps-server"), Some(LeftAlone::Excepted));
        assert_eq!(left_alone("", "/usr/bin/nvidia-smi"), None);
        assert_eq!(left_alone("except = []", "/usr/bin/nv-hostengine"), None);
    }

    #[test]
    fn exceptions_count_more_than_names() {
        let lists = "only = ['python3*', 'llama-server']\nexcept = ['python3.9']";
        assert_eq!(left_alone(lists, "/usr/bin/python3.13"), None);
        assert_eq!(left_alone(lists, "/usr/bin/python3.9"), Some(LeftAlone::Excepted));
        assert_eq!(left_alone(lists, "/usr/bin/blender"), Some(LeftAlone::NotNamed));
        assert_eq!(left_alone("only = []", "/usr/bin/blender"), Some(LeftAlone::NotNamed));
    }

    #[test]
    fn one_key_switches_all_of_it_off() {
        assert_eq!(left_alone("enabled = false", "/usr/bin/python3"), Some(LeftAlone::Disabled));
    }

    #[test]
    fn a_program_whose_file_was_replaced_keeps_its_name() {
        assert_eq!(left_alone("only = ['server']", "/srv/server (deleted)"), None);
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name) in [("*", ""), ("*", "x"), ("a*", "a"), ("*b", "ab"), ("a*b*c", "axbbyc"), ("a*a", "aa")] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("", "x"), ("a", "ab"), ("a*", "ba"), ("*b", "ba"), ("a*a", "a"), ("a*b*c", "acb")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
