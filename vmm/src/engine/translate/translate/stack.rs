//! ESP, and the instructions that move it: updates are folded, see [`super`].

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::super::block::Point;
use super::super::context::{NEAR, host};
use super::Translator;
use super::operand::{Place, number, selector_offset};

impl Translator<'_> {
    /// Brings r14 up to date.
    pub(super) fn commit(&mut self) {
        if self.delta != 0 {
            self.bring_esp(self.delta);
            self.mark(self.eip, Point::Inside);
        }
    }

    /// Moves r14 on by `by`, to where it is up to date.
    pub(super) fn bring_esp(&mut self, by: i32) {
        self.delta = 0;
        if self.anchored && (-NEAR..=NEAR).contains(&by) {
            if by != 0 {
                self.e.move_esp(by);
                self.anchored = false;
            }
        } else if by != 0 {
            self.e.move_esp_anew(by);
            self.anchored = true;
        }
    }

    /// The instruction is about to write ESP: r14 is to hold nothing else, unless what comes writes all of it anyway. True
    /// if r14 is ESP itself now, and no address.
    pub(super) fn before_writing_esp(&mut self, insn: &Instruction) -> bool {
        use Mnemonic::*;
        let whole = matches!(insn.mnemonic(), Mov | Lea | Add | Sub | And) && insn.op0_register() == Register::ESP;
        if !whole {
            self.e.mov32(host::ESP, host::ESP);
        }
        !whole
    }

    /// ESP was written to r14d: it is made an address again.
    pub(super) fn after_writing_esp(&mut self) {
        self.e.make_esp(host::ESP, 0);
        self.anchored = true;
    }

    /// `lea esp, [esp + n]`, `add esp, n`, `mov r32, esp` and the like, without committing.
    pub(super) fn fold_esp(&mut self, insn: &Instruction) -> bool {
        match insn.code() {
            Code::Lea_r32_m
                if insn.op0_register() == Register::ESP
                    && insn.memory_base() == Register::ESP
                    && insn.memory_index() == Register::None =>
            {
                // Nothing says that memory is there: r14 must not be moved by it alone.
                self.delta = self.delta.wrapping_add(insn.memory_displacement32() as i32);
                self.e.move_esp_anew(self.delta);
                (self.delta, self.anchored) = (0, true);
                true
            }
            Code::Add_rm32_imm8 | Code::Add_rm32_imm32 | Code::Sub_rm32_imm8 | Code::Sub_rm32_imm32
                if insn.op0_kind() == OpKind::Register && insn.op0_register() == Register::ESP && self.anchored =>
            {
                // The flags are made apart, so that the next access does not wait for them.
                let (add, by) = (insn.mnemonic() == Mnemonic::Add, insn.immediate(1) as u32);
                self.e.lea32_or_mov(8, host::ESP, self.delta);
                self.e.add_immediate(8, add, by);
                let by = if add { by } else { by.wrapping_neg() };
                self.delta = self.delta.wrapping_add(by as i32);
                true
            }
            Code::Mov_r32_rm32 | Code::Mov_rm32_r32
                if insn.op1_kind() == OpKind::Register
                    && insn.op0_kind() == OpKind::Register
                    && insn.op1_register() == Register::ESP
                    && insn.op0_register() != Register::ESP =>
            {
                self.e.lea32_or_mov(number(insn.op0_register()), host::ESP, self.delta);
                true
            }
            _ => false,
        }
    }

    pub(super) fn push(&mut self, insn: &Instruction) -> Option<()> {
        match insn.op0_kind() {
            OpKind::Register if insn.op0_register().is_segment_register() => {
                let offset = selector_offset(insn.op0_register())?;
                self.e.load_context(false, 11, offset);
                let place = self.stack(-4)?;
                // The upper half of the slot stays as it was, as on processors since the P6 (SDM vol. 2, PUSH).
                self.store(place, Register::R11W);
            }
            OpKind::Register if insn.op0_register() == Register::ESP => {
                self.e.lea32_or_mov(11, host::ESP, self.delta);
                let place = self.stack(-4)?;
                self.store(place, Register::R11D);
            }
            OpKind::Register => {
                let place = self.stack(-4)?;
                self.store(place, insn.op0_register());
            }
            OpKind::Memory => {
                let from = self.place(insn)?;
                self.load(Register::R11D, from);
                let place = self.stack(-4)?;
                self.store(place, Register::R11D);
            }
            _ => {
                let place = self.stack(-4)?;
                self.store_immediate(place, insn.immediate(0) as u32);
            }
        }
        self.delta = self.delta.wrapping_sub(4);
        Some(())
    }

    pub(super) fn pop(&mut self, insn: &Instruction) -> Option<()> {
        if insn.op0_kind() == OpKind::Register {
            let place = self.stack(0)?;
            self.load(insn.op0_register(), place);
            self.delta = self.delta.wrapping_add(4);
            return Some(());
        }
        let from = self.stack(0)?;
        self.load(Register::R11D, from);
        // The address is computed with the incremented ESP (SDM vol. 2, POP).
        self.delta = self.delta.wrapping_add(4);
        let to = self.place(insn)?;
        self.store(to, Register::R11D);
        Some(())
    }

    pub(super) fn leave(&mut self) -> Option<()> {
        let place = Place::Window { base: Register::EBP, index: Register::None, scale: 1, displacement: 0 };
        let place = self.finish_place(place)?;
        self.load(Register::R11D, place);
        self.e.make_esp(5, 4);
        self.e.mov32(5, 11);
        (self.delta, self.anchored) = (0, true);
        Some(())
    }
}

/// True if an instruction that names ESP or SP may write it.
pub(super) fn writes_esp(insn: &Instruction) -> bool {
    let named = |i| insn.op_kind(i) == OpKind::Register && matches!(insn.op_register(i), Register::ESP | Register::SP);
    let second = matches!(insn.mnemonic(), Mnemonic::Xchg | Mnemonic::Xadd);
    let reads = matches!(insn.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt);
    !reads && (named(0) || (second && named(1)) || insn.mnemonic() == Mnemonic::Mulx && named(1))
}

/// True if ESP or SP is an operand of its own, rather than the base of an address.
pub(super) fn names_esp(insn: &Instruction) -> bool {
    (0..insn.op_count())
        .any(|i| insn.op_kind(i) == OpKind::Register && matches!(insn.op_register(i), Register::ESP | Register::SP))
}
