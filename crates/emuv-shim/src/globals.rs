//! Globals of modules, as far as the program has asked where they are: kernels reach them without an argument, so
//! pointers may be kept there. One that the program never asks for is known to its kernels only; a pointer that a
//! kernel leaves there is not seen (`emuv verify` would find it).

use emuv_policy::Owner;

use crate::{arena::lock, sync::Mutex};

/// A global.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Global {
    /// The module or library that it goes with.
    pub module: usize,
    /// The context that it goes with.
    pub context: Option<Owner>,
    /// Where it lies.
    pub address: u64,
    /// Its size.
    pub bytes: u64,
}

/// See the module's head. One per process.
#[derive(Debug, Default)]
pub(crate) struct Globals(Mutex<Vec<Global>>);

impl Globals {
    /// The program has asked for this one.
    pub fn add(&self, global: Global) {
        let mut globals = lock(&self.0);
        if !globals.contains(&global) {
            globals.push(global);
        }
    }

    /// A module goes. Says whether any of these was its.
    pub fn forget_module(&self, module: usize) -> bool {
        let mut globals = lock(&self.0);
        let before = globals.len();
        globals.retain(|global| global.module != module);
        globals.len() < before
    }

    /// Contexts have gone.
    pub fn forget_contexts(&self, contexts: &[Owner]) {
        lock(&self.0).retain(|global| !global.context.is_some_and(|context| contexts.contains(&context)));
    }

    /// Those of a context: (address, bytes).
    pub fn of(&self, context: Option<Owner>) -> Vec<(u64, u64)> {
        lock(&self.0).iter().filter(|g| g.context == context).map(|g| (g.address, g.bytes)).collect()
    }
}
