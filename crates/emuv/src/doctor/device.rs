//! A GPU with emuV's kernels loaded: the few driver calls that the doctor and the demo make, behind
//! methods that check sizes.
//!
//! # Safety
//! Every unsafe block is one driver call. Its pointers are to live locals or to slices of the length that
//! is passed along. Device addresses are not host pointers: a wrong one is an error that the driver
//! reports, never an access to this process's memory by the CPU; the methods still refuse spans whose
//! sizes do not fit together, since the kernels trust them.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_char, c_void},
    ptr,
};

use emuv_cuda::{
    CuResult, Driver,
    types::{CUcontext, CUdevice, CUfunction, CUmodule, CUresult, CUstream, CUuuid},
};
use emuv_state::uuid_text;

/// The kernels as PTX source, ended by a NUL as the driver wants it.
const KERNELS: &str = concat!(include_str!("../../kernels/emuv.ptx"), "\0");

const THREADS_PER_BLOCK: u32 = 256;
const MOST_BLOCKS: u64 = 4096;
/// `CU_STREAM_NON_BLOCKING`: not ordered with the default stream.
const NON_BLOCKING: u32 = 1;

/// A range of device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Device address.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Span {
    /// Number of 32-bit words.
    pub fn words(self) -> u64 {
        self.bytes / 4
    }

    /// A part of it, cut off at its end.
    pub fn part(self, offset_bytes: u64, bytes: u64) -> Self {
        let offset_bytes = offset_bytes.min(self.bytes);
        Self { address: self.address + offset_bytes, bytes: bytes.min(self.bytes - offset_bytes) }
    }
}

/// Initialises the driver and lists its devices.
///
/// # Errors
/// The driver's own.
pub fn devices(driver: &Driver) -> CuResult<Vec<CUdevice>> {
    // SAFETY: no pointers.
    unsafe { driver.cuInit(0) }.ok()?;
    let mut count = 0;
    // SAFETY: the out-pointer is a live local.
    unsafe { driver.cuDeviceGetCount(&raw mut count) }.ok()?;
    (0..count)
        .map(|ordinal| {
            let mut device = 0;
            // SAFETY: the out-pointer is a live local.
            unsafe { driver.cuDeviceGet(&raw mut device, ordinal) }.ok()?;
            Ok(device)
        })
        .collect()
}

/// A device's name; empty where it has none.
pub fn name(driver: &Driver, device: CUdevice) -> String {
    let mut text = [0_u8; 128];
    // SAFETY: the buffer is as long as stated.
    let result = unsafe { driver.cuDeviceGetName(text.as_mut_ptr().cast(), 127, device) };
    if result != CUresult::SUCCESS {
        return String::new();
    }
    CStr::from_bytes_until_nul(&text).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A device's UUID as NVML writes it (`GPU-…`).
pub fn uuid(driver: &Driver, device: CUdevice) -> Option<String> {
    let mut uuid = CUuuid { bytes: [0; 16] };
    // SAFETY: the out-pointer is a live local.
    unsafe { driver.cuDeviceGetUuid_v2(&raw mut uuid, device) }.ok().ok()?;
    uuid_text(&uuid.bytes.map(c_char::cast_unsigned))
}

/// The memory that the driver says a device has, in bytes.
///
/// # Errors
/// The driver's own.
pub fn total_bytes(driver: &Driver, device: CUdevice) -> CuResult<u64> {
    let mut bytes = 0;
    // SAFETY: the out-pointer is a live local.
    unsafe { driver.cuDeviceTotalMem_v2(&raw mut bytes, device) }.ok()?;
    Ok(bytes as u64)
}

/// A device with its primary context current on the creating thread (and used on that thread only).
#[derive(Debug)]
pub struct Device<'d> {
    driver: &'d Driver,
    device: CUdevice,
    kernels: Kernels,
}

#[derive(Debug)]
struct Kernels {
    fill: CUfunction,
    mix: CUfunction,
    axpy: CUfunction,
    gemm: CUfunction,
    gather: CUfunction,
    reduce: CUfunction,
}

impl Default for Kernels {
    /// None loaded yet: the driver refuses to launch a null function.
    fn default() -> Self {
        let none: CUfunction = ptr::null_mut();
        Self { fill: none, mix: none, axpy: none, gemm: none, gather: none, reduce: none }
    }
}

impl Kernels {
    fn load(driver: &Driver) -> CuResult<Self> {
        let mut module: CUmodule = ptr::null_mut();
        // SAFETY: the image is a NUL-terminated text that lives as long as the process.
        unsafe { driver.cuModuleLoadData(&raw mut module, KERNELS.as_ptr().cast()) }.ok()?;
        let function = |name: &CStr| {
            let mut function: CUfunction = ptr::null_mut();
            // SAFETY: the module was just loaded, the name is NUL-terminated.
            unsafe { driver.cuModuleGetFunction(&raw mut function, module, name.as_ptr()) }.ok()?;
            Ok(function)
        };
        Ok(Self {
            fill: function(c"emuv_fill")?,
            mix: function(c"emuv_mix")?,
            axpy: function(c"emuv_axpy")?,
            gemm: function(c"emuv_gemm")?,
            gather: function(c"emuv_gather")?,
            reduce: function(c"emuv_reduce")?,
        })
    }
}

impl<'d> Device<'d> {
    /// Makes the device's primary context current and loads the kernels.
    ///
    /// # Errors
    /// The driver's own.
    pub fn start(driver: &'d Driver, device: CUdevice) -> CuResult<Self> {
        let mut context: CUcontext = ptr::null_mut();
        // SAFETY: the out-pointer is a live local.
        unsafe { driver.cuDevicePrimaryCtxRetain(&raw mut context, device) }.ok()?;
        // From here on dropping the value releases the context again.
        let mut started = Self { driver, device, kernels: Kernels::default() };
        // SAFETY: the context was just retained.
        unsafe { driver.cuCtxSetCurrent(context) }.ok()?;
        started.kernels = Kernels::load(driver)?;
        Ok(started)
    }

    /// Allocates memory that goes with the value.
    ///
    /// # Errors
    /// `CUDA_ERROR_OUT_OF_MEMORY` where there is none left, else the driver's own.
    pub fn allocate(&self, bytes: u64) -> CuResult<Buffer<'_, 'd>> {
        let size = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut address = 0;
        // SAFETY: the out-pointer is a live local.
        unsafe { self.driver.cuMemAlloc_v2(&raw mut address, size) }.ok()?;
        Ok(Buffer { device: self, span: Span { address, bytes } })
    }

    /// `dst[i] = mix(i + seed)`.
    ///
    /// # Errors
    /// The driver's own.
    pub fn fill(&self, dst: Span, seed: u32) -> CuResult {
        self.launch(self.kernels.fill, dst.words(), &[dst.address, dst.words(), seed.into()])
    }

    /// `buffer[i] = buffer[i] * 1664525 + 1013904223 + round`.
    ///
    /// # Errors
    /// The driver's own.
    pub fn mix(&self, buffer: Span, round: u32) -> CuResult {
        self.launch(self.kernels.mix, buffer.words(), &[buffer.address, buffer.words(), round.into()])
    }

    /// `y[i] = fma(a, x[i], y[i])`.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where the lengths differ, else the driver's own.
    pub fn axpy(&self, y: Span, x: Span, a: f32) -> CuResult {
        same(y.bytes == x.bytes)?;
        self.launch(self.kernels.axpy, y.words(), &[y.address, x.address, a.to_bits().into(), y.words()])
    }

    /// `c = a * b`, three square row-major matrices of `edge` rows.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where a span is too short, else the driver's own.
    pub fn gemm(&self, c: Span, a: Span, b: Span, edge: u32) -> CuResult {
        let elements = u64::from(edge) * u64::from(edge);
        same([c, a, b].iter().all(|span| span.words() >= elements))?;
        let edge = u64::from(edge);
        self.launch(self.kernels.gemm, elements, &[c.address, a.address, b.address, edge, edge, edge])
    }

    /// `dst[i] = src[indices[i]]`. The caller has seen to it that no index is beyond `src`.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where the lengths differ, else the driver's own.
    pub fn gather(&self, dst: Span, src: Span, indices: Span) -> CuResult {
        same(dst.bytes == indices.bytes)?;
        self.launch(self.kernels.gather, dst.words(), &[dst.address, src.address, indices.address, dst.words()])
    }

    /// The weighted sum of all words; waits for it.
    ///
    /// # Errors
    /// The driver's own.
    pub fn reduce(&self, src: Span) -> CuResult<u64> {
        let out = self.allocate(8)?;
        self.upload(out.span(), &[0, 0])?;
        self.launch(self.kernels.reduce, src.words(), &[out.span().address, src.address, src.words()])?;
        let sum = self.download(out.span())?;
        Ok(sum.iter().rev().fold(0, |high, word| high << 32 | u64::from(*word)))
    }

    /// Copies words to the device.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where the lengths differ, else the driver's own.
    pub fn upload(&self, dst: Span, words: &[u32]) -> CuResult {
        same(dst.bytes == size_of_val(words) as u64)?;
        // SAFETY: the slice is as long as the length passed.
        unsafe { self.driver.cuMemcpyHtoD_v2(dst.address, words.as_ptr().cast(), size_of_val(words)) }.ok()
    }

    /// Copies words from the device; waits for work before it on the default stream.
    ///
    /// # Errors
    /// The driver's own.
    pub fn download(&self, src: Span) -> CuResult<Vec<u32>> {
        let count = usize::try_from(src.words()).unwrap_or(0);
        let mut words = vec![0_u32; count];
        // SAFETY: the buffer is as long as the length passed.
        unsafe { self.driver.cuMemcpyDtoH_v2(words.as_mut_ptr().cast(), src.address, count * 4) }.ok()?;
        Ok(words)
    }

    /// A stream of its own, not ordered with the default stream.
    ///
    /// # Errors
    /// The driver's own.
    pub fn stream(&self) -> CuResult<Stream<'_>> {
        let mut stream: CUstream = ptr::null_mut();
        // SAFETY: the out-pointer is a live local.
        unsafe { self.driver.cuStreamCreate(&raw mut stream, NON_BLOCKING) }.ok()?;
        Ok(Stream { driver: self.driver, stream })
    }

    /// Waits for everything.
    ///
    /// # Errors
    /// Those of the work waited for.
    pub fn synchronize(&self) -> CuResult {
        // SAFETY: no pointers.
        unsafe { self.driver.cuCtxSynchronize() }.ok()
    }

    fn launch(&self, function: CUfunction, threads: u64, arguments: &[u64]) -> CuResult {
        // A 32-bit parameter is read from the low half of its slot: x86-64 is little-endian.
        let mut parameters: Vec<*mut c_void> =
            arguments.iter().map(|argument| ptr::from_ref(argument).cast_mut().cast()).collect();
        let blocks = threads.div_ceil(THREADS_PER_BLOCK.into()).clamp(1, MOST_BLOCKS);
        let blocks = u32::try_from(blocks).unwrap_or(1);
        // SAFETY: one parameter slot for each parameter of the kernel, each at least as large as its type,
        // read before the call returns.
        unsafe {
            self.driver.cuLaunchKernel(
                function,
                blocks,
                1,
                1,
                THREADS_PER_BLOCK,
                1,
                1,
                0,
                ptr::null_mut(),
                parameters.as_mut_ptr(),
                ptr::null_mut(),
            )
        }
        .ok()
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        // SAFETY: retained in `start`; nothing of the context is used afterwards (buffers borrow self).
        let _ = unsafe { self.driver.cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

fn same(fits: bool) -> CuResult {
    if fits { Ok(()) } else { CUresult::INVALID_VALUE.ok() }
}

/// Memory allocated from a [`Device`], freed with the value.
#[derive(Debug)]
pub struct Buffer<'a, 'd> {
    device: &'a Device<'d>,
    span: Span,
}

impl Buffer<'_, '_> {
    /// Where it is.
    pub fn span(&self) -> Span {
        self.span
    }
}

impl Drop for Buffer<'_, '_> {
    fn drop(&mut self) {
        // SAFETY: allocated by `allocate`, freed once; the driver waits for work that uses it.
        let _ = unsafe { self.device.driver.cuMemFree_v2(self.span.address) };
    }
}

/// An asynchronous queue.
#[derive(Debug)]
pub struct Stream<'a> {
    driver: &'a Driver,
    stream: CUstream,
}

impl Stream<'_> {
    /// Starts a copy within the GPU's address space, which may cross the link where one side is a
    /// host-backed chunk.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where the lengths differ, else the driver's own.
    pub fn copy(&self, dst: Span, src: Span) -> CuResult {
        same(dst.bytes == src.bytes)?;
        let bytes = usize::try_from(src.bytes).unwrap_or(0);
        // SAFETY: device addresses only; the stream is live.
        unsafe { self.driver.cuMemcpyDtoDAsync_v2(dst.address, src.address, bytes, self.stream) }.ok()
    }

    /// Waits for all copies.
    ///
    /// # Errors
    /// Those of the copies.
    pub fn synchronize(&self) -> CuResult {
        // SAFETY: the stream is live.
        unsafe { self.driver.cuStreamSynchronize(self.stream) }.ok()
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        // SAFETY: created by `Device::stream`, destroyed once.
        let _ = unsafe { self.driver.cuStreamDestroy_v2(self.stream) };
    }
}
