//! What a process of the run sees as a card's memory when it asks by the card and not through CUDA:
//! computed from the run's limits and from the live counters of every process in it.

use std::sync::OnceLock;

use emuv_state::{
    Limits, ProcessRecord, env, read_ledgers,
    slices::{SliceLimits, Usage},
    uuid_text,
};

use crate::{log, slice, system};

/// A card as its driver sees it, in bytes, without what the driver keeps for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Card {
    pub total: u64,
    pub free: u64,
}

/// What the program sees, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub total: u64,
    pub free: u64,
}

/// The run's limits; `None` where emuV is off or misconfigured.
fn limits() -> Option<&'static Limits> {
    static LIMITS: OnceLock<Option<Limits>> = OnceLock::new();
    LIMITS
        .get_or_init(|| {
            let variable = system::variable;
            if system::stands_aside() || variable(env::DISABLE).is_some_and(|value| env::is_on(&value)) {
                return None;
            }
            let read = system::host().ok_or_else(|| "cannot read /proc/meminfo".to_owned());
            read.and_then(|host| Limits::from_env(variable, &host))
                .map_err(|error| log::error(format_args!("{error}; NVML's figures stay as they are")))
                .ok()
        })
        .as_ref()
}

/// The view of the card with this UUID.
pub(crate) fn seen(card: Card, uuid: &str) -> Option<Seen> {
    if let Some(slice) = slice::current() {
        let none = Seen { total: 0, free: 0 };
        return Some(slice.on_text(uuid).map_or(none, |own| in_slice(card, own.limits(), own.usage())));
    }
    let limits = limits()?;
    let processes: Vec<_> = system::run_dirs().iter().flat_map(|dir| read_ledgers(dir).processes).collect();
    (!is_left_to_driver(uuid, &processes)).then(|| combine(card, limits, uuid, &processes))
}

/// Whether a process has found that nothing can be placed on the card.
fn is_left_to_driver(uuid: &str, processes: &[ProcessRecord]) -> bool {
    let mut devices = processes.iter().flat_map(|process| &process.devices);
    devices.any(|device| device.vram.budget_bytes == 0 && uuid_text(&device.uuid).is_some_and(|text| text == uuid))
}

fn in_slice(card: Card, limits: SliceLimits, usage: Usage) -> Seen {
    let vram = limits.vram.min(card.total);
    let vram_free = vram.saturating_sub(usage.vram).min(card.free);
    Seen { total: vram + limits.ram, free: vram_free + limits.ram.saturating_sub(usage.ram) }
}

/// A process that uses a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Running {
    pub pid: u32,
    /// VRAM and RAM, as its total is of both.
    pub used_bytes: u64,
}

/// The processes of the slice that use the card with this UUID; `None` outside a slice.
pub(crate) fn running(uuid: &str) -> Option<Vec<Running>> {
    let slice = slice::current()?;
    let Some(own) = slice.on_text(uuid) else { return Some(Vec::new()) };
    let all = own.processes().into_iter().map(|process| Running {
        // Elsewhere its number would mean another process.
        pid: if process.same_namespace { process.pid } else { 0 },
        used_bytes: process.vram_bytes.saturating_add(process.ram_bytes),
    });
    Some(all.filter(|running| running.used_bytes > 0).collect())
}

pub(crate) fn combine(card: Card, limits: &Limits, uuid: &str, processes: &[ProcessRecord]) -> Seen {
    // The figures are other processes': they may be anything.
    let mut vram_used = 0_u64;
    let mut ram_used = 0_u64;
    for process in processes.iter().filter(|process| process.alive) {
        ram_used = ram_used.saturating_add(process.ram.used_bytes);
        for device in &process.devices {
            if uuid_text(&device.uuid).is_some_and(|text| text == uuid) {
                vram_used = vram_used.saturating_add(device.vram.used_bytes);
            }
        }
    }
    let vram = limits.vram.map_or(card.total, |cap| cap.0.min(card.total));
    let vram_free = vram.saturating_sub(vram_used).min(card.free);
    // Chunks will go to RAM for what is overdrawn.
    let ram_free = limits.ram.0.saturating_sub(ram_used).saturating_sub(vram_used.saturating_sub(vram));
    Seen { total: vram + limits.ram.0, free: vram_free + ram_free }
}

#[cfg(test)]
mod tests {
    use emuv_policy::Bytes;
    use emuv_state::{TierRecord, slices::SliceState};

    use super::*;

    const CARD: Card = Card { total: 1000, free: 900 };

    fn limits(vram: Option<u64>) -> Limits {
        Limits { vram: vram.map(Bytes), ram: Bytes(500), ram_floor: Bytes(0) }
    }

    #[test]
    fn without_a_cap_the_card_grows_by_the_ram_budget() {
        assert_eq!(combine(CARD, &limits(None), "GPU-1", &[]), Seen { total: 1500, free: 1400 });
    }

    #[test]
    fn a_cap_stands_for_a_smaller_card() {
        assert_eq!(combine(CARD, &limits(Some(300)), "GPU-1", &[]), Seen { total: 800, free: 800 });
        assert_eq!(combine(CARD, &limits(Some(5000)), "GPU-1", &[]), Seen { total: 1500, free: 1400 });
    }

    #[test]
    fn in_a_slice_it_is_the_slices_share_and_what_its_processes_leave() {
        let limits = SliceLimits { vram: 300, ram: 200, state: SliceState::Enabled };
        let usage = Usage { vram: 100, ram: 50, own_vram: 0, own_ram: 0 };
        assert_eq!(in_slice(CARD, limits, usage), Seen { total: 500, free: 350 });
        assert_eq!(in_slice(Card { total: 1000, free: 10 }, limits, usage).free, 160, "the card is full");
        let shrunk = SliceLimits { vram: 50, ..limits };
        assert_eq!(in_slice(CARD, shrunk, usage), Seen { total: 250, free: 150 });
    }

    #[test]
    fn figures_that_cannot_be_leave_nothing_free() {
        let used = |used_bytes| TierRecord { budget_bytes: 0, used_bytes, peak_bytes: 0 };
        let process = |used_bytes| ProcessRecord {
            pid: 7,
            start_ticks: 0,
            generation: 0,
            command: String::new(),
            alive: true,
            ram: used(used_bytes),
            internal_errors: 0,
            devices: Vec::new(),
        };
        let all = [process(u64::MAX), process(1)];
        assert_eq!(combine(CARD, &limits(None), "GPU-1", &all), Seen { total: 1500, free: 900 });
    }
}
