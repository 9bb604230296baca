//! Loads of segment registers, without touching a flag: differences are made with `lea` and tested with `jrcxz`; guest
//! ECX waits in r10.

use std::mem::offset_of;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::super::super::context::Context;
use super::super::super::gate::load::{LOADS, Load};
use super::super::super::gate::{Gate, Gates};
use super::super::Labels;
use super::{GATES, context, copy, moved, segment};

/// Loads the selector in r11d, and goes on at the guest EIP in r8d.
pub(super) fn load(a: &mut CodeAssembler, l: &mut Labels, which: usize, gate: Gate) -> Result<(), IcedError> {
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
    copy(a, rcx, r9, offset_of!(Load, segment), segment(which), 2)?;
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
