//! What single nodes of graphs do.

use std::ffi::{c_uint, c_void};

use emuv_cuda::{
    CUresult, CuResult,
    types::{
        CU_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_HOST, CUDA_HOST_NODE_PARAMS_v1, CUDA_KERNEL_NODE_PARAMS_v1,
        CUDA_KERNEL_NODE_PARAMS_v2, CUDA_MEMCPY3D_v2, CUDA_MEMSET_NODE_PARAMS_v1, CUcontext, CUgraph, CUgraphExec,
        CUgraphNode,
    },
};

use super::{
    abi::{HostCall, In, Out, entries, pointer, zeroed},
    call::Call,
    copy::{box3, described},
    graph::handles,
    launch, memset,
};
use crate::{
    graph::step::{Kernel, Shape, Step},
    memory::{
        length,
        physical::error,
        rows::{Box3, Fill, Plane},
        view::Side,
    },
};

fn invalid() -> emuv_cuda::CuError {
    error(CUresult::INVALID_VALUE)
}

fn add(
    call: &Call,
    out: Out<CUgraphNode>,
    graph: u64,
    (dependencies, count): (In<CUgraphNode>, usize),
    step: Step,
) -> CuResult {
    out.required()?;
    let graphs = &call.simulator.graphs;
    out.write(pointer(graphs.add(&*graphs.graph(graph)?, &handles(dependencies, count)?, step)?))
}

/// The second form has two fields more; without them a function stands for a kernel too.
fn second(params: &CUDA_KERNEL_NODE_PARAMS_v1) -> CUDA_KERNEL_NODE_PARAMS_v2 {
    CUDA_KERNEL_NODE_PARAMS_v2 {
        func: params.func,
        gridDimX: params.gridDimX,
        gridDimY: params.gridDimY,
        gridDimZ: params.gridDimZ,
        blockDimX: params.blockDimX,
        blockDimY: params.blockDimY,
        blockDimZ: params.blockDimZ,
        sharedMemBytes: params.sharedMemBytes,
        kernelParams: params.kernelParams,
        extra: params.extra,
        kern: pointer(0),
        ctx: pointer(0),
    }
}

fn first(params: &CUDA_KERNEL_NODE_PARAMS_v2) -> CUDA_KERNEL_NODE_PARAMS_v1 {
    CUDA_KERNEL_NODE_PARAMS_v1 {
        func: params.func,
        gridDimX: params.gridDimX,
        gridDimY: params.gridDimY,
        gridDimZ: params.gridDimZ,
        blockDimX: params.blockDimX,
        blockDimY: params.blockDimY,
        blockDimZ: params.blockDimZ,
        sharedMemBytes: params.sharedMemBytes,
        kernelParams: params.kernelParams,
        extra: params.extra,
    }
}

fn kernel(call: &Call, params: &CUDA_KERNEL_NODE_PARAMS_v2) -> CuResult<Step> {
    let (function, library_kernel) = (params.func.expose_provenance() as u64, params.kern.expose_provenance() as u64);
    let named = if function == 0 { (library_kernel, true) } else { (function, false) };
    let shape = Shape {
        grid: [params.gridDimX, params.gridDimY, params.gridDimZ],
        block: [params.blockDimX, params.blockDimY, params.blockDimZ],
        shared_bytes: params.sharedMemBytes,
    };
    let context = call.context(params.ctx.expose_provenance() as u64)?.handle();
    let pointers = Out::<*mut c_void>::at(params.kernelParams.expose_provenance() as u64);
    let extra = Out::<*mut c_void>::at(params.extra.expose_provenance() as u64);
    Ok(Step::Kernel(launch::kernel(call, named, context, shape, (pointers, extra))?))
}

fn kernel_params(kernel: &Kernel) -> CUDA_KERNEL_NODE_PARAMS_v2 {
    let Shape { grid, block, shared_bytes } = kernel.shape;
    let (function, library_kernel) = if kernel.is_library_kernel { (0, kernel.function) } else { (kernel.function, 0) };
    CUDA_KERNEL_NODE_PARAMS_v2 {
        func: pointer(function),
        gridDimX: grid[0],
        gridDimY: grid[1],
        gridDimZ: grid[2],
        blockDimX: block[0],
        blockDimY: block[1],
        blockDimZ: block[2],
        sharedMemBytes: shared_bytes,
        kernelParams: pointer(kernel.pointers()),
        extra: pointer(0),
        kern: pointer(library_kernel),
        ctx: pointer(kernel.context),
    }
}

fn kernel_of(call: &Call, node: u64) -> CuResult<CUDA_KERNEL_NODE_PARAMS_v2> {
    match &*call.simulator.graphs.node(node)?.step() {
        Step::Kernel(kernel) => Ok(kernel_params(kernel)),
        _ => Err(invalid()),
    }
}

fn copy(call: &Call, params: &CUDA_MEMCPY3D_v2) -> CuResult<Step> {
    Ok(described(call, box3(params)?))
}

/// The same copy with its offsets added to its addresses.
fn copy_params(rows: &Box3) -> CUDA_MEMCPY3D_v2 {
    let end = |plane: &Plane| {
        let rows_of_slice = plane.slice_bytes.checked_div(plane.pitch_bytes).unwrap_or(0);
        let (kind, host, device) = match plane.side {
            Side::Host => (CU_MEMORYTYPE_HOST, plane.address, 0),
            Side::Device => (CU_MEMORYTYPE_DEVICE, 0, plane.address),
        };
        (kind, host, device, length(plane.pitch_bytes), length(rows_of_slice))
    };
    let mut params: CUDA_MEMCPY3D_v2 = zeroed();
    let (kind, host, device, pitch, height) = end(&rows.from);
    (params.srcMemoryType, params.srcHost, params.srcDevice) = (kind, pointer::<c_void>(host).cast_const(), device);
    (params.srcPitch, params.srcHeight) = (pitch, height);
    let (kind, host, device, pitch, height) = end(&rows.to);
    (params.dstMemoryType, params.dstHost, params.dstDevice) = (kind, pointer(host), device);
    (params.dstPitch, params.dstHeight) = (pitch, height);
    (params.WidthInBytes, params.Height, params.Depth) = (rows.width_bytes, length(rows.height), length(rows.depth));
    params
}

fn fill(params: &CUDA_MEMSET_NODE_PARAMS_v1) -> CuResult<Step> {
    let bytes = params.value.to_le_bytes();
    let pattern = match params.elementSize {
        1 => &bytes[..1],
        2 => &bytes[..2],
        4 => &bytes[..],
        _ => return Err(invalid()),
    };
    let what = Fill { address: params.dst, pitch_bytes: params.pitch, width: params.width, height: params.height };
    memset::step(what, pattern)?.ok_or_else(invalid)
}

fn fill_params(fill: &Fill, pattern: &[u8]) -> CuResult<CUDA_MEMSET_NODE_PARAMS_v1> {
    let mut value = [0; 4];
    value[..pattern.len()].copy_from_slice(pattern);
    Ok(CUDA_MEMSET_NODE_PARAMS_v1 {
        dst: fill.address,
        pitch: fill.pitch_bytes,
        value: u32::from_le_bytes(value),
        elementSize: c_uint::try_from(pattern.len()).map_err(|_| invalid())?,
        width: fill.width,
        height: fill.height,
    })
}

fn set(call: &Call, node: u64, step: Step) -> CuResult {
    call.simulator.graphs.node(node)?.set(step)
}

fn set_launched(call: &Call, executable: u64, node: u64, step: Step) -> CuResult {
    call.simulator.graphs.executable(executable)?.set(node, step)
}

entries! {
    fn cuGraphAddKernelNode(
        out: *mut CUgraphNode, graph: CUgraph, dependencies: *const CUgraphNode, count: usize,
        params: *const CUDA_KERNEL_NODE_PARAMS_v1,
    ) |call| {
        add(call, out, graph.address(), (dependencies, count), kernel(call, &second(&params.read()?))?)
    }

    fn cuGraphAddKernelNode_v2(
        out: *mut CUgraphNode, graph: CUgraph, dependencies: *const CUgraphNode, count: usize,
        params: *const CUDA_KERNEL_NODE_PARAMS_v2,
    ) |call| {
        add(call, out, graph.address(), (dependencies, count), kernel(call, &params.read()?)?)
    }

    fn cuGraphAddMemcpyNode(
        out: *mut CUgraphNode, graph: CUgraph, dependencies: *const CUgraphNode, count: usize,
        params: *const CUDA_MEMCPY3D_v2, context: CUcontext,
    ) |call| {
        call.context(context.address())?;
        add(call, out, graph.address(), (dependencies, count), copy(call, &params.read()?)?)
    }

    fn cuGraphAddMemsetNode(
        out: *mut CUgraphNode, graph: CUgraph, dependencies: *const CUgraphNode, count: usize,
        params: *const CUDA_MEMSET_NODE_PARAMS_v1, context: CUcontext,
    ) |call| {
        call.context(context.address())?;
        add(call, out, graph.address(), (dependencies, count), fill(&params.read()?)?)
    }

    fn cuGraphAddHostNode(
        out: *mut CUgraphNode, graph: CUgraph, dependencies: *const CUgraphNode, count: usize,
        params: *const CUDA_HOST_NODE_PARAMS_v1,
    ) |call| {
        let params = params.read()?;
        let host = HostCall::new(params.fn_, Out::at(params.userData.expose_provenance() as u64))?;
        add(call, out, graph.address(), (dependencies, count), Step::Host(Box::new(move || host.run())))
    }

    fn cuGraphAddEmptyNode(
        out: *mut CUgraphNode, graph: CUgraph, dependencies: *const CUgraphNode, count: usize,
    ) |call| {
        add(call, out, graph.address(), (dependencies, count), Step::Empty)
    }

    fn cuGraphKernelNodeGetParams(node: CUgraphNode, out: *mut CUDA_KERNEL_NODE_PARAMS_v1) |call| {
        out.write(first(&kernel_of(call, node.address())?))
    }

    fn cuGraphKernelNodeGetParams_v2(node: CUgraphNode, out: *mut CUDA_KERNEL_NODE_PARAMS_v2) |call| {
        out.write(kernel_of(call, node.address())?)
    }

    fn cuGraphKernelNodeSetParams(node: CUgraphNode, params: *const CUDA_KERNEL_NODE_PARAMS_v1) |call| {
        set(call, node.address(), kernel(call, &second(&params.read()?))?)
    }

    fn cuGraphKernelNodeSetParams_v2(node: CUgraphNode, params: *const CUDA_KERNEL_NODE_PARAMS_v2) |call| {
        set(call, node.address(), kernel(call, &params.read()?)?)
    }

    fn cuGraphExecKernelNodeSetParams(
        executable: CUgraphExec, node: CUgraphNode, params: *const CUDA_KERNEL_NODE_PARAMS_v1,
    ) |call| {
        set_launched(call, executable.address(), node.address(), kernel(call, &second(&params.read()?))?)
    }

    fn cuGraphExecKernelNodeSetParams_v2(
        executable: CUgraphExec, node: CUgraphNode, params: *const CUDA_KERNEL_NODE_PARAMS_v2,
    ) |call| {
        set_launched(call, executable.address(), node.address(), kernel(call, &params.read()?)?)
    }

    fn cuGraphMemcpyNodeGetParams(node: CUgraphNode, out: *mut CUDA_MEMCPY3D_v2) |call| {
        match &*call.simulator.graphs.node(node.address())?.step() {
            Step::Copy(rows, _) => out.write(copy_params(rows)),
            _ => Err(invalid()),
        }
    }

    fn cuGraphMemcpyNodeSetParams(node: CUgraphNode, params: *const CUDA_MEMCPY3D_v2) |call| {
        set(call, node.address(), copy(call, &params.read()?)?)
    }

    fn cuGraphExecMemcpyNodeSetParams(
        executable: CUgraphExec, node: CUgraphNode, params: *const CUDA_MEMCPY3D_v2, context: CUcontext,
    ) |call| {
        call.context(context.address())?;
        set_launched(call, executable.address(), node.address(), copy(call, &params.read()?)?)
    }

    fn cuGraphMemsetNodeGetParams(node: CUgraphNode, out: *mut CUDA_MEMSET_NODE_PARAMS_v1) |call| {
        match &*call.simulator.graphs.node(node.address())?.step() {
            Step::Fill(fill, pattern) => out.write(fill_params(fill, pattern)?),
            _ => Err(invalid()),
        }
    }

    fn cuGraphMemsetNodeSetParams(node: CUgraphNode, params: *const CUDA_MEMSET_NODE_PARAMS_v1) |call| {
        set(call, node.address(), fill(&params.read()?)?)
    }

    fn cuGraphExecMemsetNodeSetParams(
        executable: CUgraphExec, node: CUgraphNode, params: *const CUDA_MEMSET_NODE_PARAMS_v1, context: CUcontext,
    ) |call| {
        call.context(context.address())?;
        set_launched(call, executable.address(), node.address(), fill(&params.read()?)?)
    }
}
