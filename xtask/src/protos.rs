//! Derives the kubelet's interfaces from `crates/emuv-kubelet/proto/`.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use crate::codegen::Mode;

/// Generates it, then writes or compares it.
pub fn run(mode: Mode) -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let home = root.parent().context("xtask lies in the workspace")?.join("crates/emuv-kubelet");
    let work = tempfile::tempdir()?;
    let sources = ["deviceplugin.proto", "dra.proto", "pluginregistration.proto"];
    let compiled = protox::compile(sources, [home.join("proto")])?;
    // Connecting is left to the caller: there is no transport but the kubelet's sockets.
    tonic_prost_build::configure().build_transport(false).out_dir(work.path()).compile_fds(compiled)?;
    // Made by packages, kept by what they are.
    for (package, name) in [
        ("v1beta1", "v1beta1"),
        ("k8s.io.kubelet.pkg.apis.dra.v1", "dra_v1"),
        ("pluginregistration", "pluginregistration"),
    ] {
        let made = work.path().join(format!("{package}.rs"));
        let committed = home.join(format!("src/gen/{name}.rs"));
        if mode == Mode::Write {
            fs::copy(made, committed)?;
        } else if fs::read(made)? != fs::read(&committed)? {
            bail!("{} is not what the interface makes; run without --check", committed.display());
        }
    }
    Ok(())
}
