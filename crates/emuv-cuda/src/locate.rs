//! Finds the real driver libraries, past emuV's own that carry the same names.
//!
//! # Safety
//! The one unsafe step is `dlopen`, which runs the library's constructors; the libraries opened here are
//! the ones that the program would have loaded itself.
#![allow(unsafe_code)]

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Which of the two driver libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// `libcuda.so.1`
    Cuda,
    /// `libnvidia-ml.so.1`
    Nvml,
}

impl Which {
    /// The name that programs load it by.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Cuda => "libcuda.so.1",
            Self::Nvml => "libnvidia-ml.so.1",
        }
    }
}

/// Why a driver library could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// No file of that name in any of the places searched.
    #[error("no {} found (searched LD_LIBRARY_PATH, the loader's cache and the usual folders)", .0.file_name())]
    Missing(Which),
    /// The dynamic loader refused the file.
    #[error("cannot load {path}: {words}")]
    Load {
        /// The file.
        path: PathBuf,
        /// The dynamic loader's message.
        words: String,
    },
}

/// Where distributions and container runtimes put the driver.
const USUAL_FOLDERS: [&str; 8] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
    "/usr/lib/wsl/lib",
    "/run/opengl-driver/lib",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
];

/// A search for the real libraries. All inputs are arguments, so that it can be tested.
#[derive(Debug, Clone, Default)]
pub struct Locator {
    /// The program's own `LD_LIBRARY_PATH`.
    pub library_path: Option<String>,
    /// What `ldconfig -p` printed, where the caller asked it.
    pub loader_cache: Option<String>,
    /// Files that are emuV's own (compared by device and inode, so symbolic links do not hide them).
    pub own_files: Vec<PathBuf>,
}

impl Locator {
    /// The absolute path of the real library.
    ///
    /// # Errors
    /// [`LocateError::Missing`] if there is none.
    pub fn find(&self, which: Which) -> Result<PathBuf, LocateError> {
        let own: Vec<(u64, u64)> = self.own_files.iter().filter_map(|path| identity(path)).collect();
        self.candidates(which)
            .into_iter()
            .find(|path| identity(path).is_some_and(|id| !own.contains(&id)))
            .ok_or(LocateError::Missing(which))
    }

    /// Where to look, in order.
    pub fn candidates(&self, which: Which) -> Vec<PathBuf> {
        let name = which.file_name();
        let path = self.library_path.as_deref().unwrap_or_default();
        let from_path =
            path.split(':').filter(|folder| folder.starts_with('/')).map(|folder| Path::new(folder).join(name));
        // A line of the cache reads `libcuda.so.1 (libc6,x86-64) => /usr/lib/…/libcuda.so.1`.
        let cache = self.loader_cache.as_deref().unwrap_or_default();
        let from_cache = cache
            .lines()
            .filter(|line| line.trim_start().split(' ').next() == Some(name) && line.contains("x86-64"))
            .filter_map(|line| line.split("=> ").nth(1))
            .map(|path| PathBuf::from(path.trim()));
        let usual = USUAL_FOLDERS.iter().map(|folder| Path::new(folder).join(name));
        from_path.chain(from_cache).chain(usual).collect()
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let data = fs::metadata(path).ok()?;
    data.is_file().then(|| (data.dev(), data.ino()))
}

/// Opens a library for good: it is never unloaded.
pub(crate) fn open(path: &Path) -> Result<libloading::os::unix::Library, LocateError> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    // SAFETY: see the module's head.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|error| LocateError::Load { path: path.to_owned(), words: error.to_string() })?;
    // Function pointers into it are kept for the process's life, so a second reference is leaked.
    // SAFETY: as above; the file is already loaded.
    if let Ok(again) = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) } {
        std::mem::forget(again);
    }
    Ok(library)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_library_is_found_behind_our_own_of_the_same_name() {
        let root = tempfile::tempdir().unwrap();
        let (ours, real) = (root.path().join("ours"), root.path().join("real"));
        for folder in [&ours, &real] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(root.path().join("libemuv_shim.so"), b"shim").unwrap();
        std::os::unix::fs::symlink(root.path().join("libemuv_shim.so"), ours.join("libcuda.so.1")).unwrap();
        fs::write(real.join("libcuda.so.1"), b"driver").unwrap();
        let locator = Locator {
            library_path: Some(format!("{}:{}", ours.display(), real.display())),
            loader_cache: None,
            own_files: vec![root.path().join("libemuv_shim.so")],
        };
        assert_eq!(locator.find(Which::Cuda).unwrap(), real.join("libcuda.so.1"));
    }

    #[test]
    fn the_loader_cache_is_read_for_this_architecture_only() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("libnvidia-ml.so.1");
        fs::write(&file, b"nvml").unwrap();
        let cache = format!(
            "\tlibnvidia-ml.so.1 (libc6) => /nowhere/libnvidia-ml.so.1\n\tlibnvidia-ml.so.1 (libc6,x86-64) => {}\n",
            file.display()
        );
        let locator = Locator { loader_cache: Some(cache), ..Locator::default() };
        assert_eq!(locator.find(Which::Nvml).unwrap(), file);
    }
}
