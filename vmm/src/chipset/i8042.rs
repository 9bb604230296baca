//! The i8042 keyboard controller: command byte, self tests, the two PS/2 ports, the output port with A20 and the reset
//! line (IBM PS/2 technical reference, "Keyboard and auxiliary device controller").

use super::ps2::{Kind, Ps2Device};

const STATUS_OBF: u8 = 0x01;
const STATUS_SYSTEM: u8 = 0x04;
const STATUS_COMMAND: u8 = 0x08;
const STATUS_UNLOCKED: u8 = 0x10;
const STATUS_AUX: u8 = 0x20;

const CTR_KBD_INT: u8 = 0x01;
const CTR_AUX_INT: u8 = 0x02;
const CTR_SYSTEM: u8 = 0x04;
const CTR_KBD_OFF: u8 = 0x10;
const CTR_AUX_OFF: u8 = 0x20;

/// What a write asks of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Drive the A20 gate.
    A20(bool),
    /// Pulse the processor's reset line.
    Reset,
}

/// The controller with its devices.
#[derive(Clone, Debug)]
pub struct I8042 {
    control: u8,
    /// The output buffer: a byte, and whether it comes from the auxiliary port.
    output: Option<(u8, bool)>,
    last: u8,
    /// The controller command whose parameter comes next.
    wants: Option<u8>,
    was_command: bool,
    keyboard: Ps2Device,
    mouse: Ps2Device,
}

impl Default for I8042 {
    fn default() -> Self {
        Self {
            control: CTR_KBD_INT | CTR_AUX_INT | CTR_SYSTEM,
            output: None,
            last: 0,
            wants: None,
            was_command: false,
            keyboard: Ps2Device::new(Kind::Keyboard),
            mouse: Ps2Device::new(Kind::Mouse),
        }
    }
}

impl I8042 {
    /// Moves the next device byte into the output buffer, if that is free and the port enabled. The board does this
    /// after the interrupt line was seen low: each byte makes an edge of its own.
    pub fn pump(&mut self) {
        if self.output.is_some() {
            return;
        }
        if self.control & CTR_KBD_OFF == 0 && self.keyboard.ready() {
            self.output = self.keyboard.take().map(|b| (b, false));
        } else if self.control & CTR_AUX_OFF == 0 && self.mouse.ready() {
            self.output = self.mouse.take().map(|b| (b, true));
        }
    }

    /// Levels of IRQ 1 and IRQ 12.
    pub fn irqs(&self) -> (bool, bool) {
        match self.output {
            Some((_, false)) => (self.control & CTR_KBD_INT != 0, false),
            Some((_, true)) => (false, self.control & CTR_AUX_INT != 0),
            None => (false, false),
        }
    }

    /// Reads port 64h.
    pub fn status(&self) -> u8 {
        let full = match self.output {
            Some((_, true)) => STATUS_OBF | STATUS_AUX,
            Some((_, false)) => STATUS_OBF,
            None => 0,
        };
        let command = if self.was_command { STATUS_COMMAND } else { 0 };
        full | STATUS_UNLOCKED | command | if self.control & CTR_SYSTEM != 0 { STATUS_SYSTEM } else { 0 }
    }

    /// Reads port 60h.
    pub fn data(&mut self) -> u8 {
        if let Some((byte, _)) = self.output.take() {
            self.last = byte;
        }
        self.last
    }

    /// Writes port 64h. `a20` is the gate's present state.
    pub fn command(&mut self, value: u8, a20: bool) -> Option<Request> {
        self.was_command = true;
        self.wants = None;
        let mut reply = |byte| self.output = Some((byte, false));
        match value {
            0x20..=0x3f => reply(if value == 0x20 { self.control } else { 0 }),
            0x60 | 0xd1..=0xd4 => self.wants = Some(value),
            0xa7 => self.control |= CTR_AUX_OFF,
            0xa8 => self.control &= !CTR_AUX_OFF,
            0xa9 | 0xab => reply(0),
            0xaa => {
                reply(0x55);
                self.control |= CTR_SYSTEM;
            }
            0xad => self.control |= CTR_KBD_OFF,
            0xae => self.control &= !CTR_KBD_OFF,
            0xc0 => reply(0x80),
            0xd0 => reply(0x01 | (a20 as u8) << 1 | 0xcc),
            0xdd => return Some(Request::A20(false)),
            0xdf => return Some(Request::A20(true)),
            // Pulse output lines: bit 0 low is the reset line.
            0xf0..=0xff if value & 1 == 0 => return Some(Request::Reset),
            _ => {}
        }
        None
    }

    /// Writes port 60h.
    pub fn write_data(&mut self, value: u8) -> Option<Request> {
        self.was_command = false;
        let mut request = None;
        match self.wants.take() {
            Some(0x60) => self.control = value,
            Some(0xd1) if value & 1 == 0 => request = Some(Request::Reset),
            Some(0xd1) => request = Some(Request::A20(value & 2 != 0)),
            Some(0xd2) => self.output = Some((value, false)),
            Some(0xd3) => self.output = Some((value, true)),
            Some(0xd4) => {
                self.control &= !CTR_AUX_OFF;
                self.mouse.send(value);
            }
            _ => {
                self.control &= !CTR_KBD_OFF;
                self.keyboard.send(value);
            }
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_probes_it() {
        let mut c = I8042::default();
        c.command(0xaa, true);
        assert_eq!((c.status() & 1, c.data()), (1, 0x55));
        c.command(0x60, true);
        c.write_data(0x74);
        c.command(0x20, true);
        assert_eq!(c.data(), 0x74);
        c.command(0xd3, true);
        c.write_data(0x5a);
        assert_eq!(c.status() & 0x21, 0x21, "the loop-back of the auxiliary port");
        assert_eq!(c.data(), 0x5a);
        assert_eq!(c.status() & 1, 0);
    }

    /// What the board does around each read: the line is low, then the next byte comes.
    fn next(c: &mut I8042) -> u8 {
        c.pump();
        let byte = c.data();
        assert_eq!(c.irqs(), (false, false));
        byte
    }

    #[test]
    fn keyboard_answers_one_byte_at_a_time() {
        let mut c = I8042::default();
        c.write_data(0xf2);
        c.pump();
        assert_eq!(c.irqs(), (true, false));
        assert_eq!([next(&mut c), next(&mut c), next(&mut c)], [0xfa, 0xab, 0x83]);
        c.command(0xd4, true);
        c.write_data(0xf2);
        c.pump();
        assert_eq!(c.irqs(), (false, true));
        assert_eq!([next(&mut c), next(&mut c)], [0xfa, 0]);
    }

    #[test]
    fn a20_and_reset() {
        let mut c = I8042::default();
        c.command(0xd1, true);
        assert_eq!(c.write_data(0xdd), Some(Request::A20(false)));
        c.command(0xd1, false);
        assert_eq!(c.write_data(0xdf), Some(Request::A20(true)));
        c.command(0xd1, false);
        assert_eq!(c.write_data(0xfe), Some(Request::Reset));
        assert_eq!(c.command(0xfe, true), Some(Request::Reset));
        c.command(0xd0, false);
        assert_eq!(c.data() & 3, 1);
    }
}
