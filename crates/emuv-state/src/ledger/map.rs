//! The ledger's memory.
//!
//! # Safety
//! Two steps are unsafe. The first takes a mapped page range as a [`Mapped`] layout: sound because the range is at
//! least as long, page-aligned, readable and writable, never unmapped, and such a layout is made of `AtomicU64`
//! only, for which every bit pattern is valid and which other processes may change at any time. The second
//! puts other memory in the place of that range, which keeps all of these properties.
//!
//! A file that is cut short behind our back would end the process on the next write. The file is therefore
//! made by us, exclusively, in a directory that only its owner may enter, and filled to its length first.
#![allow(unsafe_code)]

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
    ptr,
};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

use super::layout::Layout;

/// What may be taken for a mapped file.
///
/// # Safety
/// `repr(C)` and made of `AtomicU64` only.
pub(crate) unsafe trait Mapped {}

// SAFETY: see `layout.rs`.
unsafe impl Mapped for Layout {}
// SAFETY: see `timeline/mod.rs`.
unsafe impl Mapped for crate::timeline::Layout {}

/// Fills a new file and maps it, shared; where that fails the file goes again.
pub(crate) fn map_new<T: Mapped>((mut file, path): (File, PathBuf), image: &[u8]) -> io::Result<&'static T> {
    // Writing all of it takes the space now; a full disk would otherwise end the process at a later store.
    let mapped = file.write_all(image).and_then(|()| map_shared(&file));
    if mapped.is_err() {
        let _ = fs::remove_file(path);
    }
    mapped
}

fn map_shared<T: Mapped>(file: &File) -> io::Result<&'static T> {
    if file.metadata()?.len() < size_of::<T>() as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: no address is asked for, so nothing that exists is replaced.
    let address = unsafe { mmap(ptr::null_mut(), size_of::<T>(), protection, MapFlags::SHARED, file, 0) }?;
    // SAFETY: see the module's head: long enough, aligned, never unmapped, atomics only.
    Ok(unsafe { &*address.cast::<T>() })
}

/// Puts private zeros in the place of a mapping made by [`map_new`], at the same address.
pub(super) fn replace_by_private(layout: &'static Layout) -> io::Result<()> {
    let address = ptr::from_ref(layout).cast_mut().cast();
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the range is exactly the one that `map_new` mapped (the caller's part), so nothing else is
    // replaced; what takes its place is a valid `Layout` too, and all access to it is atomic.
    unsafe { mmap_anonymous(address, size_of::<Layout>(), protection, MapFlags::PRIVATE | MapFlags::FIXED) }?;
    Ok(())
}
