//! Addresses that look least like data, by their upper half; by the lower one the address space of `emuv-policy` chooses.

use emuv_cuda::{CuResult, Gpu};

/// Where arenas are wished to be: there the upper half of an address, read as data, is two half-precision numbers 0 and NaN,
/// or a single-precision one below 1e-40, or a whole number that is hardly ever used. The driver's own choice begins at some
/// 12 GiB, where many a program's 64-bit numbers (hashes, sums) lie, which searches for pointers take for addresses then.
const QUIET: [u64; 3] = [0x7d00 << 32, 0x7e00 << 32, 0x7c80 << 32];

/// Reserves address space that looks least like data.
pub(super) fn reserve(gpu: &dyn Gpu, bytes: u64) -> CuResult<u64> {
    for wish in QUIET {
        match gpu.reserve(bytes, wish) {
            Ok(base) if base == wish => return Ok(base),
            Ok(elsewhere) => gpu.unreserve(elsewhere, bytes)?,
            Err(_) => {}
        }
    }
    gpu.reserve(bytes, 0)
}
