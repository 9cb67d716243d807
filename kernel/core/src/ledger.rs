// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only

//! Who holds how much of an instance.
//!
//! A [`Ledger`] belongs to an instance, an [`Account`] to one open file of it. The caller keeps both, under one lock.
//!
//! Invariants, after every call (`tests/ledger.rs` states them as properties):
//! 1. VRAM used is the sum of what the open accounts hold; RAM used is that sum plus the resident pages.
//! 2. A charge never takes use above the limit. Use can be above it only because the limit was lowered.
//! 3. A call that is refused changes no figure.
//! 4. Peak is the most that was ever used; the generation grows by one with every change of the limits.
//! 5. A closed account holds nothing: what it held is free when `close` returns.

/// An amount of each tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes of VRAM.
    pub vram_bytes: u64,
    /// Bytes of RAM.
    pub ram_bytes: u64,
}

impl Amount {
    /// Of both tiers `vram_bytes` and `ram_bytes`.
    #[must_use]
    pub const fn new(vram_bytes: u64, ram_bytes: u64) -> Self {
        Self { vram_bytes, ram_bytes }
    }

    /// The sum, unless a tier overflows.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        Some(Self {
            vram_bytes: self.vram_bytes.checked_add(other.vram_bytes)?,
            ram_bytes: self.ram_bytes.checked_add(other.ram_bytes)?,
        })
    }

    /// The difference, unless a tier would be less than nothing.
    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        Some(Self {
            vram_bytes: self.vram_bytes.checked_sub(other.vram_bytes)?,
            ram_bytes: self.ram_bytes.checked_sub(other.ram_bytes)?,
        })
    }

    /// The difference, nothing where it would be less.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self {
            vram_bytes: self.vram_bytes.saturating_sub(other.vram_bytes),
            ram_bytes: self.ram_bytes.saturating_sub(other.ram_bytes),
        }
    }

    fn max(self, other: Self) -> Self {
        Self { vram_bytes: self.vram_bytes.max(other.vram_bytes), ram_bytes: self.ram_bytes.max(other.ram_bytes) }
    }

    /// Whether each tier that is asked for has room. Nothing always fits, also where a limit was lowered below the use.
    #[must_use]
    pub fn fits(self, left: Self) -> bool {
        (self.vram_bytes == 0 || self.vram_bytes <= left.vram_bytes)
            && (self.ram_bytes == 0 || self.ram_bytes <= left.ram_bytes)
    }
}

/// Why a call was refused. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The instance has only this left.
    NoRoom(Amount),
    /// More than any memory could be.
    Overflow,
    /// More than the account holds.
    NotHeld,
    /// The instance is being removed; nothing new can be had.
    Removed,
}

/// One open file's part. Made by [`Ledger::open`]; [`Ledger::close`] takes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Account {
    held: Amount,
    refused: Option<Amount>,
    seen_generation: u64,
}

impl Account {
    /// What it holds.
    #[must_use]
    pub const fn held(&self) -> Amount {
        self.held
    }
}

/// What a waiter would be told now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// A charge may succeed: the last one was not refused, or would not be again.
    pub room: bool,
    /// The limits changed since the account last saw them.
    pub limits: bool,
    /// The instance is gone.
    pub removed: bool,
}

/// The books of an instance.
#[derive(Debug)]
pub struct Ledger {
    limits: Amount,
    used: Amount,
    peak: Amount,
    resident_bytes: u64,
    holders: u32,
    generation: u64,
    removed: bool,
}

impl Ledger {
    /// An instance of which nothing is used.
    #[must_use]
    pub const fn new(limits: Amount) -> Self {
        Self {
            limits,
            used: Amount::new(0, 0),
            peak: Amount::new(0, 0),
            resident_bytes: 0,
            holders: 0,
            generation: 0,
            removed: false,
        }
    }

    /// A new holder, who has seen the limits of now.
    ///
    /// # Errors
    /// [`Refusal::Removed`]; [`Refusal::Overflow`] at four thousand million holders.
    pub fn open(&mut self) -> Result<Account, Refusal> {
        if self.removed {
            return Err(Refusal::Removed);
        }
        self.holders = self.holders.checked_add(1).ok_or(Refusal::Overflow)?;
        Ok(Account { held: Amount::default(), refused: None, seen_generation: self.generation })
    }

    /// The holder is gone; what it held is free. `account` must be one of this ledger's.
    pub fn close(&mut self, account: &mut Option<Account>) {
        if let Some(account) = account.take() {
            // Never less than nothing: invariant 1.
            self.used = self.used.saturating_sub(account.held);
            self.holders = self.holders.saturating_sub(1);
        }
    }

    /// Takes `amount` for `account`, all of it or nothing.
    ///
    /// # Errors
    /// [`Refusal::NoRoom`], [`Refusal::Overflow`], [`Refusal::Removed`].
    pub fn charge(&mut self, account: &mut Account, amount: Amount) -> Result<(), Refusal> {
        if self.removed {
            return Err(Refusal::Removed);
        }
        let used = self.used.checked_add(amount).ok_or(Refusal::Overflow)?;
        if !amount.fits(self.left()) {
            account.refused = Some(amount);
            return Err(Refusal::NoRoom(self.left()));
        }
        // What an account holds is part of what is used, so it cannot overflow where that did not.
        account.held = account.held.checked_add(amount).ok_or(Refusal::Overflow)?;
        account.refused = None;
        self.set_used(used);
        Ok(())
    }

    /// Gives `amount` of what `account` holds back, all of it or nothing.
    ///
    /// # Errors
    /// [`Refusal::NotHeld`].
    pub fn release(&mut self, account: &mut Account, amount: Amount) -> Result<(), Refusal> {
        account.held = account.held.checked_sub(amount).ok_or(Refusal::NotHeld)?;
        self.used = self.used.saturating_sub(amount);
        Ok(())
    }

    /// Takes RAM for pages of the instance's own, which belong to all holders.
    ///
    /// # Errors
    /// As [`Ledger::charge`].
    pub fn charge_resident(&mut self, bytes: u64) -> Result<(), Refusal> {
        if self.removed {
            return Err(Refusal::Removed);
        }
        let used = self.used.checked_add(Amount::new(0, bytes)).ok_or(Refusal::Overflow)?;
        if bytes > self.left().ram_bytes {
            return Err(Refusal::NoRoom(self.left()));
        }
        self.resident_bytes += bytes;
        self.set_used(used);
        Ok(())
    }

    /// Pages of the instance's own are gone.
    pub fn release_resident(&mut self, bytes: u64) {
        let bytes = bytes.min(self.resident_bytes);
        self.resident_bytes -= bytes;
        self.used = self.used.saturating_sub(Amount::new(0, bytes));
    }

    /// New limits, from now on. They may be below what is used: nobody loses what they hold, and nobody gets more until there
    /// is room again. Says whether anything changed.
    pub fn resize(&mut self, limits: Amount) -> bool {
        let changed = self.limits != limits;
        if changed {
            self.limits = limits;
            self.generation = self.generation.wrapping_add(1);
        }
        changed
    }

    /// The instance goes: no new holders, no new charges. Holders keep what they have until they close.
    pub fn remove(&mut self) {
        self.removed = true;
    }

    /// The limits, after which `account` has seen them.
    pub fn see_limits(&self, account: &mut Account) -> Amount {
        account.seen_generation = self.generation;
        self.limits
    }

    /// What `account` would be told if it waited.
    #[must_use]
    pub fn news(&self, account: &Account) -> News {
        News {
            room: account.refused.is_none_or(|amount| amount.fits(self.left())),
            limits: account.seen_generation != self.generation,
            removed: self.removed,
        }
    }

    /// What can still be charged.
    #[must_use]
    pub fn left(&self) -> Amount {
        self.limits.saturating_sub(self.used)
    }

    /// The limits.
    #[must_use]
    pub const fn limits(&self) -> Amount {
        self.limits
    }

    /// What is used.
    #[must_use]
    pub const fn used(&self) -> Amount {
        self.used
    }

    /// The most that was ever used of each.
    #[must_use]
    pub const fn peak(&self) -> Amount {
        self.peak
    }

    /// Bytes of the instance's own pages; part of the RAM used.
    #[must_use]
    pub const fn resident_bytes(&self) -> u64 {
        self.resident_bytes
    }

    /// Open accounts.
    #[must_use]
    pub const fn holders(&self) -> u32 {
        self.holders
    }

    /// How often the limits have changed.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the instance is gone.
    #[must_use]
    pub const fn is_removed(&self) -> bool {
        self.removed
    }

    fn set_used(&mut self, used: Amount) {
        self.used = used;
        self.peak = self.peak.max(used);
    }
}
