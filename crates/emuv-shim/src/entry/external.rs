//! Memory of other interfaces (Vulkan, Direct3D, OpenGL, EGL) that the program uses from CUDA: never moved, and charged
//! against the VRAM budget as far as that goes. It was there before CUDA heard of it, so there is nothing to refuse.
//!
//! An imported object is charged its size. What OpenGL and EGL lend is charged when the program asks where it is,
//! because only then its size is known, until it is unregistered.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::c_uint;

use emuv_cuda::{CUresult, Driver, types::*};

use super::array::array_bytes;
use crate::{account::Kind, entry::entries, session::Session};

entries! {
    /// Charged its whole size, however much of it is mapped.
    fn cuImportExternalMemory(
        extMem_out: *mut CUexternalMemory,
        memHandleDesc: *const CUDA_EXTERNAL_MEMORY_HANDLE_DESC,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuImportExternalMemory(extMem_out, memHandleDesc) };
        if result == CUresult::SUCCESS {
            // SAFETY: the driver has written the one and read the other.
            let (object, bytes) = unsafe { (*extMem_out, (*memHandleDesc).size) };
            lent(session, object as u64, bytes);
        }
        Some(result)
    }

    /// The charge goes with the object.
    fn cuDestroyExternalMemory(extMem: CUexternalMemory) |session, driver| {
        // SAFETY: the program's own argument.
        Some(given_back(session, extMem as u64, || unsafe { driver.cuDestroyExternalMemory(extMem) }))
    }

    /// Charged what lies there.
    fn cuGraphicsResourceGetMappedPointer_v2(
        pDevPtr: *mut CUdeviceptr,
        pSize: *mut usize,
        resource: CUgraphicsResource,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuGraphicsResourceGetMappedPointer_v2(pDevPtr, pSize, resource) };
        // SAFETY: null or valid by the driver's contract, and written by it.
        if result == CUresult::SUCCESS && let Some(bytes) = unsafe { pSize.as_ref() } {
            lent(session, resource as u64, *bytes as u64);
        }
        Some(result)
    }

    /// Charged its first level.
    fn cuGraphicsResourceGetMappedMipmappedArray(
        pMipmappedArray: *mut CUmipmappedArray,
        resource: CUgraphicsResource,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuGraphicsResourceGetMappedMipmappedArray(pMipmappedArray, resource) };
        if result == CUresult::SUCCESS {
            let mut level = core::ptr::null_mut();
            // SAFETY: the driver has written the array; the level is a local.
            if unsafe { driver.cuMipmappedArrayGetLevel(&raw mut level, *pMipmappedArray, 0) } == CUresult::SUCCESS {
                lent_array(session, driver, resource, level);
            }
        }
        Some(result)
    }

    /// Charged the largest of the resource's arrays that the program asks for.
    fn cuGraphicsSubResourceGetMappedArray(
        pArray: *mut CUarray,
        resource: CUgraphicsResource,
        arrayIndex: c_uint,
        mipLevel: c_uint,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuGraphicsSubResourceGetMappedArray(pArray, resource, arrayIndex, mipLevel) };
        if result == CUresult::SUCCESS {
            // SAFETY: the driver has written it.
            lent_array(session, driver, resource, unsafe { *pArray });
        }
        Some(result)
    }

    /// The charge goes with the registration.
    fn cuGraphicsUnregisterResource(resource: CUgraphicsResource) |session, driver| {
        // SAFETY: the program's own argument.
        Some(given_back(session, resource as u64, || unsafe { driver.cuGraphicsUnregisterResource(resource) }))
    }
}

fn lent(session: &Session, handle: u64, bytes: u64) {
    if let Some((context, device)) = session.here() {
        session.context_charges.lent(session, device, context, handle, bytes);
    }
}

fn lent_array(session: &Session, driver: &Driver, resource: CUgraphicsResource, array: CUarray) {
    let mut descriptor = core::mem::MaybeUninit::<CUDA_ARRAY3D_DESCRIPTOR>::uninit();
    // SAFETY: a live array, as the driver has just said, and a local to write to.
    if unsafe { driver.cuArray3DGetDescriptor_v2(descriptor.as_mut_ptr(), array) } == CUresult::SUCCESS {
        // SAFETY: written by the driver.
        let d = unsafe { descriptor.assume_init() };
        lent(session, resource as u64, array_bytes(&[d.Width, d.Height, d.Depth], d.Format, d.NumChannels));
    }
}

fn given_back(session: &Session, handle: u64, call: impl FnOnce() -> CUresult) -> CUresult {
    // Before the call: the handle may come again right after it.
    session.context_charges.gone(session, Kind::External, handle);
    call()
}
