//! `cargo xtask codegen [--check]` writes (or compares) everything under `crates/emuv-cuda/src/gen/`.
//! `cargo run -p xtask --features protos -- protos [--check]` does the same with `crates/emuv-kubelet/src/gen/`.
//! `cargo xtask docs` writes `docs/reference.md` and `docs/json.md` (`codegen --check` compares the latter). `cargo xtask dist` makes packages, into `target/dist/`
//! (`--debug`: of an unoptimised build, to test them).
//! `cargo xtask tidy` checks the house rules that no lint knows.

mod codegen;
mod dist;
mod docs;
mod headers;
#[cfg(feature = "protos")]
mod protos;
mod tidy;

use anyhow::{Result, bail};

use codegen::Mode;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["codegen"] => codegen::run(Mode::Write),
        ["codegen", "--check"] => docs::derived(Mode::Check).and_then(|()| codegen::run(Mode::Check)),
        #[cfg(feature = "protos")]
        ["protos"] => protos::run(Mode::Write),
        #[cfg(feature = "protos")]
        ["protos", "--check"] => protos::run(Mode::Check),
        ["dist"] => dist::run(false),
        ["dist", "--debug"] => dist::run(true),
        ["docs"] => docs::derived(Mode::Write).and_then(|()| docs::write_reference()),
        ["tidy"] => tidy::run(),
        _ => bail!(
            "usage: cargo xtask codegen [--check] | cargo xtask dist [--debug] | cargo xtask docs | cargo xtask tidy"
        ),
    }
}
