//! A GPU, a link and a program in virtual time: what a way of placing data makes of a sequence of works, without a GPU
//! and the same every time. What it costs is compared with what physics allows, and ways of placing with each other.
//!
//! The model:
//! - The program issues works in order, each as long after the last as its host takes for it, at most [`MOST_AHEAD`] of them before the GPU has
//!   done them, and is held where its [`Placement`] holds it.
//! - The GPU works its one queue off. A work takes its own time, or as long as what it reads in place takes to cross the
//!   link, whichever is longer: what it touches in RAM, times its kind's slowness.
//! - Copies run one after the other in each direction, both directions at once. What is read in place and what is copied
//!   in share the way in equally; both ways together carry no more than the link does.
//! - When a copy is over the mover, one thread, replaces the mapping. That takes what was measured on an H200, and no work is issued
//!   meanwhile. A chunk needs memory of its own size; where there is none, other memory is given up for it.
//! - What does not change is copied into RAM once. After that it leaves VRAM without a copy.

mod engine;
mod online;
mod script;

pub use engine::Stuck;
pub use online::Online;
pub use script::{Script, ScriptChunk, ScriptWork, Use};

use crate::{Policy, Tier, memory::held_back};

/// Works that a driver takes before it makes the program wait.
pub const MOST_AHEAD: usize = 1024;

/// What the program does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// A chunk is mapped, in VRAM if there is room.
    Map {
        /// Where it lies in the arena.
        offset: u64,
        /// Its size.
        bytes: u64,
    },
    /// A chunk is unmapped.
    Unmap {
        /// Where it lay.
        offset: u64,
    },
    /// The program has got chunks.
    Allocate {
        /// Where they begin.
        offset: u64,
        /// Their size.
        bytes: u64,
    },
    /// What the program puts into the chunks that it has just got there does not change any more once it has left VRAM.
    Constant {
        /// Where they begin.
        offset: u64,
    },
    /// It has given them back.
    Free {
        /// Where they begin.
        offset: u64,
    },
    /// A work.
    Work(GpuWork),
    /// A round of a loop begins here.
    Round,
}

/// A work, and how long it takes with everything in VRAM.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuWork {
    /// Offsets in the chunks that it touches.
    pub chunks: Vec<u64>,
    /// In microseconds.
    pub micros: f64,
    /// Until the program issues the next one, in microseconds, if nothing holds it up.
    pub issue_us: f64,
    /// What it does: see [`crate::Work::kind`].
    pub kind: u64,
    /// It may touch anything.
    pub everything: bool,
    /// How much slower than the link it reads from RAM in place.
    pub slowness: f64,
}

/// The link's speeds, in bytes per microsecond.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Into VRAM.
    pub in_bytes_per_us: f64,
    /// Into RAM.
    pub out_bytes_per_us: f64,
    /// Both together, while both ways are used.
    pub both_bytes_per_us: f64,
}

impl Link {
    /// A link with these speeds, in GB/s.
    pub fn gb_per_s(into_vram: f64, into_ram: f64, both: f64) -> Self {
        Self { in_bytes_per_us: into_vram * 1e3, out_bytes_per_us: into_ram * 1e3, both_bytes_per_us: both * 1e3 }
    }

    /// Microseconds that this much takes at least, in bytes.
    pub fn micros(&self, in_bytes: f64, out_bytes: f64) -> f64 {
        let each = (in_bytes / self.in_bytes_per_us).max(out_bytes / self.out_bytes_per_us);
        each.max((in_bytes + out_bytes) / self.both_bytes_per_us)
    }
}

/// See the module's head.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// What the program may use of VRAM.
    pub vram_bytes: u64,
    /// What it may use of RAM.
    pub ram_bytes: u64,
    /// What lies between.
    pub link: Link,
    /// Until a program that was held goes on.
    pub wake_us: f64,
}

/// What a round cost.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Until its last work was done.
    pub micros: f64,
    /// Bytes moved into VRAM.
    pub promoted_bytes: u64,
    /// Bytes moved into RAM.
    pub evicted_bytes: u64,
    /// Bytes read in place, each time that they were.
    pub in_place_bytes: u64,
}

/// Whether a work may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Now.
    Go,
    /// It is held; to be asked again when something has changed.
    Hold,
}

/// What the mover does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A chunk moves.
    Move {
        /// Its number in the script.
        chunk: u32,
        /// Where to.
        to: Tier,
        /// Its bytes are somebody's.
        copy: bool,
        /// It is mapped where it then lies.
        map: bool,
    },
    /// A chunk in RAM is mapped.
    Show(u32),
    /// It asks the GPU how far it is.
    Learn,
    /// Nothing, until something happens.
    Rest,
}

/// Room that is left, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeBytes {
    /// In VRAM.
    pub vram: u64,
    /// In RAM.
    pub ram: u64,
    /// VRAM that moves under way will leave free.
    pub coming: u64,
}

/// Decides where data lies. The machine tells it what happens and carries out what it says.
pub trait Placement {
    /// Where a chunk goes that is about to be mapped. `vram_bytes` is the card's size.
    fn tier_of_new(&mut self, _chunk: u32, bytes: u64, vram_bytes: u64, free: FreeBytes) -> Tier {
        let left = held_back(vram_bytes, bytes);
        if free.vram >= bytes + left { Tier::Vram } else { Tier::Ram }
    }
    /// A chunk has been mapped.
    fn mapped(&mut self, _chunk: u32, _tier: Tier) {}
    /// A chunk is about to be unmapped. False: not yet.
    fn unmapped(&mut self, _chunk: u32) -> bool {
        true
    }
    /// The program has got memory.
    fn allocated(&mut self, _offset: u64, _bytes: u64) {}
    /// It has given it back.
    fn freed(&mut self, _offset: u64) {}
    /// The program is about to give the GPU this work. `patient`: it has not waited for long.
    fn begin(&mut self, _work: u32, _patient: bool) -> Turn {
        Turn::Go
    }
    /// The GPU has done so many works, as one sees who sees everything.
    fn done(&mut self, _works: u32) {}
    /// What a fence recorded now covers, for one who sees only those.
    fn fence(&self) -> Option<u64> {
        None
    }
    /// A fence has been reached.
    fn reached(&mut self, _number: u64) {}
    /// A work that read in place took so long.
    fn took(&mut self, _work: u32, _micros: f64) {}
    /// What the mover is to do next.
    fn next(&mut self, _free: FreeBytes) -> Action {
        Action::Rest
    }
    /// A chunk that is about to leave VRAM with its bytes has been compared with what it held when it left before.
    fn compared(&mut self, _chunk: u32, _same: bool) {}
    /// A chunk lies still again.
    fn finished(&mut self, _chunk: u32) {}
    /// It is that late now, in microseconds.
    fn passed(&mut self, _micros: f64) {}
}

impl Machine {
    /// Runs the program as emuV does under a policy; gives the cost of each round, the last one included.
    ///
    /// # Panics
    /// If it does not come to an end.
    #[allow(clippy::panic)] // For tests of policies: there is nothing to be done about it.
    pub fn run(&self, program: &[Op], policy: Policy) -> Vec<Cost> {
        let script = Script::new(program);
        let mut online = Online::new(&script, policy, self.link.in_bytes_per_us);
        self.play(&script, &mut online).unwrap_or_else(|stuck| panic!("{stuck}"))
    }

    /// Runs a script under a placement; gives the cost of what comes before the first round, and of each round.
    ///
    /// # Errors
    /// It does not come to an end.
    pub fn play(&self, script: &Script, placement: &mut impl Placement) -> Result<Vec<Cost>, Stuck> {
        engine::Engine::new(self, script, placement).run()
    }
}
