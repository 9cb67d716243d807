//! Stream-ordered allocation: memory is taken when the call is made and given back when the stream gets there.

use std::{
    ffi::c_void,
    sync::{Arc, atomic::Ordering},
};

use emuv_cuda::{
    CUresult, CuResult,
    types::{
        self, CUdevice, CUdeviceptr, CUmemAccess_flags, CUmemAccessDesc, CUmemLocation, CUmemPool_attribute,
        CUmemPoolProps, CUmemoryPool, CUstream,
    },
};

use super::{
    abi::{Out, entries, location_id, pointer},
    call::Call,
};
use crate::{memory::physical::error, simulator::Pool, stream::queue::Op, sync::lock};

fn pool(call: &Call, handle: u64) -> CuResult<Arc<Pool>> {
    call.simulator.pools.get(handle).ok_or(error(CUresult::INVALID_VALUE))
}

fn allocate(call: &Call, out: Out<CUdeviceptr>, bytes: usize, handle: Option<u64>, stream: u64) -> CuResult {
    let target = call.stream(stream)?;
    out.required()?;
    // A graph cannot hold allocations here: a captured stream is refused.
    target.forbid_capture()?;
    let device = call.device(target.context.engine.ordinal)?;
    let handle = handle.unwrap_or_else(|| device.current_pool.load(Ordering::Relaxed));
    let pool = pool(call, handle)?;
    if pool.ordinal != device.ordinal {
        return Err(error(CUresult::NOT_SUPPORTED));
    }
    let base = target.context.allocate(bytes as u64, handle)?.base;
    let held = call.simulator.machine.heap.pool_bytes(handle);
    for mark in HIGH_MARKS {
        let mut attributes = lock(&pool.attributes);
        let high = attributes.entry(mark).or_default();
        *high = (*high).max(held);
    }
    out.write(base)
}

/// Attributes that keep the most there was; with nothing kept in reserve they are the same.
const HIGH_MARKS: [CUmemPool_attribute; 2] =
    [types::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH, types::CU_MEMPOOL_ATTR_USED_MEM_HIGH];

/// Attributes of 32 bits; the others have 64.
fn is_short(which: CUmemPool_attribute) -> bool {
    matches!(
        which,
        types::CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES
            | types::CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC
            | types::CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES
    )
}

entries! {
    fn cuDeviceGetDefaultMemPool(out: *mut CUmemoryPool, device: CUdevice) |call| {
        out.write(pointer(call.device(device)?.default_pool))
    }

    fn cuDeviceGetMemPool(out: *mut CUmemoryPool, device: CUdevice) |call| {
        out.write(pointer(call.device(device)?.current_pool.load(Ordering::Relaxed)))
    }

    fn cuDeviceSetMemPool(device: CUdevice, handle: CUmemoryPool) |call| {
        let device = call.device(device)?;
        if pool(call, handle.address())?.ordinal != device.ordinal {
            return Err(error(CUresult::INVALID_VALUE));
        }
        device.current_pool.store(handle.address(), Ordering::Relaxed);
        Ok(())
    }

    fn cuMemPoolCreate(out: *mut CUmemoryPool, properties: *const CUmemPoolProps) |call| {
        out.required()?;
        let properties = properties.read()?;
        if properties.location.type_ != types::CU_MEM_LOCATION_TYPE_DEVICE || properties.handleTypes != 0 {
            return Err(error(CUresult::NOT_SUPPORTED));
        }
        let ordinal = call.device(location_id(&properties.location))?.ordinal;
        out.write(pointer(call.simulator.pools.insert(Pool { ordinal, attributes: Default::default() })))
    }

    fn cuMemPoolDestroy(handle: CUmemoryPool) |call| {
        let pool = pool(call, handle.address())?;
        let device = call.device(pool.ordinal)?;
        if device.default_pool == handle.address() {
            return Err(error(CUresult::INVALID_VALUE));
        }
        // A current pool that goes makes the default one current.
        let (gone, default) = (handle.address(), device.default_pool);
        let _ = device.current_pool.compare_exchange(gone, default, Ordering::Relaxed, Ordering::Relaxed);
        call.simulator.pools.remove(handle.address());
        Ok(())
    }

    fn cuMemPoolGetAttribute(handle: CUmemoryPool, which: CUmemPool_attribute, value: *mut c_void) |call| {
        let pool = pool(call, handle.address())?;
        value.required()?;
        let used = || call.simulator.machine.heap.pool_bytes(handle.address());
        let found = match which {
            types::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT | types::CU_MEMPOOL_ATTR_USED_MEM_CURRENT => used(),
            // A mark that was reset counts from what is held now.
            which if HIGH_MARKS.contains(&which) => {
                lock(&pool.attributes).get(&which).copied().unwrap_or(0).max(used())
            }
            types::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD => lock(&pool.attributes).get(&which).copied().unwrap_or(0),
            which if is_short(which) => lock(&pool.attributes).get(&which).copied().unwrap_or(1),
            _ => return Err(error(CUresult::INVALID_VALUE)),
        };
        if is_short(which) {
            value.cast::<u32>().write(u32::try_from(found).unwrap_or(1))
        } else {
            value.cast::<u64>().write(found)
        }
    }

    fn cuMemPoolSetAttribute(handle: CUmemoryPool, which: CUmemPool_attribute, value: *mut c_void) |call| {
        let pool = pool(call, handle.address())?;
        let wanted = match which {
            which if is_short(which) => u64::from(value.cast::<u32>().read()?),
            types::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD => value.cast::<u64>().read()?,
            // High-water marks can only be reset.
            types::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH | types::CU_MEMPOOL_ATTR_USED_MEM_HIGH
                if value.cast::<u64>().read()? == 0 => 0,
            _ => return Err(error(CUresult::INVALID_VALUE)),
        };
        lock(&pool.attributes).insert(which, wanted);
        Ok(())
    }

    fn cuMemPoolTrimTo(handle: CUmemoryPool, keep_bytes: usize) |call| {
        // Nothing is ever kept.
        let _ = keep_bytes;
        pool(call, handle.address()).map(|_| ())
    }

    fn cuMemPoolSetAccess(handle: CUmemoryPool, grants: *const CUmemAccessDesc, count: usize) |call| {
        let pool = pool(call, handle.address())?;
        let peers = &call.simulator.machine.peers;
        for grant in grants.read_all(count)? {
            let who = call.device(location_id(&grant.location))?.ordinal;
            let allowed = grant.flags == types::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
            if who == pool.ordinal && !allowed {
                return Err(error(CUresult::INVALID_VALUE));
            }
            if who != pool.ordinal && !call.simulator.machine.config.p2p {
                return Err(error(CUresult::CUDA_ERROR_INVALID_DEVICE));
            }
            peers.set_pool(who, handle.address(), allowed);
        }
        Ok(())
    }

    fn cuMemPoolGetAccess(flags: *mut CUmemAccess_flags, handle: CUmemoryPool, location: *mut CUmemLocation) |call| {
        let pool = pool(call, handle.address())?;
        let who = call.device(location_id(&location.read()?))?.ordinal;
        let open = who == pool.ordinal || call.simulator.machine.peers.may_touch_pool(who, handle.address());
        flags.write(if open { types::CU_MEM_ACCESS_FLAGS_PROT_READWRITE } else { types::CU_MEM_ACCESS_FLAGS_PROT_NONE })
    }

    fn cuMemAllocAsync / cuMemAllocAsync_ptsz(out: *mut CUdeviceptr, bytes: usize, stream: CUstream) |call| {
        allocate(call, out, bytes, None, stream.address())
    }

    fn cuMemAllocFromPoolAsync / cuMemAllocFromPoolAsync_ptsz(
        out: *mut CUdeviceptr, bytes: usize, handle: CUmemoryPool, stream: CUstream,
    ) |call| {
        allocate(call, out, bytes, Some(handle.address()), stream.address())
    }

    fn cuMemFreeAsync / cuMemFreeAsync_ptsz(address: CUdeviceptr, stream: CUstream) |call| {
        let target = call.stream(stream.address())?;
        if address == 0 {
            return Ok(());
        }
        let machine = Arc::clone(&call.simulator.machine);
        let id = machine.heap.doom(address)?;
        let op = Op::always(move |_| {
            let _ = machine.heap.free_doomed(&machine.space, address, id);
        });
        target.submit(op).map(|_| ())
    }
}
