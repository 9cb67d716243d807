//! NVML as a table of typed function pointers; the same rules as in [`crate::Driver`].
//!
//! # Safety
//! As in `driver.rs`: a symbol's name determines its signature, and the contract of each call is the
//! caller's.
#![allow(unsafe_code)]

use core::ffi::*;
use std::{mem, path::Path, ptr::NonNull};

use crate::{locate::LocateError, nvml_types::*};

/// What a missing function returns, by result type.
trait Missing {
    fn missing() -> Self;
}

impl Missing for nvmlReturn_t {
    fn missing() -> Self {
        nvmlReturn_t::FUNCTION_NOT_FOUND
    }
}

impl Missing for *const c_char {
    fn missing() -> Self {
        c"NVML lacks this function".as_ptr()
    }
}

macro_rules! nvml_table {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty;)*) => {
        /// The type of every function, by the function's name: what an implementation is checked against.
        #[allow(non_camel_case_types, missing_docs, unused_qualifications)]
        pub mod nvml_signatures {
            use core::ffi::*;

            use crate::nvml_types::*;

            $(pub type $name = unsafe extern "C" fn($($ty),*) -> $ret;)*
        }

        /// The NVML functions that emuV calls itself. One that the library lacks gives
        /// [`nvmlReturn_t::FUNCTION_NOT_FOUND`].
        #[allow(non_snake_case)]
        #[derive(Debug)]
        pub struct Nvml {
            library: libloading::os::unix::Library,
            $($name: Option<unsafe extern "C" fn($($ty),*) -> $ret>,)*
        }

        #[allow(non_snake_case)]
        impl Nvml {
            /// Loads NVML from an absolute path. The library is never unloaded.
            ///
            /// # Errors
            /// [`LocateError::Load`] with the dynamic loader's own words.
            pub fn open(path: &Path) -> Result<Self, LocateError> {
                let library = crate::locate::open(path)?;
                $(
                    // SAFETY: only the address is taken here.
                    let symbol = unsafe { library.get::<*mut c_void>(concat!(stringify!($name), "\0").as_bytes()) };
                    let address = symbol.ok().and_then(|s| NonNull::new(s.into_raw().cast::<c_void>()));
                    // SAFETY: NVML defines this symbol with this signature.
                    let $name = address.map(|a| unsafe {
                        mem::transmute::<NonNull<c_void>, unsafe extern "C" fn($($ty),*) -> $ret>(a)
                    });
                )*
                Ok(Self { library, $($name,)* })
            }
        }

        #[allow(non_snake_case, missing_docs)]
        impl Nvml {
            $(
                /// Calls the NVML function of the same name.
                ///
                /// # Safety
                /// The contract of the NVML function: pointers are valid for what it reads and writes.
                #[inline]
                pub unsafe fn $name(&self, $($arg: $ty),*) -> $ret {
                    match self.$name {
                        // SAFETY: the caller keeps the function's contract.
                        Some(function) => unsafe { function($($arg),*) },
                        None => Missing::missing(),
                    }
                }
            )*
        }
    };
}

nvml_functions!(nvml_table);

impl Nvml {
    /// The address of an exported symbol, `None` where the library has no such symbol.
    pub fn address(&self, name: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: only the address is taken, not used.
        let symbol = unsafe { self.library.get::<*mut c_void>(name.to_bytes_with_nul()) }.ok()?;
        NonNull::new(symbol.into_raw().cast())
    }
}
