//! What a program can say to emuV, and ask it: `include/emuv.h`. None of this makes a driver call or waits for anything.
//!
//! # Safety
//! The program calls under the header's contract: pointers are null or valid for what the function reads and writes.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use emuv_policy::{Heat, Hint};
use emuv_state::DeviceCounters;

use crate::session::{self, Session};

const ABI_VERSION: u32 = 1;

const OK: c_int = 0;
const NOT_ACTIVE: c_int = 1;
const INVALID_VALUE: c_int = 2;
const NOT_PLACED: c_int = 3;
const NOT_KEPT: c_int = 4;
const INTERNAL: c_int = 5;

/// Not known.
const UNKNOWN: u64 = u64::MAX;

/// `struct emuv_stats`: fields are only ever added at its end.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Stats {
    size: u64,
    devices: u64,
    vram: [u64; 3],
    ram: [u64; 3],
    allocations: u64,
    frees: u64,
    refused: u64,
    spilled: u64,
    launches: u64,
    into_vram: u64,
    out_of_vram: u64,
    remapped: u64,
    in_place: u64,
    held: u64,
    held_microseconds: u64,
    bound_permille: u64,
}

const STATS_WORDS: usize = size_of::<Stats>() / 8;

/// The version of this interface.
///
/// # Safety
/// Nothing to observe.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) extern "C" fn emuv_abi_version() -> u32 {
    ABI_VERSION
}

/// What to expect of a piece of memory.
///
/// # Safety
/// Nothing to observe: the address is not followed.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) extern "C" fn emuv_hint(address: u64, bytes: u64, hint: c_int) -> c_int {
    let hint = match hint {
        0 => Hint::Heat(Heat::Usual),
        1 => Hint::Heat(Heat::Hot),
        2 => Hint::Heat(Heat::Cold),
        3 => Hint::Discard,
        _ => return INVALID_VALUE,
    };
    with_session(|session| take_hint(session, address, bytes, hint))
}

fn take_hint(session: &Session, address: u64, bytes: u64, hint: Hint) -> c_int {
    let Some(device) = session.device_at(address) else { return NOT_PLACED };
    let Some((start, allocation)) = device.find(address) else { return NOT_PLACED };
    let left_bytes = start + allocation.bytes - address;
    if bytes == 0 || bytes > left_bytes {
        return INVALID_VALUE;
    }
    // An allocation has its last chunk to itself.
    let bytes = if bytes == left_bytes { u64::MAX } else { bytes };
    device.arena.residency().hint(address - device.arena.base(), bytes, hint);
    if hint == Hint::Heat(Heat::Hot) && device.moves.is_active() {
        device.moves.wake_mover();
    }
    OK
}

/// The counters of all devices together.
///
/// # Safety
/// `stats` is null or valid for `size` bytes.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn emuv_stats(stats: *mut u64, size: usize) -> c_int {
    // SAFETY: the caller's word.
    with_session(|session| unsafe { fill(session, None, stats, size) })
}

/// The counters of one device.
///
/// # Safety
/// `stats` is null or valid for `size` bytes.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn emuv_device_stats(device: c_int, stats: *mut u64, size: usize) -> c_int {
    // SAFETY: the caller's word.
    with_session(|session| unsafe { fill(session, Some(device), stats, size) })
}

/// # Safety
/// `stats` is null or valid for `size` bytes.
unsafe fn fill(session: &Session, only: Option<c_int>, stats: *mut u64, size: usize) -> c_int {
    if stats.is_null() || !stats.is_aligned() || size < size_of::<u64>() {
        return INVALID_VALUE;
    }
    let wanted = |ordinal: c_int| only.is_none_or(|only| only == ordinal);
    let devices = session.devices().filter(|device| wanted(device.ordinal));
    let counters: Vec<&DeviceCounters> = devices.filter_map(|device| session.counters(device.ordinal)).collect();
    if only.is_some() && counters.is_empty() {
        return INVALID_VALUE;
    }
    let mut found = sum(&counters);
    if only.is_none() {
        let ram = &session.process_counters().ram;
        found.ram = [load(&ram.budget_bytes), load(&ram.used_bytes), load(&ram.peak_bytes)];
    }
    let words = (size / size_of::<u64>()).min(STATS_WORDS);
    found.size = (words * size_of::<u64>()) as u64;
    for (at, word) in found.words().into_iter().take(words).enumerate() {
        // SAFETY: valid for `size` bytes by the caller's word, aligned as checked above.
        unsafe { stats.add(at).write(word) };
    }
    OK
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}

fn sum(devices: &[&DeviceCounters]) -> Stats {
    let of = |field: fn(&DeviceCounters) -> &AtomicU64| devices.iter().map(|device| load(field(device))).sum();
    let figure = match devices {
        [device] => device.figure.percent_of_bound(),
        _ => None,
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // From 0 to 100.
    let permille = |percent: f64| (percent * 10.0) as u64;
    Stats {
        size: 0,
        devices: devices.len() as u64,
        vram: [of(|d| &d.vram.budget_bytes), of(|d| &d.vram.used_bytes), of(|d| &d.vram.peak_bytes)],
        ram: [of(|d| &d.ram.budget_bytes), of(|d| &d.ram.used_bytes), of(|d| &d.ram.peak_bytes)],
        allocations: of(|d| &d.allocations),
        frees: of(|d| &d.frees),
        refused: of(|d| &d.refused),
        spilled: of(|d| &d.spilled_bytes),
        launches: of(|d| &d.launches),
        into_vram: of(|d| &d.promoted_bytes),
        out_of_vram: of(|d| &d.evicted_bytes),
        remapped: of(|d| &d.remapped_bytes),
        in_place: devices.iter().map(|device| device.figure.in_place_bytes()).sum(),
        held: of(|d| &d.held),
        held_microseconds: of(|d| &d.held_micros),
        bound_permille: figure.map_or(UNKNOWN, permille),
    }
}

impl Stats {
    fn words(&self) -> [u64; STATS_WORDS] {
        // SAFETY: `repr(C)` and made of `u64` only.
        unsafe { std::mem::transmute(*self) }
    }
}

/// The program is at a place that it has a name for.
///
/// # Safety
/// `label` is null or a C string.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn emuv_mark(label: *const c_char) -> c_int {
    with_session(|session| {
        if label.is_null() {
            return INVALID_VALUE;
        }
        // SAFETY: not null, so a C string by the caller's word.
        let label = unsafe { CStr::from_ptr(label) }.to_string_lossy();
        let kept = session.devices().filter(|device| device.timeline.mark(session.began, &label)).count();
        if kept > 0 { OK } else { NOT_KEPT }
    })
}

/// Answers a call of this interface; what fails inside leaves the program as it was.
fn with_session(answer: impl FnOnce(&'static Session) -> c_int) -> c_int {
    catch_unwind(AssertUnwindSafe(|| session::alive().map_or(NOT_ACTIVE, answer))).unwrap_or(INTERNAL)
}
