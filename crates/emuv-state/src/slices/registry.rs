//! Where slices are kept, and which registry counts for whom.
//!
//! The registry of the machine is `/run/emuv/vgpu`, root's. Where it exists it decides for everybody: another user's
//! `EMUV_STATE_DIR` is looked at only if what it names is root's as well. Otherwise a program could name a slice of its
//! own making by a variable. Where there is none, users have registries of their own, to divide what they have.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{Slice, file_account::read_definition, valid_name};
use crate::env;

/// The folder of the registry in a state directory.
const FOLDER: &str = "vgpu";
/// The state directory of the machine.
pub(super) const SYSTEM: &str = "/run/emuv";
pub(super) const DEFINITION: &str = "slice";
pub(super) const USE: &str = "use";
pub(super) const VRAM: &str = "vram";
pub(super) const RAM: &str = "ram";
pub(super) const PROCESSES: &str = "processes";
pub(super) const TURNS: &str = "turns";

/// The name of a file that there is one of for each GPU of a slice, counted from 0.
pub(super) fn of_gpu(name: &str, gpu: usize) -> String {
    if gpu == 0 { name.to_owned() } else { format!("{name}-{}", gpu + 1) }
}

/// In a folder with libraries in it, beside the libraries' own folder: says which slice programs that load them are in,
/// by the path of its folder.
pub const SLICE_FILE: &str = "emuv-slice";

const OTHERS_MAY_WRITE: u32 = 0o022;

/// A slice, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its folder.
    pub dir: PathBuf,
    /// Its definition.
    pub slice: Slice,
}

/// Why something cannot be done with a slice. Each reads as one line.
#[derive(Debug, thiserror::Error)]
pub enum SliceError {
    /// It is not a name.
    #[error("'{0}' is no name of a slice: up to 63 letters, digits, '-', '_' or '.', a letter or digit first")]
    BadName(String),
    /// There is no such slice.
    #[error("there is no slice '{name}'{}", places(.looked_in))]
    NoSuch {
        /// What was asked for.
        name: String,
        /// The registries looked into.
        looked_in: Vec<PathBuf>,
    },
    /// There is one of that name.
    #[error("there is a slice '{0}' already; 'emuv vgpu resize' changes it, 'emuv vgpu delete' removes it")]
    Exists(String),
    /// There is one of that number.
    #[error("instance {instance} is the slice '{name}' already")]
    InstanceTaken {
        /// The number.
        instance: u32,
        /// Whose it is.
        name: String,
    },
    /// It is in use.
    #[error("'{name}' is in use by {processes} processes; stop them first, or see --force")]
    InUse {
        /// The slice.
        name: String,
        /// How many there are.
        processes: usize,
    },
    /// It is switched off.
    #[error("'{0}' is disabled; 'emuv vgpu enable {0}' allows programs in it again")]
    Disabled(String),
    /// It is somebody else's.
    #[error("this user may not use the slice '{0}'; its administrator says who may (emuv vgpu create --user, --group)")]
    NotYours(String),
    /// The kernel module keeps its account, and there is no node of it.
    #[error(
        "the kernel module keeps the account of '{name}', and {} is not its node: {why}; load emuv.ko, then \
         'emuv vgpu enable {name}' (in a container: give it the device emuv.dev/vgpu={name})",
        .node.display()
    )]
    NoNode {
        /// The slice.
        name: String,
        /// Where the node would be.
        node: PathBuf,
        /// What is there.
        why: String,
    },
    /// The kernel module has refused something.
    #[error("the kernel module refuses {} {what}: {why}; the kernel's log says more (dmesg)", .path.display())]
    Module {
        /// Which of its files.
        path: PathBuf,
        /// What was written there.
        what: String,
        /// The system's own words.
        why: io::Error,
    },
    /// The shares of a GPU's slices exceed what it has.
    #[error(
        "{gpu} has {has} of VRAM, of which other slices have {given}: {wanted} more is not there. With --overcommit it \
         is promised all the same, and programs that want their shares at one time are refused memory"
    )]
    Overcommitted {
        /// The GPU.
        gpu: String,
        /// All its VRAM.
        has: emuv_policy::Bytes,
        /// What the others have.
        given: emuv_policy::Bytes,
        /// What is asked for.
        wanted: emuv_policy::Bytes,
    },
    /// A slice of several GPUs cannot have this.
    #[error("{key}: {why}")]
    NotForSeveral {
        /// The key, as in a definition.
        key: &'static str,
        /// Why not.
        why: String,
    },
    /// A definition that cannot be read, or the system's own words.
    #[error("{}: {}", .0.display(), .1)]
    System(PathBuf, io::Error),
    /// The state directory is not usable.
    #[error("{0}")]
    StateDir(String),
}

fn places(looked_in: &[PathBuf]) -> String {
    let places: Vec<_> = looked_in.iter().map(|path| path.display().to_string()).collect();
    if places.is_empty() { "; none has been made".to_owned() } else { format!(" in {}", places.join(" or ")) }
}

/// A folder of slices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    /// The registry of a state directory.
    pub fn of(state_dir: &Path) -> Self {
        Self { dir: state_dir.join(FOLDER) }
    }

    /// The registry that a slice is in.
    pub(super) fn around(entry: &Entry) -> Self {
        Self { dir: entry.dir.parent().map_or_else(|| entry.dir.clone(), Path::to_owned) }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The registries that count for this user, the first one most. `get` looks a variable up.
    pub fn for_use(get: impl Fn(&str) -> Option<String>) -> Vec<Self> {
        Self::counting(get, Self::of(Path::new(SYSTEM)), rustix::process::geteuid().as_raw())
    }

    fn counting(get: impl Fn(&str) -> Option<String>, system: Self, uid: u32) -> Vec<Self> {
        let path = |name: &str| get(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let given = path(env::STATE_DIR).map(|path| Self::of(&path));
        let governed = uid != 0 && system.is_roots();
        let own = [path("XDG_RUNTIME_DIR").map(|path| path.join("emuv")), Some(format!("/tmp/emuv-{uid}").into())];
        let own = own.into_iter().flatten().map(|path| Self::of(&path));
        let chosen: Vec<Self> = match given {
            Some(given) if !governed => vec![given],
            given if governed => given.filter(|given| given.owner() == Some(0)).into_iter().chain([system]).collect(),
            _ if uid == 0 => vec![system],
            _ => own.chain([system]).collect(),
        };
        chosen.into_iter().filter(|registry| registry.owner().is_some()).collect()
    }

    /// Whether it is there, and root's.
    pub(super) fn is_roots(&self) -> bool {
        self.owner() == Some(0)
    }

    /// Whose it is; `None` where it is not there, or where others may write.
    fn owner(&self) -> Option<u32> {
        let data = fs::symlink_metadata(&self.dir).ok()?;
        (data.is_dir() && data.mode() & OTHERS_MAY_WRITE == 0).then(|| data.uid())
    }

    /// The slice of that name, in the first registry that has one. `get` looks a variable up.
    ///
    /// # Errors
    /// There is none, or its definition cannot be read.
    pub fn find(get: impl Fn(&str) -> Option<String>, name: &str) -> Result<Entry, SliceError> {
        let registries = Self::for_use(get);
        for registry in &registries {
            match registry.entry(name) {
                Err(SliceError::NoSuch { .. }) => {}
                found => return found,
            }
        }
        Err(SliceError::NoSuch { name: name.to_owned(), looked_in: registries.into_iter().map(|r| r.dir).collect() })
    }

    /// The slice of that name.
    ///
    /// # Errors
    /// There is none, or its definition cannot be read.
    pub fn entry(&self, name: &str) -> Result<Entry, SliceError> {
        if !valid_name(name) {
            return Err(SliceError::BadName(name.to_owned()));
        }
        let dir = self.dir.join(name);
        match read_definition(&dir) {
            Ok(slice) if slice.name == name => Ok(Entry { dir, slice }),
            Ok(slice) => {
                let words = format!("it says that it is '{}'", slice.name);
                Err(SliceError::System(dir.join(DEFINITION), io::Error::new(io::ErrorKind::InvalidData, words)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(SliceError::NoSuch { name: name.to_owned(), looked_in: vec![self.dir.clone()] })
            }
            Err(error) => Err(SliceError::System(dir.join(DEFINITION), error)),
        }
    }

    /// The slice in this folder.
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub fn entry_at(dir: &Path) -> Result<Entry, SliceError> {
        let place = dir.parent().zip(dir.file_name().and_then(|name| name.to_str()));
        let (parent, name) = place.ok_or_else(|| SliceError::BadName(dir.display().to_string()))?;
        Self { dir: parent.to_owned() }.entry(name)
    }

    /// All slices by number, and what could not be read.
    pub fn entries(&self) -> (Vec<Entry>, Vec<SliceError>) {
        let (mut entries, mut problems) = (Vec::new(), Vec::new());
        let names = match fs::read_dir(&self.dir) {
            Ok(found) => found.flatten().filter_map(|entry| entry.file_name().into_string().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return (entries, problems),
            Err(error) => {
                problems.push(SliceError::System(self.dir.clone(), error));
                return (entries, problems);
            }
        };
        for name in names.filter(|name| valid_name(name) && self.dir.join(name).is_dir()) {
            match self.entry(&name) {
                Ok(entry) => entries.push(entry),
                // Removed meanwhile.
                Err(SliceError::NoSuch { .. }) => {}
                Err(error) => problems.push(error),
            }
        }
        entries.sort_by_key(|entry| entry.slice.instance);
        (entries, problems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with_registry() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(FOLDER)).unwrap();
        folder
    }

    fn dirs(found: Vec<Registry>) -> Vec<PathBuf> {
        found.into_iter().map(|registry| registry.dir.parent().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_given_directory_counts_alone_where_the_machine_has_no_registry() {
        let (given, runtime) = (folder_with_registry(), folder_with_registry());
        let get = |name: &str| match name {
            env::STATE_DIR => Some(given.path().display().to_string()),
            "XDG_RUNTIME_DIR" => Some(runtime.path().display().to_string()),
            _ => None,
        };
        let none = Registry::of(Path::new("/nonexistent"));
        assert_eq!(dirs(Registry::counting(get, none.clone(), 1000)), [given.path()]);
        assert_eq!(dirs(Registry::counting(get, none, 0)), [given.path()]);
    }

    #[test]
    fn where_the_machine_has_one_a_users_variables_lead_nowhere_else() {
        let me = rustix::process::geteuid().as_raw();
        let (given, system) = (folder_with_registry(), folder_with_registry());
        let get = |name: &str| (name == env::STATE_DIR).then(|| given.path().display().to_string());
        if me != 0 {
            // Only root can make what counts as the machine's.
            return;
        }
        std::os::unix::fs::chown(given.path().join(FOLDER), Some(1000), None).unwrap();
        let registry = Registry::of(system.path());
        assert_eq!(dirs(Registry::counting(get, registry.clone(), 1000)), [system.path()]);
        assert_eq!(dirs(Registry::counting(get, registry, 0)), [given.path()], "root decides where");
    }

    #[test]
    fn what_others_may_write_to_does_not_count() {
        use std::os::unix::fs::PermissionsExt;
        let given = folder_with_registry();
        fs::set_permissions(given.path().join(FOLDER), fs::Permissions::from_mode(0o777)).unwrap();
        let get = |name: &str| (name == env::STATE_DIR).then(|| given.path().display().to_string());
        assert!(Registry::counting(get, Registry::of(Path::new("/nonexistent")), 1000).is_empty());
    }

    #[test]
    fn a_slice_that_is_not_there_is_said_so_with_the_places() {
        let given = folder_with_registry();
        let registry = Registry::of(given.path());
        let error = registry.entry("ml-1").unwrap_err().to_string();
        assert!(error.starts_with("there is no slice 'ml-1' in /") && error.ends_with("/vgpu"), "{error}");
        assert!(matches!(registry.entry("../x"), Err(SliceError::BadName(_))));
    }
}
