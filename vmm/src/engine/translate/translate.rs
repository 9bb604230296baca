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
mod pointers;
mod sensitive;
mod source;
mod stack;
mod string;

use std::mem::offset_of;

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpKind, Register};

use self::branch::Pending;
use self::copy::Parts;
use self::operand::{base_offset, rename, segment_index, set_memory};
use self::pointers::Pointers;
use self::stack::{names_esp, writes_esp};
use super::block::{Leave, Origin, Point};
use super::classify::{Class, classify};
use super::context::Context;
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
    /// Physical addresses of instructions whose operands' addresses were seen to come round the address space.
    pub wrapping: &'a PhysicalPlaces,
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
        if among(self.interpreted) || self.mode.user() && among(self.faulting) {
            return Class::Interpret;
        }
        match classify(insn, self.mode) {
            // It may change itself, and a block's look at its source does not come between two iterations.
            Class::String if self.checked.is_some() && string::repeats_stores(insn) => Class::Interpret,
            class => class,
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
    pointers: Pointers,
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
        pointers: Pointers::of(&trace.instructions),
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
        t.pointers.pass(insn);
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

    /// Physical address of the instruction being translated, if it begins in the block's page.
    fn frame_place(&self) -> u64 {
        self.env.frame | (self.eip & 0xfff) as u64
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
