//! A report as a file: written in one step, read back with words for what is wrong.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::{
    Serializer, Value,
    ser::{CompactFormatter, Formatter, PrettyFormatter},
};

use super::{Report, SCHEMA};

/// A report is never larger than this.
const MOST_BYTES: u64 = 256 << 20;

/// What lies deeper than this is written in one line: columns and rows.
const DEEPEST: usize = 6;

impl Report {
    /// Writes it: a reader sees the old file or the whole new one, never a part. What is not a plain file (a
    /// pipe, `/dev/stdout`) is written to as it is.
    ///
    /// # Errors
    /// The system's own.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = Vec::new();
        self.serialize(&mut Serializer::with_formatter(&mut text, Shallow::default()))?;
        text.push(b'\n');
        write_whole(path, &text)
    }

    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with the file, and what to do, without its name.
    pub fn read(path: &Path) -> Result<Self, String> {
        let cannot = |error: io::Error| format!("cannot be read: {error}");
        let mut text = Vec::new();
        fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut text)).map_err(cannot)?;
        if text.len() as u64 > MOST_BYTES {
            return Err("too large for a report of emuv run".to_owned());
        }
        Self::parse(&text)
    }

    /// The same of a file's bytes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(text).map_err(|error| match error.is_eof() {
            true => format!("it ends too early ({error}): it was not written to its end"),
            false => format!("not JSON: {error}"),
        })?;
        let Some(schema) = value.get("schema").and_then(Value::as_u64) else {
            return Err("not a report of emuv run: it has no schema number".to_owned());
        };
        match schema {
            0 => return Err("not a report of emuv run: schema 0".to_owned()),
            newer if newer > u64::from(SCHEMA) => {
                return Err(format!(
                    "a report of schema {newer}; this emuv ({}) reads schema {SCHEMA}: use a newer one",
                    env!("CARGO_PKG_VERSION")
                ));
            }
            _ => {}
        }
        serde_json::from_value(value).map_err(|error| format!("not a report of emuv run: {error}"))
    }
}

/// Writes a file: a reader sees the old one or the whole new one, never a part. What is not a plain file (a pipe,
/// `/dev/stdout`) is written to as it is.
///
/// # Errors
/// The system's own.
pub fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    match destination(path)? {
        Destination::Stream => OpenOptions::new().append(true).open(path)?.write_all(text),
        Destination::File(path) => {
            let (temporary, mut file) = temporary(&path)?;
            let written = file.write_all(text).and_then(|()| fs::rename(&temporary, &path));
            if written.is_err() {
                let _ = fs::remove_file(&temporary);
            }
            written
        }
    }
}

/// Finds out, leaving no trace, whether a report can be written there.
///
/// # Errors
/// The system's own.
pub fn check_writable(path: &Path) -> io::Result<()> {
    match destination(path)? {
        Destination::Stream => Ok(rustix::fs::access(path, rustix::fs::Access::WRITE_OK)?),
        Destination::File(path) => fs::remove_file(temporary(&path)?.0),
    }
}

enum Destination {
    /// Exists and is no plain file.
    Stream,
    /// A plain file that exists, with links followed, or one to be made.
    File(PathBuf),
}

fn destination(path: &Path) -> io::Result<Destination> {
    match fs::metadata(path) {
        Ok(data) if data.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(data) if data.is_file() => Ok(Destination::File(fs::canonicalize(path)?)),
        Ok(_) => Ok(Destination::Stream),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Destination::File(std::path::absolute(path)?)),
        Err(error) => Err(error),
    }
}

/// A new file in the same directory, so that renaming it is one step.
fn temporary(path: &Path) -> io::Result<(PathBuf, fs::File)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(hidden);
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
    Ok((temporary, file))
}

/// Pretty down to a depth, and then each value in one line.
#[derive(Default)]
struct Shallow {
    depth: usize,
    pretty: PrettyFormatter<'static>,
}

impl Shallow {
    fn is_deep(&self) -> bool {
        self.depth > DEEPEST
    }
}

macro_rules! shallow {
    ($($name:ident($($argument:ident: $of:ty),*) $deeper:literal $higher:literal;)*) => {
        impl Formatter for Shallow {
            $(
                fn $name<W: ?Sized + Write>(&mut self, writer: &mut W, $($argument: $of),*) -> io::Result<()> {
                    self.depth += $deeper;
                    let deep = self.is_deep();
                    self.depth -= $higher;
                    if deep { CompactFormatter.$name(writer, $($argument),*) } else { self.pretty.$name(writer, $($argument),*) }
                }
            )*
        }
    };
}

shallow! {
    begin_array() 1 0;
    end_array() 0 1;
    begin_array_value(first: bool) 0 0;
    end_array_value() 0 0;
    begin_object() 1 0;
    end_object() 0 1;
    begin_object_key(first: bool) 0 0;
    begin_object_value() 0 0;
    end_object_value() 0 0;
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::{super::tests::report, *};

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let report = report();
        report.write(&path).unwrap();
        assert_eq!(Report::read(&path), Ok(report));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"seconds\": [0.5,1.0],\n"), "a column is one line: {text}");
        assert!(text.lines().count() < 100 && text.lines().all(|line| line.len() < 200), "{text}");
    }

    #[test]
    fn a_report_without_what_was_added_later_is_read() {
        let mut value = serde_json::to_value(report()).unwrap();
        let device = value["processes"][0]["devices"][0].as_object_mut().unwrap();
        for added in ["timeline", "costliest", "remapped_bytes", "escaped_bytes", "movement"] {
            device.remove(added);
        }
        value["something"] = "that a newer emuv adds".into();
        let read = Report::parse(value.to_string().as_bytes()).unwrap();
        assert_eq!((read.exit_code, read.processes[0].devices[0].timeline.is_none()), (7, true));
    }

    #[test]
    fn what_is_no_report_is_refused_with_the_reason() {
        let good = serde_json::to_string(&report()).unwrap();
        let newer = good.replacen("\"schema\":1", "\"schema\":2", 1);
        let wrong = good.replacen("\"exit_code\":7", "\"exit_code\":\"seven\"", 1);
        let cases = [
            (&newer[..], "a report of schema 2; this emuv ("),
            (&good[..good.len() - 9], "it ends too early ("),
            ("", "it ends too early ("),
            ("{\"schema\": 1}", "not a report of emuv run: missing field"),
            ("[1, 2]", "not a report of emuv run: it has no schema number"),
            ("{\"schema\": 0}", "not a report of emuv run: schema 0"),
            ("schema = 1", "not JSON: "),
            (&wrong[..], "not a report of emuv run: invalid type: string \"seven\""),
        ];
        for (text, words) in cases {
            let error = Report::parse(text.as_bytes()).unwrap_err();
            assert!(error.starts_with(words), "{text}: {error}");
        }
        assert!(Report::read(Path::new("/nonexistent.json")).unwrap_err().starts_with("cannot be read: No such file"));
        assert!(Report::read(Path::new("/")).unwrap_err().starts_with("cannot be read: "));
    }

    #[test]
    fn it_replaces_the_old_one_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        fs::write(&path, "old").unwrap();
        check_writable(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old", "a check changes nothing");
        report().write(&path).unwrap();
        let read: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(read["exit_code"], 7);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("real.json"), folder.path().join("link.json"));
        fs::write(&path, "old").unwrap();
        symlink(&path, &link).unwrap();
        report().write(&link).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read_to_string(&path).unwrap().contains("schema"));
    }

    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        check_writable(Path::new("/dev/null")).unwrap();
        report().write(Path::new("/dev/null")).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_found_out_beforehand() {
        assert!(check_writable(Path::new("/nonexistent/report.json")).is_err());
        assert!(check_writable(Path::new("/")).is_err());
        assert!(check_writable(Path::new("/proc/report.json")).is_err());
    }
}
