//! Which chip answers at which port and address.
//!
//! Byte-wide chips see a wide access as consecutive bytes, as an ISA bus does. What nothing decodes reads as all ones.

use std::sync::Arc;

use super::wires::Inner;
use super::{BoardEvent, read_route};
use crate::chipset::acpi_pm::register as pm_register;
use crate::chipset::i8042::Request;
use crate::chipset::pci::{BarKind, PciFunction, Route};
use crate::chipset::platform as at;
use crate::chipset::{Clock, extract, merge, ones};

const MSR_APIC_BASE: u32 = 0x1b;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
const MSR_X2APIC: u32 = 0x800;
/// Bit of CF9h whose rise resets.
const RESET_CPU: u8 = 4;

/// What a port read came to.
pub enum Read {
    Value(u32),
    /// Configuration space of a function of another room.
    Config(Arc<dyn PciFunction>, u8),
    /// BAR and offset of such a function.
    Bar(Arc<dyn PciFunction>, u8, u64),
}

/// What a port write came to.
pub enum Write {
    Done,
    Config(Arc<dyn PciFunction>, u8),
    Bar(Arc<dyn PciFunction>, u8, u64),
}

/// True if `port` lies in the `length` ports from `base`.
fn within(port: u16, base: u16, length: u16) -> bool {
    port.wrapping_sub(base) < length
}

impl Inner {
    fn pm_offset(&self, port: u16) -> Option<u16> {
        let window = self.pci.bridges.pm_window()?;
        within(port, window, 64).then(|| port - window)
    }

    /// IN.
    pub fn port_read(&mut self, port: u16, width: u8, now: u64) -> Read {
        let lane = port.wrapping_sub(at::PCI_DATA);
        Read::Value(match (port, width) {
            (at::PCI_ADDRESS, 4) => self.pci.address(),
            _ if lane < 4 && lane + u16::from(width) <= 4 => return read_route(self.pci.config_read(lane, width)),
            (at::FW_CFG_DMA, 4) => self.fw_cfg.read_dma(false),
            (_, 4) if port == at::FW_CFG_DMA + 4 => self.fw_cfg.read_dma(true),
            _ => {
                if let Some((function, index, offset)) = self.pci.decode(BarKind::Io, u64::from(port), width) {
                    return Read::Bar(function, index, offset);
                }
                let byte = |inner: &mut Self, i: u8| u32::from(inner.byte_read(port.wrapping_add(u16::from(i)), now));
                match (self.pm_offset(port), width) {
                    (Some(offset), 2 | 4) if offset & 1 == 0 => self.pm_read(offset, width, now),
                    _ => (0..width.min(4)).fold(0, |value, i| value | byte(self, i) << (8 * i)),
                }
            }
        })
    }

    /// OUT.
    pub fn port_write(&mut self, port: u16, width: u8, value: u32, now: u64) -> Write {
        let lane = port.wrapping_sub(at::PCI_DATA);
        match (port, width) {
            (at::PCI_ADDRESS, 4) => self.pci.set_address(value),
            _ if lane < 4 && lane + u16::from(width) <= 4 => {
                if let Route::There(function, offset) = self.pci.config_write(lane, width, value) {
                    return Write::Config(function, offset);
                }
                self.refresh_pci_irqs();
            }
            (at::FW_CFG_SELECT, 2) => self.fw_cfg.select(value as u16),
            (at::FW_CFG_DMA, 4) => self.fw_cfg_dma(false, value),
            (_, 4) if port == at::FW_CFG_DMA + 4 => self.fw_cfg_dma(true, value),
            (at::DEBUG_EXIT, _) => self.raise(BoardEvent::DebugExit(value)),
            _ => {
                if let Some((function, index, offset)) = self.pci.decode(BarKind::Io, u64::from(port), width) {
                    return Write::Bar(function, index, offset);
                }
                match (self.pm_offset(port), width) {
                    (Some(offset), 2 | 4) if offset & 1 == 0 => self.pm_write(offset, width, value, now),
                    _ => {
                        for (i, byte) in (0u16..).zip(value.to_le_bytes()).take(usize::from(width)) {
                            self.byte_write(port.wrapping_add(i), byte, now);
                        }
                    }
                }
            }
        }
        Write::Done
    }

    fn byte_read(&mut self, port: u16, now: u64) -> u8 {
        match port {
            at::PIC_MASTER | 0x21 | at::PIC_SLAVE | 0xa1 => self.pic.read(port & 0x80 != 0, port & 1 != 0),
            0x40..=0x43 => self.pit.read(usize::from(port - at::PIT), now),
            at::KBD_DATA => self.kbc.data(),
            at::PORT_B => self.pit.read_port_b(now),
            at::KBD_COMMAND => self.kbc.status(),
            at::RTC_DATA => self.rtc.read(now),
            at::PORT_92 => (self.a20 as u8) << 1,
            0xb2 | 0xb3 => self.apm[usize::from(port & 1)],
            0x3f8..=0x3ff => self.uart.read(port - at::COM1, now),
            0x4d0 | 0x4d1 => self.pic.read_elcr(port & 1 != 0),
            at::FW_CFG_DATA => self.fw_cfg.read_data(),
            at::RESET_CONTROL => self.reset_control,
            _ => match self.pm_offset(port) {
                Some(offset) => extract(u64::from(self.pm.read(offset & !1, now)), u32::from(offset & 1), 1) as u8,
                None => 0xff,
            },
        }
    }

    fn byte_write(&mut self, port: u16, value: u8, now: u64) {
        match port {
            at::PIC_MASTER | 0x21 | at::PIC_SLAVE | 0xa1 => self.pic.write(port & 0x80 != 0, port & 1 != 0, value),
            0x40..=0x43 => {
                let rose = self.pit.write(usize::from(port - at::PIT), value, now);
                self.pit_edge(rose);
            }
            at::KBD_DATA => {
                let request = self.kbc.write_data(value);
                self.keyboard_request(request);
            }
            at::PORT_B => self.pit.write_port_b(value, now),
            at::KBD_COMMAND => {
                let request = self.kbc.command(value, self.a20);
                self.keyboard_request(request);
            }
            at::RTC_INDEX => self.rtc.select(value),
            at::RTC_DATA => self.rtc.write(value, now),
            at::PORT_92 => {
                self.set_a20(value & 2 != 0);
                if value & 1 != 0 {
                    self.raise(BoardEvent::Reset);
                }
            }
            0xb2 | 0xb3 => self.apm_write(port, value),
            0x3f8..=0x3ff => self.uart.write(port - at::COM1, value, now),
            0x4d0 | 0x4d1 => self.pic.write_elcr(port & 1 != 0, value),
            at::RESET_CONTROL => {
                if value & !self.reset_control & RESET_CPU != 0 {
                    self.raise(BoardEvent::Reset);
                }
                self.reset_control = value & 0x0e;
            }
            _ => {
                if let Some(offset) = self.pm_offset(port) {
                    self.pm_write(offset, 1, u32::from(value), now);
                }
            }
        }
    }

    fn keyboard_request(&mut self, request: Option<Request>) {
        match request {
            Some(Request::A20(level)) => self.set_a20(level),
            Some(Request::Reset) => self.raise(BoardEvent::Reset),
            None => {}
        }
    }

    /// The APM ports: with ACPI the control port switches between legacy and ACPI mode.
    fn apm_write(&mut self, port: u16, value: u8) {
        self.apm[usize::from(port & 1)] = value;
        match (port, value) {
            (at::SMI_CMD, at::ACPI_ENABLE) => self.pm.set_acpi_mode(true),
            (at::SMI_CMD, at::ACPI_DISABLE) => self.pm.set_acpi_mode(false),
            _ => {}
        }
    }

    fn pm_read(&mut self, offset: u16, width: u8, now: u64) -> u32 {
        let low = u32::from(self.pm.read(offset, now));
        if width == 4 { low | u32::from(self.pm.read(offset + 2, now)) << 16 } else { low }
    }

    fn pm_write(&mut self, offset: u16, width: u8, value: u32, now: u64) {
        let register = offset & !1;
        let low = if width == 1 {
            // A byte of a write-one-to-clear register leaves the other byte alone; of the rest, it is merged.
            let clears = matches!(register, pm_register::PM1_STATUS | pm_register::GPE_STATUS);
            let old = if clears { 0 } else { u32::from(self.pm.read(register, now)) };
            merge(old, u32::from(offset & 1), 1, value)
        } else {
            value
        };
        let mut sleep = self.pm.write(register, low as u16, now);
        if width == 4 {
            sleep = self.pm.write(register + 2, (value >> 16) as u16, now).or(sleep);
        }
        // Sleep types other than S5 are not in the tables: asking for one does nothing.
        if sleep == Some(at::SLP_TYP_S5) {
            self.raise(BoardEvent::PowerOff);
        }
    }

    fn fw_cfg_dma(&mut self, low: bool, value: u32) {
        let ram = self.ram.clone();
        for (start, end) in self.fw_cfg.write_dma(low, value, &ram) {
            self.raise(BoardEvent::RamWritten { start, end });
        }
    }

    /// A load from one of the board's own pages; None if the address is not the board's.
    pub fn mmio_read(&mut self, vcpu: usize, address: u64, width: u8, now: u64) -> Option<u64> {
        let offset = address & 0xfff;
        let aligned = offset & !3;
        let lane = (offset & 3) as u32;
        let wide = lane + u32::from(width) > 4;
        let page = self.page(vcpu, address)?;
        let low = self.page_read(page, vcpu, aligned, now);
        let high = if wide && aligned < 0xffc { self.page_read(page, vcpu, aligned + 4, now) } else { 0 };
        Some(extract(u64::from(low) | u64::from(high) << 32, lane, width))
    }

    /// A store to one of the board's own pages; false if the address is not the board's. The chips take aligned 32-bit
    /// stores, and 64-bit ones as two; others do nothing, but the IOAPIC's selector is a byte.
    pub fn mmio_write(&mut self, vcpu: usize, address: u64, width: u8, value: u64, now: u64) -> bool {
        let offset = address & 0xfff;
        let Some(page) = self.page(vcpu, address) else { return false };
        if offset & 3 != 0 || (width < 4 && page != Page::IoApic) {
            return true;
        }
        self.page_write(page, vcpu, offset, (value & ones(width.min(4))) as u32, now);
        if width == 8 && offset < 0xffc && page == Page::Hpet {
            self.page_write(page, vcpu, offset + 4, (value >> 32) as u32, now);
        }
        true
    }

    fn page(&self, vcpu: usize, address: u64) -> Option<Page> {
        let page = address & !0xfff;
        if self.lapics.get(vcpu).and_then(|apic| apic.page()) == Some(page) {
            return Some(Page::Lapic);
        }
        match page {
            at::IOAPIC_BASE => Some(Page::IoApic),
            at::HPET_BASE => Some(Page::Hpet),
            _ => None,
        }
    }

    fn page_read(&mut self, page: Page, vcpu: usize, offset: u64, now: u64) -> u32 {
        match page {
            Page::IoApic => self.ioapic.read(offset),
            Page::Hpet => self.hpet.read(offset, now),
            Page::Lapic if offset & 15 == 0 => self.lapics.get_mut(vcpu).map_or(0, |a| a.mmio_read(offset, now)),
            Page::Lapic => 0,
        }
    }

    fn page_write(&mut self, page: Page, vcpu: usize, offset: u64, value: u32, now: u64) {
        match page {
            Page::IoApic => self.ioapic.write(offset, value),
            Page::Hpet => self.hpet.write(offset, value, now),
            Page::Lapic if offset & 15 == 0 => {
                if let Some(apic) = self.lapics.get_mut(vcpu) {
                    let effect = apic.mmio_write(offset, value, now);
                    self.effect(vcpu, effect);
                }
            }
            Page::Lapic => {}
        }
    }

    /// RDMSR of the local APIC's registers; None means #GP(0).
    pub fn apic_msr_read(&mut self, vcpu: usize, msr: u32, now: u64) -> Option<u64> {
        let apic = self.lapics.get(vcpu)?;
        match msr {
            MSR_APIC_BASE => Some(apic.base()),
            MSR_TSC_DEADLINE => Some(apic.tsc_deadline()),
            _ if msr >> 8 == MSR_X2APIC >> 8 => apic.x2apic_read(msr - MSR_X2APIC, now),
            _ => None,
        }
    }

    /// WRMSR of the same; false means #GP(0).
    pub fn apic_msr_write(&mut self, vcpu: usize, msr: u32, value: u64, now: u64, clock: &Clock) -> bool {
        let Some(apic) = self.lapics.get_mut(vcpu) else { return false };
        match msr {
            MSR_APIC_BASE => apic.set_base(value),
            MSR_TSC_DEADLINE => {
                apic.set_tsc_deadline(value, clock.ns_at_tsc(value));
                true
            }
            _ if msr >> 8 == MSR_X2APIC >> 8 => match apic.x2apic_write(msr - MSR_X2APIC, value, now) {
                Some(effect) => {
                    self.effect(vcpu, effect);
                    true
                }
                None => false,
            },
            _ => false,
        }
    }
}

/// The board's own pages of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Lapic,
    IoApic,
    Hpet,
}
