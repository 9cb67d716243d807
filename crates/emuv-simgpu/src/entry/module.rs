//! Modules, libraries, functions and kernels.

use std::{
    ffi::{c_char, c_int, c_uint, c_void},
    sync::atomic::Ordering,
};

use emuv_cuda::{
    CUresult, CuResult,
    types::{
        self, CU_MODULE_EAGER_LOADING, CUdevice, CUdeviceptr, CUfunc_cache, CUfunction, CUfunction_attribute,
        CUfunctionLoadingState, CUjit_option, CUkernel, CUlibrary, CUlibraryOption, CUmodule, CUmoduleLoadingMode,
        CUsharedconfig,
    },
};

use super::{
    abi::{In, Out, entries, pointer},
    call::Call,
    device::{MAX_THREADS_PER_BLOCK, SHARED_BYTES_PER_BLOCK, SHARED_BYTES_PER_BLOCK_OPTIN},
};
use crate::{kernel::image::Image, memory::physical::error, simulator::Function, sync::lock};

/// First bytes of images that are not text: ELF, fat binary, and the wrapper around a fat binary.
const BINARIES: [[u8; 4]; 3] = [[0x7f, b'E', b'L', b'F'], [0x50, 0xed, 0x55, 0xba], [0xb1, 0x43, 0x62, 0x46]];

/// An image in memory. What is no text has all built-in kernels.
fn image(code: In<c_void>) -> CuResult<Image> {
    let bytes = code.cast::<u8>();
    let mut first = [0; 4];
    for (index, byte) in first.iter_mut().enumerate() {
        *byte = bytes.read_at(index)?;
        if *byte == 0 {
            break;
        }
    }
    if BINARIES.contains(&first) {
        return Ok(Image::default());
    }
    Ok(Image::parse(&code.cast::<c_char>().text()?))
}

fn image_file(name: In<c_char>) -> CuResult<Image> {
    let bytes = std::fs::read(name.text()?).map_err(|_| error(CUresult::CUDA_ERROR_FILE_NOT_FOUND))?;
    Ok(Image::parse(&String::from_utf8_lossy(&bytes)))
}

fn load(call: &Call, out: Out<CUmodule>, image: Image) -> CuResult {
    out.required()?;
    out.write(pointer(call.simulator.load_module(&*call.current()?, image)?))
}

fn attribute(function: &Function, which: CUfunction_attribute) -> CuResult<c_int> {
    if which >= types::CU_FUNC_ATTRIBUTE_MAX {
        return Err(error(CUresult::INVALID_VALUE));
    }
    if let Some(value) = lock(&function.attributes).get(&which) {
        return Ok(*value);
    }
    Ok(match which {
        types::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK => MAX_THREADS_PER_BLOCK,
        types::CU_FUNC_ATTRIBUTE_NUM_REGS => 32,
        types::CU_FUNC_ATTRIBUTE_PTX_VERSION | types::CU_FUNC_ATTRIBUTE_BINARY_VERSION => 90,
        types::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES => SHARED_BYTES_PER_BLOCK,
        types::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT => -1,
        _ => 0,
    })
}

fn set_attribute(function: &Function, which: CUfunction_attribute, value: c_int) -> CuResult {
    let allowed = match which {
        types::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES => (0..=SHARED_BYTES_PER_BLOCK_OPTIN).contains(&value),
        types::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT => (-1..=100).contains(&value),
        types::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
        | types::CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE => true,
        _ => false,
    };
    if !allowed {
        return Err(error(CUresult::INVALID_VALUE));
    }
    lock(&function.attributes).insert(which, value);
    Ok(())
}

fn parameter(function: &Function, index: usize, offset: Out<usize>, size: Out<usize>) -> CuResult {
    let at = function.builtin.offset(index).ok_or(error(CUresult::INVALID_VALUE))?;
    offset.required()?.write(at)?;
    size.offer(function.builtin.parameters[index]);
    Ok(())
}

fn name(function: &Function, out: Out<*const c_char>) -> CuResult {
    // The text lives as long as the function, as the interface promises.
    out.write(function.name.as_ptr())
}

fn list<T>(out: Out<*mut T>, room: c_uint, handles: &[u64]) -> CuResult {
    for (index, handle) in handles.iter().enumerate().take(usize::try_from(room).unwrap_or(0)) {
        out.write_at(index, pointer(*handle))?;
    }
    Ok(())
}

fn write_global(call: &Call, module: u64, name: &str, address: Out<CUdeviceptr>, bytes: Out<usize>) -> CuResult {
    let (base, size) = call.simulator.module_global(module, name)?;
    address.offer(base);
    bytes.offer(crate::memory::length(size));
    Ok(())
}

entries! {
    fn cuModuleLoad(out: *mut CUmodule, name: *const c_char) |call| { load(call, out, image_file(name)?) }

    fn cuModuleLoadData(out: *mut CUmodule, code: *const c_void) |call| { load(call, out, image(code)?) }

    fn cuModuleLoadDataEx(
        out: *mut CUmodule, code: *const c_void, count: c_uint, options: *mut CUjit_option, values: *mut *mut c_void,
    ) |call| {
        let _ = (count, options, values);
        load(call, out, image(code)?)
    }

    fn cuModuleLoadFatBinary(out: *mut CUmodule, code: *const c_void) |call| { load(call, out, image(code)?) }

    fn cuModuleUnload(module: CUmodule) |call| { call.simulator.unload_module(module.address()) }

    fn cuModuleGetLoadingMode(mode: *mut CUmoduleLoadingMode) |_call| { mode.write(CU_MODULE_EAGER_LOADING) }

    fn cuModuleGetFunction(out: *mut CUfunction, module: CUmodule, name: *const c_char) |call| {
        out.required()?;
        out.write(pointer(call.simulator.module_function(module.address(), &name.text()?)?))
    }

    fn cuModuleGetFunctionCount(count: *mut c_uint, module: CUmodule) |call| {
        let functions = call.simulator.module_functions(module.address())?;
        count.write(c_uint::try_from(functions.len()).unwrap_or(0))
    }

    fn cuModuleEnumerateFunctions(out: *mut CUfunction, room: c_uint, module: CUmodule) |call| {
        list(out, room, &call.simulator.module_functions(module.address())?)
    }

    fn cuModuleGetGlobal_v2(address: *mut CUdeviceptr, bytes: *mut usize, module: CUmodule, name: *const c_char) |call| {
        write_global(call, module.address(), &name.text()?, address, bytes)
    }

    fn cuLibraryLoadData(
        out: *mut CUlibrary, code: *const c_void, jit: *mut CUjit_option, jit_values: *mut *mut c_void,
        jit_count: c_uint, options: *mut CUlibraryOption, values: *mut *mut c_void, count: c_uint,
    ) |call| {
        let _ = (jit, jit_values, jit_count, options, values, count);
        out.required()?;
        out.write(pointer(call.simulator.load_library(image(code)?)))
    }

    fn cuLibraryLoadFromFile(
        out: *mut CUlibrary, name: *const c_char, jit: *mut CUjit_option, jit_values: *mut *mut c_void,
        jit_count: c_uint, options: *mut CUlibraryOption, values: *mut *mut c_void, count: c_uint,
    ) |call| {
        let _ = (jit, jit_values, jit_count, options, values, count);
        out.required()?;
        out.write(pointer(call.simulator.load_library(image_file(name)?)))
    }

    fn cuLibraryUnload(library: CUlibrary) |call| { call.simulator.unload_library(library.address()) }

    fn cuLibraryGetKernel(out: *mut CUkernel, library: CUlibrary, name: *const c_char) |call| {
        out.required()?;
        out.write(pointer(call.simulator.library_kernel(library.address(), &name.text()?)?))
    }

    fn cuLibraryGetKernelCount(count: *mut c_uint, library: CUlibrary) |call| {
        let kernels = call.simulator.library_kernels(library.address())?;
        count.write(c_uint::try_from(kernels.len()).unwrap_or(0))
    }

    fn cuLibraryEnumerateKernels(out: *mut CUkernel, room: c_uint, library: CUlibrary) |call| {
        list(out, room, &call.simulator.library_kernels(library.address())?)
    }

    fn cuLibraryGetModule(out: *mut CUmodule, library: CUlibrary) |call| {
        out.required()?;
        out.write(pointer(call.simulator.library_module(library.address(), &*call.current()?)?))
    }

    fn cuLibraryGetGlobal(address: *mut CUdeviceptr, bytes: *mut usize, library: CUlibrary, name: *const c_char) |call| {
        let module = call.simulator.library_module(library.address(), &*call.current()?)?;
        write_global(call, module, &name.text()?, address, bytes)
    }

    fn cuKernelGetFunction(out: *mut CUfunction, kernel: CUkernel) |call| {
        out.required()?;
        let kernel = call.simulator.function(kernel.address())?;
        let module = call.simulator.library_module(kernel.owner, &*call.current()?)?;
        out.write(pointer(call.simulator.module_function(module, kernel.builtin.name)?))
    }

    fn cuKernelGetLibrary(out: *mut CUlibrary, kernel: CUkernel) |call| {
        out.write(pointer(call.simulator.function(kernel.address())?.owner))
    }

    fn cuKernelGetName(out: *mut *const c_char, kernel: CUkernel) |call| {
        name(&*call.simulator.function(kernel.address())?, out)
    }

    fn cuKernelGetParamInfo(kernel: CUkernel, index: usize, offset: *mut usize, size: *mut usize) |call| {
        parameter(&*call.simulator.function(kernel.address())?, index, offset, size)
    }

    fn cuKernelGetParamCount(kernel: CUkernel, count: *mut usize) |call| {
        count.write(call.simulator.function(kernel.address())?.builtin.parameters.len())
    }

    fn cuKernelGetAttribute(value: *mut c_int, which: CUfunction_attribute, kernel: CUkernel, device: CUdevice) |call| {
        call.device(device)?;
        value.write(attribute(&*call.simulator.function(kernel.address())?, which)?)
    }

    fn cuKernelSetAttribute(which: CUfunction_attribute, value: c_int, kernel: CUkernel, device: CUdevice) |call| {
        call.device(device)?;
        set_attribute(&*call.simulator.function(kernel.address())?, which, value)
    }

    fn cuKernelSetCacheConfig(kernel: CUkernel, config: CUfunc_cache, device: CUdevice) |call| {
        call.device(device)?;
        call.simulator.function(kernel.address())?.cache_config.store(config, Ordering::Relaxed);
        Ok(())
    }

    fn cuFuncGetAttribute(value: *mut c_int, which: CUfunction_attribute, function: CUfunction) |call| {
        value.write(attribute(&*call.simulator.function(function.address())?, which)?)
    }

    fn cuFuncSetAttribute(function: CUfunction, which: CUfunction_attribute, value: c_int) |call| {
        set_attribute(&*call.simulator.function(function.address())?, which, value)
    }

    fn cuFuncGetName(out: *mut *const c_char, function: CUfunction) |call| {
        name(&*call.simulator.function(function.address())?, out)
    }

    fn cuFuncGetParamInfo(function: CUfunction, index: usize, offset: *mut usize, size: *mut usize) |call| {
        parameter(&*call.simulator.function(function.address())?, index, offset, size)
    }

    fn cuFuncGetParamCount(function: CUfunction, count: *mut usize) |call| {
        count.write(call.simulator.function(function.address())?.builtin.parameters.len())
    }

    fn cuFuncGetModule(out: *mut CUmodule, function: CUfunction) |call| {
        let function = call.simulator.function(function.address())?;
        // A kernel of a library is no function of a module.
        call.simulator.module(function.owner)?;
        out.write(pointer(function.owner))
    }

    fn cuFuncSetCacheConfig(function: CUfunction, config: CUfunc_cache) |call| {
        call.simulator.function(function.address())?.cache_config.store(config, Ordering::Relaxed);
        Ok(())
    }

    fn cuFuncSetSharedMemConfig(function: CUfunction, config: CUsharedconfig) |call| {
        let _ = (config, call.simulator.function(function.address())?);
        Ok(())
    }

    fn cuFuncIsLoaded(state: *mut CUfunctionLoadingState, function: CUfunction) |call| {
        call.simulator.function(function.address())?;
        state.write(types::CU_FUNCTION_LOADING_STATE_LOADED)
    }

    fn cuFuncLoad(function: CUfunction) |call| { call.simulator.function(function.address()).map(|_| ()) }
}
