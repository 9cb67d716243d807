//! A Unix socket in one of the kubelet's folders, on which something is served: there as long as it is served, and known by
//! more than its name, since the kubelet clears its folders and others may make sockets of the same name.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use tokio::{net::UnixListener, sync::oneshot};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::Router;

/// Which file this is: not the one of the same name that was made after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity([i64; 4]);

impl Identity {
    /// Of the file there, if there is one.
    pub fn of(path: &Path) -> Option<Self> {
        let data = fs::symlink_metadata(path).ok()?;
        // Numbers of files are given again at once, times are not.
        Some(Self([data.dev().cast_signed(), data.ino().cast_signed(), data.ctime(), data.ctime_nsec()]))
    }
}

/// A socket that is served. Dropped, it ends the server and removes its file.
#[derive(Debug)]
pub struct Served {
    path: PathBuf,
    bound: Option<Identity>,
    /// Dropped, it ends the server.
    _serving: oneshot::Sender<()>,
}

impl Served {
    /// Serves on a socket from now on. One that was left there by somebody who was killed is replaced.
    ///
    /// # Errors
    /// The system's own: the socket cannot be made.
    pub fn start(path: PathBuf, router: Router) -> io::Result<Self> {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        let bound = Identity::of(&path);
        let (serving, stopped) = oneshot::channel::<()>();
        let until = async {
            let _ = stopped.await;
        };
        let serve = router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), until);
        // It ends by itself only with the listener, and then the socket is made again.
        tokio::spawn(async { drop(serve.await) });
        Ok(Self { path, bound, _serving: serving })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is still the file that was made.
    pub fn is_there(&self) -> bool {
        self.bound.is_some() && Identity::of(&self.path) == self.bound
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}
