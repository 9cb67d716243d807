//! `emuv verify`: shows whether the program keeps to what emuV takes its work to touch. One piece of work runs at a time,
//! and while it runs only the chunks that it may touch by the rules of residency are mapped, so that the GPU itself
//! refuses any other. Nothing moves in this mode.
//!
//! Unlike everything else here the lock is held across driver calls: that works do not overlap is the point. So a
//! work that waits for a later one (`cuStreamWaitValue`, a kernel that waits for the host) waits for ever.

use std::{
    fmt,
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use emuv_cuda::{
    CUresult, CuError, CuResult,
    types::{CUfunction, CUstream},
};
use emuv_policy::{Bytes, Owner, SearchRanges};
use emuv_state::{Verdict, verdict_file};

use super::search::{Findings, Search};
use crate::{arena::lock, calls, device::Device, log, session::Session, sync::Mutex, touch::Touch};

/// Allocations that a message lists at most.
const MOST_LISTED: usize = 8;

/// What a work is, for messages.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What {
    /// A launch of this function, or of a kernel in a function's place.
    Kernel(CUfunction),
    /// A launch of a graph.
    Graph,
    /// A copy, a memset, an operation of a stream on memory.
    Copy,
}

/// See the module's head. One per process.
#[derive(Debug)]
pub(crate) struct Verify(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    verdict: Verdict,
    /// Launches so far, checked or not.
    launches: u64,
    /// All memory is to be searched for pointers before anything is hidden.
    search_all: bool,
    /// Nothing is checked any more.
    over: bool,
}

impl Verify {
    /// Its findings go to a file in the run's directory.
    pub fn new(run_dir: Option<&Path>) -> Self {
        let open = |path: &Path| OpenOptions::new().write(true).create(true).truncate(true).open(path);
        let file = run_dir.map(verdict_file).and_then(|path| {
            let opened = open(&path);
            opened.inspect_err(|error| log::error(format_args!("cannot write {}: {error}", path.display()))).ok()
        });
        Self(Mutex::new(State { file, ..State::default() }))
    }

    /// Makes a call that gives the GPU work, alone and with nothing else in reach.
    pub fn around(
        &self,
        session: &Session,
        stream: (CUstream, bool),
        what: What,
        touch: impl FnOnce() -> Touch,
        call: impl FnOnce() -> CUresult,
    ) -> CUresult {
        let Some((context, _)) = session.here() else { return call() };
        if session.captures.any() && calls::is_capturing(session.real, stream.0, stream.1) {
            // It becomes part of a graph and gives the GPU no work now.
            return call();
        }
        let mut state = lock(&self.0);
        if !matches!(what, What::Copy) {
            state.launches += 1;
        }
        if state.over {
            return call();
        }
        if session.captures.any() {
            // Waiting for the GPU would break the capture.
            show_all(session);
            state.search_all = true;
            state.verdict.unchecked += 1;
            state.save();
            return call();
        }
        let touch = touch();
        super::brought(session, &touch);
        let hidden = match state.prepare(session, context, &touch) {
            Ok(hidden) => hidden,
            Err(error) => {
                state.end(session, format_args!("verify: nothing is checked from here on ({error})"));
                return call();
            }
        };
        let result = call();
        let ended = result.ok().and_then(|()| calls::synchronize(session.real, context));
        match ended {
            Err(error) if hidden > 0 && is_fault(error) => {
                let offence = Offence { session, what, launch: state.launches, stream: stream.0, touch: &touch, error };
                state.verdict.offender = Some(offence.to_string());
                state.end(session, format_args!("verify: {offence}"));
            }
            Err(error) if is_fault(error) => {
                state.end(session, format_args!("verify: the program failed by itself ({error}), with all in reach"));
            }
            Err(_) => {}
            Ok(()) => state.follow(session, context, &touch),
        }
        match what {
            What::Copy => state.verdict.copies += 1,
            What::Kernel(_) | What::Graph => state.verdict.launches += 1,
        }
        state.verdict.open += u64::from(touch.everything);
        state.save();
        result
    }

    /// A call is about to use memory in a way that is no work: everything is in reach until the next work.
    pub fn show_all(&self, session: &Session) {
        let _state = lock(&self.0);
        show_all(session);
    }
}

impl State {
    /// Waits for the GPU and puts just the work's chunks in reach. Gives how many are not.
    fn prepare(&mut self, session: &Session, context: Owner, touch: &Touch) -> CuResult<usize> {
        calls::synchronize(session.real, context)?;
        for device in session.devices() {
            for other in device.contexts().into_iter().filter(|other| *other != context) {
                calls::synchronize(session.real, other)?;
            }
        }
        if self.search_all && !touch.everything {
            self.search_all = false;
            search_everything(session, context)?;
        }
        let mut hidden = 0;
        for device in session.devices() {
            let offsets = super::offsets(&device.arena, touch.addresses());
            device.arena.residency().given(touch.maker, &offsets);
            // Pointers to it may lie in memory of other devices, where they are not looked for.
            let open = touch.everything || session.peers.is_open(device.ordinal);
            hidden += device.arena.show_only(&offsets, open)?;
        }
        Ok(hidden)
    }

    /// Searches what the work has left for pointers, where it may have left some.
    fn follow(&mut self, session: &Session, context: Owner, touch: &Touch) {
        let is_doubtful = |device: &Device| {
            let offsets = super::offsets(&device.arena, touch.addresses());
            device.arena.residency().is_to_be_searched(touch.maker, &offsets)
        };
        let search = touch.may_store_pointers || session.devices().any(is_doubtful);
        if !search || touch.everything {
            self.search_all |= touch.may_store_pointers;
            return;
        }
        for device in session.devices() {
            let ranges = device.arena.residency().ranges(&super::offsets(&device.arena, touch.addresses()), None);
            let mut search = super::searching(&device.arena, ranges, touch.maker);
            search.ranges.extend(&touch.pinned);
            match self::search(session, device, context, search) {
                Ok(found) => {
                    let mut residency = device.arena.residency();
                    residency.doubted(&found.doubted);
                    residency.collected(&[], &found.offsets, &found.storers);
                }
                Err(_) => self.search_all = true,
            }
        }
    }

    fn end(&mut self, session: &Session, why: fmt::Arguments<'_>) {
        log::notice(why);
        self.over = true;
        show_all(session);
    }

    fn save(&self) {
        if let Some(file) = &self.file {
            // What cannot be written is missing from the verdict's count, no more.
            let _ = file.write_all_at(self.verdict.text().as_bytes(), 0);
        }
    }
}

fn show_all(session: &Session) {
    for device in session.devices() {
        if let Err(error) = device.arena.show_only(&[], true) {
            log::debug(format_args!("memory could not be mapped again: {error}"));
        }
    }
}

/// Searches all memory for pointers. Where that fails, anything may be pointed to.
fn search_everything(session: &Session, context: Owner) -> CuResult {
    for device in session.devices() {
        device.arena.show_only(&[], true)?;
        let (all, _) = device.arena.residency().access_set(&[], true);
        let ranges = SearchRanges { written: all, ..SearchRanges::default() };
        let found = search(session, device, context, super::searching(&device.arena, ranges, 0));
        device.arena.residency().searched_all(found.as_ref().ok().map(|found| &found.offsets[..]));
    }
    Ok(())
}

/// Searches memory, and the globals, for pointers into a device's arena.
fn search(session: &Session, device: &Device, current: Owner, mut search: Search) -> CuResult<Findings> {
    let (real, arena, searcher) = (session.real, &device.arena, &device.moves.searcher);
    let contexts = device.contexts();
    let context = contexts.iter().find(|context| **context == current).or(contexts.first()).copied();
    let Some(context) = context else { return Err(CuError::INVALID_VALUE) };
    let window = (arena.base(), arena.bytes());
    search.ranges.extend(session.globals.of(Some(context)));
    calls::in_context(real, context, || {
        searcher.prepare(real, context, window)?;
        searcher.issue(real, context, std::ptr::null_mut(), &search, window)
    })?;
    calls::synchronize(real, context)?;
    Ok(searcher.findings(window))
}

/// Errors by which the GPU refuses an address.
fn is_fault(error: CuError) -> bool {
    let faults = [
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
        CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE,
        CUresult::CUDA_ERROR_LAUNCH_FAILED,
    ];
    faults.contains(&error.code())
}

/// What is said of a work that touched what it should not have.
struct Offence<'a> {
    session: &'a Session,
    what: What,
    launch: u64,
    stream: CUstream,
    touch: &'a Touch,
    error: CuError,
}

impl fmt::Display for Offence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            What::Kernel(function) => {
                write!(f, "kernel {} (launch {}", calls::function_name(self.session.real, function), self.launch)?;
            }
            What::Graph => write!(f, "a graph (launch {}", self.launch)?,
            What::Copy => write!(f, "a copy or memset (after launch {}", self.launch)?,
        }
        let named = named(self.session, self.touch);
        write!(f, ", stream {:#x}) touched memory outside the {} allocations", self.stream as usize, named.len())?;
        f.write_str(" that it names and those that are known to be pointed to")?;
        for (index, (start, bytes)) in named.iter().take(MOST_LISTED).enumerate() {
            write!(f, "{}{start:#x} ({})", if index == 0 { "; it names " } else { ", " }, Bytes(*bytes))?;
        }
        if named.len() > MOST_LISTED {
            write!(f, " and {} more", named.len() - MOST_LISTED)?;
        }
        write!(f, "; the driver says {}. If it fails without emuV as well, the program is wrong", self.error)
    }
}

/// Start and size of the allocations that the work names.
fn named(session: &Session, touch: &Touch) -> Vec<(u64, u64)> {
    let mut named = Vec::new();
    for address in touch.addresses() {
        let found = session.device_at(address).and_then(|device| device.find(address));
        if let Some((start, allocation)) = found
            && !named.contains(&(start, allocation.bytes))
        {
            named.push((start, allocation.bytes));
        }
    }
    named
}
