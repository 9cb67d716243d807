//! Every driver function that takes device addresses is answered by emuV, or is on a list that says why it need not
//! be. A function that a newer driver brings fails this test until somebody has decided.

use std::collections::{BTreeMap, BTreeSet};

const FUNCTIONS: &str = include_str!("../../emuv-cuda/src/gen/cuda_functions.rs");
const TYPES: &str = include_str!("../../emuv-cuda/src/gen/cuda_types.rs");
const EXPORTS: &str = include_str!("../../emuv-cuda/src/gen/exports.rs");
const HANDLED: &str = include_str!("../handled.list");

/// The type of an address. The 32-bit one of the first forms (`CUdeviceptr_v1`) reaches no arena: those lie above 4 GiB.
const ADDRESS: [&str; 2] = ["CUdeviceptr", "CUdeviceptr_v2"];

/// Functions with an address among their arguments that plain pass-through is right for.
const PASSED: &[(&str, &[&str])] = &[
    (
        "describes a graph's node; nodes are looked at when the graph is made executable",
        &[
            "cuGraphAddBatchMemOpNode",
            "cuGraphAddMemFreeNode",
            "cuGraphAddNode_v3",
            "cuGraphBatchMemOpNodeGetParams",
            "cuGraphBatchMemOpNodeSetParams",
            "cuGraphMemAllocNodeGetParams",
            "cuGraphMemFreeNodeGetParams",
            "cuGraphMemcpyNodeGetParams",
            "cuGraphMemsetNodeGetParams",
            "cuGraphNodeGetParams",
            "cuGraphNodeSetParams_v2",
        ],
    ),
    (
        "gives the address of memory that is not emuV's",
        &[
            "cuExternalMemoryGetMappedBuffer",
            "cuGLMapBufferObjectAsync_v2",
            "cuGLMapBufferObjectAsync_v2_ptsz",
            "cuGLMapBufferObject_v2",
            "cuGLMapBufferObject_v2_ptds",
            "cuMemPoolImportPointer",
        ],
    ),
    (
        "gives the address at which kernels see pinned memory, which is the host's own on all systems that emuV runs on",
        &["cuMemHostGetDevicePointer_v2"],
    ),
    (
        "is for managed memory, and has no effect on other memory",
        &[
            "cuMemAdvise",
            "cuMemAdvise_v2",
            "cuMemDiscardAndPrefetchBatchAsync",
            "cuMemDiscardAndPrefetchBatchAsync_ptsz",
            "cuMemDiscardBatchAsync",
            "cuMemDiscardBatchAsync_ptsz",
            "cuMemPrefetchAsync",
            "cuMemPrefetchAsync_ptsz",
            "cuMemPrefetchAsync_v2",
            "cuMemPrefetchAsync_v2_ptsz",
            "cuMemPrefetchBatchAsync",
            "cuMemPrefetchBatchAsync_ptsz",
            "cuMemRangeGetAttribute",
            "cuMemRangeGetAttributes",
            "cuStreamAttachMemAsync",
            "cuStreamAttachMemAsync_ptsz",
        ],
    ),
    ("is for pools made for sharing, which are the driver's", &["cuMemPoolExportPointer"]),
    (
        "reserves or releases addresses, or asks about them",
        &["cuMemAddressReserve", "cuMemAddressFree", "cuMemGetAccess", "cuMemGetLocationInfo"],
    ),
    (
        "reads back what was set",
        &["cuSurfObjectGetResourceDesc", "cuTexObjectGetResourceDesc", "cuTexRefGetAddress_v2"],
    ),
    (
        "is called from another process, while this one stands still",
        &["cuCheckpointProcessCheckpoint", "cuCheckpointProcessRestore"],
    ),
];

/// Functions that give addresses in another type.
const BY_OTHER_TYPES: [&str; 7] = [
    "cuMemBatchDecompressAsync",
    "cuMemBatchDecompressAsync_ptsz",
    "cuTensorMapEncodeIm2col",
    "cuTensorMapEncodeIm2colWide",
    "cuTensorMapEncodeTiled",
    "cuTensorMapReplaceAddress",
    "cuLaunchKernel",
];

fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect()
}

/// Name -> arguments.
fn functions() -> BTreeMap<&'static str, &'static str> {
    let mut functions = BTreeMap::new();
    for line in FUNCTIONS.lines() {
        let line = line.trim();
        let Some((name, rest)) = line.strip_prefix("fn ").and_then(|line| line.split_once('(')) else { continue };
        let Some((arguments, _)) = rest.rsplit_once(") ->") else { panic!("{line}: no result") };
        functions.insert(name, arguments);
    }
    functions
}

/// Type -> the types that it is made of.
fn types() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut types: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut inside = None;
    for line in TYPES.lines() {
        if let Some(name) = inside {
            if line.starts_with('}') {
                inside = None;
            } else {
                types.entry(name).or_default().extend(words(line));
            }
        } else if let Some((name, what)) = line.strip_prefix("pub type ").and_then(|line| line.split_once(" = ")) {
            types.entry(name).or_default().extend(words(what));
        } else if let Some((from, name)) = line.strip_prefix("pub use self::").and_then(|line| line.split_once(" as "))
        {
            types.entry(name.trim_end_matches(';')).or_default().insert(from);
        } else if let Some(rest) = line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub union ")) {
            let name = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
            inside = rest.ends_with('{').then_some(name);
        }
    }
    types
}

/// Types that are, or hold, an address.
fn addresses() -> BTreeSet<&'static str> {
    let types = types();
    let mut found = BTreeSet::from(ADDRESS);
    loop {
        let before = found.len();
        for (name, parts) in &types {
            if !parts.is_disjoint(&found) {
                found.insert(name);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

fn handled() -> BTreeSet<&'static str> {
    let lines = HANDLED.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines.filter_map(|line| line.split_whitespace().next()).collect()
}

fn passed() -> BTreeSet<&'static str> {
    PASSED.iter().flat_map(|(_, names)| names.iter().copied()).collect()
}

#[test]
fn every_function_that_takes_device_addresses_has_been_decided() {
    let (addresses, handled, passed, exports) = (addresses(), handled(), passed(), words(EXPORTS));
    let mut undecided = Vec::new();
    for (name, arguments) in functions() {
        let takes = !words(arguments).is_disjoint(&addresses);
        if takes && exports.contains(name) && !handled.contains(name) && !passed.contains(name) {
            undecided.push(name);
        }
    }
    assert!(undecided.is_empty(), "say in handled.list who answers these, or here why nobody need: {undecided:#?}");
}

#[test]
fn what_is_passed_on_exists_and_is_not_answered_as_well() {
    let (functions, handled) = (functions(), handled());
    for name in passed() {
        assert!(functions.contains_key(name), "{name} is no function");
        assert!(!handled.contains(name), "{name} is answered");
    }
}

#[test]
fn addresses_in_other_types_are_seen_too() {
    let handled = handled();
    for name in BY_OTHER_TYPES {
        assert!(handled.contains(name), "{name} is not answered");
    }
}

#[test]
fn the_generated_sources_are_understood() {
    let addresses = addresses();
    for name in ["CUDA_MEMCPY3D", "CUDA_RESOURCE_DESC", "CUgraphNodeParams", "CUstreamBatchMemOpParams"] {
        assert!(addresses.contains(name), "{name} holds an address");
    }
    for name in ["CUlaunchConfig", "CUmemLocation", "CUstream"] {
        assert!(!addresses.contains(name), "{name} holds none");
    }
    assert!(functions().len() > 600);
}
