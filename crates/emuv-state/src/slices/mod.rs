//! Virtual GPUs: slices of GPUs with quotas that hold over all processes in them.
//!
//! A *slice* is a share of a GPU (or of several, see below): so much of its VRAM, so much RAM beside it, a weight. Its *definition* is the
//! administrator's; what is in use is kept by the processes in the slice themselves. There is no daemon.
//!
//! ```text
//! <state directory>/vgpu/          the registry                      its owner writes, everybody reads
//!     lock                         one change at a time              its owner
//!     ml-1/slice                   the definition ([`Slice`])        its owner writes, everybody reads
//!     ml-1/use/vram, ram           the ledgers                       the slice's user and group
//!     ml-1/use/processes           who is in it, for people          the slice's user and group
//!     ml-1/use/turns               how it stands ([`TurnBook`])      the slice's user and group write, everybody reads
//! ```
//!
//! *What holds, and why:*
//!
//! 1. **The sum of all charges never exceeds the limit.** A ledger is an empty file. A byte of quota is a byte of it that a
//!    process has locked (`fcntl`, open file description locks): the kernel does not give one byte to two, and nobody
//!    may lock beyond the limit. So whatever is written into these files, or however they are cut, changes no account.
//! 2. **A process that ends gives its share back at that moment**, however it ends: its locks go with its descriptor.
//!    That descriptor is closed by `exec` and by a forked child ([`Account::forked`]).
//! 3. **A limit is read from the definition at each charge**, before it and again after it: one that was made by a limit
//!    that is no more is taken back before anybody relies on it. After shrinking, what lies beyond the new limit is a
//!    debt: a charge must find free, below the limit, what it asks for and the debt as well.
//! 4. **A definition is replaced whole** (written beside, renamed), and so are slices made and removed: whoever dies
//!    half-way leaves something that the next change sweeps.
//!
//! This keeps apart programs that let emuV's library be loaded. A program that talks to the driver itself is not held by
//! it: it is cooperation, not a security boundary, as long as neither the kernel module nor the driver enforces it.
//!
//! *Several GPUs.* A slice may be of several GPUs ([`Slice::gpus`]): it has its share of VRAM on each of them, and one share of
//! RAM for all of them together. To the ledgers a process is then as many members as the slice has GPUs: for each it has an
//! [`Account`] of its own ([`open_on`]), with the GPU's ledger of VRAM (`use/vram`, then `use/vram-2`...), its list of processes
//! (`use/processes-2`...) and its own description of the one ledger of RAM (`use/ram`). Descriptions exclude each other in one
//! process as in two, so 1 to 4 hold on each GPU without any more rules. In the definition the further GPUs are `gpu_2=...`; of
//! one GPU, the folder is as it always was, and an emuV that does not know the keys refuses the slice.
//!
//! Such a slice takes no turns (whose would they be, on two GPUs at once?): it has no weight, no cap, no [`TurnBook`], and no
//! `--overcommit`. What it is promised on a GPU is set aside there, from what turns divide among the others. The kernel module
//! keeps accounts of one GPU, so the files keep this one's.
//!
//! [`Account`] is what a process needs of a slice. It has two backends: the files ([`FileAccount`]), and an open node of the kernel
//! module ([`ModuleAccount`]), where `emuv vgpu create` has found it loaded. Then 1 and 2 are the kernel's to keep; the rest of the
//! files are the same.

mod account;
#[cfg(feature = "cli")]
mod admin;
mod definition;
mod file_account;
#[cfg(feature = "cli")]
mod kernel_module;
mod keyed;
mod lock_ledger;
mod locks;
#[cfg(feature = "cli")]
pub mod models;
mod module_account;
#[cfg(feature = "cli")]
mod profile;
mod records;
mod registry;
mod schedule;
mod turn_book;

pub use account::{Account, Demand, Refused, SliceLimits, SliceProcess, SliceState, Usage, open, open_on};
#[cfg(feature = "cli")]
pub use admin::{Listing, NewSlice};
pub use definition::{DEFAULT_WEIGHT, MAX_WEIGHT, MOST_GPUS, Slice, SliceGpu, SliceUser, valid_name};
pub use file_account::FileAccount;
#[cfg(feature = "cli")]
pub use kernel_module::{KernelInstance, KernelModule};
pub use module_account::{ModuleAccount, node_path};
#[cfg(feature = "cli")]
pub use profile::{DEFAULT_PATH as PROFILES_PATH, Profile, parse as parse_profiles};
pub use registry::{Entry, Registry, SLICE_FILE, SliceError};
pub use schedule::Schedule;
pub use turn_book::{Standing, Stepped, TimeUse, TurnBook};
