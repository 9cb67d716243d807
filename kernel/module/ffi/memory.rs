// SPDX-License-Identifier: GPL-2.0

//! Pages of the RAM part: kept, copied, in address spaces, and a range of them as a dma-buf.

use core::{marker::PhantomData, mem::ManuallyDrop, ptr::NonNull};

use kernel::{
    bindings,
    error::{from_err_ptr, from_result, to_result},
    ffi::{c_int, c_uint, c_ulong, c_void},
    iov::{IovIterDest, IovIterSource},
    mm::virt::{VmaNew, flags},
    module::this_module,
    page::{PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
    types::ForeignOwnable,
};

use crate::{LocalModule, instance::Opener, transfer::UserMemory};

#[allow(improper_ctypes)] // pages are only passed on
extern "C" {
    fn emuv_c_new_page(one_of_many: bool) -> *mut bindings::page;
    fn emuv_c_get_page(page: *mut bindings::page);
    fn emuv_c_page_shared(page: *mut bindings::page) -> bool;
    fn emuv_c_clear_page(page: *mut bindings::page);
    fn emuv_c_go_on() -> bool;
}

/// A reference to an order-0 page of RAM.
pub(crate) struct RamPage(NonNull<bindings::page>);

// SAFETY: A page belongs to no thread; references are counted atomically.
unsafe impl Send for RamPage {}
// SAFETY: As above; the bytes are only touched by `clear`, whose caller has the page alone, and by the kernel's copying functions.
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

// ---- reads and writes ----

/// Lets others run. Whether to go on: not when the task is being killed.
pub(crate) fn go_on() -> bool {
    // SAFETY: May sleep; no caller holds a spinlock.
    unsafe { emuv_c_go_on() }
}

/// Memory that a `read` fills.
pub(super) struct ToUser<'a>(pub(super) &'a mut IovIterDest<'a>);

impl UserMemory for ToUser<'_> {
    const WRITES: bool = false;

    fn bytes_left(&self) -> usize {
        self.0.len()
    }

    fn copy(&mut self, page: Option<&RamPage>, offset: usize, bytes: usize) -> usize {
        let to = self.0.as_raw();
        match page {
            // SAFETY: Both are alive, and the range is within the page: the kernel checks that again. Others may write to the
            // page meanwhile; it is the kernel that copies, byte for byte.
            Some(page) => unsafe { bindings::copy_page_to_iter(page.0.as_ptr(), offset, bytes, to) },
            // SAFETY: `to` is alive.
            None => unsafe { bindings::iov_iter_zero(bytes, to) },
        }
    }
}

/// Memory that a `write` takes from.
pub(super) struct FromUser<'a>(pub(super) &'a mut IovIterSource<'a>);

impl UserMemory for FromUser<'_> {
    const WRITES: bool = true;

    fn bytes_left(&self) -> usize {
        self.0.len()
    }

    fn copy(&mut self, page: Option<&RamPage>, offset: usize, bytes: usize) -> usize {
        let from = self.0.as_raw();
        // SAFETY: As for `ToUser`.
        page.map_or(0, |page| unsafe { bindings::copy_page_from_iter(page.0.as_ptr(), offset, bytes, from) })
    }
}

// ---- address spaces ----

/// A new mapping of at most `pages` pages. No private copies, so that every page a program sees is a page of the share; no code
/// runs from it.
///
/// # Safety
/// `vma` is being made; `data` is what `operations` expect, for as long as the mapping is there.
unsafe fn map(
    vma: *mut bindings::vm_area_struct,
    pages: usize,
    operations: &'static bindings::vm_operations_struct,
    data: *mut c_void,
) -> Result {
    // SAFETY: By the contract.
    let new = unsafe { VmaNew::from_raw(vma) };
    if new.flags() & (flags::SHARED | flags::MAYWRITE) == flags::MAYWRITE {
        return Err(EINVAL);
    }
    if new.executable() {
        return Err(EPERM);
    }
    new.try_clear_mayexec()?;
    new.set_dontexpand();
    // SAFETY: By the contract: nobody else has it yet.
    let vma = unsafe { &mut *vma };
    let (first, wanted) = (vma.vm_pgoff, (new.end() - new.start()) >> PAGE_SHIFT);
    if first.checked_add(wanted).is_none_or(|end| end > pages) {
        return Err(EFBIG);
    }
    vma.vm_ops = operations;
    vma.vm_private_data = data;
    Ok(())
}

/// The answer to a touch of page `index`.
///
/// # Safety
/// `fault` is the kernel's call.
unsafe fn put_page_at(fault: *mut bindings::vm_fault, opener: &Opener, index: usize) -> bindings::vm_fault_t {
    match opener.instance.page(index, true) {
        Ok(Some(page)) => {
            // SAFETY: By the contract. The kernel takes the reference.
            unsafe { (*fault).page = page.into_raw() };
            0
        }
        Err(error) if error == ENOMEM => bindings::vm_fault_reason_VM_FAULT_OOM,
        Ok(None) | Err(_) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
    }
}

const FILE_MAPPING: &bindings::vm_operations_struct =
    &bindings::vm_operations_struct { fault: Some(file_fault), ..pin_init::zeroed() };

/// # Safety
/// `opener` is there as long as the mapping, `vma` is being made.
pub(super) unsafe fn map_file(opener: &Opener, vma: *mut bindings::vm_area_struct) -> Result {
    let data = core::ptr::from_ref(opener).cast_mut().cast();
    // SAFETY: By the contract.
    unsafe { map(vma, (opener.instance.end_bytes() >> PAGE_SHIFT) as usize, FILE_MAPPING, data) }
}

/// # Safety
/// The kernel's call for a mapping of [`map_file`].
unsafe extern "C" fn file_fault(fault: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: By the contract.
    unsafe {
        let place = &(*fault).__bindgen_anon_1;
        put_page_at(fault, &*(*place.vma).vm_private_data.cast(), place.pgoff)
    }
}

// ---- dma-bufs: the pages are there already and stay, because the buffer is a holder ----

struct Buffer {
    holder: Pin<KBox<Opener>>,
    first: usize,
    pages: usize,
}

const BUFFER: &bindings::dma_buf_ops = &bindings::dma_buf_ops {
    map_dma_buf: Some(map_for_device),
    unmap_dma_buf: Some(unmap_for_device),
    mmap: Some(map_buffer),
    release: Some(release_buffer),
    ..pin_init::zeroed()
};
const BUFFER_MAPPING: &bindings::vm_operations_struct =
    &bindings::vm_operations_struct { fault: Some(buffer_fault), ..pin_init::zeroed() };

/// A descriptor of a dma-buf of pages that are all there. It takes `holder` along, in case of an error as well.
pub(crate) fn export(holder: Pin<KBox<Opener>>, first: usize, pages: usize) -> Result<i32> {
    const FLAGS: c_int = (bindings::O_RDWR | bindings::O_CLOEXEC) as c_int;
    let data = KBox::into_raw(KBox::new(Buffer { holder, first, pages }, GFP_KERNEL)?);
    let info = bindings::dma_buf_export_info {
        exp_name: c"emuv".as_char_ptr(),
        owner: this_module::<LocalModule>().as_ptr(),
        ops: BUFFER,
        size: pages << PAGE_SHIFT,
        flags: FLAGS,
        resv: core::ptr::null_mut(),
        priv_: data.cast(),
    };
    // SAFETY: All that `info` points to lives as long as the buffer, or as the call.
    let buffer = from_err_ptr(unsafe { bindings::dma_buf_export(&info) }).inspect_err(|_| {
        // SAFETY: From `into_raw`; there is no buffer that has it.
        drop(unsafe { KBox::from_raw(data) });
    })?;
    // SAFETY: The buffer is alive: there is a reference, which the descriptor takes, or which is dropped.
    unsafe {
        let fd = bindings::dma_buf_fd(buffer, FLAGS);
        if fd < 0 {
            bindings::dma_buf_put(buffer);
        }
        to_result(fd)?;
        Ok(fd)
    }
}

/// # Safety
/// `buffer` is alive and of [`export`].
unsafe fn data<'a>(buffer: *mut bindings::dma_buf) -> &'a Buffer {
    // SAFETY: By the contract: it is there until `release_buffer`.
    unsafe { &*(*buffer).priv_.cast() }
}

/// # Safety
/// The kernel's call, as the last one for this buffer.
unsafe extern "C" fn release_buffer(buffer: *mut bindings::dma_buf) {
    // SAFETY: From `into_raw`, and nobody uses it any more.
    drop(unsafe { KBox::<Buffer>::from_raw((*buffer).priv_.cast()) });
}

/// # Safety
/// The kernel's call for a buffer and a mapping that is being made.
unsafe extern "C" fn map_buffer(buffer: *mut bindings::dma_buf, vma: *mut bindings::vm_area_struct) -> c_int {
    // SAFETY: By the contract. The mapping holds the buffer.
    from_result(|| unsafe { map(vma, data(buffer).pages, BUFFER_MAPPING, (*buffer).priv_) }.map(|()| 0))
}

/// # Safety
/// The kernel's call for a mapping of [`map_buffer`].
unsafe extern "C" fn buffer_fault(fault: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: By the contract.
    unsafe {
        let place = &(*fault).__bindgen_anon_1;
        let buffer: &Buffer = &*(*place.vma).vm_private_data.cast();
        put_page_at(fault, &buffer.holder, buffer.first + place.pgoff)
    }
}

/// # Safety
/// The kernel's call for a device that is attached to a buffer.
unsafe extern "C" fn map_for_device(
    attachment: *mut bindings::dma_buf_attachment,
    direction: bindings::dma_data_direction,
) -> *mut bindings::sg_table {
    // SAFETY: By the contract.
    let (buffer, device) = unsafe { (data((*attachment).dmabuf), (*attachment).dev) };
    let mapped = || -> Result<KBox<bindings::sg_table>> {
        let mut pages = KVVec::with_capacity(buffer.pages, GFP_KERNEL)?;
        for index in buffer.first..buffer.first + buffer.pages {
            let page = buffer.holder.instance.page(index, true)?.ok_or(ENODEV)?;
            // The instance keeps it for as long as the buffer holds the instance.
            pages.push(page.0.as_ptr(), GFP_KERNEL)?;
        }
        let mut table = KBox::new(pin_init::zeroed::<bindings::sg_table>(), GFP_KERNEL)?;
        // SAFETY: There are so many pages. One entry for each of them: no device can find that too long.
        to_result(unsafe {
            bindings::sg_alloc_table_from_pages_segment(
                &mut *table,
                pages.as_mut_ptr(),
                buffer.pages as c_uint,
                0,
                (buffer.pages << PAGE_SHIFT) as c_ulong,
                PAGE_SIZE as c_uint,
                bindings::GFP_KERNEL,
            )
        })?;
        // SAFETY: By the contract, and the table is a table now.
        to_result(unsafe { bindings::dma_map_sgtable(device, &mut *table, direction, 0) }).inspect_err(|_| {
            // SAFETY: It is not mapped.
            unsafe { bindings::sg_free_table(&mut *table) };
        })?;
        Ok(table)
    };
    match mapped() {
        Ok(table) => KBox::into_raw(table),
        Err(error) => error.to_ptr(),
    }
}

/// # Safety
/// The kernel's call with a table of [`map_for_device`], once.
unsafe extern "C" fn unmap_for_device(
    attachment: *mut bindings::dma_buf_attachment,
    table: *mut bindings::sg_table,
    direction: bindings::dma_data_direction,
) {
    // SAFETY: By the contract.
    unsafe {
        bindings::dma_unmap_sgtable((*attachment).dev, table, direction, 0);
        bindings::sg_free_table(table);
        drop(KBox::from_raw(table));
    }
}
