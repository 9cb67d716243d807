//! Copies into RAM, in pieces, so that the engine that makes them can be made quiet soon.
//!
//! While that engine has one operation after the other to do, making memory accessible (`cuMemSetAccess`) takes 650 us instead of
//! 45, whatever the sizes: it has to wait for a turn on that engine (measured; `docs/measurements.md`). As soon as the engine has
//! nothing to do it takes its turn. So no more than [`AHEAD`] pieces are given to it at a time, and none while the mover has something
//! to map (`mover/transfers.rs`): those a kernel copies. That is no way to copy everything: it takes part of the GPU from the program's
//! kernels, and of the link it has a third less while those compute.

use std::collections::VecDeque;

use emuv_cuda::CUresult;
use emuv_policy::Tier;

use super::copies::Copies;
use crate::{calls, real::Real};

/// Large enough for the link's full speed, as long as the next one is at hand.
const PIECE_BYTES: u64 = 4 << 20;

/// Pieces that have been given and are not done yet.
const AHEAD: usize = 2;

#[derive(Debug)]
struct Copy<T> {
    what: T,
    target: u64,
    source: u64,
    bytes: u64,
    /// How much of it has been given.
    given: u64,
    /// Of which so many pieces are not known to be done.
    pieces: u32,
    result: CUresult,
}

/// What copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The copy engine: at the link's full speed.
    Engine,
    /// A kernel: beside it mappings can be changed.
    Kernel,
}

/// See the module's head. Copies are made, and end, in the order in which they were asked for.
#[derive(Debug)]
pub(super) struct Outgoing<T> {
    copies: VecDeque<Copy<T>>,
    /// Pieces that have been given: what copies each, and the event behind it.
    pieces: VecDeque<(By, usize)>,
}

impl<T> Outgoing<T> {
    pub const fn new() -> Self {
        Self { copies: VecDeque::new(), pieces: VecDeque::new() }
    }

    /// Asks for a copy of `bytes`; [`Self::give`] begins it.
    pub fn push(&mut self, what: T, target: u64, source: u64, bytes: u64) {
        let result = CUresult::SUCCESS;
        self.copies.push_back(Copy { what, target, source, bytes, given: 0, pieces: 0, result });
    }

    /// Whether the engine has nothing to do.
    pub fn is_quiet(&self) -> bool {
        self.pieces.iter().all(|(by, _)| *by != By::Engine)
    }

    /// Gives the engine or the kernel something to do, if there is not enough under way. What cannot be given fails; what the kernel
    /// cannot copy waits.
    pub fn give(&mut self, real: &Real, streams: &mut Copies, by: By) {
        while self.pieces.len() < AHEAD {
            let Some(copy) = self.copies.iter_mut().find(|copy| copy.given < copy.bytes) else { return };
            let bytes = PIECE_BYTES.min(copy.bytes - copy.given);
            let (target, source) = (copy.target + copy.given, copy.source + copy.given);
            let started = match by {
                By::Engine => Some(streams.start(real, Tier::Ram, target, source, bytes)),
                By::Kernel => streams.start_by_kernel(real, target, source, bytes),
            };
            let Some(started) = started else { return };
            match started {
                Ok(event) => {
                    copy.given += bytes;
                    copy.pieces += 1;
                    self.pieces.push_back((by, event));
                }
                Err(error) => (copy.given, copy.result) = (copy.bytes, error.code()),
            }
        }
    }

    /// A copy that is over, and how it went.
    pub fn pop(&mut self, real: &Real, streams: &mut Copies) -> Option<(CUresult, T)> {
        while let Some(&(_, event)) = self.pieces.front() {
            let result = calls::query_event(real, event);
            if result == CUresult::CUDA_ERROR_NOT_READY {
                break;
            }
            self.pieces.pop_front();
            streams.done(event);
            // Pieces are of the first copy that has any.
            if let Some(copy) = self.copies.iter_mut().find(|copy| copy.pieces > 0) {
                copy.pieces -= 1;
                if result != CUresult::SUCCESS {
                    copy.result = result;
                }
            }
        }
        let is_over = |copy: &Copy<T>| copy.given == copy.bytes && copy.pieces == 0;
        self.copies.pop_front_if(|copy| is_over(copy)).map(|copy| (copy.result, copy.what))
    }

    /// Everything that has been asked for and is not over, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.copies.iter().map(|copy| &copy.what)
    }

    /// The same, to be forgotten. Nothing is known to be under way.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        self.pieces.clear();
        self.copies.drain(..).map(|copy| copy.what)
    }

    pub fn len(&self) -> usize {
        self.copies.len()
    }
}
