//! Module parameters, nodes, the article's examples.

use std::{fs, path::Path};

use emuv_kernel_client::{Amount, Ledger as _};

use crate::{
    Test,
    configfs::Slice,
    machine::{self, MIB, Module, assert_unused, attribute, errno, log, open},
    sys,
};

pub const TESTS: &[Test] = &[
    ("the article's command line", articles_command_line),
    ("the article's four instances, in one load", four_instances),
    ("a mistake in a parameter makes nothing and says why", mistakes),
    ("the module stays while a file is open", open_file_keeps_module),
    ("each attribute says what its name says", attributes),
    ("no parameters, no instance", no_parameters),
    ("loaded and unloaded, again and again", again_and_again),
];

fn articles_command_line() {
    let parameters = "gpu_model=4070 physical_vram_gb=12 virtual_vram_gb=4";
    println!("# insmod emuv.ko {parameters}");
    let module = Module::load(parameters).expect("the article's example loads");
    println!("# cat /sys/class/emuv/emuv/vram_info");
    let info = fs::read_to_string("/sys/class/emuv/emuv/vram_info").expect("the article's file");
    print!("{info}");
    let article =
        "GPU: NVIDIA GeForce RTX 4070\nTotal VRAM: 16 GB\nPhysical VRAM: 12 GB\nVirtual VRAM: 4 GB\nAllocation: Lazy\n";
    assert!(info.starts_with(article));
    assert_eq!(attribute(0, "vram_info"), info.trim_end());
    assert_eq!(fs::read_to_string("/dev/emuv").expect("cat /dev/emuv"), info);
    let mode =
        |path: &str| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).expect("it is there").permissions());
    assert_eq!((mode("/dev/emuv0") & 0o777, mode("/dev/emuv") & 0o777), (0o600, 0o444));
    drop(module);
    assert!(!Path::new("/dev/emuv").exists());
}

fn four_instances() {
    let parameters = "gpu_model=4090 physical_vram_gb=6 virtual_vram_gb=2 instance_id=1,2,3,4";
    println!("# insmod emuv.ko {parameters}");
    let _module = Module::load(parameters).expect("four instances");
    let mut names: Vec<String> = fs::read_dir("/sys/class/emuv")
        .expect("the class is there")
        .map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    println!("# ls /sys/class/emuv\n{}", names.join(" "));
    assert_eq!(names, ["emuv1", "emuv2", "emuv3", "emuv4"]);
    for id in 1..=4 {
        println!("# cat /sys/class/emuv/emuv{id}/vram_info");
        println!("{}", attribute(id, "vram_info"));
        assert_eq!(open(id).query().expect("the node answers").instance_id, id);
    }
    assert!(!Path::new("/dev/emuv").exists(), "four are not one");
}

fn mistakes() {
    let good = "gpu_model=4070 physical_vram_gb=12";
    let cases = [
        ("gpu_model=4071 physical_vram_gb=12", libc::ENODEV, "gpu_model=4071 is not known"),
        ("physical_vram_gb=12", libc::EINVAL, "gpu_model is missing"),
        ("gpu_model=4070", libc::EINVAL, "physical_vram_gb is missing"),
        ("gpu_model=4070 physical_vram_gb=0", libc::EINVAL, "physical_vram_gb is 0"),
        (
            "gpu_model=4070 physical_vram_gb=13",
            libc::ERANGE,
            "13 GB is more than the NVIDIA GeForce RTX 4070 has (12 GB)",
        ),
        ("gpu_model=4070 physical_vram_gb=99999999999", libc::ERANGE, ""),
        ("gpu_model=4070 physical_vram_gb=-1", libc::EINVAL, ""),
        (
            "gpu_model=4070 physical_vram_gb=12 virtual_vram_gb=4000",
            libc::ENOMEM,
            "4000 GB is more RAM than this machine has",
        ),
        ("gpu_model=4070 physical_vram_gb=4 instance_id=3,3", libc::EBUSY, "instance_id=3 is taken"),
        ("gpu_model=4070 physical_vram_gb=4 instance_id=64", libc::ERANGE, "instance_id=64 is too high"),
        (
            "gpu_model=4070 physical_vram_gb=4,5 instance_id=1,2,3",
            libc::EINVAL,
            "physical_vram_gb has 2 values for 3 instances",
        ),
        ("gpu_model=4070 physical_vram_gb=4 lazy_allocation=maybe", libc::EINVAL, ""),
        // The last of three cannot be made: the first two are not left behind.
        ("gpu_model=4070,4070,9 physical_vram_gb=4", libc::ENODEV, "gpu_model=9 is not known"),
        // More than is free.
        (
            "gpu_model=4070 physical_vram_gb=4 virtual_vram_gb=3 instance_id=0,1 lazy_allocation=0",
            libc::ENOMEM,
            "6 GB of RAM are not free",
        ),
    ];
    for (parameters, expected, line) in cases {
        assert_eq!(errno(Module::load(parameters)), expected, "{parameters}");
        assert!(log().contains(line), "{parameters}: the log says '{line}'");
        assert!(!Path::new("/sys/class/emuv").exists() && !Path::new("/sys/module/emuv").exists(), "{parameters}");
    }
    drop(Module::load(good).expect("after all that it loads"));
}

fn open_file_keeps_module() {
    let module = Module::with(6, 1);
    for path in ["/dev/emuv0", "/dev/emuv"] {
        let file = fs::File::open(path).expect("it opens");
        assert_eq!(errno(sys::unload_module("emuv")), libc::EWOULDBLOCK, "{path} is open");
        drop(file);
    }
    let node = open(0);
    let mapping = sys::Mapping::new(node.ram(), 0, 4096, true).expect("it can be mapped");
    let buffer = node.export(0, 4096).expect("it can be exported");
    drop(node);
    assert_eq!(errno(sys::unload_module("emuv")), libc::EWOULDBLOCK, "it is mapped and exported");
    drop(mapping);
    assert_eq!(errno(sys::unload_module("emuv")), libc::EWOULDBLOCK, "it is exported");
    drop(buffer);
    drop(module);
}

fn attributes() {
    let _module = Module::with(6, 2);
    let node = open(0);
    let shown = [
        "gpu",
        "label",
        "instance_id",
        "total_bytes",
        "physical_bytes",
        "virtual_bytes",
        "physical_used_bytes",
        "virtual_used_bytes",
        "physical_peak_bytes",
        "virtual_peak_bytes",
        "resident_bytes",
        "holders",
        "generation",
    ];
    let charge = Amount { vram_bytes: 100, ram_bytes: 50 };
    node.charge(charge).expect("there is room");
    node.release(charge).expect("it is held");
    node.charge(Amount { vram_bytes: 7, ram_bytes: 5 }).expect("there is room");
    sys::Mapping::new(node.ram(), 0, 4096, true).expect("it can be mapped").set(0, 1);
    let expected = [
        "NVIDIA GeForce RTX 4090",
        "",
        "0",
        "8589934592",
        "6442450944",
        "2147483648",
        "7",
        "4101",
        "100",
        "4101",
        "4096",
        "1",
        "0",
    ];
    for (name, expected) in shown.into_iter().zip(expected) {
        assert_eq!(attribute(0, name), expected, "{name}");
    }
    assert!(fs::write("/sys/class/emuv/emuv0/holders", "1").is_err(), "what is counted cannot be written");
}

fn no_parameters() {
    let module = Module::load("").expect("it loads");
    assert_eq!(fs::read_dir("/sys/class/emuv").expect("the class is there").count(), 0);
    drop(module);
}

fn again_and_again() {
    for round in 0..machine::times(200).min(40) {
        let module = if round % 2 == 0 { Module::load("").expect("it loads") } else { Module::with(6, 1) };
        let slice = Slice::with("again", &[("instance_id", "5"), ("virtual_vram_bytes", "1048576")]);
        let node = open(5);
        node.charge(Amount { vram_bytes: MIB, ram_bytes: MIB / 2 }).expect("there is room");
        sys::Mapping::new(node.ram(), 0, 4096, true).expect("it can be mapped").set(0, 1);
        assert_eq!(errno(sys::unload_module("emuv")), libc::EWOULDBLOCK, "it is open");
        drop(node);
        assert_unused(5);
        drop((slice, module));
    }
}
