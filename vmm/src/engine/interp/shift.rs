//! Shifts and rotates. Counts are taken modulo 32; a count of zero changes nothing, flags included.
//!
//! OF is defined for counts of one only, and CF of 8- and 16-bit shifts only up to the width. For the rest these follow
//! what Intel's processors do: OF is what a count of one would have given.

use super::flags::{put, szp};
use super::operand::{IMM, MEM, Op, Width, read, update};
use crate::cpu::eflags::{ARITH, CF, OF};
use crate::cpu::{Flow, Vcpu, reg};

/// The operation, as bits 3 to 5 of ModRM.
pub(super) mod kind {
    #![allow(missing_docs)]
    pub const ROL: u8 = 0;
    pub const ROR: u8 = 1;
    pub const RCL: u8 = 2;
    pub const RCR: u8 = 3;
    pub const SHL: u8 = 4;
    pub const SHR: u8 = 5;
    pub const SAR: u8 = 7;
}

/// The masked count: an immediate or CL.
#[inline(always)]
fn count(v: &Vcpu, op: &Op, place: u8) -> u32 {
    (if place == IMM { op.imm } else { v.state.gpr[reg::ECX] }) & 31
}

/// ROL, ROR, RCL, RCR, SHL, SHR, SAR.
pub(super) fn shift<T: Width, const K: u8>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let n = count(v, op, op.src);
    if n == 0 {
        // The destination is still read, and written back by a memory form: the access can fault.
        return update::<T>(v, op, |a, _| a);
    }
    // A rotate of a register by an immediate other than one leaves OF.
    let keep = if op.src == IMM && op.dst != MEM && n != 1 { OF } else { 0 };
    update::<T>(v, op, |a, f| match K {
        kind::ROL => keeping(f, keep, |f| rol::<T>(a, n, f)),
        kind::ROR => keeping(f, keep, |f| ror::<T>(a, n, f)),
        kind::RCL => rcl::<T>(a, n, f),
        kind::RCR => rcr::<T>(a, n, f),
        kind::SHR => shr::<T>(a, n, f),
        kind::SAR => sar::<T>(a, n, f),
        _ => shl::<T>(a, n, f),
    })
}

/// Calls `f`, then puts the bits `keep` of the flags back.
#[inline(always)]
fn keeping(flags: &mut u32, keep: u32, f: impl FnOnce(&mut u32) -> u32) -> u32 {
    let old = *flags & keep;
    let r = f(flags);
    put(flags, keep, old);
    r
}

#[inline(always)]
fn top<T: Width>(r: u32) -> u32 {
    r >> (T::BITS - 1) & 1
}

/// The bit below the top one.
#[inline(always)]
fn second<T: Width>(r: u32) -> u32 {
    r >> (T::BITS - 2) & 1
}

#[inline(always)]
fn carry_overflow(f: &mut u32, carry: u32, overflow: u32) {
    put(f, CF | OF, carry | overflow << 11);
}

#[inline(always)]
fn all_flags<T: Width>(f: &mut u32, r: u32, carry: u32, overflow: u32) {
    put(f, ARITH, szp::<T>(r) | carry | overflow << 11);
}

fn shl<T: Width>(a: u32, n: u32, f: &mut u32) -> u32 {
    let wide = (a as u64) << n;
    let r = wide as u32 & T::MASK;
    let carry = (wide >> T::BITS) as u32 & 1;
    all_flags::<T>(f, r, carry, top::<T>(a) ^ second::<T>(a));
    r
}

fn shr<T: Width>(a: u32, n: u32, f: &mut u32) -> u32 {
    let r = a >> n;
    all_flags::<T>(f, r, a >> (n - 1) & 1, top::<T>(a));
    r
}

fn sar<T: Width>(a: u32, n: u32, f: &mut u32) -> u32 {
    let wide = super::operand::sign_extend::<T>(a) as i32;
    let r = (wide >> n) as u32 & T::MASK;
    all_flags::<T>(f, r, (wide >> (n - 1)) as u32 & 1, 0);
    r
}

fn rol<T: Width>(a: u32, n: u32, f: &mut u32) -> u32 {
    let n = n % T::BITS;
    let r = if n == 0 { a } else { (a << n | a >> (T::BITS - n)) & T::MASK };
    carry_overflow(f, r & 1, top::<T>(a) ^ second::<T>(a));
    r
}

fn ror<T: Width>(a: u32, n: u32, f: &mut u32) -> u32 {
    let n = n % T::BITS;
    let r = if n == 0 { a } else { (a >> n | a << (T::BITS - n)) & T::MASK };
    carry_overflow(f, top::<T>(r), top::<T>(a) ^ (a & 1));
    r
}

/// The operand with CF above it, rotated left by `n` of its width plus one.
#[inline(always)]
fn through_carry<T: Width>(a: u32, n: u32, carry: u32) -> u64 {
    let bits = T::BITS + 1;
    let whole = (carry as u64) << T::BITS | a as u64;
    (whole << n | whole >> (bits - n)) & ((1 << bits) - 1)
}

fn rcl<T: Width>(a: u32, n: u32, f: &mut u32) -> u32 {
    let n = n % (T::BITS + 1);
    if n == 0 {
        return a;
    }
    let whole = through_carry::<T>(a, n, *f & CF);
    let (r, carry) = (whole as u32 & T::MASK, (whole >> T::BITS) as u32 & 1);
    carry_overflow(f, carry, top::<T>(a) ^ second::<T>(a));
    r
}

fn rcr<T: Width>(a: u32, n: u32, f: &mut u32) -> u32 {
    let n = n % (T::BITS + 1);
    if n == 0 {
        return a;
    }
    let overflow = top::<T>(a) ^ (*f & CF);
    let whole = through_carry::<T>(a, T::BITS + 1 - n, *f & CF);
    let (r, carry) = (whole as u32 & T::MASK, (whole >> T::BITS) as u32 & 1);
    carry_overflow(f, carry, overflow);
    r
}

/// SHLD. A 16-bit shift by more than 16 shifts in the destination again after the source.
pub(super) fn shld<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let n = count(v, op, op.third);
    let low = read::<T>(v, op, op.src)?;
    update::<T>(v, op, |a, f| {
        if n == 0 {
            return a;
        }
        let chain = triple::<T>(a, low, a);
        let r = (chain << n >> (2 * T::BITS)) as u32 & T::MASK;
        let carry = (chain >> (3 * T::BITS - n)) as u32 & 1;
        all_flags::<T>(f, r, carry, top::<T>(a) ^ second::<T>(a));
        r
    })
}

/// SHRD, likewise.
pub(super) fn shrd<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let n = count(v, op, op.third);
    let high = read::<T>(v, op, op.src)?;
    update::<T>(v, op, |a, f| {
        if n == 0 {
            return a;
        }
        let chain = triple::<T>(a, high, a);
        let r = (chain >> n) as u32 & T::MASK;
        let carry = (chain >> (n - 1)) as u32 & 1;
        all_flags::<T>(f, r, carry, top::<T>(a) ^ (high & 1));
        r
    })
}

/// Three operands side by side, the first on top.
#[inline(always)]
fn triple<T: Width>(a: u32, b: u32, c: u32) -> u128 {
    (a as u128) << (2 * T::BITS) | (b as u128) << T::BITS | c as u128
}
