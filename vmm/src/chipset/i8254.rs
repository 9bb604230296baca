//! The i8254 programmable interval timer: three 16-bit counters at 1.193182 MHz, all six modes, latch and read-back
//! commands (Intel 8254 data sheet), and port 61h's view of counter 2.
//!
//! Nothing counts: a counter is its reload value and the tick at which it was loaded, and everything else follows from
//! the time. Only counter 0's rising edges are reported: one at a look at the time, and what else went by is [`Missed`].

use super::missed::Missed;
use super::{MIN_PERIOD_NS, NEVER};

/// Input clock, in Hz.
pub const PIT_HZ: u128 = 1_193_182;
const NS: u128 = 1_000_000_000;

fn tick_at(now: u64) -> u64 {
    (u128::from(now) * PIT_HZ / NS) as u64
}
fn ns_at(tick: u64) -> u64 {
    u64::try_from((u128::from(tick) * NS).div_ceil(PIT_HZ)).unwrap_or(NEVER)
}

#[derive(Clone, Debug)]
struct Counter {
    mode: u8,
    /// 1: low byte, 2: high byte, 3: low then high.
    access: u8,
    bcd: bool,
    gate: bool,
    /// Reload value, 1 to 65536.
    reload: u64,
    /// Takes effect when the current period ends (modes 2 and 3).
    next_reload: Option<u64>,
    /// Tick of the load; None until a count was written or, in modes 1 and 5, a trigger came.
    start: Option<u64>,
    /// Ticks already counted when the gate stopped the counter.
    held: Option<u64>,
    written_low: Option<u8>,
    read_high: bool,
    latched: Option<u16>,
    status: Option<u8>,
}

impl Default for Counter {
    fn default() -> Self {
        Self {
            mode: 0,
            access: 3,
            bcd: false,
            gate: true,
            reload: 0x10000,
            next_reload: None,
            start: None,
            held: None,
            written_low: None,
            read_high: false,
            latched: None,
            status: None,
        }
    }
}

impl Counter {
    fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn elapsed(&self, tick: u64) -> Option<u64> {
        self.held.or_else(|| Some(tick.saturating_sub(self.start?)))
    }

    /// Lets a new reload value take over at the first period end that has passed.
    fn roll(&mut self, tick: u64) {
        if let (Some(next), Some(start), true) = (self.next_reload, self.start, self.periodic())
            && tick.saturating_sub(start) >= self.reload
        {
            self.start = Some(tick - (tick - start - self.reload) % next);
            self.reload = next;
            self.next_reload = None;
        }
    }

    fn output(&self, tick: u64) -> bool {
        let Some(e) = self.elapsed(tick) else { return self.mode != 0 };
        match self.mode {
            0 | 1 => e >= self.reload,
            2 => !self.gate || e % self.reload != self.reload - 1,
            3 => !self.gate || e % self.reload < self.reload.div_ceil(2),
            _ => e != self.reload,
        }
    }

    /// The first tick after `after` at which the output rises by counting.
    fn next_rise(&self, after: u64) -> Option<u64> {
        let start = self.start?;
        if self.held.is_some() {
            return None;
        }
        let at = match self.mode {
            0 | 1 => start + self.reload,
            2 | 3 => start + (after.saturating_sub(start) / self.reload + 1) * self.reload,
            _ => start + self.reload + 1,
        };
        (at > after).then_some(at)
    }

    /// How many times the output rose after `from`, up to `tick`. Too short a period is one, since it is not served as
    /// such either.
    fn rises(&self, from: u64, tick: u64) -> u64 {
        let Some(first) = self.next_rise(from).filter(|at| *at <= tick) else { return 0 };
        let period = self.next_reload.unwrap_or(self.reload);
        if self.periodic() && ns_at(period) >= MIN_PERIOD_NS { 1 + (tick - first) / period } else { 1 }
    }

    fn value(&self, tick: u64) -> u16 {
        let e = self.elapsed(tick).unwrap_or(0);
        let raw = match self.mode {
            2 => self.reload - e % self.reload,
            3 => self.reload - (e * 2) % self.reload,
            _ => self.reload.wrapping_sub(e),
        };
        if self.bcd {
            let v = raw % 10_000;
            return [1000, 100, 10, 1].iter().fold(0, |bcd, unit| (bcd << 4) | (v / unit % 10) as u16);
        }
        raw as u16
    }

    fn status(&self, tick: u64) -> u8 {
        let null = self.next_reload.is_some() || self.start.is_none();
        (self.output(tick) as u8) << 7 | (null as u8) << 6 | self.access << 4 | self.mode << 1 | self.bcd as u8
    }

    fn set_control(&mut self, value: u8) {
        let mode = value >> 1 & 7;
        let (gate, reload) = (self.gate, self.reload);
        *self = Self {
            mode: if mode > 5 { mode - 4 } else { mode },
            access: value >> 4 & 3,
            bcd: value & 1 != 0,
            gate,
            reload,
            ..Self::default()
        };
    }

    fn write(&mut self, value: u8, tick: u64) {
        match (self.access, self.written_low.take()) {
            (1, _) => self.load(u16::from(value), tick),
            (2, _) => self.load(u16::from(value) << 8, tick),
            (_, Some(low)) => self.load(u16::from_le_bytes([low, value]), tick),
            (_, None) => {
                self.written_low = Some(value);
                if self.mode == 0 {
                    // The first byte stops the count and drops OUT (8254 data sheet, mode 0).
                    self.start = None;
                    self.held = None;
                }
            }
        }
    }

    fn load(&mut self, raw: u16, tick: u64) {
        let value = if self.bcd {
            let digit = |shift: u32| u64::from(raw >> shift & 15);
            digit(0) + digit(4) * 10 + digit(8) * 100 + digit(12) * 1000
        } else {
            u64::from(raw)
        };
        let full = if self.bcd { 10_000 } else { 0x10000 };
        let value = if value == 0 { full } else { value };
        match self.mode {
            2 | 3 if self.start.is_some() => self.next_reload = Some(value),
            1 | 5 => self.reload = value,
            _ => {
                self.reload = value;
                self.start = Some(tick);
                self.held = (!self.gate).then_some(0);
            }
        }
    }

    fn set_gate(&mut self, gate: bool, tick: u64) {
        if gate == self.gate {
            return;
        }
        let elapsed = self.elapsed(tick);
        self.gate = gate;
        match (self.mode, gate) {
            (0 | 4, false) => self.held = elapsed,
            (0 | 4, true) => {
                if let Some(held) = self.held.take() {
                    self.start = Some(tick.saturating_sub(held));
                }
            }
            (1 | 5, true) => self.start = Some(tick),
            (2 | 3, false) if self.start.is_some() => self.held = Some(0),
            (2 | 3, true) if self.start.is_some() => {
                self.reload = self.next_reload.take().unwrap_or(self.reload);
                self.start = Some(tick);
                self.held = None;
            }
            _ => {}
        }
    }

    fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.value(tick)).to_le_bytes();
        let (byte, last) = match self.access {
            1 => (low, true),
            2 => (high, true),
            _ => {
                self.read_high = !self.read_high;
                if self.read_high { (low, false) } else { (high, true) }
            }
        };
        if last {
            self.latched = None;
        }
        byte
    }
}

/// The timer chip.
#[derive(Clone, Debug)]
pub struct I8254 {
    counters: [Counter; 3],
    /// Counter 0 was looked at up to this tick.
    seen: u64,
    /// Counter 0's output as last seen.
    level: bool,
    /// When the last edge was reported, in nanoseconds.
    reported: u64,
    due: u64,
    /// Counter 0's ticks that were not reported.
    pub missed: Missed,
    /// Port 61h: speaker data and the two parity-check disables, bits 1 to 3.
    port_b: u8,
}

impl Default for I8254 {
    fn default() -> Self {
        let mut chip = Self {
            counters: Default::default(),
            seen: 0,
            level: false,
            reported: 0,
            due: NEVER,
            missed: Missed::default(),
            port_b: 0,
        };
        chip.counters[2].gate = false;
        chip
    }
}

impl I8254 {
    /// Brings counter 0 up to `now`: true if its output rose since the last call.
    pub fn advance(&mut self, now: u64) -> bool {
        if now < self.due {
            return false;
        }
        self.look(now)
    }

    /// When counter 0's output rises next, in nanoseconds.
    pub fn deadline(&self) -> u64 {
        self.due
    }

    fn look(&mut self, now: u64) -> bool {
        let tick = tick_at(now).max(self.seen);
        let c = &mut self.counters[0];
        let rises = c.rises(self.seen, tick);
        c.roll(tick);
        let level = c.output(tick);
        let edge = rises != 0 || (level && !self.level);
        self.missed.add(rises.saturating_sub(1));
        self.seen = tick;
        self.level = level;
        if edge {
            self.reported = now;
        }
        self.due = c.next_rise(tick).map_or(NEVER, ns_at);
        if c.periodic() && self.due != NEVER {
            self.due = self.due.max(self.reported.saturating_add(MIN_PERIOD_NS));
        }
        edge
    }

    /// Reads counter `index`, 0 to 2; the control port (3) reads as all ones.
    pub fn read(&mut self, index: usize, now: u64) -> u8 {
        let tick = tick_at(now);
        match self.counters.get_mut(index) {
            Some(c) => {
                c.roll(tick);
                c.read(tick)
            }
            None => 0xff,
        }
    }

    /// Writes counter `index` (0 to 2) or the control word (3). True if counter 0's output rose.
    pub fn write(&mut self, index: usize, value: u8, now: u64) -> bool {
        let tick = tick_at(now);
        let rose = self.look(now);
        match (self.counters.get_mut(index), value >> 6) {
            (Some(c), _) => {
                c.roll(tick);
                c.write(value, tick);
                self.programmed(index);
            }
            (None, 3) => self.read_back(value, tick),
            (None, which) => {
                let c = &mut self.counters[usize::from(which)];
                if value & 0x30 == 0 {
                    c.roll(tick);
                    c.latched = c.latched.or(Some(c.value(tick)));
                } else {
                    c.set_control(value);
                    self.programmed(usize::from(which));
                }
            }
        }
        self.look(now) | rose
    }

    /// Counter `index` was written to: what came before concerns nobody.
    fn programmed(&mut self, index: usize) {
        if index == 0 {
            self.missed.forget();
        }
    }

    fn read_back(&mut self, value: u8, tick: u64) {
        for (i, c) in self.counters.iter_mut().enumerate() {
            if value & (2 << i) == 0 {
                continue;
            }
            c.roll(tick);
            if value & 0x20 == 0 {
                c.latched = c.latched.or(Some(c.value(tick)));
            }
            if value & 0x10 == 0 {
                c.status = c.status.or(Some(c.status(tick)));
            }
        }
    }

    /// Port 61h: gate 2 and speaker enable as written, bit 4 toggling with DRAM refresh (15 µs), bit 5 counter 2's output.
    pub fn read_port_b(&self, now: u64) -> u8 {
        let c = &self.counters[2];
        let refresh = ((now / 15_085) & 1) as u8;
        self.port_b | c.gate as u8 | refresh << 4 | (c.output(tick_at(now)) as u8) << 5
    }

    /// Writes port 61h: bit 0 is counter 2's gate.
    pub fn write_port_b(&mut self, value: u8, now: u64) {
        self.port_b = value & 0x0e;
        self.counters[2].set_gate(value & 1 != 0, tick_at(now));
    }
}

#[cfg(test)]
mod tests;
