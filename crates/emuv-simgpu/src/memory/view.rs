//! Memory as kernels and copies see it: checked access, counted traffic.

use std::sync::Arc;

use super::{
    scratch::{BLOCK_BYTES, Scratch, Unreachable},
    space::Reach,
};
use crate::{link::Traffic, machine::Engine};

/// Why work on the GPU stopped early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It touched an address that is not mapped for the device.
    IllegalAddress(u64),
    /// The context is being destroyed, or already failed.
    Aborted,
}

/// Who brings the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The device: it reaches only what is mapped for it.
    Device,
    /// The host side of a copy: any memory of the process.
    Host,
}

/// One operation's view of memory.
#[derive(Debug)]
pub struct View<'a> {
    engine: &'a Arc<Engine>,
    scratch: &'a mut Scratch,
    traffic: Traffic,
}

impl<'a> View<'a> {
    /// A view for one operation.
    pub fn new(engine: &'a Arc<Engine>, scratch: &'a mut Scratch) -> Self {
        Self { engine, scratch, traffic: Traffic::default() }
    }

    /// What went over the link so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// The engine that runs the operation.
    pub fn engine(&self) -> &Arc<Engine> {
        self.engine
    }

    /// Stops an operation whose context is going away.
    ///
    /// # Errors
    /// [`Stop::Aborted`] then.
    pub fn check(&self) -> Result<(), Stop> {
        if self.engine.status.is_stopped() { Err(Stop::Aborted) } else { Ok(()) }
    }

    fn reach(&mut self, side: Side, address: u64, bytes: usize, write: bool) -> Result<usize, Stop> {
        let found = self.engine.machine.space.reach(address, self.engine.ordinal, write);
        let found = found.or_else(|| self.at_peer(address));
        let Reach { bytes: covered, over_link } = match (found, side) {
            (Some(reach), _) => reach,
            (None, Side::Host) => Reach { bytes: u64::MAX, over_link: true },
            (None, Side::Device) => return Err(Stop::IllegalAddress(address)),
        };
        let part = bytes.min(usize::try_from(covered).unwrap_or(usize::MAX));
        if over_link {
            let counter = if write { &mut self.traffic.d2h_bytes } else { &mut self.traffic.h2d_bytes };
            *counter += part as u64;
        }
        Ok(part)
    }

    /// Another device's memory that this context may touch.
    fn at_peer(&self, address: u64) -> Option<Reach> {
        let Engine { machine, ordinal, context, .. } = &**self.engine;
        let allocation = machine.heap.find(address)?;
        let open = machine.peers.may_touch((*context, *ordinal), &allocation);
        open.then(|| Reach { bytes: allocation.base + allocation.bytes - address, over_link: false })
    }

    /// Reads from the device's side.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn load(&mut self, address: u64, into: &mut [u8]) -> Result<(), Stop> {
        let mut done = 0;
        while done < into.len() {
            let at = advance(address, done)?;
            let part = self.reach(Side::Device, at, (into.len() - done).min(BLOCK_BYTES), false)?;
            let outcome = self.scratch.load(at, &mut into[done..done + part]);
            outcome.map_err(|Unreachable| Stop::IllegalAddress(at))?;
            done += part;
        }
        Ok(())
    }

    /// Writes from the device's side.
    ///
    /// # Errors
    /// [`Stop`]; what lies before the fault is written.
    pub fn store(&mut self, address: u64, from: &[u8]) -> Result<(), Stop> {
        let mut done = 0;
        while done < from.len() {
            let at = advance(address, done)?;
            let part = self.reach(Side::Device, at, (from.len() - done).min(BLOCK_BYTES), true)?;
            let outcome = self.scratch.store(at, &from[done..done + part]);
            outcome.map_err(|Unreachable| Stop::IllegalAddress(at))?;
            done += part;
        }
        Ok(())
    }

    /// Writes bytes that were taken from host memory before: they went over the link.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn store_staged(&mut self, address: u64, from: &[u8]) -> Result<(), Stop> {
        self.traffic.h2d_bytes += from.len() as u64;
        self.store(address, from)
    }

    /// Copies between two sides.
    ///
    /// # Errors
    /// [`Stop`]; what lies before the fault is copied.
    pub fn copy(&mut self, to: (Side, u64), from: (Side, u64), bytes: usize) -> Result<(), Stop> {
        let mut done = 0;
        while done < bytes {
            self.check()?;
            let (source, target) = (advance(from.1, done)?, advance(to.1, done)?);
            let part = self.reach(from.0, source, (bytes - done).min(BLOCK_BYTES), false)?;
            let part = self.reach(to.0, target, part, true)?;
            let outcome = self.scratch.copy(target, source, part);
            outcome.map_err(|Unreachable| Stop::IllegalAddress(target))?;
            done += part;
        }
        Ok(())
    }

    /// Reads one 32-bit word.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn load_u32(&mut self, address: u64) -> Result<u32, Stop> {
        let mut word = [0; 4];
        self.load(address, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    /// Reads one 64-bit word.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn load_u64(&mut self, address: u64) -> Result<u64, Stop> {
        let mut word = [0; 8];
        self.load(address, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }
}

fn advance(address: u64, bytes: usize) -> Result<u64, Stop> {
    address.checked_add(bytes as u64).ok_or(Stop::IllegalAddress(address))
}
