//! Plain allocations: device memory and pinned host memory.

use std::{
    ffi::{c_uint, c_void},
    sync::Arc,
};

use emuv_cuda::{CUresult, CuResult, types::CUdeviceptr};
use emuv_policy::Bytes;

use super::{
    abi::{Out, entries, pointer},
    call::Call,
};
use crate::{
    handles,
    memory::{
        length,
        physical::{Place, error},
        region::Region,
        space::HostMemory,
    },
};

/// Rows of a pitched allocation begin at multiples of this.
const PITCH_BYTES: usize = 512;
const PAGE_BYTES: u64 = 4096;
/// `CU_MEMHOSTALLOC_DEVICEMAP`.
const DEVICE_MAP: u32 = 2;

fn allocate_host(call: &Call, out: Out<*mut c_void>, bytes: usize, flags: u32) -> CuResult {
    out.required()?;
    let context = call.current()?;
    call.unsafe_in_capture()?;
    if bytes == 0 || flags > 7 {
        return Err(error(CUresult::INVALID_VALUE));
    }
    let out_of_memory = || error(CUresult::OUT_OF_MEMORY);
    let whole = (bytes as u64).checked_next_multiple_of(PAGE_BYTES).ok_or_else(out_of_memory)?;
    let machine = &call.simulator.machine;
    let charge = machine.pinned.charge(Bytes(whole)).ok_or_else(out_of_memory)?;
    let region = Region::host(whole).map_err(|_| out_of_memory())?;
    let base = region.base();
    let host = HostMemory {
        bytes: bytes as u64,
        flags: flags | DEVICE_MAP,
        registered: false,
        context: context.handle(),
        id: handles::fresh(),
        region: Some(region),
        charge: Some(charge),
    };
    machine.space.add_host(base, host)?;
    out.write(pointer(base))
}

/// Base and size of what covers an address.
fn range(call: &Call, address: u64) -> CuResult<(u64, u64)> {
    let machine = &call.simulator.machine;
    if let Some(found) = machine.heap.find(address) {
        return Ok((found.base, found.bytes));
    }
    if let Some(found) = machine.imports.find(address) {
        return Ok((found.base, found.bytes));
    }
    if let Some(found) = machine.space.with_host(address, |base, host| (base, host.bytes)) {
        return Ok(found);
    }
    // What lies in the heap's own mappings exists only where it is allocated.
    let mapped = machine.space.mapped(address).filter(|mapped| !machine.owns(mapped.base));
    let found = mapped.ok_or(error(CUresult::NOT_FOUND))?;
    // The driver knows the size of a node's memory that the program mapped, and gives no base for it.
    let base = if matches!(found.physical.place(), Place::Host(Some(_))) { 0 } else { found.base };
    Ok((base, found.physical.bytes()))
}

entries! {
    fn cuMemAlloc_v2(out: *mut CUdeviceptr, bytes: usize) |call| {
        let context = call.current()?;
        call.unsafe_in_capture()?;
        out.required()?;
        out.write(context.allocate(bytes as u64, 0)?.base)
    }

    fn cuMemAllocPitch_v2(
        out: *mut CUdeviceptr, pitch: *mut usize, width: usize, height: usize, element_bytes: c_uint,
    ) |call| {
        let context = call.current()?;
        call.unsafe_in_capture()?;
        let invalid = || error(CUresult::INVALID_VALUE);
        let _ = (out.required()?, pitch.required()?);
        if width == 0 || height == 0 || ![4, 8, 16].contains(&element_bytes) {
            return Err(invalid());
        }
        let row = width.checked_next_multiple_of(PITCH_BYTES).ok_or_else(invalid)?;
        let bytes = row.checked_mul(height).ok_or(error(CUresult::OUT_OF_MEMORY))?;
        out.write(context.allocate(bytes as u64, 0)?.base)?;
        pitch.write(row)
    }

    fn cuMemFree_v2(address: CUdeviceptr) |call| {
        let context = call.current()?;
        call.unsafe_in_capture()?;
        if address == 0 {
            return Ok(());
        }
        let machine = &call.simulator.machine;
        let lent = machine.imports.find(address).filter(|import| import.base == address && import.is_lent());
        if let Some(lent) = lent {
            call.simulator.contexts.get(lent.context).unwrap_or(context).synchronize()?;
            return machine.imports.close(&machine.space, address);
        }
        let found = machine.heap.find(address).filter(|found| found.base == address && !found.doomed);
        let found = found.ok_or(error(CUresult::INVALID_VALUE))?;
        // Freeing waits for work that may still use the memory.
        let owner = call.simulator.contexts.get(found.context).unwrap_or(context);
        owner.synchronize()?;
        machine.heap.free(&machine.space, address)
    }

    fn cuMemGetInfo(free: *mut c_uint, total: *mut c_uint) |call| {
        let vram = Arc::clone(&call.current()?.engine.gpu.vram);
        let short = |bytes: Bytes| c_uint::try_from(bytes.0).unwrap_or(c_uint::MAX);
        free.offer(short(vram.limit().saturating_sub(vram.used())));
        total.offer(short(vram.limit()));
        Ok(())
    }

    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) |call| {
        let vram = Arc::clone(&call.current()?.engine.gpu.vram);
        free.offer(length(vram.limit().saturating_sub(vram.used()).0));
        total.offer(length(vram.limit().0));
        Ok(())
    }

    fn cuMemGetAddressRange_v2(base: *mut CUdeviceptr, bytes: *mut usize, address: CUdeviceptr) |call| {
        call.current()?;
        let found = range(call, address)?;
        base.offer(found.0);
        bytes.offer(length(found.1));
        Ok(())
    }

    fn cuMemAllocHost_v2(out: *mut *mut c_void, bytes: usize) |call| { allocate_host(call, out, bytes, 0) }

    fn cuMemHostAlloc(out: *mut *mut c_void, bytes: usize, flags: c_uint) |call| {
        allocate_host(call, out, bytes, flags)
    }

    fn cuMemFreeHost(address: *mut c_void) |call| {
        let context = call.current()?;
        call.unsafe_in_capture()?;
        let space = &call.simulator.machine.space;
        let known = space.with_host(address.address(), |base, host| base == address.address() && !host.registered);
        if known != Some(true) {
            return Err(error(CUresult::INVALID_VALUE));
        }
        context.synchronize()?;
        space.remove_host(address.address(), false).map(|_| ()).ok_or(error(CUresult::INVALID_VALUE))
    }

    fn cuMemHostRegister / cuMemHostRegister_v2(address: *mut c_void, bytes: usize, flags: c_uint) |call| {
        let context = call.current()?;
        call.unsafe_in_capture()?;
        if address.is_null() || bytes == 0 {
            return Err(error(CUresult::INVALID_VALUE));
        }
        let machine = &call.simulator.machine;
        let charge = machine.pinned.charge(Bytes(bytes as u64)).ok_or(error(CUresult::OUT_OF_MEMORY))?;
        machine.space.add_host(address.address(), HostMemory {
            bytes: bytes as u64,
            flags: flags | DEVICE_MAP,
            registered: true,
            context: context.handle(),
            id: handles::fresh(),
            region: None,
            charge: Some(charge),
        })
    }

    fn cuMemHostUnregister(address: *mut c_void) |call| {
        call.unsafe_in_capture()?;
        call.current()?.synchronize()?;
        let removed = call.simulator.machine.space.remove_host(address.address(), true);
        removed.map(|_| ()).ok_or(error(CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED))
    }

    fn cuMemHostGetDevicePointer_v2(out: *mut CUdeviceptr, address: *mut c_void, flags: c_uint) |call| {
        call.current()?;
        let known = call.simulator.machine.space.with_host(address.address(), |_, _| ()).is_some();
        if !known || flags != 0 {
            return Err(error(CUresult::INVALID_VALUE));
        }
        out.write(address.address())
    }

    fn cuMemHostGetFlags(out: *mut c_uint, address: *mut c_void) |call| {
        call.current()?;
        let flags = call.simulator.machine.space.with_host(address.address(), |_, host| host.flags);
        out.write(flags.ok_or(error(CUresult::INVALID_VALUE))?)
    }
}
