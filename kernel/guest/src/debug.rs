//! What only the debug kernel can show: injected failures, leaks, and that its detectors detect.

use std::{fs, path::Path};

use emuv_kernel_client::{Amount, Ledger as _, Node};

use crate::{
    Test,
    configfs::Slice,
    hostile::{self, Random},
    machine::{MIB, Module, assert_unused, boot_option, errno, log_from, open},
    sys::{self, Child, End, Line, Mapping},
};

pub const TESTS: &[Test] = &[
    ("debug: every allocation and copy fails once, in use", failing_use),
    ("debug: every allocation fails once, while the module loads", failing_load),
    ("debug: any of them fail at random", failing_at_random),
    ("debug: every page is given back", pages),
];

/// These make the kernel complain, so they come last and its log does not count. In this order: leaks are looked for where nothing
/// else has gone wrong, and the kernel stops watching locks after an access that it did not like.
pub const PLANTED: &[Test] = &[
    ("planted: leaks are seen, in C and in Rust, and there are no others", leaks),
    ("planted: locks in both orders are seen, in Rust", || {
        planted("planted_rust", "2", "possible circular locking dependency");
    }),
    ("planted: sleeping under a spinlock is seen", || {
        planted("planted", "sleep", "sleeping function called from invalid context");
    }),
    ("planted: an access beyond an allocation is seen", || {
        planted("planted", "beyond", "KASAN: slab-out-of-bounds");
    }),
    ("planted: an access beyond an allocation of pages is seen", || {
        planted("planted", "beyond-pages", "KASAN: vmalloc-out-of-bounds");
    }),
    ("planted: an access after freeing is seen", || {
        planted("planted", "freed", "KASAN: slab-use-after-free");
    }),
    ("planted: an access after freeing is seen, in Rust", || {
        planted("planted_rust", "1", "KASAN: slab-use-after-free");
    }),
];

/// Whether this is the debug kernel. It is told, so that one without its means fails.
pub fn is_here() -> bool {
    boot_option("emuv_debug").is_some()
}

const FAILURES: [&str; 3] = ["failslab", "fail_page_alloc", "fail_usercopy"];

fn inject(what: &str, name: &str, value: &str) {
    let path = format!("/sys/kernel/debug/{what}/{name}");
    fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// Failures are of every kind of memory, and leave no line in the log each.
fn prepare_failures() {
    for what in FAILURES {
        inject(what, "verbose", "0");
    }
    for what in ["failslab", "fail_page_alloc"] {
        inject(what, "ignore-gfp-wait", "N");
    }
    inject("fail_page_alloc", "min-order", "0");
    inject("fail_page_alloc", "ignore-gfp-highmem", "N");
}

fn fail_nth() -> String {
    format!("/proc/{}/fail-nth", std::process::id())
}

/// Runs `f` in children: in the n-th, the n-th allocation (or copy from a program) fails, for all `numbers` until one comes to its
/// end before that. `f` says whether it got all that it wanted; `check` what must hold after each.
fn each_failing(numbers: impl Iterator<Item = u32>, f: impl Fn() -> bool, check: impl Fn(u32)) {
    prepare_failures();
    let (mut refused, mut calm, mut last) = (0, 0, 0);
    for nth in numbers {
        let child = Child::run(|| {
            fs::write(fail_nth(), nth.to_string()).expect("the kernel injects failures");
            let done = f();
            // That it cannot be read is the failure, which has come to nothing before.
            let left = fs::read_to_string(fail_nth()).map_or(1, |left| left.trim().parse().expect("a number"));
            // That it cannot be written as well.
            while fs::write(fail_nth(), "0").is_err() {}
            std::process::exit(if left > 0 { 2 } else { i32::from(!done) });
        });
        match child.wait() {
            End::Exit(0) => calm += 1,
            // A page that cannot be had ends a program that touches it.
            End::Exit(1) | End::Signal(libc::SIGBUS | libc::SIGSEGV | libc::SIGKILL) => refused += 1,
            End::Exit(2) => break,
            end => panic!("{end:?} at failure {nth}"),
        }
        check(nth);
        last = nth;
        assert!(nth < 5000, "it comes to an end");
    }
    println!("  {refused} failures refused what was asked, {calm} made no difference; the last was number {last}");
    assert!(refused > 10, "failures are injected");
}

/// How many allocations and copies there are that could fail.
fn that_could_fail(f: impl Fn()) -> u64 {
    const MANY: u64 = 1_000_000;
    let count = Line::new();
    let child = Child::run(|| {
        fs::write(fail_nth(), MANY.to_string()).expect("the kernel injects failures");
        f();
        let left: u64 = fs::read_to_string(fail_nth()).expect("it can be read").trim().parse().expect("a number");
        fs::write(fail_nth(), "0").expect("it can be ended");
        count.tell([MANY - left, 0]);
    });
    assert_eq!(child.wait(), End::Exit(0));
    count.hear_numbers()[0]
}

/// Everything a tenant and an administrator do.
fn failing_use() {
    let _module = Module::load("").expect("it loads");
    each_failing(1.., everything, |nth| {
        // What is left over when the directory could not be removed.
        let _ = fs::remove_dir("/sys/kernel/config/emuv/fail");
        assert!(!Path::new("/dev/emuv0").exists(), "failure {nth} left an instance behind");
    });
    let slice = Slice::with("after", &[("virtual_vram_bytes", "1048576")]);
    assert_unused(0);
    drop(slice);
}

/// A load that fails leaves nothing; one that does not, a module that can be unloaded. Most of what could fail is the kernel's before
/// it calls the module, of which every 16th is enough.
fn failing_load() {
    prepare_failures();
    let load = |parameters| sys::load_module("/emuv.ko", parameters).is_ok();
    let until_refused = that_could_fail(|| assert!(!load("gpu_model=none physical_vram_gb=6")));
    let own = u32::try_from(until_refused.saturating_sub(60)).expect("it is below a million").max(1);
    // Without the memory for its node an instance is there all the same: the kernel makes nodes when it can.
    let all = || load("gpu_model=4090 physical_vram_gb=6 instance_id=0,1") && Path::new("/dev/emuv1").exists();
    each_failing((1..own).step_by(16).chain(own..), all, |nth| {
        let _ = sys::unload_module("emuv");
        for path in ["/sys/module/emuv", "/sys/class/emuv", "/sys/kernel/config/emuv", "/dev/emuv0"] {
            assert!(!Path::new(path).exists(), "failure {nth} left {path} behind");
        }
    });
    sys::unload_module("emuv").expect("the last one was loaded");
    drop(Module::with(6, 1));
}

fn failing_at_random() {
    let _module = Module::with(6, 1);
    prepare_failures();
    for what in FAILURES {
        for (name, value) in [("task-filter", "Y"), ("interval", "1"), ("times", "-1"), ("probability", "3")] {
            inject(what, name, value);
        }
    }
    let mut random = Random::new("failures");
    let (mut survived, mut refused) = (0, 0);
    for _ in 0..60 {
        let seed = random.next();
        let child = Child::run(|| {
            fs::write("/proc/self/make-it-fail", "1").expect("the kernel injects failures");
            let refused = hostile::some_calls(seed, 200);
            std::process::exit(refused.min(100));
        });
        match child.wait() {
            End::Exit(refused_here @ 0..=100) => {
                survived += 1;
                refused += refused_here;
            }
            // What the program itself cannot do without memory.
            End::Exit(101) | End::Signal(libc::SIGBUS | libc::SIGSEGV | libc::SIGABRT | libc::SIGKILL) => {}
            end => panic!("{end:?}"),
        }
    }
    for what in FAILURES {
        inject(what, "probability", "0");
        inject(what, "task-filter", "N");
    }
    println!("  {survived} of 60 programs came to their end; {refused} times one could not open the node");
    assert!(survived > 5 && refused > 0);
    assert_unused(0);
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

/// Asserts how many pages the module itself has allocated: between it and the page there are only the functions that give pages, not
/// the kernel's own caches and tables.
#[track_caller]
fn assert_pages(expected: u64) {
    let giving = ["prep_new_page", "get_page_from_freelist", "alloc_frozen_pages", "alloc_pages", "alloc_page_"];
    let stacks = fs::read_to_string("/sys/kernel/debug/page_owner_stacks/show_stacks").expect("page_owner=on");
    let ours: Vec<&str> = stacks.split("\n\n").filter(|stack| stack.contains("[emuv]")).collect();
    let pages = ours.iter().filter(|stack| {
        let caller = stack.lines().find(|line| !giving.iter().any(|name| line.contains(name)));
        caller.is_some_and(|line| line.contains("[emuv]"))
    });
    let pages = pages.filter_map(|stack| stack.lines().find_map(|line| line.strip_prefix("nr_base_pages: ")));
    let pages: u64 = pages.map(|pages| pages.trim().parse::<u64>().expect("a number")).sum();
    assert_eq!(pages, expected, "of these:\n{}", ours.join("\n\n"));
}

/// The search for leaks does not know whole pages; the kernel's list of their owners does.
fn pages() {
    let _module = Module::with(6, 1);
    // Nothing is left of all the tests before.
    assert_pages(0);
    let node = open(0);
    let mapping = Mapping::new(node.ram(), 0, 2 << 20, true).expect("it can be mapped");
    (0..300).for_each(|page| mapping.set(page * 4096, 1));
    assert_pages(300);
    drop(mapping);
    let buffer = node.export(4 * MIB, MIB).expect("it can be exported");
    drop(node);
    // The buffer keeps what the others left.
    assert_pages(556);
    drop(buffer);
    assert_pages(0);
}

/// An object is not thought leaked before it is some seconds old. So leaks on purpose are made now, and when they are seen all that
/// is older has been looked at as well.
fn leaks() {
    let path = "/sys/kernel/debug/kmemleak";
    let begun = sys::now();
    for (module, bug) in [("planted", "leak"), ("planted_rust", "3")] {
        errno(sys::load_module(&format!("/{module}.ko"), &format!("bug={bug}")));
    }
    loop {
        fs::write(path, "scan").expect("the kernel looks for leaks");
        let found = fs::read_to_string(path).expect("it says what it found");
        let objects: Vec<&str> = found.split("unreferenced object").skip(1).collect();
        let (in_c, others): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| object.contains("planted in C"));
        let (in_rust, others): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|object| object.contains("planted in Rust"));
        // Some of the 64 are found through what registers and stacks still hold.
        if in_c.len() > 32 && in_rust.len() > 32 {
            println!("  found {} leaks in C, {} in Rust", in_c.len(), in_rust.len());
            assert!(others.is_empty(), "{}", others.join("\n"));
            return;
        }
        assert!((sys::now() - begun).as_secs() < 300, "found {} in C, {} in Rust", in_c.len(), in_rust.len());
    }
}

fn planted(module: &str, bug: &str, complaint: &str) {
    let next_record = log_from(0).last().map_or(0, |(number, _)| number + 1);
    errno(sys::load_module(&format!("/{module}.ko"), &format!("bug={bug}")));
    let new = log_from(next_record);
    assert!(new.iter().any(|(_, text)| text.contains(complaint)), "'{complaint}'");
    // Where, as the kernel says it.
    assert!(new.iter().any(|(_, text)| text.contains(&format!("[{module}]"))), "it names the place");
}
