//! Moves between general registers, memory and flags.

use super::flags::{condition, put};
use super::operand::{Op, Width, effective, read, sign_extend, write};
use crate::cpu::eflags::{AF, CF, PF, SF, ZF};
use crate::cpu::{Flow, Vcpu, reg};

/// MOV between general registers, memory and immediates.
pub(super) fn mov<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let value = read::<T>(v, op, op.src)?;
    write::<T>(v, op, op.dst, value)
}

/// MOVZX from `S`; the destination's width is the operand size.
pub(super) fn movzx<S: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let value = read::<S>(v, op, op.src)?;
    set_sized(v, op, value);
    Ok(())
}

/// MOVSX from `S`.
pub(super) fn movsx<S: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let value = sign_extend::<S>(read::<S>(v, op, op.src)?);
    set_sized(v, op, value);
    Ok(())
}

/// Writes a register destination of 16 or 32 bits.
#[inline]
pub(super) fn set_sized(v: &mut Vcpu, op: &Op, value: u32) {
    match op.size {
        2 => u16::set(&mut v.state.gpr, op.dst, value),
        _ => u32::set(&mut v.state.gpr, op.dst, value),
    }
}

/// LEA.
pub(super) fn lea(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let value = effective(v, op);
    set_sized(v, op, value);
    Ok(())
}

/// MOVBE, both directions.
pub(super) fn movbe<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let value = read::<T>(v, op, op.src)?;
    write::<T>(v, op, op.dst, value.swap_bytes() >> (32 - T::BITS))
}

/// SETcc; the condition is in `imm2`.
pub(super) fn setcc(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let value = condition(v.state.eflags, op.imm2 as u8) as u32;
    write::<u8>(v, op, op.dst, value)
}

/// CMOVcc: the source is read, and may fault, whether or not the condition holds.
pub(super) fn cmov<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let value = read::<T>(v, op, op.src)?;
    if condition(v.state.eflags, op.imm2 as u8) {
        T::set(&mut v.state.gpr, op.dst, value);
    }
    Ok(())
}

/// BSWAP of 32 bits. With a 16-bit operand the result is undefined; processors clear the low half.
pub(super) fn bswap(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let r = &mut v.state.gpr[op.dst as usize & 7];
    *r = if op.size == 2 { *r & 0xffff_0000 } else { r.swap_bytes() };
    Ok(())
}

/// CBW and CWDE.
pub(super) fn cbw(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let eax = &mut v.state.gpr[reg::EAX];
    *eax = match op.size {
        2 => (*eax & 0xffff_0000) | (sign_extend::<u8>(*eax) & 0xffff),
        _ => sign_extend::<u16>(*eax),
    };
    Ok(())
}

/// CWD and CDQ.
pub(super) fn cwd(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let g = &mut v.state.gpr;
    match op.size {
        2 => u16::set(g, reg::EDX as u8, sign_extend::<u16>(g[reg::EAX]) >> 16),
        _ => g[reg::EDX] = ((g[reg::EAX] as i32) >> 31) as u32,
    }
    Ok(())
}

/// SALC.
pub(super) fn salc(v: &mut Vcpu, _: &Op) -> Flow<()> {
    let value = if v.state.eflags & CF != 0 { 0xff } else { 0 };
    u8::set(&mut v.state.gpr, reg::EAX as u8, value);
    Ok(())
}

/// LAHF.
pub(super) fn lahf(v: &mut Vcpu, _: &Op) -> Flow<()> {
    let low = v.state.eflags & 0xff;
    u8::set(&mut v.state.gpr, 4, low);
    Ok(())
}

/// SAHF.
pub(super) fn sahf(v: &mut Vcpu, _: &Op) -> Flow<()> {
    let mask = SF | ZF | AF | PF | CF;
    let ah = u8::get(&v.state.gpr, 4);
    put(&mut v.state.eflags, mask, ah & mask);
    Ok(())
}

/// CLC, STC, CMC, CLD, STD: clears the bits `imm`, then flips the bits `disp`.
pub(super) fn flag_bits(v: &mut Vcpu, op: &Op) -> Flow<()> {
    v.state.eflags = (v.state.eflags & !op.imm) ^ op.disp;
    Ok(())
}
