//! Whether `emuv run` really puts emuV in the driver's place: it starts this program again as its child,
//! which looks whose library `libcuda.so.1` is.
//!
//! # Safety
//! The one unsafe step calls `emuv_version`, a function that only emuV's library has: it takes nothing and
//! returns a NUL-terminated text that lives as long as the process.
#![allow(unsafe_code)]

use std::{
    env,
    ffi::{CStr, c_char},
    io::Write,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, anyhow, bail};
use emuv_cuda::Driver;

use super::check::Check;

/// What the child prints before the version.
const MARK: &str = "emuV ";

/// The child's part: prints the version of emuV that answers to the driver's name, or fails.
pub fn report() -> Result<ExitCode> {
    // By name on purpose: whatever library the environment gives.
    let driver = Driver::open(Path::new("libcuda.so.1"))?;
    let address = driver.address(c"emuv_version").context("libcuda.so.1 is not emuV's library")?;
    // SAFETY: see the module's head; data pointers and function pointers have the same size here.
    let version = unsafe { std::mem::transmute::<*mut _, extern "C" fn() -> *const c_char>(address.as_ptr()) }();
    if version.is_null() {
        bail!("emuv_version returned nothing");
    }
    // SAFETY: not null, hence a NUL-terminated text of the library's.
    let version = unsafe { CStr::from_ptr(version) }.to_string_lossy();
    writeln!(std::io::stdout().lock(), "{MARK}{version}")?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the child and judges what it says.
pub fn check(sim: Option<&str>) -> Check {
    const ADVICE: &str =
        "run `emuv run -- true` to see the reason; a setuid program or a static one cannot be preloaded";
    match ask(sim) {
        Ok(version) if version.contains(env!("CARGO_PKG_VERSION")) => {
            Check::ok("preload", format!("a program started by emuv run gets emuV {version}"))
        }
        Ok(version) => Check::warn(
            "preload",
            format!("the library is emuV {version}, this program {}", env!("CARGO_PKG_VERSION")),
            "install both from the same release, or set EMUV_LIB_DIR to the folder of the right library",
        ),
        Err(error) => Check::fail("preload", format!("{error:#}"), ADVICE),
    }
}

fn ask(sim: Option<&str>) -> Result<String> {
    let own = env::current_exe().context("finding this program's own file")?;
    let mut command = Command::new(&own);
    command.args(["run", "--quiet", "--ram", "0"]);
    if let Some(sim) = sim {
        command.arg(format!("--sim={sim}"));
    }
    let output =
        command.arg("--").arg(&own).args(["doctor", "--preload-check"]).output().context("starting emuv run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().find_map(|line| line.strip_prefix(MARK));
    version.map(str::to_owned).ok_or_else(|| {
        let words = String::from_utf8_lossy(&output.stderr);
        anyhow!("{}", words.lines().next().unwrap_or("the child said nothing").to_owned())
    })
}
