//! The common code of gates (see [`super::super::gate`]): compare, and copy the outcome.
//!
//! Blocks come here with `Context::site` set, ESP up to date and nothing else changed, so that whatever does not compare
//! leaves by that site with all as it was, flags too. Where the mode changes, the return stack starts afresh: its landings
//! belong to the mode that the calls were made in.

mod enter;
mod interrupt;
mod load;
mod resume;

use std::mem::offset_of;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::super::context::Context;
use super::super::gate::crossing::{Crossing, Landing};
use super::super::gate::{Gate, Word};
use super::Labels;
use crate::cpu::{Segment, seg};

const GATES: usize = offset_of!(Context, gates);

/// A field of the context.
fn context(offset: usize) -> AsmMemoryOperand {
    r15 + offset as i32
}

/// The place of segment register `which` in the context.
fn segment(which: usize) -> usize {
    offset_of!(Context, seg) + which * size_of::<Segment>()
}

/// Assembles every gate; labels by [`Gate::index`].
pub(super) fn gates(a: &mut CodeAssembler, l: &mut Labels) -> Result<(), IcedError> {
    for which in [seg::ES, seg::DS, seg::FS, seg::GS] {
        load::load(a, l, which, Gate::Move(which as u8))?;
        load::load(a, l, which, Gate::Pop(which as u8))?;
    }
    enter::enter_or_exit(a, l, Gate::Enter)?;
    enter::enter_or_exit(a, l, Gate::Exit)?;
    interrupt::interrupt(a, l)?;
    resume::resume(a, l)
}

/// Copies `words` of 64 bits from `base + from` to the context, by way of `through`, which is left with the last.
fn copy(
    a: &mut CodeAssembler,
    through: AsmRegister64,
    base: AsmRegister64,
    from: usize,
    to: usize,
    words: usize,
) -> Result<(), IcedError> {
    for i in 0..words {
        a.mov(through, qword_ptr(base + (from + 8 * i) as i32))?;
        a.mov(qword_ptr(context(to + 8 * i)), through)?;
    }
    Ok(())
}

/// Makes what holds after the [`Crossing`] at `base` hold, by way of `through`. r14 is left to be made.
fn land(a: &mut CodeAssembler, through: AsmRegister64, base: AsmRegister64) -> Result<(), IcedError> {
    let from = |field: usize| offset_of!(Crossing, landing) + field;
    copy(a, through, base, from(offset_of!(Landing, code)), segment(seg::CS), 2)?;
    copy(a, through, base, from(offset_of!(Landing, stack)), segment(seg::SS), 2)?;
    copy(a, through, base, from(offset_of!(Landing, quarters)), offset_of!(Context, quarters), 4)?;
    copy(a, through, base, from(offset_of!(Landing, branches)), offset_of!(Context, branches), 1)?;
    // With CPL goes what lies beside it, which is set below.
    copy(a, through, base, from(offset_of!(Landing, cpl)), offset_of!(Context, cpl), 1)?;
    copy(a, through, base, from(offset_of!(Landing, window)), offset_of!(Context, window), 1)?;
    a.wrgsbase(through)?;
    a.mov(r12, through)?;
    moved(a)
}

/// Another mode holds.
fn moved(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dword_ptr(context(offset_of!(Context, moved))), 1)?;
    a.mov(rsp, qword_ptr(context(offset_of!(Context, return_stack))))
}

/// Puts the host's flags by, so that code may change them. RSP leaves the return stack, which may be full.
fn keep_flags(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rsp, qword_ptr(context(offset_of!(Context, host_rsp))))?;
    a.pushfq()?;
    a.pop(qword_ptr(context(offset_of!(Context, flags))))
}

/// Ends [`keep_flags`].
fn put_flags_back(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(qword_ptr(context(offset_of!(Context, flags))))?;
    a.popfq()
}

/// Goes to `miss` unless the [`Word`] at `base + place` is what it was. Changes r11 and flags.
fn compare_word(a: &mut CodeAssembler, base: AsmRegister64, place: usize, miss: CodeLabel) -> Result<(), IcedError> {
    a.mov(r11, qword_ptr(base + (place + offset_of!(Word, place)) as i32))?;
    a.mov(r11, qword_ptr(r11))?;
    a.cmp(r11, qword_ptr(base + (place + offset_of!(Word, value)) as i32))?;
    a.jne(miss)
}

/// Goes to `miss` unless the branch table is the one whose negated address is at `base + key`. Changes r11 and flags.
fn compare_table(a: &mut CodeAssembler, base: AsmRegister64, key: usize, miss: CodeLabel) -> Result<(), IcedError> {
    a.mov(r11, qword_ptr(context(offset_of!(Context, branches))))?;
    a.add(r11, qword_ptr(base + key as i32))?;
    a.jne(miss)
}
