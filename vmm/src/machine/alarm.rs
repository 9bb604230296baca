//! The timer that interrupts the processor's thread for the board's deadlines.
//!
//! A POSIX timer whose signal goes to that thread alone, with no other thread in between: however busy the host is, the
//! processor executes no guest instruction after a deadline without having looked at the time, since a thread gets its
//! pending signals before it goes on. Whoever programs a chip, on whatever thread, moves it to earlier times; the
//! processor's thread sets it anew when it has gone off.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

use crate::cpu::Lines;

const NEVER: u64 = u64::MAX;
const NS_PER_S: u64 = 1_000_000_000;

/// The alarm. Times are CLOCK_MONOTONIC in nanoseconds, as the board's clock has them.
#[derive(Debug)]
pub struct Alarm {
    timer: libc::timer_t,
    /// When it is set to go off.
    at: Mutex<u64>,
}

// SAFETY: a timer id is a name that belongs to the process, not a pointer that anyone follows; every thread may use it.
unsafe impl Send for Alarm {}
// SAFETY: as above; the kernel serialises calls on one timer.
unsafe impl Sync for Alarm {}

impl Alarm {
    /// An alarm that is off, for the calling thread.
    pub fn new() -> nix::Result<Self> {
        let mut timer = MaybeUninit::uninit();
        // SAFETY: sigevent is plain data for which zero is valid; the kernel reads it and, on success, writes the id.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = Lines::kick_signal();
            event.sigev_notify_thread_id = libc::gettid();
            Errno::result(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, timer.as_mut_ptr()))?;
            Ok(Self { timer: timer.assume_init(), at: Mutex::new(NEVER) })
        }
    }

    /// Makes it go off no later than `deadline`.
    pub fn no_later_than(&self, deadline: u64) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        if deadline < *at {
            *at = deadline;
            // Zero would mean off; the past goes off at once.
            self.set(deadline.max(1));
        }
    }

    /// Forgets that it was set, if that time is over by `now`: the caller serves what is due and asks for the next
    /// deadline.
    pub fn passed(&self, now: u64) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        if *at <= now {
            *at = NEVER;
        }
    }

    /// Turns it off.
    pub fn off(&self) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        *at = NEVER;
        self.set(0);
    }

    fn set(&self, ns: u64) {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let when = libc::timespec { tv_sec: (ns / NS_PER_S) as i64, tv_nsec: (ns % NS_PER_S) as i64 };
        let setting = libc::itimerspec { it_interval: none, it_value: when };
        // SAFETY: the timer exists until drop, and the setting is whole. The call fails only for bad arguments.
        unsafe { libc::timer_settime(self.timer, libc::TIMER_ABSTIME, &setting, std::ptr::null_mut()) };
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer exists, and nobody else has its id.
        unsafe { libc::timer_delete(self.timer) };
    }
}
