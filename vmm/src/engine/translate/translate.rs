//! Stage 3: a trace becomes host code, instruction by instruction.
//!
//! Two promises hold at every point. Until the last host instruction of a guest instruction, guest registers, flags and
//! ESP are as before it, so that a fault can be taken or the instruction started again. And no code of our own touches
//! a flag.
//!
//! ESP updates are folded: pushes and pops address r14d plus a delta known here, and r14d is brought up to date only
//! where a branch leaves or an instruction names ESP.

use std::collections::HashSet;
use std::mem::offset_of;

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::block::{Leave, Origin, Point};
use super::classify::{Class, classify};
use super::context::{Context, host};
use super::decode::Trace;
use super::emit::{Emitter, Fixup};
use super::mode::{HOST_FLAGS, Mode, SegmentClass};
use super::trampoline::Trampolines;
use crate::cpu::eflags;

/// What translation needs to know beside the trace.
pub struct Environment<'a> {
    /// Mode bits.
    pub mode: Mode,
    /// Common code.
    pub trampolines: &'a Trampolines,
    /// Guest addresses of supervisor instructions seen to touch the lower part of the address space.
    pub dynamic: &'a HashSet<u32>,
    /// Guest addresses of instructions that are better interpreted: they reach devices.
    pub interpreted: &'a HashSet<u32>,
    /// Pages mean the same in every address space: branches between them can be linked.
    pub fixed: bool,
    /// Index of the first exit site.
    pub first_site: u32,
}

/// The result: the emitter holds the code.
pub struct Translation {
    /// Offset of the entry for direct branches.
    pub main: u32,
    /// Where the code came from.
    pub origins: Vec<Origin>,
    /// It uses x87, SSE or AVX state.
    pub fp: bool,
    /// Ways out, in order of their indices.
    pub exits: Vec<Leave>,
    /// Offsets in the page that the source bytes lie between.
    pub source: (u16, u16),
}

/// A branch out that waits for its stub.
struct Pending {
    fixup: Fixup,
    eip: u32,
    kind: Out,
}

/// What a stub is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Out {
    /// A branch to another block.
    Branch,
    /// Something may be pending. RCX is in r8.
    Pending,
    /// The instruction at the EIP is left to the interpreter after all, with ESP this much ahead of r14d.
    Interpret(Mnemonic, i32),
}

struct Translator<'a> {
    e: &'a mut Emitter,
    env: &'a Environment<'a>,
    /// Guest ESP minus r14d.
    delta: i32,
    origins: Vec<Origin>,
    exits: Vec<Leave>,
    pending: Vec<Pending>,
    /// The instruction being translated.
    eip: u32,
    next: u32,
    /// An address in the page of the block's last byte.
    page: u32,
    /// The instruction being translated follows STI: what is pending is looked at after it.
    shadow: bool,
}

/// Where a memory operand is reached.
#[derive(Clone, Copy)]
enum Place {
    /// GS and 67h prefixes on these.
    Window { base: Register, index: Register, scale: u32, displacement: u32 },
    /// `[r9 + r8]`, r9 a window and r8 the linear address.
    Picked,
}

/// Translates `trace` into `e`.
pub fn translate(e: &mut Emitter, trace: &Trace, env: &Environment<'_>) -> Translation {
    let mut t = Translator {
        e,
        env,
        delta: 0,
        origins: Vec::new(),
        exits: Vec::new(),
        pending: Vec::new(),
        eip: trace.eip,
        next: trace.eip,
        page: trace.eip,
        shadow: false,
    };
    t.e.expect_eip(trace.eip, env.trampolines.miss);
    let main = t.e.position() as u32;
    let fp = t.floating_point_check(trace);
    let mut ended = false;
    for (i, insn) in trace.instructions.iter().enumerate() {
        ended = t.instruction(insn, &trace.instructions[i + 1..]);
        if ended {
            break;
        }
    }
    if !ended {
        match trace.instructions.is_empty() {
            true => t.leave_to_interpret(trace.eip, Mnemonic::INVALID),
            // An instruction that cannot be decoded in this page runs over into the next one: its translation holds only
            // while that page is what it is, which the table of the address space vouches for.
            false if !env.fixed && trace.ends_short() => {
                t.commit();
                t.e.jump_by_table(trace.next);
            }
            false => t.leave_direct(trace.next),
        }
    }
    t.stubs();
    Translation { main, fp, origins: t.origins, exits: t.exits, source: trace.source() }
}

impl Translator<'_> {
    /// Loads guest x87/SSE/AVX state if the trace needs it and it is not in host registers.
    fn floating_point_check(&mut self, trace: &Trace) -> bool {
        let needs = trace.instructions.iter().any(|i| classify(i, self.env.mode) == Class::FloatingPoint);
        self.mark(trace.eip, Point::Start);
        if !needs {
            return false;
        }
        self.e.mov64(8, 1);
        self.e.load_context(true, 1, offset_of!(Context, fp_absent));
        // lea r9, [rip + 7]: the address after the jump below.
        self.e.bytes(&[0x4c, 0x8d, 0x0d, 7, 0, 0, 0]);
        self.e.skip_if_rcx_zero(5);
        self.e.jump(self.env.trampolines.load_fp);
        self.e.mov64(1, 8);
        true
    }

    /// Notes that host code from here belongs to the guest instruction at `eip`.
    fn mark(&mut self, eip: u32, point: Point) {
        let offset = self.e.position() as u32;
        let origin = Origin { offset, eip, esp_delta: self.delta, point };
        match self.origins.last_mut() {
            Some(last) if last.offset == offset => *last = origin,
            _ => self.origins.push(origin),
        }
    }

    /// Translates one instruction; true if it ends the block. `follows` is the rest of the trace.
    fn instruction(&mut self, insn: &Instruction, follows: &[Instruction]) -> bool {
        self.eip = insn.ip32();
        self.next = insn.next_ip32();
        let shadow = std::mem::take(&mut self.shadow);
        self.mark(self.eip, if shadow { Point::Shadowed } else { Point::Start });
        let class = self.class(insn);
        let (start, delta, exits, pending) = (self.e.position(), self.delta, self.exits.len(), self.pending.len());
        let done = match class {
            Class::Plain | Class::FloatingPoint => self.plain(insn).map(|_| false),
            Class::Push => self.push(insn).map(|_| false),
            Class::Pop => self.pop(insn).map(|_| false),
            Class::Leave => self.leave().map(|_| false),
            Class::ReadSelector => self.read_selector(insn).map(|_| false),
            Class::String => self.string(insn).map(|_| false),
            Class::JumpIf => self.jump_if(insn).map(|_| false),
            Class::CountJump => self.count_jump(insn).map(|_| false),
            Class::Call => self.call(insn).map(|_| false),
            Class::CallIndirect => self.call_indirect(insn).map(|_| false),
            Class::JumpIndirect => self.jump_indirect(insn).map(|_| true),
            Class::Return => self.return_near(insn).map(|_| true),
            Class::Jump => match follows.first().map(Instruction::ip32) == Some(insn.near_branch32()) {
                true => Some(false),
                false => {
                    self.leave_direct(insn.near_branch32());
                    Some(true)
                }
            },
            Class::ClearInterrupts => {
                self.e.store_context_immediate(offset_of!(Context, interrupts), 0);
                Some(false)
            }
            Class::SetInterrupts => self.set_interrupts(follows).map(|_| false),
            Class::PushFlags => self.push_flags().map(|_| false),
            Class::PopFlags => self.pop_flags().map(|_| false),
            Class::TimeStamp => {
                self.time_stamp(insn);
                Some(false)
            }
            Class::Interpret => None,
        };
        if shadow && done == Some(false) {
            self.look_at_pending(self.next);
        }
        done.unwrap_or_else(|| {
            // Undo what was emitted, and leave the instruction to the interpreter.
            self.e.code.truncate(start);
            self.delta = delta;
            self.exits.truncate(exits);
            self.pending.truncate(pending);
            self.origins.retain(|o| o.offset as usize <= start);
            self.leave_to_interpret(self.eip, insn.mnemonic());
            true
        })
    }

    fn class(&self, insn: &Instruction) -> Class {
        match self.env.interpreted.contains(&insn.ip32()) {
            true => Class::Interpret,
            false => classify(insn, self.env.mode),
        }
    }

    /// STI. Interrupts wait for one more instruction (SDM vol. 3, §6.8.3): that must be here too, and one that goes on.
    fn set_interrupts(&mut self, follows: &[Instruction]) -> Option<()> {
        let next = follows.first().filter(|n| n.ip32() == self.next)?;
        let goes_on = matches!(self.class(next), Class::Plain | Class::FloatingPoint | Class::Push | Class::Pop);
        goes_on.then_some(())?;
        self.e.store_context_immediate(offset_of!(Context, interrupts), eflags::IF);
        self.shadow = true;
        Some(())
    }

    /// Leaves, with EIP at `eip`, if anything may be pending.
    fn look_at_pending(&mut self, eip: u32) {
        self.commit();
        self.e.mov64(8, 1);
        self.e.load_context(true, 1, offset_of!(Context, pending));
        self.e.skip_if_rcx_zero(5);
        let fixup = self.e.jump_later();
        self.pending.push(Pending { fixup, eip, kind: Out::Pending });
        self.e.mov64(1, 8);
    }

    /// PUSHFD: the arithmetic flags and DF are the host's, all others are in the context.
    fn push_flags(&mut self) -> Option<()> {
        self.e.read_flags(HOST_FLAGS);
        self.e.load_context(false, 10, offset_of!(Context, system_flags));
        self.e.lea32_sum(9, 10);
        self.e.load_context(false, 10, offset_of!(Context, interrupts));
        self.e.lea32_sum(9, 10);
        self.e.mov32(11, 9);
        let place = self.stack(-4)?;
        self.store(place, Register::R11D)?;
        self.delta = self.delta.wrapping_sub(4);
        Some(())
    }

    /// POPFD at ring 0, if it changes no flag but IF and those that live in host flags; else it is interpreted. Flags are
    /// free to use: whatever happens next overwrites them.
    fn pop_flags(&mut self) -> Option<()> {
        let place = self.stack(0)?;
        self.load(Register::R11D, place)?;
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
    fn time_stamp(&mut self, insn: &Instruction) {
        let with_aux = insn.mnemonic() == Mnemonic::Rdtscp;
        self.e.read_time_stamp(with_aux, offset_of!(Context, tsc_offset));
        if with_aux {
            self.e.load_context(false, 1, offset_of!(Context, tsc_aux));
        }
    }

    /// Brings r14d up to date.
    fn commit(&mut self) {
        self.e.lea32(host::ESP, host::ESP, self.delta);
        if self.delta != 0 {
            self.delta = 0;
            self.mark(self.eip, Point::Inside);
        }
    }

    /// An instruction that differs only in its registers and memory operand.
    fn plain(&mut self, insn: &Instruction) -> Option<()> {
        if self.fold_esp(insn) {
            return Some(());
        }
        if names_esp(insn) {
            self.commit();
        }
        let mut out = *insn;
        recode(&mut out);
        for i in 0..out.op_count() {
            if out.op_kind(i) == OpKind::Register {
                out.set_op_register(i, rename(out.op_register(i)));
            }
        }
        if (0..out.op_count()).any(|i| out.op_kind(i) == OpKind::Memory) {
            if insn.mnemonic() == Mnemonic::Lea || insn.mnemonic() == Mnemonic::Nop {
                let place = self.flat_place(insn);
                set_memory(&mut out, place);
                out.set_segment_prefix(Register::None);
            } else {
                let place = self.place(insn)?;
                set_memory(&mut out, place);
            }
        }
        self.e.instruction(&out).then_some(())
    }

    /// `lea esp, [esp + n]`, `mov r32, esp` and the like, without committing.
    fn fold_esp(&mut self, insn: &Instruction) -> bool {
        match insn.code() {
            Code::Lea_r32_m
                if insn.op0_register() == Register::ESP
                    && insn.memory_base() == Register::ESP
                    && insn.memory_index() == Register::None =>
            {
                self.delta = self.delta.wrapping_add(insn.memory_displacement32() as i32);
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

    /// The memory operand's effective address in renamed registers.
    fn flat_place(&mut self, insn: &Instruction) -> Place {
        let base = insn.memory_base();
        let mut displacement = insn.memory_displacement32();
        if base == Register::ESP {
            displacement = displacement.wrapping_add(self.delta as u32);
        }
        Place::Window { base: rename(base), index: insn.memory_index(), scale: insn.memory_index_scale(), displacement }
    }

    /// Where the memory operand of `insn` is reached. May emit address arithmetic in r8 and r9.
    fn place(&mut self, insn: &Instruction) -> Option<Place> {
        let segment = segment_index(insn.memory_segment())?;
        let flat = self.flat_place(insn);
        let place = match self.env.mode.segment(segment) {
            SegmentClass::Flat => flat,
            SegmentClass::Based => self.add_base(segment, flat)?,
            SegmentClass::Checked => return None,
        };
        self.finish_place(place)
    }

    /// Picks the window at run time where that is needed.
    fn finish_place(&mut self, place: Place) -> Option<Place> {
        if !self.picks() {
            return Some(place);
        }
        self.lea_linear(place)?;
        self.e.load_quarter(8);
        Some(Place::Picked)
    }

    /// True if the instruction picks its window at run time.
    fn picks(&self) -> bool {
        self.env.mode.low_kernel() || (!self.env.mode.user() && self.env.dynamic.contains(&self.eip))
    }

    /// r8d = the linear address of `place`.
    fn lea_linear(&mut self, place: Place) -> Option<()> {
        let mut lea = Instruction::new();
        lea.set_code(Code::Lea_r32_m);
        lea.set_op0_kind(OpKind::Register);
        lea.set_op0_register(Register::R8D);
        lea.set_op1_kind(OpKind::Memory);
        set_memory(&mut lea, place);
        lea.set_segment_prefix(Register::None);
        self.e.instruction(&lea).then_some(())
    }

    /// Adds a segment base, kept in r9d, to an address.
    fn add_base(&mut self, segment: usize, place: Place) -> Option<Place> {
        let Place::Window { base, index, displacement, .. } = place else { return None };
        let offset = offset_of!(Context, segment_base) + 4 * segment;
        Some(match (base, index) {
            (Register::None, Register::None) => {
                self.e.load_context(false, 9, offset);
                Place::Window { base: Register::R9D, index: Register::None, scale: 1, displacement }
            }
            (base, Register::None) => {
                self.e.load_context(false, 9, offset);
                Place::Window { base, index: Register::R9D, scale: 1, displacement }
            }
            _ => {
                self.lea_linear(place)?;
                self.e.load_context(false, 9, offset);
                Place::Window { base: Register::R8D, index: Register::R9D, scale: 1, displacement: 0 }
            }
        })
    }

    /// The stack at ESP plus `offset`.
    fn stack(&mut self, offset: i32) -> Option<Place> {
        let displacement = self.delta.wrapping_add(offset) as u32;
        let place = Place::Window { base: Register::R14D, index: Register::None, scale: 1, displacement };
        self.finish_place(place)
    }

    /// `mov reg, [place]`.
    fn load(&mut self, reg: Register, place: Place) -> Option<()> {
        let mut mov = Instruction::new();
        mov.set_code(Code::Mov_r32_rm32);
        mov.set_op0_kind(OpKind::Register);
        mov.set_op0_register(reg);
        mov.set_op1_kind(OpKind::Memory);
        set_memory(&mut mov, place);
        self.e.instruction(&mov).then_some(())
    }

    /// `mov [place], reg`, for a register of 32 or 16 bits.
    fn store(&mut self, place: Place, reg: Register) -> Option<()> {
        let mut mov = Instruction::new();
        mov.set_code(if reg.size() == 2 { Code::Mov_rm16_r16 } else { Code::Mov_rm32_r32 });
        mov.set_op0_kind(OpKind::Memory);
        mov.set_op1_kind(OpKind::Register);
        mov.set_op1_register(reg);
        set_memory(&mut mov, place);
        self.e.instruction(&mov).then_some(())
    }

    /// `mov dword [place], value`.
    fn store_immediate(&mut self, place: Place, value: u32) -> Option<()> {
        let mut mov = Instruction::new();
        mov.set_code(Code::Mov_rm32_imm32);
        mov.set_op0_kind(OpKind::Memory);
        mov.set_op1_kind(OpKind::Immediate32);
        mov.set_immediate32(value);
        set_memory(&mut mov, place);
        self.e.instruction(&mov).then_some(())
    }

    fn push(&mut self, insn: &Instruction) -> Option<()> {
        match insn.op0_kind() {
            OpKind::Register if insn.op0_register().is_segment_register() => {
                let offset = selector_offset(insn.op0_register())?;
                self.e.load_context(false, 11, offset);
                let place = self.stack(-4)?;
                // The upper half of the slot stays as it was, as on processors since the P6 (SDM vol. 2, PUSH).
                self.store(place, Register::R11W)?;
            }
            OpKind::Register if insn.op0_register() == Register::ESP => {
                self.e.lea32_or_mov(11, host::ESP, self.delta);
                let place = self.stack(-4)?;
                self.store(place, Register::R11D)?;
            }
            OpKind::Register => {
                let place = self.stack(-4)?;
                self.store(place, insn.op0_register())?;
            }
            OpKind::Memory => {
                let from = self.place(insn)?;
                self.load(Register::R11D, from)?;
                let place = self.stack(-4)?;
                self.store(place, Register::R11D)?;
            }
            _ => {
                let place = self.stack(-4)?;
                self.store_immediate(place, insn.immediate(0) as u32)?;
            }
        }
        self.delta = self.delta.wrapping_sub(4);
        Some(())
    }

    fn pop(&mut self, insn: &Instruction) -> Option<()> {
        if insn.op0_kind() == OpKind::Register {
            let place = self.stack(0)?;
            self.load(insn.op0_register(), place)?;
            self.delta = self.delta.wrapping_add(4);
            return Some(());
        }
        let from = self.stack(0)?;
        self.load(Register::R11D, from)?;
        // The address is computed with the incremented ESP (SDM vol. 2, POP).
        self.delta = self.delta.wrapping_add(4);
        let to = self.place(insn)?;
        self.store(to, Register::R11D)
    }

    fn leave(&mut self) -> Option<()> {
        let place = Place::Window { base: Register::EBP, index: Register::None, scale: 1, displacement: 0 };
        let place = self.finish_place(place)?;
        self.load(Register::R11D, place)?;
        self.e.lea32(host::ESP, 5, 4);
        self.e.mov32(5, 11);
        self.delta = 0;
        Some(())
    }

    fn read_selector(&mut self, insn: &Instruction) -> Option<()> {
        let to = insn.op0_register();
        if to == Register::ESP {
            return None;
        }
        let offset = selector_offset(insn.op1_register())?;
        self.e.load_context(false, number(to), offset);
        Some(())
    }

    /// String instructions run on host addresses: the low halves of RSI and RDI are the guest's ESI and EDI throughout.
    fn string(&mut self, insn: &Instruction) -> Option<()> {
        let (source, destination) = string_operands(insn);
        if source {
            let segment = segment_index(insn.memory_segment())?;
            (self.env.mode.segment(segment) == SegmentClass::Flat).then_some(())?;
        }
        if destination {
            (self.env.mode.segment(crate::cpu::seg::ES) == SegmentClass::Flat).then_some(())?;
            self.e.load_quarter(7);
            self.e.lea_sum(7, 9);
        }
        if source {
            self.e.load_quarter(6);
            self.e.lea_sum(6, 9);
        }
        self.mark(self.eip, Point::Interruptible);
        let mut bytes = Vec::with_capacity(3);
        if insn.has_repe_prefix() || insn.has_rep_prefix() {
            bytes.push(0xf3);
        } else if insn.has_repne_prefix() {
            bytes.push(0xf2);
        }
        if string_width(insn) == 2 {
            bytes.push(0x66);
        }
        bytes.push(string_opcode(insn)?);
        self.e.bytes(&bytes);
        self.mark(self.eip, Point::Inside);
        if source {
            self.e.mov32(6, 6);
        }
        if destination {
            self.e.mov32(7, 7);
        }
        Some(())
    }

    fn jump_if(&mut self, insn: &Instruction) -> Option<()> {
        self.commit();
        let cc = condition(insn);
        let fixup = self.e.jump_if(cc);
        self.pending.push(Pending { fixup, eip: insn.near_branch32(), kind: Out::Branch });
        Some(())
    }

    fn count_jump(&mut self, insn: &Instruction) -> Option<()> {
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

    fn call(&mut self, insn: &Instruction) -> Option<()> {
        self.push_return_address()?;
        let fixup = self.e.call_later();
        self.pending.push(Pending { fixup, eip: insn.near_branch32(), kind: Out::Branch });
        self.land();
        Some(())
    }

    fn call_indirect(&mut self, insn: &Instruction) -> Option<()> {
        self.branch_target(insn)?;
        self.push_return_address()?;
        self.e.mov32(8, 11);
        self.e.call(self.env.trampolines.branch);
        self.land();
        Some(())
    }

    /// Pushes the guest's return address and commits ESP. The host call that follows faults when the return stack is
    /// full: state is as before the guest's call then.
    fn push_return_address(&mut self) -> Option<()> {
        let place = self.stack(-4)?;
        self.store_immediate(place, self.next)?;
        self.e.lea32(host::ESP, host::ESP, self.delta.wrapping_sub(4));
        self.delta = 4;
        self.mark(self.eip, Point::Inside);
        self.delta = 0;
        Some(())
    }

    /// Where a guest's return comes to by way of the return stack, with the EIP it returns to in r8d.
    fn land(&mut self) {
        self.e.expect_eip(self.next, self.env.trampolines.branch);
    }

    fn jump_indirect(&mut self, insn: &Instruction) -> Option<()> {
        self.branch_target(insn)?;
        self.finish_indirect();
        Some(())
    }

    fn return_near(&mut self, insn: &Instruction) -> Option<()> {
        let place = self.stack(0)?;
        self.load(Register::R8D, place)?;
        let extra = if insn.op_count() == 1 { insn.immediate16() as i32 } else { 0 };
        self.e.lea32(host::ESP, host::ESP, self.delta.wrapping_add(4 + extra));
        self.delta = 0;
        self.e.bytes(&[0xc3]);
        Some(())
    }

    /// r11d = the target of an indirect branch.
    fn branch_target(&mut self, insn: &Instruction) -> Option<()> {
        if insn.op0_kind() == OpKind::Memory {
            let place = self.place(insn)?;
            return self.load(Register::R11D, place);
        }
        match insn.op0_register() {
            Register::ESP => self.e.lea32_or_mov(11, host::ESP, self.delta),
            r => self.e.mov32(11, number(r)),
        }
        Some(())
    }

    fn finish_indirect(&mut self) {
        self.e.lea32(host::ESP, host::ESP, self.delta);
        self.delta = 0;
        self.e.mov32(8, 11);
        self.e.jump_indirect();
    }

    /// Ends the block with a branch to a known EIP.
    fn leave_direct(&mut self, eip: u32) {
        self.commit();
        if !self.linkable(eip) {
            self.e.jump_by_table(eip);
            return;
        }
        let fixup = self.e.jump_later();
        self.pending.push(Pending { fixup, eip, kind: Out::Branch });
    }

    /// True if a branch to `eip` may be linked: the page cannot come to mean something else behind the link.
    fn linkable(&self, eip: u32) -> bool {
        self.env.fixed || (eip ^ self.page) & !0xfff == 0
    }

    fn leave_to_interpret(&mut self, eip: u32, mnemonic: Mnemonic) {
        self.e.lea32(host::ESP, host::ESP, self.delta);
        self.delta = 0;
        let site = self.env.first_site + self.exits.len() as u32;
        self.exits.push(Leave::Interpret(eip, mnemonic));
        self.e.store_context_immediate(offset_of!(Context, site), site);
        self.e.jump(self.env.trampolines.exit);
    }

    /// Emits the stub of each branch out that is not linked yet.
    fn stubs(&mut self) {
        for p in std::mem::take(&mut self.pending) {
            self.e.land(p.fixup);
            if p.kind == Out::Branch && !self.linkable(p.eip) {
                self.e.jump_by_table(p.eip);
                continue;
            }
            let stub = self.e.origin + self.e.position() as u64;
            let site = self.env.first_site + self.exits.len() as u32;
            self.exits.push(match p.kind {
                Out::Branch => Leave::Direct { eip: p.eip, branch: self.e.address_of(p.fixup), stub },
                Out::Pending => {
                    self.e.mov64(1, 8);
                    Leave::Pending(p.eip)
                }
                Out::Interpret(mnemonic, delta) => {
                    self.e.lea32(host::ESP, host::ESP, delta);
                    Leave::Interpret(p.eip, mnemonic)
                }
            });
            self.e.store_context_immediate(offset_of!(Context, site), site);
            self.e.jump(self.env.trampolines.exit);
        }
    }
}

/// Host register for a guest register.
fn rename(r: Register) -> Register {
    match r {
        Register::ESP => Register::R14D,
        Register::SP => Register::R14W,
        r => r,
    }
}

/// Hardware number of a 32-bit register other than ESP.
fn number(r: Register) -> u8 {
    r.number() as u8
}

/// True if ESP or SP is an operand of its own, rather than the base of an address.
fn names_esp(insn: &Instruction) -> bool {
    (0..insn.op_count())
        .any(|i| insn.op_kind(i) == OpKind::Register && matches!(insn.op_register(i), Register::ESP | Register::SP))
}

/// Replaces encodings that 64-bit mode does not have.
fn recode(insn: &mut Instruction) {
    let code = match insn.code() {
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        code => code,
    };
    insn.set_code(code);
}

fn set_memory(insn: &mut Instruction, place: Place) {
    match place {
        Place::Window { base, index, scale, displacement } => {
            insn.set_segment_prefix(Register::GS);
            insn.set_memory_base(base);
            insn.set_memory_index(index);
            insn.set_memory_index_scale(scale);
            insn.set_memory_displacement64(displacement as u64);
            insn.set_memory_displ_size(match (base, index, displacement) {
                (Register::None, _, _) => 4,
                (_, _, 0) => 0,
                _ => 1,
            });
        }
        Place::Picked => {
            insn.set_segment_prefix(Register::None);
            insn.set_memory_base(Register::R9);
            insn.set_memory_index(Register::R8);
            insn.set_memory_index_scale(1);
            insn.set_memory_displacement64(0);
            insn.set_memory_displ_size(0);
        }
    }
}

/// Index of a segment register, as in `CpuState::seg`.
fn segment_index(r: Register) -> Option<usize> {
    r.is_segment_register().then(|| r.number())
}

fn selector_offset(r: Register) -> Option<usize> {
    Some(offset_of!(Context, selectors) + 4 * segment_index(r)?)
}

/// Condition code of a Jcc: the low four bits of its opcode.
fn condition(insn: &Instruction) -> u8 {
    // iced numbers the conditions from `o` = 1 in opcode order.
    (insn.condition_code() as u8).wrapping_sub(1) & 15
}

/// Whether a string instruction reads through ESI and whether it uses EDI.
fn string_operands(insn: &Instruction) -> (bool, bool) {
    let uses = |kind| (0..insn.op_count()).any(|i| insn.op_kind(i) == kind);
    (uses(OpKind::MemorySegESI), uses(OpKind::MemoryESEDI))
}

fn string_width(insn: &Instruction) -> u32 {
    insn.memory_size().size() as u32
}

fn string_opcode(insn: &Instruction) -> Option<u8> {
    use Mnemonic::*;
    let base = match insn.mnemonic() {
        Movsb | Movsw | Movsd => 0xa4,
        Cmpsb | Cmpsw | Cmpsd => 0xa6,
        Stosb | Stosw | Stosd => 0xaa,
        Lodsb | Lodsw | Lodsd => 0xac,
        Scasb | Scasw | Scasd => 0xae,
        _ => return None,
    };
    Some(base | (string_width(insn) != 1) as u8)
}
