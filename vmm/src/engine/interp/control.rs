//! Transfers of control: near jumps, calls and returns, loops, and the far ones, whose rules are the processor's.

use super::flags::condition;
use super::operand::{Op, effective, load_at};
use super::stack::{pop_sized, push_sized, read_sized};
use crate::cpu::{Flow, SoftwareInterrupt, Stop, Vcpu, eflags, reg, seg};

/// Goes to `target`: #GP(0), on the transfer itself, beyond the limit of CS.
#[inline(always)]
fn go(v: &mut Vcpu, target: u32) -> Flow<()> {
    if target > v.state.seg[seg::CS].limit {
        return Err(Stop::gp(0));
    }
    v.state.eip = target;
    Ok(())
}

/// Where a relative branch leads.
#[inline(always)]
fn relative(v: &Vcpu, op: &Op) -> u32 {
    v.state.eip.wrapping_add(op.imm) & op.size_mask()
}

/// JMP rel.
pub(super) fn jmp_relative(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let target = relative(v, op);
    go(v, target)
}

/// Jcc on condition `K`.
pub(super) fn jcc<const K: u8>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    if condition(v.state.eflags, K) {
        let target = relative(v, op);
        return go(v, target);
    }
    Ok(())
}

/// JMP r/m.
pub(super) fn jmp_indirect(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let target = read_sized(v, op, op.dst)?;
    go(v, target)
}

/// CALL rel.
pub(super) fn call_relative(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let target = relative(v, op);
    call_to(v, op, target)
}

/// CALL r/m.
pub(super) fn call_indirect(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let target = read_sized(v, op, op.dst)?;
    call_to(v, op, target)
}

fn call_to(v: &mut Vcpu, op: &Op, target: u32) -> Flow<()> {
    push_sized(v, op.size, v.state.eip)?;
    go(v, target)
}

/// RET, with the bytes to release in `imm`.
pub(super) fn ret(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let target = pop_sized(v, op.size)?;
    v.set_stack_pointer(v.state.gpr[reg::ESP].wrapping_add(op.imm & 0xffff));
    go(v, target)
}

/// Decrements CX or ECX by address size and returns it.
fn count_down(v: &mut Vcpu, op: &Op) -> u32 {
    let mask = op.addr_mask();
    let ecx = &mut v.state.gpr[reg::ECX];
    *ecx = (*ecx & !mask) | (ecx.wrapping_sub(1) & mask);
    *ecx & mask
}

/// LOOP.
pub(super) fn loop_(v: &mut Vcpu, op: &Op) -> Flow<()> {
    if count_down(v, op) != 0 { jmp_relative(v, op) } else { Ok(()) }
}

/// LOOPE.
pub(super) fn loope(v: &mut Vcpu, op: &Op) -> Flow<()> {
    if count_down(v, op) != 0 && v.state.eflags & eflags::ZF != 0 { jmp_relative(v, op) } else { Ok(()) }
}

/// LOOPNE.
pub(super) fn loopne(v: &mut Vcpu, op: &Op) -> Flow<()> {
    if count_down(v, op) != 0 && v.state.eflags & eflags::ZF == 0 { jmp_relative(v, op) } else { Ok(()) }
}

/// JCXZ and JECXZ.
pub(super) fn jcxz(v: &mut Vcpu, op: &Op) -> Flow<()> {
    if v.state.gpr[reg::ECX] & op.addr_mask() == 0 { jmp_relative(v, op) } else { Ok(()) }
}

/// The far pointer in memory: offset, then selector.
pub(super) fn far_pointer(v: &mut Vcpu, op: &Op) -> Flow<(u16, u32)> {
    let at = effective(v, op);
    let which = op.seg as usize;
    let offset = match op.size {
        2 => load_at::<u16>(v, which, at)? as u32,
        _ => load_at::<u32>(v, which, at)?,
    };
    let selector = load_at::<u16>(v, which, at.wrapping_add(op.size as u32) & op.addr_mask())?;
    Ok((selector, offset))
}

/// JMP ptr16:16 and ptr16:32.
pub(super) fn far_jmp_direct(v: &mut Vcpu, op: &Op) -> Flow<()> {
    v.far_jump(op.imm2, op.imm & op.size_mask(), op.size)
}

/// CALL ptr16:16 and ptr16:32.
pub(super) fn far_call_direct(v: &mut Vcpu, op: &Op) -> Flow<()> {
    v.far_call(op.imm2, op.imm & op.size_mask(), op.size)
}

/// JMP m16:16 and m16:32.
pub(super) fn far_jmp_indirect(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let (selector, offset) = far_pointer(v, op)?;
    v.far_jump(selector, offset, op.size)
}

/// CALL m16:16 and m16:32.
pub(super) fn far_call_indirect(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let (selector, offset) = far_pointer(v, op)?;
    v.far_call(selector, offset, op.size)
}

/// RETF.
pub(super) fn retf(v: &mut Vcpu, op: &Op) -> Flow<()> {
    v.far_return(op.size, op.imm as u16)
}

/// IRET and IRETD.
pub(super) fn iret(v: &mut Vcpu, op: &Op) -> Flow<()> {
    v.iret(op.size)
}

/// INT n.
pub(super) fn int(v: &mut Vcpu, op: &Op) -> Flow<()> {
    v.software_interrupt(op.imm as u8, SoftwareInterrupt::IntN)
}

/// INT3.
pub(super) fn int3(v: &mut Vcpu, _: &Op) -> Flow<()> {
    v.software_interrupt(3, SoftwareInterrupt::Int3)
}

/// INT1.
pub(super) fn int1(v: &mut Vcpu, _: &Op) -> Flow<()> {
    v.software_interrupt(1, SoftwareInterrupt::Int1)
}

/// INTO.
pub(super) fn into(v: &mut Vcpu, _: &Op) -> Flow<()> {
    if v.state.eflags & eflags::OF == 0 {
        return Ok(());
    }
    v.software_interrupt(4, SoftwareInterrupt::Into)
}

/// SYSENTER.
pub(super) fn sysenter(v: &mut Vcpu, _: &Op) -> Flow<()> {
    v.sysenter()
}

/// SYSEXIT.
pub(super) fn sysexit(v: &mut Vcpu, _: &Op) -> Flow<()> {
    v.sysexit()
}

/// UD0, UD1, UD2, RSM outside SMM, and everything the processor does not have.
pub(super) fn undefined(_: &mut Vcpu, _: &Op) -> Flow<()> {
    Err(Stop::ud())
}

/// NOP, PAUSE, ENDBR, prefetches, fences: one thread of execution sees no difference.
pub(super) fn nop(_: &mut Vcpu, _: &Op) -> Flow<()> {
    Ok(())
}
