//! Derives the kubelet's interface from `crates/emuv-kubelet/proto/`.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use crate::codegen::Mode;

/// Generates it, then writes or compares it.
pub fn run(mode: Mode) -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let home = root.parent().context("xtask lies in the workspace")?.join("crates/emuv-kubelet");
    let work = tempfile::tempdir()?;
    let compiled = protox::compile(["deviceplugin.proto"], [home.join("proto")])?;
    // Connecting is left to the caller: there is no transport but the kubelet's socket.
    tonic_prost_build::configure().build_transport(false).out_dir(work.path()).compile_fds(compiled)?;
    let (made, committed) = (work.path().join("v1beta1.rs"), home.join("src/gen/v1beta1.rs"));
    if mode == Mode::Write {
        fs::copy(made, committed)?;
    } else if fs::read(made)? != fs::read(&committed)? {
        bail!("{} is not what the interface makes; run without --check", committed.display());
    }
    Ok(())
}
