//! Counting bytes against a limit, exactly.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use emuv_policy::Bytes;

/// A kind of memory of which there is only so much.
#[derive(Debug)]
pub struct Account {
    limit: Bytes,
    used_bytes: AtomicU64,
}

impl Account {
    /// An account with nothing taken.
    pub fn new(limit: Bytes) -> Arc<Self> {
        Arc::new(Self { limit, used_bytes: AtomicU64::new(0) })
    }

    /// The most that can be taken.
    pub fn limit(&self) -> Bytes {
        self.limit
    }

    /// What is taken now.
    pub fn used(&self) -> Bytes {
        Bytes(self.used_bytes.load(Ordering::Relaxed))
    }

    /// Takes `bytes`, or `None` where that would pass the limit. Dropping the charge gives them back.
    pub fn charge(self: &Arc<Self>, bytes: Bytes) -> Option<Charge> {
        let fits = |used: u64| used.checked_add(bytes.0).filter(|&sum| sum <= self.limit.0);
        self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Charge { account: Arc::clone(self), bytes })
    }
}

/// Bytes taken from an account for as long as this lives.
#[derive(Debug)]
pub struct Charge {
    account: Arc<Account>,
    bytes: Bytes,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.used_bytes.fetch_sub(self.bytes.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_can_be_taken_and_no_more() {
        let account = Account::new(Bytes(10));
        let nine = account.charge(Bytes(9)).unwrap();
        assert!(account.charge(Bytes(2)).is_none());
        let one = account.charge(Bytes(1)).unwrap();
        assert!(account.charge(Bytes(1)).is_none());
        assert!(account.charge(Bytes(u64::MAX)).is_none());
        drop(nine);
        assert_eq!(account.used(), Bytes(1));
        drop(one);
        assert_eq!(account.used(), Bytes::ZERO);
    }
}
