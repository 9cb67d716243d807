//! Which devices of the process may touch each other's placed memory.
//!
//! A driver opens what one context allocates to another context of another device. Here all of a device's arena is open to
//! another device, or nothing of it: as soon as any of the program's calls asks for it, until none does any more. More is
//! open then than a program could rely on, never less:
//!
//! 1. While B may touch A's memory, every mapped chunk of A is open to B: what is there when it is asked for, and what is
//!    mapped later, in whichever tier, for new memory or at the end of a move ([`emuv_cuda::Gpu::map`] opens to all peers).
//! 2. Works of B are works for A as well (`moves::around`): a chunk of A moves only when they are done with it, and they
//!    wait for it.
//! 3. Pointers to A's memory are searched for in what works leave in B's memory too. What was there before is not known,
//!    so all of A's chunks that there are when B comes count as pointed to: they move only while neither device works.
//!
//! A device that may not touch A's memory can still have it copied, by calls that name both contexts. Copies that a driver
//! makes for memory of `cuMemAlloc`, without being told whose it is, it does not make for mapped memory; those are turned
//! into copies between contexts ([`between`]), or, where there is no such form, the memory is opened ([`within_reach`]).

use std::collections::HashSet;

use emuv_cuda::{
    CUresult, CuResult,
    types::{CUcontext, CUdevice, CUstream},
};
use emuv_policy::{Owner, PoolId};
use emuv_state::MAX_DEVICES;

use crate::{
    arena::{Arena, lock},
    calls,
    device::Device,
    log, moves,
    session::Session,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    touch::Touch,
};

/// Why a device may touch another one's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// The first context may touch what the second one allocates.
    Contexts(Owner, Owner),
    /// The pool is open to it.
    Pool(PoolId),
    /// It was named in a copy that the driver cannot make otherwise.
    Copies,
}

/// Device `who` may touch memory of device `whose`.
type Grant = (CUdevice, CUdevice, Reason);

/// See the module's head. One per process.
#[derive(Debug)]
pub(crate) struct Peers {
    grants: Mutex<HashSet<Grant>>,
    /// A thread opens or closes something now.
    busy: Mutex<bool>,
    settled: Condvar,
    /// By device: a bit for each other one that may touch its memory.
    readers: [AtomicU32; MAX_DEVICES],
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            grants: Mutex::default(),
            busy: Mutex::default(),
            settled: Condvar::new(),
            readers: [const { AtomicU32::new(0) }; MAX_DEVICES],
        }
    }
}

fn bit(device: CUdevice) -> u32 {
    u32::try_from(device).ok().and_then(|device| 1_u32.checked_shl(device)).unwrap_or(0)
}

impl Peers {
    fn readers(&self, whose: CUdevice) -> u32 {
        let cell = usize::try_from(whose).ok().and_then(|whose| self.readers.get(whose));
        cell.map_or(0, |readers| readers.load(Ordering::Acquire))
    }

    /// Whether any other device may touch the memory of `whose`.
    pub fn is_open(&self, whose: CUdevice) -> bool {
        self.readers(whose) != 0
    }

    /// The other devices that may touch the memory of `whose`.
    pub fn readers_of<'s>(&self, session: &'s Session, whose: CUdevice) -> Vec<&'s Device> {
        let readers = self.readers(whose);
        session.devices().filter(|device| readers & bit(device.ordinal) != 0).collect()
    }

    /// Whether emuV places memory on all devices that may touch the memory of `whose`; what other memory holds is not known.
    pub fn are_readers_placed(&self, session: &Session, whose: CUdevice) -> bool {
        let readers = self.readers(whose);
        readers == 0 || readers.count_ones() as usize == self.readers_of(session, whose).len()
    }

    /// Waits for all that the devices have been given that may touch the memory of `whose`. Whether it is done.
    pub fn wait_for_readers(&self, session: &Session, whose: CUdevice) -> bool {
        let contexts = self.readers_of(session, whose).into_iter().flat_map(Device::contexts);
        contexts.map(|context| calls::synchronize(session.real, context)).all(|done| done.is_ok())
            && self.are_readers_placed(session, whose)
    }

    /// Whether work of `who` may touch the memory of `whose`.
    pub fn may_touch(&self, who: CUdevice, whose: CUdevice) -> bool {
        who == whose || self.readers(whose) & bit(who) != 0
    }

    /// Device `who` may touch the memory of `whose` from now on.
    ///
    /// # Errors
    /// The driver's own; nothing has changed then.
    pub fn open(&self, session: &Session, (who, whose, reason): Grant) -> CuResult {
        if who == whose || bit(who) == 0 {
            return Ok(());
        }
        lock(&self.grants).insert((who, whose, reason));
        let opened = self.settle(session, who, whose);
        if opened.is_err() {
            lock(&self.grants).remove(&(who, whose, reason));
            let _ = self.settle(session, who, whose);
        }
        opened
    }

    /// That reason is gone.
    pub fn close(&self, session: &Session, (who, whose, reason): Grant) {
        if lock(&self.grants).remove(&(who, whose, reason)) {
            let _ = self.settle(session, who, whose);
        }
    }

    /// Contexts are gone, with what they were allowed and what they allowed.
    pub fn contexts_gone(&self, session: &Session, contexts: &[Owner]) {
        let is_gone = |grant: &Grant| match grant.2 {
            Reason::Contexts(who, whose) => contexts.contains(&who) || contexts.contains(&whose),
            Reason::Pool(_) | Reason::Copies => false,
        };
        self.drop_all(session, is_gone);
    }

    /// A pool is gone.
    pub fn pool_gone(&self, session: &Session, pool: PoolId) {
        self.drop_all(session, |grant| grant.2 == Reason::Pool(pool));
    }

    fn drop_all(&self, session: &Session, is_gone: impl Fn(&Grant) -> bool) {
        let gone: Vec<Grant> = lock(&self.grants).extract_if(is_gone).collect();
        for (who, whose, _) in gone {
            let _ = self.settle(session, who, whose);
        }
    }

    /// Makes what is open what it is to be; one thread at a time.
    fn settle(&self, session: &Session, who: CUdevice, whose: CUdevice) -> CuResult {
        let mut busy = lock(&self.busy);
        while *busy {
            busy = self.settled.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        *busy = true;
        drop(busy);
        let result = self.settle_alone(session, who, whose);
        *lock(&self.busy) = false;
        self.settled.notify_all();
        result
    }

    fn settle_alone(&self, session: &Session, who: CUdevice, whose: CUdevice) -> CuResult {
        let wanted = lock(&self.grants).iter().any(|grant| (grant.0, grant.1) == (who, whose));
        let Some(device) = session.device(whose) else { return Ok(()) };
        let Some(readers) = usize::try_from(whose).ok().and_then(|whose| self.readers.get(whose)) else {
            return Ok(());
        };
        if wanted == self.may_touch(who, whose) {
            return Ok(());
        }
        log::debug(format_args!("memory of GPU {whose} is {} GPU {who}", if wanted { "open to" } else { "closed to" }));
        // Works of `who` count from here on, before one of them can touch anything; and until nothing is open any more.
        if wanted {
            readers.fetch_or(bit(who), Ordering::AcqRel);
        }
        // The mover maps and unmaps chunks: it keeps still meanwhile.
        device.moves.contexts_going(&[]);
        let result = device.arena.open_to(bit(who), wanted);
        if wanted {
            // Pointers may lie in memory that was not searched for them.
            device.arena.residency().opened_to_others();
        } else {
            readers.fetch_and(!bit(who), Ordering::AcqRel);
        }
        device.moves.contexts_settled(session);
        if wanted && device.moves.is_active() && !session.captures.any() {
            // What the other device was given before is not known here, and may carry pointers about.
            self.wait_for_readers(session, whose);
        }
        result
    }
}

impl Arena {
    /// Opens everything that is mapped, now and later, to other devices (a bit for each), or closes it to them.
    ///
    /// # Errors
    /// The driver's own: then what was opened is left so.
    fn open_to(&self, devices: u32, allowed: bool) -> CuResult {
        let before = self.gpu().peers();
        self.gpu().set_peers(if allowed { before | devices } else { before & !devices });
        let chunks = self.residency().mapped();
        let opened = chunks.into_iter().try_for_each(|chunk| self.set_access(chunk, devices, allowed));
        if opened.is_err() {
            self.gpu().set_peers(before);
        }
        opened
    }

    /// Chunks have been mapped while `peers` could touch what there was. By now it may be others.
    pub fn catch_up(&self, chunks: impl Iterator<Item = (u64, u64)>, peers: u32) -> CuResult {
        let more = self.gpu().peers() & !peers;
        if more == 0 { Ok(()) } else { chunks.into_iter().try_for_each(|chunk| self.set_access(chunk, more, true)) }
    }

    fn set_access(&self, (offset, bytes): (u64, u64), devices: u32, allowed: bool) -> CuResult {
        let changed = self.gpu().set_access(self.base() + offset, bytes, devices, allowed);
        // What another thread has freed meanwhile is nobody's.
        changed.or_else(|error| if lock(&self.handles).contains_key(&offset) { Err(error) } else { Ok(()) })
    }
}

/// The device of a context.
pub(crate) fn device_of(session: &Session, context: CUcontext) -> CuResult<CUdevice> {
    calls::in_context(session.real, calls::owner(context), || calls::current_device(session.real))
}

/// The contexts to name in a copy between two addresses, where the driver must be told whose they are: one of them is in
/// placed memory that the current device may not touch, and the other is on a device, too.
pub(crate) fn between(session: &Session, to: u64, from: u64) -> Option<(CUcontext, CUcontext)> {
    if !session.has_others() {
        return None;
    }
    let (_, here) = session.whereabouts()?;
    if [to, from].into_iter().all(|address| is_reachable(session, here, address)) {
        return None;
    }
    let context = |address| match session.device_at(address) {
        Some(device) => Some(device.a_context()?.0 as CUcontext),
        None => calls::pointer_context(session.real, address),
    };
    Some((context(to)?, context(from)?))
}

/// Whether a copy leads from one device's placed memory to another's.
pub(crate) fn crosses(session: &Session, to: u64, from: u64) -> bool {
    let ordinal = |address| session.device_at(address).map(|device| device.ordinal);
    ordinal(from).is_some_and(|from| ordinal(to) != Some(from))
}

/// A copy (or memory that is set) names memory that the driver does not know to be another device's: it is opened to the
/// current device. Where the devices cannot reach each other the driver may say what it thinks of the call.
pub(crate) fn within_reach(session: &Session, touch: &Touch) {
    let Some((_, here)) = session.whereabouts() else { return };
    for address in touch.addresses() {
        let Some(device) = session.device_at(address) else { continue };
        let whose = device.ordinal;
        if session.peers.may_touch(here, whose) || !calls::can_access(session.real, here, whose) {
            continue;
        }
        if let Err(error) = session.peers.open(session, (here, whose, Reason::Copies)) {
            log::debug(format_args!("memory of GPU {whose} cannot be opened to GPU {here}: {error}"));
        }
    }
}

/// [`moves::launch`] of a call that names its memory by addresses alone.
pub(crate) fn launch(
    session: &Session,
    stream: CUstream,
    per_thread: bool,
    touch: impl Fn() -> Touch,
    call: impl FnOnce() -> CUresult,
) -> CUresult {
    if session.has_others() {
        within_reach(session, &touch());
    }
    moves::launch(session, stream, per_thread, touch, call)
}

/// [`moves::launch`] of a copy that names contexts and has no plain form: what it names comes to VRAM first, if there is room
/// ([`needs_plain_copy`] says why).
pub(crate) fn launch_in_vram(
    session: &Session,
    stream: CUstream,
    per_thread: bool,
    touch: impl FnOnce() -> Touch,
    call: impl FnOnce() -> CUresult,
) -> CUresult {
    let touch = touch();
    let addresses: Vec<u64> = touch.addresses().collect();
    moves::in_vram(session, &addresses, || moves::launch(session, stream, per_thread, || touch, call))
}

/// Whether what lies at an address may be touched by device `here`, as far as emuV has placed it.
fn is_reachable(session: &Session, here: CUdevice, address: u64) -> bool {
    session.device_at(address).is_none_or(|device| session.peers.may_touch(here, device.ordinal))
}

/// Whether a copy has to be made by the plain form: the one that names contexts does not live through memory in RAM that is
/// mapped (driver 580 crashes, seen on two H100s). Both ends are opened to the current device.
pub(crate) fn needs_plain_copy(session: &Session, touch: &Touch) -> bool {
    if touch.addresses().all(|address| moves::is_in_vram(session, address)) {
        return false;
    }
    let Some((_, here)) = session.whereabouts() else { return false };
    within_reach(session, touch);
    touch.addresses().all(|address| is_reachable(session, here, address))
}

/// Whether the driver has refused a copy of placed memory between devices, and the current device may touch both ends now.
pub(crate) fn opened_after(session: &Session, result: CUresult, touch: &Touch) -> bool {
    let refusals = [CUresult::INVALID_VALUE, CUresult::NOT_SUPPORTED, CUresult::CUDA_ERROR_MAP_FAILED];
    if !refusals.contains(&result) || !session.has_others() {
        return false;
    }
    let Some((_, here)) = session.whereabouts() else { return false };
    let may = |address| session.device_at(address).is_some_and(|device| session.peers.may_touch(here, device.ordinal));
    if touch.addresses().all(may) {
        return false;
    }
    log::debug(format_args!("the driver copies no mapped memory between these devices ({result:?})"));
    within_reach(session, touch);
    touch.addresses().all(may)
}
