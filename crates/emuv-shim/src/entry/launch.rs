//! Launches: counted, and passed on once what they touch is in place.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_uint, c_void};

use emuv_cuda::{CUresult, types::*};

use crate::{
    entry::entries,
    functions::Shape,
    moves::{self, verify::What},
    session::Session,
    touch::Touch,
};

/// The entries of one form of launch, plain and per-thread.
macro_rules! launches {
    ($($name:ident $per_thread:literal;)*) => {
        entries! {
            $(
                /// Tracked.
                fn $name(
                    f: CUfunction, gridDimX: c_uint, gridDimY: c_uint, gridDimZ: c_uint, blockDimX: c_uint,
                    blockDimY: c_uint, blockDimZ: c_uint, sharedMemBytes: c_uint, hStream: CUstream,
                    kernelParams: *mut *mut c_void, extra: *mut *mut c_void,
                ) |session, driver| {
                    let shape = Shape {
                        function: f,
                        dimensions: [gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes],
                    };
                    let stream = Stream { handle: hStream, per_thread: $per_thread };
                    // SAFETY: the program's own arguments.
                    Some(unsafe { launch(session, stream, &shape, kernelParams, extra, || driver.$name(
                        f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes, hStream,
                        kernelParams, extra,
                    )) })
                }
            )*
        }
    };
}

launches! {
    cuLaunchKernel false;
    cuLaunchKernel_ptsz true;
}

/// Cooperative launches have no argument buffer.
macro_rules! cooperative {
    ($($name:ident $per_thread:literal;)*) => {
        entries! {
            $(
                /// Tracked.
                fn $name(
                    f: CUfunction, gridDimX: c_uint, gridDimY: c_uint, gridDimZ: c_uint, blockDimX: c_uint,
                    blockDimY: c_uint, blockDimZ: c_uint, sharedMemBytes: c_uint, hStream: CUstream,
                    kernelParams: *mut *mut c_void,
                ) |session, driver| {
                    let shape = Shape {
                        function: f,
                        dimensions: [gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes],
                    };
                    let stream = Stream { handle: hStream, per_thread: $per_thread };
                    // SAFETY: the program's own arguments.
                    Some(unsafe { launch(session, stream, &shape, kernelParams, std::ptr::null_mut(), || driver.$name(
                        f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes, hStream,
                        kernelParams,
                    )) })
                }
            )*
        }
    };
}

cooperative! {
    cuLaunchCooperativeKernel false;
    cuLaunchCooperativeKernel_ptsz true;
}

macro_rules! extended {
    ($($name:ident $per_thread:literal;)*) => {
        entries! {
            $(
                /// Tracked.
                fn $name(
                    config: *const CUlaunchConfig, f: CUfunction, kernelParams: *mut *mut c_void,
                    extra: *mut *mut c_void,
                ) |session, driver| {
                    // SAFETY: null or valid by the driver's contract.
                    let c = unsafe { config.as_ref() }?;
                    let shape = Shape {
                        function: f,
                        dimensions: [
                            c.gridDimX, c.gridDimY, c.gridDimZ, c.blockDimX, c.blockDimY, c.blockDimZ, c.sharedMemBytes,
                        ],
                    };
                    let stream = Stream { handle: c.hStream, per_thread: $per_thread };
                    // SAFETY: the program's own arguments.
                    Some(unsafe { launch(session, stream, &shape, kernelParams, extra, || {
                        driver.$name(config, f, kernelParams, extra)
                    }) })
                }
            )*
        }
    };
}

extended! {
    cuLaunchKernelEx false;
    cuLaunchKernelEx_ptsz true;
}

entries! {
    /// Tracked as a whole.
    fn cuGraphLaunch(hGraphExec: CUgraphExec, hStream: CUstream) |session, driver| {
        session.count_launch();
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuGraphLaunch(hGraphExec, hStream) };
        Some(launch_graph(session, Stream { handle: hStream, per_thread: false }, hGraphExec, call))
    }

    /// Tracked as a whole.
    fn cuGraphLaunch_ptsz(hGraphExec: CUgraphExec, hStream: CUstream) |session, driver| {
        session.count_launch();
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuGraphLaunch_ptsz(hGraphExec, hStream) };
        Some(launch_graph(session, Stream { handle: hStream, per_thread: true }, hGraphExec, call))
    }

    /// One launch on each of several streams. Works are tracked by one stream each, so this one is waited for.
    fn cuLaunchCooperativeKernelMultiDevice(
        launchParamsList: *mut CUDA_LAUNCH_PARAMS, numDevices: c_uint, flags: c_uint,
    ) |session, driver| {
        session.count_launch();
        let call = || {
            // SAFETY: the program's own arguments.
            let result = unsafe { driver.cuLaunchCooperativeKernelMultiDevice(launchParamsList, numDevices, flags) };
            if result == CUresult::SUCCESS && moves::active(session) {
                for index in 0..numDevices as usize {
                    // SAFETY: the driver has just used them: as many as the call says.
                    let stream = unsafe { (*launchParamsList.add(index)).hStream };
                    // SAFETY: as above; what went wrong the program is told by its next call.
                    let _ = unsafe { driver.cuStreamSynchronize(stream) };
                }
            }
            result
        };
        Some(moves::launch(session, std::ptr::null_mut(), false, Touch::everything, call))
    }

    /// Its arguments have been set by calls of their own.
    fn cuLaunch(f: CUfunction) |session, driver| {
        session.count_launch();
        // SAFETY: the program's own arguments.
        Some(moves::launch(session, std::ptr::null_mut(), false, Touch::everything, || unsafe { driver.cuLaunch(f) }))
    }

    /// Its arguments have been set by calls of their own.
    fn cuLaunchGrid(f: CUfunction, grid_width: c_int, grid_height: c_int) |session, driver| {
        session.count_launch();
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuLaunchGrid(f, grid_width, grid_height) };
        Some(moves::launch(session, std::ptr::null_mut(), false, Touch::everything, call))
    }

    /// Its arguments have been set by calls of their own.
    fn cuLaunchGridAsync(f: CUfunction, grid_width: c_int, grid_height: c_int, hStream: CUstream) |session, driver| {
        session.count_launch();
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuLaunchGridAsync(f, grid_width, grid_height, hStream) };
        Some(moves::launch(session, hStream, false, Touch::everything, call))
    }
}

/// A stream as a call names it.
#[derive(Clone, Copy)]
struct Stream {
    handle: CUstream,
    per_thread: bool,
}

/// # Safety
/// The arguments are those of the launch.
unsafe fn launch(
    session: &Session,
    stream: Stream,
    shape: &Shape,
    kernel_params: *mut *mut c_void,
    extra: *mut *mut c_void,
    call: impl FnOnce() -> CUresult,
) -> CUresult {
    session.count_launch();
    let touch = || {
        // SAFETY: the caller's word.
        let mut touch = unsafe { session.functions.touch(session, shape, kernel_params, extra) };
        touch.only_here = true;
        touch
    };
    work(session, stream, What::Kernel(shape.function), touch, call)
}

fn launch_graph(session: &Session, stream: Stream, exec: CUgraphExec, call: impl FnOnce() -> CUresult) -> CUresult {
    work(session, stream, What::Graph, || session.graphs.touch(session, exec), call)
}

fn work(
    session: &Session,
    stream: Stream,
    what: What,
    touch: impl FnOnce() -> Touch,
    call: impl FnOnce() -> CUresult,
) -> CUresult {
    match &session.verify {
        Some(verify) => verify.around(session, (stream.handle, stream.per_thread), what, touch, call),
        None => moves::launch(session, stream.handle, stream.per_thread, touch, call),
    }
}
