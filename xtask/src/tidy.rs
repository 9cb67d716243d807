//! House rules that no lint knows: file length, where unsafe code may live, no stray markers, links that lead somewhere.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::docs;

/// Lines a hand-written source file may have.
const MAX_LINES: usize = 600;

/// Checks every tracked Rust file and document and fails with one line per finding.
pub fn run() -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = root.parent().context("xtask lies in the workspace")?;
    let listed = Command::new("git")
        .args(["ls-files", "-co", "--exclude-standard", "*.rs", "*.md"])
        .current_dir(root)
        .output()?;
    let mut findings = Vec::new();
    for name in String::from_utf8(listed.stdout)?.lines() {
        check(root, Path::new(name), &mut findings)?;
    }
    if findings.is_empty() {
        return Ok(());
    }
    bail!("tidy: {} finding(s)\n{}", findings.len(), findings.join("\n"));
}

fn check(root: &Path, name: &Path, findings: &mut Vec<String>) -> Result<()> {
    let path = root.join(name);
    if !path.is_file() || name.components().any(|part| part.as_os_str() == "gen") {
        return Ok(());
    }
    let text = fs::read_to_string(&path)?;
    if name.extension().is_some_and(|extension| extension == "md") {
        findings.extend(docs::broken_links(root, name, &text));
        return Ok(());
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        findings.push(format!("{}: {lines} lines (at most {MAX_LINES})", name.display()));
    }
    // A file that opts into unsafe code says at its head what makes it sound.
    // At the start of a line: here the words are only spoken of.
    if text.contains("\n#![allow(unsafe_code)]") && !text.lines().take(40).any(|line| line.contains("# Safety")) {
        findings.push(format!("{}: allows unsafe code without a `# Safety` section at its head", name.display()));
    }
    for (number, line) in text.lines().enumerate() {
        for marker in ["TODO", "FIXME", "XXX"] {
            // The list of markers itself is not a finding.
            if line.contains(marker) && !name.ends_with("tidy.rs") {
                findings.push(format!("{}:{}: {marker}", name.display(), number + 1));
            }
        }
    }
    Ok(())
}
