//! The mover's own streams: one for each direction, so that both copy engines work at once.
//!
//! # Safety
//! Each block is one driver call. Streams, events and the kernel were made here, in the context that the mover has made
//! current, and are used only while it lives (`mover.rs` gives up [`Copies`] when that context goes). The
//! addresses of a copy are mapped: one is a settled chunk that [`emuv_policy::Residency`] has let move, the other
//! the alias of a handle that nobody else uses.
#![allow(unsafe_code)]

use std::collections::VecDeque;

use emuv_cuda::{CUresult, CuResult, types::*};
use emuv_policy::{Tier, machine::Link};

use crate::{calls, log, real::Real};

/// The kernel that copies, as PTX source, and its threads a block and blocks: as few as fill a link of 55 GB/s (H200), so that the
/// program's kernels have the rest of the GPU.
const PTX: &str = include_str!("../../kernels/copy.ptx");
const BLOCK: u32 = 256;
const BLOCKS: u32 = 2;

/// What it copies is a multiple of this.
const STEP_BYTES: u64 = BLOCK as u64 * BLOCKS as u64 * 64;

/// So much each way the link is measured with, in one piece or in up to so many: a small copy alone is slower.
const MEASURED_BYTES: u64 = 32 << 20;
const MOST_PIECES: u64 = 4;

/// See the module's head.
pub(crate) struct Copies {
    into_vram: CUstream,
    into_ram: CUstream,
    events: Vec<usize>,
    /// Copies without an engine.
    kernel: Option<usize>,
}

/// A stream with the highest priority, in the current context.
///
/// # Errors
/// The driver's own.
pub(super) fn high_priority_stream(real: &Real) -> CuResult<CUstream> {
    let (mut least, mut greatest) = (0, 0);
    let mut stream = std::ptr::null_mut();
    // SAFETY: see the module's head; the out-pointers are live locals.
    unsafe {
        real.driver.cuCtxGetStreamPriorityRange(&raw mut least, &raw mut greatest).ok()?;
        real.driver.cuStreamCreateWithPriority(&raw mut stream, CU_STREAM_NON_BLOCKING, greatest).ok()?;
    }
    Ok(stream)
}

/// Gives `work` a stream of its own in the current context, and waits for what it puts there.
///
/// # Errors
/// The driver's own, and those of `work`.
pub(crate) fn on_a_stream(real: &Real, work: impl FnOnce(CUstream) -> CuResult) -> CuResult {
    let mut stream = std::ptr::null_mut();
    // SAFETY: see the module's head; the out-pointer is a live local.
    unsafe { real.driver.cuStreamCreate(&raw mut stream, CU_STREAM_NON_BLOCKING) }.ok()?;
    let done = work(stream).and_then(|()| calls::synchronize_stream(real, stream));
    // SAFETY: made above, and used no more.
    let _ = unsafe { real.driver.cuStreamDestroy_v2(stream) };
    done
}

impl Copies {
    /// Makes the streams, in the current context, with the highest priority.
    ///
    /// # Errors
    /// The driver's own.
    pub fn new(real: &Real) -> CuResult<Self> {
        let [into_vram, into_ram] = [high_priority_stream(real)?, high_priority_stream(real)?];
        let kernel = calls::load_kernel(real, PTX, c"emuv_copy")
            .inspect_err(|error| log::debug(format_args!("nothing goes out while something is mapped: {error}")))
            .ok();
        Ok(Self { into_vram, into_ram, events: Vec::new(), kernel })
    }

    /// The stream for copies into a tier.
    pub fn stream(&self, to: Tier) -> CUstream {
        match to {
            Tier::Vram => self.into_vram,
            Tier::Ram => self.into_ram,
        }
    }

    /// Starts a copy of `bytes` by an engine; gives the event behind it.
    ///
    /// # Errors
    /// The driver's own.
    #[allow(clippy::cast_possible_truncation)] // 64-bit only.
    pub fn start(&mut self, real: &Real, to: Tier, target: u64, source: u64, bytes: u64) -> CuResult<usize> {
        let stream = self.stream(to);
        // SAFETY: see the module's head.
        unsafe { real.driver.cuMemcpyAsync(target, source, bytes as usize, stream) }.ok()?;
        self.record(real, stream)
    }

    /// Starts a copy into RAM by a kernel, which leaves the engine alone; gives the event behind it. `None`: there is no kernel, or
    /// none that copies so many bytes.
    pub fn start_by_kernel(&mut self, real: &Real, target: u64, source: u64, bytes: u64) -> Option<CuResult<usize>> {
        let (function, stream) = (self.kernel.filter(|_| bytes.is_multiple_of(STEP_BYTES))?, self.into_ram);
        // SAFETY: see the module's head; the arguments are those of the kernel, in order.
        let launched =
            unsafe { calls::launch_kernel(real, function, stream, (BLOCKS, BLOCK), [target, source, bytes]) };
        Some(launched.and_then(|()| self.record(real, stream)))
    }

    /// An event behind what was started on a stream.
    fn record(&mut self, real: &Real, stream: CUstream) -> CuResult<usize> {
        calls::record_event(real, self.events.pop(), stream).inspect_err(|_| {
            // Nothing will tell when it is over, and its memory is about to be used otherwise.
            let _ = calls::synchronize_stream(real, stream);
        })
    }

    /// Measures the link with copies between these, of `bytes` each, waiting for them: the best of three each time. What they held is gone.
    ///
    /// # Errors
    /// The driver's own.
    pub fn link(&self, real: &Real, vram: u64, ram: u64, bytes: u64) -> CuResult<Link> {
        self.measure(real, vram, ram, bytes).inspect_err(|_| self.wait(real))
    }

    fn measure(&self, real: &Real, vram: u64, ram: u64, bytes: u64) -> CuResult<Link> {
        let (into, out) = ((self.into_vram, vram, ram), (self.into_ram, ram, vram));
        let (mut in_best, mut out_best, mut both_best) = (0.0_f64, 0.0_f64, 0.0_f64);
        let pieces = (MEASURED_BYTES / bytes).clamp(1, MOST_PIECES);
        for _ in 0..3 {
            in_best = in_best.max(Self::rate(real, &[into], bytes, pieces)?);
            out_best = out_best.max(Self::rate(real, &[out], bytes, pieces)?);
            both_best = both_best.max(Self::rate(real, &[into, out], bytes, pieces)?);
        }
        // Neither way is slower beside nothing.
        let both = both_best.max(in_best).max(out_best);
        Ok(Link { in_bytes_per_us: in_best, out_bytes_per_us: out_best, both_bytes_per_us: both })
    }

    /// How many bytes a microsecond copies (stream, to, from) of `bytes` carry that begin together, each so many times. One more of
    /// each goes before: until the first has been handed over the program's own calls may have the driver for longer than it takes.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)] // 64-bit only, far below 2^52.
    fn rate(real: &Real, copies: &[(CUstream, u64, u64)], bytes: u64, pieces: u64) -> CuResult<f64> {
        let event = |stream: CUstream| calls::timed_event(real, stream, false);
        let copy_all = || {
            copies.iter().try_for_each(|&(stream, to, from)| {
                // SAFETY: see the module's head.
                unsafe { real.driver.cuMemcpyAsync(to, from, bytes as usize, stream) }.ok()
            })
        };
        copy_all()?;
        let before = copies.iter().map(|&(stream, ..)| event(stream)).collect::<CuResult<Vec<_>>>()?;
        (0..pieces).try_for_each(|_| copy_all())?;
        let after = copies.iter().map(|&(stream, ..)| event(stream)).collect::<CuResult<Vec<_>>>()?;
        for &(stream, ..) in copies {
            // SAFETY: see the module's head.
            unsafe { real.driver.cuStreamSynchronize(stream) }.ok()?;
        }
        let mut longest = 1.0_f64;
        for &after in &after {
            longest = longest.max(calls::elapsed_micros(real, before[0], after)?);
        }
        before.into_iter().chain(after).for_each(|event| calls::drop_event(real, event));
        Ok((copies.len() as u64 * pieces * bytes) as f64 / longest)
    }

    /// Waits for all copies. When that fails the context is at its end, and so are they.
    pub fn wait(&self, real: &Real) {
        for stream in [self.into_vram, self.into_ram] {
            let _ = calls::synchronize_stream(real, stream);
        }
    }

    /// An event that is free to be recorded again.
    pub fn event(&mut self) -> Option<usize> {
        self.events.pop()
    }

    /// The event of a copy is not needed any more.
    pub fn done(&mut self, event: usize) {
        self.events.push(event);
    }
}

/// Makes a context current on the mover's thread (`None`: none), and lets its calls be made whatever other threads
/// capture.
pub(crate) fn settle_thread(real: &Real, context: Option<emuv_policy::Owner>) -> CuResult {
    let context = context.map_or(std::ptr::null_mut(), |context| context.0 as CUcontext);
    // SAFETY: see the module's head; the context is alive as long as the mover is not told otherwise.
    unsafe { real.driver.cuCtxSetCurrent(context) }.ok()?;
    let mut mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: a live local. Old drivers lack the call; then captures wait for nothing of ours either.
    let _ = unsafe { real.driver.cuThreadExchangeStreamCaptureMode(&raw mut mode) };
    Ok(())
}

/// Copies on their way, in the order in which they were started.
#[derive(Debug, Default)]
pub(crate) struct UnderWay<T>(VecDeque<(usize, T)>);

impl<T> UnderWay<T> {
    /// Nothing under way.
    pub const fn new() -> Self {
        Self(VecDeque::new())
    }

    /// A copy has been started.
    pub fn push(&mut self, event: usize, what: T) {
        self.0.push_back((event, what));
    }

    /// The oldest copy, if it is over: its event, how it went, what it was.
    pub fn pop(&mut self, real: &Real) -> Option<(usize, CUresult, T)> {
        let result = calls::query_event(real, self.0.front()?.0);
        if result == CUresult::CUDA_ERROR_NOT_READY {
            return None;
        }
        self.0.pop_front().map(|(event, what)| (event, result, what))
    }

    /// Everything that is under way.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        self.0.drain(..).map(|(_, what)| what)
    }

    /// Everything that is under way, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, what)| what)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
