//! What there is, and whose an address is.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::{c_uint, c_void};

use emuv_cuda::{CUresult, types::*};

use crate::{calls, entry::entries, pointer, session::Session};

entries! {
    /// VRAM and RAM together.
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) |session, _driver| {
        let device = session.device(calls::current_device(session.real).ok()?)?;
        let (driver_free, _) = calls::memory_info(session.real).ok()?;
        device.refresh_accounts(session);
        // SAFETY: each is null or valid by the driver's contract.
        unsafe {
            write(free, device.free_bytes(session, driver_free));
            write(total, device.total_bytes());
        }
        Some(CUresult::SUCCESS)
    }

    /// VRAM and RAM together.
    fn cuDeviceTotalMem_v2(bytes: *mut usize, dev: CUdevice) |session, driver| {
        // SAFETY: the program's own arguments; the driver refuses a wrong device.
        let result = unsafe { driver.cuDeviceTotalMem_v2(bytes, dev) };
        if result == CUresult::SUCCESS
            && let Some(device) = session.device(dev)
        {
            // SAFETY: the driver has written it.
            unsafe { write(bytes, device.total_bytes()) };
        }
        Some(result)
    }

    /// The program's allocation, not the chunk behind the address.
    fn cuMemGetAddressRange_v2(pbase: *mut CUdeviceptr, psize: *mut usize, dptr: CUdeviceptr) |session, _driver| {
        let (start, bytes) = match session.device_at(dptr) {
            Some(device) => {
                let Some((start, allocation)) = device.find(dptr) else { return Some(CUresult::NOT_FOUND) };
                (start, allocation.bytes)
            }
            None => match session.ipc.imported_at(dptr) {
                Some(import) => (import.start, import.bytes),
                None => session.handles.spilled_at(dptr).map(|mapping| (mapping.start, mapping.bytes))?,
            },
        };
        // SAFETY: each is null or valid by the driver's contract.
        unsafe {
            if !pbase.is_null() {
                pbase.write(start);
            }
            write(psize, bytes);
        }
        Some(CUresult::SUCCESS)
    }

    /// A spilled pointer is device memory like any other.
    fn cuPointerGetAttribute(data: *mut c_void, attribute: CUpointer_attribute, ptr: CUdeviceptr) |session, _driver| {
        if data.is_null() {
            return None;
        }
        if let Some(mapping) = session.handles.spilled_at(ptr) {
            // SAFETY: not null, and as large as the attribute by the driver's contract.
            return pointer::spilled_mapping(mapping, attribute).map(|value| unsafe { store(data, value) });
        }
        let facts = facts(session, ptr)?;
        let Some(facts) = facts else { return Some(CUresult::INVALID_VALUE) };
        let value = pointer::attribute(&facts, attribute)?;
        Some(match value {
            // SAFETY: not null, and as large as the attribute by the driver's contract.
            Some(value) => unsafe { store(data, value) },
            None => CUresult::INVALID_VALUE,
        })
    }

    /// As above, several at once; what does not apply reads as zero.
    fn cuPointerGetAttributes(
        numAttributes: c_uint,
        attributes: *mut CUpointer_attribute,
        data: *mut *mut c_void,
        ptr: CUdeviceptr,
    ) |session, driver| {
        if attributes.is_null() || data.is_null() {
            return None;
        }
        if let Some(mapping) = session.handles.spilled_at(ptr) {
            // SAFETY: the program's own arguments.
            let result = unsafe { driver.cuPointerGetAttributes(numAttributes, attributes, data, ptr) };
            for index in 0..if result == CUresult::SUCCESS { numAttributes as usize } else { 0 } {
                // SAFETY: both arrays hold `numAttributes` elements by the driver's contract.
                let (which, out) = unsafe { (*attributes.add(index), *data.add(index)) };
                if let Some(value) = pointer::spilled_mapping(mapping, which) {
                    // SAFETY: as large as the attribute by the driver's contract.
                    unsafe { store(out, value) };
                }
            }
            return Some(result);
        }
        let Some(Some(facts)) = facts(session, ptr) else { return None };
        for index in 0..numAttributes as usize {
            // SAFETY: both arrays hold `numAttributes` elements by the driver's contract.
            let (which, out) = unsafe { (*attributes.add(index), *data.add(index)) };
            let result = match pointer::attribute(&facts, which) {
                // SAFETY: as large as the attribute by the driver's contract.
                Some(value) => unsafe { store(out, value.unwrap_or(pointer::Value::Address(0))) },
                // SAFETY: the driver's contract for one attribute is the same as for several.
                None => unsafe { driver.cuPointerGetAttribute(out, which, ptr) },
            };
            if result != CUresult::SUCCESS {
                return Some(result);
            }
        }
        Some(CUresult::SUCCESS)
    }

    /// Memory operations on placed memory are always ordered as `SYNC_MEMOPS` asks, so setting it is
    /// accepted; the driver itself refuses it for memory in RAM.
    fn cuPointerSetAttribute(value: *const c_void, attribute: CUpointer_attribute, ptr: CUdeviceptr)
    |session, driver| {
        session.device_at(ptr)?;
        // SAFETY: the program's own arguments.
        let result = unsafe { driver.cuPointerSetAttribute(value, attribute, ptr) };
        let refused = result != CUresult::SUCCESS && attribute == CU_POINTER_ATTRIBUTE_SYNC_MEMOPS;
        Some(if refused { CUresult::SUCCESS } else { result })
    }
}

/// `None`: not emuV's address. `Some(None)`: in the arena, but nothing is allocated there.
#[allow(clippy::option_option)]
fn facts(session: &Session, address: u64) -> Option<Option<pointer::Facts>> {
    let Some(device) = session.device_at(address) else {
        return session.ipc.imported_at(address).map(|import| {
            Some(pointer::Facts {
                address,
                start: import.start,
                bytes: import.bytes,
                context: import.context.0,
                device: import.device,
                number: pointer::IMPORTED + import.number,
                pool: 0,
                can_be_shared: false,
            })
        });
    };
    let Some((start, allocation)) = device.find(address) else { return Some(None) };
    let pool = device.pools.find(start).map_or(0, |(_, block)| block.pool.0);
    Some(Some(pointer::Facts {
        address,
        start,
        bytes: allocation.bytes,
        context: allocation.owner.0,
        device: device.ordinal,
        number: allocation.id.0,
        pool,
        can_be_shared: pool == 0 && device.arena.gpu().can_export(),
    }))
}

/// # Safety
/// `data` is valid for the value.
unsafe fn store(data: *mut c_void, value: pointer::Value) -> CUresult {
    // SAFETY: the caller's word.
    unsafe {
        match value {
            pointer::Value::Address(value) => data.cast::<u64>().write_unaligned(value),
            pointer::Value::Number(value) => data.cast::<u32>().write_unaligned(value),
            pointer::Value::Flag(value) => data.cast::<u8>().write(u8::from(value)),
        }
    }
    CUresult::SUCCESS
}

/// # Safety
/// `out` is null or valid.
#[allow(clippy::cast_possible_truncation)] // 64-bit only.
unsafe fn write(out: *mut usize, value: u64) {
    if !out.is_null() {
        // SAFETY: not null, so valid.
        unsafe { out.write(value as usize) };
    }
}
