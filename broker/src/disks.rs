//! Disks that somebody else serves: where their back ends listen, and the connections to them.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use ipc::control::{DeviceConfig, DeviceKind, DmaMode, MAX_BOUNCE, MAX_QUEUES, MIN_BOUNCE};

use crate::cli::byte_count;

/// Bounce region of a disk unless given: requests of up to 4 MiB, several of them in flight.
pub const DEFAULT_BOUNCE: u64 = 8 << 20;
/// Seconds that a back end may take for a request unless given: as long as disk drivers wait, and once more.
const DEFAULT_TIMEOUT: u32 = 60;
/// Why somebody else's back end cannot have all of guest RAM.
const ONLY_BOUNCE: &str = "dma: only `bounce` is possible for a back end that was started by somebody else. A guest that \
                           resets its disk must know that nothing is written any more, and only a process that we can \
                           kill is sure to have stopped; give the image by --disk, with dma=shared";

/// Why there is no connection to a back end that is there.
const HANGS: &str = "others wait already, and it takes no connection: it hangs, or serves somebody else";

/// A disk with a back end of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserBlk {
    /// Where the back end listens.
    pub socket: PathBuf,
    /// Bytes of bounce region.
    pub bounce: u64,
    /// Virtqueues that the guest is offered, if the back end has as many.
    pub queues: u16,
    /// Seconds without a completed request, while there are some, after which another connection is tried.
    pub timeout: u32,
}

impl VhostUserBlk {
    /// Parses `socket=PATH[,bounce=SIZE][,queues=N][,timeout=SECONDS]`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut socket, mut bounce, mut queues, mut timeout) = (None, DEFAULT_BOUNCE, 1, DEFAULT_TIMEOUT);
        for item in text.split(',') {
            match item.split_once('=') {
                Some(("socket", path)) if !path.is_empty() => socket = Some(PathBuf::from(path)),
                Some(("bounce", size)) => bounce = bounce_size(size)?,
                Some(("queues", number)) => queues = queue_count(number)?,
                Some(("timeout", seconds)) => timeout = seconds_of(seconds)?,
                Some(("dma", "bounce")) => {}
                Some(("dma", _)) => return Err(ONLY_BOUNCE.into()),
                _ => {
                    let more = "bounce=SIZE, queues=N, timeout=SECONDS";
                    return Err(format!("`{item}`: give socket=PATH and, if you like, {more}"));
                }
            }
        }
        Ok(Self { socket: socket.ok_or("socket=PATH is missing")?, bounce, queues, timeout })
    }

    /// What the vmm is told of it.
    pub fn config(&self, name: &str) -> DeviceConfig {
        let (kind, dma) = (DeviceKind::Disk, DmaMode::Bounce);
        DeviceConfig { name: name.into(), kind, bounce: self.bounce, queues: self.queues, dma }
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

/// Parses how long a back end may take for a request.
fn seconds_of(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|seconds| *seconds > 0).ok_or_else(|| "timeout: a number of seconds from 1 on".into())
}

/// Parses a number of queues.
pub fn queue_count(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX_QUEUES).contains(number));
    number.ok_or_else(|| format!("queues: a number from 1 to {MAX_QUEUES}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_back_end_that_takes_no_connections_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let disk = VhostUserBlk { socket: dir.path().join("s"), bounce: 8 << 20, queues: 1, timeout: 60 };
        assert_eq!(disk.connect().unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = std::os::unix::net::UnixListener::bind(&disk.socket).unwrap();
        // The library lets more wait than a user may have descriptors.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
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
        let disk = VhostUserBlk { socket: "/run/disk".into(), bounce: 8 << 20, queues: 1, timeout: 60 };
        assert_eq!(VhostUserBlk::parse("socket=/run/disk"), Ok(disk.clone()));
        assert_eq!(VhostUserBlk::parse("bounce=1M,socket=/run/disk"), Ok(VhostUserBlk { bounce: 1 << 20, ..disk }));
        let more = VhostUserBlk::parse("socket=/run/disk,queues=4,timeout=7").unwrap();
        assert_eq!((more.queues, more.timeout), (4, 7));
        for wrong in [
            "socket=/x,queues=0",
            "socket=/x,queues=17",
            "socket=/x,timeout=0",
            "socket=/x,timeout=4294967296",
            "",
            "socket=",
            "bounce=1M",
            "socket=/x,bounce=4K",
            "socket=/x,bounce=2G",
            "socket=/x,ro",
        ] {
            assert!(VhostUserBlk::parse(wrong).is_err(), "{wrong}");
        }
        assert!(VhostUserBlk::parse("socket=/x,dma=shared").is_err_and(|why| why.contains("by --disk")));
    }
}
