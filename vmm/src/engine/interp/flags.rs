//! EFLAGS after arithmetic (SDM vol. 1, §3.4.3.1), computed at once: the interpreter keeps EFLAGS complete.
//!
//! Where the manual says "undefined", these give what Intel's processors give, so that the interpreter can be compared
//! with the host processor flag by flag.

use super::operand::Width;
use crate::cpu::eflags::{AF, ARITH, CF, OF, PF, SF, ZF};

/// SF, ZF and PF of `r`, which holds no bits beyond the width.
#[inline(always)]
pub(super) fn szp<T: Width>(r: u32) -> u32 {
    let even = 0x9669u32 >> ((r ^ r >> 4) & 0xf) & 1;
    let sign = if r & T::SIGN != 0 { SF } else { 0 };
    let zero = if r == 0 { ZF } else { 0 };
    even << 2 | sign | zero
}

/// Replaces the bits `mask` of `flags` by `bits`.
#[inline(always)]
pub(super) fn put(flags: &mut u32, mask: u32, bits: u32) {
    *flags = (*flags & !mask) | bits;
}

/// `a + b + carry` and its flags.
#[inline(always)]
pub(super) fn add<T: Width>(a: u32, b: u32, carry: u32, flags: &mut u32) -> u32 {
    let r = a.wrapping_add(b).wrapping_add(carry) & T::MASK;
    let carries = (a & b) | ((a | b) & !r);
    let overflow = (a ^ r) & (b ^ r);
    put(flags, ARITH, szp::<T>(r) | edges::<T>(carries, overflow));
    r
}

/// `a - b - borrow` and its flags.
#[inline(always)]
pub(super) fn sub<T: Width>(a: u32, b: u32, borrow: u32, flags: &mut u32) -> u32 {
    let r = a.wrapping_sub(b).wrapping_sub(borrow) & T::MASK;
    let borrows = (!a & b) | ((!a | b) & r);
    let overflow = (a ^ b) & (a ^ r);
    put(flags, ARITH, szp::<T>(r) | edges::<T>(borrows, overflow));
    r
}

/// Flags of a logical result: CF, OF and AF are clear.
#[inline(always)]
pub(super) fn logic<T: Width>(r: u32, flags: &mut u32) -> u32 {
    put(flags, ARITH, szp::<T>(r));
    r
}

/// CF and AF from the carry vector, OF from the sign of `overflow`.
#[inline(always)]
fn edges<T: Width>(carries: u32, overflow: u32) -> u32 {
    let cf = carries >> (T::BITS - 1) & 1;
    let af = (carries >> 3 & 1) << 4;
    let of = (overflow >> (T::BITS - 1) & 1) << 11;
    debug_assert_eq!((CF, AF, OF), (1, 1 << 4, 1 << 11));
    cf | af | of
}

/// True if condition `code` (the low four bits of Jcc, SETcc and CMOVcc) holds.
#[inline(always)]
pub(super) fn condition(flags: u32, code: u8) -> bool {
    let holds = match code >> 1 {
        0 => flags & OF != 0,
        1 => flags & CF != 0,
        2 => flags & ZF != 0,
        3 => flags & (CF | ZF) != 0,
        4 => flags & SF != 0,
        5 => flags & PF != 0,
        6 => (flags & SF != 0) != (flags & OF != 0),
        _ => flags & ZF != 0 || (flags & SF != 0) != (flags & OF != 0),
    };
    holds != (code & 1 != 0)
}
