//! The descriptors that a device process gets from us, made so that holding one end gives no hold over our threads.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use vmm_sys_util::eventfd::EventFd;

/// Our end of a queue's kick. Its other end reads like an eventfd: eight bytes for each kick.
///
/// Not an eventfd, since whoever holds an eventfd can clear its O_NONBLOCK and fill it, and our next write blocks the
/// processor. A datagram socket's send is told by its caller not to wait, and takes no lock that a reader holds.
#[derive(Debug)]
pub struct Kick(OwnedFd);

impl Kick {
    /// Our end, and the end for the device.
    pub fn pair() -> nix::Result<(Self, OwnedFd)> {
        // The device's end is to read like an eventfd that does not block; ours never waits anyway.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Datagram, None, flags)?;
        Ok((Self(ours), theirs))
    }

    /// Kicks. A full queue of kicks is a kick; a peer that is gone is noticed by its socket.
    pub fn kick(&self) {
        let _ = send(self.0.as_raw_fd(), &1u64.to_ne_bytes(), MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }
}

/// Dresses a descriptor as what the vhost crate sends to devices. Nothing is read from or written to it here.
pub fn as_eventfd(fd: OwnedFd) -> EventFd {
    // SAFETY: the descriptor is open and owned, and its ownership moves.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

/// A descriptor's number, for the vhost crate to send while its owner keeps it open.
pub struct Raw(pub RawFd);

impl AsRawFd for Raw {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// Borrows the descriptor of a value of the vhost crate, whose types know only raw numbers.
pub fn borrow(of: &impl AsRawFd) -> BorrowedFd<'_> {
    let raw: RawFd = of.as_raw_fd();
    // SAFETY: the value owns the open descriptor and outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(raw) }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    #[test]
    fn kicking_never_blocks_whatever_the_other_end_does() {
        let (kick, theirs) = Kick::pair().unwrap();
        // What a hostile holder of an eventfd would do.
        fcntl(&theirs, FcntlArg::F_SETFL(OFlag::O_RDWR)).unwrap();
        for _ in 0..10_000 {
            kick.kick();
        }
        let mut eight = [0; 8];
        assert_eq!(std::fs::File::from(theirs).read(&mut eight).unwrap(), 8);
        assert_eq!(u64::from_ne_bytes(eight), 1);
        kick.kick();
    }
}
