//! The time that a tenant has had of the GPU.

use super::{BURST_MICROS, MOST_DEBT_MICROS};

/// Virtual time of a tenant of weight 1 in a microsecond. Any weight divides it well enough.
const VIRTUAL_PER_MICRO: u64 = 10_000;

/// See the module's head. Eight plain words, so that it can be published as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeAccount {
    /// The time of its turns by its weight: who has the least is next.
    pub virtual_time: u64,
    /// Until then it pays for what it has had, under a cap.
    pub paid_micros: u64,
    /// Until when it has been charged.
    pub settled_micros: u64,
    /// The time that it has had in all.
    pub used_micros: u64,
    /// It competes, and its virtual time can be compared with the others'.
    pub joined: bool,
}

impl TimeAccount {
    /// Charges for `micros` up to `now`.
    pub(super) fn charge(&mut self, micros: u64, now: u64, weight: u32, cap_percent: Option<u32>) {
        self.used_micros += micros;
        let added = micros.saturating_mul(VIRTUAL_PER_MICRO) / u64::from(weight.max(1));
        self.virtual_time = self.virtual_time.saturating_add(added);
        if let Some(cap) = cap_percent.map(|cap| u64::from(cap.clamp(1, 100))) {
            let earliest = now.saturating_sub(BURST_MICROS * 100 / cap);
            self.paid_micros = self.paid_micros.max(earliest).saturating_add(micros * 100 / cap);
        } else {
            self.paid_micros = 0;
        }
    }

    /// Whether its cap lets it have more.
    pub fn is_paid(&self, now: u64) -> bool {
        self.paid_micros <= now
    }

    /// It begins to compete with others, of whom the one that is next has `least`.
    pub(super) fn join(&mut self, least: u64) {
        self.virtual_time = self.virtual_time.max(least);
    }

    /// Debts have an end.
    pub(super) fn forgive(&mut self, least: u64) {
        // In the time of a tenant of middling weight.
        let most = MOST_DEBT_MICROS * VIRTUAL_PER_MICRO / 100;
        self.virtual_time = self.virtual_time.min(least.saturating_add(most));
    }
}
