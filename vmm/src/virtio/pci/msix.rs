//! MSI-X: the vector table and the pending bits (PCI 3.0, §6.8.2). Plain data; whether the function uses it at all is
//! in its configuration space, whose bits the caller passes in.

const ENTRY: usize = 16;
/// Vector control: the vector is masked.
const MASKED: u32 = 1;

/// MSI-X message control: the function's vectors are all masked.
pub const FUNCTION_MASK: u16 = 1 << 14;
/// MSI-X message control: MSI-X is on, INTx is off.
pub const ENABLE: u16 = 1 << 15;

/// An interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it is written.
    pub address: u64,
    /// What is.
    pub data: u32,
}

/// Table and pending bits.
#[derive(Debug)]
pub struct Msix {
    table: Vec<u8>,
    pending: u64,
}

impl Msix {
    /// A table of `vectors` (at most 64) masked vectors.
    pub fn new(vectors: u16) -> Self {
        let mut table = vec![0; ENTRY * usize::from(vectors.min(64))];
        table.chunks_mut(ENTRY).for_each(|entry| entry[12] = MASKED as u8);
        Self { table, pending: 0 }
    }

    fn dword(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        match self.table.get(at..at + 4) {
            Some(slice) => bytes.copy_from_slice(slice),
            None => return 0,
        }
        u32::from_le_bytes(bytes)
    }

    /// Reads the table.
    pub fn read_table(&self, offset: u64, width: u8) -> u64 {
        let bytes = self.table.iter().skip(offset as usize).take(usize::from(width.min(8)));
        bytes.rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// Writes the table, in aligned doublewords. What became deliverable is for the caller to send.
    pub fn write_table(&mut self, offset: u64, width: u8, value: u64, control: u16) -> Vec<Message> {
        if matches!(width, 4 | 8) && offset.is_multiple_of(4) {
            let bytes = value.to_le_bytes();
            let slots = self.table.iter_mut().skip(offset as usize);
            slots.zip(&bytes[..usize::from(width)]).for_each(|(slot, byte)| *slot = *byte);
        }
        self.deliver(control)
    }

    /// Reads the pending bits.
    pub fn read_pending(&self, offset: u64, width: u8) -> u64 {
        let ones = u64::MAX >> (64 - 8 * u32::from(width.clamp(1, 8)));
        self.pending.checked_shr(8 * offset.min(8) as u32).unwrap_or(0) & ones
    }

    /// Raises `vector`: a message if it can be sent now, else a pending bit.
    pub fn raise(&mut self, vector: u16, control: u16) -> Vec<Message> {
        if usize::from(vector) < self.table.len() / ENTRY {
            self.pending |= 1 << vector;
        }
        self.deliver(control)
    }

    /// Takes the pending messages that nothing masks. To be called when a mask may have been lifted.
    pub fn deliver(&mut self, control: u16) -> Vec<Message> {
        if self.pending == 0 || control & (ENABLE | FUNCTION_MASK) != ENABLE {
            return Vec::new();
        }
        let mut messages = Vec::new();
        for vector in 0..self.table.len() / ENTRY {
            let at = vector * ENTRY;
            if self.pending & 1 << vector != 0 && self.dword(at + 12) & MASKED == 0 {
                self.pending &= !(1 << vector);
                let address = u64::from(self.dword(at)) | u64::from(self.dword(at + 4)) << 32;
                messages.push(Message { address, data: self.dword(at + 8) });
            }
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_vector_is_pending_until_it_is_not() {
        let mut m = Msix::new(2);
        assert_eq!(m.read_table(28, 4), 1, "masked at power-up");
        m.write_table(16, 8, 0xfee0_1000, ENABLE);
        m.write_table(24, 4, 0x41, ENABLE);
        assert_eq!(m.raise(1, ENABLE), []);
        assert_eq!((m.read_pending(0, 8), m.read_pending(0, 1), m.read_pending(8, 4)), (2, 2, 0));
        assert_eq!(m.write_table(28, 4, 0, ENABLE | FUNCTION_MASK), []);
        assert_eq!(m.deliver(0), [], "MSI-X is off");
        assert_eq!(m.deliver(ENABLE), [Message { address: 0xfee0_1000, data: 0x41 }]);
        assert_eq!((m.deliver(ENABLE), m.read_pending(0, 8)), (vec![], 0), "once");
        assert_eq!(m.raise(1, ENABLE).len(), 1);
        for vector in [2, 63, 64, 0xffff] {
            assert_eq!(m.raise(vector, ENABLE), []);
        }
        m.write_table(!3, 8, u64::MAX, ENABLE);
        assert_eq!(m.read_table(u64::MAX, 8), 0);
    }
}
