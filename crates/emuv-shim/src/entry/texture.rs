//! Addresses that kernels reach by a handle or a descriptor instead of a pointer: textures, surfaces, tensor maps.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract. Descriptions are null or valid by
//! it, and an out-pointer has been written where the call succeeded.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_void};

use emuv_cuda::{CUresult, types::*};

use crate::{entry::entries, moves, session::Session};

entries! {
    /// The object holds the address, and kernels are given the object.
    fn cuTexObjectCreate(
        pTexObject: *mut CUtexObject, pResDesc: *const CUDA_RESOURCE_DESC, pTexDesc: *const CUDA_TEXTURE_DESC,
        pResViewDesc: *const CUDA_RESOURCE_VIEW_DESC,
    ) |session, driver| {
        moves::in_reach(session);
        // SAFETY: null or valid by the driver's contract.
        let address = unsafe { resource_address(pResDesc) };
        // SAFETY: the program's own arguments.
        Some(kept(session, address, unsafe { driver.cuTexObjectCreate(pTexObject, pResDesc, pTexDesc, pResViewDesc) }))
    }

    /// The object holds the address, and kernels are given the object.
    fn cuSurfObjectCreate(pSurfObject: *mut CUsurfObject, pResDesc: *const CUDA_RESOURCE_DESC) |session, driver| {
        moves::in_reach(session);
        // SAFETY: null or valid by the driver's contract.
        let address = unsafe { resource_address(pResDesc) };
        // SAFETY: the program's own arguments.
        Some(kept(session, address, unsafe { driver.cuSurfObjectCreate(pSurfObject, pResDesc) }))
    }

    /// The reference belongs to the module, and kernels name it.
    fn cuTexRefSetAddress_v2(ByteOffset: *mut usize, hTexRef: CUtexref, dptr: CUdeviceptr, bytes: usize)
    |session, driver| {
        moves::in_reach(session);
        // SAFETY: the program's own arguments.
        Some(kept(session, Some(dptr), unsafe { driver.cuTexRefSetAddress_v2(ByteOffset, hTexRef, dptr, bytes) }))
    }

    /// An earlier form of the call.
    fn cuTexRefSetAddress2D_v2(
        hTexRef: CUtexref, desc: *const CUDA_ARRAY_DESCRIPTOR, dptr: CUdeviceptr, Pitch: usize,
    ) |session, driver| {
        moves::in_reach(session);
        // SAFETY: the program's own arguments.
        Some(kept(session, Some(dptr), unsafe { driver.cuTexRefSetAddress2D_v2(hTexRef, desc, dptr, Pitch) }))
    }

    /// The reference belongs to the module, and kernels name it.
    fn cuTexRefSetAddress2D_v3(
        hTexRef: CUtexref, desc: *const CUDA_ARRAY_DESCRIPTOR, dptr: CUdeviceptr, Pitch: usize,
    ) |session, driver| {
        moves::in_reach(session);
        // SAFETY: the program's own arguments.
        Some(kept(session, Some(dptr), unsafe { driver.cuTexRefSetAddress2D_v3(hTexRef, desc, dptr, Pitch) }))
    }

    /// Kernels are given the descriptor.
    fn cuTensorMapEncodeTiled(
        tensorMap: *mut CUtensorMap, tensorDataType: CUtensorMapDataType, tensorRank: cuuint32_t,
        globalAddress: *mut c_void, globalDim: *const cuuint64_t, globalStrides: *const cuuint64_t,
        boxDim: *const cuuint32_t, elementStrides: *const cuuint32_t, interleave: CUtensorMapInterleave,
        swizzle: CUtensorMapSwizzle, l2Promotion: CUtensorMapL2promotion, oobFill: CUtensorMapFloatOOBfill,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe {
            driver.cuTensorMapEncodeTiled(
                tensorMap, tensorDataType, tensorRank, globalAddress, globalDim, globalStrides, boxDim, elementStrides,
                interleave, swizzle, l2Promotion, oobFill,
            )
        };
        // SAFETY: null or written by the driver.
        Some(unsafe { encoded(session, result, tensorMap, globalAddress) })
    }

    /// Kernels are given the descriptor.
    fn cuTensorMapEncodeIm2col(
        tensorMap: *mut CUtensorMap, tensorDataType: CUtensorMapDataType, tensorRank: cuuint32_t,
        globalAddress: *mut c_void, globalDim: *const cuuint64_t, globalStrides: *const cuuint64_t,
        pixelBoxLowerCorner: *const c_int, pixelBoxUpperCorner: *const c_int, channelsPerPixel: cuuint32_t,
        pixelsPerColumn: cuuint32_t, elementStrides: *const cuuint32_t, interleave: CUtensorMapInterleave,
        swizzle: CUtensorMapSwizzle, l2Promotion: CUtensorMapL2promotion, oobFill: CUtensorMapFloatOOBfill,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe {
            driver.cuTensorMapEncodeIm2col(
                tensorMap, tensorDataType, tensorRank, globalAddress, globalDim, globalStrides, pixelBoxLowerCorner,
                pixelBoxUpperCorner, channelsPerPixel, pixelsPerColumn, elementStrides, interleave, swizzle,
                l2Promotion, oobFill,
            )
        };
        // SAFETY: null or written by the driver.
        Some(unsafe { encoded(session, result, tensorMap, globalAddress) })
    }

    /// Kernels are given the descriptor.
    fn cuTensorMapEncodeIm2colWide(
        tensorMap: *mut CUtensorMap, tensorDataType: CUtensorMapDataType, tensorRank: cuuint32_t,
        globalAddress: *mut c_void, globalDim: *const cuuint64_t, globalStrides: *const cuuint64_t,
        pixelBoxLowerCornerWidth: c_int, pixelBoxUpperCornerWidth: c_int, channelsPerPixel: cuuint32_t,
        pixelsPerColumn: cuuint32_t, elementStrides: *const cuuint32_t, interleave: CUtensorMapInterleave,
        mode: CUtensorMapIm2ColWideMode, swizzle: CUtensorMapSwizzle, l2Promotion: CUtensorMapL2promotion,
        oobFill: CUtensorMapFloatOOBfill,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe {
            driver.cuTensorMapEncodeIm2colWide(
                tensorMap, tensorDataType, tensorRank, globalAddress, globalDim, globalStrides,
                pixelBoxLowerCornerWidth, pixelBoxUpperCornerWidth, channelsPerPixel, pixelsPerColumn, elementStrides,
                interleave, mode, swizzle, l2Promotion, oobFill,
            )
        };
        // SAFETY: null or written by the driver.
        Some(unsafe { encoded(session, result, tensorMap, globalAddress) })
    }

    /// The descriptor is for another address from now on.
    fn cuTensorMapReplaceAddress(tensorMap: *mut CUtensorMap, globalAddress: *mut c_void) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuTensorMapReplaceAddress(tensorMap, globalAddress) };
        // SAFETY: null or written by the driver.
        Some(unsafe { encoded(session, result, tensorMap, globalAddress) })
    }
}

/// The address in the description of a resource; arrays have none.
///
/// # Safety
/// Null or a valid description.
unsafe fn resource_address(description: *const CUDA_RESOURCE_DESC) -> Option<CUdeviceptr> {
    // SAFETY: the caller's word.
    let description = unsafe { description.as_ref() }?;
    match description.resType {
        // SAFETY: the type says which member it is.
        CU_RESOURCE_TYPE_LINEAR => Some(unsafe { description.res.linear.devPtr }),
        // SAFETY: as above.
        CU_RESOURCE_TYPE_PITCH2D => Some(unsafe { description.res.pitch2D.devPtr }),
        _ => None,
    }
}

/// The driver keeps the address where no argument shows it.
fn kept(session: &Session, address: Option<CUdeviceptr>, result: CUresult) -> CUresult {
    if let (Some(address), CUresult::SUCCESS) = (address, result) {
        moves::escaped(session, address);
    }
    result
}

/// A descriptor is given to kernels by value, or lies in memory that is searched; either way its words are seen, so
/// that is enough if the address is one of them.
///
/// # Safety
/// `map` is null or valid.
unsafe fn encoded(session: &Session, result: CUresult, map: *const CUtensorMap, address: *const c_void) -> CUresult {
    // SAFETY: the caller's word.
    let shown = unsafe { map.as_ref() }.is_some_and(|map| map.opaque.contains(&(address as u64)));
    kept(session, (!shown).then_some(address as u64), result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_and_pitched_resources_have_an_address_and_arrays_have_none() {
        let description = |kind| CUDA_RESOURCE_DESC {
            resType: kind,
            res: CUDA_RESOURCE_DESC_st__bindgen_ty_1 {
                pitch2D: CUDA_RESOURCE_DESC_st__bindgen_ty_1__bindgen_ty_4 {
                    devPtr: 0x1000,
                    format: CU_AD_FORMAT_FLOAT,
                    numChannels: 1,
                    width: 1,
                    height: 1,
                    pitchInBytes: 512,
                },
            },
            flags: 0,
        };
        // SAFETY: a valid description.
        let address = |kind| unsafe { resource_address(&description(kind)) };
        assert_eq!(address(CU_RESOURCE_TYPE_LINEAR), Some(0x1000));
        assert_eq!(address(CU_RESOURCE_TYPE_PITCH2D), Some(0x1000));
        assert_eq!(address(CU_RESOURCE_TYPE_ARRAY), None);
        assert_eq!(address(CU_RESOURCE_TYPE_MIPMAPPED_ARRAY), None);
        // SAFETY: null is allowed.
        assert_eq!(unsafe { resource_address(std::ptr::null()) }, None);
    }
}
