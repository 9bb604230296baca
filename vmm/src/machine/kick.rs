//! The signal that brings a processor's thread back, and the sleep of a halted processor.
#![allow(unsafe_code)]

use std::time::Duration;

use nix::poll::ppoll;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::time::TimeSpec;

use crate::cpu::Lines;

extern "C" fn nothing(_: libc::c_int) {}

/// Gives the kick signal a handler that does nothing, so that it interrupts system calls. Engines that need more
/// install their own after.
pub fn install() -> nix::Result<()> {
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: sigaction is plain data for which zero is valid: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_ONSTACK;
    // SAFETY: the structure is whole, and the handler touches nothing.
    let result = unsafe { libc::sigaction(Lines::kick_signal(), &action, std::ptr::null_mut()) };
    nix::errno::Errno::result(result).map(drop)
}

/// A signal mask with the kick signal alone.
fn kick_set() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set; the signal number is valid.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), Lines::kick_signal());
        set.assume_init()
    }
}

fn mask(how: SigmaskHow) {
    // SAFETY: the set is initialised; changing the mask of one real-time signal harms no invariant.
    unsafe { libc::pthread_sigmask(how as libc::c_int, &kick_set(), std::ptr::null_mut()) };
}

/// Sleeps until the kick signal arrives or `timeout` has passed, unless `ready` says already that there is something to
/// do. A kick between that question and the sleep is not lost: the signal is blocked until the thread sleeps.
pub fn sleep_until_kicked(timeout: Option<Duration>, ready: impl FnOnce() -> bool) {
    mask(SigmaskHow::SIG_BLOCK);
    if !ready() {
        // An error is EINTR: the kick.
        let _ = ppoll(&mut [], timeout.map(TimeSpec::from), Some(SigSet::empty()));
    }
    mask(SigmaskHow::SIG_UNBLOCK);
}
