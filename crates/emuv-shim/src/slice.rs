//! The slice of a GPU that this process is in, if any: found once, before anything is taken of it.
//!
//! Which one it is says a file that lies beside the folder of this library (`emuv run --vgpu` and containers' set-ups
//! put it there), else a variable. Once a process is in a slice, no variable changes its limits. A process that was
//! meant to be in a slice and cannot be gets no memory at all.

use std::{fs, path::Path, sync::OnceLock, time::Duration};

use emuv_state::{
    env,
    slices::{
        self, Account, Demand, Refused, Registry, SLICE_FILE, SliceLimits, SliceProcess, SliceState, Standing, Stepped,
        TurnBook, Usage,
    },
    uuid_text,
};

use crate::{log, real, system};

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Slice {
    /// `None`: it could not be opened.
    account: Option<Box<dyn Account>>,
    /// `None`: it takes no turns.
    turns: Option<TurnBook>,
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
        let account = slices::open(&entry)?;
        let turns = TurnBook::open(&entry, variable);
        if let Err(error) = &turns {
            log::debug(format_args!("{error}; the slice takes no turns: the driver divides the GPU's time"));
        }
        Ok(Slice { account: Some(account), turns: turns.ok(), gpu_uuid: entry.slice.gpu.uuid })
    });
    Some(joined.unwrap_or_else(|error| {
        log::error(format_args!("{error}; the program gets no GPU memory"));
        Slice { account: None, turns: None, gpu_uuid: String::new() }
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
    /// Whether it is a share of the GPU with this UUID.
    pub fn is_of(&self, uuid: &[u8; 16]) -> bool {
        uuid_text(uuid).is_some_and(|text| text == self.gpu_uuid)
    }

    /// The GPU that it is a share of, as NVML writes it; empty where the slice could not be opened.
    pub fn gpu_uuid(&self) -> &str {
        &self.gpu_uuid
    }

    /// The same, as NVML writes it.
    pub fn is_of_text(&self, uuid: &str) -> bool {
        uuid == self.gpu_uuid
    }

    /// Its limits now.
    pub fn limits(&self) -> SliceLimits {
        self.account.as_ref().map_or(CLOSED, |account| account.limits())
    }

    /// Charges all of it; says whether it did.
    pub fn charge(&self, demand: Demand) -> bool {
        let charged = self.account.as_ref().is_some_and(|account| match account.charge(demand) {
            Ok(()) => true,
            Err(Refused::NoRoom) => false,
            Err(error @ Refused::Broken(_)) => {
                log::error(format_args!("{error}"));
                false
            }
        });
        charged || demand == Demand::default()
    }

    /// Gives a part of what was charged back.
    pub fn release(&self, demand: Demand) {
        if let Some(account) = self.account.as_ref().filter(|_| demand != Demand::default()) {
            account.release(demand);
        }
    }

    /// What is used, by all and by this process.
    pub fn usage(&self) -> Usage {
        self.account.as_ref().map_or(Usage::default(), |account| account.usage())
    }

    /// Says for others to see what this process uses.
    pub fn say(&self, used: Demand) {
        if let Some(account) = &self.account {
            account.say(used);
        }
    }

    /// The processes in it.
    pub fn processes(&self) -> Vec<SliceProcess> {
        self.account.as_ref().map_or_else(Vec::new, |account| account.processes())
    }

    /// Waits for other limits than `seen`; `None` where there never will be any.
    pub fn wait_for_change(&self, seen: SliceLimits, timeout: Duration) -> Option<SliceLimits> {
        Some(self.account.as_ref()?.wait_for_change(seen, timeout))
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
        if let Some(account) = &self.account {
            account.forked();
        }
        if let Some(turns) = &self.turns {
            turns.forked();
        }
    }
}
