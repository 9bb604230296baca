//! Which chip interrupts whom.
//!
//! An interrupt line is an ISA IRQ (0 to 15, which reaches the i8259 pair and the IOAPIC, IRQ 0 on pin 2) or an IOAPIC
//! pin (16 to 23). Several sources may hold one up. The pair's INT reaches processor 0 through LINT0, and IOAPIC pin 0.

use std::collections::VecDeque;
use std::sync::Arc;

use super::BoardEvent;
use crate::chipset::acpi_pm::AcpiPm;
use crate::chipset::fw_cfg::{FwCfg, key};
use crate::chipset::hpet::Hpet;
use crate::chipset::i8042::I8042;
use crate::chipset::i8254::I8254;
use crate::chipset::i8259::I8259Pair;
use crate::chipset::ioapic::{IoApic, PINS};
use crate::chipset::lapic::Lapic;
use crate::chipset::mc146818::Mc146818;
use crate::chipset::pci::Pci;
use crate::chipset::platform::{IOAPIC_PIN_PIT, IRQ_AUX, IRQ_COM1, IRQ_KBD, IRQ_PIT, IRQ_RTC, IRQ_SCI, PIRQ_IRQS};
use crate::chipset::uart16550::Uart16550;
use crate::chipset::{Clock, NEVER, PciFunction};
use crate::cpu::Lines;
use crate::mmu::GuestRam;

/// Events that may wait; a guest cannot raise more without being served.
const EVENT_LIMIT: usize = 64;

/// Who holds a line up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Uart,
    Rtc,
    Keyboard,
    Sci,
    Hpet,
    Pci,
    Device,
}

/// Whom to tell once the lock is released.
#[derive(Clone, Copy, Debug, Default)]
pub struct Signals {
    pub deadline: bool,
    pub output: bool,
    pub input_space: bool,
}

/// Every chip, and the wires between them.
pub struct Inner {
    pub ram: Arc<GuestRam>,
    pub lines: Vec<Arc<Lines>>,
    pub pic: I8259Pair,
    pub pit: I8254,
    pub rtc: Mc146818,
    pub uart: Uart16550,
    pub ioapic: IoApic,
    pub lapics: Vec<Lapic>,
    pub hpet: Hpet,
    pub pm: AcpiPm,
    pub kbc: I8042,
    pub pci: Pci,
    pub fw_cfg: FwCfg,
    pub a20: bool,
    pub reset_control: u8,
    pub apm: [u8; 2],
    pub events: VecDeque<BoardEvent>,
    /// Sources that hold each line up, one bit each.
    levels: [u8; PINS],
    /// Asserted interrupt pins of each PCI device.
    pci_pins: [u8; 32],
    /// The deadline that the machine knows.
    announced: u64,
    had_output: bool,
    refused_input: bool,
}

impl Inner {
    pub fn new(ram: Arc<GuestRam>, lines: Vec<Arc<Lines>>, utc_ns: u64, clock: &Clock) -> Self {
        let mut rtc = Mc146818::new(utc_ns, clock.now());
        rtc.set_memory(ram.low_size(), ram.high_size(), lines.len());
        let mut fw_cfg = FwCfg::new();
        fw_cfg.add(key::RAM_SIZE, ram.size().to_le_bytes().to_vec());
        fw_cfg.add(key::NB_CPUS, (lines.len() as u16).to_le_bytes().to_vec());
        let mut inner = Self {
            ram,
            pic: I8259Pair::default(),
            pit: I8254::default(),
            rtc,
            uart: Uart16550::default(),
            ioapic: IoApic::default(),
            lapics: (0..lines.len() as u32).map(Lapic::new).collect(),
            lines,
            hpet: Hpet::default(),
            pm: AcpiPm::default(),
            kbc: I8042::default(),
            pci: Pci::new(),
            fw_cfg,
            a20: true,
            reset_control: 0,
            apm: [0; 2],
            events: VecDeque::new(),
            levels: [0; PINS],
            pci_pins: [0; 32],
            announced: NEVER,
            had_output: false,
            refused_input: false,
        };
        inner.firmware_defaults();
        inner
    }

    /// What firmware programs and a kernel started without any relies on: the pair is initialised with the vectors of
    /// a PC and masked, the SCI and PCI lines are level-sensitive.
    fn firmware_defaults(&mut self) {
        for (slave, base, cascade) in [(false, 0x08, 4), (true, 0x70, 2)] {
            self.pic.write(slave, false, 0x11);
            [base, cascade, 1, 0xff].into_iter().for_each(|byte| self.pic.write(slave, true, byte));
        }
        let level = PIRQ_IRQS.iter().chain(&[IRQ_SCI]).fold(0u16, |bits, irq| bits | 1 << irq);
        let [master, slave] = level.to_le_bytes();
        self.pic.write_elcr(false, master);
        self.pic.write_elcr(true, slave);
    }

    /// The platform's reset line. Returns the PCI functions of other rooms, for the caller to reset.
    pub fn reset(&mut self, now: u64) -> Vec<Arc<dyn PciFunction>> {
        self.pic = I8259Pair::default();
        self.pit = I8254::default();
        self.rtc.reset(now);
        self.uart.reset();
        self.ioapic = IoApic::default();
        self.lapics = (0..self.lines.len() as u32).map(Lapic::new).collect();
        self.hpet = Hpet::default();
        self.pm = AcpiPm::default();
        self.kbc = I8042::default();
        self.pci.reset();
        self.fw_cfg.select(0);
        self.a20 = true;
        self.reset_control = 0;
        self.levels = [0; PINS];
        self.firmware_defaults();
        self.refresh_pci_irqs();
        self.pci.attached()
    }

    /// Queues `event` and asks the processors for their threads. Repeats and adjoining RAM ranges become one.
    pub fn raise(&mut self, event: BoardEvent) {
        let room = self.events.len() < EVENT_LIMIT;
        match (self.events.back_mut(), event) {
            (Some(BoardEvent::RamWritten { start, end }), BoardEvent::RamWritten { start: s, end: e }) => {
                (*start, *end) = ((*start).min(s), (*end).max(e));
            }
            (Some(last), _) if *last == event => {}
            _ if room => self.events.push_back(event),
            // Full of other events: what engines must know is kept at the price of the newest.
            (Some(last), BoardEvent::RamWritten { .. }) => *last = event,
            _ => {}
        }
        self.lines.iter().for_each(|l| l.request());
    }

    /// Moves the A20 gate.
    pub fn set_a20(&mut self, level: bool) {
        if level != self.a20 {
            self.a20 = level;
            self.raise(BoardEvent::A20Changed(level));
        }
    }

    /// Holds `line` up, or lets it go, on behalf of `source`.
    pub fn drive(&mut self, line: u8, source: Source, level: bool) {
        let Some(sources) = self.levels.get_mut(usize::from(line)) else { return };
        let old = *sources;
        let bit = 1 << source as u8;
        *sources = if level { old | bit } else { old & !bit };
        if (old != 0) != (*sources != 0) {
            let up = *sources != 0;
            self.set_line(line, up);
        }
    }

    fn set_line(&mut self, line: u8, level: bool) {
        if line < 16 {
            self.pic.set_line(line, level);
        }
        match line {
            IRQ_PIT => self.ioapic.set_pin(IOAPIC_PIN_PIT, level),
            // IRQ 2 is the cascade; IOAPIC pin 0 is the pair's INT.
            IOAPIC_PIN_PIT => {}
            _ => self.ioapic.set_pin(line, level),
        }
    }

    /// An edge on `line`.
    pub fn pulse(&mut self, line: u8) {
        if self.levels.get(usize::from(line)) == Some(&0) {
            self.set_line(line, true);
            self.pump();
            self.set_line(line, false);
        }
    }

    /// True if `line` reaches a processor by either controller.
    pub fn is_open(&self, line: u8) -> bool {
        self.is_open_in_pair(line) || self.ioapic.is_open(pin_of(line))
    }

    fn is_open_in_pair(&self, line: u8) -> bool {
        let wired = self.lapics.first().is_some_and(Lapic::lint0_ext_int) || self.ioapic.is_open(0);
        wired && self.pic.is_open(line)
    }

    /// True while an edge of `line` waits for a processor to acknowledge it.
    pub fn is_waiting(&self, line: u8) -> bool {
        if self.is_open_in_pair(line) && self.pic.is_requested(line) {
            return true;
        }
        let Some((message, here)) = self.ioapic.route(pin_of(line)) else { return false };
        here || self.lapics.iter().any(|apic| apic.matches(&message) && apic.is_requested(message.vector))
    }

    /// Drives interrupt pin `pin` of PCI device `device`.
    pub fn set_pci_pin(&mut self, device: u8, pin: u8, level: bool) {
        if let Some(pins) = self.pci_pins.get_mut(usize::from(device)) {
            let bit = 1 << (pin & 3);
            *pins = if level { *pins | bit } else { *pins & !bit };
        }
        self.refresh_pci_irqs();
    }

    /// Works out the PCI lines again, after a pin or the routing changed.
    pub fn refresh_pci_irqs(&mut self) {
        let mut up = 0u16;
        for (device, pins) in (0u8..).zip(self.pci_pins) {
            for pin in (0..4).filter(|p| pins & 1 << p != 0) {
                up |= self.pci.bridges.route(device, pin).map_or(0, |irq| 1 << irq);
            }
        }
        (0..16).for_each(|irq| self.drive(irq, Source::Pci, up & 1 << irq != 0));
    }

    /// Carries the chips' outputs to their lines.
    pub fn chip_lines(&mut self) {
        self.drive(IRQ_COM1, Source::Uart, self.uart.irq());
        self.drive(IRQ_RTC, Source::Rtc, self.rtc.irq() && !self.hpet.replaces_legacy());
        let (keyboard, mouse) = self.kbc.irqs();
        self.drive(IRQ_KBD, Source::Keyboard, keyboard);
        self.drive(IRQ_AUX, Source::Keyboard, mouse);
        self.drive(IRQ_SCI, Source::Sci, self.pm.sci());
        self.hpet_lines();
    }

    /// A rising edge of counter 0 that a register write made.
    pub fn pit_edge(&mut self, rose: bool) {
        if rose && !self.hpet.replaces_legacy() {
            self.pulse(IRQ_PIT);
        }
    }

    /// Lets levels travel from the chips to the processors, and finds whom to tell.
    pub fn settle(&mut self, now: u64, clock: &Clock) -> Signals {
        // What the access made due at once (a TSC deadline in the past) is not left to another thread.
        if self.deadline() <= now {
            self.advance(now, clock);
        }
        self.chip_lines();
        self.kbc.pump();
        self.chip_lines();
        self.make_good();
        self.pump();
        for i in 0..self.lines.len() {
            let level = self.wants_interrupt(i);
            self.lines[i].set_intr(level);
        }
        let has_output = self.uart.has_output();
        let deadline = self.deadline();
        let signals = Signals {
            deadline: deadline < self.announced,
            output: has_output && !self.had_output,
            input_space: self.refused_input && self.uart.input_space() > 0,
        };
        self.announced = self.announced.min(deadline);
        self.had_output = has_output;
        self.refused_input &= !signals.input_space;
        signals
    }

    /// The deadline, which the machine knows from now on.
    pub fn announce_deadline(&mut self) -> u64 {
        self.announced = self.deadline();
        self.announced
    }

    /// Bytes from the host for the serial port.
    pub fn serial_input(&mut self, bytes: &[u8], now: u64) -> usize {
        let taken = self.uart.receive(bytes, now);
        self.refused_input = taken < bytes.len();
        taken
    }
}

/// The IOAPIC pin that interrupt line `line` is wired to.
fn pin_of(line: u8) -> u8 {
    if line == IRQ_PIT { IOAPIC_PIN_PIT } else { line }
}
