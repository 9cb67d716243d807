//! What only the debug kernel can show: injected failures, leaks, and that its detectors detect.

use std::{fs, path::Path, process};

use emuv_kernel_client::{Amount, Ledger as _, Node};

use crate::{
    Test,
    configfs::Slice,
    machine::{self, Module, assert_unused, log},
    sys::{self, Child, End, Mapping},
};

pub const TESTS: &[Test] =
    &[("debug: every allocation fails once", failing_allocations), ("debug: nothing of the module's is leaked", leaks)];

/// These make the kernel complain, so they come last and its log does not count.
pub const PLANTED: &[Test] = &[
    // First: the kernel stops watching locks after any other complaint.
    ("planted: locks in both orders are seen", || {
        planted("order", "possible circular locking dependency");
    }),
    ("planted: an access beyond an allocation is seen", || {
        planted("beyond", "KASAN: slab-out-of-bounds");
    }),
    ("planted: sleeping under a spinlock is seen", || {
        planted("sleep", "sleeping function called from invalid context");
    }),
    ("planted: a leak is seen", planted_leak),
];

/// Whether this is the debug kernel.
pub fn is_here() -> bool {
    Path::new("/planted.ko").exists()
}

fn inject(what: &str, name: &str, value: &str) {
    let path = format!("/sys/kernel/debug/{what}/{name}");
    fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// Everything a tenant and an administrator do, while the n-th allocation fails, for n = 0, 1, ... until none does.
fn failing_allocations() {
    let _module = Module::load("").expect("it loads");
    for what in ["failslab", "fail_page_alloc"] {
        inject(what, "verbose", "0");
        inject(what, "ignore-gfp-wait", "N");
    }
    inject("fail_page_alloc", "min-order", "0");
    inject("fail_page_alloc", "ignore-gfp-highmem", "N");
    let (mut refused, mut calm) = (0, 0);
    for nth in 1.. {
        let child = Child::run(|| {
            let fail_nth = format!("/proc/{}/fail-nth", process::id());
            fs::write(&fail_nth, nth.to_string()).expect("the kernel injects failures");
            let done = everything();
            // That it cannot be read is the failure, which has come to nothing before.
            let left = fs::read_to_string(&fail_nth).map_or(1, |left| left.trim().parse().expect("a number"));
            fs::write(&fail_nth, "0").expect("it can be ended");
            // What is left over when the directory could not be removed.
            let _ = fs::remove_dir("/sys/kernel/config/emuv/fail");
            process::exit(if left > 0 { 2 } else { i32::from(!done) });
        });
        match child.wait() {
            End::Exit(0) => calm += 1,
            // A page that cannot be had ends a program that touches it.
            End::Exit(1) | End::Signal(libc::SIGBUS | libc::SIGKILL) => refused += 1,
            End::Exit(2) => break,
            end => panic!("{end:?} at allocation {nth}"),
        }
        let _ = fs::remove_dir("/sys/kernel/config/emuv/fail");
        assert!(!Path::new("/dev/emuv0").exists(), "allocation {nth} left an instance behind");
        assert!(nth < 3000, "it comes to an end");
    }
    println!("  {refused} failures refused what was asked, {calm} made no difference");
    assert!(refused > 10);
    let slice = Slice::with("after", &[("virtual_vram_bytes", "1048576")]);
    assert_unused(0);
    drop(slice);
}

/// Whether all of it could be done.
fn everything() -> bool {
    let directory = "/sys/kernel/config/emuv/fail";
    let done = || -> std::io::Result<()> {
        fs::create_dir(directory)?;
        let attributes = [
            ("gpu_model", "4090"),
            ("physical_vram_bytes", "1048576"),
            ("virtual_vram_bytes", "65536"),
            ("lazy_allocation", "0"),
            ("enable", "1"),
        ];
        for (name, value) in attributes {
            fs::write(format!("{directory}/{name}"), value)?;
        }
        let node = Node::open(&Node::path(0))?;
        fs::write(format!("{directory}/virtual_vram_bytes"), "131072")?;
        let _ = node.charge(Amount { vram_bytes: 4096, ram_bytes: 4096 });
        let buffer = node.export(65536, 8192)?;
        let mapping = Mapping::new(node.ram(), 0, 131_072, true)?;
        (0..30).for_each(|page| mapping.set(page * 4096, 1));
        fs::read_to_string("/sys/class/emuv/emuv0/vram_info")?;
        drop((node, mapping, buffer));
        Ok(())
    }()
    .is_ok();
    let removed = fs::remove_dir(directory).is_ok();
    done && removed
}

fn scan() -> String {
    let path = "/sys/kernel/debug/kmemleak";
    // What a register or a stack pointed to in the first scan may be found in the second.
    for _ in 0..2 {
        fs::write(path, "scan").expect("the kernel looks for leaks");
    }
    fs::read_to_string(path).expect("it says what it found")
}

fn leaks() {
    let found = scan();
    let ours: Vec<&str> = found.split("unreferenced object").filter(|object| object.contains("[emuv]")).collect();
    assert!(ours.is_empty(), "{}", ours.join("\n"));
}

fn planted(bug: &str, complaint: &str) {
    machine::errno(sys::load_module("/planted.ko", &format!("bug={bug}")));
    assert!(log().contains(complaint), "'{complaint}'");
}

fn planted_leak() {
    machine::errno(sys::load_module("/planted.ko", "bug=leak"));
    assert!(scan().contains("unreferenced object"));
}
