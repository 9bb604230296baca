//! Which form of address serves a memory operand: by the GS and 67h prefixes, or by the register that holds the window's
//! base.
//!
//! 67h is free, GS is not: on processors of this decade it adds two cycles to a load and halves the rate of stores. With
//! the window's base as base register both cost what they do natively, but the guest's own base is an index then, and
//! loads with an index are not forwarded early from a store just before (five cycles for none). So what is stored through
//! a pointer, and what is read through one that the trace stores through, keeps its prefixes; all that only reads, and all
//! that has an index anyway, does without.
//!
//! The sum is not cut to 32 bits: where it leaves the window it faults in the gaps, and the interpreter does that one
//! instruction. Where this happens it is translated with the prefixes, see
//! [`super::Environment::wrapping`].

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::Translator;
use super::copy::names_high_byte;
use super::operand::Place;

/// Displacements below this are addresses of the upper half, and no offsets from a pointer.
const LEAST: i32 = -0x1_0000;

/// What each register points at, as far as telling one pointer from the next goes.
#[derive(Default)]
pub(super) struct Pointers {
    /// How many pointers each register has held.
    held: [u8; 8],
    /// Which of them are stored through.
    stored: [u128; 8],
}

impl Pointers {
    /// What is done with pointers in a trace of at most 64 instructions.
    pub(super) fn of(instructions: &[Instruction]) -> Self {
        let mut pointers = Self::default();
        for insn in instructions {
            if let Some(base) = guest(insn.memory_base())
                && insn.memory_index() == Register::None
                && stores(insn)
            {
                pointers.stored[base] |= pointers.bit(base);
            }
            pointers.pass(insn);
        }
        pointers.held = [0; 8];
        pointers
    }

    /// Goes on behind `insn`.
    pub(super) fn pass(&mut self, insn: &Instruction) {
        use Mnemonic::*;
        let moved = matches!(insn.mnemonic(), Add | Sub | Inc | Dec)
            || insn.mnemonic() == Lea
                && insn.memory_base() == insn.op0_register()
                && insn.memory_index() == Register::None;
        let kept = moved || matches!(insn.mnemonic(), Cmp | Test | Push | Call | Jmp | Bt);
        if insn.op_count() > 0
            && insn.op0_kind() == OpKind::Register
            && !kept
            && let Some(to) = guest(insn.op0_register())
        {
            self.held[to] = self.held[to].saturating_add(1);
        }
    }

    fn bit(&self, register: usize) -> u128 {
        1 << self.held[register].min(127)
    }

    /// The trace stores through what `base` holds now.
    fn stored_through(&self, base: usize) -> bool {
        self.stored[base] & self.bit(base) != 0
    }
}

/// Number of a guest register of 32 bits.
fn guest(r: Register) -> Option<usize> {
    r.is_gpr32().then(|| r.number()).filter(|n| *n < 8)
}

/// True if the first operand is memory and written.
fn stores(insn: &Instruction) -> bool {
    use Mnemonic::*;
    insn.op_count() > 0
        && insn.op0_kind() == OpKind::Memory
        && !matches!(insn.mnemonic(), Cmp | Test | Push | Call | Jmp | Bt)
}

impl Translator<'_> {
    /// `place`, without prefixes where that is as good or better for `insn`.
    pub(super) fn unprefixed(&self, insn: &Instruction, place: Place) -> Place {
        let Place::Window { base, index, scale, displacement } = place else { return place };
        let displacement = displacement as i32;
        let wraps = displacement < LEAST || self.env.wrapping.contains(&self.frame_place());
        if wraps || names_high_byte(insn) {
            return place;
        }
        match (base, index) {
            (Register::None, Register::None) if displacement >= 0 => Place::Near { index, scale: 1, displacement },
            (Register::None, index) if index.is_gpr32() => Place::Near { index, scale, displacement },
            (base, Register::None) if base.is_gpr32() => {
                let local = base == Register::EBP && displacement < 0;
                let stored = guest(base).is_some_and(|base| self.pointers.stored_through(base));
                match local || stored {
                    true => place,
                    false => Place::Near { index: base, scale: 1, displacement },
                }
            }
            _ => place,
        }
    }
}
