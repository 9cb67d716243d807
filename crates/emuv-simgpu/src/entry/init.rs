//! Starting, versions, names of errors, and finding entry points.

use std::ffi::{c_char, c_int, c_uint, c_void};

use emuv_cuda::{
    CUresult,
    proc_address::{Lookup, lookup},
    types::{
        CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, CU_GET_PROC_ADDRESS_SUCCESS,
        CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND, CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT,
        CUdriverProcAddressQueryResult, CUoutput_mode, CUuuid, cuuint64_t,
    },
};

use super::{
    abi::{Out, early_entries, entries, pointer},
    symbols::CUDA_SYMBOLS,
};
use crate::{error_names, memory::physical::error, process};

early_entries! {
    fn cuInit(flags: c_uint) |_call| {
        if flags != 0 {
            return Err(error(CUresult::INVALID_VALUE));
        }
        process::initialize()
    }

    fn cuDriverGetVersion(version: *mut c_int) |_call| {
        let driver = process::setup().machine.config.driver;
        version.write(c_int::try_from(driver).unwrap_or(0))
    }

    fn cuGetErrorName(code: CUresult, text: *mut *const c_char) |_call| {
        text.required()?;
        let name = error_names::name(code);
        text.write(name.map_or(std::ptr::null(), std::ffi::CStr::as_ptr))?;
        name.map(|_| ()).ok_or(error(CUresult::INVALID_VALUE))
    }

    fn cuGetErrorString(code: CUresult, text: *mut *const c_char) |_call| {
        text.required()?;
        let words = error_names::description(code);
        text.write(words.map_or(std::ptr::null(), std::ffi::CStr::as_ptr))?;
        words.map(|_| ()).ok_or(error(CUresult::INVALID_VALUE))
    }

    fn cuGetExportTable(table: *mut *const c_void, id: *const CUuuid) |_call| {
        let _ = (table, id);
        Err(error(CUresult::NOT_FOUND))
    }

    fn cuGetProcAddress(symbol: *const c_char, function: *mut *mut c_void, version: c_int, flags: cuuint64_t) |_call| {
        find(&symbol.text()?, function.required()?, version, flags)?;
        // Without a status the result says what was found.
        if function.read()?.is_null() { Err(error(CUresult::NOT_FOUND)) } else { Ok(()) }
    }

    fn cuGetProcAddress_v2(
        symbol: *const c_char, function: *mut *mut c_void, version: c_int, flags: cuuint64_t,
        status: *mut CUdriverProcAddressQueryResult,
    ) |_call| {
        let found = find(&symbol.text()?, function.required()?, version, flags)?;
        status.offer(found);
        Ok(())
    }
}

entries! {
    fn cuProfilerInitialize(config: *const c_char, output: *const c_char, mode: CUoutput_mode) |_call| {
        let _ = (config, output, mode);
        Ok(())
    }

    fn cuProfilerStart() |_call| { Ok(()) }

    fn cuProfilerStop() |_call| { Ok(()) }
}

/// What a name means at an interface version to a driver of another version.
fn resolve(
    base: &str,
    version: u32,
    driver: u32,
    per_thread: bool,
) -> Result<&'static str, CUdriverProcAddressQueryResult> {
    match lookup(base, version, per_thread) {
        Lookup::Found(entry) => Ok(entry.symbol),
        Lookup::NotFound => Err(CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND),
        // A driver that is older than the function has never heard of it.
        Lookup::VersionTooOld => match lookup(base, driver, per_thread) {
            Lookup::Found(_) => Err(CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT),
            _ => Err(CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND),
        },
    }
}

fn find(
    base: &str,
    function: Out<*mut c_void>,
    version: c_int,
    flags: u64,
) -> emuv_cuda::CuResult<CUdriverProcAddressQueryResult> {
    let driver = process::setup().machine.config.driver;
    let version = u32::try_from(version).ok().filter(|version| *version <= driver);
    let version = version.ok_or(error(CUresult::INVALID_VALUE))?;
    let per_thread = flags & u64::from(CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0;
    let (address, status) = match resolve(base, version, driver, per_thread) {
        Ok(symbol) => {
            let row = CUDA_SYMBOLS.binary_search_by_key(&symbol, |(name, _)| name);
            let address = row.ok().and_then(|row| CUDA_SYMBOLS.get(row)).map_or(0, |(_, address)| address());
            (address, CU_GET_PROC_ADDRESS_SUCCESS)
        }
        Err(status) => (0, status),
    };
    function.write(pointer(address as u64))?;
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_symbol_has_an_address_and_the_table_is_sorted() {
        assert_eq!(CUDA_SYMBOLS.len(), emuv_cuda::exports::CUDA.len());
        assert!(CUDA_SYMBOLS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(CUDA_SYMBOLS.iter().all(|(_, address)| address() != 0));
    }

    #[test]
    fn the_form_is_the_newest_that_the_version_knows() {
        assert_eq!(resolve("cuMemAlloc", 12_000, 13_000, false), Ok("cuMemAlloc_v2"));
        assert_eq!(resolve("cuMemcpyHtoD", 12_000, 13_000, true), Ok("cuMemcpyHtoD_v2_ptds"));
    }

    #[test]
    fn what_is_newer_than_the_driver_does_not_exist() {
        // cuMemAllocAsync came with 11.2.
        assert_eq!(resolve("cuMemAllocAsync", 11_000, 13_000, false), Err(CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT));
        assert_eq!(resolve("cuMemAllocAsync", 11_000, 11_010, false), Err(CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND));
        assert_eq!(resolve("cuNoSuchCall", 13_000, 13_000, false), Err(CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND));
    }
}
