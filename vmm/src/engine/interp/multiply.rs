//! Multiplication, division, and the decimal adjustments.

use super::flags::{add, logic, put, szp};
use super::operand::{Op, Width, read, sign_extend};
use crate::cpu::eflags::{AF, ARITH, CF, OF, PF, SF, ZF};
use crate::cpu::{Flow, Stop, Vcpu, reg, vector};

/// Writes a double-width result: AX, or DX:AX, or EDX:EAX.
fn set_wide<T: Width>(v: &mut Vcpu, low: u32, high: u32) {
    let g = &mut v.state.gpr;
    if T::BITS == 8 {
        u16::set(g, reg::EAX as u8, (high & 0xff) << 8 | (low & 0xff));
    } else {
        T::set(g, reg::EAX as u8, low);
        T::set(g, reg::EDX as u8, high);
    }
}

/// Flags after a multiplication: CF and OF say that the high half matters; the rest, undefined, follow the low half.
fn multiply_flags<T: Width>(v: &mut Vcpu, low: u32, wide: bool) {
    let low = low & T::MASK;
    put(&mut v.state.eflags, ARITH, (szp::<T>(low) & (SF | PF)) | if wide { CF | OF } else { 0 });
}

/// MUL.
pub(super) fn mul<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let b = read::<T>(v, op, op.dst)?;
    let product = T::get(&v.state.gpr, reg::EAX as u8) as u64 * b as u64;
    let (low, high) = (product as u32, (product >> T::BITS) as u32);
    set_wide::<T>(v, low, high);
    multiply_flags::<T>(v, low, high != 0);
    Ok(())
}

/// Signed product as low and high half, and whether it does not fit the low half.
fn signed_product<T: Width>(a: u32, b: u32) -> (u32, u32, bool) {
    let product = sign_extend::<T>(a) as i32 as i64 * sign_extend::<T>(b) as i32 as i64;
    let low = product as u32 & T::MASK;
    (low, (product >> T::BITS) as u32 & T::MASK, product != sign_extend::<T>(low) as i32 as i64)
}

/// IMUL with one operand.
pub(super) fn imul1<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let b = read::<T>(v, op, op.dst)?;
    let (low, high, wide) = signed_product::<T>(T::get(&v.state.gpr, reg::EAX as u8), b);
    set_wide::<T>(v, low, high);
    multiply_flags::<T>(v, low, wide);
    Ok(())
}

/// IMUL with two or three operands: `dst = src * third`.
pub(super) fn imul<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let a = read::<T>(v, op, op.src)?;
    let b = read::<T>(v, op, op.third)?;
    let (low, _, wide) = signed_product::<T>(a, b);
    T::set(&mut v.state.gpr, op.dst, low);
    multiply_flags::<T>(v, low, wide);
    Ok(())
}

/// The dividend of DIV and IDIV.
fn dividend<T: Width>(v: &Vcpu) -> u64 {
    let g = &v.state.gpr;
    match T::BITS {
        8 => u16::get(g, reg::EAX as u8) as u64,
        bits => (T::get(g, reg::EDX as u8) as u64) << bits | T::get(g, reg::EAX as u8) as u64,
    }
}

/// DIV. Flags are undefined; processors leave them.
pub(super) fn div<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let b = read::<T>(v, op, op.dst)? as u64;
    let a = dividend::<T>(v);
    match a.checked_div(b) {
        Some(q) if q <= T::MASK as u64 => {
            set_wide::<T>(v, q as u32, (a % b) as u32);
            Ok(())
        }
        _ => Err(Stop::plain(vector::DE)),
    }
}

/// IDIV.
pub(super) fn idiv<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let b = sign_extend::<T>(read::<T>(v, op, op.dst)?) as i32 as i64;
    let unused = 64 - 2 * T::BITS;
    let a = (dividend::<T>(v) << unused) as i64 >> unused;
    match (a.checked_div(b), a.checked_rem(b)) {
        (Some(q), Some(r)) if q == sign_extend::<T>(q as u32 & T::MASK) as i32 as i64 => {
            set_wide::<T>(v, q as u32 & T::MASK, r as u32 & T::MASK);
            Ok(())
        }
        _ => Err(Stop::plain(vector::DE)),
    }
}

/// DAA.
pub(super) fn daa(v: &mut Vcpu, _: &Op) -> Flow<()> {
    decimal_adjust(v, u32::wrapping_add)
}

/// DAS.
pub(super) fn das(v: &mut Vcpu, _: &Op) -> Flow<()> {
    decimal_adjust(v, u32::wrapping_sub)
}

fn decimal_adjust(v: &mut Vcpu, step: fn(u32, u32) -> u32) -> Flow<()> {
    let old = v.state.gpr[reg::EAX] & 0xff;
    let flags = v.state.eflags;
    let mut al = old;
    let mut out = 0;
    if old & 0xf > 9 || flags & AF != 0 {
        al = step(al, 6);
        out |= AF;
        // The low digit's carry out of the byte only shows for DAS, where the high digit may stay unadjusted.
        if al & 0x100 != 0 && step(1, 1) == 0 {
            out |= CF;
        }
    }
    if old > 0x99 || flags & CF != 0 {
        al = step(al, 0x60);
        out |= CF;
    }
    al &= 0xff;
    u8::set(&mut v.state.gpr, reg::EAX as u8, al);
    put(&mut v.state.eflags, ARITH, out | szp::<u8>(al));
    Ok(())
}

/// AAA.
pub(super) fn aaa(v: &mut Vcpu, _: &Op) -> Flow<()> {
    ascii_adjust(v, u32::wrapping_add)
}

/// AAS.
pub(super) fn aas(v: &mut Vcpu, _: &Op) -> Flow<()> {
    ascii_adjust(v, u32::wrapping_sub)
}

fn ascii_adjust(v: &mut Vcpu, step: fn(u32, u32) -> u32) -> Flow<()> {
    let ax = v.state.gpr[reg::EAX] & 0xffff;
    let adjust = ax & 0xf > 9 || v.state.eflags & AF != 0;
    let ax = if adjust { step(ax, 0x106) } else { ax } & 0xff0f;
    u16::set(&mut v.state.gpr, reg::EAX as u8, ax);
    let out = if adjust { AF | CF } else { 0 };
    put(&mut v.state.eflags, ARITH, out | (szp::<u8>(ax & 0xff) & (ZF | PF)));
    Ok(())
}

/// AAM.
pub(super) fn aam(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let base = op.imm & 0xff;
    let al = v.state.gpr[reg::EAX] & 0xff;
    if base == 0 {
        return Err(Stop::plain(vector::DE));
    }
    u16::set(&mut v.state.gpr, reg::EAX as u8, (al / base) << 8 | (al % base));
    logic::<u8>(al % base, &mut v.state.eflags);
    Ok(())
}

/// AAD: flags, some of them undefined, are those of the addition.
pub(super) fn aad(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let ax = v.state.gpr[reg::EAX] & 0xffff;
    let tens = ((ax >> 8) * (op.imm & 0xff)) & 0xff;
    let al = add::<u8>(ax & 0xff, tens, 0, &mut v.state.eflags);
    u16::set(&mut v.state.gpr, reg::EAX as u8, al);
    Ok(())
}
