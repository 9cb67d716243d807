//! A context: one program's use of one GPU.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering},
};

use emuv_cuda::{CUresult, CuResult};

use crate::{
    handles,
    machine::{Engine, Gpu, Machine, Status},
    memory::{
        heap::{Allocation, Owner},
        physical::error,
        scratch::{BLOCK_BYTES, Scratch, Unreachable},
    },
    stream::set::StreamSet,
};

/// What new memory holds with `poison=1`.
pub const POISON: u8 = 0xCB;

/// Settings that a program can change and read back.
#[derive(Debug, Default)]
pub struct Settings {
    /// `cuCtxSetLimit`, by limit.
    pub limits: Mutex<std::collections::HashMap<u32, u64>>,
    /// `cuCtxSetCacheConfig`.
    pub cache_config: AtomicU32,
    /// `cuCtxSetSharedMemConfig`.
    pub shared_memory_config: AtomicU32,
}

/// A context.
#[derive(Debug)]
pub struct Context {
    /// What its work runs on.
    pub engine: Arc<Engine>,
    /// Its streams.
    pub streams: StreamSet,
    /// `CUctx_flags`.
    pub flags: AtomicU32,
    /// What the program set.
    pub settings: Settings,
    /// Whether it is the device's primary context.
    pub is_primary: bool,
}

impl Context {
    /// A new context. `handle` is given for a primary context, which keeps its handle when it is reset.
    pub fn new(machine: &Arc<Machine>, gpu: &Arc<Gpu>, ordinal: i32, flags: u32, handle: Option<u64>) -> Arc<Self> {
        gpu.contexts.fetch_add(1, Ordering::Relaxed);
        let engine = Arc::new(Engine {
            machine: Arc::clone(machine),
            gpu: Arc::clone(gpu),
            ordinal,
            context: handle.unwrap_or_else(handles::fresh),
            status: Status::default(),
        });
        Arc::new(Self {
            streams: StreamSet::new(Arc::clone(&engine)),
            engine,
            flags: AtomicU32::new(flags),
            settings: Settings::default(),
            is_primary: handle.is_some(),
        })
    }

    /// The context's handle.
    pub fn handle(&self) -> u64 {
        self.engine.context
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// The error that broke the context.
    pub fn synchronize(&self) -> CuResult {
        self.streams.synchronize();
        self.engine.status.ok()
    }

    /// Allocates device memory.
    ///
    /// # Errors
    /// As `cuMemAlloc`.
    pub fn allocate(&self, bytes: u64, pool: u64) -> CuResult<Allocation> {
        let Engine { machine, gpu, ordinal, context, .. } = &*self.engine;
        let owner = Owner { vram: &gpu.vram, ordinal: *ordinal, context: *context, pool };
        let allocation = machine.heap.allocate(&machine.space, owner, bytes)?;
        if machine.config.poison {
            self.fill(allocation, POISON)?;
        }
        Ok(allocation)
    }

    /// Sets each byte of new memory.
    ///
    /// # Errors
    /// `CUDA_ERROR_OUT_OF_MEMORY` where there is no room to work in.
    pub fn fill(&self, allocation: Allocation, byte: u8) -> CuResult {
        let out_of_memory = || error(CUresult::OUT_OF_MEMORY);
        let mut scratch = Scratch::new().map_err(|_| out_of_memory())?;
        let block = vec![byte; BLOCK_BYTES];
        let mut at = 0;
        while at < allocation.bytes {
            let part = usize::try_from(allocation.bytes - at).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
            scratch.store(allocation.base + at, &block[..part]).map_err(|Unreachable| out_of_memory())?;
            at += part as u64;
        }
        Ok(())
    }

    /// Ends the context: work in flight stops, its memory is freed.
    pub fn destroy(&self) {
        if self.engine.status.is_closed() {
            return;
        }
        self.engine.status.close();
        self.streams.close();
        let Engine { machine, gpu, context, .. } = &*self.engine;
        machine.heap.free_all_of(&machine.space, *context);
        machine.imports.close_all_of(&machine.space, *context);
        machine.space.remove_hosts_of(*context);
        machine.peers.forget_context(*context);
        gpu.contexts.fetch_sub(1, Ordering::Relaxed);
    }
}
