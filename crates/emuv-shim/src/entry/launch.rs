//! Launches: counted, then the driver's.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::{c_uint, c_void};

use emuv_cuda::{CUresult, types::*};

use crate::{entry::entries, session::Session};

entries! {
    /// Counted.
    fn cuLaunchKernel(
        f: CUfunction, gridDimX: c_uint, gridDimY: c_uint, gridDimZ: c_uint, blockDimX: c_uint, blockDimY: c_uint,
        blockDimZ: c_uint, sharedMemBytes: c_uint, hStream: CUstream, kernelParams: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) |session, _driver| { count(session) }

    /// Counted.
    fn cuLaunchKernel_ptsz(
        f: CUfunction, gridDimX: c_uint, gridDimY: c_uint, gridDimZ: c_uint, blockDimX: c_uint, blockDimY: c_uint,
        blockDimZ: c_uint, sharedMemBytes: c_uint, hStream: CUstream, kernelParams: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) |session, _driver| { count(session) }

    /// Counted.
    fn cuLaunchKernelEx(
        config: *const CUlaunchConfig, f: CUfunction, kernelParams: *mut *mut c_void, extra: *mut *mut c_void,
    ) |session, _driver| { count(session) }

    /// Counted.
    fn cuLaunchKernelEx_ptsz(
        config: *const CUlaunchConfig, f: CUfunction, kernelParams: *mut *mut c_void, extra: *mut *mut c_void,
    ) |session, _driver| { count(session) }

    /// Counted.
    fn cuLaunchCooperativeKernel(
        f: CUfunction, gridDimX: c_uint, gridDimY: c_uint, gridDimZ: c_uint, blockDimX: c_uint, blockDimY: c_uint,
        blockDimZ: c_uint, sharedMemBytes: c_uint, hStream: CUstream, kernelParams: *mut *mut c_void,
    ) |session, _driver| { count(session) }

    /// Counted.
    fn cuLaunchCooperativeKernel_ptsz(
        f: CUfunction, gridDimX: c_uint, gridDimY: c_uint, gridDimZ: c_uint, blockDimX: c_uint, blockDimY: c_uint,
        blockDimZ: c_uint, sharedMemBytes: c_uint, hStream: CUstream, kernelParams: *mut *mut c_void,
    ) |session, _driver| { count(session) }

    /// Counted as one launch.
    fn cuGraphLaunch(hGraphExec: CUgraphExec, hStream: CUstream) |session, _driver| { count(session) }

    /// Counted as one launch.
    fn cuGraphLaunch_ptsz(hGraphExec: CUgraphExec, hStream: CUstream) |session, _driver| { count(session) }
}

/// Counts; the driver then answers.
fn count(session: &Session) -> Option<CUresult> {
    session.count_launch();
    None
}
