//! A device of which this process has a slice: what is charged against the device's budgets is got from the slice
//! before, and given back when it is not needed any more.
//!
//! Budgets charge only what was granted (`emuv_policy::Budget`), so nothing here can make a slice exceed its limit: a
//! place that forgets to ask for a lease finds no room. Asking takes a few system calls; it happens where memory is taken
//! from the driver, never where a pool or a slab has some.
//!
//! When the limit falls, each process in the slice gives up its part of what is too much: spares first, then the mover
//! sends chunks to RAM until [`Device::vram_excess_bytes`] is nothing.

use std::{io, time::Duration};

use emuv_cuda::types::CUdevice;
use emuv_policy::{Bytes, GRANULE, SMALL_BYTES, Tier};
use emuv_state::slices::{Demand, SliceLimits};

use crate::{
    device::Device,
    log, session,
    session::Session,
    slice::GpuAccount,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// How long to look for a change of limits before looking at what is in use.
const LOOK: Duration = Duration::from_secs(1);

/// Attempts at getting what there is, while others take it.
const ATTEMPTS: u32 = 4;

/// What somebody is about to charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    /// Nothing that is not granted already.
    Nothing,
    /// This much of one tier.
    All(Tier, u64),
    /// At most this much of one tier.
    UpTo(Tier, u64),
    /// A placement: VRAM as far as the policy lets it, RAM for the rest.
    Placement(u64),
    /// As much as there is of each tier, up to this.
    Either(u64),
}

/// What was got, in bytes. To be ended by [`Device::end_lease`].
#[derive(Debug, Default, Clone, Copy)]
#[must_use]
pub(crate) struct Lease {
    demand: Demand,
}

/// How much less than its limit says a slice is to have, in bytes of VRAM; [`u64::MAX`]: no less.
#[derive(Debug)]
pub(crate) struct Share {
    /// This process, of a slice that has too much.
    own: AtomicU64,
    /// The slice, while other slices of the GPU need the VRAM in their turns.
    allotted: AtomicU64,
}

impl Default for Share {
    fn default() -> Self {
        Self { own: AtomicU64::new(u64::MAX), allotted: AtomicU64::new(u64::MAX) }
    }
}

impl Wants {
    /// What an allocation of `bytes` first asks for: a small one may find room in a slab.
    pub fn first(bytes: u64) -> Self {
        if bytes <= SMALL_BYTES { Self::Nothing } else { Self::Placement(bytes) }
    }
}

impl Device {
    /// The account with the slice that this device's budgets are shared in. Of a slice of several GPUs each has its own: to the
    /// ledgers a process is as many members as it has devices, so nothing here knows of the others.
    pub fn slice(&self, session: &Session) -> Option<&'static GpuAccount> {
        session.slice.and(self.slice_account)
    }

    /// Gets what is wanted from the slice, or what there is of it.
    pub fn lease(&self, session: &Session, wants: Wants) -> Lease {
        let Some(slice) = self.slice(session) else { return Lease::default() };
        let got = |demand: Demand| {
            let charged = slice.charge(demand).then_some(demand)?;
            self.arena.with_memory(|memory| {
                let budgets = memory.budgets_mut();
                budgets.vram.grant(demand.vram);
                budgets.ram.grant(demand.ram);
            });
            Some(charged)
        };
        let one = |tier, bytes| {
            if tier == Tier::Vram { Demand { vram: bytes, ram: 0 } } else { Demand { vram: 0, ram: bytes } }
        };
        let demand = match wants {
            Wants::Nothing | Wants::All(_, 0) | Wants::UpTo(_, 0) => None,
            Wants::All(tier, bytes) => got(one(tier, bytes)),
            Wants::UpTo(tier, bytes) => got(one(tier, bytes)).or_else(|| {
                self.attempt(slice, |open| {
                    got(one(tier, bytes.min(if tier == Tier::Vram { open.vram } else { open.ram })))
                })
            }),
            Wants::Placement(bytes) => {
                let size = whole_granules(bytes);
                let held_back = self.arena.with_memory(|memory| memory.held_back_for(bytes));
                let at_once = if held_back == 0 { got(one(Tier::Vram, size)) } else { None };
                at_once.or_else(|| {
                    self.attempt(slice, |open| {
                        let vram = size.min(granules(open.vram.saturating_sub(held_back)));
                        got(Demand { vram, ram: (size - vram).min(granules(open.ram)) })
                    })
                })
            }
            Wants::Either(bytes) => {
                let size = whole_granules(bytes);
                self.attempt(slice, |open| {
                    got(Demand { vram: size.min(granules(open.vram)), ram: size.min(granules(open.ram)) })
                })
            }
        };
        Lease { demand: demand.unwrap_or_default() }
    }

    /// Asks for what is open by a fresh look, again while others are faster.
    fn attempt(&self, slice: &GpuAccount, got: impl Fn(Demand) -> Option<Demand>) -> Option<Demand> {
        (0..ATTEMPTS).find_map(|_| got(self.look(slice)))
    }

    /// What nobody is granted now; the budgets are told.
    fn look(&self, slice: &GpuAccount) -> Demand {
        let (limits, usage) = (slice.limits(), slice.usage());
        let vram = self.vram_limit(limits).min(self.physical_bytes).saturating_sub(usage.vram);
        let ram = self.ram_limit(limits).saturating_sub(usage.ram);
        self.arena.with_memory(|memory| {
            let budgets = memory.budgets_mut();
            budgets.vram.set_open(vram);
            budgets.ram.set_open(ram);
        });
        Demand { vram, ram }
    }

    /// Whether what the slice may have goes by turns: what others give up is to be taken soon.
    pub fn goes_by_turns(&self) -> bool {
        self.share.allotted.load(Ordering::Relaxed) != u64::MAX
    }

    /// What the slice may have now.
    fn vram_limit(&self, limits: SliceLimits) -> u64 {
        limits.vram.min(self.share.allotted.load(Ordering::Relaxed))
    }

    fn ram_limit(&self, limits: SliceLimits) -> u64 {
        if self.has_ram_tier { limits.ram } else { 0 }
    }

    /// Looks at what could be had of the slice, so that the budgets' prospects are true.
    pub fn look_at_slice(&self, session: &Session) {
        if let Some(slice) = self.slice(session) {
            self.look(slice);
        }
    }

    /// What a lease was for has been charged, or not.
    pub fn end_lease(&self, lease: Lease) {
        let Demand { vram, ram } = lease.demand;
        if vram + ram > 0 {
            self.arena.with_memory(|memory| {
                let budgets = memory.budgets_mut();
                budgets.vram.finish(vram);
                budgets.ram.finish(ram);
            });
        }
    }

    /// Gives back to the slice what is not needed.
    pub fn settle_slice(&self, session: &Session) {
        let Some(slice) = self.slice(session) else { return };
        let (surplus, used) = self.arena.with_memory(|memory| {
            let budgets = memory.budgets_mut();
            let surplus = Demand { vram: budgets.vram.surplus(), ram: budgets.ram.surplus() };
            (surplus, Demand { vram: budgets.vram.used_bytes(), ram: budgets.ram.used_bytes() })
        });
        slice.release(surplus);
        slice.say(used);
    }

    /// VRAM that this process has and must give up.
    pub fn vram_excess_bytes(&self) -> u64 {
        let share = self.share.own.load(Ordering::Relaxed);
        // Without a slice: more than the budget only if another interface has lent memory.
        let vram = self.arena.with_memory(|memory| memory.budgets().vram);
        if self.slice_account.is_some() { vram.used_bytes().saturating_sub(share) } else { vram.overdrawn_bytes() }
    }

    /// The slice's limits are others than before.
    fn limits_changed(&self, session: &Session, limits: SliceLimits) {
        let (vram, ram) = (limits.vram.min(self.physical_bytes), self.ram_limit(limits));
        self.arena.with_memory(|memory| {
            memory.budgets_mut().vram.set_limit(vram);
            memory.budgets_mut().ram.set_limit(ram);
        });
        if let Some(counters) = session.counters(self.ordinal) {
            counters.vram.budget_bytes.store(vram, Ordering::Relaxed);
            counters.ram.budget_bytes.store(ram, Ordering::Relaxed);
        }
        self.arena.residency().replan();
        log::debug(format_args!("the slice has {} VRAM, {} RAM now", Bytes(vram), Bytes(ram)));
    }

    /// The slice may have that much VRAM for now ([`u64::MAX`]: its share). Differences below `least_bytes` do not matter.
    pub fn allot(&self, slice: &GpuAccount, bytes: u64, least_bytes: u64) {
        let before = self.share.allotted.load(Ordering::Relaxed);
        if before.abs_diff(bytes) < least_bytes {
            return;
        }
        self.share.allotted.store(bytes, Ordering::Relaxed);
        self.keep_to_share(slice, slice.limits());
        if bytes > before {
            // What is away may come back.
            self.look(slice);
            self.arena.residency().replan();
            self.moves.wake_mover();
        }
    }

    /// RAM in which the slice's other GPUs keep nothing, only room to move into, is worth more here while this one has to give VRAM
    /// up. Asked for again as long as that is so: they may have it back before the mover here takes it.
    fn free_ram_of_others(&self, session: &Session) {
        for other in session.others(self.ordinal) {
            if self.vram_excess_bytes() > 0 && other.moves.spare_ram_bytes() > 0 && other.slice(session).is_some() {
                other.without_spares(session, || self.moves.wake_mover());
            }
        }
    }

    /// Sees to it that this process gives up its part of what is too much, if anything is.
    fn keep_to_share(&self, slice: &GpuAccount, limits: SliceLimits) {
        let usage = slice.usage();
        let limit = self.vram_limit(limits);
        let share = if usage.vram <= limit {
            u64::MAX
        } else {
            // Of what all may have, as much as this process has of what all have.
            let part = u128::from(usage.own_vram) * u128::from(limit) / u128::from(usage.vram.max(1));
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        self.share.own.store(share, Ordering::Relaxed);
        if self.vram_excess_bytes() > 0 {
            self.moves.begin_in(self.ordinal, self.contexts().first().copied());
            self.moves.wake_mover();
        }
    }
}

/// As much of it as whole chunks can use.
fn granules(bytes: u64) -> u64 {
    bytes / GRANULE * GRANULE
}

/// What chunks for so many bytes take. A size that no memory has stays one.
fn whole_granules(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(GRANULE).unwrap_or(granules(u64::MAX))
}

/// Starts the thread that follows the slice's limits.
///
/// # Errors
/// The system's own.
pub(crate) fn follow(ordinal: CUdevice) -> io::Result<()> {
    thread::spawn("emuv-slice", move || {
        let Some(session) = session::current() else { return };
        let Some(device) = session.device(ordinal) else { return };
        let Some(slice) = device.slice(session) else { return };
        let mut seen = slice.limits();
        device.limits_changed(session, seen);
        loop {
            let limits = slice.wait_for_change(seen, LOOK);
            if limits != seen {
                device.limits_changed(session, limits);
                device.moves.wake_mover();
                seen = limits;
            }
            device.keep_to_share(slice, limits);
            device.free_ram_of_others(session);
        }
    })
}
