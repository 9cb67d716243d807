//! `dlsym`, for programs that open the real driver by an absolute path and look its functions up: what
//! they would get is swapped for our entry, by address. (`dlvsym` cannot reach the driver: its exports
//! carry no versions, and it was measured to answer NULL.)
//!
//! # Safety
//! `RTLD_DEFAULT` and `RTLD_NEXT` depend on who calls, so for those (and before anything else is known)
//! the hook jumps to the real `dlsym` with the program's own return address. The naked part uses only
//! rax and restores what it saves. Handles are passed on as they came.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_void};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    panic::catch_unwind,
    path::PathBuf,
    sync::atomic::{AtomicPtr, Ordering},
};

use crate::{real, system};

static REAL_DLSYM: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;

unsafe extern "C" {
    fn dlvsym(handle: *mut c_void, symbol: *const c_char, version: *const c_char) -> *mut c_void;
}

/// The next `dlsym` after ours: libc's, or another interposer's.
extern "C" fn find_dlsym() -> *mut c_void {
    let known = REAL_DLSYM.load(Ordering::Acquire);
    if !known.is_null() {
        return known;
    }
    // glibc moved dlsym into libc in 2.34; the older version name stays for older programs.
    for version in [c"GLIBC_2.34", c"GLIBC_2.2.5"] {
        // SAFETY: both names are C strings; RTLD_NEXT is relative to this library.
        let found = unsafe { dlvsym(libc::RTLD_NEXT, c"dlsym".as_ptr(), version.as_ptr()) };
        if !found.is_null() {
            REAL_DLSYM.store(found, Ordering::Release);
            return found;
        }
    }
    // Without a dlsym nothing in the process could have worked so far.
    std::process::abort()
}

/// The hook. An explicit handle is looked up by [`lookup`]; 0 and -1 (RTLD_DEFAULT, RTLD_NEXT) jump on.
///
/// # Safety
/// The contract of `dlsym`.
#[cfg(not(test))]
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    core::arch::naked_asm!(
        "lea rax, [rdi + 1]",
        "cmp rax, 1",
        "jbe 2f",
        "jmp {lookup}",
        "2:",
        "mov rax, qword ptr [rip + {real}]",
        "test rax, rax",
        "jnz 3f",
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "call {find}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "3:",
        "jmp rax",
        lookup = sym lookup,
        real = sym REAL_DLSYM,
        find = sym find_dlsym,
    )
}

/// `dlsym` for an explicit handle.
unsafe extern "C" fn lookup(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    // SAFETY: the address is that of a function with this signature.
    let real_dlsym = unsafe { std::mem::transmute::<*mut c_void, Dlsym>(find_dlsym()) };
    // SAFETY: the caller's arguments, passed on.
    let found = unsafe { real_dlsym(handle, name) };
    if name.is_null() {
        return found;
    }
    // SAFETY: `dlsym`'s contract: a C string.
    let name = unsafe { CStr::from_ptr(name) };
    if !name.to_bytes().starts_with(b"cu") && !name.to_bytes().starts_with(b"nvml") {
        return found;
    }
    if real::is_loading() {
        return found;
    }
    catch_unwind(|| {
        real::load_for(name);
        if found.is_null() {
            // A symbol newer than this build of emuV: the real library may have it.
            return if is_own(handle) { real::symbol(name).map(<*const c_void>::cast_mut) } else { None };
        }
        // To a program that is left alone, the driver's own; whether it is one is asked only where the answer counts.
        real::swap(found).filter(|_| !system::stands_aside()).map(<*const c_void>::cast_mut)
    })
    .ok()
    .flatten()
    .unwrap_or(found)
}

/// Whether this is a program that runs with other rights than its caller's (setuid): nothing from the caller is trusted.
pub(crate) fn is_secure() -> bool {
    // SAFETY: reads a word that the kernel gave the process.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Whether a handle is this library's own.
fn is_own(handle: *mut c_void) -> bool {
    // SAFETY: `dlsym` fails cleanly for a handle without the symbol.
    let real_dlsym = unsafe { std::mem::transmute::<*mut c_void, Dlsym>(find_dlsym()) };
    // SAFETY: as above; the handle is one that the program just used.
    let version = unsafe { real_dlsym(handle, c"emuv_version".as_ptr()) };
    version.cast_const() == crate::emuv_version as *const c_void
}

/// The file that this library was loaded from.
pub(crate) fn own_path() -> Option<PathBuf> {
    // SAFETY: plain C structure; zero is a valid value of it.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address is one of ours and the out-pointer is a live local.
    let known: c_int = unsafe { libc::dladdr(crate::emuv_version as *const c_void, &raw mut info) };
    if known == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr gave a C string that lives as long as the library.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}
