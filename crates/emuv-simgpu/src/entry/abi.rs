//! The border to C: raw pointers become typed values here and nowhere else.
//!
//! # Safety
//! Every exported function has the contract of the CUDA or NVML function of its name: pointers that the
//! function reads or writes are valid for that, or null where the interface allows it. On the strength of that
//! contract the macros wrap each raw pointer as [`Out`] or [`In`], whose methods check for null and then read or
//! write; addresses that the program hands over inside of structures go through [`In::at`]. No value made here
//! outlives the call. Function pointers are called with the argument that came with them.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_char, c_void},
    mem,
    os::fd::{BorrowedFd, OwnedFd},
    ptr,
    sync::OnceLock,
};

use emuv_cuda::{
    CUresult, CuResult,
    nvml_types::nvmlReturn_t,
    proc_address,
    types::{
        CUDA_EXTERNAL_MEMORY_HANDLE_DESC, CUhostFn, CUipcMemHandle, CUmemLocation, CUoccupancyB2DSize, CUstreamCallback,
    },
};

use super::call::Call;
use crate::{memory::physical::error, process};

/// An argument as the interface gives it.
pub trait Argument {
    /// As the body of an entry point gets it.
    type Typed;

    /// Wraps the raw argument.
    ///
    /// # Safety
    /// A pointer is null or valid for what the entry point does with it, until the entry point returns.
    unsafe fn typed(self) -> Self::Typed;
}

/// A place that the caller wants written; also the form of an opaque handle.
#[derive(Debug)]
pub struct Out<T>(*mut T);

/// A place that the caller wants read.
#[derive(Debug)]
pub struct In<T>(*const T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Out<T> {}

impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for In<T> {}

impl<T> Argument for *mut T {
    type Typed = Out<T>;
    unsafe fn typed(self) -> Out<T> {
        Out(self)
    }
}

impl<T> Argument for *const T {
    type Typed = In<T>;
    unsafe fn typed(self) -> In<T> {
        In(self)
    }
}

macro_rules! plain {
    ($($ty:ty),*) => {
        $(impl Argument for $ty {
            type Typed = $ty;
            unsafe fn typed(self) -> $ty {
                self
            }
        })*
    };
}

plain!(u8, u16, u32, i32, u64, usize, f32, CUresult, nvmlReturn_t);
plain!(CUhostFn, CUstreamCallback, CUoccupancyB2DSize, CUipcMemHandle);

fn invalid<T>() -> CuResult<T> {
    Err(error(CUresult::INVALID_VALUE))
}

impl<T> Out<T> {
    /// The place at an address that the program gave inside of a structure.
    pub fn at(address: u64) -> Self {
        Self(pointer(address))
    }

    /// The address; for opaque handles the handle.
    pub fn address(self) -> u64 {
        self.0.expose_provenance() as u64
    }

    /// Whether the caller wants nothing.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Writes a value that the caller must want.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for null.
    pub fn write(self, value: T) -> CuResult {
        if self.0.is_null() {
            return invalid();
        }
        // SAFETY: not null, and so valid by the caller's contract (module head).
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Writes a value that the caller may want.
    pub fn offer(self, value: T) {
        // Null is an answer, not an error.
        let _ = self.write(value);
    }

    /// Writes one value of an array.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for null.
    pub fn write_at(self, index: usize, value: T) -> CuResult {
        Self(self.element(index)).write(value)
    }

    /// Reads what the caller put there.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for null.
    pub fn read(self) -> CuResult<T>
    where
        T: Copy,
    {
        In(self.0.cast_const()).read()
    }

    /// Reads one value of an array.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for null.
    pub fn read_at(self, index: usize) -> CuResult<T>
    where
        T: Copy,
    {
        In(self.element(index).cast_const()).read()
    }

    fn element(self, index: usize) -> *mut T {
        if self.0.is_null() { self.0 } else { self.0.wrapping_add(index) }
    }

    /// Fails for null.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE`.
    pub fn required(self) -> CuResult<Self> {
        if self.0.is_null() { invalid() } else { Ok(self) }
    }

    /// The same place, holding something else.
    pub fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }
}

impl Out<c_char> {
    /// Writes text with its terminating zero, cut to the caller's room.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for null or no room.
    pub fn text(self, text: &str, room: usize) -> CuResult {
        let kept = text.len().min(room.checked_sub(1).ok_or(error(CUresult::INVALID_VALUE))?);
        for (index, byte) in text.bytes().take(kept).chain([0]).enumerate() {
            self.cast::<u8>().write_at(index, byte)?;
        }
        Ok(())
    }
}

impl<T> In<T> {
    /// The place at an address that the program gave inside of a structure.
    pub fn at(address: u64) -> Self {
        Self(ptr::with_exposed_provenance(crate::memory::length(address)))
    }

    /// The address.
    pub fn address(self) -> u64 {
        self.0.expose_provenance() as u64
    }

    /// Reads the value.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for null.
    pub fn read(self) -> CuResult<T>
    where
        T: Copy,
    {
        if self.0.is_null() {
            return invalid();
        }
        // SAFETY: not null, and so valid by the caller's contract (module head); the type is plain data.
        Ok(unsafe { self.0.read_unaligned() })
    }

    /// Reads one value of an array.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for null.
    pub fn read_at(self, index: usize) -> CuResult<T>
    where
        T: Copy,
    {
        if self.0.is_null() {
            return invalid();
        }
        Self(self.0.wrapping_add(index)).read()
    }

    /// Reads an array.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for null.
    pub fn read_all(self, count: usize) -> CuResult<Vec<T>>
    where
        T: Copy,
    {
        (0..count).map(|index| self.read_at(index)).collect()
    }

    /// The same place, holding something else.
    pub fn cast<U>(self) -> In<U> {
        In(self.0.cast())
    }
}

impl In<c_char> {
    /// Reads text up to its terminating zero. Bytes that are no UTF-8 are replaced.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for null.
    pub fn text(self) -> CuResult<String> {
        if self.0.is_null() {
            return invalid();
        }
        // SAFETY: not null, and so a C string by the caller's contract (module head).
        Ok(unsafe { CStr::from_ptr(self.0) }.to_string_lossy().into_owned())
    }
}

/// A handle as the interface's pointer type.
pub fn pointer<T>(handle: u64) -> *mut T {
    ptr::with_exposed_provenance_mut(crate::memory::length(handle))
}

/// All zero, for structures of plain data.
pub fn zeroed<T: Copy>() -> T {
    // SAFETY: used for C structures of integers, floats and raw pointers, for which zero is a value.
    unsafe { mem::zeroed() }
}

/// The device or node of a location.
pub fn location_id(location: &CUmemLocation) -> i32 {
    // SAFETY: every form of the union begins with this integer, and zero bytes are an integer too.
    unsafe { location.__bindgen_anon_1.id }
}

/// A copy of the file descriptor that the program passed in place of a pointer.
///
/// # Errors
/// `CUDA_ERROR_INVALID_VALUE` where it is none.
pub fn descriptor(file: Out<c_void>) -> CuResult<OwnedFd> {
    duplicate(i32::try_from(file.address()).unwrap_or(-1))
}

/// A copy of the file descriptor that external memory is imported by.
///
/// # Errors
/// `CUDA_ERROR_INVALID_VALUE` where it is none.
pub fn external_file(description: &CUDA_EXTERNAL_MEMORY_HANDLE_DESC) -> CuResult<OwnedFd> {
    // SAFETY: the description says by its type that this form of the union is meant; zero bytes are an integer too.
    duplicate(unsafe { description.handle.fd })
}

fn duplicate(number: i32) -> CuResult<OwnedFd> {
    if number < 0 {
        return invalid();
    }
    // SAFETY: the program owns the descriptor during the call (module head); it is only duplicated.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    borrowed.try_clone_to_owned().map_err(|_| error(CUresult::INVALID_VALUE))
}

/// A host function with its argument, to be called on a stream's thread.
#[derive(Debug)]
pub struct HostCall {
    function: unsafe extern "C" fn(*mut c_void),
    argument: *mut c_void,
}

// SAFETY: the program asked for the call to happen on another thread.
unsafe impl Send for HostCall {}
// SAFETY: a graph makes the call again and again, one at a time, as the program asked.
unsafe impl Sync for HostCall {}

impl HostCall {
    /// What `cuLaunchHostFunc` was given.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for no function.
    pub fn new(function: CUhostFn, argument: Out<c_void>) -> CuResult<Self> {
        let function = function.ok_or(error(CUresult::INVALID_VALUE))?;
        Ok(Self { function, argument: argument.0 })
    }

    /// Calls the function.
    pub fn run(&self) {
        // SAFETY: function and argument came together from the program, which asked for this call.
        process::in_callback(|| unsafe { (self.function)(self.argument) });
    }
}

/// A stream callback with its arguments.
#[derive(Debug)]
pub struct StreamCall {
    function: unsafe extern "C" fn(emuv_cuda::types::CUstream, CUresult, *mut c_void),
    stream: emuv_cuda::types::CUstream,
    argument: *mut c_void,
}

// SAFETY: the program asked for the call to happen on another thread.
unsafe impl Send for StreamCall {}

impl StreamCall {
    /// What `cuStreamAddCallback` was given.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for no function.
    pub fn new(function: CUstreamCallback, stream: u64, argument: Out<c_void>) -> CuResult<Self> {
        let function = function.ok_or(error(CUresult::INVALID_VALUE))?;
        Ok(Self { function, stream: pointer(stream), argument: argument.0 })
    }

    /// Calls the function with the context's state.
    pub fn run(self, status: CUresult) {
        // SAFETY: function and argument came together from the program, which asked for this call.
        process::in_callback(|| unsafe { (self.function)(self.stream, status, self.argument) });
    }
}

/// Shared memory that a block size needs, by the program's own function; `fixed` where it has none.
pub fn shared_bytes_for(function: CUoccupancyB2DSize, block_size: i32, fixed: usize) -> usize {
    // SAFETY: the program's own function, called as the interface says.
    function.map_or(fixed, |function| unsafe { function(block_size) })
}

/// One exported symbol.
#[derive(Debug)]
pub struct Site {
    symbol: &'static str,
    version: OnceLock<u32>,
}

impl Site {
    /// The symbol of that name.
    pub const fn new(symbol: &'static str) -> Self {
        Self { symbol, version: OnceLock::new() }
    }

    /// Whether a driver of the configured version lacks the symbol.
    fn is_hidden(&self, driver: u32) -> bool {
        let version = self.version.get_or_init(|| {
            let rows = proc_address::entries().iter().filter(|entry| entry.symbol == self.symbol);
            rows.map(|entry| entry.version).min().unwrap_or(0)
        });
        *version > driver
    }

    /// Runs an entry point that works before `cuInit` and on a lost GPU. No panic leaves it.
    pub fn early(&self, body: impl FnOnce() -> CuResult) -> CUresult {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let setup = process::setup();
            if self.is_hidden(setup.machine.config.driver) {
                return CUresult::NOT_FOUND;
            }
            match setup.injected(self.symbol) {
                Some(code) => CUresult(code),
                None => body().into(),
            }
        }))
        .unwrap_or(CUresult::UNKNOWN)
    }

    /// Runs an entry point that needs `cuInit`. No panic leaves it.
    pub fn call(&self, body: impl FnOnce(&Call) -> CuResult) -> CUresult {
        self.early(|| {
            if process::setup().is_forked_child() {
                return CUresult::NOT_INITIALIZED.ok();
            }
            if process::is_in_callback() {
                return CUresult::CUDA_ERROR_NOT_PERMITTED.ok();
            }
            let call = Call::new(self.symbol)?;
            if call.simulator.machine.is_lost() {
                return CUresult::CUDA_ERROR_LAUNCH_FAILED.ok();
            }
            body(&call)
        })
    }

    /// Runs an NVML entry point. No panic leaves it.
    pub fn nvml(&self, body: impl FnOnce() -> Result<(), nvmlReturn_t>) -> nvmlReturn_t {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match process::setup().injected(self.symbol) {
            Some(code) => emuv_cuda::nvml_types::nvmlReturn_enum(code),
            None => body().err().unwrap_or(nvmlReturn_t::SUCCESS),
        }))
        .unwrap_or(nvmlReturn_t::NVML_ERROR_UNKNOWN)
    }
}

/// Defines CUDA entry points: `fn symbol / symbol ... (arguments) |call| { body }`. Pointers arrive in the
/// body as [`Out`] and [`In`]; each symbol's type is checked against the driver's.
macro_rules! entries {
    ($($items:tt)*) => { $crate::entry::abi::each_entry!(call $($items)*); };
}

/// The same for entry points that work before `cuInit`; `call` is a unit there.
macro_rules! early_entries {
    ($($items:tt)*) => { $crate::entry::abi::each_entry!(early $($items)*); };
}

macro_rules! each_entry {
    (@names $kind:ident [$($name:ident)+] $args:tt $call:ident $body:block) => {
        $($crate::entry::abi::one_entry!($kind $name $args $call $body);)+
    };
    ($kind:ident) => {};
    (
        $kind:ident fn $first:ident $(/ $more:ident)* ($($args:tt)*) |$call:ident| $body:block $($rest:tt)*
    ) => {
        $crate::entry::abi::each_entry!(@names $kind [$first $($more)*] ($($args)*) $call $body);
        $crate::entry::abi::each_entry!($kind $($rest)*);
    };
}

macro_rules! one_entry {
    ($kind:ident $name:ident ($($arg:ident: $ty:ty),* $(,)?) $call:ident $body:block) => {
        /// The CUDA function of this name.
        ///
        /// # Safety
        /// The contract of the CUDA function: pointers are valid for what it reads and writes.
        #[allow(unsafe_code, non_snake_case, clippy::too_many_arguments)]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> emuv_cuda::CUresult {
            static SITE: $crate::entry::abi::Site = $crate::entry::abi::Site::new(stringify!($name));
            // SAFETY: the caller keeps the contract of the function.
            $(let $arg = unsafe { $crate::entry::abi::Argument::typed($arg) };)*
            $crate::entry::abi::one_entry!(@run $kind $call $body)
        }
        const _: emuv_cuda::signatures::$name = $name;
    };
    (@run call $call:ident $body:block) => { SITE.call(|$call| $body) };
    (@run early $call:ident $body:block) => { SITE.early(|| { let $call = (); let () = $call; $body }) };
}

/// Defines NVML entry points; `untyped` ones have no type in emuV's tables to be checked against.
macro_rules! nvml_entries {
    () => {};
    (untyped fn $name:ident $args:tt $body:block $($rest:tt)*) => {
        $crate::entry::abi::nvml_entry!($name $args $body);
        $crate::entry::abi::nvml_entries!($($rest)*);
    };
    (fn $name:ident $args:tt $body:block $($rest:tt)*) => {
        $crate::entry::abi::nvml_entry!($name $args $body);
        const _: emuv_cuda::nvml_signatures::$name = $name;
        $crate::entry::abi::nvml_entries!($($rest)*);
    };
}

macro_rules! nvml_entry {
    ($name:ident ($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        /// The NVML function of this name.
        ///
        /// # Safety
        /// The contract of the NVML function: pointers are valid for what it reads and writes.
        #[allow(unsafe_code, non_snake_case)]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> emuv_cuda::nvml_types::nvmlReturn_t {
            static SITE: $crate::entry::abi::Site = $crate::entry::abi::Site::new(stringify!($name));
            // SAFETY: the caller keeps the contract of the function.
            $(let $arg = unsafe { $crate::entry::abi::Argument::typed($arg) };)*
            SITE.nvml(|| $body)
        }
    };
}

/// Defines the NVML entry point that returns text instead of a code.
macro_rules! nvml_text_entry {
    (fn $name:ident($arg:ident: $ty:ty) -> $ret:ty $body:block) => {
        /// The NVML function of this name.
        ///
        /// # Safety
        /// None needed: it takes no pointer.
        #[allow(unsafe_code, non_snake_case)]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($arg: $ty) -> $ret $body
        const _: emuv_cuda::nvml_signatures::$name = $name;
    };
}

macro_rules! cuda_fallback {
    ($name:ident) => {
        #[allow(unsafe_code)]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub extern "C" fn $name() -> emuv_cuda::CUresult {
            static SITE: $crate::entry::abi::Site = $crate::entry::abi::Site::new(stringify!($name));
            SITE.early(|| emuv_cuda::CUresult::NOT_SUPPORTED.ok())
        }
    };
}

macro_rules! nvml_fallback {
    ($name:ident) => {
        #[allow(unsafe_code)]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub extern "C" fn $name() -> emuv_cuda::nvml_types::nvmlReturn_t {
            static SITE: $crate::entry::abi::Site = $crate::entry::abi::Site::new(stringify!($name));
            SITE.nvml(|| Err(emuv_cuda::nvml_types::nvmlReturn_t::NVML_ERROR_NOT_SUPPORTED))
        }
    };
}

pub(crate) use {
    cuda_fallback, each_entry, early_entries, entries, nvml_entries, nvml_entry, nvml_fallback, nvml_text_entry,
    one_entry,
};
