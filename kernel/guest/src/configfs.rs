//! Instances at run time.

use std::{fs, io, io::Read, path::Path, time::Duration};

use emuv_kernel_client::{Amount, Ledger as _, News, Refused};

use crate::{
    Test,
    machine::{GIB, Module, PAGE_BYTES, attribute, errno, log, number, open, set},
    sys,
};

pub const TESTS: &[Test] = &[
    ("an instance comes and goes", comes_and_goes),
    ("its limits change live", live),
    ("removed while it is open: holders keep what they have and get no more", removed),
    ("mistakes leave the directory as it was", mistakes),
    ("an attribute that is open holds the module", open_attribute),
];

const ROOT: &str = "/sys/kernel/config/emuv";

fn write(name: &str, attribute: &str, value: &str) -> io::Result<()> {
    fs::write(format!("{ROOT}/{name}/{attribute}"), format!("{value}\n"))
}

fn read(name: &str, attribute: &str) -> String {
    fs::read_to_string(format!("{ROOT}/{name}/{attribute}")).expect("it can be read").trim_end().to_owned()
}

/// A directory, removed when dropped.
pub struct Slice(&'static str);

impl Slice {
    /// `mkdir`
    pub fn new(name: &'static str) -> Self {
        fs::create_dir(format!("{ROOT}/{name}")).expect("mkdir");
        Self(name)
    }

    /// An instance with 6 GB of a 4090's VRAM and these attributes, enabled.
    pub fn with(name: &'static str, attributes: &[(&str, &str)]) -> Self {
        let slice = Self::new(name);
        let always = [("gpu_model", "4090"), ("physical_vram_bytes", "6442450944")];
        for (attribute, value) in always.iter().chain(attributes).chain(&[("enable", "1")]) {
            slice.write(attribute, value).unwrap_or_else(|error| panic!("{attribute}={value}: {error}"));
        }
        slice
    }

    fn enabled(name: &'static str) -> Self {
        Self::with(name, &[("virtual_vram_bytes", "2147483648")])
    }

    /// Writes an attribute.
    pub fn write(&self, attribute: &str, value: &str) -> io::Result<()> {
        write(self.0, attribute, value)
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        let removed = fs::remove_dir(format!("{ROOT}/{}", self.0));
        if !std::thread::panicking() {
            removed.expect("rmdir");
        }
    }
}

fn comes_and_goes() {
    let module = Module::load("").expect("it loads");
    assert_eq!(fs::read_to_string(format!("{ROOT}/version")).expect("it is there"), "1\n");
    let one = Slice::enabled("ml-1");
    let other = Slice::new("ml-2");
    write("ml-2", "gpu_model", "a100").expect("it is known");
    write("ml-2", "physical_vram_bytes", "42949672960").expect("40 GB");
    write("ml-2", "instance_id", "9").expect("it is free");
    write("ml-2", "lazy_allocation", "1").expect("it is 0 or 1");
    write("ml-2", "enable", "1").expect("it is complete");
    assert_eq!((attribute(0, "label"), attribute(9, "label")), ("ml-1".into(), "ml-2".into()));
    assert_eq!(
        (read("ml-1", "instance_id"), read("ml-1", "gpu_model")),
        ("0".into(), "NVIDIA GeForce RTX 4090".into())
    );
    assert_eq!((number(9, "physical_bytes"), number(9, "virtual_bytes")), (40 * GIB, 0));
    assert!(open(0).query().expect("it answers").label.starts_with(b"ml-1\0"));
    for fixed in [("gpu_model", "4070"), ("instance_id", "3"), ("lazy_allocation", "0")] {
        assert_eq!(errno(write("ml-1", fixed.0, fixed.1)), libc::EBUSY, "{fixed:?}");
    }
    write("ml-1", "enable", "0").expect("it is enabled");
    assert!(!Path::new("/dev/emuv0").exists() && !Path::new("/sys/class/emuv/emuv0").exists());
    write("ml-1", "enable", "1").expect("again");
    assert!(Path::new("/dev/emuv0").exists());
    assert_eq!(errno(sys::unload_module("emuv")), libc::EWOULDBLOCK, "directories hold the module");
    drop((one, other));
    assert!(!Path::new("/dev/emuv0").exists() && !Path::new("/dev/emuv9").exists());
    drop(module);
}

fn live() {
    let _module = Module::load("").expect("it loads");
    let _slice = Slice::enabled("ml-1");
    let node = open(0);
    write("ml-1", "virtual_vram_bytes", "4096").expect("root may");
    assert!(node.wait(false, Duration::from_secs(60)).expect("it answers").limits);
    assert_eq!(node.query().expect("it answers").ram_limit_bytes, PAGE_BYTES);
    assert_eq!(errno(write("ml-1", "physical_vram_bytes", "99999999999999")), libc::ERANGE);
    assert_eq!((read("ml-1", "physical_vram_bytes"), number(0, "physical_bytes")), ("6442450944".into(), 6 * GIB));
    set(0, "physical_bytes", GIB).expect("root may");
    assert_eq!(read("ml-1", "physical_vram_bytes"), GIB.to_string(), "there is one truth");
    write("ml-1", "enable", "0").expect("it is enabled");
    write("ml-1", "enable", "1").expect("again");
    assert_eq!(number(0, "physical_bytes"), GIB);
}

fn removed() {
    let module = Module::load("").expect("it loads");
    let slice = Slice::enabled("ml-1");
    let node = open(0);
    let mapping = sys::Mapping::new(node.ram(), 0, 8192, true).expect("it can be mapped");
    mapping.set(0, 5);
    node.charge(Amount { vram_bytes: GIB, ram_bytes: 0 }).expect("there is room");
    drop(slice);
    assert!(!Path::new("/dev/emuv0").exists());
    let news = node.wait(true, Duration::from_secs(60)).expect("it answers");
    assert_eq!(news, News { removed: true, room: true, limits: false });
    assert!(matches!(node.charge(Amount { vram_bytes: 1, ram_bytes: 0 }), Err(Refused::Removed)));
    assert_eq!((mapping.get(0), node.query().expect("it answers").own_vram_bytes), (5, GIB));
    let child = sys::Child::run(|| mapping.set(4096, 1));
    assert_eq!(child.wait(), sys::End::Signal(libc::SIGBUS));
    node.release(Amount { vram_bytes: GIB, ram_bytes: 0 }).expect("it is held");
    // Another of the same number is another.
    let _slice = Slice::enabled("ml-2");
    assert_eq!(number(0, "holders"), 0);
    assert_eq!(open(0).query().expect("it answers").resident_bytes, 0);
    drop((node, mapping));
    drop(_slice);
    drop(module);
}

fn mistakes() {
    let _module = Module::with(6, 1);
    let _slice = Slice::new("ml-1");
    assert_eq!(errno(write("ml-1", "enable", "1")), libc::EINVAL);
    assert!(log().contains("gpu_model is missing"));
    assert_eq!(errno(write("ml-1", "gpu_model", "3dfx")), libc::ENODEV);
    write("ml-1", "gpu_model", "RTX 4070 Ti").expect("it is known");
    assert_eq!(errno(write("ml-1", "enable", "1")), libc::EINVAL, "no VRAM");
    for text in ["", "-1", "1 GB", "18446744073709551616", "\u{e9}"] {
        assert_eq!(errno(write("ml-1", "physical_vram_bytes", text)), libc::EINVAL, "{text}");
    }
    write("ml-1", "physical_vram_bytes", &(13 * GIB).to_string()).expect("it is a number");
    assert_eq!(errno(write("ml-1", "enable", "1")), libc::ERANGE);
    write("ml-1", "physical_vram_bytes", &(12 * GIB).to_string()).expect("it is a number");
    write("ml-1", "virtual_vram_bytes", &(4000 * GIB).to_string()).expect("it is a number");
    assert_eq!(errno(write("ml-1", "enable", "1")), libc::ENOMEM);
    write("ml-1", "virtual_vram_bytes", "0").expect("it is a number");
    assert_eq!(errno(write("ml-1", "instance_id", "64")), libc::ERANGE);
    write("ml-1", "instance_id", "0").expect("it is a number");
    assert_eq!(errno(write("ml-1", "enable", "1")), libc::EBUSY, "the parameters made it");
    assert_eq!(errno(write("ml-1", "enable", "2")), libc::EINVAL);
    let long = format!("{ROOT}/{}", "x".repeat(64));
    assert_eq!(errno(fs::create_dir(long)), libc::ENAMETOOLONG);
    write("ml-1", "instance_id", "1").expect("it is free");
    write("ml-1", "enable", "1").expect("now it is right");
    assert_eq!(number(1, "total_bytes"), 12 * GIB);
}

fn open_attribute() {
    let module = Module::load("").expect("it loads");
    let slice = Slice::enabled("ml-1");
    let mut file = fs::File::open(format!("{ROOT}/ml-1/gpu_model")).expect("it opens");
    drop(slice);
    assert_eq!(errno(sys::unload_module("emuv")), libc::EWOULDBLOCK, "its file is open");
    assert!(file.read(&mut [0; 64]).is_err(), "its directory is gone");
    drop(file);
    drop(module);
}
