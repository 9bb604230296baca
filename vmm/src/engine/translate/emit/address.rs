//! Instructions with a memory operand of any shape.

use super::Emitter;

/// Prefixes and opcode bytes of an instruction at most, but for those that say how its address is made.
pub const PREFIXES: usize = 3;
const OPCODE: usize = 3;

/// A memory operand's address, by the hardware numbers of its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// GS and 67h prefixes.
    pub window: bool,
    /// 67h alone: LEA of 32-bit registers.
    pub narrow: bool,
    /// Base register.
    pub base: Option<u8>,
    /// Index register; never RSP.
    pub index: Option<u8>,
    /// log2 of what the index is multiplied with.
    pub scale: u8,
    /// Displacement.
    pub displacement: u32,
}

impl Address {
    /// The same address for an instruction that does not access it.
    pub fn without_window(self) -> Self {
        Self { window: false, narrow: true, ..self }
    }

    /// True if it needs a REX prefix.
    pub fn is_extended(&self) -> bool {
        self.rex() != 0
    }

    fn rex(&self) -> u8 {
        self.index.unwrap_or(0) >> 3 << 1 | self.base.unwrap_or(0) >> 3
    }
}

/// Bytes of one instruction while it is put together.
struct Short<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Default for Short<N> {
    fn default() -> Self {
        Self { bytes: [0; N], length: 0 }
    }
}

impl<const N: usize> Short<N> {
    #[inline]
    fn extend(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.bytes[self.length] = byte;
            self.length += 1;
        }
    }
}

impl Emitter {
    /// An instruction with `prefixes`, `opcode`, and the operands `reg` and `memory`; its immediate is still to come.
    pub fn with_memory(&mut self, prefixes: &[u8], opcode: &[u8], reg: u8, memory: &Address) {
        // Two prefixes of the address, REX, ModRM, SIB and displacement.
        let mut code = Short::<{ 3 + 2 + 4 + PREFIXES + OPCODE }>::default();
        match (memory.window, memory.narrow) {
            (true, _) => code.extend(&[0x65, 0x67]),
            (false, true) => code.extend(&[0x67]),
            (false, false) => {}
        }
        code.extend(prefixes);
        let rex = reg >> 3 << 2 | memory.rex();
        if rex != 0 {
            code.extend(&[0x40 | rex]);
        }
        code.extend(opcode);
        let reg = (reg & 7) << 3;
        let sib = memory.scale << 6 | (memory.index.unwrap_or(4) & 7) << 3;
        let displacement = memory.displacement as i32;
        match memory.base.map(|base| base & 7) {
            None => {
                // An absolute address: without SIB it would be relative to RIP.
                code.extend(&[reg | 4, sib | 5]);
                code.extend(&displacement.to_le_bytes());
            }
            Some(base) => {
                let (mode, length) = match i8::try_from(displacement) {
                    Ok(0) if base != 5 => (0, 0),
                    Ok(_) => (0x40, 1),
                    Err(_) => (0x80, 4),
                };
                match memory.index.is_some() || base == 4 {
                    true => code.extend(&[mode | reg | 4, sib | base]),
                    false => code.extend(&[mode | reg | base]),
                }
                code.extend(&displacement.to_le_bytes()[..length]);
            }
        }
        self.bytes(&code.bytes[..code.length]);
    }
}
