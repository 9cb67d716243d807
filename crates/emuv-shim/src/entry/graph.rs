//! Graphs' own memory: the driver's; what it holds is charged against the VRAM budget.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use emuv_cuda::types::*;

use crate::{account::Kind, calls, device::Device, entry::entries, session::Session};

entries! {
    /// From now on the device's graphs hold memory.
    fn cuGraphAddMemAllocNode(
        phGraphNode: *mut CUgraphNode,
        hGraph: CUgraph,
        dependencies: *const CUgraphNode,
        numDependencies: usize,
        nodeParams: *mut CUDA_MEM_ALLOC_NODE_PARAMS,
    ) |session, _driver| {
        watch(session, session.device(calls::current_device(session.real).ok()?)?);
        None
    }
}

/// Charges what the device's graphs hold, now and whenever the accounts are read again.
pub(crate) fn watch(session: &Session, device: &Device) {
    let bytes = calls::graph_memory(session.real, device.ordinal).unwrap_or(0);
    device.accounts.settle(device, Kind::Graph, 0, bytes);
}
