//! Limits that the system itself keeps, where it can: of the VRAM that the processes of a control group take, whatever
//! they load or do not load.
//!
//! There are two keepers: the kernel's `dmem` controller, if the GPU's driver registers its memory there (a region whose
//! name has the GPU's PCI address in it), and NVIDIA's driver itself (`nvmlDeviceSetMemoryLimits`). Both limit a control
//! group; a slice of a real GPU that root makes gets one, and `emuv run --vgpu` moves into it where it may.
//!
//! They count all VRAM, also what contexts take before a program allocates anything. So the limit that they keep is the
//! slice's share and some more: emuV keeps the share itself.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use emuv_policy::Bytes;
use emuv_state::slices::Slice;

use crate::{gpus::DriverLimits, libs::RealLibraries};

const MOUNT: &str = "/sys/fs/cgroup";
const FOLDER: &str = "emuv";
const PROCESSES: &str = "cgroup.procs";

/// What contexts may take beside the share: at least this, and at least this part of the share.
const LEAST_BESIDE: Bytes = Bytes::gib(1);
const PART_BESIDE: u64 = 8;

/// Who keeps a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keeper {
    /// The kernel, for this region.
    Dmem(String),
    /// NVIDIA's driver.
    Driver,
}

impl std::fmt::Display for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dmem(region) => write!(f, "the kernel's dmem control groups ({region})"),
            Self::Driver => f.write_str("NVIDIA's driver, by control group"),
        }
    }
}

/// The control groups of version 2.
#[derive(Debug)]
pub struct Groups(PathBuf);

impl Groups {
    /// Those of the system, if it has them.
    pub fn of_system() -> Option<Self> {
        Self::at(Path::new(MOUNT))
    }

    fn at(root: &Path) -> Option<Self> {
        root.join("cgroup.controllers").is_file().then(|| Self(root.to_owned()))
    }

    /// Who would keep a limit of this GPU's memory.
    pub fn keeper(&self, real: &RealLibraries, uuid: &str) -> Option<Keeper> {
        let driver = DriverLimits::of(real, uuid)?;
        let region = driver.pci_address.as_deref().and_then(|address| self.region(address));
        region.map(Keeper::Dmem).or_else(|| driver.can_limit(&self.0).then_some(Keeper::Driver))
    }

    /// The dmem region of a GPU, by its PCI address such as `0000:01:00.0`.
    fn region(&self, address: &str) -> Option<String> {
        let capacity = fs::read_to_string(self.0.join("dmem.capacity")).ok()?;
        let regions = capacity.lines().filter_map(|line| line.split_whitespace().next());
        regions.map(str::to_owned).find(|region| region.to_ascii_lowercase().contains(&address.to_ascii_lowercase()))
    }

    fn group(&self, name: &str) -> PathBuf {
        self.0.join(FOLDER).join(name)
    }

    /// Makes the slice's group, or finds it, and has its limit kept.
    ///
    /// # Errors
    /// One line.
    pub fn limit(&self, keeper: &Keeper, real: &RealLibraries, slice: &Slice) -> Result<(), String> {
        let (all, group) = (self.0.join(FOLDER), self.group(&slice.name));
        let most = slice.vram.saturating_add(LEAST_BESIDE.max(Bytes(slice.vram.0 / PART_BESIDE)));
        let made = (|| {
            make(&all)?;
            if let Keeper::Dmem(_) = keeper {
                for above in [&self.0, &all] {
                    fs::write(above.join("cgroup.subtree_control"), "+dmem")?;
                }
            }
            make(&group)?;
            match keeper {
                Keeper::Dmem(region) => fs::write(group.join("dmem.max"), format!("{region} {}\n", most.0)),
                Keeper::Driver => Ok(()),
            }
        })();
        made.map_err(|error: io::Error| format!("{}: {error}", group.display()))?;
        if *keeper == Keeper::Driver {
            let driver = DriverLimits::of(real, &slice.gpu.uuid).ok_or("NVML does not answer")?;
            driver.limit(&group, most)?;
        }
        Ok(())
    }

    /// Removes the slice's group. One with processes in it stays.
    pub fn forget(&self, name: &str) {
        let _ = fs::remove_dir(self.group(name));
    }

    /// Moves this process, and so what it starts, into the slice's group. False: there is none.
    ///
    /// # Errors
    /// The system's own.
    pub fn enter(&self, name: &str) -> io::Result<bool> {
        let group = self.group(name);
        if !group.is_dir() {
            return Ok(false);
        }
        fs::write(group.join(PROCESSES), "0").map(|()| true)
    }
}

fn make(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups() -> (tempfile::TempDir, Groups) {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu memory dmem\n").unwrap();
        let capacity = "drm/0000:03:00.0/vram0 8514437120\ndrm/0000:41:00.0/vram0 25769803776\n";
        fs::write(root.path().join("dmem.capacity"), capacity).unwrap();
        let groups = Groups::at(root.path()).unwrap();
        (root, groups)
    }

    fn slice() -> Slice {
        Slice { vram: Bytes::gib(16), ..crate::cdi::spec::tests::slice("ml-1") }
    }

    #[test]
    fn the_region_is_the_one_with_the_gpus_address() {
        let (_root, groups) = groups();
        assert_eq!(groups.region("0000:41:00.0").as_deref(), Some("drm/0000:41:00.0/vram0"));
        assert_eq!(groups.region("0000:42:00.0"), None);
    }

    #[test]
    fn a_limit_is_the_share_and_what_contexts_take_beside_it() {
        let (root, groups) = groups();
        let real = RealLibraries { cuda: "/nonexistent".into(), nvml: None };
        let keeper = Keeper::Dmem("drm/0000:41:00.0/vram0".to_owned());
        groups.limit(&keeper, &real, &slice()).unwrap();
        let max = fs::read_to_string(root.path().join("emuv/ml-1/dmem.max")).unwrap();
        assert_eq!(max, format!("drm/0000:41:00.0/vram0 {}\n", 18_u64 << 30));
        assert_eq!(fs::read_to_string(root.path().join("emuv/cgroup.subtree_control")).unwrap(), "+dmem");
        assert!(groups.enter("ml-1").unwrap());
        assert_eq!(fs::read_to_string(root.path().join("emuv/ml-1/cgroup.procs")).unwrap(), "0");
    }

    #[test]
    fn without_a_group_there_is_nothing_to_enter() {
        let (root, groups) = groups();
        assert!(!groups.enter("ml-1").unwrap());
        assert!(Groups::at(&root.path().join("missing")).is_none());
    }
}
