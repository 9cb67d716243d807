//! Memory that others come to know by its physical place: it is brought to VRAM, once, and lies still from then on.
//!
//! Under `--policy static` nothing moves but this. The mover is started for it, and from then on calls are tracked as they
//! are under the other policies.

use std::time::Duration;

use emuv_cuda::{CUresult, CuResult};

use super::{ASK_AGAIN, Moves, in_reach};
use crate::{device::Device, session::Session, sync::Instant};

/// The GPU is waited for after so long without a move: what moves only while nothing runs may wait for that.
const WAIT_FOR_GPU: Duration = Duration::from_millis(20);

/// It is given up after so long without a move.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// It is given up after so long, whatever moves.
pub(super) const MOST: Duration = Duration::from_secs(10);

/// Brings the allocation that `address` lies in to VRAM, where it stays. Nothing to do for memory that is not emuV's.
///
/// # Errors
/// `CUDA_ERROR_OUT_OF_MEMORY` where VRAM has no room and nothing else can leave it; the allocation is as it was.
pub(crate) fn pinned(session: &Session, address: u64) -> CuResult {
    let Some(device) = session.device_at(address) else { return Ok(()) };
    in_reach(session);
    let offset = address - device.arena.base();
    if device.arena.residency().pin(offset) {
        return Ok(());
    }
    crate::log::debug(format_args!("what others are to know by its physical place lies in RAM: it is brought to VRAM"));
    if session.verify.is_none() {
        device.moves.begin_anyway(device.ordinal);
    }
    if device.moves.is_active() && device.moves.bring_to_pin(session, device, offset) {
        return Ok(());
    }
    crate::log::debug(format_args!("VRAM has no room for it"));
    CUresult::OUT_OF_MEMORY.ok()
}

impl Moves {
    /// Whether it is there.
    fn bring_to_pin(&self, session: &Session, device: &Device, offset: u64) -> bool {
        let arena = &device.arena;
        let (mut hold, start) = (None, Instant::now());
        let (mut stillness, mut for_gpu) = (self.stillness(), Duration::ZERO);
        loop {
            let mut residency = arena.residency();
            let there = residency.pin(offset);
            if there || self.still_for(&mut stillness) > PATIENCE || start.elapsed() > MOST + for_gpu {
                if !there {
                    residency.unpin(offset);
                }
                hold.into_iter().for_each(|hold| residency.release(hold));
                return there;
            }
            let (id, hope) = residency.bring_to_pin(offset, hold);
            hold = Some(id);
            if !hope {
                // What has no hope now may have some once the GPU has come further.
                residency.release(id);
                hold = None;
            }
            drop(residency);
            self.wake_mover();
            if self.still_for(&mut stillness) > WAIT_FOR_GPU && !session.captures.any() {
                // However long that takes, the mover gets its time afterwards.
                let waiting = Instant::now();
                self.wait_for_gpu(session, device);
                let waited = waiting.elapsed();
                stillness.apart += waited;
                for_gpu += waited;
                self.wake_mover();
            }
            drop(arena.settled.wait_timeout(arena.residency(), ASK_AGAIN));
        }
    }
}
