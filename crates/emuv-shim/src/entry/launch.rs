//! Launches: counted, and passed on once what they touch is in place.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::{c_uint, c_void};

use emuv_cuda::{CUresult, types::*};

use crate::{entry::entries, functions::Shape, moves, session::Session, touch::Touch};

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
                    let Some(c) = (unsafe { config.as_ref() }) else { return None };
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
        Some(moves::launch(session, hStream, false, || session.graphs.touch(hGraphExec), call))
    }

    /// Tracked as a whole.
    fn cuGraphLaunch_ptsz(hGraphExec: CUgraphExec, hStream: CUstream) |session, driver| {
        session.count_launch();
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuGraphLaunch_ptsz(hGraphExec, hStream) };
        Some(moves::launch(session, hStream, true, || session.graphs.touch(hGraphExec), call))
    }

    /// What it launches on several devices is not looked at.
    fn cuLaunchCooperativeKernelMultiDevice(
        launchParamsList: *mut CUDA_LAUNCH_PARAMS, numDevices: c_uint, flags: c_uint,
    ) |session, driver| {
        session.count_launch();
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuLaunchCooperativeKernelMultiDevice(launchParamsList, numDevices, flags) };
        Some(moves::launch(session, std::ptr::null_mut(), false, Touch::everything, call))
    }
}

/// A stream as a call names it.
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
    // SAFETY: the caller's word.
    let touch = || unsafe { session.functions.touch(session, shape, kernel_params, extra) };
    moves::launch(session, stream.handle, stream.per_thread, touch, call)
}
