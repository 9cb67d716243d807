//! Memory that lies still while the driver looks at it.

use std::time::Duration;

use emuv_policy::HoldId;

use super::{
    ASK_AGAIN, Moves, offsets,
    pins::{MOST, PATIENCE},
};
use crate::{arena::Arena, session::Session, sync::Instant};

/// The driver is about to look at memory by its address, to keep what it finds (a copy becomes part of a graph: it wants
/// to know which memory is the device's). What lies there is mapped and lies still while `call` runs.
pub(crate) fn at_hand<T>(session: &Session, addresses: &[u64], call: impl FnOnce() -> T) -> T {
    held_still(session, addresses, false, call)
}

/// The same, in VRAM if there is room. What the GPU is doing is waited for if need be.
pub(crate) fn in_vram<T>(session: &Session, addresses: &[u64], call: impl FnOnce() -> T) -> T {
    held_still(session, addresses, true, call)
}

/// Whether all of the allocation that `address` lies in is in VRAM, or is none of emuV's.
pub(crate) fn is_in_vram(session: &Session, address: u64) -> bool {
    session
        .device_at(address)
        .is_none_or(|device| device.arena.residency().ram_bytes(&[address - device.arena.base()]) == 0)
}

fn held_still<T>(session: &Session, addresses: &[u64], promote: bool, call: impl FnOnce() -> T) -> T {
    let mut held = Vec::new();
    for device in session.devices().filter(|device| device.moves.is_active()) {
        let arena = &device.arena;
        let offsets = offsets(arena, addresses.iter().copied());
        if offsets.is_empty() {
            continue;
        }
        let mut id = device.moves.keep_at_hand(arena, &offsets, promote, PATIENCE);
        if promote && arena.residency().ram_bytes(&offsets) > 0 && !session.captures.any() {
            // What is in use does not move. Afterwards nothing is, and nothing that the GPU does can be waiting for this thread.
            arena.residency().release(id);
            device.moves.wait_for_gpu(session, device);
            id = device.moves.keep_at_hand(arena, &offsets, promote, MOST);
        }
        held.push((device, id));
    }
    let result = call();
    for (device, id) in held {
        device.arena.residency().release(id);
        device.moves.wake_mover();
    }
    result
}

impl Moves {
    /// Waits until these chunks are mapped and lie still, in VRAM if possible and wished, and keeps them so. VRAM is given up after
    /// `patience` without a move.
    fn keep_at_hand(&self, arena: &Arena, offsets: &[u64], promote: bool, patience: Duration) -> HoldId {
        let (start, mut stillness) = (Instant::now(), self.stillness());
        let mut held = None;
        loop {
            let mut residency = arena.residency();
            let patient = promote && self.still_for(&mut stillness) < patience && start.elapsed() < MOST;
            let (id, ready) = residency.keep_at_hand(offsets, held, patient);
            if ready {
                return id;
            }
            held = Some(id);
            drop(residency);
            self.wake_mover();
            drop(arena.settled.wait_timeout(arena.residency(), ASK_AGAIN));
        }
    }
}
