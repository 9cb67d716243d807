//! Programs of several threads and the mover, over thousands of schedules: which thread runs next is chosen at random
//! (or by priorities that change at random places, PCT) at each lock, wait, atomic and driver call. A schedule fails by a
//! deadlock, by going on for ever, by a wrong sum, by memory that moves or goes while a work touches it, or by charges and
//! handles that are left at the end.
//!
//! What runs is the shim itself: its sources are compiled here once more, entries, session, devices, arena, pools, moves
//! and the mover's own loop, over five other rooms: `sync` (shuttle's primitives, and time), `thread` (the mover is a
//! thread of shuttle's), `real` (nothing is loaded), `system` (variables only) and a driver of the test's own (`driver`, `gpu`). The
//! residency and the memory's state are those of emuv-policy.
//!
//! Not covered: what the shim does before there is a session and after a fork; look-up of functions and pass-through;
//! captures and graphs, contexts that come and go, several devices, `emuv verify`, failures of the driver but one (the
//! simulated driver's tests have them, on real threads); the live counters, which are plain stores. Shuttle runs one thread at a
//! time and so sees atomics as if all were sequentially consistent: a missing `Acquire` is not found here.
//!
//! `EMUV_INTERLEAVINGS=N` runs N times as many schedules; `EMUV_INTERLEAVINGS_SEED=S` runs others (a failure prints its
//! seed, with which one schedule alone is run again).

#![allow(dead_code, unused_imports, missing_docs, clippy::expect_used)]

macro_rules! rooms {
    ($($path:literal $name:ident;)*) => { $(#[path = $path] mod $name;)* };
}

rooms! {
    "../../src/account.rs" account;
    "../../src/aliases.rs" aliases;
    "../../src/contents.rs" contents;
    "../../src/arena.rs" arena;
    "../../src/calls.rs" calls;
    "../../src/capture.rs" capture;
    "../../src/device.rs" device;
    "../../src/entry/mod.rs" entry;
    "../../src/functions.rs" functions;
    "../../src/globals.rs" globals;
    "../../src/graphs.rs" graphs;
    "../../src/handles.rs" handles;
    "../../src/hints.rs" hints;
    "../../src/host_ranges.rs" host_ranges;
    "../../src/context_charges.rs" context_charges;
    "../../src/ipc/mod.rs" ipc;
    "../../src/leases.rs" leases;
    "../../src/log.rs" log;
    "../../src/moves/mod.rs" moves;
    "../../src/peers.rs" peers;
    "../../src/pointer.rs" pointer;
    "../../src/pools.rs" pools;
    "../../src/session.rs" session;
    "../../src/sites/mod.rs" sites;
    "../../src/slice.rs" slice;
    "../../src/streams.rs" streams;
    "../../src/timeline.rs" timeline;
    "../../src/touch.rs" touch;
    "../../src/turns.rs" turns;
    "../../src/view.rs" view;
}

mod driver;
mod gpu;
mod program;
mod random;
mod real;
mod scenarios;
mod schedules;
mod sync;
mod system;
mod thread;

fn main() -> std::process::ExitCode {
    schedules::run(scenarios::ALL)
}
