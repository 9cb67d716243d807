//! `docs/json.md`: the fields of the JSON that commands write, from the types that are written, so that it cannot be out of date.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use quote::ToTokens;
use syn::{Attribute, Expr, Fields, GenericArgument, Item, Lit, Meta, PathArguments, Type};

use crate::codegen::Mode;

/// What is described, by which type it begins with, and where that and the types in it are: files, and folders of files.
const OUTPUTS: &[(&str, &str, &[&str])] = &[
    ("emuv run --report FILE", REPORT, &["crates/emuv-state/src/report.rs", "crates/emuv-state/src/report"]),
    ("emuv doctor --json", "Findings", &["crates/emuv/src/doctor/check.rs"]),
    ("emuv simulate --json", "Json", &["crates/emuv/src/simulate/show.rs"]),
];

const REPORT: &str = "Report";

/// Where fields are explained that are handed on from there under the same name.
const EXPLAINED: &[&str] = &["crates/emuv-state/src/ledger/layout.rs", "crates/emuv-state/src/ledger/read.rs"];

/// Where people explain fields, in tables.
const EXPLAINED_IN_WORDS: &str = "docs/report.md";

/// What begins so in a comment is for readers of the code.
const INTERNAL: [&str; 3] = ["; the fields are those of", "; set it with", "; 0 while unknown"];

const PATH: &str = "docs/json.md";

/// A field: its name, its type, what it means.
type Field = (String, Type, String);
/// Types by their names.
type Types = BTreeMap<String, (String, Vec<Field>)>;

/// Writes the document, or compares it.
pub fn run(root: &Path, mode: Mode) -> Result<()> {
    let text = document(root)?;
    let path = root.join(PATH);
    match mode {
        Mode::Write => fs::write(path, text)?,
        Mode::Check if fs::read_to_string(path).unwrap_or_default() != text => {
            bail!("{PATH} is not current: run `cargo xtask docs`")
        }
        Mode::Check => {}
    }
    Ok(())
}

fn document(root: &Path) -> Result<String> {
    let mut text =
        "# JSON output\n\nMade by `cargo xtask docs` from the types that are written; CI sees that it is current. \
                    Sizes are bytes, what is not known is `null`, never 0. Fields may be added within a schema.\n"
            .to_owned();
    let explained = types(root, EXPLAINED)?;
    let tables = fs::read_to_string(root.join(EXPLAINED_IN_WORDS))?;
    let explain = |name: &str| {
        if let Some(words) = row(&tables, name) {
            return Some(words.to_owned());
        }
        let fields = explained.values().flat_map(|(_, fields)| fields);
        fields
            .into_iter()
            .find(|(field, _, words)| field == name && !words.is_empty())
            .map(|(_, _, words)| words.clone())
    };
    for (command, first, files) in OUTPUTS {
        // What a report's fields mean elsewhere under the same name is not the same.
        let explain = |name: &str| if *first == REPORT { explain(name) } else { None };
        let types = types(root, files)?;
        let _ = write!(text, "\n## {command}\n");
        let mut told = Vec::new();
        tell(&mut text, &types, first, true, &mut told, &explain)?;
    }
    Ok(text)
}

/// The second cell of the row whose first names a field.
fn row<'t>(tables: &'t str, field: &str) -> Option<&'t str> {
    let field = format!("`{field}`");
    let cells = tables.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "));
    cells.into_iter().find(|(names, _)| names.split(", ").any(|name| name == field)).map(|(_, words)| words)
}

/// A type's table, then those of the types in it.
fn tell(
    text: &mut String,
    types: &Types,
    name: &str,
    first: bool,
    told: &mut Vec<String>,
    explain: &impl Fn(&str) -> Option<String>,
) -> Result<()> {
    if told.iter().any(|other| other == name) {
        return Ok(());
    }
    told.push(name.to_owned());
    let (about, fields) = types.get(name).with_context(|| format!("no type {name}"))?;
    if !first {
        let _ = write!(text, "\n**{name}**{}\n", if about.is_empty() { String::new() } else { format!(": {about}") });
    }
    text.push_str("\n| field | value | meaning |\n|---|---|---|\n");
    let mut within = Vec::new();
    for (field, kind, words) in fields {
        let words = if words.is_empty() { explain(field).unwrap_or_default() } else { words.clone() };
        let _ = writeln!(text, "| `{field}` | {} | {words} |", value(kind, types, &mut within));
    }
    within.into_iter().try_for_each(|name| tell(text, types, &name, false, told, explain))
}

/// A type in words; types of ours that it leads to are added to `within`.
fn value(kind: &Type, types: &Types, within: &mut Vec<String>) -> String {
    let Type::Path(path) = kind else {
        let Type::Reference(reference) = kind else { return "text".to_owned() };
        return value(&reference.elem, types, within);
    };
    let Some(last) = path.path.segments.last() else { return String::new() };
    let inner: Vec<&Type> = match &last.arguments {
        PathArguments::AngleBracketed(list) => {
            let types = list.args.iter().filter_map(|argument| match argument {
                GenericArgument::Type(inner) => Some(inner),
                _ => None,
            });
            types.collect()
        }
        _ => Vec::new(),
    };
    match (last.ident.to_string().as_str(), inner.as_slice()) {
        ("Option", [inner]) => format!("{} or `null`", value(inner, types, within)),
        ("Vec", [inner]) => format!("list of {}", value(inner, types, within)),
        ("BTreeMap", [_, inner]) => format!("object of {}", value(inner, types, within)),
        ("u8" | "u16" | "u32" | "u64" | "usize" | "f64", _) => "number".to_owned(),
        ("bool", _) => "`true` or `false`".to_owned(),
        (name, _) if types.contains_key(name) => {
            within.push(name.to_owned());
            format!("**{name}**")
        }
        _ => "text".to_owned(),
    }
}

fn types(root: &Path, files: &[&str]) -> Result<Types> {
    let mut types = Types::new();
    for file in files.iter().flat_map(|path| sources(&root.join(path))) {
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        for item in syn::parse_file(&text).with_context(|| file.display().to_string())?.items {
            let Item::Struct(item) = item else { continue };
            let Fields::Named(named) = item.fields else { continue };
            let fields = named.named.into_iter().filter_map(|field| {
                let name = field.ident?.to_string();
                Some((name, field.ty, words(&field.attrs)))
            });
            types.insert(item.ident.to_string(), (words(&item.attrs), fields.collect()));
        }
    }
    Ok(types)
}

/// A file, or the files of a folder.
fn sources(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return vec![path.to_owned()] };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    files.sort();
    files
}

/// The first paragraph of a doc comment, as a cell of a table.
fn words(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(text) => match &text.lit {
                Lit::Str(text) => Some(text.value().trim().to_owned()),
                other => Some(other.to_token_stream().to_string()),
            },
            _ => None,
        },
        _ => None,
    });
    let paragraph: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
    // Links of the code's own documentation lead nowhere here.
    let text = paragraph.join(" ");
    let text = INTERNAL.iter().fold(text.as_str(), |text, start| text.split(start).next().unwrap_or(text));
    let text = text.trim_start_matches("See the module's head. ");
    text.replace('|', "\\|").replace("[`", "`").replace("`]", "`").replace("`None`", "`null`")
}
