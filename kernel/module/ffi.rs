// SPDX-License-Identifier: GPL-2.0

//! The seam between the module's Rust and the kernel's C: all unsafe code of the module.
//!
//! # Safety
//!
//! - Pointers that go to C and come back: an *opener* (`emuv_rs_open`, ended by `emuv_rs_close`) and an *instance* (a device's
//!   data). C has an opener from `open` to `release` of a file, or from the export to the release of a buffer; nothing calls
//!   in with it before or after. A device's instance is in the registry until the device is gone and nobody is in one of
//!   its attributes (`device_destroy` waits).
//! - Both are shared between threads: C's pointers become `&`, never `&mut`, except in `emuv_rs_close`.
//! - No function unwinds: the kernel aborts on panic, and arithmetic of foreign numbers is checked.
//! - Module parameters that are read here cannot be written after loading, except `debug_mode`, one byte.

#![allow(unsafe_code)]

use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::{NonNull, addr_of},
};

use kernel::{
    bindings,
    configfs::ItemType,
    error::{from_err_ptr, from_result, to_result},
    ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void},
    fs::File,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        Arc,
        poll::{PollCondVar, PollTable},
    },
    transmute::{AsBytes, FromBytes},
    types::ForeignOwnable,
    uaccess::UserPtr,
};

use crate::{
    abi::{Charge, Export, MAX_INSTANCES, Query},
    instance::{Attribute, Instance, Opener},
    ioctl, registry,
    setup::Asked,
    text::Text,
};

/// `EMUV_INFO_MINOR`.
pub(crate) const INFO_MINOR: u32 = MAX_INSTANCES as u32;

// As `emuv_shim.h` declares them.
#[allow(improper_ctypes)] // pages are only passed on
extern "C" {
    fn emuv_c_register() -> c_int;
    fn emuv_c_unregister();
    fn emuv_c_device_add(minor: c_uint, name: *const c_char, instance: *mut c_void) -> c_int;
    fn emuv_c_device_del(minor: c_uint);
    fn emuv_c_changed(minor: c_uint);
    fn emuv_c_ram_bytes() -> u64;
    fn emuv_c_free_ram_bytes() -> u64;
    fn emuv_c_new_page(one_of_many: bool) -> *mut bindings::page;
    fn emuv_c_get_page(page: *mut bindings::page);
    fn emuv_c_page_shared(page: *mut bindings::page) -> bool;
    fn emuv_c_clear_page(page: *mut bindings::page);
    fn emuv_c_export(opener: *mut c_void, first: c_ulong, pages: c_ulong) -> c_int;
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

/// A dma-buf of pages that are all there. It takes `holder` along, in case of an error as well.
pub(crate) fn export(holder: Pin<KBox<Opener>>, first: usize, pages: usize) -> Result<i32> {
    // SAFETY: `holder` goes to C, which gives it to `emuv_rs_close` once.
    let fd = unsafe { emuv_c_export(holder.into_foreign(), first as c_ulong, pages as c_ulong) };
    to_result(fd)?;
    Ok(fd)
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

/// Makes open configfs files hold this module: the kernel's abstraction (7.3) gives attributes no owner, so that a file that is
/// open while its directory goes would outlive the code.
pub(crate) fn own_attributes<Container, Data>(of: &'static ItemType<Container, Data>) {
    // An `ItemType` is exactly its `config_item_type` and nothing of size, so it begins with it.
    const { assert!(size_of::<ItemType<Container, Data>>() == size_of::<bindings::config_item_type>()) };
    let item_type: *const bindings::config_item_type = core::ptr::from_ref(of).cast();
    // SAFETY: See the assertion. The list ends with null; its entries are static and in mutable memory (`Opaque`), and every
    // writer, here, writes the same.
    unsafe {
        let mut entry = (*item_type).ct_attrs;
        while !(*entry).is_null() {
            (**entry).ca_owner = (*item_type).ct_owner;
            entry = entry.add(1);
        }
    }
}

// ---- pages ----

/// A reference to an order-0 page of RAM.
pub(crate) struct RamPage(NonNull<bindings::page>);

// SAFETY: A page belongs to no thread; references are counted atomically.
unsafe impl Send for RamPage {}
// SAFETY: As above; the bytes are only touched by `clear`, whose caller has the page alone, and by C's copying functions.
unsafe impl Sync for RamPage {}

impl RamPage {
    /// A new page, zeroed, charged to the memory cgroup of the task. For one page the kernel does all that it can; for
    /// `one_of_many` no process is killed.
    pub(crate) fn zeroed(one_of_many: bool) -> Result<Self> {
        // SAFETY: May sleep; no caller holds a spinlock.
        let page = unsafe { emuv_c_new_page(one_of_many) };
        NonNull::new(page).map(Self).ok_or(ENOMEM)
    }

    /// Another reference to the same page.
    pub(crate) fn another(&self) -> Self {
        // SAFETY: The page is alive: there is a reference.
        unsafe { emuv_c_get_page(self.0.as_ptr()) };
        Self(self.0)
    }

    /// Whether there are other references than this one.
    pub(crate) fn is_shared(&self) -> bool {
        // SAFETY: The page is alive.
        unsafe { emuv_c_page_shared(self.0.as_ptr()) }
    }

    /// Writes zeros. Nobody else may use the page meanwhile.
    pub(crate) fn clear(&self) {
        // SAFETY: The page is alive.
        unsafe { emuv_c_clear_page(self.0.as_ptr()) };
    }

    fn into_raw(self) -> *mut bindings::page {
        ManuallyDrop::new(self).0.as_ptr()
    }
}

impl Drop for RamPage {
    fn drop(&mut self) {
        // SAFETY: This is the reference that the value stands for. Drops one reference, and frees with the last.
        unsafe { bindings::__free_pages(self.0.as_ptr(), 0) };
    }
}

// SAFETY: A page structure's address is a multiple of its size's power of two, at least 8; never null.
unsafe impl ForeignOwnable for RamPage {
    const FOREIGN_ALIGN: usize = 8;
    type Borrowed<'a> = RamPageRef<'a>;
    type BorrowedMut<'a> = RamPageRef<'a>;

    fn into_foreign(self) -> *mut c_void {
        self.into_raw().cast()
    }

    unsafe fn from_foreign(pointer: *mut c_void) -> Self {
        // SAFETY: From `into_foreign`, so not null.
        Self(unsafe { NonNull::new_unchecked(pointer.cast()) })
    }

    unsafe fn borrow<'a>(pointer: *mut c_void) -> RamPageRef<'a> {
        // SAFETY: As above; the reference is not dropped.
        RamPageRef(ManuallyDrop::new(unsafe { Self::from_foreign(pointer) }), PhantomData)
    }

    unsafe fn borrow_mut<'a>(pointer: *mut c_void) -> RamPageRef<'a> {
        // SAFETY: As above.
        unsafe { Self::borrow(pointer) }
    }
}

/// A page that somebody else keeps.
pub(crate) struct RamPageRef<'a>(ManuallyDrop<RamPage>, PhantomData<&'a RamPage>);

impl core::ops::Deref for RamPageRef<'_> {
    type Target = RamPage;

    fn deref(&self) -> &RamPage {
        &self.0
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

// ---- C calls Rust ----

/// The opener that C's pointer stands for.
///
/// # Safety
/// `opener` is from `emuv_rs_open` or [`export`] and `emuv_rs_close` has not been called.
unsafe fn opener<'a>(opener: *const c_void) -> &'a Opener {
    // SAFETY: By the contract. A pinned box is handed out as the pointer to what is in it.
    unsafe { &*opener.cast::<Opener>() }
}

#[no_mangle]
extern "C" fn emuv_rs_open(minor: c_uint) -> *mut c_void {
    match registry::get(minor).ok_or(ENODEV).and_then(Opener::new) {
        Ok(opener) => opener.into_foreign(),
        Err(error) => error.to_ptr(),
    }
}

/// # Safety
/// The last call with this opener.
#[no_mangle]
unsafe extern "C" fn emuv_rs_close(opener: *mut c_void) {
    // SAFETY: From `into_foreign`, and nobody uses it any more.
    drop(unsafe { Pin::<KBox<Opener>>::from_foreign(opener) });
}

/// # Safety
/// As for [`opener`].
#[no_mangle]
unsafe extern "C" fn emuv_rs_end(pointer: *const c_void) -> u64 {
    // SAFETY: By the contract.
    unsafe { opener(pointer) }.instance.end_bytes()
}

/// # Safety
/// As for [`opener`].
#[no_mangle]
unsafe extern "C" fn emuv_rs_page(pointer: *const c_void, index: c_ulong, create: bool) -> *mut bindings::page {
    // SAFETY: By the contract.
    match unsafe { opener(pointer) }.instance.page(index, create) {
        Ok(Some(page)) => page.into_raw(),
        Ok(None) => core::ptr::null_mut(),
        Err(error) => error.to_ptr(),
    }
}

/// # Safety
/// As for [`opener`].
#[no_mangle]
unsafe extern "C" fn emuv_rs_ioctl(pointer: *const c_void, command: c_uint, argument: c_ulong) -> c_long {
    // SAFETY: By the contract.
    let opener = unsafe { opener(pointer) };
    from_result(|| ioctl::ioctl(opener, command, UserPtr::from_addr(argument)).map(|()| 0))
}

/// # Safety
/// As for [`opener`]; `file` and `table` are those of a call of `poll`.
#[no_mangle]
unsafe extern "C" fn emuv_rs_poll(
    pointer: *const c_void,
    file: *const bindings::file,
    table: *mut bindings::poll_table,
) -> c_uint {
    // SAFETY: By the contract.
    let opener = unsafe { opener(pointer) };
    // SAFETY: `file` lives as long as the call; `poll` does not use its position.
    let file = unsafe { File::from_raw_file(file) };
    // SAFETY: `table` is null or lives as long as the call.
    let table = unsafe { PollTable::from_raw(table) };
    let changed: &PollCondVar = &opener.instance.changed;
    table.register_wait(file, changed);
    let mut ready = bindings::POLLIN;
    match opener.news() {
        Ok(news) => {
            ready |= if news.room { bindings::POLLOUT } else { 0 };
            ready |= if news.limits { bindings::POLLPRI } else { 0 };
            ready |= if news.removed { bindings::POLLHUP | bindings::POLLERR } else { 0 };
        }
        Err(_) => ready |= bindings::POLLERR,
    }
    ready
}

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

/// # Safety
/// `page` is a page of the kernel's to write to.
#[no_mangle]
unsafe extern "C" fn emuv_rs_info(page: *mut c_char) -> isize {
    // SAFETY: By the contract.
    let page = unsafe { core::slice::from_raw_parts_mut(page.cast::<u8>(), PAGE_SIZE) };
    let mut text = Text::new(page);
    from_result(|| {
        registry::info(&mut text)?;
        Ok(text.len() as isize)
    })
}
