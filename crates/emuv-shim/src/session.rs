//! The state of a process that runs under emuV, made on its first `cuInit`.

use std::{cell::Cell, ops::Range, path::PathBuf};

use emuv_cuda::{
    CUresult, CuError,
    types::{CUdevice, CUstream},
};
use emuv_policy::{Bytes, Owner, Policy};
use emuv_state::{DeviceCounters, HostMemory, Ledger, Limits, MAX_DEVICES, Movement, ProcessCounters, Setting, env};

use crate::{
    account::{Kind, Mappings},
    calls,
    capture::Captures,
    context_charges::ContextCharges,
    device::Device,
    functions::Functions,
    globals::Globals,
    graphs::Graphs,
    handles::Handles,
    hints,
    host_ranges::HostRanges,
    ipc::{self, Ipc},
    log,
    moves::verify::Verify,
    peers::Peers,
    real::Real,
    sites::Sites,
    slice::{self, Slice},
    streams::Name,
    sync::{
        Instant, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
        thread_local,
    },
    system,
    timeline::Timeline,
    turns::Turns,
};

/// Set in a forked child: its calls go to the driver, which refuses them.
static FORKED: AtomicBool = AtomicBool::new(false);
static SESSION: OnceLock<Option<Session>> = OnceLock::new();

/// See the module's head.
pub(crate) struct Session {
    /// The driver.
    pub real: &'static Real,
    /// What this process may hold.
    pub limits: Limits,
    /// The slice of a GPU that it is in; then its limits are the slice's.
    pub slice: Option<&'static Slice>,
    /// What moves between the tiers, and when.
    pub policy: Policy,
    /// Each piece of work is checked; then nothing moves.
    pub verify: Option<Verify>,
    /// Streams in capture.
    pub captures: Captures,
    /// The program's own handles that emuV serves.
    pub handles: Handles,
    /// Parameters of the functions that it launches.
    pub functions: Functions,
    /// Globals that the program has asked for.
    pub globals: Globals,
    /// What executable graphs touch.
    pub graphs: Graphs,
    /// Memory of the host that kernels can reach.
    pub host_ranges: HostRanges,
    /// What the driver takes for code and contexts' limits.
    pub context_charges: ContextCharges,
    /// Where the program mapped handles of its own that the driver serves.
    pub mappings: Mappings,
    /// Memory that it shares with other processes.
    pub ipc: Ipc,
    /// Which devices may touch each other's memory.
    pub peers: Peers,
    /// Whose turn it is on the GPU, for a process in a slice.
    pub turns: Turns,
    ledger: Ledger,
    quiet: bool,
    sole_device: OnceLock<bool>,
    /// Raised whenever a context goes.
    generation: AtomicU64,
    /// When the session was made: where timelines begin.
    pub began: Instant,
    /// What devices hold and move is kept over time.
    keeps_timelines: bool,
    /// So is where in the program memory is allocated.
    keeps_call_sites: bool,
    /// Raised when a stream goes.
    streams_gone: AtomicU64,
    devices: [OnceLock<Option<Device>>; MAX_DEVICES],
    /// Which of them emuV places memory on, a bit each: a launch looks at no others.
    placed: AtomicU32,
    /// All arenas lie between these addresses, most words of a kernel's arguments do not.
    arenas: (AtomicU64, AtomicU64),
    /// Where to record what moves.
    pub trace: Option<PathBuf>,
    spill_said: AtomicBool,
    degraded: AtomicBool,
}

/// The session, made now if this is the first call for it; `None` where emuV is switched off, cannot work,
/// or the process is a forked child.
pub(crate) fn start(real: &'static Real) -> Option<&'static Session> {
    if FORKED.load(Ordering::Acquire) || system::stands_aside() {
        return None;
    }
    SESSION.get_or_init(|| Session::new(real)).as_ref()
}

/// The session, if there is one and this process is not a forked child.
pub(crate) fn alive() -> Option<&'static Session> {
    current().filter(|_| !FORKED.load(Ordering::Acquire))
}

/// The session, if there is one.
pub(crate) fn current() -> Option<&'static Session> {
    SESSION.get()?.as_ref()
}

/// In a forked child of a process with a session: nothing here works any more, and the parent's counters
/// are not the child's.
pub(crate) fn forked() {
    FORKED.store(true, Ordering::Release);
    if let Some(Some(session)) = SESSION.get() {
        let _ = session.ledger.detach();
        if let Some(slice) = session.slice {
            slice.forked();
        }
        ipc::forked();
    }
}

/// The process exits.
pub(crate) fn exiting() {
    if !FORKED.load(Ordering::Acquire) {
        system::exiting();
    }
}

/// What stays with the host where nobody says how much.
const MIN_FLOOR: Bytes = Bytes::gib(2);

/// What the environment asks for, or the slice gives.
fn limits(
    slice: Option<&Slice>,
    variable: impl Fn(&str) -> Option<String>,
    host: &HostMemory,
) -> Result<Limits, String> {
    let Some(slice) = slice else { return Limits::from_env(variable, host) };
    let floor = variable(env::RAM_FLOOR).filter(|value| !value.is_empty());
    let floor = floor.map(|value| Setting::new(value, env::RAM_FLOOR).bytes()).transpose()?;
    Ok(slice_limits(slice, floor.unwrap_or_else(|| Limits::default_floor(host))))
}

fn slice_limits(slice: &Slice, ram_floor: Bytes) -> Limits {
    let given = slice.limits();
    Limits { vram: Some(Bytes(given.vram)), ram: Bytes(given.ram), ram_floor }
}

impl Session {
    fn new(real: &'static Real) -> Option<Self> {
        let variable = system::variable;
        let on = |name: &str| variable(name).is_some_and(|value| env::is_on(&value));
        let slice = slice::current();
        if on(env::DISABLE) && slice.is_none() {
            return None;
        }
        let limits = system::host()
            .ok_or_else(|| "cannot read /proc/meminfo".to_owned())
            .and_then(|host| limits(slice, variable, &host));
        let limits = match limits {
            Ok(limits) => limits,
            // In a slice no mistake in a variable sets a program free.
            Err(error) if slice.is_some() => {
                log::error(format_args!("{error}; the default counts"));
                slice_limits(slice?, MIN_FLOOR)
            }
            Err(error) => {
                log::error(format_args!("{error}; the program runs without emuV"));
                return None;
            }
        };
        let safe = on(env::SAFE);
        let policy = match variable(env::POLICY).as_deref().map(str::parse::<Movement>) {
            _ if on(env::VERIFY) => Policy::Static,
            None | Some(Ok(Movement::Dynamic)) => Policy::Dynamic { safe },
            Some(Ok(Movement::Static)) => Policy::Static,
            Some(Ok(Movement::Torture(seed))) => Policy::Torture { state: seed, safe },
            Some(Err(error)) if slice.is_some() => {
                log::error(format_args!("{}: {error}; the default counts", env::POLICY));
                Policy::Dynamic { safe }
            }
            Some(Err(error)) => {
                log::error(format_args!("{}: {error}; the program runs without emuV", env::POLICY));
                return None;
            }
        };
        crate::entry::watch_forks();
        // This library has a Rust runtime of its own, so the program's hook (if any) is another one.
        std::panic::set_hook(Box::new(|info| log::debug(format_args!("{info}"))));
        if !on(env::QUIET) {
            hints::say();
        }
        let run_dir = system::run_dir();
        if system::is_a_run_of_its_own() {
            crate::entry::watch_exit();
        }
        Some(Self {
            real,
            limits,
            slice,
            policy,
            verify: on(env::VERIFY).then(|| Verify::new(run_dir.as_deref())),
            captures: Captures::default(),
            handles: Handles::default(),
            mappings: Mappings::default(),
            ipc: Ipc::default(),
            peers: Peers::default(),
            turns: Turns::default(),
            functions: Functions::default(),
            globals: Globals::default(),
            graphs: Graphs::default(),
            host_ranges: HostRanges::default(),
            context_charges: ContextCharges::default(),
            sole_device: OnceLock::new(),
            generation: AtomicU64::new(1),
            streams_gone: AtomicU64::new(1),
            ledger: {
                let ledger = Ledger::open(run_dir.as_deref());
                ledger.process().ram.budget_bytes.store(limits.ram.0, Ordering::Relaxed);
                ledger
            },
            quiet: on(env::QUIET),
            began: Instant::now(),
            keeps_timelines: on(env::TIMELINE),
            keeps_call_sites: on(env::CALL_SITES),
            devices: [const { OnceLock::new() }; MAX_DEVICES],
            placed: AtomicU32::new(0),
            arenas: (AtomicU64::new(u64::MAX), AtomicU64::new(0)),
            trace: system::variable_os(env::TRACE).filter(|path| !path.is_empty()).map(PathBuf::from),
            spill_said: AtomicBool::new(false),
            degraded: AtomicBool::new(false),
        })
    }

    /// The device of that ordinal; `None` where emuV cannot place memory on it (said once in the log).
    pub fn device(&self, ordinal: CUdevice) -> Option<&Device> {
        let index = usize::try_from(ordinal).ok()?;
        let cell = self.devices.get(index)?;
        cell.get_or_init(|| match Device::open(self, ordinal) {
            Ok(device) => {
                self.arenas.0.fetch_min(device.arena.base(), Ordering::Release);
                self.arenas.1.fetch_max(device.arena.base() + device.arena.bytes(), Ordering::Release);
                self.placed.fetch_or(1 << index, Ordering::Release);
                Some(device)
            }
            Err(error) => {
                let why: &dyn std::fmt::Display = match error {
                    CuError::NOT_SUPPORTED => &"it has no virtual memory management",
                    _ => &error,
                };
                log::error(format_args!(
                    "GPU {ordinal}: {why}; its memory is left to the driver: no limits there, nothing spills"
                ));
                Device::leave_to_driver(self, ordinal);
                None
            }
        })
        .as_ref()
    }

    /// The calling thread's current context and its device, if emuV places memory there.
    pub fn here(&self) -> Option<(Owner, &Device)> {
        let (owner, ordinal) = self.whereabouts()?;
        Some((owner, self.device(ordinal)?))
    }

    /// The calling thread's current context and its device, which knows the context then. One driver call
    /// where the thread stays in its context.
    pub fn whereabouts(&self) -> Option<(Owner, CUdevice)> {
        thread_local! {
            /// The context, its device and the contexts' generation when the thread last looked.
            static LAST: Cell<(Owner, CUdevice, u64)> = const { Cell::new((Owner(0), 0, 0)) };
        }
        let context = calls::current_context(self.real).ok()?;
        let (owner, generation) = (calls::owner(context), self.generation.load(Ordering::Acquire));
        let (known, ordinal, then) = LAST.with(Cell::get);
        if known == owner && then == generation {
            return Some((owner, ordinal));
        }
        let ordinal = calls::current_device(self.real).ok()?;
        if let Some(device) = self.device(ordinal) {
            device.meet(self, owner, context);
        }
        LAST.with(|last| last.set((owner, ordinal, generation)));
        Some((owner, ordinal))
    }

    /// The same for work on a stream. One that the program has created keeps its context for as long as it lives, so for
    /// the last one that the thread used the driver need not be asked again.
    pub fn whereabouts_on(&self, stream: CUstream) -> Option<(Owner, CUdevice)> {
        thread_local! {
            /// The stream, its context and device, and the generations when the thread last looked.
            static LAST: Cell<(usize, Owner, CUdevice, [u64; 2])> = const { Cell::new((0, Owner(0), 0, [0; 2])) };
        }
        let Name::Created(handle) = Name::of(stream, false, Owner(0)) else { return self.whereabouts() };
        let now = [self.generation.load(Ordering::Acquire), self.streams_gone.load(Ordering::Acquire)];
        let (known, owner, ordinal, then) = LAST.with(Cell::get);
        if known == handle && then == now {
            return Some((owner, ordinal));
        }
        let (owner, ordinal) = self.whereabouts()?;
        LAST.with(|last| last.set((handle, owner, ordinal, now)));
        Some((owner, ordinal))
    }

    /// A stream is about to be destroyed: its handle may come again, in another context.
    pub fn stream_going(&self) {
        self.streams_gone.fetch_add(1, Ordering::AcqRel);
    }

    /// Contexts are gone, with their code: handles may come again, for another device.
    pub fn contexts_gone(&self, contexts: &[Owner]) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.functions.forget();
        self.peers.contexts_gone(self, contexts);
        self.context_charges.contexts_gone(self, contexts);
    }

    /// Every device that has been used.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        let mut left = self.placed.load(Ordering::Acquire);
        let numbers = std::iter::from_fn(move || {
            let number = left.trailing_zeros();
            left &= left.checked_sub(1)?;
            Some(number as usize)
        });
        numbers.filter_map(|number| self.devices.get(number)?.get()?.as_ref())
    }

    /// The devices but this one.
    pub fn others(&self, ordinal: CUdevice) -> impl Iterator<Item = &Device> {
        self.devices().filter(move |device| device.ordinal != ordinal)
    }

    /// The driver has taken something back that is accounted on one of the devices.
    pub fn release_account(&self, kind: Kind, handle: u64) {
        for device in self.devices() {
            if device.accounts.release(device, kind, handle) {
                device.publish(self);
            }
        }
    }

    /// Whether memory is placed on a device other than the current one.
    pub fn has_others(&self) -> bool {
        !self.is_sole_device() && self.whereabouts().is_some_and(|(_, here)| self.others(here).next().is_some())
    }

    fn is_sole_device(&self) -> bool {
        *self.sole_device.get_or_init(|| calls::device_count(self.real).is_ok_and(|count| count == 1))
    }

    /// The device whose arena `address` lies in.
    pub fn device_at(&self, address: u64) -> Option<&Device> {
        if address < self.arenas.0.load(Ordering::Acquire) || address >= self.arenas.1.load(Ordering::Acquire) {
            return None;
        }
        self.devices().find(|device| device.arena.contains(address))
    }

    /// A word outside of these is no address of an arena and leads to no memory of the host that kernels can reach.
    pub fn concerning(&self) -> Range<u64> {
        let host = self.host_ranges.span();
        let (least, most) = (self.arenas.0.load(Ordering::Acquire), self.arenas.1.load(Ordering::Acquire));
        least.min(host.start)..most.max(host.end)
    }

    /// The live counters of a device.
    pub fn counters(&self, ordinal: CUdevice) -> Option<&DeviceCounters> {
        self.ledger.device(usize::try_from(ordinal).ok()?)
    }

    /// The live counters of the process.
    pub fn process_counters(&self) -> &ProcessCounters {
        self.ledger.process()
    }

    /// What the process's devices together leave of the RAM budget.
    pub fn ram_left_bytes(&self) -> u64 {
        let used = self.ram_used_bytes();
        // In a slice the device's budget says it.
        if self.slice.is_some() { u64::MAX } else { self.limits.ram.0.saturating_sub(used) }
    }

    /// What the process's devices together hold in RAM; published for other processes to read.
    pub fn ram_used_bytes(&self) -> u64 {
        let used = self.devices().map(|d| d.arena.with_memory(|memory| memory.budgets().ram.used_bytes())).sum();
        self.ledger.process().ram.set_used(used);
        used
    }

    /// What is to be kept of a device over time, if anything is.
    pub fn new_timeline(&self, ordinal: CUdevice) -> Timeline {
        let run_dir = std::env::var_os(env::RUN_DIR).filter(|_| self.keeps_timelines).map(PathBuf::from);
        run_dir.map_or_else(Timeline::default, |run_dir| Timeline::create(&run_dir, self.ledger.name(), ordinal))
    }

    /// What is to be kept of where allocations are made, if anything is.
    pub fn new_sites(&self) -> Sites {
        if self.keeps_call_sites { Sites::keep() } else { Sites::default() }
    }

    /// The program has launched work on the current device.
    pub fn count_launch(&self) {
        let ordinal = if self.is_sole_device() { Ok(0) } else { calls::current_device(self.real) };
        if let Some(counters) = ordinal.ok().and_then(|ordinal| self.counters(ordinal)) {
            counters.launches.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether anything ever moves between the tiers.
    pub fn moves(&self) -> bool {
        self.policy != Policy::Static
    }

    /// Whether new allocations are still placed by emuV. In a slice they always are: the driver would know no limit.
    pub fn places(&self) -> bool {
        self.slice.is_some() || !self.degraded.load(Ordering::Relaxed)
    }

    /// The answer to an allocation on a device that emuV cannot place memory on: the driver's own, but in a slice, of
    /// which the driver knows no limit.
    pub fn unplaced(&self) -> Option<CUresult> {
        let device = self.slice.and_then(|_| calls::current_device(self.real).ok());
        device.map(|_| CUresult::OUT_OF_MEMORY)
    }

    /// An internal error: from now on new allocations are left to the driver; what there is stays.
    pub fn degrade(&self, what: &str) {
        self.ledger.process().internal_errors.fetch_add(1, Ordering::Relaxed);
        if !self.degraded.swap(true, Ordering::Relaxed) {
            log::error(format_args!("internal error in {what}; new allocations are left to the driver"));
        }
    }

    /// Whether the user wants to hear nothing but errors.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Says once, in one line, that memory is now taken from RAM.
    pub fn say_that_it_spills(&self, vram_used_bytes: u64, ram_budget_bytes: u64) {
        if self.quiet || self.spill_said.swap(true, Ordering::Relaxed) {
            return;
        }
        log::notice(format_args!(
            "VRAM is full ({} in use): spilling to RAM, up to {}; expect it to be slower (-q hides this line)",
            Bytes(vram_used_bytes),
            Bytes(ram_budget_bytes)
        ));
    }
}
