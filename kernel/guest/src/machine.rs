//! The virtual machine: what it must have before a test, what it must not have after.

use std::{fs, io, path::Path};

use emuv_kernel_client::Node;

use crate::{debug, sys};

/// Bytes of a GiB.
pub const GIB: u64 = 1 << 30;
/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;

/// The module, loaded; taken out again when dropped.
#[derive(Debug)]
pub struct Module;

impl Module {
    /// `insmod emuv.ko parameters`
    pub fn load(parameters: &str) -> io::Result<Self> {
        sys::load_module("/emuv.ko", parameters).map(|()| Self)
    }

    /// With an instance 0 of a 4090.
    pub fn with(physical_gb: u32, virtual_gb: u32) -> Self {
        Self::load(&format!("gpu_model=4090 physical_vram_gb={physical_gb} virtual_vram_gb={virtual_gb}"))
            .expect("the module loads")
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let unloaded = sys::unload_module("emuv");
        // A test that failed may hold files.
        if !std::thread::panicking() {
            unloaded.expect("nothing holds the module when a test ends");
            assert!(!Path::new("/sys/class/emuv").exists() && !Path::new("/dev/emuv0").exists());
        }
    }
}

/// Loads one of the kernel's own modules with what it needs, if it came with the machine: elsewhere it is built in.
pub fn load_others(name: &str) {
    let list = fs::read_to_string(format!("/modules/{name}.list")).unwrap_or_default();
    for path in list.lines() {
        sys::load_module(path, "").unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

/// An option of the kernel's command line.
pub fn boot_option(name: &str) -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").expect("it is mounted");
    let mut words = line.split_whitespace().filter_map(|word| word.split_once('='));
    words.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

/// The node of an instance, opened.
pub fn open(instance_id: u32) -> Node {
    Node::open(&Node::path(instance_id)).unwrap_or_else(|error| panic!("/dev/emuv{instance_id} opens: {error}"))
}

/// An attribute of an instance.
pub fn attribute(instance_id: u32, name: &str) -> String {
    let path = format!("/sys/class/emuv/emuv{instance_id}/{name}");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim_end().to_owned()
}

/// An attribute that is a number.
pub fn number(instance_id: u32, name: &str) -> u64 {
    attribute(instance_id, name).parse().expect("a number")
}

/// Writes an attribute.
pub fn set(instance_id: u32, name: &str, value: u64) -> io::Result<()> {
    fs::write(format!("/sys/class/emuv/emuv{instance_id}/{name}"), format!("{value}\n"))
}

/// The error number of a failure.
#[track_caller]
pub fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.expect_err("this is refused").raw_os_error().expect("the kernel's error")
}

/// The ledger of an instance that nobody has open: nothing is used.
#[track_caller]
pub fn assert_unused(instance_id: u32) {
    let used = ["physical_used_bytes", "virtual_used_bytes", "resident_bytes", "holders"];
    assert_eq!(used.map(|name| number(instance_id, name)), [0; 4], "used, resident, holders of emuv{instance_id}");
}

/// The kernel's log so far.
pub fn log() -> String {
    log_from(0).into_iter().map(|(_, text)| text).collect()
}

/// The kernel's log from its record number `first` on, each with its number. What the kernel has thrown away by then is not there:
/// the first number is higher.
pub fn log_from(first: u64) -> Vec<(u64, String)> {
    use std::{io::Read, os::unix::fs::OpenOptionsExt};
    let mut file =
        fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").expect("the log opens");
    let mut records = Vec::new();
    let mut record = [0; 8192];
    loop {
        match file.read(&mut record) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]).into_owned();
                let number = text.split(',').nth(1).and_then(|number| number.parse().ok());
                let number: u64 = number.expect("a record begins with its priority and its number");
                if number >= first {
                    records.push((number, text));
                }
            }
            // Thrown away while it was read: the next read goes on with what there is.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => return records,
        }
    }
}

/// How often a test repeats something. Everything takes long in the debug kernel.
pub fn times(often: u32) -> u32 {
    if debug::is_here() { often.div_ceil(20) } else { often }
}

/// A figure of /proc/meminfo, kB.
pub fn meminfo_kb(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("it is mounted");
    let line = text.lines().find(|line| line.starts_with(name)).expect("it is listed");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}
