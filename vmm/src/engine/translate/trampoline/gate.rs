//! The common code of gates (see [`super::super::gate`]): compare, and copy the outcome, without touching a flag.
//!
//! Blocks come here with `Context::site` set, ESP up to date and nothing else changed, so that whatever does not compare
//! leaves by that site. Differences are made with `lea` and tested with `jrcxz`; guest ECX waits in r10. Where the mode
//! changes, the return stack starts afresh: its landings belong to the mode that the calls were made in.

use std::mem::offset_of;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::super::context::Context;
use super::super::gate::{Gate, Gates, LOADS, Load, Switch};
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
        load(a, l, which, Gate::Move(which as u8))?;
        load(a, l, which, Gate::Pop(which as u8))?;
    }
    switch(a, l, Gate::Enter)?;
    switch(a, l, Gate::Exit)
}

/// Loads the selector in r11d, and goes on at the guest EIP in r8d.
fn load(a: &mut CodeAssembler, l: &mut Labels, which: usize, gate: Gate) -> Result<(), IcedError> {
    let mut miss = a.create_label();
    let mut same_place = a.create_label();
    let mut same_bytes = a.create_label();
    let mut same_mode = a.create_label();
    let place = GATES + offset_of!(Gates, loads) + which * LOADS * size_of::<Load>();
    a.set_label(&mut l.gates[gate.index()])?;
    a.movzx(r11d, r11w)?;
    a.mov(r10, rcx)?;
    // r9: the place for this selector.
    a.mov(r9d, (LOADS as u32 - 1) << 3)?;
    a.pext(r9d, r11d, r9d)?;
    a.lea(r9d, ptr(r9 * 8))?;
    a.lea(r9, ptr(r15 + r9 * 8 + place as i32))?;
    a.rorx(r11, r11, 16)?;
    a.mov(rcx, qword_ptr(context(offset_of!(Context, branches))))?;
    a.lea(rcx, ptr(rcx + r11))?;
    a.mov(r11, qword_ptr(r9 + offset_of!(Load, key) as i32))?;
    a.lea(rcx, ptr(rcx + r11))?;
    a.jrcxz(same_place)?;
    a.set_label(&mut miss)?;
    a.mov(rcx, r10)?;
    a.jmp(l.exit)?;
    a.set_label(&mut same_place)?;
    a.mov(rcx, qword_ptr(r9 + offset_of!(Load, descriptor) as i32))?;
    a.mov(rcx, qword_ptr(rcx))?;
    a.mov(r11, qword_ptr(r9 + offset_of!(Load, raw) as i32))?;
    a.lea(rcx, ptr(rcx + r11))?;
    a.jrcxz(same_bytes)?;
    a.jmp(miss)?;
    a.set_label(&mut same_bytes)?;
    copy(a, r9, offset_of!(Load, segment), segment(which), 2)?;
    a.mov(rcx, qword_ptr(r9 + offset_of!(Load, change) as i32))?;
    a.jrcxz(same_mode)?;
    a.mov(r11, qword_ptr(context(offset_of!(Context, branches))))?;
    a.lea(r11, ptr(r11 + rcx))?;
    a.mov(qword_ptr(context(offset_of!(Context, branches))), r11)?;
    moved(a)?;
    a.set_label(&mut same_mode)?;
    a.mov(rcx, r10)?;
    if matches!(gate, Gate::Pop(_)) {
        a.lea(r14d, ptr(r14 + 4))?;
        a.lea(r14, ptr(r12 + r14))?;
    }
    a.jmp(l.branch)
}

/// SYSENTER and SYSEXIT.
fn switch(a: &mut CodeAssembler, l: &mut Labels, gate: Gate) -> Result<(), IcedError> {
    let mut same_mode = a.create_label();
    let mut miss = a.create_label();
    let exit = gate == Gate::Exit;
    let place = if exit { offset_of!(Gates, exit) } else { offset_of!(Gates, enter) };
    a.set_label(&mut l.gates[gate.index()])?;
    a.mov(r10, rcx)?;
    a.lea(r9, ptr(context(GATES + place)))?;
    a.mov(rcx, qword_ptr(context(offset_of!(Context, branches))))?;
    a.mov(r11, qword_ptr(r9 + offset_of!(Switch, key) as i32))?;
    a.lea(rcx, ptr(rcx + r11))?;
    a.jrcxz(same_mode)?;
    a.set_label(&mut miss)?;
    a.mov(rcx, r10)?;
    a.jmp(l.exit)?;
    a.set_label(&mut same_mode)?;
    if exit {
        may_exit(a, miss)?;
    } else {
        a.mov(dword_ptr(context(offset_of!(Context, interrupts))), 0)?;
    }
    copy(a, r9, offset_of!(Switch, code), segment(seg::CS), 2)?;
    copy(a, r9, offset_of!(Switch, stack), segment(seg::SS), 2)?;
    copy(a, r9, offset_of!(Switch, quarters), offset_of!(Context, quarters), 4)?;
    copy(a, r9, offset_of!(Switch, branches), offset_of!(Context, branches), 1)?;
    a.mov(ecx, dword_ptr(r9 + offset_of!(Switch, cpl) as i32))?;
    a.mov(dword_ptr(context(offset_of!(Context, cpl))), ecx)?;
    copy(a, r9, offset_of!(Switch, window), offset_of!(Context, window), 1)?;
    a.wrgsbase(rcx)?;
    a.mov(r12, rcx)?;
    moved(a)?;
    if exit {
        a.mov(r14d, r10d)?;
        a.mov(r8d, edx)?;
    } else {
        a.mov(r14d, dword_ptr(r9 + offset_of!(Switch, esp) as i32))?;
        a.mov(r8d, dword_ptr(r9 + offset_of!(Switch, eip) as i32))?;
    }
    a.lea(r14, ptr(r12 + r14))?;
    a.mov(rcx, r10)?;
    a.jmp(l.branch)
}

/// SYSEXIT may be the instruction that STI protects: what is pending is looked at after it, and not here. Flags other than
/// those that emitted code changes decide on the mode at ring 3.
fn may_exit(a: &mut CodeAssembler, miss: CodeLabel) -> Result<(), IcedError> {
    let mut nothing_pending = a.create_label();
    let mut same_flags = a.create_label();
    a.mov(rcx, qword_ptr(context(offset_of!(Context, pending))))?;
    a.jrcxz(nothing_pending)?;
    a.jmp(miss)?;
    a.set_label(&mut nothing_pending)?;
    a.mov(ecx, dword_ptr(context(offset_of!(Context, system_flags))))?;
    a.mov(r11d, dword_ptr(r9 + offset_of!(Switch, system_flags) as i32))?;
    a.lea(ecx, ptr(rcx + r11))?;
    a.jrcxz(same_flags)?;
    a.jmp(miss)?;
    a.set_label(&mut same_flags)
}

/// Copies `words` of 64 bits from `base + from` to the context, by way of rcx, which is left with the last.
fn copy(a: &mut CodeAssembler, base: AsmRegister64, from: usize, to: usize, words: usize) -> Result<(), IcedError> {
    for i in 0..words {
        a.mov(rcx, qword_ptr(base + (from + 8 * i) as i32))?;
        a.mov(qword_ptr(context(to + 8 * i)), rcx)?;
    }
    Ok(())
}

/// Another mode holds.
fn moved(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dword_ptr(context(offset_of!(Context, moved))), 1)?;
    a.mov(rsp, qword_ptr(context(offset_of!(Context, return_stack))))
}
