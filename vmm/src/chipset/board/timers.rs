//! The board's timers: brought up to the present, asked when they are due, and made good for what was missed.

use super::wires::{Inner, Source};
use crate::chipset::hpet::{Hpet, Wire};
use crate::chipset::ioapic::PINS;
use crate::chipset::platform::{IRQ_COM1, IRQ_PIT, IRQ_RTC, IRQ_SCI};
use crate::chipset::{Clock, NEVER};

impl Inner {
    /// Brings every timer up to `now`.
    pub fn advance(&mut self, now: u64, clock: &Clock) {
        for lapic in &mut self.lapics {
            if now >= lapic.timer_due()
                && let Some(tsc) = lapic.advance(now, clock.tsc())
            {
                lapic.set_tsc_deadline(tsc, clock.ns_at_tsc(tsc).max(now.saturating_add(1)));
            }
        }
        let replaced = self.hpet.replaces_legacy();
        if self.pit.advance(now) && !replaced {
            self.pulse(IRQ_PIT);
        }
        self.rtc.advance(now);
        self.hpet.advance(now);
        self.pm.advance(now);
        self.uart.advance(now);
        self.forget_unheard();
        self.chip_lines();
    }

    /// Ticks of a line that reaches nobody are lost, as on real boards.
    fn forget_unheard(&mut self) {
        let replaced = self.hpet.replaces_legacy();
        if self.pit.missed.any() && (replaced || !self.is_open(IRQ_PIT)) {
            self.pit.missed.forget();
        }
        if self.rtc.missed.any() && (replaced || !self.is_open(IRQ_RTC)) {
            self.rtc.missed.forget();
        }
        for i in 0..Hpet::COMPARATORS {
            if self.hpet.behind(i).is_some_and(|wire| !self.is_open(line_of(wire))) {
                self.hpet.missed(i).forget();
            }
        }
    }

    /// Raises the next of the ticks that were missed, on every line where the last one was acknowledged.
    pub fn make_good(&mut self) {
        if self.pit.missed.any() && !self.hpet.replaces_legacy() && !self.is_waiting(IRQ_PIT) && self.pit.missed.take()
        {
            self.pulse(IRQ_PIT);
        }
        for i in 0..Hpet::COMPARATORS {
            if let Some(line) = self.hpet.behind(i).map(line_of)
                && !self.is_waiting(line)
                && self.hpet.missed(i).take()
            {
                self.pulse(line);
            }
        }
        if self.rtc.missed.any() && self.rtc.make_good() {
            self.chip_lines();
        }
    }

    /// Carries the comparators' outputs to their lines.
    pub fn hpet_lines(&mut self) {
        let mut up = 0u32;
        for i in 0..Hpet::COMPARATORS {
            up |= self.hpet.level(i).map_or(0, |wire| 1 << line_of(wire));
            if let Some(wire) = self.hpet.take_pulse(i) {
                self.pulse(line_of(wire));
            }
        }
        for line in [IRQ_PIT, IRQ_RTC].into_iter().chain(16..PINS as u8) {
            self.drive(line, Source::Hpet, up & 1 << line != 0);
        }
    }

    /// When the earliest interrupt that some processor would take is due.
    pub fn deadline(&self) -> u64 {
        let gated = |line, due: u64| if due != NEVER && self.is_open(line) { due } else { NEVER };
        let legacy = |line, due| if self.hpet.replaces_legacy() { NEVER } else { gated(line, due) };
        let hpet = self.hpet.deadline(|wire| self.is_open(line_of(wire)));
        let board = legacy(IRQ_PIT, self.pit.deadline())
            .min(legacy(IRQ_RTC, self.rtc.deadline()))
            .min(hpet)
            .min(gated(IRQ_SCI, self.pm.deadline()))
            .min(gated(IRQ_COM1, self.uart.deadline()));
        self.lapics.iter().fold(board, |least, apic| least.min(apic.deadline()))
    }
}

/// The interrupt line of a comparator's wire.
fn line_of(wire: Wire) -> u8 {
    match wire {
        Wire::Isa(line) | Wire::Pin(line) => line,
    }
}
