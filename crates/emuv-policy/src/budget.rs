//! What may be held in each tier, and what is.

use crate::Tier;

/// The limit of one tier and what is charged against it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    limit: u64,
    used: u64,
    peak: u64,
}

impl Budget {
    /// A budget with nothing charged.
    pub const fn new(limit_bytes: u64) -> Self {
        Self { limit: limit_bytes, used: 0, peak: 0 }
    }

    /// What may be charged in all.
    pub const fn limit_bytes(&self) -> u64 {
        self.limit
    }

    /// What is charged now.
    pub const fn used_bytes(&self) -> u64 {
        self.used
    }

    /// The most that was ever charged at once.
    pub const fn peak_bytes(&self) -> u64 {
        self.peak
    }

    /// What may still be charged.
    pub const fn room_bytes(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }

    /// Charges `bytes` if there is room; says whether it did.
    #[must_use]
    pub fn charge(&mut self, bytes: u64) -> bool {
        if bytes > self.room_bytes() {
            return false;
        }
        self.used += bytes;
        self.peak = self.peak.max(self.used);
        true
    }

    /// Gives a charge back.
    pub fn credit(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.used, "more given back than was charged");
        self.used = self.used.saturating_sub(bytes);
    }
}

/// The budgets of both tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budgets {
    /// The card's memory.
    pub vram: Budget,
    /// Pinned host memory.
    pub ram: Budget,
}

impl Budgets {
    /// Budgets with nothing charged.
    pub const fn new(vram_bytes: u64, ram_bytes: u64) -> Self {
        Self { vram: Budget::new(vram_bytes), ram: Budget::new(ram_bytes) }
    }

    /// The budget of a tier.
    pub const fn of(&self, tier: Tier) -> &Budget {
        match tier {
            Tier::Vram => &self.vram,
            Tier::Ram => &self.ram,
        }
    }

    /// The budget of a tier, to charge or credit.
    pub fn of_mut(&mut self, tier: Tier) -> &mut Budget {
        match tier {
            Tier::Vram => &mut self.vram,
            Tier::Ram => &mut self.ram,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_beyond_the_limit_changes_nothing() {
        let mut budget = Budget::new(100);
        assert!(budget.charge(60));
        assert!(!budget.charge(41));
        assert_eq!((budget.used_bytes(), budget.room_bytes(), budget.peak_bytes()), (60, 40, 60));
    }

    #[test]
    fn the_peak_outlives_what_made_it() {
        let mut budget = Budget::new(100);
        assert!(budget.charge(80));
        budget.credit(80);
        assert!(budget.charge(10));
        assert_eq!((budget.used_bytes(), budget.peak_bytes()), (10, 80));
    }
}
