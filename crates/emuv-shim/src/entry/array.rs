//! CUDA arrays: the driver's (their layout is opaque), charged against the VRAM budget.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::c_uint;

use emuv_cuda::{CUresult, types::*};

use crate::{account::Kind, calls, entry::entries, session::Session};

entries! {
    /// Charged, then the driver's.
    fn cuArrayCreate_v2(pHandle: *mut CUarray, pAllocateArray: *const CUDA_ARRAY_DESCRIPTOR) |session, driver| {
        // SAFETY: null or valid by the driver's contract.
        let d = unsafe { pAllocateArray.as_ref() }?;
        let bytes = array_bytes(&[d.Width, d.Height], d.Format, d.NumChannels);
        // SAFETY: the program's own arguments.
        create(session, bytes, || unsafe { driver.cuArrayCreate_v2(pHandle, pAllocateArray) }, || unsafe { *pHandle } as u64)
    }

    /// Charged, then the driver's.
    fn cuArray3DCreate_v2(pHandle: *mut CUarray, pAllocateArray: *const CUDA_ARRAY3D_DESCRIPTOR) |session, driver| {
        // SAFETY: null or valid by the driver's contract.
        let d = unsafe { pAllocateArray.as_ref() }?;
        let bytes = array_bytes(&[d.Width, d.Height, d.Depth], d.Format, d.NumChannels);
        // SAFETY: the program's own arguments.
        create(session, bytes, || unsafe { driver.cuArray3DCreate_v2(pHandle, pAllocateArray) }, || unsafe { *pHandle } as u64)
    }

    /// The charge goes with the array.
    fn cuArrayDestroy(hArray: CUarray) |session, driver| {
        // SAFETY: the program's own argument.
        Some(destroy(session, hArray as u64, || unsafe { driver.cuArrayDestroy(hArray) }))
    }

    /// Charged with all its levels, then the driver's.
    fn cuMipmappedArrayCreate(
        pHandle: *mut CUmipmappedArray,
        pMipmappedArrayDesc: *const CUDA_ARRAY3D_DESCRIPTOR,
        numMipmapLevels: c_uint,
    ) |session, driver| {
        // SAFETY: null or valid by the driver's contract.
        let d = unsafe { pMipmappedArrayDesc.as_ref() }?;
        let level = |n: u32| {
            let size = |extent: usize| if extent == 0 { 0 } else { (extent >> n.min(63)).max(1) };
            array_bytes(&[size(d.Width), size(d.Height), size(d.Depth)], d.Format, d.NumChannels)
        };
        let bytes = (0..numMipmapLevels.min(64)).fold(0_u64, |sum, n| sum.saturating_add(level(n)));
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuMipmappedArrayCreate(pHandle, pMipmappedArrayDesc, numMipmapLevels) };
        // SAFETY: read only after success: the driver has written it.
        create(session, bytes, call, || unsafe { *pHandle } as u64)
    }

    /// The charge goes with the array.
    fn cuMipmappedArrayDestroy(hMipmappedArray: CUmipmappedArray) |session, driver| {
        // SAFETY: the program's own argument.
        Some(destroy(session, hMipmappedArray as u64, || unsafe { driver.cuMipmappedArrayDestroy(hMipmappedArray) }))
    }
}

fn create(
    session: &Session,
    bytes: u64,
    call: impl FnOnce() -> CUresult,
    handle: impl FnOnce() -> u64,
) -> Option<CUresult> {
    let device = session.device(calls::current_device(session.real).ok()?)?;
    Some(device.create_accounted(session, Kind::Array, bytes, || call().ok().map(|()| handle())))
}

fn destroy(session: &Session, handle: u64, call: impl FnOnce() -> CUresult) -> CUresult {
    // Before the call: the handle may come again right after it.
    session.release_account(Kind::Array, handle);
    call()
}

/// Bytes of an array's texels; the driver's padding is not known.
pub(super) fn array_bytes(extents: &[usize], format: CUarray_format, channels: c_uint) -> u64 {
    let texels = extents.iter().fold(1_u64, |n, &extent| n.saturating_mul(extent.max(1) as u64));
    let channel = match format {
        CU_AD_FORMAT_UNSIGNED_INT8 | CU_AD_FORMAT_SIGNED_INT8 => 1,
        CU_AD_FORMAT_UNSIGNED_INT16 | CU_AD_FORMAT_SIGNED_INT16 | CU_AD_FORMAT_HALF => 2,
        // Planar and block-compressed formats are smaller; charging 4 errs on the side of the budget.
        _ => 4,
    };
    texels.saturating_mul(channel * u64::from(channels.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_is_charged_its_texels() {
        assert_eq!(array_bytes(&[640, 480], CU_AD_FORMAT_FLOAT, 4), 640 * 480 * 16);
        assert_eq!(array_bytes(&[100, 0, 0], CU_AD_FORMAT_HALF, 1), 200);
        assert_eq!(array_bytes(&[usize::MAX, 7], CU_AD_FORMAT_FLOAT, 4), u64::MAX);
    }
}
