//! Signals that mean "stop", taken as bytes from a descriptor rather than by a handler.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// SIGTERM, SIGINT, SIGHUP and SIGQUIT, blocked and readable here. SIGTTOU is blocked too: restoring the terminal from
/// the background must not stop us. Children get an empty mask from the standard library.
#[derive(Debug)]
pub struct StopSignals(SignalFd);

impl StopSignals {
    /// Blocks the signals for this thread, which must be the only one.
    pub fn new() -> nix::Result<Self> {
        let mut wanted = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
            wanted.add(signal);
        }
        let mut blocked = wanted;
        blocked.add(Signal::SIGTTOU);
        blocked.thread_block()?;
        SignalFd::with_flags(&wanted, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map(Self)
    }

    /// The number of the next signal, if one is pending.
    pub fn take(&mut self) -> Option<i32> {
        self.0.read_signal().ok().flatten().map(|info| info.ssi_signo as i32)
    }
}

impl AsFd for StopSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
