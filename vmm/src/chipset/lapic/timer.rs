//! The local APIC's timer (SDM vol. 3, §11.5.4). Its bus clock is 1 GHz: one tick is one nanosecond times the divisor.

use crate::chipset::{MIN_PERIOD_NS, NEVER};

/// Timer mode, bits 18:17 of its LVT entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    OneShot,
    Periodic,
    TscDeadline,
}

impl Mode {
    pub fn from_lvt(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            1 => Self::Periodic,
            2 | 3 => Self::TscDeadline,
            _ => Self::OneShot,
        }
    }
}

/// The counter: when it reaches zero, rather than a value that counts.
#[derive(Clone, Debug)]
pub struct Timer {
    mode: Mode,
    initial: u32,
    divide: u32,
    /// When the count reaches zero next; None while stopped.
    expiry: Option<u64>,
    /// IA32_TSC_DEADLINE, in host TSC units.
    deadline: u64,
    /// When it expired last.
    last: u64,
}

impl Default for Timer {
    fn default() -> Self {
        Self { mode: Mode::OneShot, initial: 0, divide: 0, expiry: None, deadline: 0, last: 0 }
    }
}

impl Timer {
    /// Nanoseconds a tick: 2, 4, 8 … 128, 1 (divide configuration register, figure 11-10).
    fn scale(&self) -> u64 {
        let bits = self.divide & 3 | (self.divide >> 1 & 4);
        1 << ((bits + 1) & 7)
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) * self.scale()
    }

    /// When it expires next, in nanoseconds.
    pub fn due(&self) -> u64 {
        match (self.expiry, self.mode) {
            (Some(at), Mode::Periodic) => at.max(self.last.saturating_add(MIN_PERIOD_NS)),
            (Some(at), _) => at,
            (None, _) => NEVER,
        }
    }

    /// The armed TSC deadline.
    pub fn tsc_deadline(&self) -> Option<u64> {
        (self.mode == Mode::TscDeadline && self.expiry.is_some()).then_some(self.deadline)
    }

    /// Handles expiries up to `now`, however many, as one. True if there was any.
    pub fn expire(&mut self, now: u64) -> bool {
        let Some(at) = self.expiry.filter(|at| *at <= now) else { return false };
        self.last = now;
        self.deadline = 0;
        self.expiry = match self.mode {
            Mode::Periodic if self.period() != 0 => {
                let period = self.period();
                Some(at.saturating_add(((now - at) / period + 1).saturating_mul(period)))
            }
            _ => None,
        };
        true
    }

    /// A write of the LVT entry. Entering or leaving TSC-deadline mode disarms the timer.
    pub fn set_mode(&mut self, mode: Mode) {
        if (mode == Mode::TscDeadline) != (self.mode == Mode::TscDeadline) {
            self.expiry = None;
            self.initial = 0;
            self.deadline = 0;
        }
        self.mode = mode;
    }

    /// A write of the initial count register: restarts; zero stops. Ignored in TSC-deadline mode.
    pub fn set_initial(&mut self, count: u32, now: u64) {
        if self.mode == Mode::TscDeadline {
            return;
        }
        self.initial = count;
        self.last = 0;
        self.expiry = (count != 0).then(|| now.saturating_add(self.period()));
    }

    /// Initial count register.
    pub fn initial(&self) -> u32 {
        self.initial
    }

    /// Current count register.
    pub fn current(&self, now: u64) -> u32 {
        match self.expiry {
            Some(at) if self.mode != Mode::TscDeadline => {
                let left = at.saturating_sub(now);
                let left = if left == 0 && self.mode == Mode::Periodic && self.period() != 0 {
                    self.period() - (now - at) % self.period()
                } else {
                    left
                };
                left.div_ceil(self.scale()).min(u64::from(self.initial)) as u32
            }
            _ => 0,
        }
    }

    /// Divide configuration register.
    pub fn divide(&self) -> u32 {
        self.divide
    }

    /// A write of the divide configuration register: the current count goes on at the new rate.
    pub fn set_divide(&mut self, value: u32, now: u64) {
        let current = self.current(now);
        self.divide = value & 0xb;
        if self.mode != Mode::TscDeadline && self.expiry.is_some() {
            self.expiry = Some(now.saturating_add(u64::from(current) * self.scale()));
        }
    }

    /// A write of IA32_TSC_DEADLINE; ignored in other modes, zero disarms.
    pub fn set_deadline(&mut self, tsc: u64, due: u64) {
        if self.mode == Mode::TscDeadline {
            self.deadline = tsc;
            self.expiry = (tsc != 0).then_some(due);
        }
    }
}
