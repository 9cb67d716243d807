//! What `EMUV_LOG` says.

use std::{path::PathBuf, str::FromStr};

/// How much emuV logs; each level includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What went wrong.
    #[default]
    Error,
    /// What was decided.
    Info,
    /// Every intercepted call.
    Debug,
}

/// A level and where the lines go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogSetting {
    /// How much.
    pub level: LogLevel,
    /// The file that lines are appended to; `None`: standard error.
    pub file: Option<PathBuf>,
}

impl FromStr for LogSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (level, file) = match text.split_once(':') {
            Some((level, file)) => (level, Some(PathBuf::from(file))),
            None => (text, None),
        };
        let level = match level.trim().to_ascii_lowercase().as_str() {
            "off" => LogLevel::Off,
            "error" => LogLevel::Error,
            "info" => LogLevel::Info,
            "debug" => LogLevel::Debug,
            _ => return Err(format!("'{text}' is no log level; write off, error, info or debug, or debug:/path")),
        };
        // A relative path would mean another file after each chdir of the program.
        if file.as_ref().is_some_and(|file| !file.is_absolute()) {
            return Err(format!("'{text}': the log file must be an absolute path"));
        }
        Ok(Self { level, file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_stands_alone_or_before_a_file() {
        assert_eq!("info".parse(), Ok(LogSetting { level: LogLevel::Info, file: None }));
        let file = Some(PathBuf::from("/tmp/a:b"));
        assert_eq!("debug:/tmp/a:b".parse(), Ok(LogSetting { level: LogLevel::Debug, file }));
    }

    #[test]
    fn anything_else_is_said_so() {
        for text in ["", "loud", "debug:", "debug:here.log", "/tmp/x"] {
            assert!(text.parse::<LogSetting>().is_err(), "{text}");
        }
    }
}
