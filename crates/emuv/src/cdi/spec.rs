//! The specification itself: what a container gets with a slice. Pure.
//!
//! ```text
//! in the container                            on the host
//! /etc/ld.so.preload                          a file of ours: names the library
//! /opt/emuv/lib/libcuda.so.1 and three more   libemuv_shim.so, one file under the four names that programs load it by
//! /opt/emuv/emuv-slice                        a file of ours: names the slice's folder
//! /run/emuv/vgpu                read-only     all slices: their definitions, and how they stand in taking turns
//! /run/emuv/vgpu/NAME/use       writable      the slice's accounts
//! ```
//!
//! *Why `/etc/ld.so.preload`:* a specification cannot add to a variable, only replace it, and images have an
//! `LD_LIBRARY_PATH` (and some an `LD_PRELOAD`) that they need. The file also reaches programs that are started with an empty
//! environment, and `docker exec`. The folder need not be on any path: a `dlopen` by SONAME finds what is preloaded, and
//! whatever else leads to the driver is answered by our `dlsym` (ARCHITECTURE.md, The ways in). Only where the GPU is
//! simulated is there no driver to be found, and the folder has to be searched.

use std::{collections::BTreeMap, path::Path};

use emuv_state::{
    env as variables,
    slices::{SLICE_FILE, Slice, node_path},
};
use serde_json::{Map, Value, json};

use crate::run::LIBRARY_NAMES;

/// The devices' kind.
pub const KIND: &str = "emuv.dev/vgpu";
/// The name of the specification's file: the kind, as is the custom.
pub const FILE_NAME: &str = "emuv.dev-vgpu.json";

/// emuV's folder in a container.
pub const HOME: &str = "/opt/emuv";
/// The registry in a container, wherever it is on the host.
const REGISTRY: &str = "/run/emuv/vgpu";

/// The oldest version of the specification that has device names with a digit first.
const VERSION: &str = "0.5.0";
/// The oldest one with groups for the container's first process.
const VERSION_WITH_GROUPS: &str = "0.7.0";

/// Edits of a container, as in the specification: lists by their names.
pub type Edits = Map<String, Value>;
/// Edits, and the version of the specification that knows them.
pub type Versioned = (Edits, String);

/// A slice's full name as a device.
pub fn qualified(slice: &str) -> String {
    format!("{KIND}={slice}")
}

/// Whether a slice's name is one for a device: these end with a letter or digit as well.
pub fn valid_device(slice: &str) -> bool {
    slice.ends_with(|last: char| last.is_ascii_alphanumeric())
}

/// What to say of a slice with another name.
pub fn not_valid(slice: &str) -> String {
    format!("'{slice}' is left out: the name of a device ends with a letter or digit")
}

/// Where things are on the host.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'s> {
    /// emuV's library.
    pub shim: &'s Path,
    /// The list of preloaded libraries: one line, [`preload_line`].
    pub preload: &'s Path,
    /// Variables that ask frameworks to allocate tensor by tensor.
    pub hints: &'s [String],
}

/// A slice and what of the host belongs to it.
#[derive(Debug)]
pub struct Device<'d> {
    /// The slice.
    pub slice: &'d Slice,
    /// Its folder.
    pub dir: &'d Path,
    /// The file that says, in a container, where the slice's folder is: [`slice_line`].
    pub slice_file: &'d Path,
    /// The simulated GPU, for a slice of one.
    pub simgpu: Option<&'d Path>,
    /// What NVIDIA's toolkit says for its GPU, where that is taken in.
    pub nvidia: Option<Versioned>,
}

/// What the list of preloaded libraries says.
pub fn preload_line() -> String {
    format!("{HOME}/lib/{}\n", LIBRARY_NAMES[1])
}

/// What the file beside the libraries' folder says.
pub fn slice_line(name: &str) -> String {
    format!("{REGISTRY}/{name}\n")
}

/// The whole specification.
pub fn spec(sources: &Sources<'_>, devices: &[Device<'_>]) -> Value {
    let mut version = VERSION.to_owned();
    let mut list = Vec::new();
    for device in devices {
        let (edits, needed) = edits(device);
        version = newer(version, needed);
        list.push(json!({ "name": device.slice.name, "containerEdits": edits }));
    }
    json!({ "cdiVersion": version, "kind": KIND, "devices": list, "containerEdits": common(sources) })
}

/// What all containers get.
fn common(sources: &Sources<'_>) -> Edits {
    let libraries = LIBRARY_NAMES.map(|name| mount(sources.shim, &format!("{HOME}/lib/{name}"), "ro"));
    let preload = mount(sources.preload, "/etc/ld.so.preload", "ro");
    let mut edits = Edits::new();
    edits.insert("mounts".into(), libraries.into_iter().chain([preload]).collect());
    if !sources.hints.is_empty() {
        edits.insert("env".into(), json!(sources.hints));
    }
    edits
}

/// What containers with this device get besides, and the version that this takes.
fn edits(device: &Device<'_>) -> Versioned {
    let slice = device.slice;
    let mut version = VERSION.to_owned();
    let mut edits = Edits::new();
    // Our GPUs are the only ones that the slice is a share of, whatever else the container is given.
    let mut env = BTreeMap::from([("CUDA_VISIBLE_DEVICES", slice.uuids()), (variables::VGPU, slice.name.clone())]);
    if let Some((nvidia, needed)) = &device.nvidia {
        append(&mut edits, nvidia);
        version = newer(version, needed.clone());
        env.extend(driver_paths(nvidia));
    }
    let mut mounts = vec![
        mount(device.dir.parent().unwrap_or(device.dir), REGISTRY, "ro"),
        mount(&device.dir.join("use"), &format!("{REGISTRY}/{}/use", slice.name), "rw"),
        mount(device.slice_file, &format!("{HOME}/{SLICE_FILE}"), "ro"),
    ];
    if let Some((settings, simgpu)) = slice.sim.as_ref().zip(device.simgpu) {
        let inside = format!("{HOME}/sim/libemuv_simgpu.so");
        mounts.push(mount(simgpu, &inside, "ro"));
        env.insert(variables::REAL_CUDA, inside.clone());
        env.insert(variables::REAL_NVML, inside);
        env.insert(variables::SIM, settings.clone());
        // There is no driver in the container that a program could find by name, before ours answers in its place.
        env.insert("LD_LIBRARY_PATH", format!("{HOME}/lib"));
    }
    let mut own = Edits::new();
    own.insert("env".into(), env.iter().map(|(name, value)| format!("{name}={value}")).collect());
    own.insert("mounts".into(), mounts.into());
    if slice.by_module {
        // The node is the right to the slice: no other slice's is in the container.
        own.insert("deviceNodes".into(), json!([{ "path": node_path(slice.instance), "permissions": "rw" }]));
    }
    if let Some(gid) = slice.user.gid.filter(|gid| *gid != 0) {
        own.insert("additionalGids".into(), json!([gid]));
        version = newer(version, VERSION_WITH_GROUPS.to_owned());
    }
    append(&mut edits, &own);
    (edits, version)
}

fn mount(from: &Path, to: &str, access: &str) -> Value {
    json!({ "hostPath": from, "containerPath": to, "options": [access, "nosuid", "nodev", "bind"] })
}

/// The same, without what is there already: for what two GPUs have in common.
pub fn unite(edits: &mut Edits, more: &Edits) {
    let mut more = more.clone();
    for (name, value) in &mut more {
        if let (Some(Value::Array(there)), Value::Array(list)) = (edits.get(name), value) {
            list.retain(|item| !there.contains(item));
        }
    }
    append(edits, &more);
}

/// Puts lists behind those of the same name.
pub fn append(edits: &mut Edits, more: &Edits) {
    for (name, value) in more {
        match (edits.get_mut(name), value) {
            (Some(Value::Array(list)), Value::Array(more)) => list.extend(more.iter().cloned()),
            _ => {
                edits.insert(name.clone(), value.clone());
            }
        }
    }
}

/// Where the driver's libraries will be, by the files that the toolkit mounts: known without the loader's cache.
fn driver_paths(nvidia: &Edits) -> Vec<(&'static str, String)> {
    let mounts = nvidia.get("mounts").and_then(Value::as_array).into_iter().flatten();
    let paths: Vec<_> = mounts.filter_map(|mount| mount["containerPath"].as_str()).collect();
    let of = |stem: &str| {
        let named = |path: &&&str| path.rsplit('/').next().is_some_and(|name| name.starts_with(stem));
        // There may be one for 32-bit programs as well.
        paths.iter().filter(|path| !path.contains("i386") && !path.contains("/lib32/")).find(named)
    };
    let wanted = [(variables::REAL_CUDA, "libcuda.so."), (variables::REAL_NVML, "libnvidia-ml.so.")];
    wanted.into_iter().filter_map(|(name, stem)| Some((name, (*of(stem)?).to_owned()))).collect()
}

pub fn newer(a: String, b: String) -> String {
    let number = |text: &str| text.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>();
    if number(&b) > number(&a) { b } else { a }
}

#[cfg(test)]
pub mod tests;
