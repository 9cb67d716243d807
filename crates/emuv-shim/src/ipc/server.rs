//! The thread that gives other processes the descriptors of what this one has exported.
//!
//! # Safety
//! The one block closes a descriptor in a forked child: the parent's socket, which nothing else in the child uses.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::AsRawFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use emuv_cuda::{CUresult, CuError};
use emuv_state::sharing::{Client, Listener, PIECES_AT_ONCE, Piece};

use crate::{
    arena::{Arena, lock},
    log,
    session::Session,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    thread,
};

/// The process ends after so long at the latest, whatever the server is doing.
const AT_MOST: Duration = Duration::from_secs(1);

/// The socket, for forked children.
static SOCKET: AtomicI32 = AtomicI32::new(-1);

/// See the module's head.
#[derive(Debug)]
pub(super) struct Server {
    listener: Arc<Listener>,
}

/// Where the thread is.
#[derive(Debug, Default)]
struct State {
    /// It calls the driver.
    serving: bool,
    /// It must not any more.
    stop: bool,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

/// In a forked child: its copy of the socket would keep clients waiting when the parent has ended.
pub(crate) fn forked() {
    let socket = SOCKET.swap(-1, Ordering::SeqCst);
    if socket >= 0 {
        // SAFETY: see the module's head.
        unsafe { libc::close(socket) };
    }
}

impl Server {
    /// Starts it.
    ///
    /// # Errors
    /// The system's own.
    pub fn start(session: &'static Session) -> io::Result<Self> {
        let listener = Arc::new(Listener::open()?);
        let state = Shared::default();
        SOCKET.store(listener.as_raw_fd(), Ordering::SeqCst);
        let (own, shared) = (Arc::clone(&listener), Arc::clone(&state));
        thread::spawn("emuv-ipc", move || {
            let served = catch_unwind(AssertUnwindSafe(|| {
                while let Ok(client) = own.accept() {
                    if let Some(client) = client.filter(|_| begin(&shared)) {
                        serve(session, &client);
                        end(&shared);
                    }
                }
            }));
            if served.is_err() {
                own.close();
                end(&shared);
                session.degrade("giving memory to another process");
            }
        })?;
        let own = Arc::clone(&listener);
        let process = std::process::id();
        thread::at_exit(move || {
            // A forked child ends too: the socket is its parent's.
            if std::process::id() == process {
                own.close();
                stop(&state);
            }
        });
        Ok(Self { listener })
    }

    /// What tokens call it.
    pub fn name(&self) -> u64 {
        self.listener.name()
    }
}

fn begin((state, _): &(Mutex<State>, Condvar)) -> bool {
    let mut state = lock(state);
    state.serving = !state.stop;
    state.serving
}

fn end((state, over): &(Mutex<State>, Condvar)) {
    lock(state).serving = false;
    over.notify_all();
}

/// The driver is about to take itself down.
fn stop((state, over): &(Mutex<State>, Condvar)) {
    let mut state = lock(state);
    state.stop = true;
    while state.serving {
        let waited = over.wait_timeout(state, AT_MOST).unwrap_or_else(PoisonError::into_inner);
        if waited.1.timed_out() {
            return;
        }
        state = waited.0;
    }
}

fn serve(session: &Session, client: &Client) {
    for device in session.devices() {
        match send(&device.arena, client) {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                log::debug(format_args!("exported memory was not sent: {error}"));
                return;
            }
        }
    }
    client.refuse(CUresult::CUDA_ERROR_INVALID_HANDLE.0);
}

/// Sends what the client asks for, if it is in this arena. The program can free it between two packets: a client that
/// takes none keeps nobody waiting.
fn send(arena: &Arena, client: &Client) -> io::Result<bool> {
    let mut sent = 0;
    loop {
        let Some(lent) = arena.exports.lend(arena, client.key) else { return Ok(false) };
        let total = lent.handles.len();
        let some = lent.handles.iter().skip(sent).take(PIECES_AT_ONCE);
        let pieces: Result<Vec<Piece>, CuError> =
            some.map(|(handle, bytes)| Ok((*bytes, arena.gpu().export(*handle)?))).collect();
        drop(lent);
        let pieces = pieces.map_err(|error| {
            client.refuse(error.code().0);
            io::Error::other(error)
        })?;
        if pieces.is_empty() {
            return Ok(true);
        }
        client.send(u32::try_from(total).unwrap_or(u32::MAX), &pieces)?;
        sent += pieces.len();
    }
}
