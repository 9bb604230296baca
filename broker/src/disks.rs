//! Disks that somebody else serves: where their back ends listen, and the connections to them.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use ipc::control::{DiskConfig, MAX_BOUNCE, MIN_BOUNCE};

use crate::cli::byte_count;

/// Bounce region of a disk unless given: requests of up to 4 MiB, several of them in flight.
pub const DEFAULT_BOUNCE: u64 = 8 << 20;
/// Why a back end cannot have all of guest RAM.
const ONLY_BOUNCE: &str = "dma: only `bounce` is possible. A back end that writes guest RAM itself would have to log its \
                           writes (VHOST_F_LOG_ALL), which the vmm does not follow yet";

/// Why there is no connection to a back end that is there.
const HANGS: &str = "others wait already, and it takes no connection: it hangs, or serves somebody else";

/// A disk with a back end of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserBlk {
    /// Where the back end listens.
    pub socket: PathBuf,
    /// Bytes of bounce region.
    pub bounce: u64,
}

impl VhostUserBlk {
    /// Parses `socket=PATH[,bounce=SIZE]`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut socket, mut bounce) = (None, DEFAULT_BOUNCE);
        for item in text.split(',') {
            match item.split_once('=') {
                Some(("socket", path)) if !path.is_empty() => socket = Some(PathBuf::from(path)),
                Some(("bounce", size)) => bounce = bounce_size(size)?,
                Some(("dma", "bounce")) => {}
                Some(("dma", _)) => return Err(ONLY_BOUNCE.into()),
                _ => return Err(format!("`{item}`: give socket=PATH and, if you like, bounce=SIZE")),
            }
        }
        Ok(Self { socket: socket.ok_or("socket=PATH is missing")?, bounce })
    }

    /// What the vmm is told of it.
    pub fn config(&self, name: &str) -> DiskConfig {
        DiskConfig { name: name.into(), bounce: self.bounce }
    }

    /// Connects to the back end, without waiting: one that takes no connections (EAGAIN, unix(7)) must not stop the broker.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        match connect(socket.as_raw_fd(), &UnixAddr::new(&self.socket)?) {
            Ok(()) => {}
            Err(Errno::EAGAIN) => return Err(io::Error::new(io::ErrorKind::WouldBlock, HANGS)),
            Err(error) => return Err(error.into()),
        }
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

/// Parses the size of a bounce region.
pub fn bounce_size(text: &str) -> Result<u64, String> {
    let bytes = byte_count(text)?;
    if !(MIN_BOUNCE..=MAX_BOUNCE).contains(&bytes) || !bytes.is_multiple_of(4096) {
        return Err("bounce: between 1M and 1G, in steps of 4K".into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_back_end_that_takes_no_connections_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let disk = VhostUserBlk { socket: dir.path().join("s"), bounce: 8 << 20 };
        assert_eq!(disk.connect().unwrap_err().kind(), io::ErrorKind::NotFound);
        let _listener = std::os::unix::net::UnixListener::bind(&disk.socket).unwrap();
        let mut taken = Vec::new();
        let error = loop {
            match disk.connect() {
                Ok(stream) => taken.push(stream),
                Err(error) => break error,
            }
        };
        assert!(!taken.is_empty() && error.to_string().contains("it hangs"), "{error}");
    }

    #[test]
    fn what_is_given_is_what_is_meant() {
        let disk = VhostUserBlk { socket: "/run/disk".into(), bounce: 8 << 20 };
        assert_eq!(VhostUserBlk::parse("socket=/run/disk"), Ok(disk.clone()));
        assert_eq!(VhostUserBlk::parse("bounce=1M,socket=/run/disk"), Ok(VhostUserBlk { bounce: 1 << 20, ..disk }));
        for wrong in ["", "socket=", "bounce=1M", "socket=/x,bounce=4K", "socket=/x,bounce=2G", "socket=/x,ro"] {
            assert!(VhostUserBlk::parse(wrong).is_err(), "{wrong}");
        }
        assert!(VhostUserBlk::parse("socket=/x,dma=shared").is_err_and(|why| why.contains("VHOST_F_LOG_ALL")));
    }
}
