//! The signal that brings a processor's thread back, and the sleep of a halted processor.
//!
//! Two send it: other threads, which have raised a line before ([`Lines::kick`]), and the alarm, which nobody stands
//! behind: its handler raises the machine's own request, so that the board is brought up to the present.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::sync::Arc;

use nix::poll::ppoll;
use nix::sys::signal::{SigSet, SigmaskHow};

use crate::cpu::Lines;

thread_local! {
    /// The wires of the processor that this thread runs.
    static LINES: Cell<Option<&'static Arc<Lines>>> = const { Cell::new(None) };
}

extern "C" fn on_kick(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a whole siginfo.
    if unsafe { (*info).si_code } == libc::SI_TIMER
        && let Some(lines) = LINES.get()
    {
        lines.request();
    }
}

/// Handles the kick signal from here on. Engines that do more chain to this handler.
pub fn install() -> nix::Result<()> {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_kick;
    // SAFETY: sigaction is plain data for which zero is valid: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_ONSTACK | libc::SA_SIGINFO;
    // SAFETY: the structure is whole, and the handler touches nothing but plain data of its thread and atomics.
    let result = unsafe { libc::sigaction(Lines::kick_signal(), &action, std::ptr::null_mut()) };
    nix::errno::Errno::result(result).map(drop)
}

/// Says that the calling thread runs the processor behind `lines`. They are never freed: a signal that was sent may
/// arrive late, and a processor lives as long as its process.
pub fn adopt(lines: &Arc<Lines>) {
    LINES.set(Some(Box::leak(Box::new(lines.clone()))));
}

/// Ends [`adopt`].
pub fn release() {
    LINES.set(None);
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

/// Sleeps until the kick signal arrives, unless `ready` says already that there is something to do. A kick between that
/// question and the sleep is not lost: the signal is blocked until the thread sleeps.
pub fn sleep_until_kicked(ready: impl FnOnce() -> bool) {
    mask(SigmaskHow::SIG_BLOCK);
    if !ready() {
        // An error is EINTR: the kick.
        let _ = ppoll(&mut [], None, Some(SigSet::empty()));
    }
    mask(SigmaskHow::SIG_UNBLOCK);
}
