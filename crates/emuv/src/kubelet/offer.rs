//! What pods may be given: the slices of the registry, as they are now.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

use emuv_kubelet::{Device, Offer};
use emuv_policy::Bytes;
use emuv_state::slices::{Entry, Registry, Slice};

use super::Resources;
use crate::{
    cdi::{Store, nvidia::Nvidia, replace, spec},
    cli::complain,
    vgpu::outside_hours,
};

/// Where NVIDIA's driver tells of its GPUs, a folder for each by PCI address.
const DRIVER: &str = "/proc/driver/nvidia/gpus";
const PCI: &str = "/sys/bus/pci/devices";

/// The slices of this node.
#[derive(Debug)]
pub struct Slices {
    store: Store,
    spec: PathBuf,
    resources: Resources,
    /// What was said last: each thing is said once.
    said: Mutex<Vec<String>>,
}

impl Slices {
    /// Of the registry that counts for this user. The specification is kept in that folder.
    pub fn new(store: Store, cdi_dir: &Path, resources: Resources) -> Self {
        Self { store, spec: cdi_dir.join(spec::FILE_NAME), resources, said: Mutex::default() }
    }

    /// The slices that can be devices, and what is wrong with the others.
    fn entries(&self) -> (Option<Registry>, Vec<Entry>, Vec<String>) {
        let registry = Registry::for_use(|name| env::var(name).ok()).into_iter().next();
        let (entries, problems) = registry.as_ref().map(Registry::entries).unwrap_or_default();
        let mut problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let (fit, unfit): (Vec<_>, _) = entries.into_iter().partition(|entry| spec::valid_device(&entry.slice.name));
        problems.extend(unfit.iter().map(|entry| spec::not_valid(&entry.slice.name)));
        (registry, fit, problems)
    }

    /// Has the engine know the slices. Gives those that it cannot be told of, and why.
    fn write(&self, registry: Option<&Registry>, entries: &[Entry]) -> Result<Vec<(String, String)>, String> {
        // Without slices there is nothing that the file could say; one of earlier slices names devices that are gone.
        let Some(registry) = registry.filter(|_| !entries.is_empty()) else {
            let _ = fs::remove_file(&self.spec);
            return Ok(Vec::new());
        };
        let made = self.store.make(registry, entries)?;
        replace(&self.spec, made.text.as_bytes()).map_err(|error| format!("{}: {error}", self.spec.display()))?;
        Ok(made.left_out)
    }

    fn say(&self, now: Vec<String>) {
        let Ok(mut said) = self.said.lock() else { return };
        now.iter().filter(|words| !said.contains(words)).for_each(|words| complain(words));
        *said = now;
    }
}

/// A slice, as it is found.
#[derive(Debug)]
pub struct Seen {
    /// The slice.
    pub slice: Slice,
    /// Containers may be given it now.
    pub healthy: bool,
    /// The NUMA node of its GPU, if that is known.
    pub numa_node: Option<u32>,
}

impl Slices {
    /// All slices that can be devices. The engine knows them then. `unfit` says why one is none after all.
    pub fn look(&self, unfit: impl Fn(&Slice) -> Option<String>) -> Vec<Seen> {
        let (registry, mut entries, mut problems) = self.entries();
        entries.retain(|entry| {
            let why = several(&entry.slice).or_else(|| unfit(&entry.slice));
            let fits = why.is_none();
            problems.extend(why);
            fits
        });
        let (written, left_out) = match self.write(registry.as_ref(), &entries) {
            Ok(left_out) => (true, left_out),
            Err(why) => {
                problems.push(why);
                (false, Vec::new())
            }
        };
        let gpus = Gpus::look(Path::new(DRIVER), Path::new(PCI));
        let mut all = Vec::new();
        for Entry { slice, .. } in entries {
            let gpu = gpus.find(&slice);
            let left_out = left_out.iter().find(|(name, _)| *name == slice.name).map(|(_, why)| why);
            let wrong = gpu.as_ref().err().or(left_out);
            problems.extend(wrong.map(|why| format!("{}: {why}; no container gets it", slice.name)));
            let healthy = written && wrong.is_none() && closed(&slice).is_none();
            all.push(Seen { healthy, numa_node: gpu.ok().flatten(), slice });
        }
        self.say(problems);
        all
    }
}

impl Offer for Slices {
    fn resources(&self) -> BTreeMap<String, Vec<Device>> {
        let mut resources = BTreeMap::new();
        if self.resources == Resources::One {
            resources.insert(spec::KIND.to_owned(), Vec::new());
        }
        for Seen { slice, healthy, numa_node } in self.look(|_| None) {
            let resource = resource(self.resources, &slice);
            let device = Device { id: slice.name, healthy, shared: slice.gpu.uuid, numa_node };
            resources.entry(resource).or_insert_with(Vec::new).push(device);
        }
        resources
    }

    fn allocate(&self, ids: &[String]) -> Result<Vec<String>, String> {
        let [id] = ids else {
            return Err(format!("a container can be in one slice of a GPU, and this one asks for {}", ids.len()));
        };
        let (registry, entries, _) = self.entries();
        let entry = entries.iter().find(|entry| entry.slice.name == *id);
        let slice = &entry.ok_or_else(|| format!("there is no slice '{id}' any more"))?.slice;
        if let Some(why) = closed(slice) {
            return Err(why);
        }
        if let Some((_, why)) = self.write(registry.as_ref(), &entries)?.iter().find(|(name, _)| name == id) {
            return Err(format!("'{id}': {why}"));
        }
        Ok(names(slice, &self.store.nvidia))
    }
}

/// The CDI names of what a container in a slice gets: the GPU as well, where the slice's own device does not bring it.
fn names(slice: &Slice, nvidia: &Nvidia) -> Vec<String> {
    let gpu = format!("nvidia.com/gpu={}", slice.gpu.uuid);
    let gpu = Some(gpu).filter(|_| slice.sim.is_none() && *nvidia == Nvidia::ByName);
    gpu.into_iter().chain([spec::qualified(&slice.name)]).collect()
}

/// Why a slice cannot be offered: both interfaces know devices of one GPU, on one NUMA node.
fn several(slice: &Slice) -> Option<String> {
    let (name, count) = (&slice.name, slice.gpu_count());
    (count > 1).then(|| {
        format!("'{name}' is left out: it is a slice of {count} GPUs, and Kubernetes is offered slices of one GPU")
    })
}

/// Why no program may be started in a slice now.
fn closed(slice: &Slice) -> Option<String> {
    if !slice.enabled {
        return Some(format!("'{}' is disabled (emuv vgpu enable)", slice.name));
    }
    outside_hours(slice)
}

/// The resource that a slice is of.
fn resource(how: Resources, slice: &Slice) -> String {
    match how {
        Resources::One => spec::KIND.to_owned(),
        Resources::ByShare => format!("{}-{}-{}", spec::KIND, size(slice.vram), size(slice.ram)),
    }
}

/// A size as a part of a name. Sizes that differ by less than a MiB are alike.
fn size(bytes: Bytes) -> String {
    let mib = bytes.0 >> 20;
    if mib.is_multiple_of(1024) { format!("{}g", mib / 1024) } else { format!("{mib}m") }
}

/// The GPUs that NVIDIA's driver has: UUID and NUMA node. `None`: the driver is not there.
struct Gpus(Option<Vec<(String, Option<u32>)>>);

impl Gpus {
    fn look(driver: &Path, pci: &Path) -> Self {
        let gpu = |folder: fs::DirEntry| {
            let text = fs::read_to_string(folder.path().join("information")).ok()?;
            let uuid = text.lines().find_map(|line| line.strip_prefix("GPU UUID:"))?.trim().to_owned();
            let node = fs::read_to_string(pci.join(folder.file_name()).join("numa_node")).ok();
            // -1 where the machine has one node only.
            Some((uuid, node.and_then(|node| node.trim().parse().ok())))
        };
        Self(fs::read_dir(driver).ok().map(|folders| folders.flatten().filter_map(gpu).collect()))
    }

    /// The NUMA node of a slice's GPU, if it is known.
    fn find(&self, slice: &Slice) -> Result<Option<u32>, String> {
        if slice.sim.is_some() {
            return Ok(None);
        }
        let gpus = self.0.as_ref().ok_or_else(|| "NVIDIA's driver is not loaded".to_owned())?;
        let found = gpus.iter().find(|(uuid, _)| *uuid == slice.gpu.uuid);
        found.map(|(_, node)| *node).ok_or_else(|| format!("its GPU {} is not there", slice.gpu.uuid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdi::spec::tests::slice;

    #[test]
    fn resources_by_share_name_both_shares() {
        let mut one = slice("ml-1");
        assert_eq!(resource(Resources::One, &one), "emuv.dev/vgpu");
        assert_eq!(resource(Resources::ByShare, &one), "emuv.dev/vgpu-6g-2g");
        (one.vram, one.ram) = (Bytes::mib(1536), Bytes::ZERO);
        assert_eq!(resource(Resources::ByShare, &one), "emuv.dev/vgpu-1536m-0g");
    }

    #[test]
    fn a_slice_of_several_gpus_is_not_offered() {
        let mut one = slice("ml-1");
        assert_eq!(several(&one), None);
        one.more_gpus = vec![emuv_state::slices::SliceGpu { uuid: "GPU-bb22".to_owned(), ..one.gpu.clone() }];
        assert!(several(&one).unwrap().contains("'ml-1' is left out: it is a slice of 2 GPUs"));
    }

    #[test]
    fn the_gpu_is_named_where_it_does_not_come_with_the_slice() {
        let mut one = slice("ml-1");
        assert_eq!(names(&one, &Nvidia::ByName), ["nvidia.com/gpu=GPU-aa11", "emuv.dev/vgpu=ml-1"]);
        assert_eq!(names(&one, &Nvidia::Spec(serde_json::Value::Null)), ["emuv.dev/vgpu=ml-1"]);
        one.sim = Some(String::new());
        assert_eq!(names(&one, &Nvidia::ByName), ["emuv.dev/vgpu=ml-1"]);
    }

    #[test]
    fn a_slice_is_as_well_as_its_gpu() {
        let root = tempfile::tempdir().unwrap();
        let (driver, pci) = (root.path().join("gpus"), root.path().join("pci"));
        let address = "0000:01:00.0";
        for folder in [&driver, &pci] {
            fs::create_dir_all(folder.join(address)).unwrap();
        }
        let look = || Gpus::look(&driver, &pci).find(&slice("ml-1"));
        let information = driver.join(address).join("information");
        fs::write(&information, "Model: \t\t card\nGPU UUID: \t GPU-aa11\nBus Type: \t PCIe\n").unwrap();
        assert_eq!(look(), Ok(None), "the node is not known");
        fs::write(pci.join(address).join("numa_node"), "1\n").unwrap();
        assert_eq!(look(), Ok(Some(1)));
        fs::write(&information, "GPU UUID: \t GPU-????????\n").unwrap();
        assert_eq!(look(), Err("its GPU GPU-aa11 is not there".to_owned()));
        fs::remove_dir_all(&driver).unwrap();
        assert_eq!(look(), Err("NVIDIA's driver is not loaded".to_owned()));
        let mut simulated = slice("ml-1");
        simulated.sim = Some(String::new());
        assert_eq!(Gpus::look(&driver, &pci).find(&simulated), Ok(None), "a simulated GPU needs no driver");
    }

    #[test]
    fn a_slice_that_is_switched_off_or_out_of_hours_is_not_given() {
        let mut one = slice("ml-1");
        assert_eq!(closed(&one), None);
        one.schedule = Some("00:00-24:00 UTC".parse().unwrap());
        assert_eq!(closed(&one), None);
        one.enabled = false;
        assert!(closed(&one).unwrap().contains("emuv vgpu enable"));
    }
}
