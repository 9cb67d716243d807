//! What a call costs, and how soon a killed process's share is back. Under emulation the ratio to another call is what counts.

use std::{fs::File, time::Duration};

use emuv_kernel_client::{Amount, Ledger as _, Refused};

use crate::{
    Test,
    machine::{GIB, Module, assert_unused, number, open, times},
    sys::{self, Child, Line, Mapping},
};

pub const TESTS: &[Test] = &[("measured: calls", calls), ("measured: kill to release", kill_to_release)];

fn each(what: &str, often: u32, mut f: impl FnMut()) {
    let (often, begun) = (times(often), sys::now());
    (0..often).for_each(|_| f());
    println!("  {what}: {} ns", ((sys::now() - begun) / often).as_nanos());
}

fn calls() {
    let _module = Module::with(6, 1);
    let node = open(0);
    let amount = Amount { vram_bytes: 4096, ram_bytes: 4096 };
    each("getppid", 50_000, sys::nothing_call);
    each("ioctl that is refused at once", 50_000, || {
        let _ = sys::raw_ioctl(node.ram(), 0, None);
    });
    each("charge and release, two calls", 50_000, || {
        node.charge(amount).expect("there is room");
        node.release(amount).expect("it is held");
    });
    each("query", 50_000, || {
        node.query().expect("it answers");
    });
    each("open and close of the node", 5_000, || drop(File::open("/dev/emuv0").expect("it opens")));
    each("open and close of /dev/null", 5_000, || drop(File::open("/dev/null").expect("it opens")));
    let mapping = Mapping::new(node.ram(), 0, 32 << 20, true).expect("it can be mapped");
    let mut page = 0;
    each("first touch of a page", 8192, || {
        mapping.set(page * 4096, 1);
        page += 1;
    });
}

fn kill_to_release() {
    let _module = Module::with(6, 1);
    let often = times(200);
    let took: Vec<Duration> = (0..often)
        .map(|_| {
            let ready = Line::new();
            let child = Child::run(|| {
                let node = open(0);
                node.charge(Amount { vram_bytes: 6 * GIB, ram_bytes: 0 }).expect("there is room");
                ready.say();
                sys::forever();
            });
            ready.hear();
            let waiter = open(0);
            assert!(matches!(waiter.charge(Amount { vram_bytes: GIB, ram_bytes: 0 }), Err(Refused::NoRoom(_))));
            let killed = sys::now();
            child.kill();
            while !waiter.wait(true, Duration::from_secs(60)).expect("it answers").room {}
            let took = sys::now() - killed;
            waiter.charge(Amount { vram_bytes: 6 * GIB, ram_bytes: 0 }).expect("all of it is back");
            child.wait();
            took
        })
        .collect();
    // The clock of such a machine ticks every 4 ms, so only the mean says something.
    let mean = took.iter().sum::<Duration>() / often;
    println!("  SIGKILL to a waiter that is told of room: mean {mean:?}, slowest {:?}", took.iter().max());
    assert_unused(0);
    assert_eq!(number(0, "physical_peak_bytes"), 6 * GIB);
}
