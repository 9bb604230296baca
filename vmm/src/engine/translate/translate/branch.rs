//! Control transfers: branches inside and out of the block, calls and returns over the return stack, and the stubs by
//! which a block is left.

use std::mem::offset_of;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::super::block::{Leave, Point};
use super::super::context::{Context, host};
use super::super::emit::{Fixup, Transfer};
use super::Translator;
use super::operand::number;

/// A branch out that waits for its stub.
pub(super) struct Pending {
    pub(super) fixup: Fixup,
    pub(super) eip: u32,
    pub(super) kind: Out,
}

/// What a stub is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Out {
    /// A branch to another block.
    Branch,
    /// Something may be pending. RCX is in r8. The instruction at the EIP is to be interpreted then, if it is named.
    Pending(Option<Mnemonic>),
    /// The instruction at the EIP is left to the interpreter after all, with ESP this much ahead of r14d.
    Interpret(Mnemonic, i32),
}

impl Translator<'_> {
    pub(super) fn jump_if(&mut self, insn: &Instruction) -> Option<()> {
        self.commit();
        let cc = condition(insn);
        let fixup = self.e.jump_if(cc);
        self.pending.push(Pending { fixup, eip: insn.near_branch32(), kind: Out::Branch });
        Some(())
    }

    pub(super) fn count_jump(&mut self, insn: &Instruction) -> Option<()> {
        self.commit();
        let target = insn.near_branch32();
        if insn.mnemonic() == Mnemonic::Loop {
            self.e.lea32(1, 1, -1);
            // Falls through when ECX reached zero: jecxz over the jump.
            self.e.bytes(&[0x67]);
            self.e.skip_if_rcx_zero(5);
        } else {
            self.e.bytes(&[0x67]);
            self.e.skip_if_rcx_zero(2);
            self.e.bytes(&[0xeb, 5]);
        }
        let fixup = self.e.jump_later();
        self.pending.push(Pending { fixup, eip: target, kind: Out::Branch });
        Some(())
    }

    pub(super) fn call(&mut self, insn: &Instruction) -> Option<()> {
        let eip = insn.near_branch32();
        self.push_return_address()?;
        let fixup = self.e.call_later();
        self.pending.push(Pending { fixup, eip, kind: Out::Branch });
        self.land();
        Some(())
    }

    pub(super) fn call_indirect(&mut self, insn: &Instruction) -> Option<()> {
        let target = self.branch_target(insn)?;
        self.push_return_address()?;
        self.finish_indirect(Transfer::Call, target);
        self.land();
        Some(())
    }

    /// Pushes the guest's return address and commits ESP. The host call that follows faults when the return stack is
    /// full: state is as before the guest's call then.
    pub(super) fn push_return_address(&mut self) -> Option<()> {
        let place = self.stack(-4)?;
        self.store_immediate(place, self.next);
        self.bring_esp(self.delta.wrapping_sub(4));
        self.delta = 4;
        self.mark(self.eip, Point::Inside);
        self.delta = 0;
        Some(())
    }

    /// Where a guest's return comes to by way of the return stack, with the EIP it returns to in r8d.
    pub(super) fn land(&mut self) {
        self.expect(self.next, self.env.trampolines.branch);
        self.anchored = false;
    }

    /// Goes on only if r8d is `eip`. What is not seldom come to for something else goes to the branch at `elsewhere` then.
    /// The supervisor's code is not left to the tripwire: it switches stacks, and then every return is to somewhere else.
    pub(super) fn expect(&mut self, eip: u32, elsewhere: u64) {
        match self.env.mode.user() && !self.env.varied.contains(&self.frame_place()) {
            true => self.e.expect_eip_or_fault(eip),
            false => self.e.expect_eip(eip, elsewhere),
        }
    }

    pub(super) fn jump_indirect(&mut self, insn: &Instruction) -> Option<()> {
        let target = self.branch_target(insn)?;
        self.bring_esp(self.delta);
        self.finish_indirect(Transfer::Jump, target);
        Some(())
    }

    pub(super) fn return_near(&mut self, insn: &Instruction) -> Option<()> {
        let place = self.stack(0)?;
        self.load(Register::R8D, place);
        let extra = if insn.op_count() == 1 { insn.immediate16() as i32 } else { 0 };
        self.bring_esp(self.delta.wrapping_add(4 + extra));
        self.e.bytes(&[0xc3]);
        Some(())
    }

    /// The register that the target of an indirect branch is in now: r8d, or r11d where the return address is still to
    /// be stored by way of r8d.
    fn branch_target(&mut self, insn: &Instruction) -> Option<Register> {
        let to = if self.picks() { Register::R11D } else { Register::R8D };
        if insn.op0_kind() == OpKind::Memory {
            let place = self.place(insn)?;
            self.load(to, place);
            return Some(to);
        }
        match insn.op0_register() {
            Register::ESP => self.e.lea32_or_mov(number(to), host::ESP, self.delta),
            r => self.e.mov32(number(to), number(r)),
        }
        Some(to)
    }

    fn finish_indirect(&mut self, transfer: Transfer, target: Register) {
        if target != Register::R8D {
            self.e.mov32(8, number(target));
        }
        let at = self.e.indirect(transfer);
        self.exits.push(Leave::Indirect { at, transfer });
    }

    /// Ends the block with a branch to a known EIP.
    pub(super) fn leave_direct(&mut self, eip: u32) {
        self.commit();
        let fixup = self.e.jump_later();
        self.pending.push(Pending { fixup, eip, kind: Out::Branch });
    }

    /// True if a branch to `eip` may be linked for good: the page cannot come to mean something else behind the link.
    /// Others go by the table until [`super::super::joints`] links them for a while.
    pub(super) fn linkable(&self, eip: u32) -> bool {
        self.env.fixed || (eip ^ self.page) & !0xfff == 0
    }

    pub(super) fn leave_to_interpret(&mut self, eip: u32, mnemonic: Mnemonic) {
        self.bring_esp(self.delta);
        let leave = match self.env.mode.user() && self.env.faulting.contains(&eip) {
            true => Leave::Faulting(eip, mnemonic),
            false => Leave::Interpret(eip, mnemonic),
        };
        self.leave_through(leave, self.env.trampolines.exit);
    }

    /// Leaves by a new exit site and the common code at `by`.
    pub(super) fn leave_through(&mut self, leave: Leave, by: u64) {
        let site = self.env.first_site + self.exits.len() as u32;
        self.exits.push(leave);
        self.e.store_context_immediate(offset_of!(Context, site), site);
        self.e.jump(by);
    }

    /// Emits the stub of each branch out that is not linked yet.
    pub(super) fn stubs(&mut self) {
        for p in std::mem::take(&mut self.pending) {
            self.e.land(p.fixup);
            let stub = self.e.origin + self.e.position() as u64;
            if p.kind == Out::Branch && !self.linkable(p.eip) {
                self.exits.push(Leave::Direct { eip: p.eip, branch: self.e.address_of(p.fixup), stub });
                self.e.by_table(p.eip);
                continue;
            }
            let site = self.env.first_site + self.exits.len() as u32;
            self.exits.push(match p.kind {
                Out::Branch => Leave::Direct { eip: p.eip, branch: self.e.address_of(p.fixup), stub },
                Out::Pending(instruction) => {
                    self.e.mov64(1, 8);
                    instruction.map_or(Leave::Pending(p.eip), |m| Leave::Interpret(p.eip, m))
                }
                Out::Interpret(mnemonic, delta) => {
                    self.e.move_esp_anew(delta);
                    Leave::Interpret(p.eip, mnemonic)
                }
            });
            self.e.store_context_immediate(offset_of!(Context, site), site);
            self.e.jump(self.env.trampolines.exit);
        }
    }
}

/// Condition code of a Jcc: the low four bits of its opcode.
pub(super) fn condition(insn: &Instruction) -> u8 {
    // iced numbers the conditions from `o` = 1 in opcode order.
    (insn.condition_code() as u8).wrapping_sub(1) & 15
}
