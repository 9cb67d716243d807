//! What may be held in each tier, and what is.
//!
//! A budget may be *shared* with other processes (those of a slice of the GPU): then its limit is for all of them
//! together, and this process may charge only what it has been *granted* of it. Grants are got before they are needed and
//! the rest is given back afterwards:
//!
//! ```text
//!            grant(n)                     charge(n)                  finish(n), surplus()
//!   nothing ----------> granted, awaited -----------> granted, used ---------------------> what is used stays granted
//! ```

use crate::Tier;

/// The limit of one tier and what is charged against it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    limit: u64,
    used: u64,
    peak: u64,
    shared: Option<Grant>,
}

/// What this process has of a budget that others share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Grant {
    /// What it may charge in all.
    granted: u64,
    /// The part of that which somebody has asked for and may not have charged yet.
    awaited: u64,
    /// What nobody has been granted, when that was last looked at.
    open: u64,
}

impl Budget {
    /// A budget with nothing charged.
    pub const fn new(limit_bytes: u64) -> Self {
        Self { limit: limit_bytes, used: 0, peak: 0, shared: None }
    }

    /// A budget of which others have a part, with nothing charged and nothing granted.
    pub const fn shared(limit_bytes: u64) -> Self {
        let grant = Grant { granted: 0, awaited: 0, open: 0 };
        Self { limit: limit_bytes, used: 0, peak: 0, shared: Some(grant) }
    }

    /// What may be charged in all, by all who share it.
    pub const fn limit_bytes(&self) -> u64 {
        self.limit
    }

    /// Changes the limit. What is charged stays so, even beyond it.
    pub const fn set_limit(&mut self, limit_bytes: u64) {
        self.limit = limit_bytes;
    }

    /// What is charged now.
    pub const fn used_bytes(&self) -> u64 {
        self.used
    }

    /// The most that was ever charged at once.
    pub const fn peak_bytes(&self) -> u64 {
        self.peak
    }

    /// What may be charged now.
    pub fn room_bytes(&self) -> u64 {
        self.shared.map_or(self.limit, |grant| grant.granted).saturating_sub(self.used)
    }

    /// What might be charged, if nobody else takes it: the room, and what could be granted.
    pub fn prospect_bytes(&self) -> u64 {
        self.room_bytes().saturating_add(self.shared.map_or(0, |grant| grant.open))
    }

    /// More has been got from what is shared; somebody is about to charge it, and says so by [`Self::finish`].
    pub fn grant(&mut self, bytes: u64) {
        if let Some(grant) = &mut self.shared {
            grant.granted = grant.granted.saturating_add(bytes);
            grant.awaited = grant.awaited.saturating_add(bytes);
            grant.open = grant.open.saturating_sub(bytes);
        }
    }

    /// Whoever wanted to charge what was granted has done so, or not.
    pub fn finish(&mut self, bytes: u64) {
        if let Some(grant) = &mut self.shared {
            grant.awaited = grant.awaited.saturating_sub(bytes);
        }
    }

    /// Takes what is granted and neither used nor awaited away from this process: to be given back.
    #[must_use]
    pub fn surplus(&mut self) -> u64 {
        let Some(grant) = &mut self.shared else { return 0 };
        let surplus = grant.granted.saturating_sub(self.used).saturating_sub(grant.awaited);
        grant.granted -= surplus;
        grant.open = grant.open.saturating_add(surplus);
        surplus
    }

    /// What nobody has been granted, by a look at it now.
    pub fn set_open(&mut self, bytes: u64) {
        if let Some(grant) = &mut self.shared {
            grant.open = bytes;
        }
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

    /// Charges memory that is there whether it fits or not: beyond the limit, but of a shared budget no more than was
    /// granted. Gives what it charged.
    pub fn overdraw(&mut self, bytes: u64) -> u64 {
        let charged = if self.shared.is_some() { bytes.min(self.room_bytes()) } else { bytes };
        self.used = self.used.saturating_add(charged);
        self.peak = self.peak.max(self.used);
        charged
    }

    /// What is charged beyond the limit of a budget that nobody shares.
    pub fn overdrawn_bytes(&self) -> u64 {
        if self.shared.is_some() { 0 } else { self.used.saturating_sub(self.limit) }
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

    /// Budgets that others share.
    pub const fn shared(vram_bytes: u64, ram_bytes: u64) -> Self {
        Self { vram: Budget::shared(vram_bytes), ram: Budget::shared(ram_bytes) }
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
    fn what_is_there_already_is_charged_beyond_the_limit_but_not_beyond_a_grant() {
        let mut own = Budget::new(100);
        assert!(own.charge(80));
        assert_eq!((own.overdraw(50), own.overdrawn_bytes(), own.room_bytes()), (50, 30, 0));
        own.credit(80);
        assert_eq!(own.room_bytes(), 50);

        let mut shared = Budget::shared(100);
        shared.grant(30);
        assert_eq!((shared.overdraw(50), shared.used_bytes()), (30, 30));
    }

    #[test]
    fn the_peak_outlives_what_made_it() {
        let mut budget = Budget::new(100);
        assert!(budget.charge(80));
        budget.credit(80);
        assert!(budget.charge(10));
        assert_eq!((budget.used_bytes(), budget.peak_bytes()), (10, 80));
    }

    #[test]
    fn of_a_shared_budget_only_what_is_granted_may_be_charged() {
        let mut budget = Budget::shared(100);
        assert!(!budget.charge(1));
        budget.set_open(70);
        budget.grant(60);
        assert_eq!((budget.room_bytes(), budget.prospect_bytes()), (60, 70));
        assert!(budget.charge(50) && !budget.charge(11));
    }

    #[test]
    fn what_somebody_is_about_to_charge_is_no_surplus() {
        let mut budget = Budget::shared(100);
        budget.grant(60);
        budget.grant(20);
        assert!(budget.charge(60));
        assert_eq!(budget.surplus(), 0);
        budget.finish(60);
        assert_eq!(budget.surplus(), 0, "20 are awaited");
        budget.finish(20);
        assert_eq!(budget.surplus(), 20);
        budget.credit(60);
        assert_eq!((budget.surplus(), budget.surplus(), budget.room_bytes()), (60, 0, 0));
    }

    #[test]
    fn a_limit_may_fall_below_what_is_charged() {
        let mut budget = Budget::new(100);
        assert!(budget.charge(80));
        budget.set_limit(50);
        assert_eq!(budget.room_bytes(), 0);
        budget.credit(40);
        assert!(budget.charge(10) && !budget.charge(1));
    }
}
