//! Contexts, and which one is current.

use std::{
    ffi::{c_int, c_uint, c_ulonglong},
    sync::atomic::Ordering,
};

use emuv_cuda::{
    CUresult, CuResult,
    types::{
        CU_CTX_FLAGS_MASK, CU_LIMIT_MALLOC_HEAP_SIZE, CU_LIMIT_MAX, CU_LIMIT_MAX_L2_FETCH_GRANULARITY,
        CU_LIMIT_PRINTF_FIFO_SIZE, CU_LIMIT_STACK_SIZE, CUcontext, CUctxCreateParams, CUdevice, CUexecAffinityParam,
        CUfunc_cache, CUlimit, CUsharedconfig,
    },
};

use super::{
    abi::{Out, entries, pointer},
    call::Call,
};
use crate::{memory::physical::error, process, sync::lock};

/// Priorities that a stream may have: least and greatest.
pub const PRIORITIES: (i32, i32) = (0, -5);

fn create(call: &Call, out: Out<CUcontext>, flags: c_uint, device: CUdevice) -> CuResult {
    out.required()?;
    if flags & !CU_CTX_FLAGS_MASK != 0 {
        return Err(error(CUresult::INVALID_VALUE));
    }
    let context = call.simulator.create_context(call.device(device)?, flags);
    process::with_current(|stack| stack.push(context.handle()));
    out.write(pointer(context.handle()))
}

fn destroy(call: &Call, handle: u64) -> CuResult {
    let context = call.simulator.contexts.get(handle).ok_or(error(CUresult::INVALID_CONTEXT))?;
    if context.is_primary {
        return Err(error(CUresult::INVALID_CONTEXT));
    }
    call.simulator.end_context(&context);
    process::with_current(|stack| {
        if stack.last() == Some(&handle) {
            stack.pop();
        }
    });
    Ok(())
}

fn synchronize(call: &Call, handle: u64) -> CuResult {
    let context = call.context(handle)?;
    context.engine.status.ok()?;
    call.simulator.graphs.captures.forbid_in(context.handle())?;
    call.unsafe_in_capture()?;
    context.synchronize()
}

fn limit_default(limit: CUlimit) -> u64 {
    match limit {
        CU_LIMIT_STACK_SIZE => 1024,
        CU_LIMIT_PRINTF_FIFO_SIZE => 7 << 20,
        CU_LIMIT_MALLOC_HEAP_SIZE => 8 << 20,
        CU_LIMIT_MAX_L2_FETCH_GRANULARITY => 64,
        _ => 0,
    }
}

entries! {
    fn cuCtxCreate / cuCtxCreate_v2(out: *mut CUcontext, flags: c_uint, device: CUdevice) |call| {
        create(call, out, flags, device)
    }

    fn cuCtxCreate_v3(
        out: *mut CUcontext, params: *mut CUexecAffinityParam, count: c_int, flags: c_uint, device: CUdevice,
    ) |call| {
        if count != 0 && !params.is_null() {
            return Err(error(CUresult::CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY));
        }
        create(call, out, flags, device)
    }

    fn cuCtxCreate_v4(out: *mut CUcontext, params: *mut CUctxCreateParams, flags: c_uint, device: CUdevice) |call| {
        if !params.is_null() {
            let params = params.read()?;
            if params.numExecAffinityParams != 0 || !params.cigParams.is_null() {
                return Err(error(CUresult::NOT_SUPPORTED));
            }
        }
        create(call, out, flags, device)
    }

    fn cuCtxDestroy / cuCtxDestroy_v2(context: CUcontext) |call| { destroy(call, context.address()) }

    fn cuCtxPushCurrent / cuCtxPushCurrent_v2(context: CUcontext) |call| {
        let context = call.simulator.contexts.get(context.address()).ok_or(error(CUresult::INVALID_CONTEXT))?;
        process::with_current(|stack| stack.push(context.handle()));
        Ok(())
    }

    fn cuCtxPopCurrent / cuCtxPopCurrent_v2(out: *mut CUcontext) |_call| {
        let popped = process::with_current(Vec::pop).ok_or(error(CUresult::INVALID_CONTEXT))?;
        out.offer(pointer(popped));
        Ok(())
    }

    fn cuCtxSetCurrent(context: CUcontext) |call| {
        let handle = context.address();
        if handle != 0 && call.simulator.contexts.get(handle).is_none() {
            return Err(error(CUresult::INVALID_CONTEXT));
        }
        process::with_current(|stack| {
            stack.pop();
            if handle != 0 {
                stack.push(handle);
            }
        });
        Ok(())
    }

    fn cuCtxGetCurrent(out: *mut CUcontext) |_call| {
        out.write(pointer(process::with_current(|stack| stack.last().copied().unwrap_or(0))))
    }

    fn cuCtxGetDevice(out: *mut CUdevice) |call| { out.write(call.current_or_broken()?.engine.ordinal) }

    fn cuCtxGetDevice_v2(out: *mut CUdevice, context: CUcontext) |call| {
        out.write(call.context(context.address())?.engine.ordinal)
    }

    fn cuCtxGetFlags(out: *mut c_uint) |call| { out.write(call.current()?.flags.load(Ordering::Relaxed)) }

    fn cuCtxSetFlags(flags: c_uint) |call| {
        call.current()?.flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxGetId(context: CUcontext, out: *mut c_ulonglong) |call| {
        out.write(call.context(context.address())?.handle())
    }

    fn cuCtxGetApiVersion(context: CUcontext, out: *mut c_uint) |call| {
        call.context(context.address())?;
        out.write(3020)
    }

    fn cuCtxSynchronize() |call| { synchronize(call, 0) }

    fn cuCtxSynchronize_v2(context: CUcontext) |call| { synchronize(call, context.address()) }

    fn cuCtxGetLimit(out: *mut usize, limit: CUlimit) |call| {
        let context = call.current()?;
        if limit >= CU_LIMIT_MAX {
            return Err(error(CUresult::CUDA_ERROR_UNSUPPORTED_LIMIT));
        }
        let value = lock(&context.settings.limits).get(&limit).copied();
        out.write(crate::memory::length(value.unwrap_or_else(|| limit_default(limit))))
    }

    fn cuCtxSetLimit(limit: CUlimit, value: usize) |call| {
        let context = call.current()?;
        if limit >= CU_LIMIT_MAX {
            return Err(error(CUresult::CUDA_ERROR_UNSUPPORTED_LIMIT));
        }
        lock(&context.settings.limits).insert(limit, value as u64);
        Ok(())
    }

    fn cuCtxGetCacheConfig(out: *mut CUfunc_cache) |call| {
        out.write(call.current()?.settings.cache_config.load(Ordering::Relaxed))
    }

    fn cuCtxSetCacheConfig(config: CUfunc_cache) |call| {
        call.current()?.settings.cache_config.store(config, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxGetSharedMemConfig(out: *mut CUsharedconfig) |call| {
        out.write(call.current()?.settings.shared_memory_config.load(Ordering::Relaxed))
    }

    fn cuCtxSetSharedMemConfig(config: CUsharedconfig) |call| {
        call.current()?.settings.shared_memory_config.store(config, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) |call| {
        call.current()?;
        least.offer(PRIORITIES.0);
        greatest.offer(PRIORITIES.1);
        Ok(())
    }

    fn cuCtxResetPersistingL2Cache() |call| { call.current().map(|_| ()) }

    fn cuCtxEnablePeerAccess(peer: CUcontext, flags: c_uint) |call| {
        let (context, peer) = (call.current()?, call.context(peer.address())?);
        if flags != 0 {
            return Err(error(CUresult::INVALID_VALUE));
        }
        let machine = &call.simulator.machine;
        if !machine.config.p2p || context.engine.ordinal == peer.engine.ordinal {
            return Err(error(CUresult::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED));
        }
        machine.peers.open_context(context.handle(), peer.handle())
    }

    fn cuCtxDisablePeerAccess(peer: CUcontext) |call| {
        let (context, peer) = (call.current()?, call.context(peer.address())?);
        call.simulator.machine.peers.close_context(context.handle(), peer.handle())
    }
}
