//! The program's calls, through emuV's entries.
//!
//! # Safety
//! Each block is a call of an entry with live locals, under the contract of the driver function of its name.
#![allow(unsafe_code)]
#![allow(clippy::cast_possible_truncation)] // 64-bit only.

use core::ffi::c_void;

use emuv_cuda::{CUresult, types::*};

use crate::{driver, entry, gpu};

pub const MIB: u64 = 1 << 20;

#[track_caller]
fn done(result: CUresult) {
    gpu::check();
    assert_eq!(result, CUresult::SUCCESS);
}

/// Memory of the program's.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub bytes: u64,
}

/// The first call.
#[track_caller]
pub fn init() {
    // SAFETY: see the module's head.
    done(unsafe { entry::init::cuInit(0) });
}

#[track_caller]
pub fn try_allocate(bytes: u64) -> Option<Buffer> {
    let mut address = 0;
    // SAFETY: see the module's head.
    let result = unsafe { entry::memory::cuMemAlloc_v2(&raw mut address, bytes as usize) };
    gpu::check();
    if result == CUresult::OUT_OF_MEMORY {
        return None;
    }
    done(result);
    Some(Buffer { address, bytes })
}

#[track_caller]
pub fn allocate(bytes: u64) -> Buffer {
    try_allocate(bytes).expect("there is room")
}

#[track_caller]
pub fn free(buffer: Buffer) {
    // SAFETY: see the module's head.
    done(unsafe { entry::memory::cuMemFree_v2(buffer.address) });
}

#[track_caller]
pub fn allocate_in_order(bytes: u64, stream: usize) -> Buffer {
    let mut address = 0;
    // SAFETY: see the module's head.
    done(unsafe { entry::pool::cuMemAllocAsync(&raw mut address, bytes as usize, stream as CUstream) });
    Buffer { address, bytes }
}

#[track_caller]
pub fn free_in_order(buffer: Buffer, stream: usize) {
    // SAFETY: see the module's head.
    done(unsafe { entry::pool::cuMemFreeAsync(buffer.address, stream as CUstream) });
}

/// The buffer holds `sum` from here on, by a copy from the host.
#[track_caller]
pub fn set(buffer: Buffer, sum: u64, stream: usize) {
    let from = (&raw const sum).cast();
    // SAFETY: see the module's head.
    done(unsafe {
        entry::transfer::cuMemcpyHtoDAsync_v2(buffer.address, from, buffer.bytes as usize, stream as CUstream)
    });
}

/// What the buffer holds when everything is done.
#[track_caller]
pub fn get(buffer: Buffer) -> u64 {
    let mut sum = 0_u64;
    let to = (&raw mut sum).cast();
    // SAFETY: see the module's head.
    done(unsafe { entry::transfer::cuMemcpyDtoH_v2(to, buffer.address, buffer.bytes as usize) });
    sum
}

#[track_caller]
fn launch(kernel: usize, stream: usize, mut arguments: Vec<u64>) {
    let mut parameters: Vec<*mut c_void> = arguments.iter_mut().map(|a| std::ptr::from_mut(a).cast()).collect();
    let (function, none) = (kernel as CUfunction, std::ptr::null_mut());
    let parameters = parameters.as_mut_ptr();
    // SAFETY: see the module's head.
    done(unsafe { entry::launch::cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream as CUstream, parameters, none) });
}

/// A kernel that adds to a buffer.
#[track_caller]
pub fn add(buffer: Buffer, more: u64, stream: usize) {
    launch(driver::ADD, stream, vec![buffer.address, buffer.bytes, more]);
}

/// A kernel that stores a pointer to another buffer.
#[track_caller]
pub fn point(buffer: Buffer, to: Buffer, stream: usize) {
    launch(driver::POINT, stream, vec![buffer.address, buffer.bytes, to.address, to.bytes]);
}

/// A kernel that adds to what the pointer in a buffer leads to.
#[track_caller]
pub fn add_through(buffer: Buffer, more: u64, stream: usize) {
    launch(driver::ADD_THROUGH, stream, vec![buffer.address, buffer.bytes, more]);
}

#[track_caller]
pub fn wait(stream: usize) {
    // SAFETY: see the module's head.
    done(unsafe { entry::wait::cuStreamSynchronize(stream as CUstream) });
}
