//! Where the libraries are: emuV's own, and the real driver's.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use emuv_cuda::{LocateError, Locator, Which};
use emuv_state::env as variables;

const SHIM: &str = "libemuv_shim.so";
const SIMGPU: &str = "libemuv_simgpu.so";

/// The interposed library.
///
/// # Errors
/// It is in none of the places where it could be; the message lists them.
pub fn shim_path() -> Result<PathBuf> {
    find_own(SHIM)
}

/// The simulated GPU.
///
/// # Errors
/// As [`shim_path`].
pub fn simgpu_path() -> Result<PathBuf> {
    find_own(SIMGPU)
}

fn find_own(name: &str) -> Result<PathBuf> {
    let executable = env::current_exe().context("cannot tell where emuv itself is")?;
    let folders = own_folders(env::var_os(variables::LIB_DIR).map(PathBuf::from), &executable);
    let found = folders.iter().find_map(|folder| folder.join(name).canonicalize().ok());
    found.with_context(|| {
        let searched: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        format!("no {name} in {}; set {} to its folder", searched.join(", "), variables::LIB_DIR)
    })
}

/// In order. `deps` is where cargo leaves the libraries; the copies beside the binary may be older there.
fn own_folders(given: Option<PathBuf>, executable: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<_> = given.into_iter().filter(|folder| !folder.as_os_str().is_empty()).collect();
    if let Some(folder) = executable.parent() {
        folders.extend([folder.join("deps"), folder.to_owned()]);
        folders.extend(folder.parent().map(|above| above.join("lib/emuv")));
    }
    folders
}

/// The libraries that the program would use without emuV, as absolute paths without links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealLibraries {
    /// The driver.
    pub cuda: PathBuf,
    /// NVML; not every container has it.
    pub nvml: Option<PathBuf>,
}

impl RealLibraries {
    /// The simulated GPU is both.
    ///
    /// # Errors
    /// As [`simgpu_path`].
    pub fn simulated() -> Result<Self> {
        let path = simgpu_path()?;
        Ok(Self { cuda: path.clone(), nvml: Some(path) })
    }

    /// Finds them as the dynamic loader would, past emuV's own.
    ///
    /// # Errors
    /// There is no driver.
    pub fn find(shim: Option<&Path>) -> Result<Self, LocateError> {
        // Under another emuv run, the folder of the interposed library comes first in every search.
        let inherited = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        if let Some(cuda) = inherited(variables::REAL_CUDA) {
            return Ok(Self { cuda, nvml: inherited(variables::REAL_NVML) });
        }
        let locator = Locator {
            library_path: env::var_os("LD_LIBRARY_PATH").map(|path| path.to_string_lossy().into_owned()),
            loader_cache: loader_cache(),
            own_files: shim.map(Path::to_owned).into_iter().collect(),
        };
        let plain = |path: PathBuf| path.canonicalize().unwrap_or(path);
        Ok(Self { cuda: plain(locator.find(Which::Cuda)?), nvml: locator.find(Which::Nvml).ok().map(plain) })
    }
}

/// What `ldconfig -p` prints; it is often not on the path of ordinary users.
fn loader_cache() -> Option<String> {
    ["/sbin/ldconfig", "/usr/sbin/ldconfig", "ldconfig"].into_iter().find_map(|program| {
        let output = Command::new(program).arg("-p").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_given_comes_first_then_those_around_the_binary() {
        let folders = own_folders(Some("/opt/x".into()), Path::new("/usr/bin/emuv"));
        let expected = ["/opt/x", "/usr/bin/deps", "/usr/bin", "/usr/lib/emuv"];
        assert_eq!(folders, expected.map(PathBuf::from));
        assert_eq!(own_folders(None, Path::new("/usr/bin/emuv")).len(), 3);
    }
}
