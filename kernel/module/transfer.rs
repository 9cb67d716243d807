// SPDX-License-Identifier: GPL-2.0

//! `read` and `write` of the RAM part.

use kernel::{
    page::{PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
};

use crate::{
    ffi::{self, RamPage},
    instance::Instance,
};

/// A program's memory, as the kernel hands it over: what has been moved is no longer in it.
pub(crate) trait UserMemory {
    /// Whether the instance's pages are written to.
    const WRITES: bool;

    /// Bytes that are still to be moved.
    fn bytes_left(&self) -> usize;

    /// Moves `bytes` of a page from `offset`; zeros, where there is none. Fewer, if the program has no such memory.
    fn copy(&mut self, page: Option<&RamPage>, offset: usize, bytes: usize) -> usize;
}

/// Moves as much as there is from `position` on, which goes along. What hinders it is an error only if nothing was moved.
pub(crate) fn transfer<M: UserMemory>(instance: &Instance, position: &mut i64, mut memory: M) -> Result<usize> {
    let mut moved = 0;
    let hindered = loop {
        if memory.bytes_left() == 0 {
            break Ok(0);
        }
        match step(instance, *position as u64, &mut memory) {
            Ok(0) => break Ok(0),
            Ok(bytes) => {
                *position += bytes as i64;
                moved += bytes;
            }
            Err((bytes, error)) => {
                *position += bytes as i64;
                moved += bytes;
                break Err(error);
            }
        }
    };
    if moved > 0 { Ok(moved) } else { hindered }
}

/// Moves what is within one page: nothing, at the end of what can be read.
fn step<M: UserMemory>(instance: &Instance, position: u64, memory: &mut M) -> Result<usize, (usize, Error)> {
    let end = instance.end_bytes();
    if position >= end {
        return if M::WRITES { Err((0, EFBIG)) } else { Ok(0) };
    }
    let offset = position as usize % PAGE_SIZE;
    let wanted = (memory.bytes_left().min(PAGE_SIZE - offset) as u64).min(end - position) as usize;
    // A page that was never written to reads as zeros and stays unmade.
    let page = instance.page((position >> PAGE_SHIFT) as usize, M::WRITES).map_err(|error| (0, error))?;
    let bytes = memory.copy(page.as_ref(), offset, wanted);
    if bytes < wanted {
        return Err((bytes, EFAULT));
    }
    if ffi::go_on() { Ok(bytes) } else { Err((bytes, EINTR)) }
}
