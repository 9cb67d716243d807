//! What is charged for things that go with their context. What the driver takes of VRAM for a program's code (images of
//! modules and libraries) and for its contexts' limits (stacks, heap, print buffers): nobody says how much, so what is
//! free is compared before and after. And memory of other interfaces (Vulkan, OpenGL) that the program uses from CUDA.

use std::collections::HashMap;

use emuv_cuda::types::{CU_LIMIT_STACK_SIZE, CUlimit};
use emuv_policy::Owner;

use crate::{account::Kind, arena::lock, device::Device, session::Session, sync::Mutex};

/// More than any image or limit takes: something else took the memory meanwhile.
const ABSURD_BYTES: u64 = 4 << 30;

/// More than an image takes of which the driver loads each kernel when it is first used. Another process may well have taken
/// more meanwhile.
const LAZY_BYTES: u64 = 64 << 20;

/// Threads that a GPU can have at once at most, each with a stack.
const MOST_THREADS: u64 = 1 << 19;

/// What is charged, and with which context it goes. One per process.
#[derive(Debug, Default)]
pub(crate) struct ContextCharges(Mutex<HashMap<(Kind, u64), Charge>>);

#[derive(Debug, Clone, Copy)]
struct Charge {
    context: Owner,
    bytes: u64,
}

/// What an image takes at most.
pub(crate) fn most_of_image(is_lazy: bool) -> u64 {
    if is_lazy { LAZY_BYTES } else { ABSURD_BYTES }
}

/// What a limit takes at most that is set to `value`.
pub(crate) fn most_of_limit(limit: CUlimit, value: u64) -> u64 {
    let each = if limit == CU_LIMIT_STACK_SIZE { value.saturating_mul(MOST_THREADS) } else { value };
    each.saturating_add(LAZY_BYTES).min(ABSURD_BYTES)
}

/// What a call took, by (free in the driver's word, placed by emuV) before and after it, in bytes: negative if it gave
/// something back, zero if the figures make no sense because it is more than `most_bytes`.
pub(crate) fn taken(before: (u64, u64), after: (u64, u64), most_bytes: u64) -> i64 {
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let fell = signed(before.0).saturating_sub(signed(after.0));
    let placed = signed(after.1).saturating_sub(signed(before.1));
    let taken = fell.saturating_sub(placed);
    if taken.unsigned_abs() > most_bytes { 0 } else { taken }
}

/// A context's limit, as one number. Addresses have at most 57 bits.
fn limit_handle(context: Owner, limit: CUlimit) -> u64 {
    context.0 ^ (u64::from(limit) << 57)
}

impl ContextCharges {
    /// Code has been loaded.
    pub fn loaded(&self, session: &Session, device: &Device, context: Owner, handle: u64, taken: i64) {
        self.set(session, device, (Kind::Image, handle), context, u64::try_from(taken).unwrap_or(0));
    }

    /// A context's limit has been set to something else.
    pub fn limit_set(&self, session: &Session, device: &Device, context: Owner, limit: CUlimit, taken: i64) {
        let key = (Kind::Limit, limit_handle(context, limit));
        let before = lock(&self.0).get(&key).map_or(0, |charge| charge.bytes);
        self.set(session, device, key, context, before.saturating_add_signed(taken));
    }

    /// Memory of another interface has come into use; nobody can refuse it, since it is there already. Said again of
    /// the same handle, the larger figure counts.
    pub fn lent(&self, session: &Session, device: &Device, context: Owner, handle: u64, bytes: u64) {
        let key = (Kind::External, handle);
        let before = lock(&self.0).get(&key).map_or(0, |charge| charge.bytes);
        if bytes > before {
            self.set(session, device, key, context, bytes);
        }
    }

    /// Code is about to be unloaded, or lent memory has been given back.
    pub fn gone(&self, session: &Session, kind: Kind, handle: u64) {
        self.release(session, |key, _| *key == (kind, handle));
    }

    /// Contexts are gone, with their code and what their limits took.
    pub fn contexts_gone(&self, session: &Session, contexts: &[Owner]) {
        self.release(session, |_, charge| contexts.contains(&charge.context));
    }

    fn set(&self, session: &Session, device: &Device, key: (Kind, u64), context: Owner, bytes: u64) {
        let known = if bytes > 0 {
            lock(&self.0).insert(key, Charge { context, bytes }).is_some()
        } else {
            lock(&self.0).remove(&key).is_some()
        };
        if bytes > 0 {
            device.accounts.settle(session, device, key.0, key.1, bytes);
            device.publish(session);
        } else if known {
            session.release_account(key.0, key.1);
        }
    }

    fn release(&self, session: &Session, gone: impl Fn(&(Kind, u64), &Charge) -> bool) {
        let mut keys = Vec::new();
        lock(&self.0).retain(|key, charge| {
            let gone = gone(key, charge);
            if gone {
                keys.push(*key);
            }
            !gone
        });
        keys.into_iter().for_each(|(kind, handle)| session.release_account(kind, handle));
    }
}

#[cfg(test)]
mod tests {
    use emuv_cuda::types::CU_LIMIT_MALLOC_HEAP_SIZE;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_a_call_took_is_what_is_missing_apart_from_what_emuv_placed() {
        let taken = |before, after| taken(before, after, most_of_image(true));
        assert_eq!(taken((100 * MIB, 10 * MIB), (98 * MIB, 10 * MIB)), 2 << 20);
        assert_eq!(taken((100 * MIB, 10 * MIB), (66 * MIB, 42 * MIB)), 2 << 20, "another thread allocated 32 MiB");
        assert_eq!(taken((100 * MIB, 10 * MIB), (104 * MIB, 10 * MIB)), -(4 << 20), "a limit was lowered");
    }

    #[test]
    fn what_makes_no_sense_counts_as_nothing() {
        let most = most_of_image(false);
        assert_eq!(taken((8192 * MIB, 0), (1024 * MIB, 0), most), 0, "another process took it");
        assert_eq!(taken((0, 0), (8192 * MIB, 0), most), 0);
        assert_eq!(taken((u64::MAX, 0), (0, u64::MAX), most), 0);
        assert_eq!(taken((8192 * MIB, 0), (7192 * MIB, 0), most), 1000 << 20, "all kernels of a library");
        assert_eq!(taken((8192 * MIB, 0), (7192 * MIB, 0), most_of_image(true)), 0, "they are loaded later");
    }

    #[test]
    fn a_limit_takes_no_more_than_it_says() {
        assert_eq!(most_of_limit(CU_LIMIT_MALLOC_HEAP_SIZE, 128 * MIB), 192 * MIB);
        assert_eq!(most_of_limit(CU_LIMIT_STACK_SIZE, 1024), 576 * MIB);
        assert_eq!(most_of_limit(CU_LIMIT_STACK_SIZE, u64::MAX), 4096 * MIB);
    }

    #[test]
    fn each_limit_of_each_context_is_charged_by_itself() {
        let handles = [(0x1000, 0), (0x1000, 1), (0x1000, 2), (0x2000, 0), (0x2000, 1)];
        let mut numbers: Vec<u64> = handles.iter().map(|(owner, limit)| limit_handle(Owner(*owner), *limit)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), handles.len());
    }
}
