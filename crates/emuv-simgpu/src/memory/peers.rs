//! Whose memory from `cuMemAlloc` and pools another device may touch. What a program maps itself has its own access
//! rights (`space.rs`).

use std::{collections::HashSet, sync::Mutex};

use emuv_cuda::{CUresult, CuResult};

use super::{heap::Allocation, physical::error};
use crate::sync::lock;

#[derive(Debug, Default)]
struct State {
    /// A context, and the one whose memory it may touch.
    contexts: HashSet<(u64, u64)>,
    /// A device's ordinal, and the pool that it may touch.
    pools: HashSet<(i32, u64)>,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Peers(Mutex<State>);

impl Peers {
    /// `context` may touch what `peer` allocates.
    ///
    /// # Errors
    /// `CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED`.
    pub fn open_context(&self, context: u64, peer: u64) -> CuResult {
        let news = lock(&self.0).contexts.insert((context, peer));
        if news { Ok(()) } else { Err(error(CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED)) }
    }

    /// `context` may touch what `peer` allocates no more.
    ///
    /// # Errors
    /// `CUDA_ERROR_PEER_ACCESS_NOT_ENABLED`.
    pub fn close_context(&self, context: u64, peer: u64) -> CuResult {
        let was = lock(&self.0).contexts.remove(&(context, peer));
        if was { Ok(()) } else { Err(error(CUresult::CUDA_ERROR_PEER_ACCESS_NOT_ENABLED)) }
    }

    /// A context is gone.
    pub fn forget_context(&self, context: u64) {
        lock(&self.0).contexts.retain(|(who, whose)| *who != context && *whose != context);
    }

    /// Whether a device may touch a pool from now on.
    pub fn set_pool(&self, ordinal: i32, pool: u64, allowed: bool) {
        let mut state = lock(&self.0);
        if allowed {
            state.pools.insert((ordinal, pool))
        } else {
            state.pools.remove(&(ordinal, pool))
        };
    }

    /// Whether a device may touch a pool.
    pub fn may_touch_pool(&self, ordinal: i32, pool: u64) -> bool {
        lock(&self.0).pools.contains(&(ordinal, pool))
    }

    /// Whether work of a context on a device may touch another device's allocation.
    pub fn may_touch(&self, (context, ordinal): (u64, i32), allocation: &Allocation) -> bool {
        let state = lock(&self.0);
        match allocation.pool {
            0 => state.contexts.contains(&(context, allocation.context)),
            pool => state.pools.contains(&(ordinal, pool)),
        }
    }
}
