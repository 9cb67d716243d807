//! What a launch's arguments may point to. A kernel's parameters are known by place and size only, so every
//! aligned 8-byte word of them, inside structures as well, is taken for a pointer if its value lies in an arena.
//!
//! # Safety
//! The driver's calls have live locals as out-pointers. Parameters are read as the driver reads them at the
//! launch: `kernelParams` has a valid pointer for each parameter that the driver says there is, `extra` describes a
//! buffer (the launch's own contract).
#![allow(unsafe_code)]

use core::ffi::c_void;
use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{
        Arc, RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use emuv_cuda::{CUresult, types::*};

use crate::{real::Real, session::Session, touch::Touch};

/// Functions that a thread finds without a lock.
const NEAR: usize = 64;

/// No kernel has more parameter bytes (the hardware's limit since Volta is 32,764).
const MOST_PARAMETER_BYTES: usize = 32 << 10;

/// A kernel's parameters.
#[derive(Debug)]
struct Layout {
    /// Offset in the argument buffer and size in bytes, of each. `None`: the driver does not say.
    parameters: Option<Box<[(usize, usize)]>>,
    launches: AtomicU32,
}

/// The layouts of the functions launched so far. One per process.
#[derive(Default)]
pub(crate) struct Functions {
    known: RwLock<HashMap<usize, Arc<Layout>>>,
    /// Raised when functions go: their handles may come again for others.
    generation: AtomicU64,
}

/// How a launch was made, apart from its arguments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// The kernel.
    pub function: CUfunction,
    /// Blocks and threads, in three dimensions each, and shared memory in bytes.
    pub dimensions: [u32; 7],
}

type Near = [(usize, u64, Option<Arc<Layout>>); NEAR];

thread_local! {
    static NEARBY: RefCell<Box<Near>> = RefCell::new(Box::new([const { (0, 0, None) }; NEAR]));
}

/// Sums up words; each step is a bijection of the word and of what was before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// One word more.
    pub fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0xd134_2543_de82_ef95);
    }

    /// A number that is not zero.
    pub fn end(self) -> u64 {
        (self.0 ^ (self.0 >> 29)) | 1
    }
}

impl Functions {
    /// Functions have gone with their module, library or context.
    pub fn forget(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
    }

    fn layout(&self, real: &Real, function: CUfunction) -> Arc<Layout> {
        let key = function as usize;
        let generation = self.generation.load(Ordering::Acquire);
        NEARBY.with_borrow_mut(|near| {
            let slot = &mut near[(key >> 4) % NEAR];
            if let (true, Some(layout)) = (slot.0 == key && slot.1 == generation, &slot.2) {
                return Arc::clone(layout);
            }
            let layout = self.find(real, function);
            *slot = (key, generation, Some(Arc::clone(&layout)));
            layout
        })
    }

    fn find(&self, real: &Real, function: CUfunction) -> Arc<Layout> {
        let key = function as usize;
        if let Some(layout) = self.known.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(&key) {
            return Arc::clone(layout);
        }
        let layout = Arc::new(Layout { parameters: parameters(real, function), launches: AtomicU32::new(0) });
        let mut known = self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(known.entry(key).or_insert(layout))
    }

    /// What a launch may touch.
    ///
    /// # Safety
    /// `kernel_params` and `extra` are as for `cuLaunchKernel` of this function.
    pub unsafe fn touch(
        &self,
        session: &Session,
        shape: &Shape,
        kernel_params: *const *mut c_void,
        extra: *const *mut c_void,
    ) -> Touch {
        let mut touch = Touch::nothing();
        let layout = self.layout(session.real, shape.function);
        let mut sum = Sum::new();
        sum.add(shape.function as u64);
        shape.dimensions.iter().for_each(|part| sum.add(u64::from(*part)));
        touch.kind = sum.end();
        touch.may_store_pointers = layout.launches.fetch_add(1, Ordering::Relaxed).wrapping_add(1).is_power_of_two();
        // Repetition is seen by what is touched: other arguments may count rounds.
        let mut reader = Reader { session, touch: &mut touch, sum };
        if !extra.is_null() {
            // SAFETY: the caller's word.
            match unsafe { buffer(extra) } {
                // SAFETY: as above: a buffer of that size.
                Some((start, bytes)) => unsafe { reader.read(start, 0, bytes) },
                None => reader.touch.everything = true,
            }
        } else if let Some(parameters) = &layout.parameters {
            for (index, &(offset, bytes)) in parameters.iter().enumerate() {
                if kernel_params.is_null() {
                    break;
                }
                // SAFETY: the caller's word: one pointer for each parameter.
                let parameter = unsafe { *kernel_params.add(index) };
                if !parameter.is_null() {
                    // SAFETY: as above: the parameter has that size.
                    unsafe { reader.read(parameter.cast(), offset, bytes) };
                }
            }
        } else {
            reader.touch.everything = true;
        }
        let sum = reader.sum;
        touch.signature = sum.end();
        touch.may_store_pointers |= touch.everything;
        touch
    }
}

struct Reader<'a> {
    session: &'a Session,
    touch: &'a mut Touch,
    sum: Sum,
}

impl Reader<'_> {
    /// Takes in `bytes` of arguments that lie at `offset` in the argument buffer.
    ///
    /// # Safety
    /// `start` is valid for `bytes`.
    unsafe fn read(&mut self, start: *const u8, offset: usize, bytes: usize) {
        let mut at = offset.next_multiple_of(8) - offset;
        while at + 8 <= bytes {
            // SAFETY: within the parameter.
            let word = unsafe { start.add(at).cast::<u64>().read_unaligned() };
            if self.session.device_at(word).is_some() {
                self.sum.add(word);
                self.touch.add(word);
            } else if self.session.host_ranges.contains(word) {
                self.touch.everything = true;
            }
            at += 8;
        }
    }
}

/// The buffer that `extra` describes.
///
/// # Safety
/// As for `cuLaunchKernel`: pairs of a key and a pointer, up to `CU_LAUNCH_PARAM_END`.
unsafe fn buffer(extra: *const *mut c_void) -> Option<(*const u8, usize)> {
    const END: usize = 0;
    const POINTER: usize = 1;
    const SIZE: usize = 2;
    let (mut start, mut bytes) = (None, None);
    for index in (0..8).step_by(2) {
        // SAFETY: the caller's word: the list goes on until its end.
        let key = unsafe { *extra.add(index) } as usize;
        if key == END {
            break;
        }
        // SAFETY: as above.
        let value = unsafe { *extra.add(index + 1) };
        match key {
            POINTER => start = Some(value.cast_const().cast::<u8>()),
            // SAFETY: as above: it points to a size.
            SIZE => bytes = Some(unsafe { *value.cast::<usize>() }),
            _ => return None,
        }
    }
    let bytes = bytes.filter(|bytes| *bytes <= MOST_PARAMETER_BYTES)?;
    Some((start?, bytes))
}

/// Asks the driver. The runtime library launches by `CUkernel`, in a `CUfunction`'s place.
fn parameters(real: &Real, function: CUfunction) -> Option<Box<[(usize, usize)]>> {
    let driver = &real.driver;
    // SAFETY: see the module's head.
    let of_kernel = |index, offset: &mut usize, bytes: &mut usize| unsafe {
        driver.cuKernelGetParamInfo(function.cast(), index, offset, bytes)
    };
    // SAFETY: see the module's head.
    let of_function = |index, offset: &mut usize, bytes: &mut usize| unsafe {
        driver.cuFuncGetParamInfo(function, index, offset, bytes)
    };
    collect(of_kernel).or_else(|| collect(of_function))
}

fn collect(ask: impl Fn(usize, &mut usize, &mut usize) -> CUresult) -> Option<Box<[(usize, usize)]>> {
    let mut found = Vec::new();
    loop {
        let (mut offset, mut bytes) = (0, 0);
        match ask(found.len(), &mut offset, &mut bytes) {
            CUresult::SUCCESS if bytes <= MOST_PARAMETER_BYTES => found.push((offset, bytes)),
            // Past the last one.
            CUresult::INVALID_VALUE => return Some(found.into()),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_asked_for_until_there_are_no_more() {
        let known = [(0, 8), (8, 4), (16, 128)];
        let ask = |index: usize, offset: &mut usize, bytes: &mut usize| match known.get(index) {
            Some(&found) => {
                (*offset, *bytes) = found;
                CUresult::SUCCESS
            }
            None => CUresult::INVALID_VALUE,
        };
        assert_eq!(collect(ask).as_deref(), Some(&known[..]));
    }

    #[test]
    fn a_driver_that_does_not_know_the_call_leaves_everything_open() {
        assert_eq!(collect(|_, _, _| CUresult::NOT_FOUND), None);
        assert_eq!(collect(|_, _, _| CUresult::CUDA_ERROR_INVALID_HANDLE), None);
    }

    #[test]
    fn the_sum_tells_order_and_value_apart_and_is_never_zero() {
        let sum = |words: &[u64]| {
            let mut sum = Sum::new();
            words.iter().for_each(|word| sum.add(*word));
            sum.end()
        };
        assert_ne!(sum(&[1, 2]), sum(&[2, 1]));
        assert_ne!(sum(&[1]), sum(&[1, 0]));
        assert_ne!(sum(&[0]), 0);
    }

    #[test]
    fn an_argument_buffer_is_found_whatever_the_order_of_its_description() {
        let mut bytes = 24_usize;
        let size: *mut c_void = (&raw mut bytes).cast();
        let start = 0x1000 as *mut c_void;
        let key = |key: usize| key as *mut c_void;
        for list in [[key(1), start, key(2), size, key(0)], [key(2), size, key(1), start, key(0)]] {
            // SAFETY: a list as the driver wants it.
            assert_eq!(unsafe { buffer(list.as_ptr()) }, Some((0x1000 as *const u8, 24)));
        }
        // SAFETY: as above.
        assert_eq!(unsafe { buffer([key(7), start, key(0), size, key(0)].as_ptr()) }, None);
    }
}
