//! The files of a specification: those that containers get, and the specification itself. Each is replaced whole.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use emuv_state::slices::{Entry, Registry, SLICE_FILE, Slice};

use super::{
    nvidia::Nvidia,
    spec::{self, Device, Sources, Versioned},
};
use crate::run::hints;

/// The folder, beside the registry, of the files that containers get.
const FOLDER: &str = "cdi";

/// What specifications are made from, besides the slices.
#[derive(Debug)]
pub struct Store {
    /// emuV's library.
    pub shim: PathBuf,
    /// The simulated GPU, if it is installed.
    pub simgpu: Option<PathBuf>,
    /// The real ones.
    pub nvidia: Nvidia,
    /// Frameworks are asked to allocate tensor by tensor.
    pub hints: bool,
}

/// A specification that has been made.
#[derive(Debug)]
pub struct Made {
    /// The file.
    pub text: String,
    /// The slices that are not in it, and why.
    pub left_out: Vec<(String, String)>,
}

impl Store {
    /// The specification of these slices. The files that it refers to are there when this returns.
    ///
    /// # Errors
    /// One line: such a file cannot be written.
    pub fn make(&self, registry: &Registry, entries: &[Entry]) -> Result<Made, String> {
        let folder = registry.dir().with_file_name(FOLDER);
        let preload = folder.join("ld.so.preload");
        let write = |path: &Path, text: String| {
            replace(path, text.as_bytes()).map_err(|error| format!("{}: {error}", path.display()))
        };
        write(&preload, spec::preload_line())?;
        let slice_files: Vec<_> = entries.iter().map(|entry| folder.join(&entry.slice.name).join(SLICE_FILE)).collect();
        let (mut devices, mut left_out) = (Vec::new(), Vec::new());
        for (Entry { slice, dir }, slice_file) in entries.iter().zip(&slice_files) {
            write(slice_file, spec::slice_line(&slice.name))?;
            match self.gpu(slice) {
                Ok((simgpu, nvidia)) => devices.push(Device { slice, dir, slice_file, simgpu, nvidia }),
                Err(why) => left_out.push((slice.name.clone(), why)),
            }
        }
        // What containers have mounted stays theirs when it goes here.
        for old in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if old.path().is_dir() && entries.iter().all(|entry| *entry.slice.name != *old.file_name()) {
                let _ = fs::remove_dir_all(old.path());
            }
        }
        let hints = if self.hints { hints::changes(|_| None) } else { Vec::new() };
        let hints = hints.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?.to_str()?)));
        let hints: Vec<_> = hints.collect();
        let spec = spec::spec(&Sources { shim: &self.shim, preload: &preload, hints: &hints }, &devices);
        Ok(Made { text: format!("{spec:#}\n"), left_out })
    }

    /// Where a slice's GPU comes from: the simulator, or what the toolkit says, if that is to be taken in.
    fn gpu(&self, slice: &Slice) -> Result<(Option<&Path>, Option<Versioned>), String> {
        if slice.sim.is_none() {
            let mut all: Option<Versioned> = None;
            for gpu in slice.gpus() {
                let Some((edits, version)) = self.nvidia.edits(&gpu.uuid)? else { break };
                all = Some(match all {
                    Some((mut before, needed)) => {
                        spec::unite(&mut before, &edits);
                        (before, spec::newer(needed, version))
                    }
                    None => (edits, version),
                });
            }
            return Ok((None, all));
        }
        let simgpu = self.simgpu.as_deref().ok_or("its GPU is simulated, and libemuv_simgpu.so is not installed")?;
        Ok((Some(simgpu), None))
    }
}

/// Writes a file for everybody to read, with its folder, unless it says this already: whoever reads it meanwhile reads the
/// old one or the new one.
///
/// # Errors
/// The system's own.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|there| there == content) {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    // Not a name that engines would read.
    name.push(format!(".new-{}", std::process::id()));
    let beside = folder.join(name);
    let written = (|| {
        let mut file = File::create(&beside)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(content)?;
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_one_that_says_the_same_stays() {
        use std::os::unix::fs::MetadataExt;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b.json");
        replace(&path, b"one").unwrap();
        let first = fs::metadata(&path).unwrap();
        assert_eq!(first.mode() & 0o777, 0o644);
        replace(&path, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), first.ino());
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }
}
