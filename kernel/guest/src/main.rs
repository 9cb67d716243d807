//! The first process of a virtual machine that tests `emuv.ko`: mounts what a Linux has, runs the tests one after another,
//! prints `GUEST OK` at the end if all passed, ends the machine. `kernel/ci/boot` starts it and reads the log as well.
//!
//! Nothing here waits by time. Random tests print their seed, which `emuv_seed=N` on the kernel's command line sets.

// What the tests need of a panic is that it names the place.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod configfs;
mod debug;
mod hostile;
mod ledger;
mod load;
mod machine;
mod measure;
mod ram;
mod real;
mod storm;
mod sys;

use std::panic::catch_unwind;

type Test = (&'static str, fn());

fn main() {
    if std::process::id() != 1 {
        eprintln!("emuv-guest is the first process of a virtual machine and ends it; kernel/ci/boot starts one");
        std::process::exit(2);
    }
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("cgroup2", "/sys/fs/cgroup")] {
        sys::mount(kind, at).unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
    machine::load_others("configfs");
    sys::mount("configfs", "/sys/kernel/config").expect("configfs mounts");

    let all = [load::TESTS, ledger::TESTS, ram::TESTS, configfs::TESTS, measure::TESTS, storm::TESTS, hostile::TESTS];
    let mut tests: Vec<&Test> = all.into_iter().flatten().collect();
    if real::is_here() {
        tests.extend(real::TESTS);
    }
    if debug::is_here() {
        sys::mount("debugfs", "/sys/kernel/debug").expect("debugfs mounts");
        tests.extend(debug::TESTS.iter().chain(debug::PLANTED));
    }
    let wanted = machine::boot_option("emuv_test").unwrap_or_default();
    tests.retain(|(name, _)| name.contains(&wanted));
    let mut log = Log::default();
    let mut failed = 0;
    for (name, test) in &tests {
        let begun = sys::now();
        let passed = catch_unwind(test).is_ok() & (log.is_clean() || name.starts_with("planted:"));
        println!("{} {name} ({} ms)", if passed { "ok" } else { "FAILED" }, (sys::now() - begun).as_millis());
        failed += u32::from(!passed);
        if !passed {
            // What it left behind.
            let _ = sys::unload_module("emuv");
        }
    }
    if failed == 0 {
        println!("GUEST OK: {} tests", tests.len());
    } else {
        println!("GUEST FAILED: {failed} of {} tests", tests.len());
    }
    sys::power_off();
}

/// The kernel's log, from test to test.
#[derive(Default)]
struct Log {
    next_record: u64,
}

impl Log {
    /// Whether the kernel has not complained since the last look, nor said more than it keeps. The lines that show one are printed.
    fn is_clean(&mut self) -> bool {
        let complaints = [
            "BUG",
            "WARNING:",
            "Oops",
            "KASAN",
            "UBSAN",
            "general protection",
            "possible circular",
            "possible recursive",
            "suspicious RCU",
            "inconsistent lock",
            "invalid wait context",
            "held lock freed",
            "refcount_t:",
            "corruption",
            "panicked",
            "blocked for more",
            "detected stall",
            "soft lockup",
            "Bad page",
            "bad page",
            "new suspected memory leaks",
        ];
        let new = machine::log_from(self.next_record);
        let lost = new.first().is_some_and(|(number, _)| *number > self.next_record && self.next_record > 0);
        let bad: Vec<&String> =
            new.iter().map(|(_, text)| text).filter(|text| complaints.iter().any(|word| text.contains(word))).collect();
        bad.iter().for_each(|text| println!("log: {}", text.trim_end()));
        if lost {
            println!("log: (more than the kernel keeps)");
        }
        self.next_record = new.last().map_or(self.next_record, |(number, _)| number + 1);
        bad.is_empty() && !lost
    }
}
