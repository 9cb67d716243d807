// SPDX-License-Identifier: GPL-2.0

//! The seam between the module's Rust and the kernel's C: all unsafe code of the module.
//!
//! # Safety
//!
//! - What the kernel holds for us: an *opener* (a file's private data from `open` to `release`, part of a buffer's from its export
//!   to its release) and an *instance* (a device's data). Nothing calls in with them before or after. A device's instance is in
//!   the registry until the device is gone and nobody is in one of its attributes (`device_destroy` waits).
//! - Both are shared between threads: such pointers become `&`, never `&mut`, except where they end.
//! - Functions that the kernel calls are given what its documentation says, which they state as their contract.
//! - No function unwinds: the kernel aborts on panic, and arithmetic of foreign numbers is checked.
//! - Module parameters that are read here cannot be written after loading, except `debug_mode`, one byte.

#![allow(unsafe_code)]

use core::ptr::{NonNull, addr_of};

use kernel::{
    bindings,
    configfs::ItemType,
    error::{from_err_ptr, from_result, to_result},
    ffi::{c_char, c_int, c_uint, c_void},
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc,
    transmute::{AsBytes, FromBytes},
};

use crate::{
    abi::{Charge, Export, MAX_INSTANCES, Query},
    instance::{Attribute, Instance},
    registry,
    setup::Asked,
    text::Text,
};

mod directory;
mod files;
mod memory;

pub(crate) use directory::Directory;
pub(crate) use memory::{RamPage, export, go_on};

/// `EMUV_INFO_MINOR`.
pub(crate) const INFO_MINOR: u32 = MAX_INSTANCES as u32;

// As `emuv_shim.h` declares them.
extern "C" {
    fn emuv_c_register() -> c_int;
    fn emuv_c_unregister();
    fn emuv_c_device_add(minor: c_uint, name: *const c_char, instance: *mut c_void) -> c_int;
    fn emuv_c_device_del(minor: c_uint);
    fn emuv_c_changed(minor: c_uint);
    fn emuv_c_ram_bytes() -> u64;
    fn emuv_c_free_ram_bytes() -> u64;
    fn emuv_c_dmem_add(name: *const c_char, bytes: u64) -> *mut c_void;
    fn emuv_c_dmem_del(region: *mut c_void);
    fn emuv_c_dmem_charge(region: *mut c_void, bytes: u64, pool: *mut *mut c_void) -> c_int;
    fn emuv_c_dmem_uncharge(pool: *mut c_void, bytes: u64);

    static emuv_gpu_model: [*const c_char; MAX_INSTANCES];
    static emuv_gpu_models: c_int;
    static emuv_physical_vram_gb: [c_uint; MAX_INSTANCES];
    static emuv_physical_vram_gbs: c_int;
    static emuv_virtual_vram_gb: [c_uint; MAX_INSTANCES];
    static emuv_virtual_vram_gbs: c_int;
    static emuv_instance_id: [c_uint; MAX_INSTANCES];
    static emuv_instance_ids: c_int;
    static emuv_lazy_allocation: bool;
    static emuv_debug_mode: bool;
}

// ---- Rust calls C ----

/// The class, the character device numbers, the registry's lock. Gone when dropped.
pub(crate) struct Devices(());

impl Devices {
    /// Once, as the first thing that the module does.
    pub(crate) fn register() -> Result<Self> {
        // SAFETY: Called once, before anything can reach the registry: no device exists yet.
        unsafe { registry::REGISTRY.init() };
        // SAFETY: Called once; its counterpart is called when the value is dropped.
        to_result(unsafe { emuv_c_register() })?;
        Ok(Self(()))
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        // SAFETY: Registered, and dropped last: all devices are gone.
        unsafe { emuv_c_unregister() };
    }
}

/// A node and a class device for `instance`, which must stay in the registry until [`remove_device`] has returned.
pub(crate) fn add_device(minor: u32, name: &[u8; 16], instance: &Arc<Instance>) -> Result {
    let data = Arc::as_ptr(instance).cast_mut().cast();
    debug_assert!(name[15] == 0);
    // SAFETY: `name` is zero-terminated text and is copied; `data` is valid as long as the device is there.
    to_result(unsafe { emuv_c_device_add(minor, name.as_ptr().cast(), data) })
}

/// The device is gone afterwards and nobody is in an attribute of it.
pub(crate) fn remove_device(minor: u32) {
    // SAFETY: Any number may be given; without a device nothing happens.
    unsafe { emuv_c_device_del(minor) };
}

/// User space hears that the limits of the instance changed.
pub(crate) fn changed(minor: u32) {
    // SAFETY: As above.
    unsafe { emuv_c_changed(minor) };
}

/// RAM of the machine, bytes.
pub(crate) fn ram_bytes() -> u64 {
    // SAFETY: Reads a counter.
    unsafe { emuv_c_ram_bytes() }
}

/// RAM that can be had without hurting anybody, about, bytes.
pub(crate) fn free_ram_bytes() -> u64 {
    // SAFETY: Reads counters.
    unsafe { emuv_c_free_ram_bytes() }
}

/// Whether the module was asked to log more.
pub(crate) fn debug_mode() -> bool {
    // SAFETY: One byte that is always 0 or 1; it may change meanwhile, which a volatile read allows for in the kernel.
    unsafe { addr_of!(emuv_debug_mode).read_volatile() }
}

/// Calls `f` with the module parameters.
pub(crate) fn with_parameters<T>(f: impl FnOnce(&Asked<'_>) -> Result<T>) -> Result<T> {
    // SAFETY: Written before the module starts, by the kernel's parser, and never again. It writes no more values than the
    // lists have places.
    let (models, asked) = unsafe {
        (
            &emuv_gpu_model[..emuv_gpu_models as usize],
            Asked {
                gpu_model: &[],
                physical_vram_gb: &emuv_physical_vram_gb[..emuv_physical_vram_gbs as usize],
                virtual_vram_gb: &emuv_virtual_vram_gb[..emuv_virtual_vram_gbs as usize],
                instance_id: &emuv_instance_id[..emuv_instance_ids as usize],
                lazy_allocation: emuv_lazy_allocation,
            },
        )
    };
    let mut names: [&str; MAX_INSTANCES] = [""; MAX_INSTANCES];
    for (name, &model) in names.iter_mut().zip(models) {
        // SAFETY: A parameter's text is zero-terminated and stays as long as the module.
        let model = unsafe { CStr::from_char_ptr(model) };
        *name = model.to_str().map_err(|_| EINVAL)?;
    }
    f(&Asked { gpu_model: &names[..models.len()], ..asked })
}

/// What `of` is to C.
fn item_type<Container, Data>(of: &'static ItemType<Container, Data>) -> *const bindings::config_item_type {
    // An `ItemType` is exactly its `config_item_type` and nothing of size, so it begins with it.
    const { assert!(size_of::<ItemType<Container, Data>>() == size_of::<bindings::config_item_type>()) };
    core::ptr::from_ref(of).cast()
}

/// Makes open configfs files hold this module: the kernel's abstraction (7.3) gives attributes no owner, so that a file that is
/// open while its directory goes would outlive the code.
pub(crate) fn own_attributes<Container, Data>(of: &'static ItemType<Container, Data>) {
    let item_type = item_type(of);
    // SAFETY: It is static. The list ends with null; its entries are static and in mutable memory (`Opaque`), and every
    // writer, here, writes the same.
    unsafe {
        let mut entry = (*item_type).ct_attrs;
        while !(*entry).is_null() {
            (**entry).ca_owner = (*item_type).ct_owner;
            entry = entry.add(1);
        }
    }
}

// ---- dmem cgroups ----

/// An instance's VRAM as a region of the dmem controller.
pub(crate) struct DmemRegion(NonNull<c_void>);

// SAFETY: The controller locks for itself; a region belongs to no thread.
unsafe impl Send for DmemRegion {}

impl DmemRegion {
    /// `None` where the kernel has no such controller.
    pub(crate) fn new(name: &[u8; 16], bytes: u64) -> Result<Option<Self>> {
        debug_assert!(name[15] == 0);
        // SAFETY: Zero-terminated text, which is copied.
        let region = from_err_ptr(unsafe { emuv_c_dmem_add(name.as_ptr().cast(), bytes) })?;
        Ok(NonNull::new(region).map(Self))
    }

    /// Charges one unit to the task's cgroup.
    pub(crate) fn charge(&self) -> Result<DmemUnit> {
        let mut pool = core::ptr::null_mut();
        // SAFETY: The region is registered as long as this value is there; `pool` is written to.
        to_result(unsafe { emuv_c_dmem_charge(self.0.as_ptr(), DmemUnit::BYTES, &mut pool) })?;
        Ok(DmemUnit(pool))
    }
}

impl Drop for DmemRegion {
    fn drop(&mut self) {
        // SAFETY: Registered by `new`; units that are still charged have references of their own.
        unsafe { emuv_c_dmem_del(self.0.as_ptr()) };
    }
}

/// One unit of VRAM, charged to a cgroup until it is dropped.
pub(crate) struct DmemUnit(*mut c_void);

// SAFETY: As for `DmemRegion`.
unsafe impl Send for DmemUnit {}

impl DmemUnit {
    /// The controller takes each charge back whole only, so charges are cut into units: of the smallest chunk's size.
    pub(crate) const BYTES: u64 = 2 << 20;
}

impl Drop for DmemUnit {
    fn drop(&mut self) {
        // SAFETY: From a charge of as many bytes, undone once.
        unsafe { emuv_c_dmem_uncharge(self.0, Self::BYTES) };
    }
}

// ---- ioctl arguments ----

/// A structure of the interface, as bytes.
#[repr(transparent)]
pub(crate) struct Wire<T>(pub(crate) T);

/// For structures whose fields are integers and arrays of them, without padding (`abi.rs` asserts their sizes).
macro_rules! wire {
    ($($name:ty),*) => {$(
        // SAFETY: Every byte pattern is a value.
        unsafe impl FromBytes for Wire<$name> {}
        // SAFETY: There is no padding, so every byte is initialised.
        unsafe impl AsBytes for Wire<$name> {}
    )*};
}

wire!(Charge, Query, Export);

// ---- C calls Rust: attributes of devices ----

/// # Safety
/// `instance` is a device's data, `page` a page of the kernel's to write to.
#[no_mangle]
unsafe extern "C" fn emuv_rs_show(instance: *const c_void, attribute: c_uint, page: *mut c_char) -> isize {
    // SAFETY: By the contract.
    let instance = unsafe { &*instance.cast::<Instance>() };
    // SAFETY: By the contract.
    let page = unsafe { core::slice::from_raw_parts_mut(page.cast::<u8>(), PAGE_SIZE) };
    let mut text = Text::new(page);
    from_result(|| {
        let attribute = *Attribute::ALL.get(attribute as usize).ok_or(EINVAL)?;
        instance.show(attribute, &mut text)?;
        Ok(text.len() as isize)
    })
}

/// # Safety
/// `instance` is a device's data, `text` has `length` bytes.
#[no_mangle]
unsafe extern "C" fn emuv_rs_store(
    instance: *const c_void,
    attribute: c_uint,
    text: *const c_char,
    length: usize,
) -> isize {
    // SAFETY: By the contract.
    let instance = unsafe { &*instance.cast::<Instance>() };
    // SAFETY: By the contract.
    let text = unsafe { core::slice::from_raw_parts(text.cast::<u8>(), length) };
    from_result(|| {
        let attribute = *Attribute::ALL.get(attribute as usize).ok_or(EINVAL)?;
        instance.store(attribute, text)?;
        Ok(length as isize)
    })
}
