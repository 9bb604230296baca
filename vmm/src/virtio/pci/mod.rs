//! virtio over PCI (virtio 1.2, §4.1): the registers of one function, without the device behind them.
//!
//! All structures lie in one memory BAR, a page each; configuration space names them (`capabilities`). Interrupts are
//! messages of MSI-X (`msix`) or, where the driver does not use that, the level of INTA, which the ISR register lets go.
//! What an access means for the device comes back as an [`Access`], for [`super::device`] to act on.

mod capabilities;
mod common;
mod msix;

pub use capabilities::Assigned;
use capabilities::{BAR, MSIX_CONTROL, NOTIFY_STEP, PAGE, WINDOW, WINDOW_DATA, page};
use common::Common;
pub use common::{Effect, F_VERSION_1, NO_VECTOR, status};
use msix::{ENABLE, Message, Msix};

use super::kind::Kind;
use crate::chipset::{Bar, ConfigSpace};

/// ISR status: a queue has used buffers.
const ISR_QUEUE: u8 = 1;
/// ISR status: the configuration changed.
const ISR_CONFIG: u8 = 2;
/// PCI command: INTx is off.
const INTX_DISABLE: u32 = 1 << 10;

/// What a function's interrupts and news go to. Called with the function's lock held: implementations do not call back.
pub trait Pins: Send + Sync {
    /// Sends an interrupt message.
    fn message(&self, address: u64, data: u32);
    /// Drives INTA.
    fn line(&self, level: bool);
}

/// What an access asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing more.
    Done,
    /// Chains may be available in this queue.
    Notified(u16),
    /// A common register was written.
    Common(Effect),
}

/// The registers of a function.
pub struct Transport {
    space: ConfigSpace,
    assigned: Assigned,
    vectors: u16,
    /// The common configuration structure.
    pub common: Common,
    msix: Msix,
    isr: u8,
    /// Device configuration, as the guest sees it.
    pub config: Vec<u8>,
}

impl Transport {
    /// A function of `kind` with `queues` queues of at most `queue_size` entries, as firmware leaves it.
    pub fn new(kind: &dyn Kind, offered: u64, queues: u16, queue_size: u16, assigned: Assigned) -> Self {
        let vectors = queues + 1;
        Self {
            space: capabilities::space(kind, vectors, assigned),
            assigned,
            vectors,
            common: Common::new(offered, queues, queue_size, vectors),
            msix: Msix::new(vectors),
            isr: 0,
            config: vec![0; kind.config_size()],
        }
    }

    /// As after power-up and firmware.
    pub fn power_up(&mut self, kind: &dyn Kind, pins: &dyn Pins) {
        self.space = capabilities::space(kind, self.vectors, self.assigned);
        self.msix = Msix::new(self.vectors);
        self.reset(pins);
    }

    /// As after a reset by the driver: MSI-X and configuration space are the bus's, not the device's.
    pub fn reset(&mut self, pins: &dyn Pins) {
        self.common.reset();
        self.isr = 0;
        self.settle(pins);
    }

    /// The regions that are decoded.
    pub fn bars(&self) -> Vec<Bar> {
        self.space.bars()
    }

    /// Reads configuration space.
    pub fn config_read(&mut self, offset: u8, width: u8, pins: &dyn Pins) -> u32 {
        match self.window(offset, width) {
            Some((at, length)) => self.bar_read(at, length, pins) as u32,
            None => self.space.read(offset, width),
        }
    }

    /// Writes configuration space.
    pub fn config_write(&mut self, offset: u8, width: u8, value: u32, pins: &dyn Pins) -> Access {
        if let Some((at, length)) = self.window(offset, width) {
            return self.bar_write(at, length, value.into(), pins);
        }
        self.space.write(offset, width, value);
        self.settle(pins);
        let messages = self.msix.deliver(self.control());
        send(messages, pins);
        Access::Done
    }

    /// The access to the BAR that an access to the window's data means: offset and length.
    fn window(&self, offset: u8, width: u8) -> Option<(u64, u8)> {
        let (at, length) = (self.space.read(WINDOW + 8, 4), self.space.read(WINDOW + 12, 4));
        let inside = offset == WINDOW_DATA && u32::from(width) == length;
        let valid = matches!(length, 1 | 2 | 4)
            && at.is_multiple_of(length)
            && self.space.read(WINDOW + 4, 1) == u32::from(BAR);
        (inside && valid).then_some((at.into(), length as u8))
    }

    fn control(&self) -> u16 {
        self.space.read(MSIX_CONTROL, 2) as u16
    }

    /// Reads the BAR.
    pub fn bar_read(&mut self, offset: u64, width: u8, pins: &dyn Pins) -> u64 {
        let at = offset % PAGE;
        match offset / PAGE {
            page::COMMON => self.common.read(at, width),
            page::ISR if at == 0 => {
                let isr = std::mem::take(&mut self.isr);
                self.settle(pins);
                isr.into()
            }
            page::DEVICE => {
                let bytes = self.config.iter().skip(at as usize).take(usize::from(width.min(8)));
                bytes.rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
            }
            page::MSIX_TABLE => self.msix.read_table(at, width),
            page::MSIX_PENDING => self.msix.read_pending(at, width),
            _ => 0,
        }
    }

    /// Writes the BAR. Device configuration is read-only: no feature that lets a driver write it is offered.
    pub fn bar_write(&mut self, offset: u64, width: u8, value: u64, pins: &dyn Pins) -> Access {
        let at = offset % PAGE;
        match offset / PAGE {
            page::COMMON => return Access::Common(self.common.write(at, width, value)),
            page::NOTIFY => return Access::Notified((at / NOTIFY_STEP) as u16),
            page::MSIX_TABLE => {
                let messages = self.msix.write_table(at, width, value, self.control());
                send(messages, pins);
            }
            _ => {}
        }
        Access::Done
    }

    /// Interrupts for used buffers of queue `index`.
    pub fn interrupt_queue(&mut self, index: usize, pins: &dyn Pins) {
        let vector = self.common.queues.get(index).map_or(NO_VECTOR, |queue| queue.vector);
        self.interrupt(vector, ISR_QUEUE, pins);
    }

    /// Interrupts for a change of configuration or status.
    pub fn interrupt_config(&mut self, pins: &dyn Pins) {
        self.interrupt(self.common.config_vector, ISR_CONFIG, pins);
    }

    fn interrupt(&mut self, vector: u16, isr: u8, pins: &dyn Pins) {
        let control = self.control();
        if control & ENABLE != 0 {
            let messages = self.msix.raise(vector, control);
            send(messages, pins);
        } else {
            self.isr |= isr;
            self.settle(pins);
        }
    }

    fn settle(&mut self, pins: &dyn Pins) {
        let off = self.control() & ENABLE != 0 || self.space.read(4, 2) & INTX_DISABLE != 0;
        pins.line(self.isr != 0 && !off);
    }
}

fn send(messages: Vec<Message>, pins: &dyn Pins) {
    messages.into_iter().for_each(|m| pins.message(m.address, m.data));
}
