//! What emuV is compared with, on the same machine, by the same costs.
//!
//! - [`InOrder`]: data stays where it was put, in the order in which it was allocated.
//! - [`InPlace`]: the cleverest choice of what stays in VRAM; the rest is read over the link whenever it is used.
//! - [`Lru`]: demand paging. A work that needs what is in RAM waits for it; what was used longest ago makes room.
//! - [`Clairvoyant`]: plans with the whole trace before it. The best of several such schedules is the *optimum*.
//! - [`bound`]: what no schedule undercuts.
//!
//! # The optimum
//! To schedule copies both ways with writing back, chunks of many sizes and reads in place is NP-hard, so the true optimum
//! is not known; it lies between the bound and the best schedule that is found. That schedule is called optimal here, and
//! it is one that can be had: it is carried out by the same machine as emuV's own, with the same mover. It differs from
//! emuV's in what it knows: every use to come, to the end of the program; which work is done, at once; what will be
//! overwritten before it is read. The candidates are variants of Aggressive prefetching (Cao, Felten, Karlin and Li, "A
//! study of integrated prefetching and caching strategies", SIGMETRICS 1995: whenever the link is free, bring what is
//! needed soonest in place of what is needed last, if that is later; at most 1 + F/K times the best elapsed time for read-only
//! blocks of one size, where F is a fetch's time in requests and K the cache's size in blocks), with Belady's rule for what
//! goes; and the other baselines and emuV's own schedule, since who knows everything could do as they do.

mod belady;
mod bound;
mod clairvoyant;
mod in_place;
mod lru;

pub(crate) use belady::Belady;
pub(crate) use bound::read_once;
pub use bound::{Bound, bound};
pub use clairvoyant::{Clairvoyant, Variant};
pub use in_place::{InOrder, InPlace};
pub use lru::Lru;
