//! Checks that need a GPU: what it supports, and whether memory mixed from both tiers really works.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use emuv_cuda::{
    Driver, DriverGpu, Gpu, device_attribute,
    types::{
        CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, CUdevice,
    },
};
use emuv_policy::{Bytes, Tier};

use super::{
    check::Check,
    device::{self, Device, Span},
    expected,
    mapping::{Mapping, Pinned},
};

/// Size of the chunks that the tests of speed and of pinning use.
const CHUNK: Bytes = Bytes::mib(32);
/// Less pinned memory than this is of no use.
const LEAST_PINNED: Bytes = Bytes::mib(64);

/// Which GPUs there are.
pub fn present(driver: &Driver, devices: &[CUdevice]) -> Check {
    let names: Vec<String> = devices
        .iter()
        .map(|&device| {
            let size = device::total_bytes(driver, device).map_or_else(|_| "?".into(), |n| Bytes(n).to_string());
            format!("{} ({size})", device::name(driver, device))
        })
        .collect();
    match names.len() {
        0 => Check::fail(
            "gpu",
            "the driver reports no GPU",
            "see whether nvidia-smi lists one, and whether CUDA_VISIBLE_DEVICES hides it",
        ),
        _ => Check::ok("gpu", names.join(", ")),
    }
}

/// What every GPU must support.
pub fn support(driver: &Driver, devices: &[CUdevice]) -> Vec<Check> {
    let lacking = |attribute| {
        let lacking = |device: &&CUdevice| device_attribute(driver, **device, attribute).unwrap_or(0) == 0;
        let names: Vec<String> = devices.iter().filter(lacking).map(|&d| device::name(driver, d)).collect();
        names.join(", ")
    };
    let check = |id, what: &str, names: String, advice: &str| match names.is_empty() {
        true => Check::ok(id, format!("{what}: supported")),
        false => Check::fail(id, format!("{what}: not supported by {names}"), advice),
    };
    vec![
        check(
            "vmm",
            "virtual memory management",
            lacking(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED),
            "emuV needs a GPU of the Maxwell generation or newer and Linux without a vGPU or WDDM layer below",
        ),
        check(
            "host-vmm",
            "host memory in the GPU's address space",
            lacking(CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED),
            "update the NVIDIA driver to 535 (CUDA 12.2) or newer",
        ),
    ]
}

/// Whether one range made of VRAM and RAM chunks behaves as one piece of memory.
pub fn mixed_mapping(gpu: &DriverGpu<'_>, device: &Device<'_>) -> Check {
    match try_mixed_mapping(gpu, device) {
        Ok(size) => Check::ok("mixed-mapping", format!("{size} of VRAM and RAM in turn, written and read by kernels")),
        Err(error) => Check::fail(
            "mixed-mapping",
            format!("{error:#}"),
            "emuV cannot work here; please report this with the driver version and the GPU's name",
        ),
    }
}

fn try_mixed_mapping(gpu: &DriverGpu<'_>, device: &Device<'_>) -> Result<Bytes> {
    const SEED: u32 = 0x0e11_0001;
    const ROUND: u32 = 3;
    let chunk = gpu.granularity_bytes();
    let mut mapping = Mapping::reserve(gpu, 4 * chunk).context("reserving addresses")?;
    let mut chunks = Vec::new();
    for tier in [Tier::Vram, Tier::Ram, Tier::Vram, Tier::Ram] {
        let span = mapping.append(tier, chunk).with_context(|| format!("mapping a chunk of {tier}"))?;
        chunks.push((tier, span));
    }
    let whole = mapping.span();
    let outcome = exercise(device, whole, &chunks, SEED, ROUND);
    // Nothing may be in flight when the mapping goes.
    let idle = device.synchronize().context("waiting for the GPU");
    outcome.and(idle)?;
    Ok(Bytes(whole.bytes))
}

fn exercise(device: &Device<'_>, whole: Span, chunks: &[(Tier, Span)], seed: u32, round: u32) -> Result<()> {
    device.fill(whole, seed).context("writing with a kernel")?;
    let sum = device.reduce(whole).context("reading with a kernel")?;
    let filled = || (0..whole.words()).map(|index| expected::filled(index, seed));
    if sum != expected::reduced(filled()) {
        bail!("a kernel read other values than a kernel wrote");
    }
    // Read and written in place, and fetched chunk by chunk.
    device.mix(whole, round).context("updating with a kernel")?;
    let expected: Vec<u32> = filled().map(|word| expected::mixed(word, round)).collect();
    let mut rest = expected.as_slice();
    for (tier, span) in chunks {
        let words = device.download(*span).with_context(|| format!("copying from {tier}"))?;
        let (here, behind) = rest.split_at(words.len().min(rest.len()));
        if words != here {
            bail!("values in {tier} are wrong after a kernel updated them");
        }
        rest = behind;
    }
    Ok(())
}

/// How much memory the driver pins when asked for `wanted`, and how fast.
pub fn pinning(gpu: &DriverGpu<'_>, wanted: Bytes, simulated: bool) -> Check {
    if wanted < LEAST_PINNED {
        return Check::warn(
            "pinning",
            "not tried: the host has too little free RAM",
            "free some RAM, or raise its limit",
        );
    }
    let count = wanted.0 / CHUNK.0;
    let start = Instant::now();
    let (pinned, result) = Pinned::create(gpu, CHUNK.0, count);
    let seconds = start.elapsed().as_secs_f64();
    let size = Bytes(pinned.count() * CHUNK.0);
    let advice =
        "raise the container's or the control group's memory limit, free some RAM, or give emuV less with --ram";
    match result {
        Ok(()) if simulated => Check::ok("pinning", format!("{size} pinned (simulated)")),
        Ok(()) => {
            Check::ok("pinning", format!("{size} pinned in {seconds:.2} s ({:.1} GB/s)", gigabytes(size.0) / seconds))
        }
        Err(error) if size < LEAST_PINNED => {
            Check::fail("pinning", format!("only {size} could be pinned: {error}"), advice)
        }
        Err(error) => Check::warn("pinning", format!("only {size} of {wanted} could be pinned: {error}"), advice),
    }
}

/// In units of 10^9 bytes.
#[allow(clippy::cast_precision_loss)] // Far below 2^53.
pub fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
