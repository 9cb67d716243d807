//! The slice of a GPU, or of several, that this process is in, if any: found once, before anything is taken of it.
//!
//! Which one it is says a file that lies beside the folder of this library (`emuv run --vgpu` and containers' set-ups
//! put it there), else a variable. Once a process is in a slice, no variable changes its limits. A process that was
//! meant to be in a slice and cannot be gets no memory at all.

use std::{fs, path::Path, sync::OnceLock, time::Duration};

use emuv_state::{
    env,
    slices::{
        self, Account, Demand, Refused, Registry, SLICE_FILE, SliceError, SliceGpu, SliceLimits, SliceProcess,
        SliceState, Standing, Stepped, TurnBook, Usage,
    },
    uuid_text,
};

use crate::{log, real, system};

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Slice {
    /// One for each of its GPUs, in the order in which the program sees them; empty: it could not be opened.
    accounts: Vec<GpuAccount>,
    /// `None`: it takes no turns.
    turns: Option<TurnBook>,
}

/// What the process has of its slice on one GPU.
#[derive(Debug)]
pub(crate) struct GpuAccount {
    account: Box<dyn Account>,
    /// As NVML writes it.
    gpu_uuid: String,
}

/// Nothing may be had.
const CLOSED: SliceLimits = SliceLimits { vram: 0, ram: 0, state: SliceState::Removed };

/// The slice of this process.
pub(crate) fn current() -> Option<&'static Slice> {
    static SLICE: OnceLock<Option<Slice>> = OnceLock::new();
    SLICE.get_or_init(join).as_ref()
}

fn join() -> Option<Slice> {
    if system::stands_aside() {
        return None;
    }
    let variable = system::variable;
    let entry = beside_the_library().map(|dir| Registry::entry_at(Path::new(dir.trim_end()))).or_else(|| {
        let name = variable(env::VGPU).filter(|name| !name.is_empty())?;
        Some(Registry::find(variable, &name))
    })?;
    let joined = entry.and_then(|entry| {
        let open = |(number, gpu): (usize, &SliceGpu)| {
            Ok(GpuAccount { account: slices::open_on(&entry, number)?, gpu_uuid: gpu.uuid.clone() })
        };
        // All of them or none: a slice that a program has only a part of is not what it was given.
        let accounts = entry.slice.gpus().enumerate().map(open).collect::<Result<Vec<_>, SliceError>>()?;
        let turns = entry.slice.takes_turns().then(|| TurnBook::open(&entry, variable));
        if let Some(Err(error)) = &turns {
            log::debug(format_args!("{error}; the slice takes no turns: the driver divides the GPU's time"));
        }
        Ok(Slice { accounts, turns: turns.and_then(Result::ok) })
    });
    Some(joined.unwrap_or_else(|error| {
        log::error(format_args!("{error}; the program gets no GPU memory"));
        Slice { accounts: Vec::new(), turns: None }
    }))
}

/// The folder of the slice, where one is said beside the folder that this library is in.
fn beside_the_library() -> Option<String> {
    fs::read_to_string(real::own_path()?.parent()?.parent()?.join(SLICE_FILE)).ok()
}

/// Whether this library was put there for a slice.
pub(crate) fn is_beside_the_library() -> bool {
    beside_the_library().is_some()
}

impl Slice {
    /// What the process has of it on the GPU with this UUID; `None`: it is no share of that one.
    pub fn on(&self, uuid: &[u8; 16]) -> Option<&GpuAccount> {
        self.on_text(&uuid_text(uuid)?)
    }

    /// The same, by the UUID as NVML writes it.
    pub fn on_text(&self, uuid: &str) -> Option<&GpuAccount> {
        self.accounts.iter().find(|account| account.gpu_uuid == uuid)
    }

    /// The GPUs that it is a share of, as NVML writes them; none where the slice could not be opened.
    pub fn gpu_uuids(&self) -> impl Iterator<Item = &str> {
        self.accounts.iter().map(|account| account.gpu_uuid.as_str())
    }

    /// Its limits now: VRAM on each of its GPUs, RAM for all of them.
    pub fn limits(&self) -> SliceLimits {
        self.accounts.first().map_or(CLOSED, GpuAccount::limits)
    }

    /// Whether it shares the GPU's time by turns.
    pub fn takes_turns(&self) -> bool {
        self.turns.is_some()
    }

    /// Now, in microseconds of the clock that turns go by.
    pub fn turn_micros(&self) -> u64 {
        self.turns.as_ref().map_or(0, TurnBook::now_micros)
    }

    /// Tells the other slices of the GPU how this process stands, and finds out what it may do.
    pub fn take_step(&self, standing: &Standing) -> Option<Stepped> {
        Some(self.turns.as_ref()?.step(standing))
    }

    /// In a forked child: nothing is held there.
    pub fn forked(&self) {
        self.accounts.iter().for_each(|account| account.account.forked());
        if let Some(turns) = &self.turns {
            turns.forked();
        }
    }
}

impl GpuAccount {
    /// The slice's limits now: VRAM on this GPU, RAM for all of the slice's.
    pub fn limits(&self) -> SliceLimits {
        self.account.limits()
    }

    /// Whether it is disabled or gone: its programs get no more memory.
    pub fn is_closed(&self) -> bool {
        self.limits().state != SliceState::Enabled
    }

    /// Charges all of it; says whether it did.
    pub fn charge(&self, demand: Demand) -> bool {
        let charged = match self.account.charge(demand) {
            Ok(()) => true,
            Err(Refused::NoRoom) => false,
            Err(error @ Refused::Broken(_)) => {
                log::error(format_args!("{error}"));
                false
            }
        };
        charged || demand == Demand::default()
    }

    /// Gives a part of what was charged back.
    pub fn release(&self, demand: Demand) {
        if demand != Demand::default() {
            self.account.release(demand);
        }
    }

    /// What is used, by all and by this process.
    pub fn usage(&self) -> Usage {
        self.account.usage()
    }

    /// Says for others to see what this process uses.
    pub fn say(&self, used: Demand) {
        self.account.say(used);
    }

    /// The processes in the slice, by what they use on this GPU.
    pub fn processes(&self) -> Vec<SliceProcess> {
        self.account.processes()
    }

    /// Waits for other limits than `seen`.
    pub fn wait_for_change(&self, seen: SliceLimits, timeout: Duration) -> SliceLimits {
        self.account.wait_for_change(seen, timeout)
    }
}
