//! The high-precision event timer (IA-PC HPET specification 1.0a): a 64-bit counter at 100 MHz and three comparators,
//! with legacy replacement.
//!
//! A comparator is the counter value at which it matches next, so periodic ones keep their phase however late they are
//! served; the edges of periods that passed unseen are [`Missed`]. Interrupts come out as levels (level-triggered, by
//! status bit) and as pulses (edge-triggered).

use super::missed::Missed;
use super::{MIN_PERIOD_NS, NEVER};

/// Nanoseconds a tick.
const TICK_NS: u64 = 10;
const TIMERS: usize = 3;
/// IOAPIC pins that any comparator may be routed to.
const ROUTES: u32 = 0x00f0_0000;

const LEVEL: u32 = 1 << 1;
const ENABLE: u32 = 1 << 2;
const PERIODIC: u32 = 1 << 3;
const VALUE_SET: u32 = 1 << 6;
const BITS_32: u32 = 1 << 8;
const WRITABLE: u32 = LEVEL | ENABLE | PERIODIC | VALUE_SET | BITS_32 | 0x1f << 9;
/// Periodic-capable, 64-bit.
const CAPABILITIES: u32 = 1 << 4 | 1 << 5;

#[derive(Clone, Copy, Debug)]
struct Comparator {
    config: u32,
    /// Value as the guest reads it.
    value: u64,
    period: u64,
    /// The counter value, carried past 32 bits, of the next match.
    target: Option<u64>,
    last: u64,
    /// Edges that were not raised.
    missed: Missed,
}

impl Default for Comparator {
    fn default() -> Self {
        Self { config: 0, value: u64::MAX, period: 0, target: None, last: 0, missed: Missed::default() }
    }
}

impl Comparator {
    fn narrow(&self) -> bool {
        self.config & BITS_32 != 0
    }
    fn periodic(&self) -> bool {
        self.config & PERIODIC != 0 && self.period != 0
    }

    /// Works out when `counter` reaches the value next.
    fn aim(&mut self, counter: u64) {
        let ahead = self.value.wrapping_sub(counter);
        let ahead = if self.narrow() { ahead & 0xffff_ffff } else { ahead };
        self.target = counter.checked_add(ahead);
    }

    /// Handles matches up to `counter` as one. True if there was any.
    fn pass(&mut self, counter: u64) -> bool {
        let Some(target) = self.target.filter(|t| *t <= counter) else { return false };
        self.target = if self.periodic() {
            let steps = (counter - target) / self.period + 1;
            if self.config & (LEVEL | ENABLE) == ENABLE && self.period.saturating_mul(TICK_NS) >= MIN_PERIOD_NS {
                self.missed.add(steps - 1);
            }
            steps.checked_mul(self.period).and_then(|ahead| target.checked_add(ahead))
        } else if self.narrow() {
            target.checked_add(1 << 32)
        } else {
            None
        };
        if self.periodic()
            && let Some(next) = self.target
        {
            self.value = if self.narrow() { next & 0xffff_ffff } else { next };
        }
        true
    }
}

/// What comes out on an interrupt wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// An ISA IRQ, under legacy replacement: comparator 0 is IRQ 0, comparator 1 is IRQ 8.
    Isa(u8),
    /// An IOAPIC pin.
    Pin(u8),
}

/// The chip.
#[derive(Clone, Debug, Default)]
pub struct Hpet {
    enabled: bool,
    legacy: bool,
    status: u32,
    /// Counter value at `since` while enabled, else the counter.
    base: u64,
    since: u64,
    timers: [Comparator; TIMERS],
    /// Comparators with an edge to deliver.
    pulses: u8,
}

impl Hpet {
    fn counter(&self, now: u64) -> u64 {
        if self.enabled { self.base.wrapping_add(now.saturating_sub(self.since) / TICK_NS) } else { self.base }
    }

    /// True while comparators 0 and 1 replace the PIT and the RTC on IRQ 0 and 8.
    pub fn replaces_legacy(&self) -> bool {
        self.enabled && self.legacy
    }

    fn wire(&self, index: usize) -> Wire {
        match (self.legacy, index) {
            (true, 0) => Wire::Isa(0),
            (true, 1) => Wire::Isa(8),
            _ => Wire::Pin((self.timers[index].config >> 9 & 31) as u8),
        }
    }

    /// Level of comparator `index`'s wire, if it is level-triggered and enabled.
    pub fn level(&self, index: usize) -> Option<Wire> {
        let t = self.timers.get(index)?;
        let up = t.config & (LEVEL | ENABLE) == LEVEL | ENABLE && self.status & 1 << index != 0;
        (up && self.enabled).then(|| self.wire(index))
    }

    /// Takes a pulse of comparator `index`.
    pub fn take_pulse(&mut self, index: usize) -> Option<Wire> {
        let bit = 1 << (index & 7);
        let pulse = self.pulses & bit != 0;
        self.pulses &= !bit;
        pulse.then(|| self.wire(index))
    }

    /// The wire of comparator `index`, if it has edges to make good.
    pub fn behind(&self, index: usize) -> Option<Wire> {
        self.timers.get(index).filter(|t| self.enabled && t.missed.any()).map(|_| self.wire(index))
    }

    /// Missed edges of comparator `index`.
    pub fn missed(&mut self, index: usize) -> &mut Missed {
        &mut self.timers[index % TIMERS].missed
    }

    /// Number of comparators.
    pub const COMPARATORS: usize = TIMERS;

    /// When the next enabled interrupt is due, among those whose wire is `open`.
    pub fn deadline(&self, open: impl Fn(Wire) -> bool) -> u64 {
        if !self.enabled {
            return NEVER;
        }
        (0..TIMERS).filter(|i| open(self.wire(*i))).map(|i| self.due(i)).min().unwrap_or(NEVER)
    }

    fn due(&self, index: usize) -> u64 {
        let t = &self.timers[index];
        let waiting = t.config & LEVEL != 0 && self.status & 1 << index != 0;
        match t.target {
            Some(target) if t.config & ENABLE != 0 && !waiting => {
                let at = target.saturating_sub(self.base).saturating_mul(TICK_NS).saturating_add(self.since);
                if t.periodic() { at.max(t.last.saturating_add(MIN_PERIOD_NS)) } else { at }
            }
            _ => NEVER,
        }
    }

    /// Brings the comparators up to `now`.
    pub fn advance(&mut self, now: u64) {
        if now >= self.deadline(|_| true) {
            self.catch_up(now);
        }
    }

    fn catch_up(&mut self, now: u64) {
        if !self.enabled {
            return;
        }
        let counter = self.counter(now);
        for (i, t) in self.timers.iter_mut().enumerate() {
            if !t.pass(counter) {
                continue;
            }
            t.last = now;
            if t.config & LEVEL != 0 {
                self.status |= 1 << i;
            } else if t.config & ENABLE != 0 {
                self.pulses |= 1 << i;
            }
        }
    }

    /// Reads the 32-bit register at `offset`.
    pub fn read(&mut self, offset: u64, now: u64) -> u32 {
        self.catch_up(now);
        let half = |v: u64| (v >> (8 * (offset & 4))) as u32;
        match offset & !7 {
            // Period in femtoseconds; vendor, legacy and 64-bit capability, comparators, revision.
            0x00 => half((TICK_NS * 1_000_000) << 32 | 0x8086_a001 | (TIMERS as u64 - 1) << 8),
            0x10 => half((self.legacy as u64) << 1 | self.enabled as u64),
            0x20 => half(u64::from(self.status)),
            0xf0 => half(self.counter(now)),
            0x100..=0x158 => {
                let t = &self.timers[((offset - 0x100) >> 5) as usize];
                match offset & 0x18 {
                    0x00 => half(u64::from(ROUTES) << 32 | u64::from(t.config | CAPABILITIES)),
                    0x08 => half(t.value),
                    _ => 0,
                }
            }
            _ => 0,
        }
    }

    /// Writes the 32-bit register at `offset`.
    pub fn write(&mut self, offset: u64, value: u32, now: u64) {
        self.catch_up(now);
        match offset {
            0x10 => self.write_config(value, now),
            0x20 => self.status &= !value,
            0xf0 | 0xf4 => {
                let counter = self.counter(now);
                self.base = replace_half(counter, offset, value);
                self.since = now;
                self.aim_all();
            }
            0x100..=0x15f => self.write_timer(((offset - 0x100) >> 5) as usize, offset & 0x1f, value, now),
            _ => {}
        }
    }

    fn write_config(&mut self, value: u32, now: u64) {
        self.legacy = value & 2 != 0;
        self.timers.iter_mut().for_each(|t| t.missed.forget());
        let enable = value & 1 != 0;
        if enable != self.enabled {
            self.base = self.counter(now);
            self.since = now;
            self.enabled = enable;
            if enable {
                self.aim_all();
            }
        }
    }

    fn aim_all(&mut self) {
        let counter = self.base;
        self.timers.iter_mut().for_each(|t| t.aim(counter));
    }

    fn write_timer(&mut self, index: usize, register: u64, value: u32, now: u64) {
        let counter = self.counter(now);
        let t = &mut self.timers[index];
        t.missed.forget();
        match register {
            0x00 => {
                t.config = value & WRITABLE;
                if value & LEVEL == 0 {
                    self.status &= !(1 << index);
                }
                if t.narrow() {
                    t.value &= 0xffff_ffff;
                    t.period &= 0xffff_ffff;
                }
            }
            0x08 | 0x0c => {
                if t.narrow() && register == 0x0c {
                    return;
                }
                // In periodic mode the period is written here, and the value too if VALUE_SET asked for it (§2.3.9.2.2).
                if t.config & PERIODIC == 0 || t.config & VALUE_SET != 0 {
                    t.value = replace_half(t.value, register, value);
                }
                if t.config & PERIODIC != 0 {
                    t.period = replace_half(t.period, register, value);
                }
                t.config &= !VALUE_SET;
                t.last = 0;
            }
            _ => return,
        }
        t.aim(counter);
    }
}

fn replace_half(old: u64, offset: u64, value: u32) -> u64 {
    let shift = 8 * (offset & 4);
    old & !(0xffff_ffff << shift) | u64::from(value) << shift
}

#[cfg(test)]
mod tests;
