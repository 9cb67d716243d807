//! The driver's memory IPC, for what `cuMemAlloc` gave. Memory of pools and of the program's own mappings it refuses.

use std::ffi::c_uint;

use emuv_cuda::{
    CUresult, CuResult,
    types::{self, CUdeviceptr, CUipcMemHandle},
};

use super::{
    abi::{Out, entries},
    call::Call,
};
use crate::memory::{ipc::Name, physical::error};

fn open_handle(call: &Call, out: Out<CUdeviceptr>, handle: CUipcMemHandle, flags: c_uint) -> CuResult {
    let context = call.current()?;
    out.required()?;
    if flags != types::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS {
        return Err(error(CUresult::INVALID_VALUE));
    }
    let name = Name::decode(&handle.reserved.map(i8::cast_unsigned))?;
    let machine = &call.simulator.machine;
    out.write(machine.imports.open(&machine.space, name, context.handle(), context.engine.ordinal)?)
}

entries! {
    fn cuIpcGetMemHandle(out: *mut CUipcMemHandle, address: CUdeviceptr) |call| {
        call.current()?;
        out.required()?;
        let machine = &call.simulator.machine;
        let found = machine.heap.find(address).filter(|found| found.pool == 0 && !found.doomed);
        let name = Name::of(&machine.space, &found.ok_or(error(CUresult::INVALID_VALUE))?)?;
        out.write(CUipcMemHandle { reserved: name.encode().map(u8::cast_signed) })
    }

    fn cuIpcOpenMemHandle / cuIpcOpenMemHandle_v2(out: *mut CUdeviceptr, handle: CUipcMemHandle, flags: c_uint) |call| {
        open_handle(call, out, handle, flags)
    }

    fn cuIpcCloseMemHandle(address: CUdeviceptr) |call| {
        let context = call.current()?;
        call.unsafe_in_capture()?;
        let machine = &call.simulator.machine;
        let import = machine.imports.find(address).filter(|import| import.base == address && !import.is_lent());
        let import = import.ok_or(error(CUresult::INVALID_VALUE))?;
        call.simulator.contexts.get(import.context).unwrap_or(context).synchronize()?;
        machine.imports.close(&machine.space, address)
    }
}
