//! Segment and descriptor-table registers, and the instructions that inspect descriptors.

use super::control::far_pointer;
use super::moves::set_sized;
use super::operand::{MEM, Op, effective, load_at, read, store_at, write};
use super::stack::write_sized;
use super::system::{protected_only, supervisor, umip};
use crate::cpu::eflags::ZF;
use crate::cpu::{Flow, InterruptShadow, TableRegister, Vcpu, seg};

/// MOV Sreg, r/m16. Loading SS holds off interrupts and traps for one instruction.
pub(super) fn mov_to_segment(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let selector = read::<u16>(v, op, op.src)? as u16;
    v.load_segment(op.dst as usize, selector)?;
    if op.dst as usize == seg::SS {
        v.state.shadow = InterruptShadow::MovSs;
    }
    Ok(())
}

/// MOV r/m, Sreg: memory gets 16 bits, a register its whole operand size.
pub(super) fn mov_from_segment(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let selector = v.state.seg.get(op.src as usize).map_or(0, |s| s.selector);
    store_word(v, op, selector as u32)
}

/// Stores a 16-bit system value: memory gets 16 bits, a 32-bit register is zero-extended.
fn store_word(v: &mut Vcpu, op: &Op, value: u32) -> Flow<()> {
    if op.dst == MEM {
        return write::<u16>(v, op, MEM, value & 0xffff);
    }
    write_sized(v, op, op.dst, value)
}

/// LES, LDS, LSS, LFS, LGS: the segment register is in `third`.
pub(super) fn load_far(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let (selector, offset) = far_pointer(v, op)?;
    v.load_segment(op.third as usize, selector)?;
    set_sized(v, op, offset);
    Ok(())
}

fn store_table(v: &mut Vcpu, op: &Op, table: TableRegister) -> Flow<()> {
    umip(v)?;
    let at = effective(v, op);
    let which = op.seg as usize;
    // The limit must not be stored if the base cannot be.
    let base_at = at.wrapping_add(2) & op.addr_mask();
    store_at::<u32>(v, which, base_at, table.base)?;
    store_at::<u16>(v, which, at, table.limit as u16)
}

/// SGDT: 32 bits of base with either operand size, as processors since the 386 store.
pub(super) fn sgdt(v: &mut Vcpu, op: &Op) -> Flow<()> {
    store_table(v, op, v.state.gdtr)
}

/// SIDT.
pub(super) fn sidt(v: &mut Vcpu, op: &Op) -> Flow<()> {
    store_table(v, op, v.state.idtr)
}

fn load_table(v: &mut Vcpu, op: &Op) -> Flow<TableRegister> {
    supervisor(v)?;
    let at = effective(v, op);
    let limit = load_at::<u16>(v, op.seg as usize, at)? as u32;
    let base = load_at::<u32>(v, op.seg as usize, at.wrapping_add(2) & op.addr_mask())?;
    Ok(TableRegister { base: if op.size == 2 { base & 0x00ff_ffff } else { base }, limit })
}

/// LGDT: 24 bits of base with a 16-bit operand.
pub(super) fn lgdt(v: &mut Vcpu, op: &Op) -> Flow<()> {
    v.state.gdtr = load_table(v, op)?;
    Ok(())
}

/// LIDT.
pub(super) fn lidt(v: &mut Vcpu, op: &Op) -> Flow<()> {
    v.state.idtr = load_table(v, op)?;
    Ok(())
}

/// SLDT.
pub(super) fn sldt(v: &mut Vcpu, op: &Op) -> Flow<()> {
    protected_only(v)?;
    umip(v)?;
    store_word(v, op, v.state.ldtr.selector as u32)
}

/// STR.
pub(super) fn str_(v: &mut Vcpu, op: &Op) -> Flow<()> {
    protected_only(v)?;
    umip(v)?;
    store_word(v, op, v.state.tr.selector as u32)
}

/// SMSW: a 32-bit register gets all of CR0, as processors do.
pub(super) fn smsw(v: &mut Vcpu, op: &Op) -> Flow<()> {
    umip(v)?;
    store_word(v, op, v.state.cr0)
}

/// LLDT.
pub(super) fn lldt(v: &mut Vcpu, op: &Op) -> Flow<()> {
    protected_only(v)?;
    supervisor(v)?;
    let selector = read::<u16>(v, op, op.dst)? as u16;
    v.load_ldtr(selector)
}

/// LTR.
pub(super) fn ltr(v: &mut Vcpu, op: &Op) -> Flow<()> {
    protected_only(v)?;
    supervisor(v)?;
    let selector = read::<u16>(v, op, op.dst)? as u16;
    v.load_tr(selector)
}

fn set_zf(v: &mut Vcpu, on: bool) {
    v.state.eflags = (v.state.eflags & !ZF) | if on { ZF } else { 0 };
}

fn inspect(v: &mut Vcpu, op: &Op, rule: fn(&mut Vcpu, u16) -> Flow<Option<u32>>) -> Flow<()> {
    protected_only(v)?;
    let selector = read::<u16>(v, op, op.src)? as u16;
    let found = rule(v, selector)?;
    set_zf(v, found.is_some());
    if let Some(value) = found {
        set_sized(v, op, value);
    }
    Ok(())
}

/// LAR.
pub(super) fn lar(v: &mut Vcpu, op: &Op) -> Flow<()> {
    inspect(v, op, Vcpu::lar)
}

/// LSL.
pub(super) fn lsl(v: &mut Vcpu, op: &Op) -> Flow<()> {
    inspect(v, op, Vcpu::lsl)
}

fn verify(v: &mut Vcpu, op: &Op, rule: fn(&mut Vcpu, u16) -> Flow<bool>) -> Flow<()> {
    protected_only(v)?;
    let selector = read::<u16>(v, op, op.dst)? as u16;
    let ok = rule(v, selector)?;
    set_zf(v, ok);
    Ok(())
}

/// VERR.
pub(super) fn verr(v: &mut Vcpu, op: &Op) -> Flow<()> {
    verify(v, op, Vcpu::verr)
}

/// VERW.
pub(super) fn verw(v: &mut Vcpu, op: &Op) -> Flow<()> {
    verify(v, op, Vcpu::verw)
}

/// ARPL: the destination is written only if it changes.
pub(super) fn arpl(v: &mut Vcpu, op: &Op) -> Flow<()> {
    protected_only(v)?;
    let rpl = read::<u16>(v, op, op.src)? & 3;
    let old = read::<u16>(v, op, op.dst)?;
    let raise = old & 3 < rpl;
    if raise {
        write::<u16>(v, op, op.dst, (old & !3) | rpl)?;
    }
    set_zf(v, raise);
    Ok(())
}
