//! The CUDA driver as a table of typed function pointers.
//!
//! # Safety
//! The only unsafe steps here are turning a symbol's address into a function pointer of the type that the
//! headers give it, and calling through it. The first is sound because the name determines the type (the
//! driver never changes a published symbol's signature, it adds `_v2`); the second passes its contract on
//! to the caller, unchanged.
#![allow(unsafe_code)]

use core::ffi::*;
use std::{mem, path::Path, ptr::NonNull};

use crate::{locate::LocateError, result::CuResult, types::*};

macro_rules! driver_table {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty;)*) => {
        /// The type of every function, by the function's name: what an implementation is checked against.
        #[allow(non_camel_case_types, missing_docs, unused_qualifications)]
        pub mod signatures {
            use core::ffi::*;

            use crate::types::*;

            $(pub type $name = unsafe extern "C" fn($($ty),*) -> $ret;)*
        }

        /// Every typed function of a loaded driver. One that the driver lacks is `None` inside, and the
        /// method of that name returns [`CUresult::NOT_FOUND`].
        #[allow(non_snake_case)]
        #[derive(Debug)]
        pub struct Driver {
            /// `None`: its functions were brought, not loaded.
            library: Option<libloading::os::unix::Library>,
            $($name: Option<unsafe extern "C" fn($($ty),*) -> $ret>,)*
        }

        #[allow(non_snake_case)]
        impl Driver {
            /// # Safety
            /// `find` gives functions of the signatures that the headers give the names.
            unsafe fn resolve(find: impl Fn(&'static CStr) -> Option<NonNull<c_void>>) -> Self {
                $(
                    let $name = find(const { terminated(concat!(stringify!($name), "\0")) }).map(|address| {
                        // SAFETY: the caller's word (see also the module's head); function pointers and data
                        // pointers have the same size here.
                        unsafe { mem::transmute::<NonNull<c_void>, unsafe extern "C" fn($($ty),*) -> $ret>(address) }
                    });
                )*
                Self { library: None, $($name,)* }
            }
        }

        #[allow(non_snake_case, missing_docs, clippy::too_many_arguments)]
        impl Driver {
            $(
                /// Calls the driver function of the same name.
                ///
                /// # Safety
                /// The contract of the driver function: pointers are valid for what it reads and writes.
                #[inline]
                pub unsafe fn $name(&self, $($arg: $ty),*) -> $ret {
                    match self.$name {
                        // SAFETY: the caller keeps the driver function's contract.
                        Some(function) => unsafe { function($($arg),*) },
                        None => CUresult::NOT_FOUND,
                    }
                }
            )*
        }
    };
}

cuda_functions!(driver_table);

const fn terminated(name: &str) -> &CStr {
    match CStr::from_bytes_with_nul(name.as_bytes()) {
        Ok(name) => name,
        Err(_) => c"",
    }
}

fn symbol(library: &libloading::os::unix::Library, name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: only the address is taken; what it is used as is the caller's proof.
    let symbol = unsafe { library.get::<*mut c_void>(name.to_bytes_with_nul()) }.ok()?;
    NonNull::new(symbol.into_raw().cast())
}

impl Driver {
    /// Loads the driver library at `path` (an absolute path: a bare name could find emuV's own library).
    /// The library is never unloaded.
    ///
    /// # Errors
    /// [`LocateError::Load`] with the dynamic loader's own words.
    pub fn open(path: &Path) -> Result<Self, LocateError> {
        let library = crate::locate::open(path)?;
        let find = |name: &CStr| symbol(&library, name);
        // SAFETY: the driver defines each symbol with its published signature (see the module's head).
        let mut driver = unsafe { Self::resolve(find) };
        driver.library = Some(library);
        Ok(driver)
    }

    /// A driver of functions that the caller brings: for tests that play the GPU themselves.
    ///
    /// # Safety
    /// `find` gives for a name a function of the type of that name in [`signatures`], or none.
    pub unsafe fn from_functions(find: impl Fn(&'static CStr) -> Option<NonNull<c_void>>) -> Self {
        // SAFETY: the caller's word.
        unsafe { Self::resolve(find) }
    }

    /// The address of an exported symbol, `None` where the driver has no such symbol.
    pub fn address(&self, name: &CStr) -> Option<NonNull<c_void>> {
        symbol(self.library.as_ref()?, name)
    }

    /// The interface version of the driver, e.g. 13000 for CUDA 13.0.
    ///
    /// # Errors
    /// The driver's own error.
    pub fn version(&self) -> CuResult<u32> {
        let mut version = 0;
        // SAFETY: the out-pointer is a live local.
        unsafe { self.cuDriverGetVersion(&raw mut version) }.ok()?;
        Ok(u32::try_from(version).unwrap_or(0))
    }
}
