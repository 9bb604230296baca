//! IRET from ring 0, to ring 3 or to ring 0 again (SDM vol. 2, IRET).
//!
//! The block has read both ends of the frame, and between them is nothing that it could fault on.

use std::mem::offset_of;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::super::super::context::Context;
use super::super::super::gate::crossing::{Crossing, Crossings, Landing};
use super::super::super::gate::{Gate, Gates, Resume, Word};
use super::super::super::mode::HOST_FLAGS;
use super::super::Labels;
use super::{GATES, compare_table, compare_word, context, copy, keep_flags, land, put_flags_back, segment};
use crate::cpu::{Segment, eflags, seg};

/// Offsets in the frame.
const CS: i32 = 4;
const EFLAGS: i32 = 8;
const ESP: i32 = 12;
const SS: i32 = 16;

/// IRET to the EIP in r8d, which was read from the frame.
///
/// One that changes more of EFLAGS than IF and what lives in the host's flags is the interpreter's, and so is one under NT,
/// which returns to another task. RF counts for nothing, since no instruction breakpoint is enabled.
pub(super) fn resume(a: &mut CodeAssembler, l: &mut Labels) -> Result<(), IcedError> {
    let (mut miss, mut outer, mut flags) = (a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut l.gates[Gate::Return.index()])?;
    keep_flags(a)?;
    a.cmp(qword_ptr(context(offset_of!(Context, pending))), 0)?;
    a.jne(miss)?;
    a.cmp(dword_ptr(context(offset_of!(Context, awaited))), r8d)?;
    a.je(miss)?;
    a.mov(r9d, dword_ptr(r14 + EFLAGS))?;
    a.mov(r11d, r9d)?;
    a.and(r11d, !(HOST_FLAGS | eflags::IF | eflags::RF) as i32)?;
    a.cmp(r11d, dword_ptr(context(offset_of!(Context, system_flags))))?;
    a.jne(miss)?;
    a.test(r11d, eflags::NT as i32)?;
    a.jne(miss)?;
    a.test(byte_ptr(r14 + CS), 3)?;
    a.jne(outer)?;
    same_ring(a, miss)?;
    a.jmp(flags)?;
    a.set_label(&mut outer)?;
    outer_ring(a, miss)?;
    a.set_label(&mut flags)?;
    a.mov(r11d, r9d)?;
    a.and(r11d, eflags::IF as i32)?;
    a.mov(dword_ptr(context(offset_of!(Context, interrupts))), r11d)?;
    a.and(r9d, HOST_FLAGS as i32)?;
    a.push(r9)?;
    a.popfq()?;
    a.jmp(l.branch)?;
    a.set_label(&mut miss)?;
    put_flags_back(a)?;
    a.jmp(l.exit)
}

/// Goes to `miss` unless the selector in the frame at `from` is that of the segment at `base + to`. Changes r11 and flags.
fn compare_selector(
    a: &mut CodeAssembler,
    from: i32,
    base: AsmRegister64,
    to: usize,
    miss: CodeLabel,
) -> Result<(), IcedError> {
    a.movzx(r11d, word_ptr(r14 + from))?;
    a.cmp(r11d, dword_ptr(base + (to + offset_of!(Segment, selector)) as i32))?;
    a.jne(miss)
}

fn same_ring(a: &mut CodeAssembler, miss: CodeLabel) -> Result<(), IcedError> {
    a.lea(r10, ptr(context(GATES + offset_of!(Gates, resume))))?;
    compare_table(a, r10, offset_of!(Resume, key), miss)?;
    compare_selector(a, CS, r10, offset_of!(Resume, code), miss)?;
    compare_word(a, r10, offset_of!(Resume, decided), miss)?;
    copy(a, r11, r10, offset_of!(Resume, code), segment(seg::CS), 2)?;
    a.mov(rsp, qword_ptr(context(offset_of!(Context, return_stack))))?;
    a.lea(r14d, ptr(r14 + ESP))?;
    a.lea(r14, ptr(r12 + r14))
}

fn outer_ring(a: &mut CodeAssembler, miss: CodeLabel) -> Result<(), IcedError> {
    let landing = |field: usize| offset_of!(Crossing, landing) + field;
    a.mov(r10, qword_ptr(context(offset_of!(Context, crossings))))?;
    a.add(r10, offset_of!(Crossings, back) as i32)?;
    compare_table(a, r10, offset_of!(Crossing, key), miss)?;
    // The mode at ring 3 depends on them.
    a.mov(r11d, dword_ptr(context(offset_of!(Context, system_flags))))?;
    a.add(r11d, dword_ptr(r10 + offset_of!(Crossing, system_flags) as i32))?;
    a.jne(miss)?;
    compare_selector(a, CS, r10, landing(offset_of!(Landing, code)), miss)?;
    compare_selector(a, SS, r10, landing(offset_of!(Landing, stack)), miss)?;
    for i in 0..2 {
        compare_word(a, r10, offset_of!(Crossing, decided) + i * size_of::<Word>(), miss)?;
    }
    // Those that ring 3 may not hold would be emptied.
    for (i, which) in [seg::ES, seg::DS, seg::FS, seg::GS].into_iter().enumerate() {
        a.mov(r11d, dword_ptr(context(segment(which) + offset_of!(Segment, attr))))?;
        a.cmp(r11d, dword_ptr(r10 + (offset_of!(Crossing, rights) + 4 * i) as i32))?;
        a.jne(miss)?;
    }
    a.mov(r14d, dword_ptr(r14 + ESP))?;
    land(a, r11, r10)?;
    a.lea(r14, ptr(r12 + r14))
}
