//! What is derived from the code (the command line's reference, the fields of JSON), and links between documents that lead somewhere.

mod json;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::codegen::Mode;

/// Writes or compares what is derived from sources alone.
pub fn derived(mode: Mode) -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    json::run(root.parent().context("xtask lies in the workspace")?, mode)
}

/// Writes `docs/reference.md`. That it is current is a test of the crate emuv, which has what it is made of.
pub fn write_reference() -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = root.parent().context("xtask lies in the workspace")?;
    let mut emuv = Command::new(env!("CARGO"));
    let made = emuv.args(["run", "--quiet", "--package", "emuv", "--", "generate", "reference"]).current_dir(root);
    let made = made.output()?;
    if !made.status.success() {
        bail!("emuv generate reference: {}", String::from_utf8_lossy(&made.stderr));
    }
    fs::write(root.join("docs/reference.md"), made.stdout)?;
    Ok(())
}

/// One line for each link of a document (and each document named like `docs/slices.md`) that leads nowhere.
pub fn broken_links(root: &Path, name: &Path, text: &str) -> Vec<String> {
    let folder = name.parent().unwrap_or(Path::new(""));
    let mut broken = Vec::new();
    for (number, line) in outside_of_code(text) {
        let named = named_documents(line).map(|path| (path, root.join(path)));
        let linked = links(line).filter(|link| !link.contains("://") && !link.starts_with("mailto:"));
        let linked = linked.map(|link| {
            let path = link.split('#').next().unwrap_or(link);
            (link, if path.is_empty() { root.join(name) } else { root.join(folder).join(path) })
        });
        for (link, path) in named.chain(linked) {
            let target = link.split_once('#').map(|(_, heading)| heading);
            let leads = path.exists() && target.is_none_or(|heading| has_heading(&path, heading));
            if !leads {
                broken.push(format!("{}:{number}: {link} leads nowhere", name.display()));
            }
        }
    }
    broken
}

/// The lines of a document that are not in a block of code, with their numbers.
fn outside_of_code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut inside = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        if line.trim_start().starts_with("```") {
            inside = !inside;
            return None;
        }
        (!inside && !line.starts_with("    ")).then_some((index + 1, line))
    })
}

/// Targets of `[words](target)`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

/// Documents that are named in code, from the root: `docs/report.md`.
fn named_documents(line: &str) -> impl Iterator<Item = &str> {
    let code = line.split('`').skip(1).step_by(2);
    code.filter(|code| code.starts_with("docs/") && !code.contains([' ', '*', '{', '$']))
}

/// Whether a document has a heading that is linked to by this name.
fn has_heading(path: &Path, heading: &str) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    outside_of_code(&text)
        .any(|(_, line)| line.starts_with('#') && slug(line.trim_start_matches('#').trim()) == heading)
}

/// A heading's name in links: lower case, no marks, blanks as hyphens.
fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(text: &str) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("docs")).unwrap();
        fs::write(root.path().join("docs/a.md"), "# What it costs, and why\n").unwrap();
        broken_links(root.path(), Path::new("docs/b.md"), text)
    }

    #[test]
    fn links_are_found_from_where_they_stand() {
        assert!(
            broken("[a](a.md), [b](a.md#what-it-costs-and-why), [c](https://example.org/x), `docs/a.md`").is_empty()
        );
        assert_eq!(broken("\n[x](c.md) and [y](a.md)"), ["docs/b.md:2: c.md leads nowhere"]);
        assert_eq!(broken("[x](a.md#other)"), ["docs/b.md:1: a.md#other leads nowhere"]);
        assert_eq!(broken("see `docs/c.md`."), ["docs/b.md:1: docs/c.md leads nowhere"]);
    }

    #[test]
    fn code_is_not_searched() {
        assert!(broken("```\n[x](c.md)\n```\n    [x](c.md)\n").is_empty());
    }
}
