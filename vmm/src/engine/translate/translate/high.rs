//! AH, CH, DH and BH beside r14 or a scratch register: no instruction with a REX prefix can name them.

use iced_x86::{Code, Instruction, Register};

use super::super::emit::Address;
use super::Translator;
use super::operand::number;

impl Translator<'_> {
    /// A MOV between one of them and `memory`, by way of r11. Rotating by RORX leaves flags alone. Other instructions are
    /// rare enough for the interpreter.
    pub(super) fn move_high_byte(&mut self, insn: &Instruction, memory: &Address) -> Option<()> {
        match insn.code() {
            Code::Mov_r8_rm8 => {
                let to = whole(insn.op0_register());
                // movzx r11d, byte [memory]
                self.e.with_memory(&[], &[0x0f, 0xb6], 11, memory);
                self.rotate(to, to, 8);
                // mov to8, r11b
                self.e.bytes(&[0x44, 0x88, 0xd8 | to]);
                self.rotate(to, to, 24);
            }
            Code::Mov_rm8_r8 => {
                self.rotate(11, whole(insn.op1_register()), 8);
                // mov byte [memory], r11b
                self.e.with_memory(&[], &[0x88], 11, memory);
            }
            _ => return None,
        }
        Some(())
    }

    /// `rorx to, from, by`, for 32-bit registers; `from` is one that needs no REX.
    fn rotate(&mut self, to: u8, from: u8, by: u8) {
        let extended = if to >= 8 { 0x63 } else { 0xe3 };
        self.e.bytes(&[0xc4, extended, 0x7b, 0xf0, 0xc0 | (to & 7) << 3 | from, by]);
    }
}

/// Number of the register that holds AH, CH, DH or BH.
fn whole(r: Register) -> u8 {
    number(r.full_register32())
}
