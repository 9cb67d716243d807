//! `emuv report`: what a run held and moved, on one page.

mod advice;
mod chart;
mod page;
mod sites;

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use emuv_state::report::{Report, write_whole};

use crate::cli::{Failure, print};

/// The results cannot be written.
const FAILED: u8 = 255;

/// By this a page is known to be one of emuV's.
const GENERATOR: &str = "<meta name=\"generator\" content=\"emuv report\">";

const AFTER_HELP: &str = "\
The page needs nothing else: no network, no scripts. It shows VRAM and RAM over time, what moved and why, the
allocations of which most was moved, how close to the bound the program was, and what would help.

Examples:
  emuv run --report out.json -- python train.py
  emuv report out.json                                     writes out.html";

/// Flags of `emuv report`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    /// What 'emuv run --report FILE' wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// The page [default: beside FILE, with .html]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Makes the page.
///
/// # Errors
/// The report cannot be read or the page not be written.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let report = Report::read(&options.file).map_err(|why| Failure::wrong(options.file.display(), why))?;
    let output = match &options.output {
        Some(output) => output.clone(),
        None => beside(&options.file)?,
    };
    let cannot =
        |why: &dyn std::fmt::Display| Failure::new(FAILED, format!("cannot write {}: {why}", output.display()));
    write_whole(&output, page::page(&report).as_bytes()).map_err(|error| cannot(&error))?;
    if output.is_file() {
        print(&format!("{}\n", output.display())).map_err(|error| cannot(&error))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The page's own place: nothing that is not such a page is overwritten there.
fn beside(file: &Path) -> Result<PathBuf, Failure> {
    let page = file.with_extension("html");
    let mut start = String::new();
    let is_there = File::open(&page).map(|file| file.take(4096).read_to_string(&mut start)).is_ok();
    if page == file || is_there && !start.contains(GENERATOR) {
        let words = format!("{} is there and no page of 'emuv report'; name another with -o", page.display());
        return Err(Failure::bad_argument(words));
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_a_page_of_its_own_is_overwritten_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("out.json");
        let page = folder.path().join("out.html");
        assert_eq!(beside(&file), Ok(page.clone()));
        fs::write(&page, format!("<!doctype html>\n{GENERATOR}")).unwrap();
        assert_eq!(beside(&file), Ok(page.clone()));
        fs::write(&page, "my notes").unwrap();
        assert!(beside(&file).unwrap_err().message.contains("name another with -o"));
        assert!(beside(&page).is_err(), "the report itself");
    }
}
