//! `cargo xtask dist` builds emuV and makes what people install: a .deb, an .rpm and a tarball, all of the same tree of
//! files ([`layout`]), into `target/dist/`. The wheel is made by `python/`'s own script, where that is there.
//!
//! Reproducible: the same sources and toolchain give the same bytes. Every time in a package is that of the last commit
//! (or `SOURCE_DATE_EPOCH`), owners are root, entries are in order, and paths of this machine are taken out of the binaries.

mod deb;
pub mod layout;
mod licences;
#[cfg(feature = "dist")]
mod rpm;
mod tree;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// The oldest glibc that the binaries may need. docs/install.md and docs/slices.md say so too.
const GLIBC: (u32, u32) = (2, 34);

/// What is built, and when.
#[derive(Debug)]
pub struct Release {
    /// The workspace.
    pub root: PathBuf,
    /// As in the packages' names.
    pub version: String,
    /// Every time in a package, in seconds since 1970.
    pub epoch: u32,
    /// Not optimised: to test packages, which are built in minutes then.
    pub debug: bool,
}

/// Makes everything.
pub fn run(debug: bool) -> Result<()> {
    if !cfg!(feature = "dist") {
        // The .rpm's writer is built only for this.
        let again = ["run", "--quiet", "--package", "xtask", "--features", "dist", "--", "dist"];
        return call(Command::new(env!("CARGO")).args(again).args(debug.then_some("--debug")));
    }
    let release = Release::find(debug)?;
    release.build()?;
    let out = release.root.join("target/dist");
    let _ = fs::remove_dir_all(&out);
    fs::create_dir_all(&out)?;
    let tree = layout::collect(&release)?;
    let mut made = vec![deb::write(&release, &tree, &out)?, tree.write_tarball(&release, &out)?];
    #[cfg(feature = "dist")]
    made.push(rpm::write(&release, &tree, &out)?);
    made.extend(wheel(&release, &out)?);
    for path in made {
        eprintln!("{} ({} KiB)", path.display(), fs::metadata(&path)?.len() / 1024);
    }
    Ok(())
}

impl Release {
    /// This workspace, at its last commit.
    fn find(debug: bool) -> Result<Self> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let root = root.parent().context("xtask lies in the workspace")?.to_owned();
        let epoch = match env::var("SOURCE_DATE_EPOCH") {
            Ok(text) => text,
            Err(_) => output(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(&root))?,
        };
        let epoch = epoch.trim().parse().with_context(|| format!("SOURCE_DATE_EPOCH: '{epoch}'"))?;
        Ok(Self { root, version: env!("CARGO_PKG_VERSION").to_owned(), epoch, debug })
    }

    /// Where the binaries are.
    pub fn built(&self) -> PathBuf {
        self.root.join(if self.debug { "target/debug" } else { "target/release" })
    }

    /// What takes this machine's paths out of the binaries.
    fn rustflags(&self) -> Result<String> {
        let home = env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo")))?;
        let remap = |from: &str, to: &str| format!("--remap-path-prefix={from}={to}");
        Ok([remap(&self.root.display().to_string(), "/emuv"), remap(&home, "/cargo")].join("\u{1f}"))
    }

    fn build(&self) -> Result<()> {
        let mut cargo = Command::new(env!("CARGO"));
        let packages = ["emuv", "emuv-shim", "emuv-simgpu"].map(|name| ["--package", name]);
        cargo.args(["build", "--locked"]).args(packages.as_flattened()).current_dir(&self.root);
        if !self.debug {
            cargo.arg("--release").env("CARGO_ENCODED_RUSTFLAGS", self.rustflags()?);
        }
        call(&mut cargo)?;
        for name in ["emuv", "libemuv_shim.so", "libemuv_simgpu.so"] {
            self.check_glibc(&self.built().join(name))?;
        }
        Ok(())
    }

    /// A new toolchain or build machine must not raise what users need without anybody noticing.
    fn check_glibc(&self, file: &Path) -> Result<()> {
        let symbols = output(Command::new("objdump").arg("-T").arg(file))?;
        let needed = newest_glibc(&symbols).with_context(|| format!("{}: no glibc symbols", file.display()))?;
        if needed > GLIBC {
            bail!("{} needs glibc {}.{}; at most {}.{}", file.display(), needed.0, needed.1, GLIBC.0, GLIBC.1);
        }
        Ok(())
    }
}

/// The newest version of glibc that a table of symbols names.
fn newest_glibc(symbols: &str) -> Option<(u32, u32)> {
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let version = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let (major, minor) = version.split_once('.')?;
        Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
    });
    versions.max()
}

/// The Python package carries the same binaries.
fn wheel(release: &Release, out: &Path) -> Result<Vec<PathBuf>> {
    let script = release.root.join("python/build.sh");
    if !script.is_file() {
        eprintln!("no python/build.sh: no wheel");
        return Ok(Vec::new());
    }
    let mut build = Command::new(&script);
    build.arg(out).env("SOURCE_DATE_EPOCH", release.epoch.to_string());
    if release.debug {
        build.arg("dev");
    } else {
        build.arg("release").env("CARGO_ENCODED_RUSTFLAGS", release.rustflags()?);
    }
    call(&mut build)?;
    let wheels = fs::read_dir(out)?.flatten().map(|entry| entry.path());
    Ok(wheels.filter(|path| path.extension().is_some_and(|extension| extension == "whl")).collect())
}

/// Runs a command that must end well.
fn call(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// The same, for what it prints.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_glibc_is_found_among_all_symbols() {
        let symbols = "0 DF *UND* 0 (GLIBC_2.2.5) read\n0 DF *UND* 0 (GLIBC_2.34) dlsym\n0 DF *UND* (GLIBC_2.9) x\n";
        assert_eq!(newest_glibc(symbols), Some((2, 34)));
        assert_eq!(newest_glibc("0 DF *UND* 0 (GCC_3.0) _Unwind_Resume"), None);
    }
}
