//! Sensitive instructions that work on the processor's virtual state in the context, without leaving emitted code:
//! interrupt flag, flags image, time stamp, selectors, control registers.

use std::mem::offset_of;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::super::block::Leave;
use super::super::context::{Context, host};
use super::super::gate::Gate;
use super::super::gate::crossing::FRAME;
use super::super::mode::HOST_FLAGS;
use super::Translator;
use super::branch::{Out, Pending};
use super::operand::{Place, number, selector_offset};
use crate::cpu::eflags;

impl Translator<'_> {
    /// STI. Interrupts wait for one more instruction (SDM vol. 3, §6.8.3), which must be here too. What is pending already
    /// is the interpreter's; what comes later comes by a signal, which leaves at the next boundary, and the next
    /// instruction's start is none.
    pub(super) fn set_interrupts(&mut self, follows: &[Instruction]) -> Option<()> {
        follows.first().filter(|n| n.ip32() == self.next)?;
        self.commit();
        self.e.mov64(8, 1);
        self.e.load_context(true, 1, offset_of!(Context, pending));
        self.e.skip_if_rcx_zero(5);
        let fixup = self.e.jump_later();
        self.pending.push(Pending { fixup, eip: self.eip, kind: Out::Pending(Some(Mnemonic::Sti)) });
        self.e.mov64(1, 8);
        self.e.store_context_immediate(offset_of!(Context, interrupts), eflags::IF);
        self.shadow = true;
        Some(())
    }

    /// An instruction that a gate stands for; the block ends with it.
    pub(super) fn gate(&mut self, insn: &Instruction, gate: Gate) -> Option<()> {
        match gate {
            Gate::Pop(_) => {
                let place = self.stack(0)?;
                self.load(Register::R11D, place);
            }
            Gate::Move(_) if insn.op1_kind() == OpKind::Memory => {
                let place = self.place(insn)?;
                self.load_word(Register::R11D, place);
            }
            Gate::Move(_) => match insn.op1_register() {
                Register::ESP => self.e.lea32_or_mov(11, host::ESP, self.delta),
                r => self.e.mov32(11, number(r)),
            },
            Gate::Interrupt(vector) => self.e.mov_immediate(11, vector.into()),
            Gate::Return => return self.return_from_interrupt(insn),
            Gate::Enter | Gate::Exit => {}
        }
        self.bring_esp(self.delta);
        self.e.mov_immediate(8, self.next);
        let leave = Leave::Gate(self.eip, insn.mnemonic(), gate);
        self.leave_through(leave, self.env.trampolines.gates[gate.index()]);
        Some(())
    }

    /// IRETD. The common code reads the frame once more, and may not fault: so both of its ends are read here. One that
    /// stays at ring 0 is shorter, which only means that a page is found accessed early, as by speculation (SDM vol. 3,
    /// §4.10.2.3).
    fn return_from_interrupt(&mut self, insn: &Instruction) -> Option<()> {
        if self.picks() {
            return None;
        }
        self.commit();
        self.load(Register::R11D, Place::Stack(FRAME as i32 - 4));
        self.load(Register::R8D, Place::Stack(0));
        let leave = Leave::Gate(self.eip, insn.mnemonic(), Gate::Return);
        self.leave_through(leave, self.env.trampolines.gates[Gate::Return.index()]);
        Some(())
    }

    /// Leaves, with EIP at `eip`, if anything may be pending.
    pub(super) fn look_at_pending(&mut self, eip: u32) {
        self.commit();
        self.e.mov64(8, 1);
        self.e.load_context(true, 1, offset_of!(Context, pending));
        self.e.skip_if_rcx_zero(5);
        let fixup = self.e.jump_later();
        self.pending.push(Pending { fixup, eip, kind: Out::Pending(None) });
        self.e.mov64(1, 8);
    }

    /// PUSHFD: the arithmetic flags and DF are the host's, all others are in the context.
    pub(super) fn push_flags(&mut self) -> Option<()> {
        self.e.read_flags(HOST_FLAGS);
        self.e.load_context(false, 10, offset_of!(Context, system_flags));
        self.e.lea32_sum(9, 10);
        self.e.load_context(false, 10, offset_of!(Context, interrupts));
        self.e.lea32_sum(9, 10);
        self.e.mov32(11, 9);
        let place = self.stack(-4)?;
        self.store(place, Register::R11D);
        self.delta = self.delta.wrapping_sub(4);
        Some(())
    }

    /// POPFD at ring 0, if it changes no flag but IF and those that live in host flags; else it is interpreted. Flags are
    /// free to use: whatever happens next overwrites them.
    pub(super) fn pop_flags(&mut self) -> Option<()> {
        let place = self.stack(0)?;
        self.load(Register::R11D, place);
        self.e.and_into(8, 11, !(HOST_FLAGS | eflags::IF));
        self.e.compare_context(8, offset_of!(Context, system_flags));
        // jne
        let fixup = self.e.jump_if(5);
        let kind = Out::Interpret(Mnemonic::Popfd, self.delta);
        self.pending.push(Pending { fixup, eip: self.eip, kind });
        self.e.and_into(8, 11, eflags::IF);
        self.e.store_context(offset_of!(Context, interrupts), 8);
        self.e.and_into(8, 11, HOST_FLAGS);
        self.e.write_flags();
        self.delta = self.delta.wrapping_add(4);
        self.look_at_pending(self.next);
        Some(())
    }

    /// RDTSC and RDTSCP: the host's counter plus the guest's offset.
    pub(super) fn time_stamp(&mut self, insn: &Instruction) {
        let with_aux = insn.mnemonic() == Mnemonic::Rdtscp;
        self.e.read_time_stamp(with_aux, offset_of!(Context, tsc_offset));
        if with_aux {
            self.e.load_context(false, 1, offset_of!(Context, tsc_aux));
        }
    }

    /// MOV from a control register: what Rust code last left there.
    pub(super) fn read_control(&mut self, insn: &Instruction) -> Option<()> {
        let to = insn.op0_register();
        if to == Register::ESP {
            return None;
        }
        let which = insn.op1_register().number();
        self.e.load_context(false, number(to), offset_of!(Context, control) + which * size_of::<u32>());
        Some(())
    }

    pub(super) fn read_selector(&mut self, insn: &Instruction) -> Option<()> {
        let to = insn.op0_register();
        if to == Register::ESP {
            return None;
        }
        let offset = selector_offset(insn.op1_register())?;
        self.e.load_context(false, number(to), offset);
        Some(())
    }
}
