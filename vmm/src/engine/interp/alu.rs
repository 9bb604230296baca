//! The arithmetic and logic group, the exchanges, and CRC32.

use super::flags::{add, logic, put, sub};
use super::operand::{MEM, Op, Width, effective, load_update, read, update};
use crate::cpu::eflags::{CF, ZF};
use crate::cpu::{Flow, Vcpu, reg};

/// The operation of [`binary`], as bits 3 to 5 of its opcode.
pub(super) mod kind {
    #![allow(missing_docs)]
    pub const ADD: u8 = 0;
    pub const OR: u8 = 1;
    pub const ADC: u8 = 2;
    pub const SBB: u8 = 3;
    pub const AND: u8 = 4;
    pub const SUB: u8 = 5;
    pub const XOR: u8 = 6;
    pub const CMP: u8 = 7;
    /// TEST: an AND that keeps its destination.
    pub const TEST: u8 = 8;
}

/// ADD, OR, ADC, SBB, AND, SUB, XOR.
pub(super) fn binary<T: Width, const K: u8>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let b = read::<T>(v, op, op.src)?;
    update::<T>(v, op, |a, f| compute::<T, K>(a, b, f))
}

/// CMP and TEST.
pub(super) fn compare<T: Width, const K: u8>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let a = read::<T>(v, op, op.dst)?;
    let b = read::<T>(v, op, op.src)?;
    compute::<T, K>(a, b, &mut v.state.eflags);
    Ok(())
}

/// The flags of comparing two values (CMPS and SCAS).
#[inline(always)]
pub(super) fn compare_values<T: Width, const K: u8>(a: u32, b: u32, f: &mut u32) {
    compute::<T, K>(a, b, f);
}

#[inline(always)]
fn compute<T: Width, const K: u8>(a: u32, b: u32, f: &mut u32) -> u32 {
    match K {
        kind::ADD => add::<T>(a, b, 0, f),
        kind::ADC => add::<T>(a, b, *f & CF, f),
        kind::SUB | kind::CMP => sub::<T>(a, b, 0, f),
        kind::SBB => sub::<T>(a, b, *f & CF, f),
        kind::OR => logic::<T>(a | b, f),
        kind::XOR => logic::<T>(a ^ b, f),
        _ => logic::<T>(a & b, f),
    }
}

/// INC, which leaves CF.
pub(super) fn inc<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    update::<T>(v, op, |a, f| {
        let carry = *f & CF;
        let r = add::<T>(a, 1, 0, f);
        put(f, CF, carry);
        r
    })
}

/// DEC, which leaves CF.
pub(super) fn dec<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    update::<T>(v, op, |a, f| {
        let carry = *f & CF;
        let r = sub::<T>(a, 1, 0, f);
        put(f, CF, carry);
        r
    })
}

/// NEG.
pub(super) fn neg<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    update::<T>(v, op, |a, f| sub::<T>(0, a, 0, f))
}

/// NOT.
pub(super) fn not<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    update::<T>(v, op, |a, _| !a & T::MASK)
}

/// XCHG. The memory operand, if any, is the first.
pub(super) fn xchg<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let new = read::<T>(v, op, op.src)?;
    let mut old = 0;
    update::<T>(v, op, |a, _| {
        old = a;
        new
    })?;
    T::set(&mut v.state.gpr, op.src, old);
    Ok(())
}

/// XADD.
pub(super) fn xadd<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let b = read::<T>(v, op, op.src)?;
    let mut old = 0;
    let mut sum = 0;
    update::<T>(v, op, |a, f| {
        old = a;
        sum = add::<T>(a, b, 0, f);
        sum
    })?;
    T::set(&mut v.state.gpr, op.src, old);
    if op.dst != MEM {
        T::set(&mut v.state.gpr, op.dst, sum);
    }
    Ok(())
}

/// CMPXCHG. A failed comparison still writes the destination back (SDM vol. 2).
pub(super) fn cmpxchg<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let expected = T::get(&v.state.gpr, reg::EAX as u8);
    let new = read::<T>(v, op, op.src)?;
    let mut found = expected;
    update::<T>(v, op, |a, f| {
        sub::<T>(expected, a, 0, f);
        found = a;
        if a == expected { new } else { a }
    })?;
    if found != expected {
        T::set(&mut v.state.gpr, reg::EAX as u8, found);
    }
    Ok(())
}

/// CMPXCHG8B.
pub(super) fn cmpxchg8b(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let (old, linear) = load_update::<u64>(v, op.seg as usize, effective(v, op))?;
    let g = v.state.gpr;
    let pair = |high: usize, low: usize| (g[high] as u64) << 32 | g[low] as u64;
    let equal = old == pair(reg::EDX, reg::EAX);
    let new = if equal { pair(reg::ECX, reg::EBX) } else { old };
    v.store(linear, new, v.privilege())?;
    if !equal {
        v.state.gpr[reg::EAX] = old as u32;
        v.state.gpr[reg::EDX] = (old >> 32) as u32;
    }
    put(&mut v.state.eflags, ZF, if equal { ZF } else { 0 });
    Ok(())
}

/// CRC32 (SSE4.2): the destination accumulates with polynomial 11EDC6F41h, bit-reflected.
pub(super) fn crc32<S: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let data = read::<S>(v, op, op.src)?;
    let mut crc = v.state.gpr[op.dst as usize & 7] ^ data;
    for _ in 0..S::BITS {
        crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
    }
    v.state.gpr[op.dst as usize & 7] = crc;
    Ok(())
}
