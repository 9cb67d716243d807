//! The system calls of the tests that `std` and the client crate have no safe way to.
//!
//! # Safety
//!
//! Each call is given pointers to values that live as long as the call, or numbers that the kernel checks. Memory of a
//! [`Mapping`] is shared with other processes, so it is only touched by volatile accesses of single bytes within its length. A
//! forked child runs its closure and exits without returning into the caller's code; where there are other threads, it only touches
//! memory.

#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    time::Duration,
};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn text(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

/// Mounts a file system of the kernel's own.
pub fn mount(kind: &str, at: &str) -> io::Result<()> {
    std::fs::create_dir_all(at)?;
    let (kind, at) = (text(kind), text(at));
    // SAFETY: Zero-terminated texts; no data.
    check(unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, ptr::null()) }).map(drop)
}

/// `insmod path parameters`
pub fn load_module(path: &str, parameters: &str) -> io::Result<()> {
    let (file, parameters) = (File::open(path)?, text(parameters));
    // SAFETY: An open file and a zero-terminated text.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `rmmod name`; does not wait.
pub fn unload_module(name: &str) -> io::Result<()> {
    let name = text(name);
    // SAFETY: A zero-terminated text.
    let result = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ends the virtual machine.
pub fn power_off() -> ! {
    // SAFETY: No memory is involved. The first process must not end, so it asks again should that ever return.
    unsafe {
        libc::sync();
        loop {
            libc::reboot(libc::RB_AUTOBOOT);
            libc::pause();
        }
    }
}

/// A forked child.
#[derive(Debug)]
pub struct Child(libc::pid_t);

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// With this code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

impl Child {
    /// Forks; the child runs `f` and exits with 0, or with 101 if it panicked.
    pub fn run(f: impl FnOnce()) -> Self {
        // SAFETY: See the head of this file.
        let pid = check(unsafe { libc::fork() }).expect("a process can be made");
        if pid == 0 {
            let code = if catch_unwind(AssertUnwindSafe(f)).is_ok() { 0 } else { 101 };
            // SAFETY: Ends this process.
            unsafe { libc::_exit(code) };
        }
        Self(pid)
    }

    /// SIGKILL.
    pub fn kill(&self) {
        // SAFETY: The child has not been waited for, so the number is its.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
    }

    /// Waits for its end.
    pub fn wait(self) -> End {
        let mut status = 0;
        // SAFETY: As above; `status` outlives the call.
        while unsafe { libc::waitpid(self.0, &raw mut status, 0) } < 0 {}
        if libc::WIFSIGNALED(status) {
            End::Signal(libc::WTERMSIG(status))
        } else {
            End::Exit(libc::WEXITSTATUS(status))
        }
    }
}

/// SIGKILL to a process that another one waits for.
pub fn kill(pid: i32) {
    // SAFETY: No memory is involved. Nobody else is in this machine whom the number could mean by mistake.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Waits for ever: until killed.
pub fn forever() -> ! {
    loop {
        // SAFETY: No memory is involved.
        unsafe { libc::pause() };
    }
}

/// A line between two processes: one says, the other hears.
#[derive(Debug)]
pub struct Line {
    hears: File,
    says: File,
}

impl Line {
    /// A new one.
    pub fn new() -> Self {
        let mut fds = [0; 2];
        // SAFETY: Room for two descriptors, which are nobody else's afterwards.
        unsafe {
            check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC)).expect("a pipe can be made");
            Self { hears: File::from_raw_fd(fds[0]), says: File::from_raw_fd(fds[1]) }
        }
    }

    /// One end tells the other to go on.
    pub fn say(&self) {
        (&self.says).write_all(b"x").expect("the other end is there");
    }

    /// One end tells the other two numbers.
    pub fn tell(&self, numbers: [u64; 2]) {
        (&self.says).write_all(&numbers.map(u64::to_ne_bytes).concat()).expect("the other end is there");
    }

    /// Waits for two numbers.
    pub fn hear_numbers(&self) -> [u64; 2] {
        let mut words = [[0; 8]; 2];
        (&self.hears).read_exact(words.as_flattened_mut()).expect("the other end spoke");
        words.map(u64::from_ne_bytes)
    }

    /// Waits until the other end has spoken.
    pub fn hear(&self) {
        (&self.hears).read_exact(&mut [0]).expect("the other end spoke");
    }
}

/// Memory of a node.
#[derive(Debug)]
pub struct Mapping {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: Accesses are volatile and of single bytes; the memory belongs to no thread.
unsafe impl Sync for Mapping {}
// SAFETY: As above.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `bytes` from `offset` of `file`, shared (or private).
    pub fn new(file: &impl AsRawFd, offset: u64, bytes: usize, shared: bool) -> io::Result<Self> {
        let kind = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: The kernel chooses a place where nothing is.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, rights, kind, file.as_raw_fd(), offset.cast_signed()) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), bytes })
    }

    /// The byte at `place`.
    pub fn get(&self, place: usize) -> u8 {
        assert!(place < self.bytes);
        // SAFETY: Within the mapping. What the kernel has no page for ends the process, which is what the test wants.
        unsafe { self.start.add(place).read_volatile() }
    }

    /// Sets the byte at `place`.
    pub fn set(&self, place: usize, byte: u8) {
        assert!(place < self.bytes);
        // SAFETY: As above.
        unsafe { self.start.add(place).write_volatile(byte) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: Mapped by `new`, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

/// Any ioctl at all, with a buffer of 256 bytes for an argument; for `None`, an address that is not mapped.
pub fn raw_ioctl(file: &impl AsRawFd, command: u32, argument: Option<&mut [u64; 32]>) -> Result<i32, i32> {
    let pointer = argument.map_or(ptr::without_provenance_mut(0x10), |buffer| buffer.as_mut_ptr());
    // SAFETY: No ioctl of this module touches more than 256 bytes; the tests give other files' numbers to no other file.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::Ioctl::from(command), pointer) };
    if result < 0 { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(result) }
}

/// Bytes of a file into a pipe without copying, so that the pipe keeps the pages.
pub fn keep_pages_in_pipe(mapping: &Mapping, bytes: usize) -> OwnedFd {
    let mut fds = [0; 2];
    let range = libc::iovec { iov_base: mapping.start.cast(), iov_len: bytes };
    assert!(bytes <= mapping.bytes);
    // SAFETY: Room for two descriptors; the range is within the mapping.
    unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC)).expect("a pipe can be made");
        let moved = libc::vmsplice(fds[1], &raw const range, 1, 0);
        assert_eq!(usize::try_from(moved), Ok(bytes), "{}", io::Error::last_os_error());
        libc::close(fds[1]);
        OwnedFd::from_raw_fd(fds[0])
    }
}

/// What the kernel tells udev.
#[derive(Debug)]
pub struct Uevents(File);

impl Uevents {
    /// From now on.
    pub fn listen() -> Self {
        const KERNEL_GROUP: u32 = 1;
        // SAFETY: The address is of the size that is said; the descriptor is nobody else's.
        unsafe {
            let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
            let fd = check(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT)).expect("a socket");
            let mut address: libc::sockaddr_nl = std::mem::zeroed();
            address.nl_family = u16::try_from(libc::AF_NETLINK).expect("it is 16");
            address.nl_groups = KERNEL_GROUP;
            let size = u32::try_from(size_of::<libc::sockaddr_nl>()).expect("it is 12");
            check(libc::bind(fd, (&raw const address).cast(), size)).expect("root may listen");
            Self(File::from_raw_fd(fd))
        }
    }

    /// The next one, `ACTION@path` and `KEY=value`s.
    pub fn next(&mut self) -> String {
        let mut buffer = [0; 8192];
        let length = self.0.read(&mut buffer).expect("the kernel speaks");
        String::from_utf8_lossy(&buffer[..length]).replace('\0', "\n")
    }
}

/// Time since the machine started.
pub fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: Room for a time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The cheapest system call, to compare others with.
pub fn nothing_call() {
    // SAFETY: No memory is involved.
    unsafe { libc::syscall(libc::SYS_getppid) };
}

/// Closes a descriptor that the kernel gave as a number.
pub fn close_number(fd: i32) {
    // SAFETY: The caller got it from the kernel and has given it to nobody.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}
