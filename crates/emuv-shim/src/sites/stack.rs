//! Looking at the calling thread's stack: native frames by what every exception in the program relies on (the tables beside the
//! code), Python's by reading ([`super::python`]).
//!
//! # Safety
//! - `_Unwind_Backtrace` walks the stack of the thread that calls it; the callback writes to a local of that call only and
//!   cannot panic. The walk ends a few frames outside of this library, so that little of it is in code that is not the direct
//!   way from the program to CUDA.
//! - `dl_iterate_phdr` lends structures for the time of the callback, which reads them, allocates nothing (whoever replaces
//!   `malloc` may hold a lock that waits for this one) and cannot panic. It does not wait for a library that is being opened, as
//!   `dladdr` would: its initialisation may be waiting for us.
//! - `process_vm_readv` on the own process copies what is there, or fails; it never faults.
//! - `PyGILState_GetThisThreadState` is called by its own signature; it reads a slot of the thread's and needs no lock of Python's.
//!   The interpreter is looked up once, in the program's first call that concerns a device, in which libraries are opened anyway.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_void};

use emuv_state::{MOST_NATIVE_FRAMES, MOST_PYTHON_FRAMES, NativeFrame, Site};

use super::python::{self, Layout, Memory, Running};

/// Bytes of a library's path that are kept.
const PATH_BYTES: usize = 512;

/// A stack as numbers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    native: [u64; MOST_NATIVE_FRAMES],
    native_count: usize,
    python: [Running; MOST_PYTHON_FRAMES],
    python_count: usize,
}

impl Seen {
    /// The same for the same stack.
    pub fn words(&self) -> Vec<u64> {
        let python = self.python.iter().flat_map(|running| [running.code, running.instruction]);
        self.native.iter().copied().chain(python).collect()
    }
}

/// What is known once for the process.
#[derive(Debug)]
pub(super) struct Looker {
    /// Where this library's code lies.
    own: (u64, u64),
    python: Option<Interpreter>,
}

#[derive(Debug)]
struct Interpreter {
    layout: Layout,
    thread_state: unsafe extern "C" fn() -> *mut c_void,
}

/// The process's own memory.
struct Own;

impl Memory for Own {
    fn read<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        read_own(address, &mut bytes).then_some(bytes)
    }

    fn bytes(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        read_own(address, &mut bytes).then_some(bytes)
    }
}

fn read_own(address: u64, into: &mut [u8]) -> bool {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: address as *mut c_void, iov_len: into.len() };
    // SAFETY: see the module's head; `local` is a live buffer of that length.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(read) == Ok(into.len())
}

unsafe extern "C" {
    fn _Unwind_Backtrace(visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int, walk: *mut c_void) -> c_int;
    fn _Unwind_GetIP(frame: *mut c_void) -> usize;
}

/// Go on, and stop (`_URC_NO_REASON`, `_URC_END_OF_STACK`).
const GO_ON: c_int = 0;
const STOP: c_int = 5;

/// A walk over the stack.
struct Walk {
    own: (u64, u64),
    seen: Seen,
}

extern "C" fn visit(frame: *mut c_void, walk: *mut c_void) -> c_int {
    // SAFETY: the walk that `look` began and waits for.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    // SAFETY: the unwinder's own frame. It returns behind the call, which is what is meant.
    let address = (unsafe { _Unwind_GetIP(frame) } as u64).wrapping_sub(1);
    if address >= walk.own.0 && address < walk.own.1 {
        return GO_ON;
    }
    let Some(to) = walk.seen.native.get_mut(walk.seen.native_count) else { return STOP };
    *to = address;
    walk.seen.native_count += 1;
    if walk.seen.native_count < MOST_NATIVE_FRAMES { GO_ON } else { STOP }
}

impl Looker {
    /// Finds this library, and Python if the process has one.
    pub fn new() -> Self {
        let mut own = Modules::for_one(visit as *const c_void as u64);
        own.find();
        let python = interpreter();
        Self { own: own.found.first().map_or((0, 0), |module| module.range), python }
    }

    /// The calling thread's stack.
    pub fn look(&self) -> Seen {
        let mut walk = Walk { own: self.own, seen: Seen::default() };
        // SAFETY: see the module's head.
        unsafe { _Unwind_Backtrace(visit, (&raw mut walk).cast()) };
        let mut seen = walk.seen;
        if let Some(python) = &self.python {
            // SAFETY: see the module's head.
            let state = unsafe { (python.thread_state)() };
            if !state.is_null() {
                seen.python_count = python::running(&python.layout, state as u64, &Own, &mut seen.python);
            }
        }
        seen
    }

    /// What it was called there. The thread is still in the same functions.
    pub fn name(&self, seen: &Seen) -> Site {
        let mut modules = Modules::default();
        modules.found.extend(seen.native.iter().take(seen.native_count).map(|address| Module::of(*address)));
        modules.find();
        let native = modules.found.iter().filter_map(Module::frame).filter(|frame| !is_cuda(&frame.library)).collect();
        let python = self.python.iter().flat_map(|python| {
            let running = seen.python.iter().take(seen.python_count);
            running.filter_map(|running| python::name(&python.layout, *running, &Own))
        });
        Site { python: python.collect(), native }
    }
}

/// The driver's and the runtime's own libraries, and ours.
fn is_cuda(library: &str) -> bool {
    let name = library.rsplit('/').next().unwrap_or_default();
    ["libcuda.so", "libcudart", "libemuv_shim"].iter().any(|start| name.starts_with(start))
}

fn interpreter() -> Option<Interpreter> {
    let find = |name: &CStr| {
        // SAFETY: a C string, and the list of all libraries.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    };
    let thread_state = find(c"PyGILState_GetThisThreadState")?;
    let version = Own.read(find(c"Py_Version")? as u64).map(u32::from_ne_bytes)?;
    let layout = Layout::of(version, find(c"_PyRuntime")? as u64, &Own)?;
    // SAFETY: the function of that name has this signature in every version whose layout is known.
    let thread_state =
        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *mut c_void>(thread_state) };
    Some(Interpreter { layout, thread_state })
}

/// Which file the code at an address is from.
struct Module {
    address: u64,
    /// Where its code lies; nowhere: not found.
    range: (u64, u64),
    base: u64,
    path: [u8; PATH_BYTES],
    path_bytes: usize,
}

impl Module {
    fn of(address: u64) -> Self {
        Self { address, range: (0, 0), base: 0, path: [0; PATH_BYTES], path_bytes: 0 }
    }

    fn frame(&self) -> Option<NativeFrame> {
        if self.range == (0, 0) {
            return None;
        }
        let path = self.path.get(..self.path_bytes).unwrap_or_default();
        let library = if path.is_empty() {
            // The program itself.
            std::fs::read_link("/proc/self/exe").map_or_else(|_| "program".to_owned(), |exe| exe.display().to_string())
        } else {
            String::from_utf8_lossy(path).into_owned()
        };
        Some(NativeFrame { library, offset: self.address.wrapping_sub(self.base) })
    }
}

#[derive(Default)]
struct Modules {
    found: Vec<Module>,
}

impl Modules {
    fn for_one(address: u64) -> Self {
        Self { found: vec![Module::of(address)] }
    }

    fn find(&mut self) {
        // SAFETY: see the module's head; `self` outlives the call.
        unsafe { libc::dl_iterate_phdr(Some(look_at_module), (&raw mut *self).cast()) };
    }
}

/// Fills in those that are in this library.
///
/// # Safety
/// Called by `dl_iterate_phdr` for [`Modules::find`].
unsafe extern "C" fn look_at_module(info: *mut libc::dl_phdr_info, _size: usize, modules: *mut c_void) -> c_int {
    // SAFETY: lent for the time of this call.
    let (info, modules) = unsafe { (&*info, &mut *modules.cast::<Modules>()) };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: as many headers as it says.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0) {
        let start = info.dlpi_addr.wrapping_add(header.p_vaddr);
        let range = (start, start.wrapping_add(header.p_memsz));
        for module in &mut modules.found {
            if module.address >= range.0 && module.address < range.1 {
                module.range = range;
                module.base = info.dlpi_addr;
                module.path_bytes = copy_text(info.dlpi_name, &mut module.path);
            }
        }
    }
    0
}

/// Copies a C string as far as there is room, and says how far that was.
fn copy_text(from: *const c_char, into: &mut [u8]) -> usize {
    if from.is_null() {
        return 0;
    }
    // SAFETY: a library's name is a C string.
    let text = unsafe { CStr::from_ptr(from) }.to_bytes();
    let length = text.len().min(into.len());
    into.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    length
}
