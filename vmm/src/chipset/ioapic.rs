//! The IOAPIC: 24 pins, each with a redirection entry that says which message its request becomes (82093AA data sheet;
//! version 20h, with the EOI register).
//!
//! Polarity bits are kept but not applied: a pin that the board drives is asserted when it is high, whatever the active
//! level the tables name for it.

use super::msi::{Delivery, Message};

/// Number of pins.
pub const PINS: usize = 24;
const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
/// Delivery status and remote IRR.
const READ_ONLY: u64 = 1 << 12 | REMOTE_IRR;
const WRITABLE: u64 = 0xff00_0000_0001_ffff & !READ_ONLY;

/// The chip.
#[derive(Clone, Debug)]
pub struct IoApic {
    id: u8,
    select: u8,
    entries: [u64; PINS],
    levels: u32,
    /// Edges that arrived and have not been sent.
    edges: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self { id: 0, select: 0, entries: [MASKED; PINS], levels: 0, edges: 0 }
    }
}

impl IoApic {
    /// Drives `pin`. Requests that follow are found by [`Self::next_message`]. An edge on a masked pin is lost, as the
    /// data sheet says.
    pub fn set_pin(&mut self, pin: u8, level: bool) {
        let Some(entry) = self.entries.get(usize::from(pin)) else { return };
        let bit = 1 << pin;
        if level && self.levels & bit == 0 && entry & (LEVEL | MASKED) == 0 {
            self.edges |= bit;
        }
        self.levels = if level { self.levels | bit } else { self.levels & !bit };
    }

    /// True if `pin` is not masked.
    pub fn is_open(&self, pin: u8) -> bool {
        self.entries.get(usize::from(pin)).is_some_and(|e| e & MASKED == 0)
    }

    /// The message of an unmasked `pin`, and whether an earlier request of its is still in this chip.
    pub fn route(&self, pin: u8) -> Option<(Message, bool)> {
        let entry = *self.entries.get(usize::from(pin)).filter(|e| **e & MASKED == 0)?;
        Some((Self::message(entry), self.edges & 1 << pin != 0 || entry & REMOTE_IRR != 0))
    }

    /// The next request to send, with its pin: edges once, levels until a processor took them. After sending, call
    /// [`Self::sent`].
    pub fn next_message(&self, from: u8) -> Option<(u8, Message)> {
        (from..PINS as u8).find_map(|pin| {
            let entry = self.entries[usize::from(pin)];
            let bit = 1u32 << pin;
            let wants = match entry & (MASKED | LEVEL | REMOTE_IRR) {
                0 | REMOTE_IRR => self.edges & bit != 0,
                LEVEL => self.levels & bit != 0,
                _ => false,
            };
            wants.then(|| (pin, Self::message(entry)))
        })
    }

    /// Notes that `pin`'s message was sent; `accepted` if a local APIC took it (which sets remote IRR).
    pub fn sent(&mut self, pin: u8, accepted: bool) {
        self.edges &= !(1 << (pin & 31));
        if let Some(entry) = self.entries.get_mut(usize::from(pin))
            && *entry & LEVEL != 0
            && accepted
            && matches!(Delivery::from_bits((*entry >> 8) as u32), Delivery::Fixed | Delivery::LowestPriority)
        {
            *entry |= REMOTE_IRR;
        }
    }

    fn message(entry: u64) -> Message {
        Message {
            destination: (entry >> 56) as u32,
            logical: entry & 1 << 11 != 0,
            delivery: Delivery::from_bits((entry >> 8) as u32),
            vector: entry as u8,
            level: entry & LEVEL != 0,
        }
    }

    /// EOI of `vector`: level entries with that vector may send again.
    pub fn eoi(&mut self, vector: u8) {
        for entry in &mut self.entries {
            if *entry & LEVEL != 0 && *entry as u8 == vector {
                *entry &= !REMOTE_IRR;
            }
        }
    }

    /// Reads the 32-bit register at `offset` of the chip's page.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            0x00 => u32::from(self.select),
            0x10 => self.read_indirect(),
            _ => 0,
        }
    }

    /// Writes the 32-bit register at `offset` of the chip's page.
    pub fn write(&mut self, offset: u64, value: u32) {
        match offset {
            0x00 => self.select = value as u8,
            0x10 => self.write_indirect(value),
            0x40 => self.eoi(value as u8),
            _ => {}
        }
    }

    fn read_indirect(&self) -> u32 {
        match self.select {
            0 | 2 => u32::from(self.id) << 24,
            1 => ((PINS as u32 - 1) << 16) | 0x20,
            index => match self.entries.get(usize::from(index.wrapping_sub(0x10) / 2)) {
                Some(entry) if index >= 0x10 => (entry >> (32 * u32::from(index & 1))) as u32,
                _ => 0,
            },
        }
    }

    fn write_indirect(&mut self, value: u32) {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 15;
        }
        let index = usize::from(self.select.wrapping_sub(0x10) / 2);
        let (Some(entry), true) = (self.entries.get_mut(index), self.select >= 0x10) else { return };
        let shift = 32 * u32::from(self.select & 1);
        let mask = (0xffff_ffffu64 << shift) & WRITABLE;
        *entry = (*entry & !mask) | ((u64::from(value) << shift) & mask);
        if *entry & LEVEL == 0 {
            // Writing an entry as edge clears remote IRR: how older software ends a level interrupt.
            *entry &= !REMOTE_IRR;
        } else {
            self.edges &= !(1 << index);
        }
        if *entry & MASKED != 0 {
            self.edges &= !(1 << index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(io: &mut IoApic, pin: u8, low: u32, high: u32) {
        for (i, v) in [low, high].into_iter().enumerate() {
            io.write(0, u32::from(0x10 + 2 * pin) + i as u32);
            io.write(0x10, v);
        }
    }

    #[test]
    fn identity() {
        let mut io = IoApic::default();
        io.write(0, 1);
        assert_eq!(io.read(0x10), 0x0017_0020);
        io.write(0, 0);
        io.write(0x10, 0xff00_0000);
        assert_eq!(io.read(0x10), 0x0f00_0000);
        io.write(0, 0xff);
        assert_eq!(io.read(0x10), 0);
        io.write(0, 5);
        io.write(0x10, u32::MAX);
        assert_eq!(io.read(0x10), 0);
    }

    #[test]
    fn edges_send_once_and_are_lost_when_masked() {
        let mut io = IoApic::default();
        io.set_pin(4, true);
        io.set_pin(4, false);
        set(&mut io, 4, 0x31, 0x0200_0000);
        assert_eq!(io.next_message(0), None);
        io.set_pin(4, true);
        let (pin, m) = io.next_message(0).unwrap();
        assert_eq!((pin, m.vector, m.destination, m.level), (4, 0x31, 2, false));
        io.sent(4, true);
        assert_eq!(io.next_message(0), None);
    }

    #[test]
    fn levels_wait_for_eoi() {
        let mut io = IoApic::default();
        set(&mut io, 10, 0x8041, 0);
        io.set_pin(10, true);
        assert!(io.next_message(0).unwrap().1.level);
        io.sent(10, true);
        assert_eq!(io.next_message(0), None);
        io.write(0, 0x10 + 20);
        assert_eq!(io.read(0x10), 0xc041, "remote IRR");
        io.eoi(0x41);
        assert!(io.next_message(0).is_some(), "still asserted");
        io.sent(10, true);
        io.set_pin(10, false);
        io.write(0x40, 0x41);
        assert_eq!(io.next_message(0), None);
    }

    #[test]
    fn nobody_home_leaves_a_level_request_standing() {
        let mut io = IoApic::default();
        set(&mut io, 10, 0x8041, 0);
        io.set_pin(10, true);
        io.sent(10, false);
        assert!(io.next_message(0).is_some());
        assert_eq!(io.next_message(11), None);
    }
}
