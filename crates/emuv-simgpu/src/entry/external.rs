//! Memory of other interfaces. An external object is a file descriptor of memory that can be exported (`vmm.rs`). There is
//! no OpenGL: the name of a buffer object stands for its size in MiB, and the buffer is made when it is registered.

use std::{
    ffi::c_uint,
    sync::{Arc, Mutex},
};

use emuv_cuda::{
    CUresult, CuResult,
    types::{
        self, CUDA_EXTERNAL_MEMORY_BUFFER_DESC, CUDA_EXTERNAL_MEMORY_HANDLE_DESC, CUdeviceptr, CUexternalMemory,
        CUgraphicsResource, CUstream, GLuint,
    },
};

use super::{
    abi::{Out, entries, external_file, pointer},
    call::Call,
};
use crate::{
    context::Context,
    memory::{
        GRANULARITY_BYTES, length,
        physical::{Physical, Place, error},
    },
    simulator::External,
    sync::lock,
};

fn find(call: &Call, handle: u64) -> CuResult<Arc<External>> {
    call.simulator.externals.get(handle).ok_or(error(CUresult::CUDA_ERROR_INVALID_HANDLE))
}

fn each(
    call: &Call,
    count: c_uint,
    resources: Out<CUgraphicsResource>,
    f: impl Fn(&Context, &External) -> CuResult,
) -> CuResult {
    let context = call.current()?;
    (0..count as usize).try_for_each(|index| {
        let handle = resources.cast::<u64>().read_at(index)?;
        f(&context, &*find(call, handle)?)
    })
}

fn map(call: &Call, count: c_uint, resources: Out<CUgraphicsResource>) -> CuResult {
    each(call, count, resources, |context, external| {
        let mut mapped = lock(&external.mapped);
        if mapped.is_some() {
            return Err(error(CUresult::CUDA_ERROR_ALREADY_MAPPED));
        }
        *mapped = Some(lend(call, context, external, 0, external.physical.bytes())?);
        Ok(())
    })
}

fn unmap(call: &Call, count: c_uint, resources: Out<CUgraphicsResource>) -> CuResult {
    each(call, count, resources, |context, external| {
        let address = lock(&external.mapped).take().ok_or(error(CUresult::CUDA_ERROR_NOT_MAPPED))?;
        context.synchronize()?;
        let machine = &call.simulator.machine;
        machine.imports.close(&machine.space, address)
    })
}

fn lend(call: &Call, context: &Context, external: &External, offset: u64, bytes: u64) -> CuResult<u64> {
    let machine = &call.simulator.machine;
    let owner = (context.handle(), context.engine.ordinal);
    machine.imports.lend(&machine.space, Arc::clone(&external.physical), (offset, bytes), owner)
}

fn add(call: &Call, context: &Context, physical: Arc<Physical>) -> u64 {
    call.simulator.externals.insert(External { context: context.handle(), physical, mapped: Mutex::default() })
}

entries! {
    fn cuImportExternalMemory(out: *mut CUexternalMemory, description: *const CUDA_EXTERNAL_MEMORY_HANDLE_DESC) |call| {
        let context = call.current()?;
        out.required()?;
        let d = description.read()?;
        if d.type_ != types::CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD {
            return Err(error(CUresult::NOT_SUPPORTED));
        }
        let physical = Physical::import(external_file(&d)?, Place::Vram(context.engine.ordinal))?;
        if d.size == 0 || d.size > physical.bytes() {
            return Err(error(CUresult::INVALID_VALUE));
        }
        out.write(pointer(add(call, &context, physical)))
    }

    fn cuExternalMemoryGetMappedBuffer(
        out: *mut CUdeviceptr, external: CUexternalMemory, description: *const CUDA_EXTERNAL_MEMORY_BUFFER_DESC,
    ) |call| {
        let context = call.current()?;
        out.required()?;
        let d = description.read()?;
        out.write(lend(call, &context, &*find(call, external.address())?, d.offset, d.size)?)
    }

    fn cuDestroyExternalMemory(external: CUexternalMemory) |call| {
        call.current()?;
        let removed = call.simulator.externals.remove(external.address());
        removed.map(|_| ()).ok_or(error(CUresult::CUDA_ERROR_INVALID_HANDLE))
    }

    fn cuGraphicsGLRegisterBuffer(out: *mut CUgraphicsResource, buffer: GLuint, _flags: c_uint) |call| {
        let context = call.current()?;
        out.required()?;
        if buffer == 0 {
            return Err(error(CUresult::INVALID_VALUE));
        }
        let bytes = (u64::from(buffer) << 20).next_multiple_of(GRANULARITY_BYTES);
        let physical = Physical::uncharged(Place::Vram(context.engine.ordinal), bytes)?;
        out.write(pointer(add(call, &context, physical)))
    }

    fn cuGraphicsMapResources / cuGraphicsMapResources_ptsz(
        count: c_uint, resources: *mut CUgraphicsResource, _stream: CUstream,
    ) |call| {
        map(call, count, resources)
    }

    fn cuGraphicsUnmapResources / cuGraphicsUnmapResources_ptsz(
        count: c_uint, resources: *mut CUgraphicsResource, _stream: CUstream,
    ) |call| {
        unmap(call, count, resources)
    }

    fn cuGraphicsResourceGetMappedPointer_v2(
        out: *mut CUdeviceptr, bytes: *mut usize, resource: CUgraphicsResource,
    ) |call| {
        let external = find(call, resource.address())?;
        let address = *lock(&external.mapped);
        out.offer(address.ok_or(error(CUresult::CUDA_ERROR_NOT_MAPPED))?);
        bytes.offer(length(external.physical.bytes()));
        Ok(())
    }

    fn cuGraphicsUnregisterResource(resource: CUgraphicsResource) |call| {
        call.current()?;
        let external = find(call, resource.address())?;
        call.simulator.externals.remove(resource.address());
        let Some(address) = lock(&external.mapped).take() else { return Ok(()) };
        call.simulator.machine.imports.close(&call.simulator.machine.space, address)
    }
}
