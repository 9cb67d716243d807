//! One quota as a file of which every byte of quota is a byte: charged is what is locked.
//!
//! Positions beyond the limit are never locked. They may be left over from before the limit was lowered: the *debt*. To
//! charge `n` a process locks `n` and as much more as the debt is, all below the limit, and then gives the debt's part
//! back. At the moment at which it had both, what others hold below the limit, `n` and the debt fitted into the limit
//! together; so no two processes can use the same room, whatever the order of their steps.

use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::locks;

/// All offsets.
const END: u64 = i64::MAX as u64;

/// Attempts at finding room before it is said that there is none: another process may have taken something only to give
/// it back.
const ATTEMPTS: u32 = 4;

/// See the module's head.
#[derive(Debug)]
pub(super) struct LockLedger {
    file: File,
    /// What this process has locked, apart and not empty.
    held: Mutex<Vec<Range<u64>>>,
    /// Where this process looks for room first, in 65536ths of the limit: processes that begin apart seldom meet.
    base: u64,
}

impl LockLedger {
    /// A ledger in which this process holds nothing yet.
    pub fn new(file: File, base: u16) -> Self {
        Self { file, held: Mutex::default(), base: u64::from(base) }
    }

    /// Charges `bytes` if they fit below `limit`; says whether it did. Nothing has changed otherwise.
    ///
    /// # Errors
    /// The system's own; nothing is charged then.
    pub fn charge(&self, bytes: u64, limit: u64) -> io::Result<bool> {
        if bytes == 0 {
            return Ok(true);
        }
        let mut held = self.held();
        for _ in 0..ATTEMPTS {
            let debt = self.beyond(&held, limit)?;
            let Some(wanted) = bytes.checked_add(debt).filter(|wanted| *wanted <= limit) else { return Ok(false) };
            let before = held.clone();
            match self.grab(&mut held, wanted, limit) {
                Ok(true) => {
                    self.drop_newest(&mut held, debt);
                    return Ok(true);
                }
                Ok(false) => {
                    let short = total(&held) - total(&before);
                    self.drop_newest(&mut held, short);
                    // Nobody is seen to have less than all: there is no use in trying again.
                    let free = limit.saturating_sub(total(&held)).saturating_sub(self.others(&held, 0..limit)?);
                    if free < wanted {
                        return Ok(false);
                    }
                }
                Err(error) => {
                    let short = total(&held) - total(&before);
                    self.drop_newest(&mut held, short);
                    return Err(error);
                }
            }
            std::thread::yield_now();
        }
        Ok(false)
    }

    /// Gives `bytes` of what this process has charged back; what lies beyond `limit` first.
    pub fn release(&self, bytes: u64, limit: u64) {
        let mut held = self.held();
        // Sorting is stable: among the others the newest go first.
        held.sort_by_key(|range| range.end > limit);
        self.drop_newest(&mut held, bytes);
    }

    /// What this process has charged.
    pub fn own_bytes(&self) -> u64 {
        total(&self.held())
    }

    /// What all processes have charged. Read in steps: what is charged and released meanwhile may count or not.
    ///
    /// # Errors
    /// The system's own.
    pub fn used_bytes(&self) -> io::Result<u64> {
        let held = self.held();
        Ok(total(&held) + self.others(&held, 0..END)?)
    }

    /// In a forked child: the parent's charges are not the child's.
    pub fn forked(&self, idle: &OwnedFd) {
        locks::replace(&self.file, idle);
    }

    fn held(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is locked beyond the limit, by anybody.
    fn beyond(&self, held: &[Range<u64>], limit: u64) -> io::Result<u64> {
        let own: u64 = held.iter().map(|range| range.end.saturating_sub(range.start.max(limit))).sum();
        Ok(own + self.others(held, limit..END)?)
    }

    /// What other descriptions have locked within a range.
    fn others(&self, held: &[Range<u64>], within: Range<u64>) -> io::Result<u64> {
        let mut sum = 0;
        let mut open = vec![within];
        while let Some(range) = open.pop() {
            if range.is_empty() {
                continue;
            }
            // Not the lowest one, just one. Our own do not count as conflicts.
            if let Some(found) = locks::conflict(&self.file, &range)? {
                let inside = found.start.max(range.start)..found.end.min(range.end);
                sum += inside.end - inside.start;
                open.push(range.start..inside.start);
                open.push(inside.end..range.end);
            }
        }
        debug_assert!(held.iter().all(|range| !range.is_empty()));
        Ok(sum)
    }

    /// Locks up to `wanted` bytes below the limit; says whether it was all of it. What was locked is in `held`, the
    /// newest last.
    fn grab(&self, held: &mut Vec<Range<u64>>, wanted: u64, limit: u64) -> io::Result<bool> {
        // Where the last one ends, there is most likely more; else where this process begins.
        let base = limit / (1 << 16) * self.base;
        let start = held.last().map_or(base, |range| range.end);
        let start = if start < limit { start } else { 0 };
        let mut left = wanted;
        for part in [start..limit, 0..start] {
            let mut at = part.start;
            while at < part.end && left > 0 {
                if let Some(own) = held.iter().find(|range| range.contains(&at)) {
                    at = own.end;
                    continue;
                }
                let next_own = held.iter().map(|range| range.start).filter(|start| *start > at).min().unwrap_or(END);
                let mut end = part.end.min(next_own).min(at.saturating_add(left));
                // Shorter and shorter, until it is free or nothing is left of it.
                loop {
                    if locks::try_lock(&self.file, &(at..end))? {
                        left -= end - at;
                        push(held, at..end);
                        at = end;
                        break;
                    }
                    match locks::conflict(&self.file, &(at..end))? {
                        Some(other) if other.start > at => end = other.start,
                        Some(other) => {
                            at = other.end;
                            break;
                        }
                        // It has just been given back.
                        None => {}
                    }
                }
            }
        }
        Ok(left == 0)
    }

    /// Gives the newest `bytes` of `held` back.
    fn drop_newest(&self, held: &mut Vec<Range<u64>>, bytes: u64) {
        let mut left = bytes;
        while left > 0 {
            let Some(last) = held.last_mut() else { return };
            let part = last.end - left.min(last.end - last.start)..last.end;
            if locks::unlock(&self.file, &part).is_err() {
                // Splitting a lock takes memory. What is not unlocked stays charged, which exceeds nothing.
                return;
            }
            left -= part.end - part.start;
            last.end = part.start;
            if last.is_empty() {
                held.pop();
            }
        }
    }
}

/// Adds a range as the newest, joined to the last one where they touch.
fn push(held: &mut Vec<Range<u64>>, range: Range<u64>) {
    match held.last_mut().filter(|last| last.end == range.start) {
        Some(last) => last.end = range.end,
        None => held.push(range),
    }
}

fn total(held: &[Range<u64>]) -> u64 {
    held.iter().map(|range| range.end - range.start).sum()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    /// A process's view: locks of different descriptions conflict within one process as between several.
    fn open(path: &Path, base: u16) -> LockLedger {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        LockLedger::new(file, base)
    }

    fn several(count: u16) -> (tempfile::TempDir, Vec<LockLedger>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vram");
        let ledgers = (0..count).map(|index| open(&path, index.wrapping_mul(40_503))).collect();
        (folder, ledgers)
    }

    #[test]
    fn what_one_has_the_other_has_not() {
        let (_folder, ledgers) = several(2);
        assert!(ledgers[0].charge(60, 100).unwrap());
        assert!(!ledgers[1].charge(41, 100).unwrap());
        assert!(ledgers[1].charge(40, 100).unwrap());
        assert!(!ledgers[1].charge(1, 100).unwrap());
        ledgers[0].release(10, 100);
        assert!(ledgers[1].charge(10, 100).unwrap());
        assert_eq!((ledgers[0].own_bytes(), ledgers[1].own_bytes()), (50, 50));
        assert_eq!((ledgers[0].used_bytes().unwrap(), ledgers[1].used_bytes().unwrap()), (100, 100));
    }

    #[test]
    fn who_is_gone_has_nothing() {
        let (_folder, mut ledgers) = several(2);
        assert!(ledgers[0].charge(100, 100).unwrap());
        drop(ledgers.remove(0));
        assert_eq!(ledgers[0].used_bytes().unwrap(), 0);
        assert!(ledgers[0].charge(100, 100).unwrap());
    }

    #[test]
    fn after_shrinking_nothing_is_given_until_the_debt_is_paid() {
        let (_folder, ledgers) = several(2);
        assert!(ledgers[0].charge(80, 100).unwrap());
        // Now the limit is 50; 20 of the 80 are given back, and they need not be those beyond it.
        ledgers[0].release(20, 100);
        assert!(!ledgers[1].charge(1, 50).unwrap());
        ledgers[0].release(20, 50);
        assert_eq!(ledgers[1].used_bytes().unwrap(), 40);
        assert!(!ledgers[1].charge(11, 50).unwrap());
        assert!(ledgers[1].charge(10, 50).unwrap());
    }

    #[test]
    fn what_is_written_into_the_file_or_cut_from_it_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vram");
        let (one, two) = (open(&path, 0), open(&path, 0));
        assert!(one.charge(90, 100).unwrap());
        std::fs::write(&path, [0; 4096]).unwrap();
        File::create(&path).unwrap();
        assert!(!two.charge(11, 100).unwrap());
        assert_eq!(two.used_bytes().unwrap(), 90);
    }

    #[test]
    fn scattered_room_is_found_to_the_last_byte() {
        let (_folder, ledgers) = several(3);
        let limit = 1000;
        // Many small ones of two processes side by side, then those of one of them go.
        for _ in 0..100 {
            assert!(ledgers[0].charge(5, limit).unwrap() && ledgers[1].charge(5, limit).unwrap());
        }
        assert!(!ledgers[2].charge(1, limit).unwrap());
        ledgers[1].release(500, limit);
        assert!(ledgers[2].charge(500, limit).unwrap() && !ledgers[2].charge(1, limit).unwrap());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Against a plain sum: a charge is given exactly when it fits, whoever holds what where, and whatever the limit
        /// was before.
        #[test]
        fn a_charge_is_given_exactly_when_it_fits(
            steps in proptest::collection::vec((0_usize..4, 0_u8..3, 1_u64..40), 1..120)
        ) {
            let (_folder, ledgers) = several(4);
            let mut own = [0_u64; 4];
            let mut limit = 100;
            for (who, what, bytes) in steps {
                match what {
                    0 => {
                        let given = ledgers[who].charge(bytes, limit).unwrap();
                        prop_assert_eq!(given, own.iter().sum::<u64>() + bytes <= limit);
                        own[who] += if given { bytes } else { 0 };
                    }
                    1 => {
                        let bytes = bytes.min(own[who]);
                        ledgers[who].release(bytes, limit);
                        own[who] -= bytes;
                    }
                    _ => limit = 60 + bytes * 2,
                }
                prop_assert_eq!(ledgers[who].own_bytes(), own[who]);
                prop_assert_eq!(ledgers[(who + 1) % 4].used_bytes().unwrap(), own.iter().sum::<u64>());
            }
        }
    }
}
