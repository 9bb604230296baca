//! Descriptors that this process was given across exec, taken over by number, each once.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Why an inherited descriptor could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("descriptor {fd}, which the command line names, was not inherited")]
pub struct NotInherited {
    fd: RawFd,
    source: nix::Error,
}

/// Takes ownership of inherited descriptors. There is one of these in a process, made in `main` before any other
/// descriptor is opened.
#[derive(Debug)]
pub struct Inherited {
    taken: Vec<RawFd>,
}

impl Inherited {
    /// # Safety
    ///
    /// Only descriptors that this process inherited and that nothing in it owns may be taken from the value: make one,
    /// at the start of `main`.
    pub unsafe fn new() -> Self {
        Self { taken: vec![0, 1, 2] }
    }

    /// Takes `fd`, marking it close-on-exec. An error if it is not open, or standard, or was taken before.
    pub fn take(&mut self, fd: RawFd) -> Result<OwnedFd, NotInherited> {
        let error = |source| NotInherited { fd, source };
        if fd < 0 || self.taken.contains(&fd) {
            return Err(error(nix::Error::EBADF));
        }
        // SAFETY: the borrow ends with this statement; fcntl itself finds out whether the number is open.
        fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(error)?;
        self.taken.push(fd);
        // SAFETY: the descriptor is open, was inherited (see `new`) and is taken once.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
