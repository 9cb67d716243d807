//! Launching kernels, and what fits on a multiprocessor.

use std::ffi::{c_int, c_uint, c_void};

use emuv_cuda::{
    CUresult, CuResult,
    types::{CUfunction, CUlaunchConfig, CUoccupancyB2DSize, CUstream},
};

use super::{
    abi::{In, Out, entries, shared_bytes_for},
    call::{Call, Target},
    device::{MAX_THREADS_PER_BLOCK, MAX_THREADS_PER_MULTIPROCESSOR, MULTIPROCESSORS, SHARED_BYTES_PER_BLOCK_OPTIN},
};
use crate::{
    graph::step::{Kernel, Shape, Step},
    kernel::{
        builtin::{Arguments, Builtin},
        pointers::VARIABLE,
    },
    memory::physical::error,
};

/// Keys of the `extra` array.
const LAUNCH_PARAM_END: u64 = 0;
const LAUNCH_PARAM_BUFFER_POINTER: u64 = 1;
const LAUNCH_PARAM_BUFFER_SIZE: u64 = 2;
/// The array has two pairs and an end; more is a mistake.
const MAX_EXTRA_WORDS: usize = 16;

fn check(shape: &Shape) -> CuResult {
    let threads = shape.block.iter().try_fold(1_u32, |product, size| product.checked_mul(*size)).unwrap_or(u32::MAX);
    let threads = c_int::try_from(threads).unwrap_or(c_int::MAX);
    let shared = c_int::try_from(shape.shared_bytes).unwrap_or(c_int::MAX);
    let grid_is_valid = !shape.grid.contains(&0) && shape.grid[1..].iter().all(|size| *size <= 65_535);
    if !grid_is_valid || !(1..=MAX_THREADS_PER_BLOCK).contains(&threads) || shared > SHARED_BYTES_PER_BLOCK_OPTIN {
        return Err(error(CUresult::INVALID_VALUE));
    }
    Ok(())
}

/// Copies the arguments out of the program's memory: they count as they are at the launch.
fn arguments(builtin: &'static Builtin, pointers: Out<*mut c_void>, extra: Out<*mut c_void>) -> CuResult<Arguments> {
    let invalid = || error(CUresult::INVALID_VALUE);
    let buffer = if !pointers.is_null() {
        let mut buffer = vec![0; builtin.buffer_bytes()];
        for (index, size) in builtin.parameters.iter().enumerate() {
            let from = In::<u8>::at(pointers.cast::<u64>().read_at(index)?).read_all(*size)?;
            let offset = builtin.offset(index).ok_or_else(invalid)?;
            buffer[offset..offset + size].copy_from_slice(&from);
        }
        buffer
    } else if !extra.is_null() {
        let (mut at, mut bytes) = (0, 0);
        let words = extra.cast::<u64>();
        for index in (0..MAX_EXTRA_WORDS).step_by(2) {
            match words.read_at(index)? {
                LAUNCH_PARAM_END => break,
                LAUNCH_PARAM_BUFFER_POINTER => at = words.read_at(index + 1)?,
                LAUNCH_PARAM_BUFFER_SIZE => bytes = In::<usize>::at(words.read_at(index + 1)?).read()?,
                _ => return Err(invalid()),
            }
        }
        In::<u8>::at(at).read_all(bytes.min(builtin.buffer_bytes()))?
    } else {
        Vec::new()
    };
    Arguments::new(builtin, buffer).ok_or_else(invalid)
}

/// A kernel with its arguments as they are now. It runs in `context`, or where the program launches it.
pub(super) fn kernel(
    call: &Call,
    (function, is_library_kernel): (u64, bool),
    context: u64,
    shape: Shape,
    (pointers, extra): (Out<*mut c_void>, Out<*mut c_void>),
) -> CuResult<Kernel> {
    let named = call.simulator.function(function)?;
    check(&shape)?;
    let arguments = arguments(named.builtin, pointers, extra)?;
    let variable = call.simulator.global_of(&named, &*call.context(context)?, VARIABLE)?;
    let arguments = arguments.with_variable(variable);
    Ok(Kernel::new((function, is_library_kernel), context, shape, named.builtin, arguments))
}

/// Counts launched kernels; the last one may lose the GPU.
pub(super) fn count(call: &Call, target: &Target, kernels: usize) -> CuResult {
    let machine = &call.simulator.machine;
    for _ in 0..kernels {
        machine.count_launch();
    }
    if machine.is_lost() {
        target.context.engine.status.fail(CUresult::CUDA_ERROR_LAUNCH_FAILED);
        return Err(error(CUresult::CUDA_ERROR_LAUNCH_FAILED));
    }
    Ok(())
}

fn launch(
    call: &Call,
    function: u64,
    shape: Shape,
    stream: u64,
    arguments: (Out<*mut c_void>, Out<*mut c_void>),
) -> CuResult {
    let target = call.stream(stream)?;
    let kernel = kernel(call, (function, false), target.context.handle(), shape, arguments)?;
    if !target.is_captured() {
        count(call, &target, 1)?;
    }
    target.enqueue(Step::Kernel(kernel))
}

fn active_blocks(block_size: c_int, shared_bytes: usize) -> CuResult<c_int> {
    if block_size <= 0 {
        return Err(error(CUresult::INVALID_VALUE));
    }
    if block_size > MAX_THREADS_PER_BLOCK {
        return Ok(0);
    }
    let shared = c_int::try_from(shared_bytes).unwrap_or(c_int::MAX);
    let by_shared = SHARED_BYTES_PER_BLOCK_OPTIN.checked_div(shared).unwrap_or(32);
    Ok((MAX_THREADS_PER_MULTIPROCESSOR / block_size).min(32).min(by_shared))
}

fn potential(
    call: &Call,
    function: u64,
    (grid, block): (Out<c_int>, Out<c_int>),
    (by_size, shared_bytes): (CUoccupancyB2DSize, usize),
    limit: c_int,
) -> CuResult {
    call.simulator.function(function)?;
    let best = if limit > 0 { limit.min(MAX_THREADS_PER_BLOCK) } else { MAX_THREADS_PER_BLOCK };
    let blocks = active_blocks(best, shared_bytes_for(by_size, best, shared_bytes))?;
    grid.write(blocks.max(1) * MULTIPROCESSORS)?;
    block.write(best)
}

entries! {
    fn cuLaunchKernel / cuLaunchKernel_ptsz(
        function: CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared_bytes: c_uint, stream: CUstream, pointers: *mut *mut c_void, extra: *mut *mut c_void,
    ) |call| {
        let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared_bytes };
        launch(call, function.address(), shape, stream.address(), (pointers, extra))
    }

    fn cuLaunchCooperativeKernel / cuLaunchCooperativeKernel_ptsz(
        function: CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared_bytes: c_uint, stream: CUstream, pointers: *mut *mut c_void,
    ) |call| {
        let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared_bytes };
        let none = pointers.required()?;
        launch(call, function.address(), shape, stream.address(), (none, none))
    }

    fn cuLaunchKernelEx / cuLaunchKernelEx_ptsz(
        config: *const CUlaunchConfig, function: CUfunction, pointers: *mut *mut c_void, extra: *mut *mut c_void,
    ) |call| {
        let config = config.read()?;
        let shape = Shape {
            grid: [config.gridDimX, config.gridDimY, config.gridDimZ],
            block: [config.blockDimX, config.blockDimY, config.blockDimZ],
            shared_bytes: config.sharedMemBytes,
        };
        let stream = config.hStream.expose_provenance() as u64;
        launch(call, function.address(), shape, stream, (pointers, extra))
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int, function: CUfunction, block_size: c_int, shared_bytes: usize,
    ) |call| {
        call.simulator.function(function.address())?;
        blocks.write(active_blocks(block_size, shared_bytes)?)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: *mut c_int, function: CUfunction, block_size: c_int, shared_bytes: usize, flags: c_uint,
    ) |call| {
        let _ = flags;
        call.simulator.function(function.address())?;
        blocks.write(active_blocks(block_size, shared_bytes)?)
    }

    fn cuOccupancyMaxPotentialBlockSize(
        grid: *mut c_int, block: *mut c_int, function: CUfunction, by_size: CUoccupancyB2DSize, shared_bytes: usize,
        limit: c_int,
    ) |call| {
        potential(call, function.address(), (grid, block), (by_size, shared_bytes), limit)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: *mut c_int, block: *mut c_int, function: CUfunction, by_size: CUoccupancyB2DSize, shared_bytes: usize,
        limit: c_int, flags: c_uint,
    ) |call| {
        let _ = flags;
        potential(call, function.address(), (grid, block), (by_size, shared_bytes), limit)
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(
        bytes: *mut usize, function: CUfunction, blocks: c_int, block_size: c_int,
    ) |call| {
        call.simulator.function(function.address())?;
        if blocks <= 0 || block_size <= 0 {
            return Err(error(CUresult::INVALID_VALUE));
        }
        bytes.write(usize::try_from(SHARED_BYTES_PER_BLOCK_OPTIN / blocks).unwrap_or(0))
    }
}
