//! The timer that wakes the I/O thread for the board's deadlines while the processor runs.
//!
//! A timerfd, moved to earlier times by whoever programs a chip and rearmed by the I/O thread when it fires. A sleeping
//! processor waits for its deadline itself, so it turns the alarm off first: then one thread wakes, not two.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

const NEVER: u64 = u64::MAX;

/// The alarm. Times are CLOCK_MONOTONIC in nanoseconds, as the board's clock has them.
#[derive(Debug)]
pub struct Alarm {
    timer: TimerFd,
    /// When it is set to go off.
    at: Mutex<u64>,
}

impl Alarm {
    /// An alarm that is off.
    pub fn new() -> nix::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        Ok(Self { timer, at: Mutex::new(NEVER) })
    }

    /// Makes it go off no later than `deadline`.
    pub fn no_later_than(&self, deadline: u64) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        if deadline < *at {
            *at = deadline;
            // Zero would mean off; the past goes off at once. The call fails only for bad arguments.
            let when = TimeSpec::from(Duration::from_nanos(deadline.max(1)));
            let _ = self.timer.set(Expiration::OneShot(when), TimerSetTimeFlags::TFD_TIMER_ABSTIME);
        }
    }

    /// Turns it off.
    pub fn off(&self) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        if *at != NEVER {
            *at = NEVER;
            let _ = self.timer.unset();
        }
    }

    /// It went off: makes it silent again. The caller serves what is due and asks for the next deadline.
    pub fn acknowledge(&self) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        *at = NEVER;
        // Setting it anew clears the expiry count, so nothing needs to be read.
        let _ = self.timer.unset();
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}
