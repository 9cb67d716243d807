//! Remapping, accounting and copies.

use emuv_cuda::CUresult;
use emuv_policy::Bytes;

use super::{Argument::*, Rig};
use crate::{
    context::POISON,
    memory::{
        physical::Place,
        region::Access,
        rows::{Box3, Plane},
        view::Side,
    },
    stream::queue::Op,
};

#[test]
fn a_handle_mapped_twice_is_the_same_memory_and_outlives_its_release() {
    let rig = Rig::new("vram=64M");
    let space = &rig.machine().space;
    let base = space.reserve(8 << 20, 0, 0).unwrap();
    let handle = rig.create(2);
    rig.map(base, 2, handle);
    rig.map(base + (4 << 20), 2, handle);
    space.release(handle).unwrap();
    rig.write(base + 64, &[1, 2, 3]);
    assert_eq!(rig.read(base + (4 << 20) + 64, 3), [1, 2, 3]);
    assert_eq!(rig.used(), Bytes::mib(2));
    space.unmap(base, 2 << 20).unwrap();
    assert_eq!(rig.read(base + (4 << 20) + 64, 1), [1]);
    space.unmap(base + (4 << 20), 2 << 20).unwrap();
    assert_eq!(rig.used(), Bytes::ZERO);
    space.unreserve(base, 8 << 20).unwrap();
}

#[test]
fn a_chunk_moves_to_host_memory_and_back_at_the_same_address() {
    let rig = Rig::new("vram=64M");
    let space = &rig.machine().space;
    let base = space.reserve(2 << 20, 0, 0).unwrap();
    let copies = space.reserve(4 << 20, 0, 0).unwrap();
    let (vram, ram) = (rig.create(2), rig.create_host(2).unwrap());
    rig.map(base, 2, vram);
    rig.map(copies, 2, vram);
    rig.map(copies + (2 << 20), 2, ram);
    rig.run("emuv_fill", &[Word(base), Word(1 << 19), Half(7)]).unwrap();
    let before = rig.read(base, 1 << 19);
    let stream = rig.context.streams.legacy();
    let op = Op::device(move |view| view.copy((Side::Device, copies + (2 << 20)), (Side::Device, copies), 2 << 20));
    rig.context.streams.submit(&stream, op).unwrap();
    rig.context.synchronize().unwrap();
    space.unmap(base, 2 << 20).unwrap();
    rig.map(base, 2, ram);
    assert!(rig.read(base, 1 << 19) == before);
    assert_eq!(space.mapped(base).unwrap().physical.place(), Place::Host(Some(0)));
}

#[test]
fn unmapping_under_a_running_kernel_breaks_the_context_and_nothing_else() {
    let rig = Rig::new("vram=64M");
    let space = &rig.machine().space;
    let base = space.reserve(2 << 20, 0, 0).unwrap();
    rig.map(base, 2, rig.create(2));
    // A pointer to itself: the chase ends only when the memory goes away.
    rig.write(base, &[u32::try_from(base & 0xffff_ffff).unwrap(), u32::try_from(base >> 32).unwrap()]);
    let stream = rig.context.streams.create(1, 0);
    rig.launch(&stream, "emuv_chase", &[Word(base), Word(base), Word(u64::MAX)]);
    space.unmap(base, 2 << 20).unwrap();
    let broken = rig.context.synchronize().unwrap_err();
    assert_eq!(broken.code(), CUresult::ILLEGAL_ADDRESS);
    // Sticky: the same for everything that follows, until the context is gone.
    assert_eq!(rig.context.synchronize().unwrap_err(), broken);
    let fresh = rig.simulator.create_context(rig.simulator.device(0).unwrap(), 0);
    fresh.synchronize().unwrap();
    rig.simulator.end_context(&fresh);
}

#[test]
fn what_is_mapped_without_access_is_a_fault_and_read_only_is_not_written() {
    for access in [Access::None, Access::Read] {
        let rig = Rig::new("vram=64M");
        let space = &rig.machine().space;
        let base = space.reserve(2 << 20, 0, 0).unwrap();
        space.map(base, 2 << 20, 0, rig.create(2)).unwrap();
        space.set_access(base, 2 << 20, &[(0, access)]).unwrap();
        let failed = rig.run("emuv_fill", &[Word(base), Word(4), Half(0)]).unwrap_err();
        assert_eq!(failed.code(), CUresult::ILLEGAL_ADDRESS, "{access:?}");
    }
}

#[test]
fn the_rules_of_mapping_are_kept() {
    let rig = Rig::new("vram=64M");
    let space = &rig.machine().space;
    let base = space.reserve(16 << 20, 0, 0).unwrap();
    let (a, b) = (rig.create(4), rig.create(2));
    let code = |result: emuv_cuda::CuResult| result.unwrap_err().code();
    assert_eq!(code(space.map(base, 2 << 20, 2 << 20, a)), CUresult::NOT_SUPPORTED, "part of a handle");
    assert_eq!(code(space.map(base, 2 << 20, 0, a)), CUresult::INVALID_VALUE, "less than the handle");
    assert_eq!(code(space.map(base + 4096, 2 << 20, 0, b)), CUresult::INVALID_VALUE, "unaligned");
    space.map(base, 4 << 20, 0, a).unwrap();
    assert_eq!(code(space.map(base + (2 << 20), 2 << 20, 0, b)), CUresult::INVALID_VALUE, "taken");
    space.map(base + (4 << 20), 2 << 20, 0, b).unwrap();
    assert_eq!(code(space.unmap(base, 2 << 20)), CUresult::INVALID_VALUE, "half a mapping");
    assert_eq!(code(space.unreserve(base, 16 << 20)), CUresult::INVALID_VALUE, "still mapped");
    assert_eq!(code(space.unmap(base, 8 << 20)), CUresult::INVALID_VALUE, "more than is mapped");
    space.unmap(base, 6 << 20).unwrap();
    assert_eq!(code(space.unreserve(base, 8 << 20)), CUresult::INVALID_VALUE, "half a reservation");
    space.unreserve(base, 16 << 20).unwrap();
    assert_eq!(code(space.unmap(base, 2 << 20)), CUresult::INVALID_VALUE, "not reserved");
    space.release(a).unwrap();
    assert_eq!(code(space.release(a)), CUresult::INVALID_VALUE, "twice");
}

#[test]
fn a_tebibyte_can_be_reserved() {
    let rig = Rig::new("");
    let space = &rig.machine().space;
    let base = space.reserve(1 << 40, 1 << 30, 0).unwrap();
    assert_eq!(base % (1 << 30), 0);
    space.unreserve(base, 1 << 40).unwrap();
}

#[test]
fn a_handle_can_be_retained_through_its_address_and_imported_as_a_file() {
    let rig = Rig::new("vram=64M");
    let space = &rig.machine().space;
    let base = space.reserve(2 << 20, 0, 0).unwrap();
    let handle = rig.create(2);
    rig.map(base, 2, handle);
    space.release(handle).unwrap();
    assert_eq!(space.retain(base), Ok(handle));
    let file = space.physical(handle).unwrap().share().unwrap();
    let imported = space.import(file, Place::Vram(0)).unwrap();
    assert_eq!(space.physical(imported).unwrap().inode(), space.physical(handle).unwrap().inode());
    assert_eq!(rig.used(), Bytes::mib(2), "the same memory, paid once");
}

#[test]
fn vram_and_pinned_memory_end_exactly_at_their_limits() {
    let rig = Rig::new("vram=256M,pin=4M");
    assert_eq!(rig.context.engine.gpu.vram.limit(), Bytes(256 << 20));
    assert_eq!(rig.used(), Bytes::ZERO, "a context takes nothing");
    let all = rig.allocate(256 << 20);
    assert!(rig.context.allocate(1, 0).unwrap_err().is_out_of_memory());
    rig.machine().heap.free(&rig.machine().space, all).unwrap();
    assert_eq!(rig.used(), Bytes::ZERO);
    rig.create_host(4).unwrap();
    assert!(rig.create_host(2).unwrap_err().is_out_of_memory());
}

#[test]
fn ending_a_context_gives_its_memory_back_but_not_what_was_mapped_by_hand() {
    let rig = Rig::new("vram=64M");
    rig.allocate(100);
    rig.allocate(5 << 20);
    let handle = rig.create(2);
    rig.simulator.end_context(&rig.context);
    assert_eq!(rig.used(), Bytes::mib(2));
    rig.machine().space.release(handle).unwrap();
    assert_eq!(rig.used(), Bytes::ZERO);
}

#[test]
fn new_memory_is_poisoned_where_asked_for() {
    let rig = Rig::new("vram=64M,poison=1");
    let word = u32::from_le_bytes([POISON; 4]);
    assert_eq!(rig.read(rig.allocate(64), 16), [word; 16]);
    assert!(rig.read(rig.allocate(3 << 20), (3 << 20) / 4).iter().all(|found| *found == word));
}

#[test]
fn a_copy_of_rows_keeps_to_its_rows() {
    let rig = Rig::new("vram=64M");
    let (from, to) = (rig.allocate(4096), rig.allocate(4096));
    let source: Vec<u32> = (0..1024).collect();
    rig.write(from, &source);
    rig.write(to, &[9; 1024]);
    let plane = |address, pitch_bytes| Plane { side: Side::Device, address, pitch_bytes, slice_bytes: 2048 };
    // Two slices of three rows of 8 bytes.
    let copy = Box3 { to: plane(to, 64), from: plane(from + 4, 128), width_bytes: 8, height: 3, depth: 2 };
    let stream = rig.context.streams.legacy();
    rig.context.streams.submit(&stream, Op::device(move |view| copy.run(view))).unwrap();
    rig.context.synchronize().unwrap();
    let mut wanted = vec![9; 1024];
    for slice in 0..2 {
        for row in 0..3 {
            for column in 0..2 {
                wanted[slice * 512 + row * 16 + column] = source[slice * 512 + row * 32 + 1 + column];
            }
        }
    }
    assert_eq!(rig.read(to, 1024), wanted);
}

#[test]
fn access_to_host_memory_counts_as_traffic_on_the_link() {
    let rig = Rig::new("vram=64M,h2d=1000,d2h=1000");
    let space = &rig.machine().space;
    let base = space.reserve(2 << 20, 0, 0).unwrap();
    rig.map(base, 2, rig.create_host(2).unwrap());
    let vram = rig.allocate(4096);
    let (sender, receiver) = std::sync::mpsc::channel();
    let op = Op::device(move |view| {
        view.copy((Side::Device, vram), (Side::Device, base), 4096)?;
        view.store(base, &[1; 100])?;
        sender.send(view.traffic()).unwrap();
        Ok(())
    });
    rig.context.streams.submit(&rig.context.streams.legacy(), op).unwrap();
    let traffic = receiver.recv().unwrap();
    assert_eq!((traffic.h2d_bytes, traffic.d2h_bytes), (4096, 100));
}
