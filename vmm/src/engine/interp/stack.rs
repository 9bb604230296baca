//! PUSH, POP and their relatives. ESP moves last, so that a fault leaves it; the width of the stack pointer is SS.B.

use super::operand::{Op, check_alignment, load_at, read, store_at, write};
use crate::cpu::{Flow, Stop, Vcpu, eflags, reg, seg, vector};
use crate::mmu::Access;

/// Pushes `value` in operand size `size` (2 or 4 bytes).
#[inline]
pub(super) fn push_sized(v: &mut Vcpu, size: u8, value: u32) -> Flow<()> {
    let offset = v.state.gpr[reg::ESP].wrapping_sub(size as u32) & v.stack_mask();
    match size {
        2 => store_at::<u16>(v, seg::SS, offset, value as u16)?,
        _ => store_at::<u32>(v, seg::SS, offset, value)?,
    }
    v.set_stack_pointer(offset);
    Ok(())
}

/// Pops a value of operand size `size`.
#[inline]
pub(super) fn pop_sized(v: &mut Vcpu, size: u8) -> Flow<u32> {
    let value = peek_sized(v, size, 0)?;
    v.set_stack_pointer(v.state.gpr[reg::ESP].wrapping_add(size as u32));
    Ok(value)
}

/// The value `skip` bytes above the top of the stack.
#[inline]
pub(super) fn peek_sized(v: &mut Vcpu, size: u8, skip: u32) -> Flow<u32> {
    let offset = v.state.gpr[reg::ESP].wrapping_add(skip) & v.stack_mask();
    match size {
        2 => load_at::<u16>(v, seg::SS, offset).map(u32::from),
        _ => load_at::<u32>(v, seg::SS, offset),
    }
}

/// Reads a 16- or 32-bit operand.
#[inline]
pub(super) fn read_sized(v: &mut Vcpu, op: &Op, place: u8) -> Flow<u32> {
    if op.size == 2 { read::<u16>(v, op, place) } else { read::<u32>(v, op, place) }
}

/// Writes a 16- or 32-bit operand.
#[inline]
pub(super) fn write_sized(v: &mut Vcpu, op: &Op, place: u8, value: u32) -> Flow<()> {
    if op.size == 2 { write::<u16>(v, op, place, value) } else { write::<u32>(v, op, place, value) }
}

/// PUSH of a register, memory or immediate.
pub(super) fn push(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let value = read_sized(v, op, op.dst)?;
    push_sized(v, op.size, value)
}

/// POP to a register or memory: an address through ESP uses the value after the pop.
pub(super) fn pop(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let value = pop_sized(v, op.size)?;
    write_sized(v, op, op.dst, value)
}

/// PUSH of a segment register. With a 32-bit operand processors store 16 bits and leave the upper ones in memory.
pub(super) fn push_segment(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let selector = v.state.seg.get(op.dst as usize).map_or(0, |s| s.selector);
    let offset = v.state.gpr[reg::ESP].wrapping_sub(op.size as u32) & v.stack_mask();
    if op.size == 4 {
        // The whole slot must be inside the segment.
        v.linear(seg::SS, offset, 4, Access::Write)?;
    }
    store_at::<u16>(v, seg::SS, offset, selector)?;
    v.set_stack_pointer(offset);
    Ok(())
}

/// POP of a segment register. POP SS holds off interrupts and traps for one instruction.
pub(super) fn pop_segment(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let selector = pop_sized(v, op.size)? as u16;
    v.load_segment(op.dst as usize, selector)?;
    if op.dst as usize == seg::SS {
        v.state.shadow = crate::cpu::InterruptShadow::MovSs;
    }
    Ok(())
}

/// PUSHA and PUSHAD: all eight registers with the old ESP.
pub(super) fn pusha(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let old = v.state.gpr;
    old.iter().try_for_each(|&r| push_sized(v, op.size, r))
}

/// POPA and POPAD: ESP's slot is skipped.
pub(super) fn popa(v: &mut Vcpu, op: &Op) -> Flow<()> {
    for r in (0..8u8).rev() {
        let value = pop_sized(v, op.size)?;
        if r as usize != reg::ESP {
            write_sized(v, op, r, value)?;
        }
    }
    Ok(())
}

/// ENTER. The frame pointer is written only when everything else has succeeded.
pub(super) fn enter(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let size = op.size as u32;
    let level = op.imm2 as u32 & 31;
    let mut link = v.state.gpr[reg::EBP];
    push_sized(v, op.size, link)?;
    let frame = v.state.gpr[reg::ESP];
    for i in 1..level {
        link = v.state.gpr[reg::EBP].wrapping_sub(i * size) & v.stack_mask();
        let saved = match op.size {
            2 => load_at::<u16>(v, seg::SS, link)? as u32,
            _ => load_at::<u32>(v, seg::SS, link)?,
        };
        push_sized(v, op.size, saved)?;
    }
    if level > 0 {
        push_sized(v, op.size, frame)?;
    }
    let top = v.state.gpr[reg::ESP].wrapping_sub(op.imm & 0xffff);
    v.set_stack_pointer(top);
    // The new top must be writable (SDM vol. 2, ENTER).
    let linear = v.linear(seg::SS, top & v.stack_mask(), size, Access::Write)?;
    check_alignment(v, linear, size)?;
    v.probe_write(linear, size, v.privilege())?;
    write_sized(v, op, reg::EBP as u8, frame)
}

/// LEAVE.
pub(super) fn leave(v: &mut Vcpu, op: &Op) -> Flow<()> {
    v.set_stack_pointer(v.state.gpr[reg::EBP]);
    let value = pop_sized(v, op.size)?;
    write_sized(v, op, reg::EBP as u8, value)
}

/// #GP(0) for PUSHF and POPF in virtual-8086 mode with IOPL below 3. (The processor has no VME.)
fn flags_access(v: &Vcpu) -> Flow<()> {
    if v.state.v8086() && v.state.iopl() < 3 { Err(Stop::gp(0)) } else { Ok(()) }
}

/// PUSHF and PUSHFD.
pub(super) fn pushf(v: &mut Vcpu, op: &Op) -> Flow<()> {
    flags_access(v)?;
    push_sized(v, op.size, v.state.eflags & !(eflags::VM | eflags::RF))
}

/// POPF and POPFD (SDM vol. 2, table 4-16): IOPL takes CPL 0, IF takes CPL <= IOPL; VM, VIF and VIP stay.
pub(super) fn popf(v: &mut Vcpu, op: &Op) -> Flow<()> {
    use eflags::{AC, ARITH, DF, ID, IF, IOPL, NT, TF};
    flags_access(v)?;
    let value = pop_sized(v, op.size)?;
    let mut mask = ARITH | TF | DF | NT | AC | ID;
    if v.state.cpl == 0 {
        mask |= IOPL;
    }
    if v.state.cpl <= v.state.iopl() {
        mask |= IF;
    }
    mask &= op.size_mask();
    v.state.eflags = (v.state.eflags & !mask) | (value & mask);
    Ok(())
}

/// BOUND: #BR if the signed index is outside the pair of bounds in memory.
pub(super) fn bound(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let at = super::operand::effective(v, op);
    let next = at.wrapping_add(op.size as u32) & op.addr_mask();
    let which = op.seg as usize;
    let index = read_sized(v, op, op.dst)?;
    let signed = |v: u32| if op.size == 2 { v as u16 as i16 as i32 } else { v as i32 };
    let limit = |v: &mut Vcpu, at: u32| match op.size {
        2 => load_at::<u16>(v, which, at).map(u32::from),
        _ => load_at::<u32>(v, which, at),
    };
    // An index below the lower bound is found before the upper one is read.
    let low = signed(limit(v, at)?);
    if signed(index) < low || signed(index) > signed(limit(v, next)?) {
        return Err(Stop::plain(vector::BR));
    }
    Ok(())
}
