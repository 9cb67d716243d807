//! Primary contexts.

use std::{
    ffi::{c_int, c_uint},
    sync::atomic::Ordering,
};

use emuv_cuda::{
    CUresult,
    types::{CU_CTX_FLAGS_MASK, CUcontext, CUdevice},
};

use super::abi::{entries, pointer};
use crate::{memory::physical::error, sync::lock};

entries! {
    fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice) |call| {
        context.required()?;
        context.write(pointer(call.simulator.retain_primary(call.device(device)?)))
    }

    fn cuDevicePrimaryCtxRelease / cuDevicePrimaryCtxRelease_v2(device: CUdevice) |call| {
        call.simulator.release_primary(call.device(device)?)
    }

    fn cuDevicePrimaryCtxReset / cuDevicePrimaryCtxReset_v2(device: CUdevice) |call| {
        call.simulator.reset_primary(call.device(device)?);
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(device: CUdevice, flags: *mut c_uint, active: *mut c_int) |call| {
        let primary = lock(&call.device(device)?.primary);
        flags.offer(primary.flags);
        active.offer(c_int::from(primary.context.is_some()));
        Ok(())
    }

    fn cuDevicePrimaryCtxSetFlags / cuDevicePrimaryCtxSetFlags_v2(device: CUdevice, flags: c_uint) |call| {
        if flags & !CU_CTX_FLAGS_MASK != 0 {
            return Err(error(CUresult::INVALID_VALUE));
        }
        let mut primary = lock(&call.device(device)?.primary);
        primary.flags = flags;
        if let Some(context) = &primary.context {
            context.flags.store(flags, Ordering::Relaxed);
        }
        Ok(())
    }
}
