//! The built library through emuV's own driver table and memory trait.
//!
//! # Safety
//! Each unsafe block is one driver call whose pointers are live locals.
#![allow(unsafe_code)]
// The linter's exception for tests does not reach a test's own small functions.
#![allow(clippy::unwrap_used)]

use emuv_cuda::{CUresult, Driver, DriverGpu, Gpu};
use emuv_policy::Tier;

fn driver() -> Driver {
    let test = std::env::current_exe().unwrap();
    let driver = Driver::open(&test.parent().unwrap().join("libemuv_simgpu.so")).unwrap();
    // SAFETY: takes no pointer.
    assert_eq!(unsafe { driver.cuInit(0) }, CUresult::SUCCESS);
    driver
}

#[test]
fn chunks_of_both_tiers_are_mapped_copied_and_given_back() {
    let driver = driver();
    let gpu = DriverGpu::new(&driver, 0).unwrap();
    assert!(gpu.has_ram_tier());
    assert_eq!(gpu.granularity_bytes(), 2 << 20);
    let bytes = 4 << 20;
    let base = gpu.reserve(2 * bytes, 0).unwrap();
    let (vram, ram) = (gpu.create(Tier::Vram, bytes).unwrap(), gpu.create(Tier::Ram, bytes).unwrap());
    gpu.map(base, bytes, vram).unwrap();
    gpu.map(base + bytes, bytes, ram).unwrap();
    let mut context = std::ptr::null_mut();
    let (mut total, mut free) = (0, 0);
    let mut back = [0_u32; 16];
    // SAFETY: the pointers are live locals, the addresses are mapped above.
    unsafe {
        driver.cuDevicePrimaryCtxRetain(&raw mut context, 0).ok().unwrap();
        driver.cuCtxSetCurrent(context).ok().unwrap();
        driver.cuMemGetInfo_v2(&raw mut free, &raw mut total).ok().unwrap();
        driver.cuMemsetD32_v2(base, 0x1234_5678, 16).ok().unwrap();
        driver.cuMemcpyDtoD_v2(base + bytes, base, 64).ok().unwrap();
        driver.cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), base + bytes, 64).ok().unwrap();
    }
    assert_eq!(total - free, 4 << 20, "host memory takes no VRAM");
    assert_eq!(back, [0x1234_5678; 16]);
    for (address, handle) in [(base, vram), (base + bytes, ram)] {
        gpu.unmap(address, bytes).unwrap();
        gpu.release(handle).unwrap();
    }
    gpu.unreserve(base, 2 * bytes).unwrap();
    // SAFETY: as above.
    unsafe { driver.cuMemGetInfo_v2(&raw mut free, &raw mut total) }.ok().unwrap();
    assert_eq!(free, total);
}
