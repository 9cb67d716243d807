//! Stream-ordered pools and graph memory: the driver's; what they hold is charged against the VRAM budget.
#![allow(unsafe_code)]

use emuv_cuda::{CUresult, CuResult, types::*};

use crate::{account::Kind, calls, device::Device, entry::entries, session::Session};

entries! {
    /// From the device's current pool.
    fn cuMemAllocAsync(dptr: *mut CUdeviceptr, bytesize: usize, hStream: CUstream) |session, driver| {
        // SAFETY: the program's own arguments.
        from_current(session, bytesize, || unsafe { driver.cuMemAllocAsync(dptr, bytesize, hStream) })
    }

    /// From the device's current pool.
    fn cuMemAllocAsync_ptsz(dptr: *mut CUdeviceptr, bytesize: usize, hStream: CUstream) |session, driver| {
        // SAFETY: the program's own arguments.
        from_current(session, bytesize, || unsafe { driver.cuMemAllocAsync_ptsz(dptr, bytesize, hStream) })
    }

    /// From a pool of the program's choice.
    fn cuMemAllocFromPoolAsync(dptr: *mut CUdeviceptr, bytesize: usize, pool: CUmemoryPool, hStream: CUstream)
    |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuMemAllocFromPoolAsync(dptr, bytesize, pool, hStream) };
        let device = session.device(calls::current_device(session.real).ok()?)?;
        from_pool(session, device, pool, bytesize, call)
    }

    /// From a pool of the program's choice.
    fn cuMemAllocFromPoolAsync_ptsz(dptr: *mut CUdeviceptr, bytesize: usize, pool: CUmemoryPool, hStream: CUstream)
    |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuMemAllocFromPoolAsync_ptsz(dptr, bytesize, pool, hStream) };
        let device = session.device(calls::current_device(session.real).ok()?)?;
        from_pool(session, device, pool, bytesize, call)
    }

    /// The pool holds less afterwards.
    fn cuMemPoolTrimTo(pool: CUmemoryPool, minBytesToKeep: usize) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemPoolTrimTo(pool, minBytesToKeep) };
        for device in session.devices().filter(|device| device.accounts.handles(Kind::Pool).contains(&(pool as u64))) {
            device.settle_pool(session, pool as u64);
            device.publish(session);
        }
        Some(result)
    }

    /// The pool is gone.
    fn cuMemPoolDestroy(pool: CUmemoryPool) |session, driver| {
        // SAFETY: the program's own argument.
        let result = unsafe { driver.cuMemPoolDestroy(pool) };
        if result == CUresult::SUCCESS {
            for device in session.devices() {
                if device.accounts.release(device, Kind::Pool, pool as u64) {
                    device.publish(session);
                }
            }
        }
        Some(result)
    }

    /// From now on the device's graphs hold memory.
    fn cuGraphAddMemAllocNode(
        phGraphNode: *mut CUgraphNode,
        hGraph: CUgraph,
        dependencies: *const CUgraphNode,
        numDependencies: usize,
        nodeParams: *mut CUDA_MEM_ALLOC_NODE_PARAMS,
    ) |session, _driver| {
        let device = session.device(calls::current_device(session.real).ok()?)?;
        device.accounts.settle(device, Kind::Graph, 0, calls::graph_memory(session.real, device.ordinal).unwrap_or(0));
        None
    }
}

fn from_current(session: &Session, bytes: usize, call: impl FnOnce() -> CUresult) -> Option<CUresult> {
    let device = session.device(calls::current_device(session.real).ok()?)?;
    let pool = calls::current_pool(session.real, device.ordinal).ok()?;
    from_pool(session, device, pool, bytes, call)
}

fn from_pool(
    session: &Session,
    device: &Device,
    pool: CUmemoryPool,
    bytes: usize,
    call: impl FnOnce() -> CUresult,
) -> Option<CUresult> {
    if session.captures.any() {
        // The call may become a graph's memory node.
        device.accounts.settle(device, Kind::Graph, 0, calls::graph_memory(session.real, device.ordinal).unwrap_or(0));
    } else {
        let grows_by = growth(session, pool, bytes as u64).ok()?;
        let fits = || grows_by <= device.arena.with_memory(|memory| memory.budgets().vram.room_bytes());
        let roomy = fits() || (device.refresh_accounts(session) && fits());
        if !roomy {
            return Some(device.refuse(session));
        }
    }
    let result = call();
    if result == CUresult::SUCCESS {
        device.settle_pool(session, pool as u64);
        device.publish(session);
    }
    Some(result)
}

/// By how much a pool must at least grow for `bytes` more.
fn growth(session: &Session, pool: CUmemoryPool, bytes: u64) -> CuResult<u64> {
    let held = calls::pool_attribute(session.real, pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let used = calls::pool_attribute(session.real, pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    Ok(bytes.saturating_sub(held.saturating_sub(used)))
}
