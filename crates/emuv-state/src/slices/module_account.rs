//! The account that the kernel module keeps: an open node of the slice's instance.
//!
//! What is charged is given back by the kernel when the node's last descriptor is closed, however the process ended. Limits and use are the
//! kernel's word; whether the slice gives anything out is the definition's, as with files. Who is in the slice is said in the
//! same file of records, for people: the kernel knows only how many hold it.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use emuv_kernel_client::{Amount, Ledger, Node, Refused as NodeRefused, text};

use super::{
    Account, Demand, Entry, Refused, SliceError, SliceLimits, SliceProcess, SliceState, Usage,
    file_account::{Definition, LOOK, idle, take_record},
    records::OwnRecord,
};

/// The node of a slice that the kernel module keeps the account of.
pub fn node_path(instance: u32) -> PathBuf {
    Node::path(instance)
}

/// See the module's head.
#[derive(Debug)]
pub struct ModuleAccount<L = Node> {
    node: L,
    definition: Definition,
    record: OwnRecord,
    /// The instance is gone, whatever the definition says.
    removed: AtomicBool,
    idle: OwnedFd,
}

impl ModuleAccount {
    /// Opens the account of this process.
    ///
    /// # Errors
    /// The slice is disabled, this user may not use it, or its node is not there.
    pub fn open(entry: &Entry) -> Result<Self, SliceError> {
        let path = node_path(entry.slice.instance);
        let node = Node::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => SliceError::NotYours(entry.slice.name.clone()),
            _ => no_node(entry, &path, error.to_string()),
        })?;
        Self::with(node, &path, entry)
    }
}

fn no_node(entry: &Entry, path: &Path, why: String) -> SliceError {
    SliceError::NoNode { name: entry.slice.name.clone(), node: path.to_owned(), why }
}

impl<L: Ledger> ModuleAccount<L> {
    /// Takes an open node for the account, if it is one of the slice's.
    fn with(node: L, path: &Path, entry: &Entry) -> Result<Self, SliceError> {
        if !entry.slice.enabled {
            return Err(SliceError::Disabled(entry.slice.name.clone()));
        }
        let query = node.query().map_err(|error| no_node(entry, path, error.to_string()))?;
        let label = text(&query.label);
        // One that module parameters made has no label; it is the slice's by its number.
        if query.instance_id != entry.slice.instance || !(label.is_empty() || label == entry.slice.name) {
            return Err(no_node(entry, path, format!("it is instance {} '{label}'", query.instance_id)));
        }
        Ok(Self {
            node,
            definition: Definition::new(&entry.dir, &entry.slice),
            record: take_record(entry, 0)?,
            removed: AtomicBool::new(false),
            idle: idle()?,
        })
    }

    fn state(&self) -> SliceState {
        let state = self.definition.limits().state;
        if self.removed.load(Ordering::Relaxed) { SliceState::Removed } else { state }
    }
}

impl<L: Ledger> Account for ModuleAccount<L> {
    fn limits(&self) -> SliceLimits {
        let state = self.state();
        // An open node answers; should it not, nothing is given out.
        let (vram, ram) = self.node.query().map_or((0, 0), |query| (query.vram_limit_bytes, query.ram_limit_bytes));
        SliceLimits { vram, ram, state }
    }

    fn charge(&self, demand: Demand) -> Result<(), Refused> {
        if self.state() != SliceState::Enabled {
            return Err(Refused::NoRoom);
        }
        match self.node.charge(amount(demand)) {
            Ok(_) => Ok(()),
            Err(NodeRefused::NoRoom(_) | NodeRefused::Cgroup) => Err(Refused::NoRoom),
            Err(NodeRefused::Removed) => {
                self.removed.store(true, Ordering::Relaxed);
                Err(Refused::NoRoom)
            }
            Err(NodeRefused::Failed(error)) => Err(Refused::Broken(error)),
        }
    }

    fn release(&self, demand: Demand) {
        // Refused only if it is more than is held, and then nothing of it is known to be held.
        let _ = self.node.release(amount(demand));
    }

    fn usage(&self) -> Usage {
        // What cannot be read is taken as full.
        let full = Usage { vram: u64::MAX, ram: u64::MAX, own_vram: 0, own_ram: 0 };
        self.node.query().map_or(full, |query| Usage {
            vram: query.vram_used_bytes,
            ram: query.ram_used_bytes,
            own_vram: query.own_vram_bytes,
            own_ram: query.own_ram_bytes,
        })
    }

    fn say(&self, used: Demand) {
        self.record.say(used.vram, used.ram);
    }

    fn processes(&self) -> Vec<SliceProcess> {
        self.record.read_all().unwrap_or_default()
    }

    /// A change of the limits ends the wait at once, unless another thread has asked for them in between; that, and a change of
    /// the definition, is seen at the next look.
    fn wait_for_change(&self, seen: SliceLimits, timeout: Duration) -> SliceLimits {
        let start = Instant::now();
        loop {
            let limits = self.limits();
            let left = timeout.saturating_sub(start.elapsed());
            if limits != seen || left.is_zero() {
                return limits;
            }
            match self.node.wait(false, LOOK.min(left)) {
                Ok(news) if !news.removed => {}
                answer => {
                    if answer.is_ok() {
                        self.removed.store(true, Ordering::Relaxed);
                    }
                    // It would not wait the next time either.
                    if seen.state == SliceState::Removed || answer.is_err() {
                        thread::sleep(LOOK.min(left));
                    }
                }
            }
        }
    }

    fn forked(&self) {
        self.node.leave(&self.idle);
        self.record.forked(&self.idle);
    }
}

fn amount(demand: Demand) -> Amount {
    Amount { vram_bytes: demand.vram, ram_bytes: demand.ram }
}

#[cfg(all(test, feature = "cli"))]
mod tests;
