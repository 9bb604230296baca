//! Stage 3: a trace becomes host code, instruction by instruction.
//!
//! Two promises hold at every point. Until the last host instruction of a guest instruction, guest registers, flags and
//! ESP are as before it, so that a fault can be taken or the instruction started again. And no code of our own changes
//! a flag, but on the way to overwriting them all (POPF).
//!
//! ESP updates are folded: pushes and pops address r14 plus a delta known here, and r14 is brought up to date only where a
//! branch leaves or an instruction names ESP. r14 is a host address, so that the stack is reached without a prefix; an
//! instruction that writes ESP writes its low half, which is then made an address again.

mod branch;
mod copy;
mod high;
mod operand;
mod sensitive;
mod source;
mod string;

use std::mem::offset_of;

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpKind, Register};

use self::branch::Pending;
use self::copy::Parts;
use self::operand::{Place, base_offset, number, rename, segment_index, selector_offset, set_memory};
use super::block::{Leave, Origin, Point};
use super::classify::{Class, classify};
use super::context::{Context, NEAR, host};
use super::decode::Trace;
use super::emit::Emitter;
use super::mode::{Mode, SegmentClass};
use super::trampoline::Trampolines;
use super::{PhysicalPlaces, Places};

/// What translation needs to know beside the trace.
pub struct Environment<'a> {
    /// Mode bits.
    pub mode: Mode,
    /// Common code.
    pub trampolines: &'a Trampolines,
    /// Guest addresses of supervisor instructions seen to touch the lower part of the address space.
    pub dynamic: &'a Places,
    /// Guest addresses of instructions that are better interpreted: they reach devices.
    pub interpreted: &'a Places,
    /// Guest addresses of instructions that are interpreted because they keep faulting.
    pub faulting: &'a Places,
    /// Physical addresses of blocks and of calls that are often come to for another EIP than theirs.
    pub varied: &'a PhysicalPlaces,
    /// Physical address of the page that the block begins in.
    pub frame: u64,
    /// Pages mean the same in every address space: branches between them can be linked.
    pub fixed: bool,
    /// The source bytes, if the block is to compare them with guest memory whenever it is entered.
    pub checked: Option<&'a [u8]>,
    /// Index of the first exit site.
    pub first_site: u32,
}

/// The result: the emitter holds the code.
#[derive(Default)]
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
    /// What each instruction of the trace is.
    classes: Vec<Class>,
}

impl Environment<'_> {
    fn class(&self, insn: &Instruction) -> Class {
        let among = |places: &Places| !places.is_empty() && places.contains(&insn.ip32());
        match among(self.interpreted) || self.mode.user() && among(self.faulting) {
            true => Class::Interpret,
            false => classify(insn, self.mode),
        }
    }
}

struct Translator<'a> {
    e: &'a mut Emitter,
    env: &'a Environment<'a>,
    /// Guest ESP minus r14.
    delta: i32,
    /// r14 was used for an access, or made from ESP, since it was last moved: see [`NEAR`].
    anchored: bool,
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

/// Translates `trace` into `e` and `out`, whose lists are used again.
pub fn translate(e: &mut Emitter, trace: &Trace, env: &Environment<'_>, out: &mut Translation) {
    let (mut origins, mut exits) = (std::mem::take(&mut out.origins), std::mem::take(&mut out.exits));
    let mut classes = std::mem::take(&mut out.classes);
    origins.clear();
    exits.clear();
    classes.clear();
    classes.extend(trace.instructions.iter().map(|insn| env.class(insn)));
    let mut t = Translator {
        e,
        env,
        delta: 0,
        anchored: false,
        origins,
        exits,
        pending: Vec::new(),
        eip: trace.eip,
        next: trace.eip,
        page: trace.eip,
        shadow: false,
    };
    t.expect(trace.eip, env.trampolines.miss);
    let main = t.e.position() as u32;
    let unchecked = env.checked.is_some_and(|bytes| t.check_source(bytes).is_none());
    // A source that cannot be compared is the interpreter's.
    let instructions = if unchecked { &[] } else { &trace.instructions[..] };
    let fp = t.floating_point_check(&classes[..instructions.len()]);
    let (mut ended, mut bytes) = (false, &trace.bytes[..]);
    for (i, (insn, class)) in instructions.iter().zip(&classes).enumerate() {
        let (source, rest) = bytes.split_at(insn.len());
        bytes = rest;
        ended = t.instruction(insn, *class, source, &instructions[i + 1..]);
        if ended {
            break;
        }
    }
    if !ended {
        match instructions.is_empty() {
            true => t.leave_to_interpret(trace.eip, Mnemonic::INVALID),
            // An instruction that cannot be decoded in this page runs over into the next one: its translation holds only
            // while that page is what it is, which the table of the address space vouches for.
            false if !env.fixed && trace.ends_short() => {
                t.commit();
                t.e.by_table(trace.next);
            }
            false => t.leave_direct(trace.next),
        }
    }
    t.stubs();
    *out = Translation { main, fp, origins: t.origins, exits: t.exits, source: trace.source(), classes };
}

impl Translator<'_> {
    /// Loads guest x87/SSE/AVX state if an instruction needs it and it is not in host registers.
    fn floating_point_check(&mut self, classes: &[Class]) -> bool {
        self.mark(self.eip, Point::Start);
        if !classes.contains(&Class::FloatingPoint) {
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

    /// Translates one instruction, whose bytes are `source`; true if it ends the block. `follows` is the rest of the trace.
    fn instruction(&mut self, insn: &Instruction, class: Class, source: &[u8], follows: &[Instruction]) -> bool {
        self.eip = insn.ip32();
        self.next = insn.next_ip32();
        let shadow = std::mem::take(&mut self.shadow);
        self.mark(self.eip, if shadow { Point::Shadowed } else { Point::Start });
        // Other blocks come in here, and what they did with r14 adds to what this one does.
        self.anchored &= self.delta != 0;
        let (start, delta, exits, pending) = (self.e.position(), self.delta, self.exits.len(), self.pending.len());
        let anchored = self.anchored;
        let done = match class {
            Class::Plain => self.plain(insn, source, false).map(|_| false),
            Class::FloatingPoint => self.plain(insn, source, true).and_then(|_| self.note_base(insn)).map(|_| false),
            Class::Push => self.push(insn).map(|_| false),
            Class::Pop => self.pop(insn).map(|_| false),
            Class::Leave => self.leave().map(|_| false),
            Class::ReadSelector => self.read_selector(insn).map(|_| false),
            Class::ReadControl => self.read_control(insn).map(|_| false),
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
            Class::Gate(gate) => self.gate(insn, gate).map(|_| true),
            Class::Interpret => None,
        };
        done.unwrap_or_else(|| {
            // Undo what was emitted, and leave the instruction to the interpreter.
            self.e.code.truncate(start);
            (self.delta, self.anchored) = (delta, anchored);
            self.exits.truncate(exits);
            self.pending.truncate(pending);
            self.origins.retain(|o| o.offset as usize <= start);
            self.leave_to_interpret(self.eip, insn.mnemonic());
            true
        })
    }

    /// Brings r14 up to date.
    fn commit(&mut self) {
        if self.delta != 0 {
            self.bring_esp(self.delta);
            self.mark(self.eip, Point::Inside);
        }
    }

    /// Moves r14 on by `by`, to where it is up to date.
    fn bring_esp(&mut self, by: i32) {
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
    fn before_writing_esp(&mut self, insn: &Instruction) -> bool {
        use Mnemonic::*;
        let whole = matches!(insn.mnemonic(), Mov | Lea | Add | Sub | And) && insn.op0_register() == Register::ESP;
        if !whole {
            self.e.mov32(host::ESP, host::ESP);
        }
        !whole
    }

    /// ESP was written to r14d: it is made an address again.
    fn after_writing_esp(&mut self) {
        self.e.make_esp(host::ESP, 0);
        self.anchored = true;
    }

    /// An instruction that differs only in its registers and memory operand.
    fn plain(&mut self, insn: &Instruction, source: &[u8], simd: bool) -> Option<()> {
        if self.fold_esp(insn) {
            return Some(());
        }
        let writes_esp = names_esp(insn) && writes_esp(insn);
        if names_esp(insn) {
            self.commit();
        } else if let Some(parts) = Parts::of(source, simd, &mut Default::default()) {
            return self.copy(insn, &parts);
        }
        let bare = writes_esp && self.before_writing_esp(insn);
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
                set_memory(&mut out, if bare { place.in_window() } else { place });
            }
        }
        self.e.instruction(&out).then_some(())?;
        if writes_esp {
            self.after_writing_esp();
        }
        Some(())
    }

    /// Keeps the segment base that an x87 memory operand was reached with, for the instruction pointer's saved companion:
    /// the segment may be another one when the state is saved.
    fn note_base(&mut self, insn: &Instruction) -> Option<()> {
        let x87 = insn
            .cpuid_features()
            .iter()
            .all(|f| matches!(f, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 | CpuidFeature::SSE3));
        let memory = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
        if x87
            && memory
            && let Some(which) = segment_index(insn.memory_segment())
            && self.env.mode.segment(which) == SegmentClass::Based
        {
            self.e.load_context(false, 11, base_offset(which));
            self.e.store_context(offset_of!(Context, x87_base), 11);
        }
        Some(())
    }

    /// `lea esp, [esp + n]`, `mov r32, esp` and the like, without committing.
    fn fold_esp(&mut self, insn: &Instruction) -> bool {
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

    fn push(&mut self, insn: &Instruction) -> Option<()> {
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

    fn pop(&mut self, insn: &Instruction) -> Option<()> {
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

    fn leave(&mut self) -> Option<()> {
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
fn writes_esp(insn: &Instruction) -> bool {
    let named = |i| insn.op_kind(i) == OpKind::Register && matches!(insn.op_register(i), Register::ESP | Register::SP);
    let second = matches!(insn.mnemonic(), Mnemonic::Xchg | Mnemonic::Xadd);
    let reads = matches!(insn.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt);
    !reads && (named(0) || (second && named(1)) || insn.mnemonic() == Mnemonic::Mulx && named(1))
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
