//! Connections: one front end after the other, each with a back end of its own over the same device.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::AcceptConn};
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::announce::Announcer;
use crate::backend::Backend;
use crate::device::Device;

/// Why there is no connection, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No socket at the path.
    #[error("cannot listen on {path}")]
    Listen {
        /// The path.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A descriptor of the wrong kind.
    #[error(
        "--fd must be a listening unix socket (with the front end's connection pending, if that is the only one): \
         the vhost-user library accepts connections itself"
    )]
    NotListening,
    /// The front end broke the protocol; the next one may do better.
    #[error("vhost-user: {0}")]
    Protocol(Error),
    /// This process cannot serve anybody.
    #[error("vhost-user: {0}")]
    Unable(Error),
}

/// Binds a new socket. What is left of an earlier one is removed; a socket that somebody listens on is not.
pub fn bind(path: &Path) -> Result<Listener, ServeError> {
    let failed = |source| ServeError::Listen { path: path.display().to_string(), source };
    let bound = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(failed(error));
            }
            std::fs::remove_file(path).map_err(failed)?;
            UnixListener::bind(path)
        }
        other => other,
    };
    Ok(Listener::from(bound.map_err(failed)?))
}

/// Takes an inherited listening socket over.
pub fn inherited(fd: OwnedFd) -> Result<Listener, ServeError> {
    if !getsockopt(&fd, AcceptConn).unwrap_or(false) {
        return Err(ServeError::NotListening);
    }
    Ok(Listener::from(UnixListener::from(fd)))
}

/// Waits for a front end and serves it until it leaves. When [`VhostUserDaemon::start`] has returned, all threads exist
/// and nothing more is opened.
pub fn serve(
    device: &Arc<Device>,
    listener: &mut Listener,
    announcer: &Arc<Announcer>,
    spin: Duration,
) -> Result<(), ServeError> {
    announcer.expect_connection();
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let backend = Arc::new(Backend::new(Arc::clone(device), memory.clone(), Arc::clone(announcer), spin));
    let mut daemon = VhostUserDaemon::new("vhost-user".to_owned(), backend, memory).map_err(ServeError::Unable)?;
    daemon.start(listener).map_err(ServeError::Unable)?;
    match daemon.wait() {
        // How a front end leaves.
        Err(Error::HandleRequest(ProtocolError::Disconnected | ProtocolError::PartialMessage)) | Ok(()) => Ok(()),
        Err(error) => Err(ServeError::Protocol(error)),
    }
}
