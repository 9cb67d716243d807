//! The few memory operations that placing chunks needs, as a trait: one implementation calls a driver
//! (real or simulated), tests bring their own.
//!
//! # Safety
//! Each unsafe block is one driver call whose pointers are live locals, or whose address range was
//! reserved through the same object (the trait's methods state what a caller must own).
#![allow(unsafe_code)]

use std::{
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use emuv_policy::Tier;

use crate::{
    driver::Driver,
    result::{CuError, CuResult},
    types::*,
};

/// A physical allocation: one chunk's memory in one tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(pub CUmemGenericAllocationHandle);

/// Memory operations on one device. All sizes and addresses are in bytes and multiples of
/// [`Gpu::granularity_bytes`]. No call waits for the GPU and none needs a current context.
pub trait Gpu: Send + Sync {
    /// The unit of sizes and addresses.
    fn granularity_bytes(&self) -> u64;

    /// Reserves an address range without memory behind it; at `wish`, if that is not 0 and the driver likes it.
    ///
    /// # Errors
    /// The driver's own, e.g. when the address space is used up.
    fn reserve(&self, bytes: u64, wish: u64) -> CuResult<u64>;

    /// Gives an address range back; nothing may be mapped in it.
    ///
    /// # Errors
    /// The driver's own.
    fn unreserve(&self, address: u64, bytes: u64) -> CuResult;

    /// Creates memory for a chunk.
    ///
    /// # Errors
    /// `CUDA_ERROR_OUT_OF_MEMORY` when the tier has no room.
    fn create(&self, tier: Tier, bytes: u64) -> CuResult<Handle>;

    /// Gives a chunk's memory back; it must not be mapped anywhere.
    ///
    /// # Errors
    /// The driver's own.
    fn release(&self, handle: Handle) -> CuResult;

    /// Maps a chunk's memory at an address of a reserved range and lets the device read and write it.
    /// On an error nothing stays mapped.
    ///
    /// # Errors
    /// The driver's own.
    fn map(&self, address: u64, bytes: u64, handle: Handle) -> CuResult;

    /// Whether memory in VRAM can be given to another process ([`Gpu::export`]).
    fn can_export(&self) -> bool {
        false
    }

    /// A descriptor of a chunk's memory in VRAM, for another process to import.
    ///
    /// # Errors
    /// The driver's own.
    fn export(&self, _handle: Handle) -> CuResult<OwnedFd> {
        Err(CuError::NOT_SUPPORTED)
    }

    /// Makes a handle of memory that another process has exported; to be released like one of [`Gpu::create`].
    ///
    /// # Errors
    /// The driver's own.
    fn import(&self, _file: &OwnedFd) -> CuResult<Handle> {
        Err(CuError::NOT_SUPPORTED)
    }

    /// What to ask `cuMemCreate` for memory in RAM next to this device.
    ///
    /// # Errors
    /// `CUDA_ERROR_NOT_SUPPORTED` where the device cannot map host memory.
    fn ram_properties(&self) -> CuResult<CUmemAllocationProp>;

    /// Removes a chunk's mapping. The caller has seen to it that no work in flight touches the range:
    /// the driver does not wait.
    ///
    /// # Errors
    /// The driver's own.
    fn unmap(&self, address: u64, bytes: u64) -> CuResult;
}

/// [`Gpu`] over a loaded driver.
#[derive(Debug)]
pub struct DriverGpu<'d> {
    driver: &'d Driver,
    device: CUdevice,
    /// The NUMA node that host memory is taken from; `None` where the driver cannot map host memory.
    ram_node: Option<i32>,
    granularity_bytes: u64,
    /// Handles in VRAM are made so that they can be exported. A driver that does not say so, or says so and refuses,
    /// makes them without.
    exportable: AtomicBool,
}

impl<'d> DriverGpu<'d> {
    /// Looks up what the device supports. `cuInit` must have been called.
    ///
    /// # Errors
    /// `CUDA_ERROR_NOT_SUPPORTED` where the device has no virtual memory management, else the driver's own.
    pub fn new(driver: &'d Driver, device: CUdevice) -> CuResult<Self> {
        let attribute = |which| device_attribute(driver, device, which);
        if attribute(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED).unwrap_or(0) == 0 {
            CUresult::NOT_SUPPORTED.ok()?;
        }
        let ram_node = ram_node(driver, device);
        let mut granularity_bytes = 0;
        for location in std::iter::once(vram_location(device)).chain(ram_node.map(ram_location)) {
            let properties = properties(location);
            let mut bytes = 0;
            // SAFETY: both pointers are live locals.
            unsafe {
                driver.cuMemGetAllocationGranularity(
                    &raw mut bytes,
                    &raw const properties,
                    CU_MEM_ALLOC_GRANULARITY_MINIMUM,
                )
            }
            .ok()?;
            granularity_bytes = granularity_bytes.max(bytes as u64);
        }
        let exportable = attribute(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED).unwrap_or(0) != 0;
        Ok(Self { driver, device, ram_node, granularity_bytes, exportable: AtomicBool::new(exportable) })
    }

    /// Whether pinned host memory can be mapped into the device's address space here.
    pub fn has_ram_tier(&self) -> bool {
        self.ram_node.is_some()
    }

    fn create_with(&self, properties: &CUmemAllocationProp, bytes: u64) -> CuResult<Handle> {
        let mut handle = 0;
        // SAFETY: both pointers are live locals.
        unsafe { self.driver.cuMemCreate(&raw mut handle, to_usize(bytes), properties, 0) }.ok()?;
        Ok(Handle(handle))
    }

    /// Memory in VRAM, exportable where that can be had.
    fn create_in_vram(&self, bytes: u64) -> CuResult<Handle> {
        let plain = properties(vram_location(self.device));
        if !self.can_export() {
            return self.create_with(&plain, bytes);
        }
        let shareable = CUmemAllocationProp { requestedHandleTypes: CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, ..plain };
        self.create_with(&shareable, bytes).or_else(|error| {
            if error.is_out_of_memory() {
                return Err(error);
            }
            let created = self.create_with(&plain, bytes)?;
            self.exportable.store(false, Ordering::Relaxed);
            Ok(created)
        })
    }
}

/// One attribute of a device.
///
/// # Errors
/// The driver's own, e.g. for an attribute that it does not know.
pub fn device_attribute(driver: &Driver, device: CUdevice, which: CUdevice_attribute) -> CuResult<i32> {
    let mut value = 0;
    // SAFETY: the out-pointer is a live local.
    unsafe { driver.cuDeviceGetAttribute(&raw mut value, which, device) }.ok()?;
    Ok(value)
}

fn vram_location(device: CUdevice) -> CUmemLocation {
    location(CU_MEM_LOCATION_TYPE_DEVICE, device)
}

/// The NUMA node next to the device, where the driver supports host memory there.
fn ram_node(driver: &Driver, device: CUdevice) -> Option<i32> {
    let attribute = |which| device_attribute(driver, device, which).ok();
    if attribute(CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED)? == 0 {
        return None;
    }
    // A machine without NUMA says -1 and has node 0.
    Some(attribute(CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID).unwrap_or(0).max(0))
}

fn ram_location(node: i32) -> CUmemLocation {
    location(CU_MEM_LOCATION_TYPE_HOST_NUMA, node)
}

fn location(kind: CUmemLocationType, id: i32) -> CUmemLocation {
    // SAFETY: plain integers (the id lies in an anonymous union in newer headers); zero is valid.
    let mut location: CUmemLocation = unsafe { std::mem::zeroed() };
    location.type_ = kind;
    location.__bindgen_anon_1.id = id;
    location
}

fn properties(location: CUmemLocation) -> CUmemAllocationProp {
    // SAFETY: a plain C structure of integers and pointers; all zero is the documented default.
    let mut properties: CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = location;
    properties
}

#[allow(clippy::cast_possible_truncation)] // 64-bit only: usize is u64.
fn to_usize(bytes: u64) -> usize {
    bytes as usize
}

impl Gpu for DriverGpu<'_> {
    fn granularity_bytes(&self) -> u64 {
        self.granularity_bytes
    }

    fn reserve(&self, bytes: u64, wish: u64) -> CuResult<u64> {
        let mut address = 0;
        // SAFETY: the out-pointer is a live local; zero alignment and hint mean "any".
        unsafe { self.driver.cuMemAddressReserve(&raw mut address, to_usize(bytes), 0, wish, 0) }.ok()?;
        Ok(address)
    }

    fn unreserve(&self, address: u64, bytes: u64) -> CuResult {
        // SAFETY: the trait's contract: reserved by `reserve`, nothing mapped.
        unsafe { self.driver.cuMemAddressFree(address, to_usize(bytes)) }.ok()
    }

    fn create(&self, tier: Tier, bytes: u64) -> CuResult<Handle> {
        match tier {
            Tier::Vram => self.create_in_vram(bytes),
            Tier::Ram => self.create_with(&self.ram_properties()?, bytes),
        }
    }

    fn can_export(&self) -> bool {
        self.exportable.load(Ordering::Relaxed)
    }

    fn export(&self, handle: Handle) -> CuResult<OwnedFd> {
        let mut file = -1_i32;
        let kind = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
        // SAFETY: for this kind the out-pointer is one to a descriptor: a live local.
        unsafe { self.driver.cuMemExportToShareableHandle((&raw mut file).cast(), handle.0, kind, 0) }.ok()?;
        if file < 0 {
            CUresult::UNKNOWN.ok()?;
        }
        // SAFETY: the driver has just opened it for the caller.
        Ok(unsafe { OwnedFd::from_raw_fd(file) })
    }

    fn import(&self, file: &OwnedFd) -> CuResult<Handle> {
        let mut handle = 0;
        let kind = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
        let number = std::ptr::without_provenance_mut(usize::try_from(file.as_raw_fd()).unwrap_or(usize::MAX));
        // SAFETY: for this kind the descriptor's number takes the pointer's place; it is open during the call.
        unsafe { self.driver.cuMemImportFromShareableHandle(&raw mut handle, number, kind) }.ok()?;
        Ok(Handle(handle))
    }

    fn release(&self, handle: Handle) -> CuResult {
        // SAFETY: the handle came from `create` and is released once.
        unsafe { self.driver.cuMemRelease(handle.0) }.ok()
    }

    fn map(&self, address: u64, bytes: u64, handle: Handle) -> CuResult {
        // SAFETY: the trait's contract: the range is reserved and free; a chunk is exactly one handle.
        unsafe { self.driver.cuMemMap(address, to_usize(bytes), 0, handle.0, 0) }.ok()?;
        let access =
            CUmemAccessDesc { location: vram_location(self.device), flags: CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
        // SAFETY: the range was just mapped; the descriptor is a live local.
        let allowed = unsafe { self.driver.cuMemSetAccess(address, to_usize(bytes), &raw const access, 1) }.ok();
        if allowed.is_err() {
            // Nothing can have used a range without access, so this cannot race.
            let _ = self.unmap(address, bytes);
        }
        allowed
    }

    fn ram_properties(&self) -> CuResult<CUmemAllocationProp> {
        self.ram_node.map(|node| properties(ram_location(node))).ok_or(CuError::NOT_SUPPORTED)
    }

    fn unmap(&self, address: u64, bytes: u64) -> CuResult {
        // SAFETY: the trait's contract: mapped by `map`, idle.
        unsafe { self.driver.cuMemUnmap(address, to_usize(bytes)) }.ok()
    }
}
