//! The simulated machine as a whole, without its C interface.

mod foreign_text;
mod graphs;
mod kernels;
mod memory;
mod peers;
mod streams;

use std::sync::Arc;

use emuv_cuda::CuResult;
use emuv_policy::Bytes;

use crate::{
    config::Config,
    context::Context,
    kernel::builtin::{Arguments, Builtin},
    machine::Machine,
    memory::{
        physical::{Physical, Place},
        region::Access,
        scratch::Scratch,
    },
    simulator::Simulator,
    stream::{queue::Op, set::Stream},
};

/// A simulated GPU with a context.
struct Rig {
    simulator: Simulator,
    context: Arc<Context>,
}

impl Rig {
    fn new(text: &str) -> Self {
        Self::with_devices(text, &[0])
    }

    /// A machine of which these GPUs are visible.
    fn with_devices(text: &str, visible: &[usize]) -> Self {
        let machine = Machine::new(text.parse::<Config>().unwrap());
        let simulator = Simulator::new(machine, visible);
        let context = simulator.create_context(simulator.device(0).unwrap(), 0);
        Self { simulator, context }
    }

    fn machine(&self) -> &Machine {
        &self.simulator.machine
    }

    fn used(&self) -> Bytes {
        self.context.engine.gpu.vram.used()
    }

    fn allocate(&self, bytes: u64) -> u64 {
        self.context.allocate(bytes, 0).unwrap().base
    }

    /// A handle of `mib` MiB in VRAM.
    fn create(&self, mib: u64) -> u64 {
        let vram = &self.context.engine.gpu.vram;
        self.machine().space.adopt(Physical::create(vram, Place::Vram(0), mib << 20, 0).unwrap())
    }

    /// A handle of `mib` MiB in host memory.
    fn create_host(&self, mib: u64) -> CuResult<u64> {
        let pinned = &self.machine().pinned;
        Ok(self.machine().space.adopt(Physical::create(pinned, Place::Host(Some(0)), mib << 20, 0)?))
    }

    /// Maps a handle with full access.
    fn map(&self, address: u64, mib: u64, handle: u64) {
        let space = &self.machine().space;
        space.map(address, mib << 20, 0, handle).unwrap();
        space.set_access(address, mib << 20, &[(0, Access::ReadWrite)]).unwrap();
    }

    fn write(&self, address: u64, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Scratch::new().unwrap().store(address, &bytes).unwrap();
    }

    fn read(&self, address: u64, words: usize) -> Vec<u32> {
        let mut bytes = vec![0; words * 4];
        Scratch::new().unwrap().load(address, &mut bytes).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
    }

    fn launch(&self, stream: &Stream, kernel: &str, arguments: &[Argument]) {
        let builtin = Builtin::find(kernel).unwrap();
        let mut buffer = Vec::new();
        for argument in arguments {
            let bytes = match argument {
                Argument::Word(value) => value.to_le_bytes().to_vec(),
                Argument::Half(value) => value.to_le_bytes().to_vec(),
            };
            buffer.resize(buffer.len().next_multiple_of(bytes.len()), 0);
            buffer.extend(bytes);
        }
        let arguments = Arguments::new(builtin, buffer).unwrap();
        let op = Op::device(move |view| (builtin.run)(view, &arguments));
        self.context.streams.submit(stream, op).unwrap();
    }

    /// Launches on a stream of its own and waits.
    fn run(&self, kernel: &str, arguments: &[Argument]) -> CuResult {
        let stream = self.context.streams.create(0, 0);
        self.launch(&stream, kernel, arguments);
        self.context.synchronize()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.simulator.end_context(&self.context);
    }
}

/// A kernel's argument of 8 or 4 bytes.
#[derive(Debug, Clone, Copy)]
enum Argument {
    Word(u64),
    Half(u32),
}
