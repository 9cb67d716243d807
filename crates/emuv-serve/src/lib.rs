//! What emuV does on this machine, over HTTP: metrics for Prometheus, JSON for programs, a page for people.
//!
//! ```text
//! who asks -> routes -> Watcher -> Sample (emuv-watch)      a look at most every second, none while nobody asks
//!                    -> access  -> Admin (of the command)   changes of slices, if the server was started for them
//! ```
//!
//! *What holds:*
//!
//! 1. **Looking changes nothing**, and what is unknown is left out or `null`, never 0.
//! 2. **Changes need a token, and a page of ours** ([`access`]). They are made by the functions that `emuv vgpu` uses, with
//!    this process's rights.
//! 3. **What others wrote is data**: escaped in the metrics, JSON in the interface, text in the page.
//! 4. **The interface is what its document says**: `/api/v1/openapi.json` has every address, and answers validate against it.

pub mod access;
mod admin;
mod metrics;
mod page;
mod routes;
mod watcher;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::timeout;

pub use access::Token;
pub use admin::{Admin, Refusal, RefusalKind, Resize, Size};
pub use metrics::{Format, sample_names, text as metrics_text};
pub use routes::addresses;
pub use watcher::Sample;

/// How long answers that are under way may take when the server is told to end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// What a server is started with.
pub struct Settings {
    /// Takes a sample.
    pub sample: Sample,
    /// The token that allows changes, and who carries them out; `None`: nothing is changed.
    pub changes: Option<(Token, Arc<dyn Admin>)>,
    /// The version of emuV.
    pub version: &'static str,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("changes", &self.changes.is_some()).finish_non_exhaustive()
    }
}

/// Answers until `stop` is there. Call it in a runtime of tokio with I/O and time.
///
/// # Errors
/// The system's own.
pub async fn serve(
    listener: TcpListener,
    settings: Settings,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let shared = routes::Shared {
        local: listener.local_addr()?.ip().is_loopback(),
        watcher: watcher::Watcher::start(settings.sample, watcher::PATIENCE)?,
        changes: settings.changes.map(|(token, admin)| routes::Changes { token, admin, attempts: Mutex::default() }),
        version: settings.version,
    };
    let service = routes::router(Arc::new(shared)).into_make_service_with_connect_info::<SocketAddr>();
    let (stopped, is_stopped) = tokio::sync::oneshot::channel();
    let server = axum::serve(listener, service).with_graceful_shutdown(async move {
        stop.await;
        let _ = stopped.send(());
    });
    let mut server = std::pin::pin!(server.into_future());
    tokio::select! {
        ended = &mut server => return ended,
        _ = is_stopped => {}
    }
    // Who keeps a connection open and says nothing must not keep the server.
    timeout(LAST_ANSWERS, server).await.unwrap_or(Ok(()))
}
