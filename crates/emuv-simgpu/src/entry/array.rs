//! Arrays: they take memory and can be described, but nothing can be read from or written to them.

use std::ffi::c_uint;

use emuv_cuda::{
    CUresult, CuResult,
    types::{self, CUDA_ARRAY_DESCRIPTOR_v2, CUDA_ARRAY3D_DESCRIPTOR_v2, CUarray, CUarray_format},
};
use emuv_policy::Bytes;

use super::{
    abi::{Out, entries, pointer},
    call::Call,
};
use crate::{memory::physical::error, simulator::Array};

/// Arrays take whole multiples of this.
const UNIT_BYTES: u64 = 512;

fn element_bytes(format: CUarray_format) -> CuResult<u64> {
    Ok(match format {
        types::CU_AD_FORMAT_UNSIGNED_INT8 | types::CU_AD_FORMAT_SIGNED_INT8 => 1,
        types::CU_AD_FORMAT_UNSIGNED_INT16 | types::CU_AD_FORMAT_SIGNED_INT16 | types::CU_AD_FORMAT_HALF => 2,
        types::CU_AD_FORMAT_UNSIGNED_INT32 | types::CU_AD_FORMAT_SIGNED_INT32 | types::CU_AD_FORMAT_FLOAT => 4,
        _ => return Err(error(CUresult::NOT_SUPPORTED)),
    })
}

fn create(
    call: &Call,
    out: Out<CUarray>,
    extent: [usize; 3],
    (format, channels): (CUarray_format, c_uint),
    flags: c_uint,
) -> CuResult {
    let context = call.current()?;
    out.required()?;
    if extent[0] == 0 || ![1, 2, 4].contains(&channels) {
        return Err(error(CUresult::INVALID_VALUE));
    }
    let out_of_memory = || error(CUresult::OUT_OF_MEMORY);
    let element = element_bytes(format)? * u64::from(channels);
    let elements = extent.iter().try_fold(1_u64, |product, size| product.checked_mul((*size).max(1) as u64));
    let bytes = elements.and_then(|elements| elements.checked_mul(element)?.checked_next_multiple_of(UNIT_BYTES));
    let charge = context.engine.gpu.vram.charge(Bytes(bytes.ok_or_else(out_of_memory)?)).ok_or_else(out_of_memory)?;
    let array = Array { context: context.handle(), extent, format, channels, flags, charge };
    out.write(pointer(call.simulator.arrays.insert(array)))
}

entries! {
    fn cuArrayCreate_v2(out: *mut CUarray, descriptor: *const CUDA_ARRAY_DESCRIPTOR_v2) |call| {
        let d = descriptor.read()?;
        create(call, out, [d.Width, d.Height, 0], (d.Format, d.NumChannels), 0)
    }

    fn cuArray3DCreate_v2(out: *mut CUarray, descriptor: *const CUDA_ARRAY3D_DESCRIPTOR_v2) |call| {
        let d = descriptor.read()?;
        create(call, out, [d.Width, d.Height, d.Depth], (d.Format, d.NumChannels), d.Flags)
    }

    fn cuArrayDestroy(array: CUarray) |call| {
        call.current()?;
        let removed = call.simulator.arrays.remove(array.address());
        removed.map(|_| ()).ok_or(error(CUresult::CUDA_ERROR_INVALID_HANDLE))
    }

    fn cuArrayGetDescriptor_v2(out: *mut CUDA_ARRAY_DESCRIPTOR_v2, array: CUarray) |call| {
        let array = call.simulator.arrays.get(array.address()).ok_or(error(CUresult::CUDA_ERROR_INVALID_HANDLE))?;
        let [width, height, _] = array.extent;
        out.write(CUDA_ARRAY_DESCRIPTOR_v2 {
            Width: width,
            Height: height,
            Format: array.format,
            NumChannels: array.channels,
        })
    }

    fn cuArray3DGetDescriptor_v2(out: *mut CUDA_ARRAY3D_DESCRIPTOR_v2, array: CUarray) |call| {
        let array = call.simulator.arrays.get(array.address()).ok_or(error(CUresult::CUDA_ERROR_INVALID_HANDLE))?;
        let [width, height, depth] = array.extent;
        out.write(CUDA_ARRAY3D_DESCRIPTOR_v2 {
            Width: width,
            Height: height,
            Depth: depth,
            Format: array.format,
            NumChannels: array.channels,
            Flags: array.flags,
        })
    }
}
