//! The MC146818 real-time clock with its CMOS RAM (Motorola data sheet; the PIIX's 128 bytes).
//!
//! The time of day is the host's UTC plus what the guest has set it off by; nothing ticks. Update, alarm and periodic
//! flags are worked out from the time that passed since they were last looked at. An interrupt whose flag is already set
//! needs no timer: the line stays up until register C is read. Periodic interrupts of periods that passed unseen follow
//! then, one at each read.

use super::NEVER;
use super::missed::Missed;

mod calendar;
use calendar::Fields;

/// Indices of the CMOS.
pub mod index {
    #![allow(missing_docs)]
    pub const A: u8 = 0x0a;
    pub const B: u8 = 0x0b;
    pub const C: u8 = 0x0c;
    pub const D: u8 = 0x0d;
    pub const BASE_MEMORY: u8 = 0x15;
    pub const EXTENDED_MEMORY: u8 = 0x17;
    pub const EXTENDED_MEMORY_2: u8 = 0x30;
    pub const CENTURY: u8 = 0x32;
    pub const MEMORY_ABOVE_16M: u8 = 0x34;
    pub const MEMORY_ABOVE_4G: u8 = 0x5b;
    pub const CPU_COUNT: u8 = 0x5f;
}

const SECOND: u64 = 1_000_000_000;
/// Update-in-progress rises this long before the second.
const UIP_NS: u64 = 244_000;

const B_SET: u8 = 0x80;
const B_UIE: u8 = 0x10;
const FLAG_PF: u8 = 0x40;
const FLAG_AF: u8 = 0x20;
const FLAG_UF: u8 = 0x10;

/// The chip.
#[derive(Clone, Debug)]
pub struct Mc146818 {
    index: u8,
    ram: [u8; 128],
    /// UTC minus `now`, in nanoseconds.
    offset: u64,
    flags: u8,
    /// Periodic interrupts that were not raised.
    pub missed: Missed,
    /// Flags are worked out up to this time.
    seen: u64,
    due: u64,
}

impl Mc146818 {
    /// A clock that shows `utc` (nanoseconds since 1970) at time `now`.
    pub fn new(utc: u64, now: u64) -> Self {
        let mut ram = [0; 128];
        ram[usize::from(index::A)] = 0x26;
        ram[usize::from(index::B)] = 0x02;
        ram[usize::from(index::D)] = 0x80;
        // Equipment: FPU, no floppy.
        ram[0x14] = 0x02;
        Self {
            index: 0,
            ram,
            offset: utc.wrapping_sub(now),
            flags: 0,
            missed: Missed::default(),
            seen: now,
            due: NEVER,
        }
    }

    /// What firmware would record: memory sizes in bytes and the number of processors.
    pub fn set_memory(&mut self, low: u64, high: u64, cpus: usize) {
        let mut put = |at: u8, bytes: &[u8]| {
            self.ram[usize::from(at)..usize::from(at) + bytes.len()].copy_from_slice(bytes);
        };
        let word = |v: u64| (v.min(0xffff) as u16).to_le_bytes();
        let extended = word(low.saturating_sub(1 << 20) >> 10);
        put(index::BASE_MEMORY, &640u16.to_le_bytes());
        put(index::EXTENDED_MEMORY, &extended);
        put(index::EXTENDED_MEMORY_2, &extended);
        put(index::MEMORY_ABOVE_16M, &word(low.saturating_sub(16 << 20) >> 16));
        put(index::MEMORY_ABOVE_4G, &(high >> 16).to_le_bytes()[..3]);
        put(index::CPU_COUNT, &[cpus.saturating_sub(1).min(255) as u8]);
        let sum = self.ram[0x10..0x2e].iter().fold(0u16, |sum, b| sum.wrapping_add(u16::from(*b)));
        self.ram[0x2e..0x30].copy_from_slice(&sum.to_be_bytes());
    }

    /// A board reset: interrupt enables are cleared, time and RAM are kept by the battery.
    pub fn reset(&mut self, now: u64) {
        self.advance(now);
        self.ram[usize::from(index::B)] &= !0x78;
        self.flags = 0;
        self.missed.forget();
        self.rearm();
    }

    fn b(&self) -> u8 {
        self.ram[usize::from(index::B)]
    }
    fn utc(&self, now: u64) -> u64 {
        now.wrapping_add(self.offset)
    }

    /// Period of the periodic interrupt: rates 1 and 2 equal 8 and 9 (data sheet, table 5).
    fn period(&self) -> Option<u64> {
        let rate = self.ram[usize::from(index::A)] & 15;
        let shift = match rate {
            0 => return None,
            1 | 2 => rate + 6,
            _ => rate - 1,
        };
        Some((1u64 << shift) * SECOND / 32_768)
    }

    /// Level of the interrupt line.
    pub fn irq(&self) -> bool {
        self.flags & self.b() & 0x70 != 0
    }

    /// When the line may rise next.
    pub fn deadline(&self) -> u64 {
        self.due
    }

    /// Sets the flags of what happened up to `now`.
    pub fn advance(&mut self, now: u64) {
        if now < self.due {
            return;
        }
        self.catch_up(now);
        self.rearm();
    }

    fn catch_up(&mut self, now: u64) {
        let (from, to) = (self.utc(self.seen), self.utc(now));
        if to <= from {
            return;
        }
        if let Some(period) = self.period()
            && from / period != to / period
        {
            // With the flag up, nobody looks at each period: what the guest misses by not reading C is its own doing.
            if self.flags & FLAG_PF == 0 && self.b() & FLAG_PF != 0 {
                self.missed.add(to / period - from / period - 1);
            }
            self.flags |= FLAG_PF;
        }
        if self.b() & B_SET == 0 && from / SECOND != to / SECOND {
            self.flags |= FLAG_UF;
            if self.next_alarm(from / SECOND).is_some_and(|at| at <= to / SECOND) {
                self.flags |= FLAG_AF;
            }
        }
        self.seen = now;
    }

    /// Raises the periodic interrupt again for a period that passed unseen. True if there was one, and C has been read.
    pub fn make_good(&mut self) -> bool {
        let again = self.flags & FLAG_PF == 0 && self.missed.take();
        if again {
            self.flags |= FLAG_PF;
            self.rearm();
        }
        again
    }

    fn rearm(&mut self) {
        let enabled = self.b();
        if self.irq() || enabled & 0x70 == 0 {
            self.due = NEVER;
            return;
        }
        let utc = self.utc(self.seen);
        let mut next = NEVER;
        if let Some(period) = self.period()
            && enabled & FLAG_PF != 0
        {
            next = (utc / period + 1).saturating_mul(period);
        }
        if enabled & B_SET == 0 {
            if enabled & FLAG_UF != 0 {
                next = next.min((utc / SECOND + 1).saturating_mul(SECOND));
            }
            if enabled & FLAG_AF != 0
                && let Some(at) = self.next_alarm(utc / SECOND)
            {
                next = next.min(at.saturating_mul(SECOND));
            }
        }
        self.due = if next == NEVER { NEVER } else { self.seen.saturating_add(next.wrapping_sub(utc)) };
    }

    /// The first second after `after` (since 1970) that matches the alarm registers.
    fn next_alarm(&self, after: u64) -> Option<u64> {
        calendar::next_alarm(after, [self.ram[5], self.ram[3], self.ram[1]], self.b())
    }

    /// Writes the index port; bit 7 (NMI mask) is not kept.
    pub fn select(&mut self, value: u8) {
        self.index = value & 0x7f;
    }

    /// Reads the data port.
    pub fn read(&mut self, now: u64) -> u8 {
        let at = usize::from(self.index);
        match self.index {
            0 | 2 | 4 | 6..=9 | index::CENTURY if self.b() & B_SET == 0 => {
                Fields::from_utc(self.utc(now) / SECOND).register(self.index, self.b())
            }
            index::A => {
                let left = SECOND - self.utc(now) % SECOND;
                let busy = self.b() & B_SET == 0 && left <= UIP_NS;
                self.ram[at] & 0x7f | (busy as u8) << 7
            }
            index::C => {
                self.catch_up(now);
                let value = self.flags | (self.irq() as u8) << 7;
                self.flags = 0;
                self.rearm();
                value
            }
            _ => self.ram[at],
        }
    }

    /// Writes the data port.
    pub fn write(&mut self, value: u8, now: u64) {
        self.catch_up(now);
        let at = usize::from(self.index);
        match self.index {
            0 | 2 | 4 | 6..=9 | index::CENTURY => {
                if self.b() & B_SET == 0 {
                    self.freeze(now);
                    self.ram[at] = value;
                    self.thaw(now);
                } else {
                    self.ram[at] = value;
                }
            }
            index::A => {
                self.ram[at] = value & 0x7f;
                self.missed.forget();
            }
            index::B => self.write_b(value, now),
            index::C | index::D => {}
            _ => self.ram[at] = value,
        }
        self.rearm();
    }

    fn write_b(&mut self, value: u8, now: u64) {
        let old = self.b();
        if value & FLAG_PF == 0 {
            self.missed.forget();
        }
        if value & !old & B_SET != 0 {
            self.freeze(now);
        }
        // SET clears the update interrupt enable (data sheet, register B).
        self.ram[usize::from(index::B)] = if value & B_SET != 0 { value & !B_UIE } else { value };
        if old & !value & B_SET != 0 {
            self.thaw(now);
        }
    }

    /// Copies the running time into the registers.
    fn freeze(&mut self, now: u64) {
        let fields = Fields::from_utc(self.utc(now) / SECOND);
        for i in [0, 2, 4, 6, 7, 8, 9, index::CENTURY] {
            self.ram[usize::from(i)] = fields.register(i, self.b());
        }
    }

    /// Lets the time run on from the registers.
    fn thaw(&mut self, now: u64) {
        let fraction = self.utc(now) % SECOND;
        let utc = Fields::from_registers(&self.ram, self.b()).to_utc().saturating_mul(SECOND).wrapping_add(fraction);
        self.offset = utc.wrapping_sub(now);
    }
}

#[cfg(test)]
mod tests;
