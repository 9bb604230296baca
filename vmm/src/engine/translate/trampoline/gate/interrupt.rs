//! INT n from ring 3 to ring 0 (SDM vol. 2, INT n).

use std::mem::offset_of;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::super::super::context::Context;
use super::super::super::gate::crossing::{Crossing, Crossings};
use super::super::super::gate::{Gate, Word};
use super::super::super::mode::HOST_FLAGS;
use super::super::Labels;
use super::{compare_table, compare_word, context, keep_flags, land, put_flags_back, segment};
use crate::cpu::{Segment, seg};

/// A field of the remembered INT, which r10 points at.
fn field(offset: usize) -> AsmMemoryOperand {
    r10 + offset as i32
}

/// INT with the vector in r11d; the next EIP is in r8d.
pub(super) fn interrupt(a: &mut CodeAssembler, l: &mut Labels) -> Result<(), IcedError> {
    let mut miss = a.create_label();
    a.set_label(&mut l.gates[Gate::Interrupt(0).index()])?;
    keep_flags(a)?;
    a.mov(r10, qword_ptr(context(offset_of!(Context, crossings))))?;
    a.add(r10, offset_of!(Crossings, interrupt) as i32)?;
    a.cmp(r11d, dword_ptr(field(offset_of!(Crossing, vector))))?;
    a.jne(miss)?;
    compare_table(a, r10, offset_of!(Crossing, key), miss)?;
    a.mov(r11d, dword_ptr(context(offset_of!(Context, system_flags))))?;
    a.add(r11d, dword_ptr(field(offset_of!(Crossing, system_flags))))?;
    a.jne(miss)?;
    for i in 0..4 {
        compare_word(a, r10, offset_of!(Crossing, decided) + i * size_of::<Word>(), miss)?;
    }
    push_frame(a)?;
    a.mov(r11d, dword_ptr(field(offset_of!(Crossing, keeps))))?;
    a.and(dword_ptr(context(offset_of!(Context, interrupts))), r11d)?;
    land(a, r11, r10)?;
    a.mov(r14d, dword_ptr(field(offset_of!(Crossing, esp))))?;
    a.lea(r14, ptr(r12 + r14))?;
    a.mov(r8d, dword_ptr(field(offset_of!(Crossing, eip))))?;
    put_flags_back(a)?;
    a.jmp(l.branch)?;
    a.set_label(&mut miss)?;
    put_flags_back(a)?;
    a.jmp(l.exit)
}

/// EIP, CS, EFLAGS, ESP, SS, from the lowest address on.
fn push_frame(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let selector = |which: usize| context(segment(which) + offset_of!(Segment, selector));
    a.mov(r9, qword_ptr(field(offset_of!(Crossing, frame))))?;
    a.mov(dword_ptr(r9), r8d)?;
    a.mov(r11d, dword_ptr(selector(seg::CS)))?;
    a.mov(dword_ptr(r9 + 4), r11d)?;
    a.mov(r11d, dword_ptr(context(offset_of!(Context, flags))))?;
    a.and(r11d, HOST_FLAGS as i32)?;
    a.or(r11d, dword_ptr(context(offset_of!(Context, system_flags))))?;
    a.or(r11d, dword_ptr(context(offset_of!(Context, interrupts))))?;
    a.mov(dword_ptr(r9 + 8), r11d)?;
    a.mov(dword_ptr(r9 + 12), r14d)?;
    a.mov(r11d, dword_ptr(selector(seg::SS)))?;
    a.mov(dword_ptr(r9 + 16), r11d)
}
