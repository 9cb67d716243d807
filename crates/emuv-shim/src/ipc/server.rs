//! The thread that gives other processes the descriptors of what this one has exported.
//!
//! # Safety
//! The one block closes a descriptor in a forked child: the parent's socket, which nothing else in the child uses.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::AsRawFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use emuv_cuda::{CUresult, CuError};
use emuv_state::sharing::{Client, Listener, PIECES_AT_ONCE, Piece};

use super::exports::Lent;
use crate::{arena::lock, log, moves::thread, session::Session};

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
        thread::at_exit(move || {
            own.close();
            stop(&state);
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
    let waited = over.wait_timeout_while(state, AT_MOST, |state| state.serving);
    drop(waited.unwrap_or_else(PoisonError::into_inner));
}

fn serve(session: &Session, client: &Client) {
    for device in session.devices() {
        if let Some(lent) = device.arena.exports.lend(&device.arena, client.key) {
            if let Err(error) = send(device.arena.gpu(), &lent, client) {
                log::debug(format_args!("exported memory was not sent: {error}"));
            }
            return;
        }
    }
    client.refuse(CUresult::CUDA_ERROR_INVALID_HANDLE.0);
}

fn send(gpu: &dyn emuv_cuda::Gpu, lent: &Lent<'_>, client: &Client) -> io::Result<()> {
    let total = u32::try_from(lent.handles.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    for some in lent.handles.chunks(PIECES_AT_ONCE) {
        let pieces: Result<Vec<Piece>, CuError> =
            some.iter().map(|(handle, bytes)| Ok((*bytes, gpu.export(*handle)?))).collect();
        match pieces {
            Ok(pieces) => client.send(total, &pieces)?,
            Err(error) => {
                client.refuse(error.code().0);
                return Err(io::Error::other(error));
            }
        }
    }
    Ok(())
}
