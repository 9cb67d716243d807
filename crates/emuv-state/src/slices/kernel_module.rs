//! The kernel module as its administrator sees it: instances are made, changed and removed in configfs and sysfs.
//!
//! An instance is a slice's if it has the slice's name for its label (a directory in configfs: made here), or if it has no label
//! and the slice was made with its number (`emuv vgpu create --instance N`: module parameters made it). Its node belongs to the
//! slice's user. What is done twice is done once: a change that died is finished, or swept, by the next one.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use emuv_kernel_client::abi::MAX_INSTANCES;
use emuv_policy::Bytes;

use super::{Slice, SliceError, SliceUser, Usage, models};

const CONFIGFS: &str = "sys/kernel/config/emuv";
const SYSFS: &str = "sys/class/emuv";

/// For nobody but root, as the kernel makes them.
const NOBODYS: SliceUser = SliceUser { uid: 0, gid: None };

/// The module's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelModule {
    root: PathBuf,
}

/// An instance, as everybody may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelInstance {
    /// N of `/dev/emuvN`.
    pub number: u32,
    /// The slice that it was made for; empty if module parameters made it.
    pub label: String,
    /// Its shares.
    pub limits: (Bytes, Bytes),
    /// Open nodes, and exported buffers.
    pub holders: u32,
}

impl KernelModule {
    /// This system's.
    pub fn of_system() -> Self {
        Self { root: "/".into() }
    }

    /// Whether it is loaded, and can be told to make instances.
    pub fn is_loaded(&self) -> bool {
        self.root.join(CONFIGFS).is_dir()
    }

    /// The instances there are, by number.
    pub fn instances(&self) -> Vec<KernelInstance> {
        let folders = fs::read_dir(self.root.join(SYSFS)).into_iter().flatten().flatten();
        let number = |folder: fs::DirEntry| folder.file_name().to_str()?.strip_prefix("emuv")?.parse().ok();
        let mut found: Vec<_> = folders.filter_map(number).filter_map(|number| self.instance(number)).collect();
        found.sort_by_key(|instance| instance.number);
        found
    }

    /// The instance of that number.
    pub fn instance(&self, number: u32) -> Option<KernelInstance> {
        let size = |name: &str| self.figure(number, name).ok();
        Some(KernelInstance {
            number,
            label: self.attribute(number, "label").ok()?,
            limits: (Bytes(size("physical_bytes")?), Bytes(size("virtual_bytes")?)),
            holders: u32::try_from(size("holders")?).unwrap_or(u32::MAX),
        })
    }

    /// What is charged in an instance.
    ///
    /// # Errors
    /// The system's own: most often that it is not there.
    pub fn usage(&self, number: u32) -> io::Result<Usage> {
        let (vram, ram) = (self.figure(number, "physical_used_bytes")?, self.figure(number, "virtual_used_bytes")?);
        Ok(Usage { vram, ram, own_vram: 0, own_ram: 0 })
    }

    /// The number that a slice of this name would have with the module: what was asked for, else that of an instance that has its
    /// name already, else the lowest that `is_free` and the module has none of. `None`: it can have none, as the module has 64.
    ///
    /// # Errors
    /// The number that was asked for is somebody else's.
    pub(super) fn number_for(
        &self,
        name: &str,
        asked: Option<u32>,
        is_free: impl Fn(u32) -> bool,
    ) -> Result<Option<u32>, SliceError> {
        let instances = self.instances();
        let labelled = instances.iter().find(|instance| instance.label == name).map(|instance| instance.number);
        let of = |number: u32| instances.iter().find(|instance| instance.number == number);
        if let Some(number) = asked {
            return match of(number) {
                Some(other) if !other.label.is_empty() && other.label != name => {
                    Err(SliceError::InstanceTaken { instance: number, name: other.label.clone() })
                }
                _ => Ok(Some(number).filter(|number| *number < most())),
            };
        }
        let unused = (1..most()).find(|number| is_free(*number) && of(*number).is_none());
        Ok(labelled.filter(|number| *number > 0 && is_free(*number)).or(unused))
    }

    /// Sees to it that the slice has its instance, with its limits, and its node the slice's user.
    ///
    /// # Errors
    /// [`SliceError::Module`]; what was made is gone again, limits are as before.
    pub(super) fn ensure(&self, slice: &Slice) -> Result<(), SliceError> {
        match self.instance(slice.instance) {
            Some(there) if there.label == slice.name || there.label.is_empty() => self.limit(slice, &there)?,
            Some(other) => {
                return Err(SliceError::InstanceTaken { instance: slice.instance, name: other.label });
            }
            None => self.make(slice).inspect_err(|_| self.remove_folder(&slice.name))?,
        }
        self.give(slice.instance, slice.user)
    }

    fn make(&self, slice: &Slice) -> Result<(), SliceError> {
        let folder = self.root.join(CONFIGFS).join(&slice.name);
        match fs::create_dir(&folder) {
            Ok(()) => {}
            // One that a change left that died.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => write(&folder.join("enable"), "0")?,
            Err(why) => return Err(SliceError::Module { path: folder, what: "as a directory".to_owned(), why }),
        }
        for (name, value) in [
            ("gpu_model", model(slice).to_owned()),
            ("physical_vram_bytes", slice.vram.0.to_string()),
            ("virtual_vram_bytes", slice.ram.0.to_string()),
            ("instance_id", slice.instance.to_string()),
            ("enable", "1".to_owned()),
        ] {
            write(&folder.join(name), &value)?;
        }
        Ok(())
    }

    fn limit(&self, slice: &Slice, before: &KernelInstance) -> Result<(), SliceError> {
        let set = |name: &str, bytes: Bytes| {
            let path = self.root.join(SYSFS).join(format!("emuv{}", slice.instance)).join(name);
            write(&path, &bytes.0.to_string())
        };
        if before.limits.0 != slice.vram {
            set("physical_bytes", slice.vram)?;
        }
        if before.limits.1 != slice.ram {
            set("virtual_bytes", slice.ram).inspect_err(|_| drop(set("physical_bytes", before.limits.0)))?;
        }
        Ok(())
    }

    fn give(&self, number: u32, user: SliceUser) -> Result<(), SliceError> {
        let node = self.root.join(format!("dev/emuv{number}"));
        let mode = if user.gid.is_some() { 0o660 } else { 0o600 };
        chown(&node, Some(user.uid), user.gid.or(Some(0)))
            .and_then(|()| fs::set_permissions(&node, fs::Permissions::from_mode(mode)))
            .map_err(|error| SliceError::System(node, error))
    }

    /// The slice is gone, and so is its instance; one that module parameters made is nobody's again. Whoever has it open keeps what
    /// they have.
    pub(super) fn remove(&self, name: &str, number: Option<u32>) {
        self.remove_folder(name);
        if let Some(unlabelled) = number.filter(|number| self.instance(*number).is_some_and(|i| i.label.is_empty())) {
            let _ = self.give(unlabelled, NOBODYS);
        }
    }

    fn remove_folder(&self, name: &str) {
        let _ = fs::remove_dir(self.root.join(CONFIGFS).join(name));
    }

    fn attribute(&self, number: u32, name: &str) -> io::Result<String> {
        let path = self.root.join(SYSFS).join(format!("emuv{number}")).join(name);
        Ok(fs::read_to_string(path)?.trim_end().to_owned())
    }

    fn figure(&self, number: u32, name: &str) -> io::Result<u64> {
        let text = self.attribute(number, name)?;
        text.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("'{text}' is not a number")))
    }
}

fn most() -> u32 {
    u32::try_from(MAX_INSTANCES).unwrap_or(u32::MAX)
}

fn write(path: &Path, value: &str) -> Result<(), SliceError> {
    let failed = |why| SliceError::Module { path: path.to_owned(), what: format!("as '{value}'"), why };
    fs::write(path, format!("{value}\n")).map_err(failed)
}

/// The model that the instance is labelled with: the slice's own label, or the card's. A product's name goes on behind the model's (`NVIDIA H100
/// 80GB HBM3`). A card that is in no table, or has more than the table says, is one of another model.
fn model(slice: &Slice) -> &'static str {
    let fits = |model: &&models::Model| slice.vram <= models::most_vram(model);
    let labelled = slice.gpu_model.as_deref().and_then(models::find).filter(fits);
    let named = || models::find(&slice.gpu.name).filter(fits);
    let begins = || {
        let same = |model: &&models::Model| slice.gpu.name.starts_with(model.name);
        models::MODELS.iter().filter(same).filter(fits).max_by_key(|model| model.name.len())
    };
    labelled.or_else(named).or_else(begins).map_or(models::OTHER, |model| model.label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::definition::tests::slice;

    /// Plain files in the place of the module's: what is written there is there.
    fn module() -> (tempfile::TempDir, KernelModule) {
        let root = tempfile::tempdir().unwrap();
        for folder in [CONFIGFS, SYSFS, "dev"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        let module = KernelModule { root: root.path().to_owned() };
        (root, module)
    }

    fn instance(module: &KernelModule, number: u32, label: &str) {
        let folder = module.root.join(SYSFS).join(format!("emuv{number}"));
        fs::create_dir(&folder).unwrap();
        for (name, value) in [
            ("label", label),
            ("physical_bytes", "4096"),
            ("virtual_bytes", "0"),
            ("holders", "2"),
            ("physical_used_bytes", "5"),
            ("virtual_used_bytes", "6"),
        ] {
            fs::write(folder.join(name), format!("{value}\n")).unwrap();
        }
        node(module, number);
    }

    fn node(module: &KernelModule, number: u32) {
        fs::write(module.root.join(format!("dev/emuv{number}")), "").unwrap();
    }

    /// Of this user's own: only root gives files away.
    fn own(name: &str, instance: u32) -> Slice {
        let user =
            SliceUser { uid: rustix::process::geteuid().as_raw(), gid: Some(rustix::process::getegid().as_raw()) };
        Slice { instance, user, ..slice(name) }
    }

    #[test]
    fn a_slice_is_made_with_all_that_the_module_asks_for() {
        let (_root, module) = module();
        node(&module, 3);
        module.ensure(&own("ml-1", 3)).unwrap();
        let said = |name: &str| fs::read_to_string(module.root.join(CONFIGFS).join("ml-1").join(name)).unwrap();
        let names = ["gpu_model", "physical_vram_bytes", "virtual_vram_bytes", "instance_id", "enable"];
        assert_eq!(names.map(said), ["4090\n", "6442450944\n", "2147483648\n", "3\n", "1\n"]);
        let mode = fs::metadata(module.root.join("dev/emuv3")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660, "the node is its group's too");
    }

    #[test]
    fn what_the_module_refuses_is_said_and_nothing_is_left() {
        let (_root, module) = module();
        fs::remove_dir(module.root.join(CONFIGFS)).unwrap();
        let error = module.ensure(&own("ml-1", 3)).unwrap_err().to_string();
        assert!(error.contains("/sys/kernel/config/emuv/ml-1") && error.contains("dmesg"), "{error}");
        assert!(!module.is_loaded() && module.instances().is_empty());
    }

    #[test]
    fn an_instance_that_is_there_gets_the_slices_limits() {
        let (_root, module) = module();
        instance(&module, 1, "ml-1");
        instance(&module, 2, "");
        for (name, number) in [("ml-1", 1), ("ml-2", 2)] {
            module.ensure(&own(name, number)).unwrap();
            let there = module.instance(number).unwrap();
            assert_eq!((there.limits, there.holders), ((Bytes::gib(6), Bytes::gib(2)), 2));
        }
        let usage = module.usage(1).unwrap();
        assert_eq!((usage.vram, usage.ram), (5, 6));
        assert!(matches!(module.ensure(&own("ml-2", 1)), Err(SliceError::InstanceTaken { instance: 1, .. })));
    }

    #[test]
    fn a_number_is_one_that_neither_slices_nor_instances_have() {
        let (_root, module) = module();
        instance(&module, 1, "other");
        instance(&module, 2, "");
        instance(&module, 5, "ml-5");
        let free = |number: u32| number != 3;
        assert_eq!(module.number_for("ml-1", None, free).unwrap(), Some(4));
        assert_eq!(module.number_for("ml-5", None, free).unwrap(), Some(5), "one that a change left that died");
        assert_eq!(module.number_for("ml-1", Some(2), free).unwrap(), Some(2), "module parameters made it");
        assert!(module.number_for("ml-1", Some(1), free).is_err());
        assert_eq!(module.number_for("ml-1", Some(64), free).unwrap(), None);
        assert_eq!(module.number_for("ml-1", None, |_| false).unwrap(), None);
    }

    #[test]
    fn the_model_is_the_label_or_the_card_or_another() {
        let of = |gpu_model: Option<&str>, gpu: &str, vram: Bytes| {
            let mut slice = Slice { gpu_model: gpu_model.map(str::to_owned), vram, ..slice("a") };
            slice.gpu.name = gpu.to_owned();
            model(&slice)
        };
        assert_eq!(of(Some("RTX 4070"), "NVIDIA H200", Bytes::gib(6)), "4070");
        assert_eq!(of(None, "NVIDIA H100 80GB HBM3", Bytes::gib(6)), "h100");
        assert_eq!(of(None, "NVIDIA GeForce RTX 4070 Ti SUPER", Bytes::gib(16)), "4070tisuper");
        assert_eq!(of(None, "a card of tomorrow", Bytes::gib(600)), "other");
        assert_eq!(of(None, "NVIDIA H200", Bytes::gib(160)), "other", "the card's word counts, not the table's");
        assert!(models::find(models::OTHER).is_some());
    }
}
