//! Makes the sockets that a card's process cannot make. Nothing here waits.

use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};

use ipc::flow::Protocol;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt};

/// A socket that is connected, or of TCP about to be: it is writable when that is done or has failed. It does not block.
pub fn dial(protocol: Protocol, to: SocketAddrV4) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let socket = socket(AddressFamily::Inet, kind, flags, None)?;
    if protocol == Protocol::Tcp {
        // The guest has decided what to send together.
        setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    }
    match connect(socket.as_raw_fd(), &SockaddrIn::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}
