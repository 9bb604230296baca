//! The ACPI power-management block of the PIIX4 (82371AB data sheet, §"Power management"; ACPI 6.4, §4.8): PM1 event and
//! control registers, the 24-bit PM timer, a general-purpose event block without events.
//!
//! Offsets are from PMBASE. The SCI line is a level that follows the enabled status bits.

use super::NEVER;

/// PM timer frequency, in Hz.
const PM_HZ: u128 = 3_579_545;
const NS: u128 = 1_000_000_000;

/// Registers, as offsets from PMBASE; FADT names in the same order.
pub mod register {
    #![allow(missing_docs)]
    pub const PM1_STATUS: u16 = 0x00;
    pub const PM1_ENABLE: u16 = 0x02;
    pub const PM1_CONTROL: u16 = 0x04;
    pub const TIMER: u16 = 0x08;
    pub const GPE_STATUS: u16 = 0x0c;
    pub const GPE_ENABLE: u16 = 0x0e;
}
use register as r;

const TIMER_STATUS: u16 = 1;
const POWER_BUTTON: u16 = 1 << 8;
/// Timer, global lock, power button, RTC, wake.
const STATUS_BITS: u16 = TIMER_STATUS | 1 << 5 | POWER_BUTTON | 1 << 10 | 1 << 15;
const ENABLE_BITS: u16 = TIMER_STATUS | 1 << 5 | POWER_BUTTON | 1 << 10;
const SCI_EN: u16 = 1;
const SLP_EN: u16 = 1 << 13;

/// The PM block.
#[derive(Clone, Debug, Default)]
pub struct AcpiPm {
    status: u16,
    enable: u16,
    control: u16,
    gpe_enable: u16,
    /// The timer's status is worked out up to this count (not cut to 24 bits).
    seen: u64,
}

fn ticks(now: u64) -> u64 {
    (u128::from(now) * PM_HZ / NS) as u64
}

impl AcpiPm {
    /// Level of SCI.
    pub fn sci(&self) -> bool {
        self.control & SCI_EN != 0 && self.status & self.enable & ENABLE_BITS != 0
    }

    /// When the timer's enabled interrupt is due: its bit 23 changes every 2.3 s.
    pub fn deadline(&self) -> u64 {
        if self.enable & TIMER_STATUS == 0 || self.status & TIMER_STATUS != 0 || self.control & SCI_EN == 0 {
            return NEVER;
        }
        let next = ((self.seen >> 23) + 1) << 23;
        u64::try_from((u128::from(next) * NS).div_ceil(PM_HZ)).unwrap_or(NEVER)
    }

    /// Sets the timer's status if bit 23 changed up to `now`.
    pub fn advance(&mut self, now: u64) {
        let count = ticks(now).max(self.seen);
        if count >> 23 != self.seen >> 23 {
            self.status |= TIMER_STATUS;
        }
        self.seen = count;
    }

    /// The operator presses the power button.
    pub fn press_power_button(&mut self) {
        self.status |= POWER_BUTTON;
    }

    /// A write to the SMI command port: ACPI mode on or off.
    pub fn set_acpi_mode(&mut self, on: bool) {
        self.control = if on { self.control | SCI_EN } else { self.control & !SCI_EN };
    }

    /// Reads the 16-bit register at the even `offset`.
    pub fn read(&mut self, offset: u16, now: u64) -> u16 {
        self.advance(now);
        let timer = (ticks(now) & 0xff_ffff) as u32;
        match offset {
            r::PM1_STATUS => self.status,
            r::PM1_ENABLE => self.enable,
            r::PM1_CONTROL => self.control,
            r::TIMER => timer as u16,
            0x0a => (timer >> 16) as u16,
            r::GPE_ENABLE => self.gpe_enable,
            _ => 0,
        }
    }

    /// Writes the 16-bit register at the even `offset`. Returns the sleep type if the guest goes to sleep.
    pub fn write(&mut self, offset: u16, value: u16, now: u64) -> Option<u8> {
        self.advance(now);
        match offset {
            r::PM1_STATUS => self.status &= !(value & STATUS_BITS),
            r::PM1_ENABLE => self.enable = value & ENABLE_BITS,
            r::PM1_CONTROL => {
                // SCI_EN belongs to firmware's ACPI enable command; SLP_EN reads as zero.
                self.control = value & 0x1c06 | self.control & SCI_EN | value & SCI_EN;
                return (value & SLP_EN != 0).then_some((value >> 10 & 7) as u8);
            }
            r::GPE_ENABLE => self.gpe_enable = value,
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timer_counts_at_its_rate() {
        let mut pm = AcpiPm::default();
        let read = |pm: &mut AcpiPm, now| u32::from(pm.read(8, now)) | u32::from(pm.read(10, now)) << 16;
        assert_eq!(read(&mut pm, 1_000_000_000), 3_579_545);
        assert_eq!(read(&mut pm, 10_000_000_000), 35_795_450 & 0xff_ffff);
        assert_eq!(pm.deadline(), NEVER, "not enabled");
        pm.set_acpi_mode(true);
        pm.write(0, TIMER_STATUS, 10_000_000_000);
        pm.write(2, TIMER_STATUS, 10_000_000_000);
        let due = pm.deadline();
        assert!(due > 10_000_000_000 && due < 12_400_000_000);
        pm.advance(due - 1);
        assert!(!pm.sci());
        pm.advance(due);
        assert!(pm.sci());
        assert_eq!(pm.deadline(), NEVER);
    }

    #[test]
    fn power_button_and_sleep() {
        let mut pm = AcpiPm::default();
        pm.write(2, POWER_BUTTON, 0);
        pm.press_power_button();
        assert!(!pm.sci(), "no SCI in legacy mode");
        pm.set_acpi_mode(true);
        assert!(pm.sci());
        pm.write(0, POWER_BUTTON, 0);
        assert!(!pm.sci());
        assert_eq!(pm.write(4, SLP_EN | 5 << 10, 0), Some(5));
        assert_eq!(pm.read(4, 0), 5 << 10 | SCI_EN);
    }
}
