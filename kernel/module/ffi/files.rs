// SPDX-License-Identifier: GPL-2.0

//! What the kernel calls for open files: `emuv_fops` and `emuv_info_fops` in `emuv_shim.c` name these functions. A file's private
//! data is its opener, from `open` to `release`.

use kernel::{
    bindings,
    error::from_result,
    ffi::{c_char, c_int, c_long, c_uint, c_ulong},
    fs::{File, Kiocb},
    iov::{IovIterDest, IovIterSource},
    page::PAGE_SIZE,
    prelude::*,
    sync::poll::{PollCondVar, PollTable},
    types::ForeignOwnable,
    uaccess::{UserPtr, UserSlice},
};

use super::memory;
use crate::{
    instance::Opener,
    ioctl, registry,
    text::Text,
    transfer::{self, UserMemory},
};

/// What a file's private data is.
pub(super) type FileData = Pin<KBox<Opener>>;

/// The opener of an open file of an instance.
///
/// # Safety
/// `file` is open and one of `emuv_fops`; the caller is called for it.
unsafe fn opener<'a>(file: *const bindings::file) -> Pin<&'a Opener> {
    // SAFETY: By the contract: `open` has put it there, and `release` has not been called.
    unsafe { FileData::borrow((*file).private_data) }
}

/// # Safety
/// Called by the kernel, with what it has of a file that is being opened.
#[no_mangle]
unsafe extern "C" fn emuv_rs_open(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // The instances' minors begin at 0: `emuv_c_register` asks for them so.
    // SAFETY: By the contract.
    let minor = unsafe { (*inode).i_rdev } & ((1 << bindings::MINORBITS) - 1);
    from_result(|| {
        let opener = Opener::new(registry::get(minor).ok_or(ENODEV)?)?;
        // SAFETY: Nobody else has the file yet.
        unsafe { (*file).private_data = opener.into_foreign() };
        Ok(0)
    })
}

/// # Safety
/// Called by the kernel, as the last call for this file.
#[no_mangle]
unsafe extern "C" fn emuv_rs_release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: `open` has put it there, and nobody uses it any more.
    drop(unsafe { FileData::from_foreign((*file).private_data) });
    0
}

/// # Safety
/// As for [`opener`].
#[no_mangle]
unsafe extern "C" fn emuv_rs_llseek(
    file: *mut bindings::file,
    offset: bindings::loff_t,
    whence: c_int,
) -> bindings::loff_t {
    // SAFETY: By the contract.
    let end = unsafe { opener(file) }.instance.end_bytes();
    // SAFETY: The file is open. Limits are checked to be no more than the machine's RAM.
    unsafe { bindings::fixed_size_llseek(file, offset, whence, end as bindings::loff_t) }
}

/// # Safety
/// The kernel's call of `read_iter`, with memory to write to.
#[no_mangle]
unsafe extern "C" fn emuv_rs_read_iter(iocb: *mut bindings::kiocb, to: *mut bindings::iov_iter) -> isize {
    // SAFETY: By the contract; both live as long as the call.
    let (mut call, memory) = unsafe { (Kiocb::<FileData>::from_raw(iocb), IovIterDest::from_raw(to)) };
    transfer(&mut call, memory::ToUser(memory))
}

/// # Safety
/// The kernel's call of `write_iter`, with memory to read from.
#[no_mangle]
unsafe extern "C" fn emuv_rs_write_iter(iocb: *mut bindings::kiocb, from: *mut bindings::iov_iter) -> isize {
    // SAFETY: By the contract; both live as long as the call.
    let (mut call, memory) = unsafe { (Kiocb::<FileData>::from_raw(iocb), IovIterSource::from_raw(from)) };
    transfer(&mut call, memory::FromUser(memory))
}

fn transfer(call: &mut Kiocb<'_, FileData>, memory: impl UserMemory) -> isize {
    from_result(|| Ok(transfer::transfer(&call.file().instance, call.ki_pos_mut(), memory)? as isize))
}

/// # Safety
/// As for [`opener`].
#[no_mangle]
unsafe extern "C" fn emuv_rs_ioctl(file: *mut bindings::file, command: c_uint, argument: c_ulong) -> c_long {
    // SAFETY: By the contract.
    let opener = unsafe { opener(file) };
    from_result(|| ioctl::ioctl(&opener, command, UserPtr::from_addr(argument)).map(|()| 0))
}

/// # Safety
/// As for [`opener`]; `table` is that of the call.
#[no_mangle]
unsafe extern "C" fn emuv_rs_poll(file: *mut bindings::file, table: *mut bindings::poll_table) -> bindings::__poll_t {
    // SAFETY: By the contract.
    let opener = unsafe { opener(file) };
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
/// As for [`opener`]; `vma` is being made.
#[no_mangle]
unsafe extern "C" fn emuv_rs_mmap(file: *mut bindings::file, vma: *mut bindings::vm_area_struct) -> c_int {
    // SAFETY: By the contract. The mapping holds the file, and the file its opener.
    from_result(|| unsafe { memory::map_file(opener(file).get_ref(), vma) }.map(|()| 0))
}

/// # Safety
/// The kernel's call of `read` on `/dev/emuv`.
#[no_mangle]
unsafe extern "C" fn emuv_rs_info_read(
    _file: *mut bindings::file,
    to: *mut c_char,
    bytes: usize,
    position: *mut bindings::loff_t,
) -> isize {
    from_result(|| {
        let mut page = KVec::from_elem(0, PAGE_SIZE, GFP_KERNEL)?;
        let mut text = Text::new(&mut page);
        registry::info(&mut text)?;
        let length = text.len();
        // SAFETY: By the contract: the position is the call's own.
        let position = unsafe { &mut *position };
        let mut user = UserSlice::new(UserPtr::from_ptr(to.cast()), bytes).writer();
        Ok(user.write_slice_file(&page[..length], position)? as isize)
    })
}
