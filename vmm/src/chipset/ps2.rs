//! The two PS/2 devices behind the i8042, as far as a driver's probe goes: each answers every command of its kind, and
//! nobody types or moves.

use std::collections::VecDeque;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An AT keyboard (id AB 83).
    Keyboard,
    /// A three-button mouse (id 00).
    Mouse,
}

/// One device and the bytes it has to send.
#[derive(Clone, Debug)]
pub struct Ps2Device {
    kind: Kind,
    queue: VecDeque<u8>,
    /// The command whose parameter comes next.
    wants: Option<u8>,
    scan_set: u8,
    resolution: u8,
    rate: u8,
}

impl Ps2Device {
    /// A device after power-up.
    pub fn new(kind: Kind) -> Self {
        Self { kind, queue: VecDeque::new(), wants: None, scan_set: 2, resolution: 2, rate: 100 }
    }

    /// The next byte for the controller.
    pub fn take(&mut self) -> Option<u8> {
        self.queue.pop_front()
    }

    /// True if a byte waits.
    pub fn ready(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The controller sends `byte`: an answer to the previous command is dropped, as on the wire.
    pub fn send(&mut self, byte: u8) {
        self.queue.clear();
        match self.wants.take() {
            Some(command) => self.parameter(command, byte),
            None if self.kind == Kind::Keyboard => self.keyboard(byte),
            None => self.mouse(byte),
        }
    }

    fn answer(&mut self, bytes: &[u8]) {
        self.queue.extend(bytes);
    }

    fn parameter(&mut self, command: u8, value: u8) {
        self.answer(&[ACK]);
        match (self.kind, command) {
            (Kind::Keyboard, 0xf0) if value == 0 => self.answer(&[self.scan_set]),
            (Kind::Keyboard, 0xf0) if value <= 3 => self.scan_set = value,
            (Kind::Mouse, 0xe8) => self.resolution = value & 3,
            (Kind::Mouse, 0xf3) => self.rate = value,
            _ => {}
        }
    }

    fn keyboard(&mut self, byte: u8) {
        match byte {
            0xff => {
                *self = Self::new(self.kind);
                self.answer(&[ACK, 0xaa]);
            }
            0xf2 => self.answer(&[ACK, 0xab, 0x83]),
            0xee => self.answer(&[0xee]),
            // LEDs, scan-code set, typematic rate take a parameter.
            0xed | 0xf0 | 0xf3 => {
                self.wants = Some(byte);
                self.answer(&[ACK]);
            }
            0xf4..=0xf6 => self.answer(&[ACK]),
            _ => self.answer(&[RESEND]),
        }
    }

    fn mouse(&mut self, byte: u8) {
        match byte {
            0xff => {
                *self = Self::new(self.kind);
                self.answer(&[ACK, 0xaa, 0x00]);
            }
            0xf2 => self.answer(&[ACK, 0x00]),
            0xe9 => self.answer(&[ACK, 0, self.resolution, self.rate]),
            0xeb => self.answer(&[ACK, 0x08, 0, 0]),
            // Resolution and sample rate take a parameter.
            0xe8 | 0xf3 => {
                self.wants = Some(byte);
                self.answer(&[ACK]);
            }
            0xe6 | 0xe7 | 0xea | 0xec | 0xee | 0xf0 | 0xf4..=0xf6 => self.answer(&[ACK]),
            _ => self.answer(&[RESEND]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(d: &mut Ps2Device, byte: u8) -> Vec<u8> {
        d.send(byte);
        std::iter::from_fn(|| d.take()).collect()
    }

    #[test]
    fn probes_are_answered() {
        let mut k = Ps2Device::new(Kind::Keyboard);
        assert_eq!(say(&mut k, 0xff), [ACK, 0xaa]);
        assert_eq!(say(&mut k, 0xf2), [ACK, 0xab, 0x83]);
        assert_eq!((say(&mut k, 0xf0), say(&mut k, 0)), (vec![ACK], vec![ACK, 2]));
        assert_eq!(say(&mut k, 0x00), [RESEND]);
        let mut m = Ps2Device::new(Kind::Mouse);
        assert_eq!(say(&mut m, 0xff), [ACK, 0xaa, 0]);
        assert_eq!((say(&mut m, 0xf3), say(&mut m, 200)), (vec![ACK], vec![ACK]));
        assert_eq!(say(&mut m, 0xe9), [ACK, 0, 2, 200]);
    }
}
