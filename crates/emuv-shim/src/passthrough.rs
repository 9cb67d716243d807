//! The exports that emuV does not handle: each jumps to the real library's function of the same name,
//! whatever its signature, as a procedure linkage table does. No argument is touched and the real
//! function returns straight to the program.
//!
//! # Safety
//! The stubs are naked: they use only r11, which no calling convention passes anything in, and leave the
//! stack as they found it. `bind`, on a slot's first use, saves every register that can carry an argument
//! (the six integer ones, rax for the vector count of variadic calls, xmm0 to xmm7) around a call into
//! Rust that cannot unwind.
#![allow(unsafe_code)]

use core::ffi::c_void;
use std::{
    panic::catch_unwind,
    sync::atomic::{AtomicPtr, Ordering},
};

use crate::real::{self, CUDA_SLOTS, SLOTS};

#[cfg(not(target_arch = "x86_64"))]
compile_error!("emuV's pass-through stubs are written for x86-64");

/// What a driver function returns that the installed driver lacks: `CUDA_ERROR_NOT_FOUND`.
extern "C" fn cuda_lacks() -> u32 {
    emuv_cuda::CUresult::NOT_FOUND.0
}

/// Likewise without any driver: `CUDA_ERROR_NO_DEVICE`.
extern "C" fn no_cuda() -> u32 {
    emuv_cuda::CUresult::NO_DEVICE.0
}

/// What an NVML function returns that the installed library lacks: `NVML_ERROR_FUNCTION_NOT_FOUND`.
extern "C" fn nvml_lacks() -> u32 {
    emuv_cuda::nvml_types::nvmlReturn_t::FUNCTION_NOT_FOUND.0
}

/// Loads the library that a slot belongs to and gives the address to jump to; never null.
extern "C" fn target(slot: u32) -> *const c_void {
    let slot = slot as usize;
    let missing = if slot < CUDA_SLOTS { cuda_lacks as *const c_void } else { nvml_lacks as *const c_void };
    catch_unwind(|| {
        let loaded = if slot < CUDA_SLOTS { real::cuda().is_some() } else { real::nvml().is_some() };
        if !loaded && slot < CUDA_SLOTS {
            return no_cuda as *const c_void;
        }
        let address = SLOTS[slot].load(Ordering::Acquire).cast_const();
        if address.is_null() { missing } else { address }
    })
    .unwrap_or(missing)
}

/// Continues a stub whose slot is empty; r11 holds the slot's number.
#[unsafe(naked)]
unsafe extern "C" fn bind() {
    core::arch::naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "push rdi",
        "push rsi",
        "push rdx",
        "push rcx",
        "push r8",
        "push r9",
        "push rax",
        "push r10",
        "sub rsp, 128",
        "movups [rsp], xmm0",
        "movups [rsp + 16], xmm1",
        "movups [rsp + 32], xmm2",
        "movups [rsp + 48], xmm3",
        "movups [rsp + 64], xmm4",
        "movups [rsp + 80], xmm5",
        "movups [rsp + 96], xmm6",
        "movups [rsp + 112], xmm7",
        "mov edi, r11d",
        "call {target}",
        "mov r11, rax",
        "movups xmm0, [rsp]",
        "movups xmm1, [rsp + 16]",
        "movups xmm2, [rsp + 32]",
        "movups xmm3, [rsp + 48]",
        "movups xmm4, [rsp + 64]",
        "movups xmm5, [rsp + 80]",
        "movups xmm6, [rsp + 96]",
        "movups xmm7, [rsp + 112]",
        "add rsp, 128",
        "pop r10",
        "pop rax",
        "pop r9",
        "pop r8",
        "pop rcx",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "pop rbp",
        "jmp r11",
        target = sym target,
    )
}

macro_rules! passed {
    ($($slot:literal $name:ident;)*) => {
        $(
            /// Jumps to the real function.
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            unsafe extern "C" fn $name() {
                core::arch::naked_asm!(
                    "mov r11, qword ptr [rip + {slots} + {offset}]",
                    "test r11, r11",
                    "jz 2f",
                    "jmp r11",
                    "2:",
                    "mov r11d, {slot}",
                    "jmp {bind}",
                    slots = sym SLOTS,
                    offset = const $slot * size_of::<AtomicPtr<c_void>>(),
                    slot = const $slot,
                    bind = sym bind,
                )
            }
        )*
    };
}

#[allow(non_snake_case)]
mod stubs {
    use super::*;

    include!(concat!(env!("OUT_DIR"), "/passed.rs"));
}
