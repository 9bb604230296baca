//! The one descriptor, beside the standard ones, that this process is started with.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{SockType, getsockopt, sockopt};

/// The number of the control channel's socket.
const CONTROL: RawFd = 3;

/// Takes the control channel's socket, or None if there is none: then nobody started this process as it is meant to be.
///
/// # Safety
///
/// Called once, at the start of `main`, before anything is opened.
pub unsafe fn control() -> Option<OwnedFd> {
    // SAFETY: the borrow ends with this statement; the kernel finds out whether the number is open, and a socket.
    let kind = getsockopt(&unsafe { BorrowedFd::borrow_raw(CONTROL) }, sockopt::SockType).ok()?;
    // SAFETY: open, inherited, and taken once by the caller's promise.
    (kind == SockType::SeqPacket).then(|| unsafe { OwnedFd::from_raw_fd(CONTROL) })
}
