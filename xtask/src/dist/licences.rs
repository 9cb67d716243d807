//! The licences of what is linked into the binaries: who redistributes them passes these on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Release, output};

/// Names, versions and licences of all crates below emuV, and each text once with the crates that carry it.
pub fn third_party(release: &Release) -> Result<String> {
    let tree = ["tree", "--locked", "--package", "emuv", "--edges", "normal", "--prefix", "none", "--no-dedupe"];
    let cargo = || {
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(&release.root);
        command
    };
    let target = ["--target", "x86_64-unknown-linux-gnu", "--format", "{p}"];
    let linked = output(cargo().args(tree).args(target))?;
    let linked: BTreeSet<(&str, &str)> = linked
        .lines()
        .filter(|line| !line.contains("(/"))
        .filter_map(|line| line.split_once(" v"))
        .map(|(name, rest)| (name, rest.split(' ').next().unwrap_or(rest)))
        .collect();
    let metadata = output(cargo().args(["metadata", "--locked", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let packages = metadata["packages"].as_array().context("cargo metadata: no packages")?;
    let mut list = String::new();
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages {
        let field = |name: &str| package[name].as_str().unwrap_or_default();
        if !linked.contains(&(field("name"), field("version"))) {
            continue;
        }
        let crate_name = format!("{} {}", field("name"), field("version"));
        let _ = writeln!(list, "{crate_name}: {}", field("license"));
        let folder = Path::new(field("manifest_path")).parent().context("a manifest lies in a folder")?;
        for text in licence_texts(folder)? {
            texts.entry(text).or_default().push(crate_name.clone());
        }
    }
    let mut all = format!("emuV's binaries contain these Rust crates:\n\n{list}");
    for (text, crates) in texts {
        let _ = write!(all, "\n{}\n{}\n\n{}\n", "-".repeat(80), crates.join(", "), text.trim());
    }
    Ok(all)
}

fn licence_texts(folder: &Path) -> Result<Vec<String>> {
    let mut names: Vec<_> = fs::read_dir(folder)?.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    let is_licence =
        |name: &str| ["LICEN", "COPYING", "NOTICE"].iter().any(|start| name.to_uppercase().starts_with(start));
    let paths = names.iter().filter(|name| name.to_str().is_some_and(is_licence)).map(|name| folder.join(name));
    Ok(paths.filter(|path| path.is_file()).filter_map(|path| fs::read_to_string(path).ok()).collect())
}
