//! The RAM part of a node: files, mappings, memory cgroups, dma-buf.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use emuv_kernel_client::{Amount, Ledger as _, Refused};

use crate::{
    Test,
    configfs::Slice,
    debug,
    machine::{GIB, MIB, Module, PAGE_BYTES, assert_unused, attribute, errno, meminfo_kb, number, open, set},
    sys::{self, Child, End, Line, Mapping},
};

pub const TESTS: &[Test] = &[
    ("reads and writes: zeros first, shared, bounded", reads_and_writes),
    ("mappings: shared between processes, bounded, no private ones", mappings),
    ("pages count against the share, and go with the last holder", pages_are_charged),
    ("a smaller RAM share: what is there stays, nothing new", shrunk),
    ("eager: all pages at once, cleared for the next", eager),
    ("pages that a pipe keeps show nothing of the next holder's", kept_pages),
    ("pages are charged to the memory cgroup, which kills at its limit", memory_cgroup),
    ("a dma-buf in another process", dma_buf),
    ("a dma-buf in another driver", imported),
];

const MIB_USIZE: usize = 1 << 20;

fn reads_and_writes() {
    let _module = Module::with(6, 1);
    let (node, other) = (open(0), open(0));
    let mut file = node.ram();
    let mut buffer = [7; 8192];
    file.read_exact_at(&mut buffer, 100).expect("there is 1 GB");
    assert_eq!((buffer, number(0, "resident_bytes")), ([0; 8192], 0), "reading makes no pages");
    file.write_all_at(b"across a page's end", PAGE_BYTES - 6).expect("there is room");
    let mut text = [0; 19];
    other.ram().read_exact_at(&mut text, PAGE_BYTES - 6).expect("it is shared");
    assert_eq!((&text, number(0, "resident_bytes")), (b"across a page's end", 2 * PAGE_BYTES));
    assert_eq!(file.seek(SeekFrom::End(-4)).expect("it has an end"), GIB - 4);
    assert_eq!(file.write(b"123456").expect("four bytes fit"), 4);
    assert_eq!(errno(file.write(b"56")), libc::EFBIG);
    assert_eq!(file.read(&mut buffer).expect("at the end"), 0);
    assert_eq!(errno(file.write_at(b"x", 1 << 62)), libc::EFBIG);
    assert_eq!(errno(file.write_at(b"x", u64::MAX >> 1)), libc::EINVAL, "no file goes so far");
    assert_eq!(file.read_at(&mut buffer, 1 << 62).expect("far behind the end"), 0);
    assert_eq!(errno(file.seek(SeekFrom::Start(GIB + 1))), libc::EINVAL);
    assert_eq!(errno(file.seek(SeekFrom::Current(-(2 << 30)))), libc::EINVAL);
    drop((node, other));
    assert_unused(0);
    open(0).ram().read_exact_at(&mut text, PAGE_BYTES - 6).expect("there is 1 GB");
    assert_eq!(text, [0; 19], "nothing is left for the next");
}

fn mappings() {
    let _module = Module::with(6, 1);
    let node = open(0);
    let map = |offset, bytes| Mapping::new(node.ram(), offset, bytes, true);
    let ours = map(PAGE_BYTES, MIB_USIZE).expect("it can be mapped");
    assert_eq!(ours.get(5), 0);
    let (written, answered) = (Line::new(), Line::new());
    let child = Child::run(|| {
        // A child's mapping of another open file of the same node.
        let node = open(0);
        let theirs = Mapping::new(node.ram(), 0, 2 * MIB_USIZE, true).expect("it can be mapped");
        written.hear();
        assert_eq!(theirs.get(4096 + 5), 42);
        theirs.set(4096 + 6, 43);
        answered.say();
    });
    ours.set(5, 42);
    written.say();
    answered.hear();
    assert_eq!((ours.get(6), child.wait()), (43, End::Exit(0)));
    assert_eq!(errno(Mapping::new(node.ram(), 0, 4096, false)), libc::EINVAL, "a private copy would escape the share");
    let to_read = fs::File::open("/dev/emuv0").expect("it opens");
    assert_eq!(errno(Mapping::new(&to_read, 0, 4096, true)), libc::EACCES, "opened for reading only");
    assert_eq!(errno(map(GIB, 4096)), libc::EFBIG);
    assert_eq!(errno(map(GIB - PAGE_BYTES, 8192)), libc::EFBIG);
    assert_eq!(errno(map((1 << 62) - PAGE_BYTES, 4096)), libc::EFBIG);
    map(GIB - PAGE_BYTES, 4096).expect("the last page").set(4095, 1);
    // The mapping holds the file.
    drop((node, to_read));
    assert_eq!((ours.get(6), number(0, "holders")), (43, 1));
    drop(ours);
    assert_unused(0);
}

/// How a child ends that touches one byte of a new mapping.
fn touch(offset: u64) -> End {
    Child::run(|| {
        let node = open(0);
        let mapping = Mapping::new(node.ram(), offset, 4096, true).expect("it can be mapped");
        mapping.set(0, 1);
    })
    .wait()
}

fn pages_are_charged() {
    let _module = Module::with(6, 1);
    set(0, "virtual_bytes", 4 * PAGE_BYTES).expect("root may");
    let node = open(0);
    let mapping = Mapping::new(node.ram(), 0, 4 * 4096, true).expect("it can be mapped");
    mapping.set(0, 1);
    node.charge(Amount { vram_bytes: 0, ram_bytes: 2 * PAGE_BYTES }).expect("three pages are left");
    mapping.set(4096, 1);
    let refused = node.charge(Amount { vram_bytes: 0, ram_bytes: 1 });
    assert!(matches!(refused, Err(Refused::NoRoom(_))));
    assert_eq!(errno(node.ram().write_at(b"x", 2 * PAGE_BYTES)), libc::ENOSPC);
    assert_eq!(touch(2 * PAGE_BYTES), End::Signal(libc::SIGBUS), "the share is full");
    assert_eq!(touch(PAGE_BYTES), End::Exit(0), "that page is there");
    node.release(Amount { vram_bytes: 0, ram_bytes: PAGE_BYTES }).expect("it is held");
    assert_eq!(touch(2 * PAGE_BYTES), End::Exit(0));
    assert_eq!((number(0, "resident_bytes"), number(0, "virtual_used_bytes")), (3 * PAGE_BYTES, 4 * PAGE_BYTES));
    drop((node, mapping));
    assert_unused(0);
}

fn shrunk() {
    let _module = Module::with(6, 1);
    let node = open(0);
    let mapping = Mapping::new(node.ram(), 0, MIB_USIZE, true).expect("it can be mapped");
    mapping.set(5 * 4096, 9);
    set(0, "virtual_bytes", 2 * PAGE_BYTES).expect("root may");
    assert_eq!(mapping.get(5 * 4096), 9, "what is there stays");
    let child = Child::run(|| mapping.set(6 * 4096, 1));
    assert_eq!(child.wait(), End::Signal(libc::SIGBUS));
    assert_eq!(errno(node.ram().write_at(b"x", 3 * PAGE_BYTES)), libc::EFBIG);
    assert_eq!((&mut node.ram()).seek(SeekFrom::End(0)).expect("it has an end"), 2 * PAGE_BYTES);
    assert_eq!(number(0, "virtual_used_bytes"), PAGE_BYTES);
    set(0, "virtual_bytes", GIB).expect("root may");
    mapping.set(6 * 4096, 1);
}

fn eager() {
    // The debug kernel takes a minute for a GB of pages.
    let bytes = if debug::is_here() { 32 * MIB } else { GIB };
    let module = Module::load("").expect("it loads");
    let whole = Slice::with("eager", &[("virtual_vram_bytes", &bytes.to_string()), ("lazy_allocation", "0")]);
    assert_eq!(number(0, "resident_bytes"), bytes);
    assert!(attribute(0, "vram_info").contains("Allocation: Eager"));
    let node = open(0);
    node.ram().write_all_at(b"secret", 77 * PAGE_BYTES).expect("it is there");
    assert!(node.charge(Amount { vram_bytes: 0, ram_bytes: 1 }).is_err(), "its pages are the whole share");
    drop(node);
    let mut text = [1; 6];
    open(0).ram().read_exact_at(&mut text, 77 * PAGE_BYTES).expect("it is there");
    assert_eq!((text, number(0, "resident_bytes")), ([0; 6], bytes));
    let slice = Slice::new("too-large");
    for (attribute, value) in [("gpu_model", "4090"), ("physical_vram_bytes", "4096"), ("lazy_allocation", "0")] {
        slice.write(attribute, value).expect("root may");
    }
    // The machine has so much, but not all of it is free.
    let all_bytes = (meminfo_kb("MemTotal") << 10) & !(MIB - 1);
    slice.write("virtual_vram_bytes", &all_bytes.to_string()).expect("it is a number");
    assert_eq!(errno(slice.write("enable", "1")), libc::ENOMEM);
    drop((slice, whole));
    drop(module);
    let gb = bytes / GIB;
    let eager = format!("gpu_model=4090 physical_vram_gb=6 virtual_vram_gb={gb} lazy_allocation=0");
    let _module = Module::load(&eager).expect("by parameters as well");
    assert_eq!(number(0, "resident_bytes"), gb * GIB);
    assert!(fs::read_to_string("/dev/emuv").expect("cat /dev/emuv").contains("Allocation: Eager\n"));
}

fn kept_pages() {
    for lazy in ["0", "1"] {
        let _module = Module::load("").expect("it loads");
        let size = MIB.to_string();
        let slice = Slice::with("kept", &[("virtual_vram_bytes", &size), ("lazy_allocation", lazy)]);
        let node = open(0);
        let mapping = Mapping::new(node.ram(), 0, 4096, true).expect("it can be mapped");
        mapping.set(0, b'a');
        let pipe = sys::keep_pages_in_pipe(&mapping, 4096);
        drop((node, mapping));
        let next = open(0);
        next.ram().write_all_at(b"secret", 0).expect("there is room");
        let mut kept = [0; 4096];
        fs::File::from(pipe).read_exact(&mut kept).expect("the pipe is full");
        assert_eq!(&kept[..6], b"a\0\0\0\0\0", "lazy_allocation={lazy}");
        drop((next, slice));
    }
}

fn memory_cgroup() {
    let _module = Module::with(6, 1);
    let root = "/sys/fs/cgroup";
    fs::write(format!("{root}/cgroup.subtree_control"), "+memory").expect("the controller is there");
    fs::create_dir(format!("{root}/tenant")).expect("a group");
    let bytes = |name: &str| -> u64 {
        fs::read_to_string(format!("{root}/tenant/{name}")).expect("it is there").trim().parse().expect("a number")
    };
    let enter = || fs::write(format!("{root}/tenant/cgroup.procs"), std::process::id().to_string()).expect("root may");
    let touch_16_mib = || {
        let node = open(0);
        let mapping = Mapping::new(node.ram(), 0, 16 * MIB_USIZE, true).expect("it can be mapped");
        (0..4096).for_each(|page| mapping.set(page * 4096, 1));
        (node, mapping)
    };
    let touched = Line::new();
    let child = Child::run(|| {
        enter();
        let _held = touch_16_mib();
        touched.say();
        sys::forever();
    });
    touched.hear();
    let used = bytes("memory.current");
    assert!(used >= 16 * MIB, "{used}");
    child.kill();
    child.wait();
    fs::write(format!("{root}/tenant/memory.max"), (8 * MIB).to_string()).expect("root may");
    let child = Child::run(|| {
        enter();
        touch_16_mib();
    });
    assert_eq!(child.wait(), End::Signal(libc::SIGKILL), "out of its memory");
    assert_unused(0);
    fs::remove_dir(format!("{root}/tenant")).expect("nobody is in it");
}

fn dma_buf() {
    let _module = Module::with(6, 1);
    let node = open(0);
    node.ram().write_all_at(b"before", MIB).expect("there is room");
    let buffer = node.export(MIB, MIB).expect("it can be exported");
    assert_eq!((number(0, "resident_bytes"), number(0, "holders")), (MIB, 2));
    for (offset, bytes, expected) in [
        (0, 0, libc::EINVAL),
        (1, PAGE_BYTES, libc::EINVAL),
        (0, 100, libc::EINVAL),
        (GIB, PAGE_BYTES, libc::EFBIG),
        (u64::MAX - PAGE_BYTES + 1, PAGE_BYTES, libc::EFBIG),
        (PAGE_BYTES, u64::MAX - PAGE_BYTES + 1, libc::EFBIG),
        (0, GIB + PAGE_BYTES, libc::EFBIG),
    ] {
        assert_eq!(errno(node.export(offset, bytes)), expected, "{offset} {bytes}");
    }
    drop(node);
    let child = Child::run(|| {
        let theirs = Mapping::new(&buffer, 0, MIB_USIZE, true).expect("a dma-buf can be mapped");
        assert_eq!([0, 1, 2, 3, 4, 5].map(|place| theirs.get(place)), *b"before");
        theirs.set(MIB_USIZE - 1, 5);
    });
    assert_eq!(child.wait(), End::Exit(0));
    assert_eq!(errno(Mapping::new(&buffer, 0, 2 * MIB_USIZE, true)), libc::EINVAL, "its size is what it is");
    let mut byte = [0];
    open(0).ram().read_exact_at(&mut byte, 2 * MIB - 1).expect("it is there");
    assert_eq!(byte, [5]);
    set(0, "virtual_bytes", 2 * MIB).expect("root may");
    let node = open(0);
    node.charge(Amount { vram_bytes: 0, ram_bytes: MIB }).expect("half is left");
    assert_eq!(errno(node.export(0, MIB)), libc::EDQUOT);
    drop(node);
    drop(buffer);
    assert_unused(0);
}

/// A test driver maps the buffer for a device and changes its pages.
fn imported() {
    let _module = Module::with(6, 1);
    let node = open(0);
    node.ram().write_all_at(&[41], MIB + PAGE_BYTES).expect("there is room");
    let buffer = node.export(MIB, MIB).expect("it can be exported");
    let fd = buffer.as_raw_fd();
    assert_eq!(errno(sys::load_module("/importer.ko", &format!("fd={fd}"))), libc::ECANCELED, "it went well");
    let mut bytes = [0; 2];
    node.ram().read_exact_at(&mut bytes, MIB + PAGE_BYTES).expect("it is there");
    assert_eq!((bytes, number(0, "holders")), ([42, 1], 2));
    drop((node, buffer));
    assert_unused(0);
}
