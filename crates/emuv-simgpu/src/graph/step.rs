//! What a node of a graph does; launches and copies outside of graphs are described the same way.

use std::{fmt, sync::Arc};

use emuv_cuda::{CUresult, types};

use crate::{
    kernel::builtin::{Arguments, Builtin},
    memory::{
        rows::{Box3, Fill},
        view::{Stop, View},
    },
    stream::queue::Op,
};

/// How many threads a kernel gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// A kernel with its arguments.
#[derive(Debug)]
pub struct Kernel {
    /// Handle of the function or kernel.
    pub function: u64,
    /// Whether the program named it as a `CUkernel`.
    pub is_library_kernel: bool,
    /// Handle of the context that the program named for it, or 0.
    pub context: u64,
    /// Its threads.
    pub shape: Shape,
    builtin: &'static Builtin,
    arguments: Arguments,
    /// Addresses of the arguments, for programs that ask for them: they stay where they are.
    pointers: Vec<u64>,
}

impl Kernel {
    /// A kernel with its arguments.
    pub fn new(
        (function, is_library_kernel): (u64, bool),
        context: u64,
        shape: Shape,
        builtin: &'static Builtin,
        arguments: Arguments,
    ) -> Self {
        let base = arguments.address();
        let offsets = (0..builtin.parameters.len()).filter_map(|index| builtin.offset(index));
        let pointers = offsets.map(|offset| base + offset as u64).collect();
        Self { function, is_library_kernel, context, shape, builtin, arguments, pointers }
    }

    /// Address of the array of the arguments' addresses; it holds while this kernel does.
    pub fn pointers(&self) -> u64 {
        self.pointers.as_ptr().expose_provenance() as u64
    }
}

/// Whether it was the host's memory that lay at a copy's source and target when it was described as a node.
pub type Sides = [bool; 2];

type Words = dyn Fn(&mut View<'_>) -> Result<(), Stop> + Send + Sync;
type Host = dyn Fn() + Send + Sync;

/// What a node does.
pub enum Step {
    /// Runs a kernel.
    Kernel(Kernel),
    /// Copies rows of bytes.
    Copy(Box3, Sides),
    /// Fills rows with a pattern of 1, 2 or 4 bytes.
    Fill(Fill, Vec<u8>),
    /// Writes a word in memory or waits for one.
    Words(Box<Words>),
    /// Calls a function of the program.
    Host(Box<Host>),
    /// Runs another graph's steps in order.
    Steps(Vec<Arc<Step>>),
    /// Nothing: it only has an order.
    Empty,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node of type {}", self.kind())
    }
}

impl Step {
    /// Its kind as the interface counts them.
    pub fn kind(&self) -> types::CUgraphNodeType {
        match self {
            Self::Kernel(_) => types::CU_GRAPH_NODE_TYPE_KERNEL,
            Self::Copy(..) => types::CU_GRAPH_NODE_TYPE_MEMCPY,
            Self::Fill(..) => types::CU_GRAPH_NODE_TYPE_MEMSET,
            Self::Words(_) => types::CU_GRAPH_NODE_TYPE_BATCH_MEM_OP,
            Self::Host(_) => types::CU_GRAPH_NODE_TYPE_HOST,
            Self::Steps(_) => types::CU_GRAPH_NODE_TYPE_GRAPH,
            Self::Empty => types::CU_GRAPH_NODE_TYPE_EMPTY,
        }
    }

    /// Kernels in it.
    pub fn kernels(&self) -> usize {
        match self {
            Self::Kernel(_) => 1,
            Self::Steps(steps) => steps.iter().map(|step| step.kernels()).sum(),
            _ => 0,
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn run(&self, view: &mut View<'_>) -> Result<(), Stop> {
        match self {
            Self::Kernel(kernel) => (kernel.builtin.run)(view, &kernel.arguments),
            Self::Copy(rows, _) => rows.run(view),
            Self::Fill(fill, pattern) => fill.run(view, pattern),
            Self::Words(words) => words(view),
            Self::Host(host) => {
                host();
                Ok(())
            }
            Self::Steps(steps) => run_all(steps, view),
            Self::Empty => Ok(()),
        }
    }

    /// The operation that does it once.
    pub fn into_op(self) -> Op {
        match self {
            // A host function runs in a context that is going away too.
            Self::Host(host) => Op::always(move |status| {
                if status == CUresult::SUCCESS {
                    host();
                }
            }),
            step => Op::device(move |view| step.run(view)),
        }
    }
}

/// Does steps one after the other.
///
/// # Errors
/// [`Stop`].
pub fn run_all(steps: &[Arc<Step>], view: &mut View<'_>) -> Result<(), Stop> {
    for step in steps {
        view.check()?;
        view.engine().machine.jitter.pause();
        step.run(view)?;
    }
    Ok(())
}
