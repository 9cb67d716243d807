//! What is derived from the command line's definition: completions for shells, man pages, `docs/reference.md`.

use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Arg, Args, Command, Subcommand};
use emuv_state::{config, env as variables, system};

use crate::cli;

/// Flags of `emuv completions`.
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_HELP)]
pub struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

const COMPLETIONS_HELP: &str = "\
Examples (packages install them):
  emuv completions bash > ~/.local/share/bash-completion/completions/emuv
  emuv completions zsh > ~/.zfunc/_emuv
  emuv completions fish > ~/.config/fish/completions/emuv.fish";

/// Flags of `emuv generate`, which makes what packages and `docs/` carry.
#[derive(Debug, Args)]
pub struct Generate {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Man pages, into a folder
    Man {
        /// The folder
        dir: PathBuf,
    },
    /// The reference, to standard output
    Reference,
    /// The default configuration file, to standard output
    Config,
}

/// Prints a shell's completions.
///
/// # Errors
/// Standard output cannot be written.
pub fn completions(options: &Completions) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut cli::definition(), "emuv", &mut script);
    cli::print(&String::from_utf8(script).context("completions are no text")?)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes what is asked for.
///
/// # Errors
/// It cannot be written.
pub fn generate(options: &Generate) -> Result<ExitCode> {
    match &options.what {
        What::Man { dir } => man_pages(dir).with_context(|| format!("writing man pages to {}", dir.display()))?,
        What::Reference => cli::print(&reference())?,
        What::Config => cli::print(&default_config())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn man_pages(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(cli::definition(), dir)
}

/// The configuration file with every key in it, none of them set.
fn default_config() -> String {
    let mut text =
        "# Settings of emuV. Flags and EMUV_* variables count more. Nothing here is set: remove the '#' of a line.\n\
                    # Sizes are 1024-based: \"512M\", \"10.5G\". docs/reference.md has the same list.\n"
            .to_owned();
    let mut table = "";
    for (key, _, meaning) in config::KEYS {
        let (of, key) = key.split_once('.').unwrap_or(("", key));
        if of != table {
            let _ = write!(text, "\n# Which programs use emuV after 'emuv install --system'.\n[{of}]\n");
            table = of;
        }
        let _ = write!(text, "\n# {meaning}\n# {key} = {}\n", example(key));
    }
    text
}

fn example(key: &str) -> String {
    match key {
        "vram" => "\"10.5G\"".to_owned(),
        "ram" => "\"8G\"".to_owned(),
        "ram_floor" => "\"4G\"".to_owned(),
        "log" => "\"error\"".to_owned(),
        "policy" => "\"dynamic\"".to_owned(),
        "enabled" => "true".to_owned(),
        "only" => "[\"python3*\", \"llama-server\"]".to_owned(),
        "except" => format!("{:?}", system::EXCEPTED),
        _ => "false".to_owned(),
    }
}

/// `docs/reference.md`.
fn reference() -> String {
    let mut text = "# Reference\n\nMade by `cargo xtask docs` from the command line's own definition; a test sees that it is current. \
                    How to use it: [README.md](README.md).\n"
        .to_owned();
    let mut definition = cli::definition();
    definition.build();
    for command in definition.get_subcommands().filter(|command| !command.is_hide_set()) {
        describe(&mut text, command, "emuv");
    }
    text += "\n## Variables\n\nA flag counts more than a variable, a variable more than the configuration file.\n\n\
             | variable | meaning | flag |\n|---|---|---|\n";
    for variable in variables::VARIABLES {
        let flag = variable.flag.map(|flag| format!("`{flag}`")).unwrap_or_default();
        let _ = writeln!(text, "| `{}` | {} | {flag} |", variable.name, cell(variable.meaning.trim()));
    }
    let _ = write!(
        text,
        "\n## Configuration file\n\n`{}`, TOML; every key may be left out.\n\n| key | value | meaning |\n|---|---|---|\n",
        config::DEFAULT_PATH
    );
    for (key, value, meaning) in config::KEYS {
        let _ = writeln!(text, "| `{key}` | {value} | {} |", cell(meaning));
    }
    text
}

/// A command, and what is below it.
fn describe(text: &mut String, command: &Command, above: &str) {
    if command.get_name() == "help" {
        return;
    }
    let name = format!("{above} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let _ = write!(text, "\n## {name}\n\n{}\n", cell(&about));
    let visible = |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version");
    let arguments: Vec<_> = command.get_arguments().filter(visible).collect();
    if !arguments.is_empty() {
        *text += "\n| argument | meaning | variable |\n|---|---|---|\n";
    }
    for arg in arguments {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let variable = arg.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default();
        let _ = writeln!(text, "| `{}` | {} | {variable} |", written(arg), cell(&help));
    }
    let helps = [command.get_after_help()].into_iter().flatten().map(|help| help.to_string());
    for help in helps {
        let _ = write!(text, "\n```text\n{}\n```\n", help.trim_end());
    }
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        describe(text, below, &name);
    }
}

/// An argument as it is typed. The bar between values must not end a table's cell.
fn written(arg: &Arg) -> String {
    let values: Vec<_> = arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect();
    let takes = arg.get_num_args().is_some_and(|count| count.takes_values());
    let value = values.join(" ").replace('|', "\\|");
    let flag = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, Some(long)) => format!("--{long}"),
        (None, None) => return value,
    };
    match (takes, arg.is_require_equals_set()) {
        (false, _) => flag,
        (true, true) => format!("{flag}[={value}]"),
        (true, false) => format!("{flag} {value}"),
    }
}

fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|").replace('<', "\\<")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_in_docs_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference.md");
        let found = std::fs::read_to_string(&path).unwrap();
        assert!(found == reference(), "docs/reference.md is not current: run `cargo xtask docs`");
    }

    #[test]
    fn the_default_configuration_file_sets_nothing_and_names_every_key() {
        let text = default_config();
        let file = config::ConfigFile::parse(Path::new("emuv.toml"), &text).unwrap();
        let empty = config::ConfigFile::parse(Path::new("emuv.toml"), "").unwrap();
        assert_eq!(file, empty);
        // With the comment signs of its keys taken away it is right as well.
        let keys: String = text
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|rest| rest.contains(" = ")).unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        let full = config::ConfigFile::parse(Path::new("emuv.toml"), &keys).unwrap();
        assert!(config::KEYS.iter().all(|(key, ..)| keys.contains(key.rsplit('.').next().unwrap_or(key))), "{keys}");
        assert_ne!(full, empty);
    }

    #[test]
    fn there_is_a_man_page_for_every_command_and_none_for_hidden_ones() {
        let dir = tempfile::tempdir().unwrap();
        man_pages(dir.path()).unwrap();
        for page in ["emuv.1", "emuv-run.1", "emuv-install.1", "emuv-vgpu-create.1"] {
            let text = std::fs::read_to_string(dir.path().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
            assert!(text.contains(".TH"), "{page}");
        }
        assert!(!dir.path().join("emuv-generate.1").exists());
    }

    #[test]
    fn every_shell_gets_completions_that_know_the_flags() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut cli::definition(), "emuv", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("vram") && script.contains("vgpu"), "{shell}");
        }
    }
}
