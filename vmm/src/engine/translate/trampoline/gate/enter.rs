//! SYSENTER and SYSEXIT, without touching a flag, as with loads.

use std::mem::offset_of;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::super::super::context::Context;
use super::super::super::gate::Gate;
use super::super::super::gate::crossing::{Crossing, Crossings};
use super::super::Labels;
use super::{context, land};

/// SYSENTER, or SYSEXIT.
pub(super) fn enter_or_exit(a: &mut CodeAssembler, l: &mut Labels, gate: Gate) -> Result<(), IcedError> {
    let mut same_mode = a.create_label();
    let mut miss = a.create_label();
    let exit = gate == Gate::Exit;
    let which = if exit { offset_of!(Crossings, exit) } else { offset_of!(Crossings, enter) };
    a.set_label(&mut l.gates[gate.index()])?;
    a.mov(r10, rcx)?;
    a.mov(r9, qword_ptr(context(offset_of!(Context, crossings))))?;
    a.lea(r9, ptr(r9 + which as i32))?;
    a.mov(rcx, qword_ptr(context(offset_of!(Context, branches))))?;
    a.mov(r11, qword_ptr(r9 + offset_of!(Crossing, key) as i32))?;
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
    land(a, rcx, r9)?;
    if exit {
        a.mov(r14d, r10d)?;
        a.mov(r8d, edx)?;
    } else {
        a.mov(r14d, dword_ptr(r9 + offset_of!(Crossing, esp) as i32))?;
        a.mov(r8d, dword_ptr(r9 + offset_of!(Crossing, eip) as i32))?;
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
    a.mov(r11d, dword_ptr(r9 + offset_of!(Crossing, system_flags) as i32))?;
    a.lea(ecx, ptr(rcx + r11))?;
    a.jrcxz(same_flags)?;
    a.jmp(miss)?;
    a.set_label(&mut same_flags)
}
