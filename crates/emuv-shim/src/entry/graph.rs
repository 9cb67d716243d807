//! Graphs: looked through when they are made executable or changed then, because their launch shows no arguments.
//! Memory of their own is the driver's; what it holds is charged against the VRAM budget.
//!
//! # Safety
//! As in `entry/mod.rs`: the program calls under the driver function's own contract.
#![allow(unsafe_code)]

use core::ffi::{c_char, c_ulonglong};

use emuv_cuda::{CUresult, types::*};

use crate::{
    account::Kind,
    calls,
    device::Device,
    entry::entries,
    graphs::{Reach, describe_copies_again, read},
    moves,
    session::Session,
};

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

    /// The first form of the call.
    fn cuGraphInstantiate(
        phGraphExec: *mut CUgraphExec, hGraph: CUgraph, phErrorNode: *mut CUgraphNode, logBuffer: *mut c_char,
        bufferSize: usize,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuGraphInstantiate(phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize) };
        // SAFETY: as above.
        Some(unsafe { instantiate(session, phGraphExec, hGraph, 0, call) })
    }

    /// Looked through.
    fn cuGraphInstantiate_v2(
        phGraphExec: *mut CUgraphExec, hGraph: CUgraph, phErrorNode: *mut CUgraphNode, logBuffer: *mut c_char,
        bufferSize: usize,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuGraphInstantiate_v2(phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize) };
        // SAFETY: as above.
        Some(unsafe { instantiate(session, phGraphExec, hGraph, 0, call) })
    }

    /// Looked through.
    fn cuGraphInstantiateWithFlags(phGraphExec: *mut CUgraphExec, hGraph: CUgraph, flags: c_ulonglong)
    |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuGraphInstantiateWithFlags(phGraphExec, hGraph, flags) };
        // SAFETY: as above.
        Some(unsafe { instantiate(session, phGraphExec, hGraph, flags, call) })
    }

    /// Looked through.
    fn cuGraphInstantiateWithParams(
        phGraphExec: *mut CUgraphExec, hGraph: CUgraph, instantiateParams: *mut CUDA_GRAPH_INSTANTIATE_PARAMS,
    ) |session, driver| {
        // SAFETY: null or valid by the driver's contract.
        let flags = unsafe { instantiateParams.as_ref() }.map_or(0, |parameters| parameters.flags);
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuGraphInstantiateWithParams(phGraphExec, hGraph, instantiateParams) };
        // SAFETY: as above.
        Some(unsafe { instantiate(session, phGraphExec, hGraph, flags, call) })
    }

    /// Looked through.
    fn cuGraphInstantiateWithParams_ptsz(
        phGraphExec: *mut CUgraphExec, hGraph: CUgraph, instantiateParams: *mut CUDA_GRAPH_INSTANTIATE_PARAMS,
    ) |session, driver| {
        // SAFETY: null or valid by the driver's contract.
        let flags = unsafe { instantiateParams.as_ref() }.map_or(0, |parameters| parameters.flags);
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuGraphInstantiateWithParams_ptsz(phGraphExec, hGraph, instantiateParams) };
        // SAFETY: as above.
        Some(unsafe { instantiate(session, phGraphExec, hGraph, flags, call) })
    }

    /// The first form of the call.
    fn cuGraphExecUpdate(
        hGraphExec: CUgraphExec, hGraph: CUgraph, hErrorNode_out: *mut CUgraphNode,
        updateResult_out: *mut CUgraphExecUpdateResult,
    ) |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuGraphExecUpdate(hGraphExec, hGraph, hErrorNode_out, updateResult_out) };
        Some(updated(session, hGraphExec, hGraph, call))
    }

    /// Looked through again.
    fn cuGraphExecUpdate_v2(hGraphExec: CUgraphExec, hGraph: CUgraph, resultInfo: *mut CUgraphExecUpdateResultInfo)
    |session, driver| {
        // SAFETY: the program's own arguments.
        let call = || unsafe { driver.cuGraphExecUpdate_v2(hGraphExec, hGraph, resultInfo) };
        Some(updated(session, hGraphExec, hGraph, call))
    }

    /// Forgotten.
    fn cuGraphExecDestroy(hGraphExec: CUgraphExec) |session, _driver| {
        session.graphs.forget(hGraphExec);
        None
    }
}

/// Entries that change a node of an executable graph: the arguments, the graph and what the node touches then.
macro_rules! node_changes {
    ($(fn $name:ident($exec:ident; $($arg:ident: $ty:ty),*) reaches |$session:ident| $reach:expr;)*) => {
        entries! {
            $(
                /// What the node touches now is added; what it touched may be what another one touches.
                fn $name($exec: CUgraphExec, $($arg: $ty),*) |session, driver| {
                    // Before the call: the graph may be launched right after it.
                    let $session = session;
                    // SAFETY: null or valid by the driver's contract.
                    #[allow(unused_unsafe)]
                    let reach = unsafe { $reach };
                    session.graphs.widen($exec, reach);
                    // SAFETY: the program's own arguments.
                    Some(moves::in_vram(session, &session.graphs.copied($exec), || unsafe { driver.$name($exec, $($arg),*) }))
                }
            )*
        }
    };
}

node_changes! {
    fn cuGraphExecKernelNodeSetParams(hGraphExec; hNode: CUgraphNode, nodeParams: *const CUDA_KERNEL_NODE_PARAMS_v1) reaches |session| of_kernel_v1(session, nodeParams);
    fn cuGraphExecKernelNodeSetParams_v2(hGraphExec; hNode: CUgraphNode, nodeParams: *const CUDA_KERNEL_NODE_PARAMS_v2) reaches |session| of_kernel(session, nodeParams);
    fn cuGraphExecMemcpyNodeSetParams(hGraphExec; hNode: CUgraphNode, copyParams: *const CUDA_MEMCPY3D, ctx: CUcontext) reaches |session| of_copy(session, copyParams);
    fn cuGraphExecMemsetNodeSetParams(hGraphExec; hNode: CUgraphNode, memsetParams: *const CUDA_MEMSET_NODE_PARAMS, ctx: CUcontext) reaches |session| of_set(session, memsetParams);
    fn cuGraphExecBatchMemOpNodeSetParams(hGraphExec; hNode: CUgraphNode, nodeParams: *const CUDA_BATCH_MEM_OP_NODE_PARAMS) reaches |session| of_operations(session, nodeParams);
    fn cuGraphExecChildGraphNodeSetParams(hGraphExec; hNode: CUgraphNode, childGraph: CUgraph) reaches |session| read(session, childGraph);
    fn cuGraphExecNodeSetParams(hGraphExec; hNode: CUgraphNode, nodeParams: *mut CUgraphNodeParams) reaches |session| of_node(session, nodeParams);
}

/// Entries that describe a node, at whose addresses the driver looks already then.
macro_rules! node_descriptions {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) looks_at |$session:ident| $reach:expr;)*) => {
        entries! {
            $(
                /// What the node copies or sets lies still meanwhile.
                fn $name($($arg: $ty),*) |session, driver| {
                    if !moves::active(session) {
                        return None;
                    }
                    let $session = session;
                    // SAFETY: null or valid by the driver's contract.
                    let reach = unsafe { $reach };
                    // SAFETY: the program's own arguments.
                    Some(moves::at_hand(session, &reach.copied(), || unsafe { driver.$name($($arg),*) }))
                }
            )*
        }
    };
}

node_descriptions! {
    fn cuGraphAddMemcpyNode(phGraphNode: *mut CUgraphNode, hGraph: CUgraph, dependencies: *const CUgraphNode, numDependencies: usize, copyParams: *const CUDA_MEMCPY3D, ctx: CUcontext) looks_at |session| of_copy(session, copyParams);
    fn cuGraphAddMemsetNode(phGraphNode: *mut CUgraphNode, hGraph: CUgraph, dependencies: *const CUgraphNode, numDependencies: usize, memsetParams: *const CUDA_MEMSET_NODE_PARAMS, ctx: CUcontext) looks_at |session| of_set(session, memsetParams);
    fn cuGraphAddNode(phGraphNode: *mut CUgraphNode, hGraph: CUgraph, dependencies: *const CUgraphNode, numDependencies: usize, nodeParams: *mut CUgraphNodeParams) looks_at |session| of_node(session, nodeParams);
    fn cuGraphAddNode_v2(phGraphNode: *mut CUgraphNode, hGraph: CUgraph, dependencies: *const CUgraphNode, dependencyData: *const CUgraphEdgeData, numDependencies: usize, nodeParams: *mut CUgraphNodeParams) looks_at |session| of_node(session, nodeParams);
    fn cuGraphMemcpyNodeSetParams(hNode: CUgraphNode, nodeParams: *const CUDA_MEMCPY3D) looks_at |session| of_copy(session, nodeParams);
    fn cuGraphMemsetNodeSetParams(hNode: CUgraphNode, nodeParams: *const CUDA_MEMSET_NODE_PARAMS) looks_at |session| of_set(session, nodeParams);
    fn cuGraphNodeSetParams(hNode: CUgraphNode, nodeParams: *mut CUgraphNodeParams) looks_at |session| of_node(session, nodeParams);
}

/// Reads the description of a node if there is one; the driver refuses a call without.
macro_rules! if_given {
    ($($name:ident($session:ident, $node:ident: $ty:ty) $read:block)*) => {
        $(
            /// # Safety
            /// Null or a valid description.
            unsafe fn $name($session: &Session, node: *const $ty) -> Reach {
                // SAFETY: the caller's word.
                let Some($node) = (unsafe { node.as_ref() }) else { return Reach::default() };
                // SAFETY: as above.
                #[allow(unused_unsafe)]
                unsafe { $read }
            }
        )*
    };
}

if_given! {
    of_kernel_v1(session, node: CUDA_KERNEL_NODE_PARAMS_v1) {
        Reach::of_kernel(session, node.func, node.kernelParams, node.extra)
    }
    of_kernel(session, node: CUDA_KERNEL_NODE_PARAMS_v2) {
        let function = if node.func.is_null() { node.kern.cast() } else { node.func };
        Reach::of_kernel(session, function, node.kernelParams, node.extra)
    }
    of_copy(session, node: CUDA_MEMCPY3D) { Reach::of_copy(session, node) }
    of_set(_session, node: CUDA_MEMSET_NODE_PARAMS) { Reach::of_address(node.dst) }
    of_operations(_session, node: CUDA_BATCH_MEM_OP_NODE_PARAMS) { Reach::of_operations(node.paramArray, node.count) }
    of_node(session, node: CUgraphNodeParams) {
        let any = &node.__bindgen_anon_1;
        match node.type_ {
            CU_GRAPH_NODE_TYPE_KERNEL => {
                let kernel = any.kernel;
                let function = if kernel.func.is_null() { kernel.kern.cast() } else { kernel.func };
                Reach::of_kernel(session, function, kernel.kernelParams, kernel.extra)
            }
            CU_GRAPH_NODE_TYPE_MEMCPY => Reach::of_copy(session, &any.memcpy.copyParams),
            CU_GRAPH_NODE_TYPE_MEMSET => Reach::of_address(any.memset.dst),
            CU_GRAPH_NODE_TYPE_BATCH_MEM_OP => Reach::of_operations(any.memOp.paramArray, any.memOp.count),
            CU_GRAPH_NODE_TYPE_GRAPH => read(session, any.graph.graph),
            kind => Reach::of_other(kind),
        }
    }
}

/// Makes a graph executable and remembers what it touches.
///
/// # Safety
/// `exec` is valid if the call succeeds.
unsafe fn instantiate(
    session: &Session,
    exec: *const CUgraphExec,
    graph: CUgraph,
    flags: c_ulonglong,
    call: impl FnOnce() -> CUresult,
) -> CUresult {
    let reach = read(session, graph);
    let result = with_copies_in_vram(session, graph, &reach, call);
    if result == CUresult::SUCCESS {
        let by_kernels = flags & c_ulonglong::from(CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH) != 0;
        // SAFETY: the caller's word.
        session.graphs.add(unsafe { *exec }, reach, by_kernels);
    }
    result
}

/// After a success the executable graph touches what the graph does and nothing else; a failure may have changed a
/// part of it.
fn updated(session: &Session, exec: CUgraphExec, graph: CUgraph, call: impl FnOnce() -> CUresult) -> CUresult {
    let reach = read(session, graph);
    let result = with_copies_in_vram(session, graph, &reach, call);
    if result == CUresult::SUCCESS {
        session.graphs.replace(exec, reach);
    } else {
        session.graphs.widen(exec, reach);
    }
    result
}

/// Makes a call that takes a graph over, or takes it for another one. The driver remembers of each copy whether it is VRAM or
/// RAM that it copies, as it was when the copy was described, and takes none of the other kind in its place. So all
/// copies are described as copies of VRAM.
fn with_copies_in_vram(session: &Session, graph: CUgraph, reach: &Reach, call: impl FnOnce() -> CUresult) -> CUresult {
    let copied = reach.copied();
    if copied.iter().all(|address| session.device_at(*address).is_none()) {
        return call();
    }
    moves::in_vram(session, &copied, || {});
    for address in &copied {
        // What does not come by itself (nothing else moves, or too much does) comes to stay. Without room for it the call may
        // be refused.
        if !moves::is_in_vram(session, *address) {
            let _ = moves::pinned(session, *address);
        }
    }
    moves::in_vram(session, &copied, || {
        describe_copies_again(session, graph);
        call()
    })
}

/// Charges what the device's graphs hold, now and whenever the accounts are read again.
pub(crate) fn watch(session: &Session, device: &Device) {
    let bytes = calls::graph_memory(session.real, device.ordinal).unwrap_or(0);
    device.accounts.settle(session, device, Kind::Graph, 0, bytes);
}
