//! The program that the demo runs: an ordinary CUDA program, which knows nothing of emuV. It opens
//! `libcuda.so.1` by name, so that it gets whatever library its environment gives it, and prints one line
//! of JSON.

use std::{io::Write, path::Path, process::ExitCode, time::Instant};

use anyhow::{Context, Result};
use emuv_cuda::{CuError, CuResult, Driver};
use serde::{Deserialize, Serialize};

use crate::doctor::{
    device::{self, Buffer, Device, Span},
    expected,
};

const BUFFERS: u32 = 8;
const LAYERS: u32 = 2;
/// Words that a layer picks at random from a whole buffer.
const PICKS: u32 = 1 << 16;
/// Elements of a layer's sum of vectors.
const VECTOR: u64 = 1 << 18;
/// Rows of a layer's matrices.
const EDGE: u32 = 64;

/// Options of the hidden subcommand `demo-workload`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// GPU memory to use, in bytes
    #[arg(long)]
    pub bytes: u64,
    /// Start of all pseudo-random data
    #[arg(long)]
    pub seed: u32,
}

/// What the workload prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The CUDA error that ended it; `None` where it ran to its end.
    pub error: Option<String>,
    /// Whether that error was "out of memory".
    pub out_of_memory: bool,
    /// Bytes that it had allocated at most.
    pub allocated_bytes: u64,
    /// One sum per buffer, hexadecimal; empty where it did not get that far.
    pub checksums: Vec<String>,
    /// From the first allocation to the last sum.
    pub seconds: f64,
}

/// Runs it. The exit code is 0 where it ran to its end, 1 where a CUDA call failed.
///
/// # Errors
/// Where there is no driver to run on, or nobody to print to.
pub fn run(options: &Options) -> Result<ExitCode> {
    let driver = Driver::open(Path::new("libcuda.so.1")).context("no CUDA driver")?;
    let devices = device::devices(&driver).context("cuInit")?;
    let device = *devices.first().context("the driver reports no GPU")?;
    let device = Device::start(&driver, device).context("starting the GPU")?;
    let start = Instant::now();
    let mut allocated_bytes = 0;
    let result = compute(&device, options, &mut allocated_bytes);
    let error = result.as_ref().err().copied();
    let outcome = Outcome {
        error: error.map(|error| error.to_string()),
        out_of_memory: error.is_some_and(CuError::is_out_of_memory),
        allocated_bytes,
        checksums: result.unwrap_or_default().iter().map(|sum| format!("{sum:016x}")).collect(),
        seconds: start.elapsed().as_secs_f64(),
    };
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &outcome)?;
    writeln!(out)?;
    Ok(if outcome.error.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fills all memory, works on it in layers, and sums it.
fn compute(device: &Device<'_>, options: &Options, allocated_bytes: &mut u64) -> CuResult<Vec<u64>> {
    // No round number, so that slices cross the borders of chunks.
    let each = (options.bytes / u64::from(BUFFERS) / 4).saturating_sub(1237).max(u64::from(PICKS) * 8) * 4;
    let mut buffers = Vec::new();
    for seed in (0..BUFFERS).map(|index| options.seed.wrapping_mul(31).wrapping_add(index)) {
        let buffer = device.allocate(each)?;
        *allocated_bytes += each;
        device.fill(buffer.span(), seed)?;
        buffers.push(buffer);
    }
    for layer in 0..LAYERS {
        for (round, buffer) in (layer * BUFFERS..).zip(&buffers) {
            device.mix(buffer.span(), round)?;
        }
        work(device, &buffers, layer, options.seed)?;
    }
    buffers.iter().map(|buffer| device.reduce(buffer.span())).collect()
}

/// One layer: random reads, a sum of vectors and a product of matrices, each over several buffers.
fn work(device: &Device<'_>, buffers: &[Buffer<'_, '_>], layer: u32, seed: u32) -> CuResult {
    let span = |index: u32| buffers[((layer + index) % BUFFERS) as usize].span();
    let tail = |span: Span, words: u64| span.part(span.bytes - words * 4, words * 4);
    let middle = |span: Span, words: u64| span.part((span.words() / 2) * 4 - words * 2, words * 4);
    let random = |index: u64, salt: u32| expected::filled(index, seed.wrapping_add(salt).wrapping_mul(7919));

    let source = span(0);
    let list: Vec<u32> = (0..u64::from(PICKS)).map(|index| below(random(index, layer), source.words())).collect();
    let indices = span(2).part(0, u64::from(PICKS) * 4);
    device.upload(indices, &list)?;
    device.gather(tail(span(1), PICKS.into()), source, indices)?;

    let floats = |salt: u32, count: u64| -> Vec<u32> {
        (0..count).map(|index| unit_float(random(index, salt)).to_bits()).collect()
    };
    let (x, y) = (middle(span(3), VECTOR), middle(span(4), VECTOR));
    device.upload(x, &floats(layer + 100, VECTOR))?;
    device.upload(y, &floats(layer + 200, VECTOR))?;
    device.axpy(y, x, 0.25)?;

    let elements = u64::from(EDGE) * u64::from(EDGE);
    let (a, b) = (span(5).part(0, elements * 4), span(6).part(4096, elements * 4));
    device.upload(a, &floats(layer + 300, elements))?;
    device.upload(b, &floats(layer + 400, elements))?;
    device.gemm(tail(span(7), elements), a, b, EDGE)
}

/// A number below `limit`, spread evenly enough.
#[allow(clippy::cast_possible_truncation)] // The product's high half is below `limit`, and that an index.
fn below(random: u32, limit: u64) -> u32 {
    ((u64::from(random) * limit.min(u64::from(u32::MAX))) >> 32) as u32
}

/// A number in [-1, 1): far from infinities, whose bits GPUs and CPUs may choose differently.
fn unit_float(random: u32) -> f32 {
    // 24 bits are exact in a float.
    #[allow(clippy::cast_precision_loss)]
    let magnitude = (random >> 8) as f32 / 8_388_608.0;
    magnitude - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_stay_within_the_buffer() {
        assert_eq!(below(0, 1000), 0);
        assert_eq!(below(u32::MAX, 1000), 999);
    }

    #[test]
    fn floats_stay_within_the_unit_range() {
        assert_eq!(unit_float(0).to_bits(), (-1.0_f32).to_bits());
        assert!(unit_float(u32::MAX) < 1.0);
    }

    #[test]
    fn an_outcome_survives_its_json() {
        let outcome = Outcome {
            error: Some("CUDA_ERROR_OUT_OF_MEMORY (2)".into()),
            out_of_memory: true,
            allocated_bytes: 7,
            checksums: vec![],
            seconds: 0.5,
        };
        let text = serde_json::to_string(&outcome).unwrap();
        assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome);
    }
}
