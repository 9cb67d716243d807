//! Capturing streams into graphs.

use std::{ffi::c_uint, sync::Arc};

use emuv_cuda::{
    CUresult, CuResult,
    types::{
        CU_STREAM_ADD_CAPTURE_DEPENDENCIES, CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_RELAXED,
        CU_STREAM_CAPTURE_STATUS_ACTIVE, CU_STREAM_CAPTURE_STATUS_INVALIDATED, CU_STREAM_CAPTURE_STATUS_NONE,
        CU_STREAM_SET_CAPTURE_DEPENDENCIES, CUgraph, CUgraphEdgeData, CUgraphNode, CUstream, CUstreamCaptureMode,
        CUstreamCaptureStatus, cuuint64_t,
    },
};

use super::{
    abi::{In, Out, entries, pointer},
    call::Call,
    graph::handles,
};
use crate::{
    graph::{
        Graph,
        capture::{Info, exchange_thread_mode},
    },
    memory::physical::error,
};

fn begin(call: &Call, stream: u64, mode: CUstreamCaptureMode, given: Option<(Arc<Graph>, Vec<u64>)>) -> CuResult {
    let target = call.stream(stream)?;
    if target.stream.is_legacy() {
        return Err(error(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED));
    }
    let graphs = &call.simulator.graphs;
    if let Some((graph, tail)) = given {
        return graphs.captures.begin(target.member(), mode, (graph, true), tail);
    }
    let graph = graphs.create();
    let begun = graphs.captures.begin(target.member(), mode, (Arc::clone(&graph), false), Vec::new());
    if begun.is_err() {
        graphs.destroy(graph.handle)?;
    }
    begun
}

fn status(info: Option<&Info>) -> CUstreamCaptureStatus {
    match info {
        None => CU_STREAM_CAPTURE_STATUS_NONE,
        Some(info) if info.is_invalid => CU_STREAM_CAPTURE_STATUS_INVALIDATED,
        Some(_) => CU_STREAM_CAPTURE_STATUS_ACTIVE,
    }
}

/// The stream's capture. Its status is written; the rest of the answer counts only for an active one.
fn active(call: &Call, stream: u64, out: Out<CUstreamCaptureStatus>) -> CuResult<Option<Info>> {
    out.required()?;
    let target = call.stream(stream)?;
    let info = call.simulator.graphs.captures.info(target.stream.id);
    out.write(status(info.as_ref()))?;
    Ok(info.filter(|info| !info.is_invalid))
}

type Tail = (Out<CUgraph>, Out<*const CUgraphNode>, Out<usize>);

fn describe(call: &Call, stream: u64, out: Out<CUstreamCaptureStatus>, id: Out<cuuint64_t>, tail: Tail) -> CuResult {
    if let Some(info) = active(call, stream, out)? {
        id.offer(info.id);
        tail.0.offer(pointer(info.graph));
        tail.1.offer(pointer::<CUgraphNode>(info.tail).cast_const());
        tail.2.offer(info.count);
    }
    Ok(())
}

fn follow(call: &Call, stream: u64, nodes: Out<CUgraphNode>, count: usize, flags: c_uint) -> CuResult {
    let keep = match flags {
        CU_STREAM_ADD_CAPTURE_DEPENDENCIES => true,
        CU_STREAM_SET_CAPTURE_DEPENDENCIES => false,
        _ => return Err(error(CUresult::INVALID_VALUE)),
    };
    let target = call.stream(stream)?;
    let nodes = handles(In::at(nodes.address()), count)?;
    let graphs = &call.simulator.graphs;
    graphs.captures.follow(graphs, target.stream.id, &nodes, keep)
}

entries! {
    fn cuStreamBeginCapture / cuStreamBeginCapture_ptsz(stream: CUstream) |call| {
        begin(call, stream.address(), CU_STREAM_CAPTURE_MODE_GLOBAL, None)
    }

    fn cuStreamBeginCapture_v2 / cuStreamBeginCapture_v2_ptsz(stream: CUstream, mode: CUstreamCaptureMode) |call| {
        begin(call, stream.address(), mode, None)
    }

    fn cuStreamBeginCaptureToGraph / cuStreamBeginCaptureToGraph_ptsz(
        stream: CUstream, graph: CUgraph, dependencies: *const CUgraphNode, edges: *const CUgraphEdgeData,
        count: usize, mode: CUstreamCaptureMode,
    ) |call| {
        let _ = edges;
        let graph = call.simulator.graphs.graph(graph.address())?;
        let tail = handles(dependencies, count)?;
        call.simulator.graphs.check(&graph, &tail)?;
        begin(call, stream.address(), mode, Some((graph, tail)))
    }

    fn cuStreamEndCapture / cuStreamEndCapture_ptsz(stream: CUstream, out: *mut CUgraph) |call| {
        out.required()?;
        let target = call.stream(stream.address())?;
        let graphs = &call.simulator.graphs;
        let graph = graphs.captures.end(graphs, target.stream.id);
        out.write(pointer(graph.as_ref().map_or(0, |graph| graph.handle)))?;
        graph.map(|_| ())
    }

    fn cuStreamIsCapturing / cuStreamIsCapturing_ptsz(stream: CUstream, out: *mut CUstreamCaptureStatus) |call| {
        active(call, stream.address(), out).map(|_| ())
    }

    fn cuStreamGetCaptureInfo / cuStreamGetCaptureInfo_ptsz(
        stream: CUstream, out: *mut CUstreamCaptureStatus, id: *mut cuuint64_t,
    ) |call| {
        if let Some(info) = active(call, stream.address(), out)? {
            id.offer(info.id);
        }
        Ok(())
    }

    fn cuStreamGetCaptureInfo_v2 / cuStreamGetCaptureInfo_v2_ptsz(
        stream: CUstream, out: *mut CUstreamCaptureStatus, id: *mut cuuint64_t, graph: *mut CUgraph,
        nodes: *mut *const CUgraphNode, count: *mut usize,
    ) |call| {
        describe(call, stream.address(), out, id, (graph, nodes, count))
    }

    fn cuStreamGetCaptureInfo_v3 / cuStreamGetCaptureInfo_v3_ptsz(
        stream: CUstream, out: *mut CUstreamCaptureStatus, id: *mut cuuint64_t, graph: *mut CUgraph,
        nodes: *mut *const CUgraphNode, edges: *mut *const CUgraphEdgeData, count: *mut usize,
    ) |call| {
        edges.offer(std::ptr::null());
        describe(call, stream.address(), out, id, (graph, nodes, count))
    }

    fn cuStreamUpdateCaptureDependencies / cuStreamUpdateCaptureDependencies_ptsz(
        stream: CUstream, nodes: *mut CUgraphNode, count: usize, flags: c_uint,
    ) |call| {
        follow(call, stream.address(), nodes, count, flags)
    }

    fn cuStreamUpdateCaptureDependencies_v2 / cuStreamUpdateCaptureDependencies_v2_ptsz(
        stream: CUstream, nodes: *mut CUgraphNode, edges: *const CUgraphEdgeData, count: usize, flags: c_uint,
    ) |call| {
        let _ = edges;
        follow(call, stream.address(), nodes, count, flags)
    }

    fn cuThreadExchangeStreamCaptureMode(mode: *mut CUstreamCaptureMode) |_call| {
        let wanted = mode.read()?;
        if wanted > CU_STREAM_CAPTURE_MODE_RELAXED {
            return Err(error(CUresult::INVALID_VALUE));
        }
        mode.write(exchange_thread_mode(wanted))
    }
}
