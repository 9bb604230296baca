//! The board: every chip, attached to its ports, addresses and interrupt wires, behind one lock.
//!
//! Processors reach it as their [`Bus`]; the machine room reaches it as [`Board`]. An access brings the timers up to the
//! present, runs, and settles: levels travel from chips through the interrupt controllers to each processor's INTR.
//! What the machine must do (power off, reset, …) is queued as a [`BoardEvent`], and the processors are asked to stop.
//! Hooks and PCI functions of other rooms are called with the lock released.
//!
//! `board/decode.rs` says which chip answers where, `board/wires.rs` which chip holds which line up, `board/timers.rs`
//! which timer is due, and `board/delivery.rs` how interrupt messages find processors.

mod decode;
mod delivery;
mod timers;
mod wires;

use std::sync::{Arc, Mutex, PoisonError};

use super::pci::Route;
use super::{BarKind, Clock, NEVER, PciFunction, ones};
use crate::cpu::{Bus, Lines};
use crate::mmu::GuestRam;
use wires::Inner;

/// Something the machine room is told by a call.
pub type Hook = Arc<dyn Fn() + Send + Sync>;

/// What the board tells without being asked. Called from any thread that accesses the board, with the lock released.
#[derive(Clone, Default)]
pub struct Hooks {
    /// [`Board::next_deadline`] is now earlier than it was when last asked, by whichever thread.
    pub deadline: Option<Hook>,
    /// The guest wrote to the serial port, whose output was empty.
    pub output: Option<Hook>,
    /// The serial port takes input again after it had refused some.
    pub input_space: Option<Hook>,
}

/// What a board is built from.
pub struct BoardConfig {
    /// Guest RAM: its sizes go to the CMOS, and fw_cfg copies into it.
    pub ram: Arc<GuestRam>,
    /// The wires of each processor; their number is the number of processors, at least one.
    pub lines: Vec<Arc<Lines>>,
    /// The board's time.
    pub clock: Clock,
    /// The host's UTC when the board is built, in nanoseconds since 1970.
    pub utc_ns: u64,
    /// Whom to tell.
    pub hooks: Hooks,
}

/// Something that the machine must do for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoardEvent {
    /// The guest entered S5.
    PowerOff,
    /// The guest pulled a reset line (i8042, port 92h, CF9h): reset processors and [`Board::reset`].
    Reset,
    /// The guest wrote this value to the debug exit port.
    DebugExit(u32),
    /// The A20 gate moved: true lets address bit 20 through.
    A20Changed(bool),
    /// The board wrote RAM in this range of physical addresses: engines must drop code from there.
    RamWritten {
        /// First byte.
        start: u64,
        /// After the last byte.
        end: u64,
    },
    /// INIT arrived at this processor.
    Init(usize),
    /// A start-up message arrived at this processor: it starts at vector × 4 KiB if it waits for one.
    StartUp(usize, u8),
}

/// The board.
pub struct Board {
    inner: Mutex<Inner>,
    clock: Clock,
    hooks: Hooks,
}

impl Board {
    /// A board in its power-up state, as firmware would leave it.
    pub fn new(config: BoardConfig) -> Arc<Self> {
        let BoardConfig { ram, lines, clock, utc_ns, hooks } = config;
        let inner = Inner::new(ram, lines, utc_ns, &clock);
        Arc::new(Self { inner: Mutex::new(inner), clock, hooks })
    }

    /// Runs `access` on the chips at the present time, settles the wires, and tells whom it concerns.
    fn with<R>(&self, access: impl FnOnce(&mut Inner, u64) -> R) -> R {
        let (result, signals) = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let now = self.clock.now();
            inner.advance(now, &self.clock);
            let result = access(&mut inner, now);
            (result, inner.settle(now, &self.clock))
        };
        let told = [
            (signals.deadline, &self.hooks.deadline),
            (signals.output, &self.hooks.output),
            (signals.input_space, &self.hooks.input_space),
        ];
        for hook in told.into_iter().filter(|(raised, _)| *raised).filter_map(|(_, hook)| hook.as_ref()) {
            hook();
        }
        result
    }

    /// The board's clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The earliest time, in nanoseconds of the clock, at which [`Self::advance`] has something to do. None when only
    /// the guest or a device can make something happen.
    pub fn next_deadline(&self) -> Option<u64> {
        let deadline = self.with(|inner, _| inner.announce_deadline());
        (deadline != NEVER).then_some(deadline)
    }

    /// Serves the timers that are due.
    pub fn advance(&self) {
        self.with(|_, _| ());
    }

    /// Gives bytes to the serial port; returns how many it took. The rest must be offered again after
    /// [`Hooks::input_space`].
    pub fn serial_input(&self, bytes: &[u8]) -> usize {
        self.with(|inner, now| inner.serial_input(bytes, now))
    }

    /// Appends what the guest wrote to the serial port to `to`. Returns how many bytes were lost after these, because the
    /// guest did not wait for the port.
    pub fn take_serial_output(&self, to: &mut Vec<u8>) -> u64 {
        self.with(|inner, _| inner.uart.drain(to))
    }

    /// Presses the power button once.
    pub fn press_power_button(&self) {
        self.with(|inner, _| inner.pm.press_power_button());
    }

    /// Raises an NMI through LINT1 of every processor that has it wired so.
    pub fn raise_nmi(&self) {
        self.with(|inner, _| inner.raise_nmi());
    }

    /// The next thing to do, in the order in which they happened.
    pub fn take_event(&self) -> Option<BoardEvent> {
        self.with(|inner, _| inner.events.pop_front())
    }

    /// Resets every chip as the platform's reset line does. Time of day, fw_cfg items and pending serial output stay.
    pub fn reset(&self) {
        for function in self.with(|inner, now| inner.reset(now)) {
            function.reset();
            self.refresh_bars(&function);
        }
    }

    /// Drives interrupt line `line` on behalf of a device: ISA IRQ 0 to 15, or IOAPIC pin 16 to 23.
    pub fn set_irq(&self, line: u8, level: bool) {
        self.with(|inner, _| inner.drive(line, wires::Source::Device, level));
    }

    /// Drives interrupt pin `pin` (0 is INTA) of PCI device `device`, through the PIIX's routing.
    pub fn set_pci_irq(&self, device: u8, pin: u8, level: bool) {
        self.with(|inner, _| inner.set_pci_pin(device, pin, level));
    }

    /// Delivers a device's message-signalled interrupt. Writes to other addresses are ignored.
    pub fn deliver_msi(&self, address: u64, data: u32) {
        self.with(|inner, _| inner.deliver_msi(address, data));
    }

    /// Adds or replaces a fixed fw_cfg item; see [`super::fw_cfg_key`].
    pub fn fw_cfg_add(&self, key: u16, bytes: Vec<u8>) {
        self.with(|inner, _| inner.fw_cfg.add(key, bytes));
    }

    /// Adds or replaces a fw_cfg file. False if the name is longer than 55 bytes or no key is free.
    pub fn fw_cfg_add_file(&self, name: &str, bytes: Vec<u8>) -> bool {
        self.with(|inner, _| inner.fw_cfg.add_file(name, bytes))
    }

    /// Attaches a PCI function at `devfn` (device << 3 | function) of bus 0. False if the place is taken.
    pub fn attach_pci(&self, devfn: u8, function: Arc<dyn PciFunction>) -> bool {
        let attached = self.with(|inner, _| inner.pci.attach(devfn, function.clone()));
        if attached {
            self.refresh_bars(&function);
        }
        attached
    }

    /// Level of the A20 gate.
    pub fn a20(&self) -> bool {
        self.with(|inner, _| inner.a20)
    }

    /// Asks `function` what it decodes now, without the lock.
    fn refresh_bars(&self, function: &Arc<dyn PciFunction>) {
        let bars = function.bars();
        self.with(|inner, _| inner.pci.update_bars(function, bars));
    }
}

impl Bus for Board {
    fn port_read(&self, _vcpu: usize, port: u16, width: u8) -> u32 {
        match self.with(|inner, now| inner.port_read(port, width, now)) {
            decode::Read::Value(value) => value,
            decode::Read::Config(function, offset) => function.config_read(offset, width),
            decode::Read::Bar(function, index, offset) => function.bar_read(index, offset, width) as u32,
        }
    }

    fn port_write(&self, _vcpu: usize, port: u16, width: u8, value: u32) {
        match self.with(|inner, now| inner.port_write(port, width, value, now)) {
            decode::Write::Done => {}
            decode::Write::Config(function, offset) => {
                function.config_write(offset, width, value);
                self.refresh_bars(&function);
            }
            decode::Write::Bar(function, index, offset) => function.bar_write(index, offset, width, u64::from(value)),
        }
    }

    fn mmio_read(&self, vcpu: usize, address: u64, width: u8) -> u64 {
        match self.with(|inner, now| inner.mmio_read(vcpu, address, width, now)) {
            Some(value) => value,
            None => match self.bar_at(address, width) {
                Some((function, index, offset)) => function.bar_read(index, offset, width),
                None => ones(width),
            },
        }
    }

    fn mmio_write(&self, vcpu: usize, address: u64, width: u8, value: u64) {
        if self.with(|inner, now| inner.mmio_write(vcpu, address, width, value, now)) {
            return;
        }
        if let Some((function, index, offset)) = self.bar_at(address, width) {
            function.bar_write(index, offset, width, value);
        }
    }

    fn acknowledge(&self, vcpu: usize) -> Option<u8> {
        self.with(|inner, _| inner.acknowledge(vcpu))
    }

    fn apic_msr_read(&self, vcpu: usize, msr: u32) -> Option<u64> {
        self.with(|inner, now| inner.apic_msr_read(vcpu, msr, now))
    }

    fn apic_msr_write(&self, vcpu: usize, msr: u32, value: u64) -> bool {
        self.with(|inner, now| inner.apic_msr_write(vcpu, msr, value, now, &self.clock))
    }
}

impl Board {
    fn bar_at(&self, address: u64, width: u8) -> Option<(Arc<dyn PciFunction>, u8, u64)> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.pci.decode(BarKind::Memory, address, width)
    }
}

/// A configuration access, as the port decoder passes it on.
fn read_route(route: Route<u32>) -> decode::Read {
    match route {
        Route::Here(value) => decode::Read::Value(value),
        Route::There(function, offset) => decode::Read::Config(function, offset),
    }
}

#[cfg(test)]
mod tests;
