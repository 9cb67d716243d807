//! The safe way to `/dev/emuvN`: an open node is an account with the slice that the node stands for. Whatever it holds is given
//! back by the kernel when the last descriptor of it is closed, however the process ends.
//!
//! A forked child shares the parent's account as it shares its files; it should open the node again.
//!
//! # Safety
//!
//! The ioctls pass a pointer to one structure of [`emuv_uapi::abi`], which is as large as the number says and which the kernel
//! reads and writes during the call only. [`Node::leave`] puts another file behind a descriptor that stays owned by the node.

#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

pub use emuv_uapi::abi::{self, Query};
use emuv_uapi::abi::{Charge, Export, VERSION};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{DupFlags, Errno, dup3},
    ioctl::{Opcode, Updater, ioctl},
};

/// Amounts of VRAM and RAM, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Of VRAM.
    pub vram_bytes: u64,
    /// Of RAM.
    pub ram_bytes: u64,
}

/// Why nothing was charged.
#[derive(Debug)]
pub enum Refused {
    /// The slice has only this left.
    NoRoom(Amount),
    /// The slice has room, but the dmem cgroup of this process has none. Waiting for the slice is of no use.
    Cgroup,
    /// The slice has been removed; what is held stays until it is released.
    Removed,
    /// The system's own words.
    Failed(io::Error),
}

/// What is new, from [`Node::wait`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// The limits changed since this node's last [`Node::query`].
    pub limits: bool,
    /// A charge may succeed: the last one was not refused, or would not be any more.
    pub room: bool,
    /// The slice has been removed.
    pub removed: bool,
}

/// The account of an open node with its slice: what [`Node`] is, and what stands in for one where there is no kernel module.
pub trait Ledger: Send + Sync + std::fmt::Debug {
    /// Charges all of it or nothing, and says what the slice has left.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    fn charge(&self, amount: Amount) -> Result<Amount, Refused>;

    /// Gives a part of what this account holds back, and says what the slice has left.
    ///
    /// # Errors
    /// `EINVAL` if this account does not hold so much; nothing has changed then.
    fn release(&self, amount: Amount) -> io::Result<Amount>;

    /// Limits, use and holders of now.
    ///
    /// # Errors
    /// The system's own words.
    fn query(&self) -> io::Result<Query>;

    /// Waits until the limits have changed since the last [`Ledger::query`], or the slice is removed, at most for `timeout`; with
    /// `room`, also until a charge that was refused would fit. Says what is new.
    ///
    /// # Errors
    /// The system's own words; `EINTR` if a signal came.
    fn wait(&self, room: bool, timeout: Duration) -> io::Result<News>;

    /// In a forked child: lets go of the parent's account, which must not be used here any more. `idle` takes its place.
    fn leave(&self, idle: &OwnedFd);
}

/// An open `/dev/emuvN`.
#[derive(Debug)]
pub struct Node {
    file: File,
}

impl Node {
    /// Opens a node: this process is a holder of the slice from now on.
    ///
    /// # Errors
    /// The system's own words: no such node, no right to it, the slice is gone, or it is not a node of this interface version.
    pub fn open(path: &Path) -> io::Result<Self> {
        let node = Self { file: OpenOptions::new().read(true).write(true).open(path)? };
        node.query()?;
        Ok(node)
    }

    /// The node of an instance, where devices are.
    #[must_use]
    pub fn path(instance_id: u32) -> PathBuf {
        PathBuf::from(format!("/dev/emuv{instance_id}"))
    }

    /// A dma-buf of a range of the RAM part: for other processes and devices. It is a holder of the slice of its own.
    ///
    /// # Errors
    /// `EINVAL`: not whole pages; `EFBIG`: beyond the end; `EDQUOT`: no room for its pages.
    pub fn export(&self, offset_bytes: u64, length_bytes: u64) -> io::Result<OwnedFd> {
        let mut export = Export { version: VERSION, offset_bytes, length_bytes, ..Export::default() };
        self.call::<{ abi::EXPORT as Opcode }, _>(&mut export)?;
        // SAFETY: The kernel has just made this descriptor for us; nobody else knows of it.
        Ok(unsafe { OwnedFd::from_raw_fd(export.fd) })
    }

    /// The RAM part: read, write, seek, map (shared). Beyond its end is `EFBIG`, or `SIGBUS` in a mapping.
    #[must_use]
    pub fn ram(&self) -> &File {
        &self.file
    }

    fn call<const OPCODE: Opcode, T>(&self, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: Every caller in this file pairs the number with the structure that `abi` gives for it.
        unsafe { ioctl(&self.file, Updater::<OPCODE, T>::new(argument)) }
    }
}

impl Ledger for Node {
    fn charge(&self, amount: Amount) -> Result<Amount, Refused> {
        let mut charge = argument(amount);
        match self.call::<{ abi::CHARGE as Opcode }, _>(&mut charge) {
            Ok(()) => Ok(left(&charge)),
            Err(Errno::DQUOT) => Err(Refused::NoRoom(left(&charge))),
            Err(Errno::NOSPC) => Err(Refused::Cgroup),
            Err(Errno::NODEV) => Err(Refused::Removed),
            Err(errno) => Err(Refused::Failed(errno.into())),
        }
    }

    fn release(&self, amount: Amount) -> io::Result<Amount> {
        let mut charge = argument(amount);
        self.call::<{ abi::RELEASE as Opcode }, _>(&mut charge)?;
        Ok(left(&charge))
    }

    fn query(&self) -> io::Result<Query> {
        let mut query = Query::default();
        self.call::<{ abi::QUERY as Opcode }, _>(&mut query)?;
        Ok(query)
    }

    fn wait(&self, room: bool, timeout: Duration) -> io::Result<News> {
        let wanted = if room { PollFlags::PRI | PollFlags::OUT } else { PollFlags::PRI };
        let mut fds = [PollFd::new(&self.file, wanted)];
        let timeout = Timespec::try_from(timeout).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        poll(&mut fds, Some(&timeout))?;
        let happened = fds[0].revents();
        Ok(News {
            limits: happened.contains(PollFlags::PRI),
            room: happened.contains(PollFlags::OUT),
            removed: happened.contains(PollFlags::HUP),
        })
    }

    fn leave(&self, idle: &OwnedFd) {
        // SAFETY: The number is open and stays `file`'s: it is never closed here, only what is behind it is exchanged.
        let mut number = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(self.file.as_raw_fd()) });
        let _ = dup3(idle, &mut number, DupFlags::CLOEXEC);
    }
}

/// A text of [`Query`], up to its zero; empty if it is none.
#[must_use]
pub fn text(field: &[u8; abi::NAME_BYTES]) -> &str {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    field.get(..end).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or("")
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn argument(amount: Amount) -> Charge {
    Charge { version: VERSION, vram_bytes: amount.vram_bytes, ram_bytes: amount.ram_bytes, ..Charge::default() }
}

fn left(charge: &Charge) -> Amount {
    Amount { vram_bytes: charge.vram_left_bytes, ram_bytes: charge.ram_left_bytes }
}
