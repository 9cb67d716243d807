//! What a launch's arguments may point to. A kernel's parameters are known by place and size only, so every
//! aligned 8-byte word of them, inside structures as well, is taken for a pointer if its value lies in an arena.
//!
//! # Safety
//! The driver's calls have live locals as out-pointers. Parameters are read as the driver reads them at the
//! launch: `kernelParams` has a valid pointer for each parameter that the driver says there is, `extra` describes a
//! buffer (the launch's own contract).
#![allow(unsafe_code)]

use core::ffi::c_void;
use std::{cell::RefCell, collections::HashMap, sync::Arc};

use emuv_cuda::{CUresult, types::*};

use crate::{
    calls, log,
    real::Real,
    session::Session,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
        thread_local,
    },
    touch::Touch,
};

/// Functions that a thread finds without a lock.
const NEAR: usize = 64;

/// No kernel has more parameter bytes (the hardware's limit since Volta is 32,764).
const MOST_PARAMETER_BYTES: usize = 32 << 10;

/// Offset in the argument buffer and size in bytes, of each parameter. `None`: the driver does not say.
type Parameters = Option<Box<[(usize, usize)]>>;

/// A kernel's parameters.
#[derive(Debug)]
struct Layout {
    parameters: Parameters,
    /// Launches whose arguments could be read.
    launches: AtomicU32,
    /// It has been said that it may touch anything.
    is_open: AtomicBool,
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
        self.known.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn layout(&self, real: &Real, function: CUfunction) -> Arc<Layout> {
        let key = function as usize;
        let generation = self.generation.load(Ordering::Acquire);
        let near = NEARBY.try_with(|near| {
            let mut near = near.borrow_mut();
            let slot = &mut near[(key >> 4) % NEAR];
            if let (true, Some(layout)) = (slot.0 == key && slot.1 == generation, &slot.2) {
                return Arc::clone(layout);
            }
            let layout = self.find(key, || parameters(real, function));
            *slot = (key, generation, Some(Arc::clone(&layout)));
            layout
        });
        // A thread that ends may still launch.
        near.unwrap_or_else(|_| self.find(key, || parameters(real, function)))
    }

    /// Whether that is the handle of a function that was launched.
    pub fn is_known(&self, handle: u64) -> bool {
        let key = usize::try_from(handle).unwrap_or(0);
        self.known.read().unwrap_or_else(PoisonError::into_inner).contains_key(&key)
    }

    fn find(&self, key: usize, parameters: impl FnOnce() -> Parameters) -> Arc<Layout> {
        if let Some(layout) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(layout);
        }
        let layout =
            Arc::new(Layout { parameters: parameters(), launches: AtomicU32::new(0), is_open: AtomicBool::new(false) });
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
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
        touch.maker = shape.function as u64;
        let look_at = Touch::looker(session);
        // SAFETY: the caller's word.
        let readable = unsafe { layout.words(kernel_params, extra, |word| look_at(&mut touch, word)) };
        if touch.everything || !readable {
            if !layout.is_open.swap(true, Ordering::Relaxed) {
                let why = if readable { "is given memory of the host" } else { "has arguments that cannot be read" };
                let name = calls::function_name(session.real, shape.function);
                log::debug(format_args!("kernel {name} {why}: it may touch anything"));
            }
            touch.everything = true;
            touch.brings_pointers();
            return touch;
        }
        // What it does with what it is given is looked at when it is launched the first time, and now and then again.
        let launch = layout.launches.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        touch.may_store_pointers = launch.is_power_of_two();
        touch
    }

    /// Gives every word of a launch's arguments that may be a pointer. False: they cannot all be read.
    ///
    /// # Safety
    /// `kernel_params` and `extra` are as for `cuLaunchKernel` of this function.
    pub unsafe fn words(
        &self,
        real: &Real,
        function: CUfunction,
        kernel_params: *const *mut c_void,
        extra: *const *mut c_void,
        each: impl FnMut(u64),
    ) -> bool {
        // SAFETY: the caller's word.
        unsafe { self.layout(real, function).words(kernel_params, extra, each) }
    }
}

impl Layout {
    /// # Safety
    /// `kernel_params` and `extra` are as for `cuLaunchKernel` of a function with these parameters.
    unsafe fn words(
        &self,
        kernel_params: *const *mut c_void,
        extra: *const *mut c_void,
        mut each: impl FnMut(u64),
    ) -> bool {
        if !extra.is_null() {
            // SAFETY: the caller's word.
            let Some((start, bytes)) = (unsafe { buffer(extra) }) else { return false };
            // SAFETY: as above: a buffer of that size.
            unsafe { read(start, 0, bytes, &mut each) };
            return true;
        }
        let Some(parameters) = &self.parameters else { return false };
        if kernel_params.is_null() {
            return parameters.is_empty();
        }
        for (index, &(offset, bytes)) in parameters.iter().enumerate() {
            // SAFETY: the caller's word: one pointer for each parameter.
            let parameter = unsafe { *kernel_params.add(index) };
            if !parameter.is_null() {
                // SAFETY: as above: the parameter has that size.
                unsafe { read(parameter.cast(), offset, bytes, &mut each) };
            }
        }
        true
    }
}

/// Gives the aligned words of `bytes` of arguments that lie at `offset` in the argument buffer.
///
/// # Safety
/// `start` is valid for `bytes`.
unsafe fn read(start: *const u8, offset: usize, bytes: usize, each: &mut impl FnMut(u64)) {
    let mut at = offset.next_multiple_of(8) - offset;
    while at + 8 <= bytes {
        // SAFETY: within the parameter.
        each(unsafe { start.add(at).cast::<u64>().read_unaligned() });
        at += 8;
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

/// Asks the driver. The runtime library launches by `CUkernel`, in a `CUfunction`'s place, and a handle does not show
/// which it is: the call of the wrong kind finds no parameters, or fails.
fn parameters(real: &Real, function: CUfunction) -> Parameters {
    let driver = &real.driver;
    // SAFETY: see the module's head.
    let of_kernel = |index, offset: &mut usize, bytes: &mut usize| unsafe {
        driver.cuKernelGetParamInfo(function.cast(), index, offset, bytes)
    };
    // SAFETY: see the module's head.
    let of_function = |index, offset: &mut usize, bytes: &mut usize| unsafe {
        driver.cuFuncGetParamInfo(function, index, offset, bytes)
    };
    either(collect(of_kernel), || collect(of_function))
}

/// The answer that knows more.
fn either(first: Parameters, second: impl FnOnce() -> Parameters) -> Parameters {
    match first {
        Some(found) if !found.is_empty() => Some(found),
        first => second().or(first),
    }
}

fn collect(ask: impl Fn(usize, &mut usize, &mut usize) -> CUresult) -> Parameters {
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
    fn whichever_call_knows_the_handle_is_believed() {
        let some = |bytes: usize| -> Parameters { Some(vec![(0, bytes)].into()) };
        let none = || -> Parameters { Some(Box::default()) };
        assert_eq!(either(some(8), || unreachable!("the first answer is complete")), some(8));
        assert_eq!(either(none(), || some(4)), some(4));
        assert_eq!(either(None, || some(4)), some(4));
        assert_eq!(either(none(), || None), none());
        assert_eq!(either(None, || None), None);
    }

    fn layout(parameters: Parameters) -> Layout {
        Layout { parameters, launches: AtomicU32::new(0), is_open: AtomicBool::new(false) }
    }

    /// The words of parameters at these offsets, in one argument buffer.
    fn words_of(parameters: &[(usize, usize)], bytes: &[u8]) -> Vec<u64> {
        let mut pointers: Vec<*mut c_void> =
            parameters.iter().map(|(offset, _)| bytes[*offset..].as_ptr().cast_mut().cast()).collect();
        let mut words = Vec::new();
        let layout = layout(Some(parameters.into()));
        // SAFETY: one pointer for each parameter, each into `bytes`.
        assert!(unsafe { layout.words(pointers.as_mut_ptr(), std::ptr::null(), |word| words.push(word)) });
        words
    }

    #[test]
    fn every_aligned_word_of_every_parameter_is_seen_and_nothing_else() {
        let buffer: Vec<u8> = (0..48_u64).flat_map(u64::to_le_bytes).collect();
        // Two plain pointers.
        assert_eq!(words_of(&[(0, 8), (8, 8)], &buffer), [0, 1]);
        // A number of 4 bytes, then a structure of three words.
        assert_eq!(words_of(&[(0, 4), (8, 24)], &buffer), [1, 2, 3]);
        // A structure of floats that begins off a word's boundary holds one whole word: bytes 8 to 16.
        assert_eq!(words_of(&[(4, 13)], &buffer), [1]);
        // Bytes that are too few for a word, at either end of one.
        assert_eq!(words_of(&[(0, 7), (9, 7), (17, 3)], &buffer), [0_u64; 0]);
        // A descriptor of 128 bytes.
        assert_eq!(words_of(&[(64, 128)], &buffer), (8..24).collect::<Vec<u64>>());
    }

    #[test]
    fn a_buffer_is_read_to_its_last_whole_word() {
        let mut words = [7_u64, 8, 9];
        let mut bytes = 20_usize;
        let list: [*mut c_void; 5] = [
            std::ptr::without_provenance_mut(1),
            words.as_mut_ptr().cast(),
            std::ptr::without_provenance_mut(2),
            (&raw mut bytes).cast(),
            std::ptr::null_mut(),
        ];
        let mut seen = Vec::new();
        // SAFETY: a list as the driver wants it.
        assert!(unsafe { layout(None).words(std::ptr::null(), list.as_ptr(), |word| seen.push(word)) });
        assert_eq!(seen, [7, 8]);
    }

    #[test]
    fn arguments_that_cannot_be_read_are_said_to_be_so() {
        let null = std::ptr::null();
        // SAFETY: no parameters are given, so none are read.
        unsafe {
            assert!(!layout(None).words(null, null, |_| {}), "the driver does not know the parameters");
            assert!(!layout(Some([(0, 8)].into())).words(null, null, |_| {}), "they are given in an unknown way");
            assert!(layout(Some(Box::default())).words(null, null, |_| {}), "there are none");
        }
    }

    #[test]
    fn what_is_known_of_functions_is_asked_again_once_a_module_has_gone() {
        let functions = Functions::default();
        let size = |functions: &Functions, now: usize| -> usize {
            let layout = functions.find(0x70, || Some([(0, now)].into()));
            layout.parameters.as_ref().map_or(0, |parameters| parameters[0].1)
        };
        assert_eq!(size(&functions, 8), 8);
        assert_eq!(size(&functions, 16), 8, "asked once");
        let before = functions.generation.load(Ordering::Relaxed);
        functions.forget();
        assert_ne!(functions.generation.load(Ordering::Relaxed), before, "threads ask again too");
        assert_eq!(size(&functions, 16), 16, "another function under the old handle");
    }

    #[test]
    fn the_sum_is_the_same_for_the_same_words() {
        let sum = || {
            let mut sum = Sum::new();
            [0x7f00_0000_1000, 128, 1, 1].iter().for_each(|word| sum.add(*word));
            sum.end()
        };
        assert_eq!(sum(), sum());
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
