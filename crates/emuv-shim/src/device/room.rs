//! Room for a request: what there is, and how more is made.

use emuv_policy::{Budget, Bytes, Room};
use emuv_state::HostMemory;

use super::{DRIVER_RESERVE_BYTES, Device};
use crate::{arena::Refusal, calls, leases::Wants, log, session::Session, slice::GpuAccount};

impl Device {
    /// Tries, then makes room and tries again, until nothing more can be given back.
    pub(super) fn with_room<T>(
        &self,
        session: &Session,
        bytes: u64,
        attempt: impl Fn(Room) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let attempt = |wants: Wants| {
            // Nor what was kept ready to move into: it is the slice's, and a closed one gives nothing more.
            if wants != Wants::Nothing && self.slice(session).is_some_and(GpuAccount::is_closed) {
                return Err(Refusal::NoRoom);
            }
            let lease = self.lease(session, wants);
            let result = attempt(self.room(session, bytes));
            self.end_lease(lease);
            result
        };
        let make_room: [&dyn Fn() -> bool; 3] =
            [&|| self.refresh_accounts(session), &|| self.pools.make_room(session, &self.arena, bytes, false), &|| {
                self.pools.make_room(session, &self.arena, bytes, true)
            }];
        // Looked at first: the mover may give them back by itself between a refusal and a look.
        let spare = self.moves.spare_bytes() > 0;
        let mut result = attempt(Wants::first(bytes));
        if self.slice(session).is_some() {
            let again = [Wants::Placement(bytes), Wants::Either(bytes)];
            for wants in again.into_iter().filter(|wants| *wants != Wants::first(bytes)) {
                if matches!(result, Err(Refusal::NoRoom)) {
                    result = attempt(wants);
                }
            }
        }
        for make in make_room {
            if matches!(result, Err(Refusal::NoRoom)) && make() {
                result = attempt(Wants::Either(bytes));
            }
        }
        if matches!(result, Err(Refusal::NoRoom)) && (spare || self.moves.spare_bytes() > 0) {
            result = self.moves.without_spares(session, &self.arena, || attempt(Wants::Either(bytes)));
        }
        // The budget of RAM is shared by the devices.
        for other in session.others(self.ordinal) {
            if matches!(result, Err(Refusal::NoRoom)) && other.pools.make_room(session, &other.arena, u64::MAX, true) {
                other.settle_slice(session);
                result = attempt(Wants::Either(bytes));
            }
            if matches!(result, Err(Refusal::NoRoom)) && other.moves.spare_ram_bytes() > 0 {
                result = other.without_spares(session, || attempt(Wants::Either(bytes)));
            }
        }
        if matches!(result, Err(Refusal::NoRoom)) {
            self.explain_refusal(session, bytes);
        }
        self.settle_slice(session);
        result
    }

    /// For another device's `attempt` this one gives back what it keeps to move chunks into.
    pub fn without_spares<T>(&self, session: &Session, attempt: impl FnOnce() -> T) -> T {
        self.moves.without_spares(session, &self.arena, || {
            // It is to be had elsewhere only once the slice has it.
            self.settle_slice(session);
            attempt()
        })
    }

    /// Says in the log what there was when a request was refused.
    fn explain_refusal(&self, session: &Session, bytes: u64) {
        let (budgets, unspilled) = self.arena.with_memory(|memory| (*memory.budgets(), memory.unspilled_bytes()));
        let part = |budget: &Budget| {
            format!(
                "{} of {} ({} may be had)",
                Bytes(budget.used_bytes()),
                Bytes(budget.limit_bytes()),
                Bytes(budget.prospect_bytes())
            )
        };
        log::debug(format_args!(
            "no room for {}: VRAM {}, of it {} not placed by emuV; RAM {}, the host's room {}; spare {}, in pools {} free and {} late",
            Bytes(bytes),
            part(&budgets.vram),
            Bytes(unspilled),
            part(&budgets.ram),
            Bytes(self.host_room(session)),
            Bytes(self.moves.spare_bytes()),
            Bytes(self.pools.free_bytes()),
            Bytes(self.pools.late_bytes(&self.arena)),
        ));
    }

    /// What there is outside the budgets for a request of `bytes`.
    pub(super) fn room(&self, session: &Session, bytes: u64) -> Room {
        // Without a context of this device (handles can be made without one) the driver cannot be asked; it will
        // refuse what it has no room for.
        let here = calls::current_device(session.real).is_ok_and(|ordinal| ordinal == self.ordinal);
        let told = if here { calls::memory_info(session.real).ok() } else { None };
        let driver_free = told.map_or(self.physical_bytes, |(free, _)| free);
        let budgets = self.arena.with_memory(|memory| *memory.budgets());
        let reserve =
            if budgets.ram.limit_bytes() > 0 { DRIVER_RESERVE_BYTES.min(self.physical_bytes / 32) } else { 0 };
        let room = Room { vram_bytes: driver_free, vram_reserve_bytes: reserve, ram_bytes: u64::MAX };
        // The host is only asked when RAM will be needed.
        if bytes <= self.arena.with_memory(|memory| memory.vram_for(bytes, room)) {
            return room;
        }
        Room { ram_bytes: self.host_room(session), ..room }
    }

    /// RAM that the run may still take: the budget shared by its devices, above the host's floor.
    pub(super) fn host_room(&self, session: &Session) -> u64 {
        let left = session.ram_left_bytes();
        let above_floor =
            HostMemory::read().map_or(u64::MAX, |host| host.available.0.saturating_sub(session.limits.ram_floor.0));
        left.min(above_floor)
    }
}
