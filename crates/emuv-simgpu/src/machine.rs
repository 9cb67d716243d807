//! The simulated machine: its GPUs, its memory, and what has gone wrong with it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use emuv_cuda::{CUresult, CuResult};
use emuv_policy::Bytes;

use crate::{
    account::Account,
    config::Config,
    jitter::Jitter,
    link::Link,
    memory::{heap::Heap, ipc::Imports, peers::Peers, space::Space},
};

/// What every simulated GPU is called.
pub const NAME: &str = "emuV simulated GPU";

/// A card in the machine.
#[derive(Debug)]
pub struct Gpu {
    /// Position in the machine (NVML's index, not CUDA's ordinal).
    pub index: usize,
    /// As the machine is configured.
    pub config: Config,
    /// Its memory.
    pub vram: Arc<Account>,
    /// Its link to the host.
    pub link: Link,
    /// Live contexts of this process.
    pub contexts: AtomicU32,
}

impl Gpu {
    /// Identity: the same in every run, different for each card from the first byte on.
    pub fn uuid(&self) -> [u8; 16] {
        let index = u8::try_from(self.index).unwrap_or(u8::MAX);
        let mut bytes = *b"\0emu\x56-s\x40im\x80gpu\0\0";
        bytes[0] = index.wrapping_mul(0x4f).wrapping_add(0xe5);
        bytes[15] = index;
        bytes
    }

    /// The identity as people write it.
    pub fn uuid_text(&self) -> String {
        let hex: String = self.uuid().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }

    /// Whether it has virtual memory management.
    pub fn has_vmm(&self) -> bool {
        self.config.vmm.of(self.index)
    }

    /// PCI bus number; domain and device are 0.
    pub fn bus(&self) -> u32 {
        u32::try_from(self.index).unwrap_or(0) + 1
    }

    /// PCI address as CUDA writes it.
    pub fn pci_bus_id(&self) -> String {
        format!("0000:{:02X}:00.0", self.bus())
    }
}

/// The machine that all contexts share.
#[derive(Debug)]
pub struct Machine {
    /// As configured.
    pub config: Config,
    /// The cards.
    pub gpus: Vec<Arc<Gpu>>,
    /// Pinned host memory.
    pub pinned: Arc<Account>,
    /// The device address space.
    pub space: Space,
    /// Allocations in device memory.
    pub heap: Heap,
    /// Allocations of other processes.
    pub imports: Imports,
    /// Who may touch whose memory.
    pub peers: Peers,
    /// Held while a kernel updates a word that others may update too.
    pub atomics: Mutex<()>,
    /// Delays of stream operations and virtual memory calls.
    pub jitter: Jitter,
    launches: AtomicU64,
    lost: AtomicBool,
}

impl Machine {
    /// A machine as configured.
    pub fn new(config: Config) -> Arc<Self> {
        let gpu = |index| {
            Arc::new(Gpu {
                index,
                config: config.clone(),
                vram: Account::new(config.vram.of(index)),
                link: Link::new(config.h2d_bytes_per_s, config.d2h_bytes_per_s, config.latency),
                contexts: AtomicU32::new(0),
            })
        };
        Arc::new(Self {
            gpus: (0..config.gpus).map(gpu).collect(),
            pinned: Account::new(config.pin.unwrap_or(Bytes(u64::MAX))),
            space: Space::default(),
            heap: Heap::default(),
            imports: Imports::default(),
            peers: Peers::default(),
            atomics: Mutex::new(()),
            jitter: Jitter::new(config.jitter_us, config.seed),
            launches: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            config,
        })
    }

    /// Whether a mapping that starts at `base` is none of the program's own.
    pub fn owns(&self, base: u64) -> bool {
        self.heap.owns(base) || self.imports.owns(base)
    }

    /// Counts a launch; the one after the last that `lost_after` allows loses the GPUs.
    pub fn count_launch(&self) {
        let before = self.launches.fetch_add(1, Ordering::Relaxed);
        if self.config.lost_after.is_some_and(|allowed| before >= allowed) {
            self.lost.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the GPUs are lost.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Whether a context still works.
#[derive(Debug, Default)]
pub struct Status {
    error: AtomicU32,
    closing: AtomicBool,
}

impl Status {
    /// Breaks the context: the first error stays.
    pub fn fail(&self, code: CUresult) {
        let _ = self.error.compare_exchange(0, code.0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Success, or the error that broke the context.
    pub fn result(&self) -> CUresult {
        CUresult(self.error.load(Ordering::Relaxed))
    }

    /// The same as a result.
    ///
    /// # Errors
    /// The error that broke the context.
    pub fn ok(&self) -> CuResult {
        self.result().ok()
    }

    /// Work in flight is to stop: the context is going away.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Whether the context is gone or going.
    pub fn is_closed(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Whether work should not start or go on.
    pub fn is_stopped(&self) -> bool {
        self.is_closed() || self.result() != CUresult::SUCCESS
    }
}

/// What a context's work runs on.
#[derive(Debug)]
pub struct Engine {
    /// The machine.
    pub machine: Arc<Machine>,
    /// The card.
    pub gpu: Arc<Gpu>,
    /// The card's CUDA ordinal.
    pub ordinal: i32,
    /// The context's handle.
    pub context: u64,
    /// Whether it still works.
    pub status: Status,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_told_apart_by_a_short_prefix() {
        let machine = Machine::new(Config { gpus: 3, ..Config::default() });
        let uuids: Vec<String> = machine.gpus.iter().map(|gpu| gpu.uuid_text()).collect();
        assert_eq!(uuids[0].len(), "GPU-00000000-0000-0000-0000-000000000000".len());
        assert!(uuids[0][..6] != uuids[1][..6] && uuids[1][..6] != uuids[2][..6]);
        assert_eq!(uuids[0], Machine::new(Config::default()).gpus[0].uuid_text());
    }

    #[test]
    fn the_first_error_of_a_context_stays() {
        let status = Status::default();
        status.fail(CUresult::ILLEGAL_ADDRESS);
        status.fail(CUresult::CUDA_ERROR_LAUNCH_FAILED);
        assert_eq!(status.result(), CUresult::ILLEGAL_ADDRESS);
    }

    #[test]
    fn the_gpu_is_lost_after_as_many_launches_as_configured() {
        let machine = Machine::new(Config { lost_after: Some(2), ..Config::default() });
        machine.count_launch();
        machine.count_launch();
        assert!(!machine.is_lost());
        machine.count_launch();
        assert!(machine.is_lost());
    }
}
