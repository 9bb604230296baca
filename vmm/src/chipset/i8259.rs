//! Two i8259A interrupt controllers in cascade, with the edge/level control registers of the PIIX (Intel 8259A data
//! sheet; 82371AB data sheet, §"Interrupt controller").
//!
//! A request latches in IRR on a rising edge, also while masked; a line that ELCR makes level-sensitive requests for as
//! long as it is high. MCS-80 mode and the buffered modes do not exist on a PC and are ignored.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Init {
    #[default]
    Ready,
    Icw2,
    Icw3,
    Icw4,
}

/// The line of the master that the slave's INT output drives.
const CASCADE: u8 = 2;

/// One i8259A.
#[derive(Clone, Debug, Default)]
struct I8259 {
    irr: u8,
    isr: u8,
    imr: u8,
    lines: u8,
    elcr: u8,
    base: u8,
    /// The line of highest priority.
    top: u8,
    init: Init,
    wants_icw4: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_aeoi: bool,
    special_mask: bool,
    fully_nested: bool,
    read_isr: bool,
    poll: bool,
    is_master: bool,
}

impl I8259 {
    fn set_line(&mut self, line: u8, level: bool) {
        let bit = 1 << (line & 7);
        if level && self.lines & bit == 0 {
            self.irr |= bit;
        }
        if !level && self.elcr & bit != 0 {
            self.irr &= !bit;
        }
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
    }

    fn requests(&self) -> u8 {
        self.irr | (self.lines & self.elcr)
    }

    /// Distance of the highest-priority bit of `bits` from the top: 8 when there is none.
    fn rank(&self, bits: u8) -> u8 {
        bits.rotate_right(u32::from(self.top)).trailing_zeros() as u8
    }

    /// The line that INT is asserted for.
    fn pending(&self) -> Option<u8> {
        let rank = self.rank(self.requests() & !self.imr);
        let mut blocking = self.isr;
        if self.special_mask {
            blocking &= !self.imr;
        }
        if self.fully_nested && self.is_master {
            blocking &= !(1 << CASCADE);
        }
        (rank < self.rank(blocking)).then_some((rank + self.top) & 7)
    }

    fn accept(&mut self, line: u8) {
        let bit = 1 << line;
        if self.auto_eoi {
            if self.rotate_on_aeoi {
                self.top = (line + 1) & 7;
            }
        } else {
            self.isr |= bit;
        }
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
    }

    fn write_command(&mut self, value: u8) {
        match value {
            v if v & 0x10 != 0 => self.icw1(v),
            v if v & 0x08 != 0 => self.ocw3(v),
            v => self.ocw2(v),
        }
    }

    fn icw1(&mut self, value: u8) {
        *self =
            Self { lines: self.lines, elcr: self.elcr, base: self.base, is_master: self.is_master, ..Self::default() };
        self.init = Init::Icw2;
        self.wants_icw4 = value & 1 != 0;
        self.single = value & 2 != 0;
    }

    fn ocw2(&mut self, value: u8) {
        let line = value & 7;
        match value >> 5 {
            0 => self.rotate_on_aeoi = false,
            4 => self.rotate_on_aeoi = true,
            command @ (1 | 5) => {
                let rank = self.rank(self.isr);
                if rank < 8 {
                    let done = (rank + self.top) & 7;
                    self.isr &= !(1 << done);
                    if command == 5 {
                        self.top = (done + 1) & 7;
                    }
                }
            }
            3 => self.isr &= !(1 << line),
            7 => {
                self.isr &= !(1 << line);
                self.top = (line + 1) & 7;
            }
            6 => self.top = (line + 1) & 7,
            _ => {}
        }
    }

    fn ocw3(&mut self, value: u8) {
        self.poll = value & 4 != 0;
        if value & 2 != 0 {
            self.read_isr = value & 1 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn write_data(&mut self, value: u8) {
        self.init = match self.init {
            Init::Ready => {
                self.imr = value;
                Init::Ready
            }
            Init::Icw2 => {
                self.base = value & 0xf8;
                if !self.single {
                    Init::Icw3
                } else if self.wants_icw4 {
                    Init::Icw4
                } else {
                    Init::Ready
                }
            }
            Init::Icw3 if self.wants_icw4 => Init::Icw4,
            Init::Icw3 => Init::Ready,
            Init::Icw4 => {
                self.auto_eoi = value & 2 != 0;
                self.fully_nested = value & 0x10 != 0;
                Init::Ready
            }
        };
    }

    /// A read of the command port or, in poll mode, of either: the poll acknowledges like INTA.
    fn read(&mut self, data: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.pending() {
                Some(line) => {
                    self.accept(line);
                    0x80 | line
                }
                None => 0,
            };
        }
        match (data, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.requests(),
        }
    }
}

/// The pair.
#[derive(Clone, Debug)]
pub struct I8259Pair {
    master: I8259,
    slave: I8259,
}

impl Default for I8259Pair {
    fn default() -> Self {
        Self { master: I8259 { is_master: true, ..I8259::default() }, slave: I8259::default() }
    }
}

impl I8259Pair {
    /// Drives IRQ `line`, 0 to 15; others, and the cascade line 2, are ignored.
    pub fn set_line(&mut self, line: u8, level: bool) {
        match line {
            CASCADE => {}
            0..=7 => self.master.set_line(line, level),
            8..=15 => self.slave.set_line(line - 8, level),
            _ => {}
        }
        self.cascade();
    }

    /// Level of the master's INT output.
    pub fn int(&self) -> bool {
        self.master.pending().is_some()
    }

    /// True if a rising edge of `line` could assert INT: neither it nor the cascade is masked.
    pub fn is_open(&self, line: u8) -> bool {
        match line {
            0..=7 => self.master.imr & (1 << line) == 0,
            8..=15 => self.slave.imr & (1 << (line - 8)) == 0 && self.master.imr & (1 << CASCADE) == 0,
            _ => false,
        }
    }

    /// True while a request of `line` is not acknowledged: another edge would be lost in it.
    pub fn is_requested(&self, line: u8) -> bool {
        match line {
            0..=7 => self.master.irr & (1 << line) != 0,
            8..=15 => self.slave.irr & (1 << (line - 8)) != 0,
            _ => false,
        }
    }

    /// Two INTA cycles: the vector. A request that went away meanwhile reads as line 7 of its controller, with no
    /// in-service bit (8259A data sheet, "Interrupt sequence").
    pub fn acknowledge(&mut self) -> u8 {
        let Some(line) = self.master.pending() else { return self.master.base | 7 };
        self.master.accept(line);
        if line != CASCADE {
            return self.master.base | line;
        }
        let line = self.slave.pending();
        if let Some(line) = line {
            self.slave.accept(line);
        }
        // INT falls during INTA, so that what is still pending makes a new edge.
        self.master.set_line(CASCADE, false);
        self.cascade();
        self.slave.base | line.unwrap_or(7)
    }

    /// A read of port 20h, 21h, A0h or A1h.
    pub fn read(&mut self, slave: bool, data: bool) -> u8 {
        let value = if slave { self.slave.read(data) } else { self.master.read(data) };
        self.cascade();
        value
    }

    /// A write of port 20h, 21h, A0h or A1h.
    pub fn write(&mut self, slave: bool, data: bool, value: u8) {
        let chip = if slave { &mut self.slave } else { &mut self.master };
        if data {
            chip.write_data(value)
        } else {
            chip.write_command(value)
        }
        self.cascade();
    }

    /// ELCR1 or ELCR2.
    pub fn read_elcr(&self, slave: bool) -> u8 {
        if slave { self.slave.elcr } else { self.master.elcr }
    }

    /// Writes ELCR1 or ELCR2; IRQ 0, 1, 2, 8 and 13 are always edge.
    pub fn write_elcr(&mut self, slave: bool, value: u8) {
        let (chip, allowed) = if slave { (&mut self.slave, 0xde) } else { (&mut self.master, 0xf8) };
        chip.elcr = value & allowed;
        self.cascade();
    }

    fn cascade(&mut self) {
        let level = self.slave.pending().is_some();
        self.master.set_line(CASCADE, level);
    }
}

#[cfg(test)]
mod tests;
