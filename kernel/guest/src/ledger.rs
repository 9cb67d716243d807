//! Charges, their limits, what waiters are told, what is left of a process that is gone.

use std::{
    fs::{self, File},
    io,
    time::Duration,
};

use emuv_kernel_client::{Amount, Ledger as _, News, Node, Refused};
use emuv_uapi::abi;

use crate::{
    Test,
    machine::{GIB, MIB, Module, assert_unused, errno, number, open, set},
    sys::{self, Child, End, Line},
};

pub const TESTS: &[Test] = &[
    ("charges are all or nothing, exact, and end with the file", charges),
    ("a killed process's share is back at once", killed),
    ("forked descriptors are one account; the last close counts", forked),
    ("limits change live: poll, uevent, nobody loses anything", limits),
    ("who was refused is woken when it would fit", woken),
    ("an administrator's dmem.max holds", dmem_cgroup),
    ("another version, flags, sizes, numbers, addresses are refused", wrong_calls),
];

/// Longer than anything here takes; only a failure waits so long.
const LONG: Duration = Duration::from_secs(60);

pub fn both(vram_bytes: u64, ram_bytes: u64) -> Amount {
    Amount { vram_bytes, ram_bytes }
}

fn charges() {
    let _module = Module::with(6, 2);
    let (one, other) = (open(0), open(0));
    assert_eq!(one.charge(both(5 * GIB, GIB)).expect("there is room"), both(GIB, GIB));
    let Err(Refused::NoRoom(left)) = other.charge(both(2 * GIB, 1)) else { panic!("there is no room") };
    assert_eq!(left, both(GIB, GIB));
    let Err(Refused::NoRoom(_)) = other.charge(both(1, GIB + 1)) else { panic!("both or neither") };
    let Err(Refused::Failed(error)) = other.charge(both(u64::MAX, 0)) else { panic!("that is no amount") };
    assert_eq!(error.raw_os_error(), Some(libc::EOVERFLOW));
    other.charge(both(GIB, GIB)).expect("exactly what is left");
    assert_eq!(errno(other.release(both(GIB + 1, 0))), libc::EINVAL, "more than it holds, though others hold more");
    let query = one.query().expect("it answers");
    assert_eq!((query.own_vram_bytes, query.own_ram_bytes), (5 * GIB, GIB));
    assert_eq!((query.vram_used_bytes, query.ram_used_bytes, query.holders), (6 * GIB, 2 * GIB, 2));
    assert_eq!((query.vram_limit_bytes, query.ram_limit_bytes), (6 * GIB, 2 * GIB));
    assert!(query.gpu.starts_with(b"NVIDIA GeForce RTX 4090\0"));
    drop(one);
    assert_eq!((number(0, "physical_used_bytes"), number(0, "holders")), (GIB, 1));
    drop(other);
    assert_unused(0);
    assert_eq!(number(0, "physical_peak_bytes"), 6 * GIB);
}

fn killed() {
    let _module = Module::with(6, 2);
    let ready = Line::new();
    let child = Child::run(|| {
        let node = open(0);
        node.charge(both(6 * GIB, GIB)).expect("there is room");
        let ram = sys::Mapping::new(node.ram(), 0, 1 << 20, true).expect("it can be mapped");
        (0..256).for_each(|page| ram.set(page * 4096, 1));
        ready.say();
        sys::forever();
    });
    ready.hear();
    assert_eq!(number(0, "virtual_used_bytes"), GIB + MIB);
    child.kill();
    assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
    assert_unused(0);
}

fn forked() {
    let _module = Module::with(6, 2);
    let node = open(0);
    node.charge(both(GIB, 0)).expect("there is room");
    let (go_on, charged) = (Line::new(), Line::new());
    let child = Child::run(|| {
        node.charge(both(GIB, 0)).expect("it is the same account");
        charged.say();
        go_on.hear();
        assert_eq!(node.query().expect("it answers").own_vram_bytes, 2 * GIB);
        sys::forever();
    });
    charged.hear();
    assert_eq!((number(0, "physical_used_bytes"), number(0, "holders")), (2 * GIB, 1));
    go_on.say();
    drop(node);
    assert_eq!(number(0, "physical_used_bytes"), 2 * GIB, "the child has it open");
    child.kill();
    child.wait();
    assert_unused(0);
}

fn limits() {
    let _module = Module::with(6, 2);
    let node = open(0);
    let mut uevents = sys::Uevents::listen();
    node.charge(both(5 * GIB, 0)).expect("there is room");
    assert_eq!(node.wait(false, Duration::ZERO).expect("it answers"), News::default());
    set(0, "physical_bytes", 4 * GIB).expect("root may");
    assert!(node.wait(false, LONG).expect("it answers").limits);
    let event = uevents.next();
    assert!(event.starts_with("change@") && event.contains("EMUV_EVENT=limits"), "{event}");
    let query = node.query().expect("it answers");
    assert_eq!((query.vram_limit_bytes, query.vram_used_bytes, query.generation), (4 * GIB, 5 * GIB, 1));
    assert_eq!(node.wait(false, Duration::ZERO).expect("it answers"), News::default(), "it has been seen");
    assert!(matches!(node.charge(both(1, 0)), Err(Refused::NoRoom(left)) if left == both(0, 2 * GIB)));
    for (name, value, expected) in [
        ("physical_bytes", 0, libc::EINVAL),
        ("physical_bytes", 25 * GIB, libc::ERANGE),
        ("physical_bytes", u64::MAX, libc::ERANGE),
        ("virtual_bytes", u64::MAX, libc::ENOMEM),
    ] {
        assert_eq!(errno(set(0, name, value)), expected, "{name} {value}");
    }
    assert_eq!(errno(fs::write("/sys/class/emuv/emuv0/virtual_bytes", "much")), libc::EINVAL);
    assert_eq!(node.query().expect("it answers").generation, 1, "what is refused changes nothing");
    set(0, "virtual_bytes", 0).expect("none is a share too");
    assert_eq!(node.query().expect("it answers").ram_limit_bytes, 0);
}

fn woken() {
    let _module = Module::with(6, 2);
    let holder = open(0);
    holder.charge(both(6 * GIB, 0)).expect("there is room");
    let refused = Line::new();
    let child = Child::run(|| {
        let node = open(0);
        assert!(matches!(node.charge(both(2 * GIB, 0)), Err(Refused::NoRoom(_))));
        refused.say();
        while !node.wait(true, LONG).expect("it answers").room {}
        node.charge(both(2 * GIB, 0)).expect("nobody else takes it");
    });
    refused.hear();
    holder.release(both(GIB, 0)).expect("it is held");
    holder.release(both(GIB, 0)).expect("it is held");
    assert_eq!(child.wait(), End::Exit(0));
}

fn dmem_cgroup() {
    let root = "/sys/fs/cgroup";
    let controllers = fs::read_to_string(format!("{root}/cgroup.controllers")).expect("it is mounted");
    if !controllers.split_whitespace().any(|name| name == "dmem") {
        println!("  (left out: this kernel has no dmem controller)");
        return;
    }
    let _module = Module::with(6, 1);
    fs::write(format!("{root}/cgroup.subtree_control"), "+dmem").expect("the controller is there");
    let capacity = fs::read_to_string(format!("{root}/dmem.capacity")).expect("it is there");
    assert!(capacity.contains(&format!("emuv/emuv0 {}", 6 * GIB)), "{capacity}");
    let group = format!("{root}/tenant");
    fs::create_dir(&group).expect("a group");
    fs::write(format!("{group}/dmem.max"), format!("emuv/emuv0 {GIB}")).expect("root may");
    let current = || fs::read_to_string(format!("{group}/dmem.current")).expect("it is there");
    let ready = Line::new();
    let child = Child::run(|| {
        fs::write(format!("{group}/cgroup.procs"), std::process::id().to_string()).expect("root may");
        let node = open(0);
        assert!(matches!(node.charge(both(GIB + 1, 0)), Err(Refused::Cgroup)));
        node.charge(both(GIB, 0)).expect("exactly its maximum");
        assert!(matches!(node.charge(both(1, 0)), Err(Refused::Cgroup)));
        node.release(both(GIB / 2, 0)).expect("it is held");
        ready.say();
        sys::forever();
    });
    ready.hear();
    assert!(current().contains(&format!("emuv/emuv0 {}", GIB / 2)), "{}", current());
    assert_eq!((number(0, "physical_used_bytes"), number(0, "physical_peak_bytes")), (GIB / 2, GIB));
    open(0).charge(both(5 * GIB, 0)).expect("who is in another group has the slice's room");
    child.kill();
    child.wait();
    assert!(current().contains("emuv/emuv0 0"), "{}", current());
    assert_unused(0);
    fs::remove_dir(group).expect("nobody is in it");
}

fn wrong_calls() {
    let _module = Module::with(6, 2);
    let node = open(0);
    let file: &File = node.ram();
    let call = |command: u32, version: u32, flags: u32| {
        let mut argument = [0; 32];
        argument[0] = u64::from(version) | u64::from(flags) << 32;
        argument[1] = 1;
        sys::raw_ioctl(file, command, Some(&mut argument))
    };
    for command in [abi::CHARGE, abi::RELEASE, abi::QUERY, abi::EXPORT] {
        for version in [0, 2, u32::MAX] {
            assert_eq!(call(command, version, 0), Err(libc::EPROTONOSUPPORT));
        }
        assert_eq!(call(command, abi::VERSION, 1), Err(libc::EINVAL));
        assert_eq!(sys::raw_ioctl(file, command, None), Err(libc::EFAULT));
        // Another size is another call.
        for other in [command + (8 << 16), command ^ (1 << 30), command ^ (1 << 8), command + 0x40] {
            assert_eq!(call(other, abi::VERSION, 0), Err(libc::ENOTTY), "{other:#x}");
        }
    }
    let query = node.query().expect("it answers");
    assert_eq!((query.vram_used_bytes, query.ram_used_bytes), (0, 0));
    // The text is no account.
    let info = File::open("/dev/emuv").expect("it opens");
    assert_eq!(sys::raw_ioctl(&info, abi::QUERY, Some(&mut [0; 32])), Err(libc::ENOTTY));
    assert!(
        File::options().write(true).open("/dev/emuv").and_then(|mut file| io::Write::write(&mut file, b"x")).is_err()
    );
    assert!(Node::open("/dev/emuv0".as_ref()).is_ok() && Node::open("/dev/null".as_ref()).is_err());
}
