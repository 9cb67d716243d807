//! Graphs as a whole: their form, and launching them.

use std::ffi::{c_char, c_uint, c_ulonglong};

use emuv_cuda::{
    CUresult, CuResult,
    types::{
        CU_GRAPH_EXEC_UPDATE_SUCCESS, CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH,
        CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD, CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY,
        CUDA_GRAPH_INSTANTIATE_PARAMS, CUDA_GRAPH_INSTANTIATE_SUCCESS, CUgraph, CUgraphExec, CUgraphExecUpdateResult,
        CUgraphExecUpdateResultInfo, CUgraphNode, CUgraphNodeType, CUstream, cuuint64_t,
    },
};

use super::{
    abi::{In, Out, entries, pointer},
    call::Call,
    launch,
};
use crate::{
    graph::{
        executable::{Executable, Mismatch},
        step::Step,
    },
    memory::physical::error,
};

const KNOWN_FLAGS: c_uint = CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH
    | CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD
    | CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;

/// An array of handles.
pub(super) fn handles(list: In<CUgraphNode>, count: usize) -> CuResult<Vec<u64>> {
    if count == 0 { Ok(Vec::new()) } else { list.cast::<u64>().read_all(count) }
}

/// Writes as many handles as there is room for, and how many there are; null for the room that is left.
fn list(out: Out<CUgraphNode>, count: Out<usize>, handles: &[u64]) -> CuResult {
    if !out.is_null() {
        let room = count.read()?;
        for (index, handle) in handles.iter().copied().chain(std::iter::repeat(0)).enumerate().take(room) {
            out.write_at(index, pointer(handle))?;
        }
        return count.write(room.min(handles.len()));
    }
    count.write(handles.len())
}

fn instantiate(call: &Call, out: Out<CUgraphExec>, graph: u64, flags: u64) -> CuResult {
    out.required()?;
    if flags & !u64::from(KNOWN_FLAGS) != 0 {
        return Err(error(CUresult::INVALID_VALUE));
    }
    let graphs = &call.simulator.graphs;
    let executable = Executable::new(&*graphs.graph(graph)?, flags)?;
    out.write(pointer(graphs.executables.insert(executable)))
}

fn update(call: &Call, executable: u64, graph: u64) -> CuResult<Result<(), Mismatch>> {
    let graphs = &call.simulator.graphs;
    graphs.executable(executable)?.update(&*graphs.graph(graph)?)
}

fn connect(call: &Call, graph: u64, from: In<CUgraphNode>, to: In<CUgraphNode>, count: usize) -> CuResult {
    let graph = call.simulator.graphs.graph(graph)?;
    for (from, to) in handles(from, count)?.into_iter().zip(handles(to, count)?) {
        call.simulator.graphs.connect(&graph, from, to)?;
    }
    Ok(())
}

entries! {
    fn cuGraphCreate(out: *mut CUgraph, flags: c_uint) |call| {
        out.required()?;
        if flags != 0 {
            return Err(error(CUresult::INVALID_VALUE));
        }
        out.write(pointer(call.simulator.graphs.create().handle))
    }

    fn cuGraphDestroy(graph: CUgraph) |call| { call.simulator.graphs.destroy(graph.address()) }

    fn cuGraphClone(out: *mut CUgraph, original: CUgraph) |call| {
        out.required()?;
        let graphs = &call.simulator.graphs;
        out.write(pointer(graphs.copy(&*graphs.graph(original.address())?)?.handle))
    }

    fn cuGraphNodeFindInClone(out: *mut CUgraphNode, original: CUgraphNode, clone: CUgraph) |call| {
        out.required()?;
        let nodes = call.simulator.graphs.graph(clone.address())?.nodes();
        let found = nodes.iter().find(|node| node.original == Some(original.address()));
        out.write(pointer(found.ok_or(error(CUresult::INVALID_VALUE))?.handle))
    }

    fn cuGraphGetNodes(graph: CUgraph, out: *mut CUgraphNode, count: *mut usize) |call| {
        let nodes = call.simulator.graphs.graph(graph.address())?.nodes();
        list(out, count, &nodes.iter().map(|node| node.handle).collect::<Vec<_>>())
    }

    fn cuGraphGetRootNodes(graph: CUgraph, out: *mut CUgraphNode, count: *mut usize) |call| {
        let nodes = call.simulator.graphs.graph(graph.address())?.nodes();
        let roots = nodes.iter().filter(|node| node.dependencies().is_empty());
        list(out, count, &roots.map(|node| node.handle).collect::<Vec<_>>())
    }

    fn cuGraphGetEdges(graph: CUgraph, from: *mut CUgraphNode, to: *mut CUgraphNode, count: *mut usize) |call| {
        if from.is_null() != to.is_null() {
            return Err(error(CUresult::INVALID_VALUE));
        }
        let nodes = call.simulator.graphs.graph(graph.address())?.nodes();
        let mut edges = Vec::new();
        for node in &nodes {
            edges.extend(node.dependencies().into_iter().map(|before| (before, node.handle)));
        }
        // Both lists have the room that the caller said.
        if !from.is_null() {
            let room = count.read()?;
            list(to, count, &edges.iter().map(|edge| edge.1).collect::<Vec<_>>())?;
            count.write(room)?;
        }
        list(from, count, &edges.iter().map(|edge| edge.0).collect::<Vec<_>>())
    }

    fn cuGraphAddDependencies(graph: CUgraph, from: *const CUgraphNode, to: *const CUgraphNode, count: usize) |call| {
        connect(call, graph.address(), from, to, count)
    }

    fn cuGraphNodeGetType(node: CUgraphNode, out: *mut CUgraphNodeType) |call| {
        out.write(call.simulator.graphs.node(node.address())?.step().kind())
    }

    fn cuGraphNodeGetDependencies(node: CUgraphNode, out: *mut CUgraphNode, count: *mut usize) |call| {
        list(out, count, &call.simulator.graphs.node(node.address())?.dependencies())
    }

    fn cuGraphNodeGetDependentNodes(node: CUgraphNode, out: *mut CUgraphNode, count: *mut usize) |call| {
        let node = call.simulator.graphs.node(node.address())?;
        let nodes = call.simulator.graphs.graph(node.graph)?.nodes();
        let followers = nodes.iter().filter(|other| other.dependencies().contains(&node.handle));
        list(out, count, &followers.map(|node| node.handle).collect::<Vec<_>>())
    }

    fn cuGraphDestroyNode(node: CUgraphNode) |call| { call.simulator.graphs.destroy_node(node.address()) }

    fn cuGraphInstantiate / cuGraphInstantiate_v2(
        out: *mut CUgraphExec, graph: CUgraph, error_node: *mut CUgraphNode, log: *mut c_char, log_bytes: usize,
    ) |call| {
        let _ = (error_node, log, log_bytes);
        instantiate(call, out, graph.address(), 0)
    }

    fn cuGraphInstantiateWithFlags(out: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong) |call| {
        instantiate(call, out, graph.address(), flags)
    }

    fn cuGraphInstantiateWithParams / cuGraphInstantiateWithParams_ptsz(
        out: *mut CUgraphExec, graph: CUgraph, params: *mut CUDA_GRAPH_INSTANTIATE_PARAMS,
    ) |call| {
        let mut answer = params.read()?;
        instantiate(call, out, graph.address(), answer.flags)?;
        answer.hErrNode_out = pointer(0);
        answer.result_out = CUDA_GRAPH_INSTANTIATE_SUCCESS;
        params.write(answer)
    }

    fn cuGraphExecGetFlags(executable: CUgraphExec, out: *mut cuuint64_t) |call| {
        out.write(call.simulator.graphs.executable(executable.address())?.flags)
    }

    fn cuGraphExecUpdate(
        executable: CUgraphExec, graph: CUgraph, node: *mut CUgraphNode, result: *mut CUgraphExecUpdateResult,
    ) |call| {
        let _ = (node.required()?, result.required()?);
        let (code, culprit) = update(call, executable.address(), graph.address())?.err().unwrap_or_default();
        node.write(pointer(culprit))?;
        result.write(code)?;
        if code == CU_GRAPH_EXEC_UPDATE_SUCCESS { Ok(()) } else { Err(error(CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE)) }
    }

    fn cuGraphExecUpdate_v2(executable: CUgraphExec, graph: CUgraph, info: *mut CUgraphExecUpdateResultInfo) |call| {
        info.required()?;
        let (result, culprit) = update(call, executable.address(), graph.address())?.err().unwrap_or_default();
        info.write(CUgraphExecUpdateResultInfo { result, errorNode: pointer(culprit), errorFromNode: pointer(0) })?;
        if result == CU_GRAPH_EXEC_UPDATE_SUCCESS { Ok(()) } else { Err(error(CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE)) }
    }

    fn cuGraphUpload / cuGraphUpload_ptsz(executable: CUgraphExec, stream: CUstream) |call| {
        call.simulator.graphs.executable(executable.address())?;
        call.stream(stream.address()).map(|_| ())
    }

    fn cuGraphLaunch / cuGraphLaunch_ptsz(executable: CUgraphExec, stream: CUstream) |call| {
        let executable = call.simulator.graphs.executable(executable.address())?;
        let target = call.stream(stream.address())?;
        let steps = executable.steps();
        if target.is_captured() {
            return target.enqueue(Step::Steps(steps));
        }
        launch::count(call, &target, steps.iter().map(|step| step.kernels()).sum())?;
        executable.launch(|op| target.submit(op))
    }

    fn cuGraphExecDestroy(executable: CUgraphExec) |call| {
        // What was launched runs to its end.
        let removed = call.simulator.graphs.executables.remove(executable.address());
        removed.map(|_| ()).ok_or(error(CUresult::INVALID_VALUE))
    }

    fn cuGraphNodeSetEnabled(executable: CUgraphExec, node: CUgraphNode, is_enabled: c_uint) |call| {
        call.simulator.graphs.executable(executable.address())?.enable(node.address(), is_enabled != 0)
    }

    fn cuGraphNodeGetEnabled(executable: CUgraphExec, node: CUgraphNode, out: *mut c_uint) |call| {
        let executable = call.simulator.graphs.executable(executable.address())?;
        out.write(c_uint::from(executable.is_enabled(node.address())?))
    }
}
