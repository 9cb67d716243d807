//! Messages, written whole to standard error (or a file) with one `write(2)`.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::Write as _,
    sync::OnceLock,
};

use emuv_state::{LogLevel, LogSetting, env};

use crate::system;

struct Sink {
    level: LogLevel,
    file: Option<File>,
}

static SINK: OnceLock<Sink> = OnceLock::new();

fn sink() -> &'static Sink {
    SINK.get_or_init(|| {
        let text = system::variable(env::LOG).unwrap_or_default();
        let setting = text.parse::<LogSetting>().unwrap_or_default();
        let file = setting.file.and_then(|path| OpenOptions::new().create(true).append(true).open(path).ok());
        Sink { level: setting.level, file }
    })
}

fn write(sink: &Sink, text: fmt::Arguments<'_>) {
    let _ = match &sink.file {
        Some(file) => (&mut &*file).write_all(one_line(text).as_bytes()),
        None => std::io::stderr().write_all(one_line(text).as_bytes()),
    };
}

/// One buffer and one write, so that lines of several processes do not mix.
fn one_line(text: fmt::Arguments<'_>) -> String {
    format!("emuv: {text}\n")
}

/// To standard error, before it is known what is to be logged, and where.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let _ = std::io::stderr().write_all(one_line(text).as_bytes());
}

/// Something is wrong and emuV does less because of it.
pub(crate) fn error(text: fmt::Arguments<'_>) {
    let sink = sink();
    if sink.level >= LogLevel::Error {
        write(sink, text);
    }
}

/// Detail for those who look for a fault.
pub(crate) fn debug(text: fmt::Arguments<'_>) {
    let sink = sink();
    if sink.level >= LogLevel::Debug {
        write(sink, text);
    }
}

/// What the user should know even without asking for a log (unless quiet).
pub(crate) fn notice(text: fmt::Arguments<'_>) {
    write(sink(), text);
}
