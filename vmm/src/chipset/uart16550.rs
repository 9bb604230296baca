//! A 16550A UART (National PC16550D data sheet): FIFOs with trigger levels and time-out, transmitter-empty interrupts,
//! loopback.
//!
//! The transmitter is as fast as the host: a byte written goes to a bounded output queue that the machine drains. THRE is
//! set only while a whole FIFO fits: a guest may then write sixteen bytes without asking again (data sheet, §8.4.2), and a
//! polling or interrupt-driven one waits and loses nothing however long the reader sleeps. One that gives up waiting and
//! writes all the same overruns the transmitter; that is counted, for the operator to be told.
//! Towards the guest, bytes wait in a bounded queue behind the receive FIFO; what does not fit is not taken, and the
//! host keeps it. Only the receive time-out needs a timer.

use std::collections::VecDeque;

use super::NEVER;

const FIFO: usize = 16;
/// Bytes that wait for the host, and for the guest.
const OUTPUT_LIMIT: usize = 64 << 10;
const INPUT_LIMIT: usize = 4 << 10;

const IER_RX: u8 = 1;
const IER_THRE: u8 = 2;
const IER_LINE: u8 = 4;
const IER_MODEM: u8 = 8;
const LSR_DR: u8 = 1;
const LSR_OE: u8 = 2;
const LSR_BI: u8 = 0x10;
const LSR_THRE: u8 = 0x20;
const LSR_TEMT: u8 = 0x40;
const LCR_DLAB: u8 = 0x80;
const MCR_OUT2: u8 = 8;
const MCR_LOOP: u8 = 0x10;

/// The chip and its queues.
#[derive(Clone, Debug)]
pub struct Uart16550 {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: u16,
    /// Error bits of LSR, cleared by reading it.
    errors: u8,
    /// Modem status; the low four bits are deltas, cleared by reading.
    msr: u8,
    /// The transmitter-empty interrupt waits to be seen.
    thre_pending: bool,
    rx: VecDeque<u8>,
    /// When the bytes in the receive FIFO become a time-out.
    timeout_at: u64,
    timed_out: bool,
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    /// Bytes written while there was no room.
    overrun: u64,
}

impl Default for Uart16550 {
    fn default() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scratch: 0,
            divisor: 12,
            errors: 0,
            // Carrier, data set ready, clear to send: somebody listens.
            msr: 0xb0,
            thre_pending: false,
            rx: VecDeque::with_capacity(FIFO),
            timeout_at: NEVER,
            timed_out: false,
            input: VecDeque::new(),
            output: VecDeque::new(),
            overrun: 0,
        }
    }
}

impl Uart16550 {
    /// Power-up state; what waits for the host still reaches it.
    pub fn reset(&mut self) {
        let (output, overrun) = (std::mem::take(&mut self.output), self.overrun);
        *self = Self { output, overrun, ..Self::default() };
    }

    fn fifo_enabled(&self) -> bool {
        self.fcr & 1 != 0
    }

    fn capacity(&self) -> usize {
        if self.fifo_enabled() { FIFO } else { 1 }
    }

    fn trigger(&self) -> usize {
        if self.fifo_enabled() { [1, 4, 8, 14][usize::from(self.fcr >> 6)] } else { 1 }
    }

    /// Four character times at the programmed rate, at most 40 ms, in nanoseconds.
    fn timeout_ns(&self) -> u64 {
        let bits = 2 + u64::from(self.lcr & 3) + 5 + u64::from(self.lcr >> 2 & 1) + u64::from(self.lcr >> 3 & 1);
        (4 * bits * u64::from(self.divisor.max(1)) * 1_000_000_000 / 115_200).min(40_000_000)
    }

    /// Takes bytes from the host for the guest; returns how many fitted.
    pub fn receive(&mut self, bytes: &[u8], now: u64) -> usize {
        let mut taken = 0;
        // Twice: the FIFO may make room in the queue.
        for _ in 0..2 {
            let more = (bytes.len() - taken).min(self.input_space());
            self.input.extend(&bytes[taken..taken + more]);
            taken += more;
            self.refill(now);
        }
        taken
    }

    /// Room for more input, in bytes.
    pub fn input_space(&self) -> usize {
        INPUT_LIMIT.saturating_sub(self.input.len())
    }

    fn refill(&mut self, now: u64) {
        if self.mcr & MCR_LOOP != 0 {
            return;
        }
        let mut moved = false;
        while self.rx.len() < self.capacity()
            && let Some(byte) = self.input.pop_front()
        {
            self.rx.push_back(byte);
            moved = true;
        }
        if moved {
            self.arm_timeout(now);
        }
    }

    fn arm_timeout(&mut self, now: u64) {
        self.timed_out = false;
        self.timeout_at = if self.rx.is_empty() { NEVER } else { now.saturating_add(self.timeout_ns()) };
    }

    /// Moves what the guest transmitted to `to`. Returns how many bytes were lost after them, because the guest did not
    /// wait for room.
    pub fn drain(&mut self, to: &mut Vec<u8>) -> u64 {
        let was_busy = self.busy();
        to.extend(self.output.drain(..));
        if was_busy {
            self.thre_pending = true;
        }
        std::mem::take(&mut self.overrun)
    }

    /// True while the guest's output waits for [`Self::drain`].
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// The transmitter has no room for a whole FIFO.
    fn busy(&self) -> bool {
        self.output.len() + FIFO > OUTPUT_LIMIT
    }

    /// Brings the time-out up to `now`.
    pub fn advance(&mut self, now: u64) {
        if now >= self.timeout_at {
            self.timeout_at = NEVER;
            self.timed_out = !self.rx.is_empty();
        }
    }

    /// When the receive time-out's interrupt is due.
    pub fn deadline(&self) -> u64 {
        let wanted = self.ier & IER_RX != 0 && self.fifo_enabled() && self.rx.len() < self.trigger();
        if wanted && self.mcr & MCR_OUT2 != 0 { self.timeout_at } else { NEVER }
    }

    /// Identification of the pending interrupt of highest priority, as IIR bits 3:0.
    fn identify(&self) -> u8 {
        if self.ier & IER_LINE != 0 && self.errors != 0 {
            6
        } else if self.ier & IER_RX != 0 && self.rx.len() >= self.trigger() {
            4
        } else if self.ier & IER_RX != 0 && self.fifo_enabled() && self.timed_out && !self.rx.is_empty() {
            12
        } else if self.ier & IER_THRE != 0 && self.thre_pending {
            2
        } else if self.ier & IER_MODEM != 0 && self.msr & 15 != 0 {
            0
        } else {
            1
        }
    }

    /// Level of the interrupt line: OUT2 connects the chip to it on a PC.
    pub fn irq(&self) -> bool {
        self.mcr & MCR_OUT2 != 0 && self.mcr & MCR_LOOP == 0 && self.identify() & 1 == 0
    }

    /// Reads register `index`, 0 to 7.
    pub fn read(&mut self, index: u16, now: u64) -> u8 {
        self.advance(now);
        let dlab = self.lcr & LCR_DLAB != 0;
        match index & 7 {
            0 if dlab => self.divisor as u8,
            0 => self.read_data(now),
            1 if dlab => (self.divisor >> 8) as u8,
            1 => self.ier,
            2 => {
                let id = self.identify();
                if id == 2 {
                    self.thre_pending = false;
                }
                id | if self.fifo_enabled() { 0xc0 } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => self.line_status(),
            6 => self.modem_status(),
            _ => self.scratch,
        }
    }

    fn read_data(&mut self, now: u64) -> u8 {
        let byte = self.rx.pop_front().unwrap_or(0);
        if self.rx.is_empty() {
            self.refill(now);
        }
        self.arm_timeout(now);
        byte
    }

    fn line_status(&mut self) -> u8 {
        let ready = if self.busy() { 0 } else { LSR_THRE | LSR_TEMT };
        std::mem::take(&mut self.errors) | ready | if self.rx.is_empty() { 0 } else { LSR_DR }
    }

    fn modem_status(&mut self) -> u8 {
        let value = self.msr;
        self.msr &= 0xf0;
        value
    }

    /// Writes register `index`, 0 to 7.
    pub fn write(&mut self, index: u16, value: u8, now: u64) {
        self.advance(now);
        let dlab = self.lcr & LCR_DLAB != 0;
        match index & 7 {
            0 if dlab => self.divisor = self.divisor & 0xff00 | u16::from(value),
            0 => self.transmit(value, now),
            1 if dlab => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            1 => {
                // Enabling the interrupt while the transmitter is empty raises it (data sheet, table II).
                if value & !self.ier & IER_THRE != 0 && !self.busy() {
                    self.thre_pending = true;
                }
                self.ier = value & 15;
            }
            2 => self.write_fcr(value, now),
            3 => self.write_lcr(value),
            4 => self.write_mcr(value, now),
            7 => self.scratch = value,
            _ => {}
        }
    }

    fn transmit(&mut self, byte: u8, now: u64) {
        if self.mcr & MCR_LOOP != 0 {
            self.loop_back(byte, now);
        } else if self.output.len() < OUTPUT_LIMIT {
            self.output.push_back(byte);
        } else {
            self.overrun = self.overrun.saturating_add(1);
        }
        self.thre_pending = !self.busy();
    }

    fn loop_back(&mut self, byte: u8, now: u64) {
        if self.rx.len() < self.capacity() {
            self.rx.push_back(byte);
            self.arm_timeout(now);
        } else {
            self.errors |= LSR_OE;
        }
    }

    fn write_fcr(&mut self, value: u8, now: u64) {
        let toggled = (self.fcr ^ value) & 1 != 0;
        self.fcr = if value & 1 != 0 { value & 0xc9 } else { 0 };
        if toggled || value & 2 != 0 {
            self.rx.clear();
            self.refill(now);
            self.arm_timeout(now);
        }
        if (toggled || value & 4 != 0) && !self.busy() {
            self.thre_pending = true;
        }
    }

    fn write_lcr(&mut self, value: u8) {
        // A break in loopback is received as one.
        if value & 0x40 != 0 && self.mcr & MCR_LOOP != 0 {
            self.errors |= LSR_BI;
        }
        self.lcr = value;
    }

    fn write_mcr(&mut self, value: u8, now: u64) {
        self.mcr = value & 0x1f;
        let lines = if self.mcr & MCR_LOOP != 0 {
            // CTS, DSR, RI, DCD from RTS, DTR, OUT1, OUT2.
            (self.mcr & 2) << 3 | (self.mcr & 1) << 5 | (self.mcr & 0xc) << 4
        } else {
            0xb0
        };
        let changed = (self.msr ^ lines) >> 4;
        let ring_ended = self.msr & !lines & 0x40 != 0;
        self.msr = lines | self.msr & 15 | changed & 0xb | if ring_ended { 4 } else { 0 };
        self.refill(now);
    }
}

#[cfg(test)]
mod tests;
