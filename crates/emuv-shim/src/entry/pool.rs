//! Stream-ordered allocation. Pools of plain device memory are emuV's (`pools.rs`); the others are the
//! driver's, charged against the VRAM budget.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::c_void;

use emuv_cuda::{CUresult, CuResult, types::*};
use emuv_policy::PoolId;

use crate::{
    account::Kind,
    arena::Refusal,
    calls,
    device::Device,
    entry::{entries, graph},
    log,
    peers::Reason,
    pools::{self, On},
    session::Session,
};

entries! {
    /// From the device's current pool.
    fn cuMemAllocAsync(dptr: *mut CUdeviceptr, bytesize: usize, hStream: CUstream) |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuMemAllocAsync(dptr, bytesize, hStream) };
        allocate(session, Request { dptr, bytes: bytesize, pool: None, stream: hStream, per_thread: false }, call)
    }

    /// From the device's current pool.
    fn cuMemAllocAsync_ptsz(dptr: *mut CUdeviceptr, bytesize: usize, hStream: CUstream) |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuMemAllocAsync_ptsz(dptr, bytesize, hStream) };
        allocate(session, Request { dptr, bytes: bytesize, pool: None, stream: hStream, per_thread: true }, call)
    }

    /// From a pool of the program's choice.
    fn cuMemAllocFromPoolAsync(dptr: *mut CUdeviceptr, bytesize: usize, pool: CUmemoryPool, hStream: CUstream)
    |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuMemAllocFromPoolAsync(dptr, bytesize, pool, hStream) };
        allocate(session, Request { dptr, bytes: bytesize, pool: Some(pool), stream: hStream, per_thread: false }, call)
    }

    /// From a pool of the program's choice.
    fn cuMemAllocFromPoolAsync_ptsz(dptr: *mut CUdeviceptr, bytesize: usize, pool: CUmemoryPool, hStream: CUstream)
    |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuMemAllocFromPoolAsync_ptsz(dptr, bytesize, pool, hStream) };
        allocate(session, Request { dptr, bytes: bytesize, pool: Some(pool), stream: hStream, per_thread: true }, call)
    }

    /// Any pointer of emuV's, from a pool or from `cuMemAlloc`, once the stream has come that far.
    fn cuMemFreeAsync(dptr: CUdeviceptr, hStream: CUstream) |session, _driver| {
        free(session, dptr, hStream, false)
    }

    /// The same for the per-thread default stream.
    fn cuMemFreeAsync_ptsz(dptr: CUdeviceptr, hStream: CUstream) |session, _driver| {
        free(session, dptr, hStream, true)
    }

    /// Another current pool.
    fn cuDeviceSetMemPool(dev: CUdevice, pool: CUmemoryPool) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuDeviceSetMemPool(dev, pool) };
        session.devices().for_each(|device| device.pools.current_changed());
        Some(result)
    }

    /// Another current pool, by location.
    fn cuMemSetMemPool(location: *mut CUmemLocation, type_: CUmemAllocationType, pool: CUmemoryPool) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemSetMemPool(location, type_, pool) };
        session.devices().for_each(|device| device.pools.current_changed());
        Some(result)
    }

    /// The driver makes the pool (its handle is the pool's name); emuV serves it if it is for plain device
    /// memory.
    fn cuMemPoolCreate(pool: *mut CUmemoryPool, poolProps: *const CUmemPoolProps) |session, driver| {
        // SAFETY: null or valid by the driver's contract.
        let props = *unsafe { poolProps.as_ref() }?;
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemPoolCreate(pool, poolProps) };
        let plain = props.allocType == CU_MEM_ALLOCATION_TYPE_PINNED
            && props.handleTypes == CU_MEM_HANDLE_TYPE_NONE
            && props.location.type_ == CU_MEM_LOCATION_TYPE_DEVICE;
        if result == CUresult::SUCCESS && plain {
            // SAFETY: a device location has an id.
            let device = session.device(unsafe { props.location.__bindgen_anon_1.id });
            let limit = if props.maxSize == 0 { u64::MAX } else { props.maxSize as u64 };
            // SAFETY: the driver has written the handle.
            let handle = PoolId(unsafe { *pool } as u64);
            device.inspect(|device| device.pools.adopt(handle, limit));
        }
        Some(result)
    }

    /// What the pool still holds goes when the program frees it.
    fn cuMemPoolDestroy(pool: CUmemoryPool) |session, driver| {
        // SAFETY: the program's own argument.
        let result = unsafe { driver.cuMemPoolDestroy(pool) };
        if result == CUresult::SUCCESS {
            session.peers.pool_gone(session, PoolId(pool as u64));
            for device in session.devices() {
                device.accounts.release(device, Kind::Pool, pool as u64);
                if device.pools.is_ours(session, device, PoolId(pool as u64)) {
                    device.pools.destroyed(session, &device.arena, PoolId(pool as u64));
                }
                device.publish(session);
            }
        }
        Some(result)
    }

    /// Gives free blocks back, as far as no work in flight may touch them.
    fn cuMemPoolTrimTo(pool: CUmemoryPool, minBytesToKeep: usize) |session, driver| {
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemPoolTrimTo(pool, minBytesToKeep) };
        if result == CUresult::SUCCESS {
            for device in session.devices() {
                if device.pools.is_ours(session, device, PoolId(pool as u64)) {
                    device.pools.trim(session, &device.arena, PoolId(pool as u64), minBytesToKeep as u64);
                    device.publish(session);
                } else if device.accounts.handles(Kind::Pool).contains(&(pool as u64)) {
                    device.settle_pool(session, pool as u64);
                }
                device.publish(session);
            }
        }
        Some(result)
    }

    /// Sizes are emuV's, the rest is the driver's.
    fn cuMemPoolGetAttribute(pool: CUmemoryPool, attr: CUmemPool_attribute, value: *mut c_void) |session, _driver| {
        let device = owner(session, pool)?;
        let pool = PoolId(pool as u64);
        let usage = device.pools.with(|pools| pools.usage(pool));
        let answer = match attr {
            CU_MEMPOOL_ATTR_RELEASE_THRESHOLD => device.pools.with(|pools| pools.release_threshold(pool)),
            CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT => usage.reserved,
            CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH => usage.reserved_high,
            CU_MEMPOOL_ATTR_USED_MEM_CURRENT => usage.used,
            CU_MEMPOOL_ATTR_USED_MEM_HIGH => usage.used_high,
            _ => return None,
        };
        if value.is_null() {
            return None;
        }
        // SAFETY: not null; these attributes are 64-bit integers.
        unsafe { value.cast::<u64>().write_unaligned(answer) };
        Some(CUresult::SUCCESS)
    }

    /// The release threshold and the high marks are emuV's, the rest is the driver's.
    fn cuMemPoolSetAttribute(pool: CUmemoryPool, attr: CUmemPool_attribute, value: *mut c_void) |session, driver| {
        let device = owner(session, pool)?;
        // The driver checks the call, and keeps the value for a pool that is shared later.
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemPoolSetAttribute(pool, attr, value) };
        if result != CUresult::SUCCESS || value.is_null() {
            return Some(result);
        }
        // SAFETY: not null; the attributes that are looked at here are 64-bit integers.
        let number = || unsafe { value.cast::<u64>().read_unaligned() };
        device.pools.with(|pools| match attr {
            CU_MEMPOOL_ATTR_RELEASE_THRESHOLD => pools.set_release_threshold(PoolId(pool as u64), number()),
            CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH => pools.reset_high(PoolId(pool as u64), false, true),
            CU_MEMPOOL_ATTR_USED_MEM_HIGH => pools.reset_high(PoolId(pool as u64), true, false),
            _ => {}
        });
        Some(result)
    }

    /// What a peer device may touch of a pool it may touch of the whole arena that the pool's memory lies in.
    fn cuMemPoolSetAccess(pool: CUmemoryPool, map: *const CUmemAccessDesc, count: usize) |session, driver| {
        let device = owner(session, pool)?;
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuMemPoolSetAccess(pool, map, count) };
        if result != CUresult::SUCCESS || map.is_null() {
            return Some(result);
        }
        // SAFETY: the driver has just read `count` of them.
        let wanted = unsafe { std::slice::from_raw_parts(map, count) };
        for access in wanted.iter().filter(|access| access.location.type_ == CU_MEM_LOCATION_TYPE_DEVICE) {
            // SAFETY: a device location has an id.
            let who = unsafe { access.location.__bindgen_anon_1.id };
            let grant = (who, device.ordinal, Reason::Pool(PoolId(pool as u64)));
            if access.flags == CU_MEM_ACCESS_FLAGS_PROT_NONE {
                session.peers.close(session, grant);
            } else if let Err(error) = session.peers.open(session, grant) {
                return Some(error.code());
            }
        }
        Some(result)
    }
}

struct Request {
    dptr: *mut CUdeviceptr,
    bytes: usize,
    /// `None`: the device's current one.
    pool: Option<CUmemoryPool>,
    stream: CUstream,
    per_thread: bool,
}

/// The device for which emuV serves `pool`.
fn owner(session: &Session, pool: CUmemoryPool) -> Option<&Device> {
    // A pool may be asked about before its device has been used.
    let current = calls::current_device(session.real).ok().and_then(|ordinal| session.device(ordinal));
    let pool = PoolId(pool as u64);
    let serves = |device: &&Device| device.pools.is_ours(session, device, pool);
    current.filter(serves).or_else(|| session.devices().find(serves))
}

#[allow(clippy::needless_pass_by_value)] // One call's arguments.
fn allocate(session: &Session, request: Request, call: impl FnOnce() -> CUresult) -> Option<CUresult> {
    if request.dptr.is_null() || request.bytes == 0 || !session.places() {
        return None;
    }
    let Some((context, device)) = session.here() else { return session.unplaced() };
    let on = On { handle: request.stream, per_thread: request.per_thread, context };
    if session.captures.any() && calls::is_capturing(session.real, request.stream, request.per_thread) {
        // The call becomes a graph's memory node.
        graph::watch(session, device);
        return None;
    }
    let pool = match request.pool {
        Some(pool) => PoolId(pool as u64),
        None => device.pools.current(session, device)?,
    };
    if !device.pools.is_ours(session, device, pool) {
        return from_driver(session, device, pool.0 as CUmemoryPool, request.bytes as u64, call);
    }
    match device.moves.timed(|| device.allocate_in_order(session, pool, request.bytes as u64, on)) {
        Ok(address) => {
            // SAFETY: not null, so valid by the driver's contract.
            unsafe { request.dptr.write(address) };
            Some(CUresult::SUCCESS)
        }
        Err(Refusal::NoRoom) => Some(CUresult::OUT_OF_MEMORY),
        Err(Refusal::Driver(error)) if session.slice.is_some() => Some(error.code()),
        Err(Refusal::Driver(error)) => {
            log::error(format_args!("placing {} bytes: {error}; left to the driver", request.bytes));
            None
        }
    }
}

fn free(session: &Session, address: CUdeviceptr, stream: CUstream, per_thread: bool) -> Option<CUresult> {
    let device = session.device_at(address)?;
    if session.captures.any() && calls::is_capturing(session.real, stream, per_thread) {
        // In a capture only the graph's own memory may be freed: the driver says so.
        return None;
    }
    let on = pools::on(session, stream, per_thread)?;
    Some(device.moves.timed(|| device.free_in_order(session, address, on)).into())
}

/// A pool that is the driver's: charged for what it holds.
fn from_driver(
    session: &Session,
    device: &Device,
    pool: CUmemoryPool,
    bytes: u64,
    call: impl FnOnce() -> CUresult,
) -> Option<CUresult> {
    if let Ok(grows_by) = growth(session, pool, bytes) {
        let fits = || {
            device.look_at_slice(session);
            grows_by <= device.arena.with_memory(|memory| memory.budgets().vram.prospect_bytes())
        };
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

/// By how much a pool of the driver's must at least grow for `bytes` more.
fn growth(session: &Session, pool: CUmemoryPool, bytes: u64) -> CuResult<u64> {
    let held = calls::pool_attribute(session.real, pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let used = calls::pool_attribute(session.real, pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    Ok(bytes.saturating_sub(held.saturating_sub(used)))
}
