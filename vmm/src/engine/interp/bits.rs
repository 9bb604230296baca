//! Bit tests and scans, and the BMI1, BMI2, ADX, POPCNT and LZCNT instructions.

use super::flags::{logic, put, szp};
use super::operand::{IMM, MEM, Op, Width, effective, load_at, load_update, read, set_reg, sign_extend};
use crate::cpu::eflags::{ARITH, CF, OF, PF, ZF};
use crate::cpu::{Flow, Stop, Vcpu, reg};
use crate::mmu::Datum;

/// What BT and its relatives do to the bit.
pub(super) mod kind {
    #![allow(missing_docs)]
    pub const BT: u8 = 0;
    pub const BTS: u8 = 1;
    pub const BTR: u8 = 2;
    pub const BTC: u8 = 3;
}

/// BT, BTS, BTR, BTC. A register bit offset reaches beyond the memory operand (SDM vol. 2, BT).
pub(super) fn bit_test<T: Width, const K: u8>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let offset = read::<T>(v, op, op.src)?;
    let bit = 1u32 << (offset & (T::BITS - 1));
    let change = |a: u32| match K {
        kind::BTS => a | bit,
        kind::BTR => a & !bit,
        kind::BTC => a ^ bit,
        _ => a,
    };
    let old;
    if op.dst != MEM {
        old = T::get(&v.state.gpr, op.dst);
        T::set(&mut v.state.gpr, op.dst, change(old));
    } else {
        let at = bit_address::<T>(v, op, offset);
        if K == kind::BT {
            old = narrow(load_at::<T>(v, op.seg as usize, at)?);
        } else {
            let (value, linear) = load_update::<T>(v, op.seg as usize, at)?;
            old = narrow(value);
            v.store(linear, T::truncate(change(old) as u64), v.privilege())?;
        }
    }
    put(&mut v.state.eflags, CF, (old & bit != 0) as u32);
    Ok(())
}

fn narrow<T: Datum>(value: T) -> u32 {
    let wide: u64 = value.into();
    wide as u32
}

/// Address of the operand-sized unit that holds bit `offset`; an immediate offset stays inside the operand.
fn bit_address<T: Width>(v: &Vcpu, op: &Op, offset: u32) -> u32 {
    let at = effective(v, op);
    if op.src == IMM {
        return at;
    }
    let units = sign_extend::<T>(offset) as i32 >> T::BITS.trailing_zeros();
    at.wrapping_add((units as u32).wrapping_mul(T::SIZE as u32)) & op.addr_mask()
}

/// BSF: with a zero source ZF is set and the destination stays.
pub(super) fn bsf<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let a = read::<T>(v, op, op.src)?;
    scan::<T>(v, op, a, a.trailing_zeros())
}

/// BSR.
pub(super) fn bsr<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let a = read::<T>(v, op, op.src)?;
    scan::<T>(v, op, a, 31u32.wrapping_sub(a.leading_zeros()))
}

fn scan<T: Width>(v: &mut Vcpu, op: &Op, a: u32, position: u32) -> Flow<()> {
    if a != 0 {
        T::set(&mut v.state.gpr, op.dst, position);
    }
    // Beside ZF the flags are undefined: PF follows the result, the others are clear.
    let zero = if a == 0 { ZF } else { 0 };
    let result = if a == 0 { 0 } else { position };
    put(&mut v.state.eflags, ARITH, szp::<T>(result) & PF | zero);
    Ok(())
}

/// TZCNT.
pub(super) fn tzcnt<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let a = read::<T>(v, op, op.src)?;
    counted::<T>(v, op, a.trailing_zeros().min(T::BITS))
}

/// LZCNT.
pub(super) fn lzcnt<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let a = read::<T>(v, op, op.src)?;
    counted::<T>(v, op, a.leading_zeros() - (32 - T::BITS))
}

fn counted<T: Width>(v: &mut Vcpu, op: &Op, n: u32) -> Flow<()> {
    T::set(&mut v.state.gpr, op.dst, n);
    let carry = if n == T::BITS { CF } else { 0 };
    let zero = if n == 0 { ZF } else { 0 };
    put(&mut v.state.eflags, ARITH, carry | zero);
    Ok(())
}

/// POPCNT.
pub(super) fn popcnt<T: Width>(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let a = read::<T>(v, op, op.src)?;
    T::set(&mut v.state.gpr, op.dst, a.count_ones());
    put(&mut v.state.eflags, ARITH, if a == 0 { ZF } else { 0 });
    Ok(())
}

/// VEX encodings do not exist in real and virtual-8086 mode.
fn vex(v: &Vcpu) -> Flow<()> {
    if v.state.real_or_v8086() { Err(Stop::ud()) } else { Ok(()) }
}

/// ANDN.
pub(super) fn andn(v: &mut Vcpu, op: &Op) -> Flow<()> {
    vex(v)?;
    let a = read::<u32>(v, op, op.src)?;
    let b = read::<u32>(v, op, op.third)?;
    let r = logic::<u32>(!a & b, &mut v.state.eflags);
    set_reg(v, op.dst, r)
}

/// BLSI, BLSMSK, BLSR by `f` of the source; CF says whether the source was zero (BLSI: not zero).
fn lowest(v: &mut Vcpu, op: &Op, f: fn(u32) -> u32, carry: fn(u32) -> bool) -> Flow<()> {
    vex(v)?;
    let a = read::<u32>(v, op, op.src)?;
    let r = logic::<u32>(f(a), &mut v.state.eflags);
    put(&mut v.state.eflags, CF, carry(a) as u32);
    set_reg(v, op.dst, r)
}

/// BLSI.
pub(super) fn blsi(v: &mut Vcpu, op: &Op) -> Flow<()> {
    lowest(v, op, |a| a & a.wrapping_neg(), |a| a != 0)
}

/// BLSMSK.
pub(super) fn blsmsk(v: &mut Vcpu, op: &Op) -> Flow<()> {
    lowest(v, op, |a| a ^ a.wrapping_sub(1), |a| a == 0)?;
    // ZF is cleared whatever the result; the result is never zero.
    Ok(())
}

/// BLSR.
pub(super) fn blsr(v: &mut Vcpu, op: &Op) -> Flow<()> {
    lowest(v, op, |a| a & a.wrapping_sub(1), |a| a == 0)
}

/// BEXTR.
pub(super) fn bextr(v: &mut Vcpu, op: &Op) -> Flow<()> {
    vex(v)?;
    let a = read::<u32>(v, op, op.src)?;
    let control = read::<u32>(v, op, op.third)?;
    let shifted = a.checked_shr(control & 0xff).unwrap_or(0);
    let length = control >> 8 & 0xff;
    let r = if length < 32 { shifted & ((1 << length) - 1) } else { shifted };
    put(&mut v.state.eflags, ARITH, if r == 0 { ZF } else { 0 });
    set_reg(v, op.dst, r)
}

/// BZHI.
pub(super) fn bzhi(v: &mut Vcpu, op: &Op) -> Flow<()> {
    vex(v)?;
    let a = read::<u32>(v, op, op.src)?;
    let n = read::<u32>(v, op, op.third)? & 0xff;
    let r = if n < 32 { a & ((1 << n) - 1) } else { a };
    // PF and AF are undefined, and clear on Intel processors.
    put(&mut v.state.eflags, ARITH, szp::<u32>(r) & !PF | (n > 31) as u32);
    set_reg(v, op.dst, r)
}

/// MULX: high half to the first operand, low half to the second; equal operands get the high half.
pub(super) fn mulx(v: &mut Vcpu, op: &Op) -> Flow<()> {
    vex(v)?;
    let product = read::<u32>(v, op, op.third)? as u64 * v.state.gpr[reg::EDX] as u64;
    set_reg(v, op.src, product as u32)?;
    set_reg(v, op.dst, (product >> 32) as u32)
}

/// PDEP.
pub(super) fn pdep(v: &mut Vcpu, op: &Op) -> Flow<()> {
    vex(v)?;
    let mut a = read::<u32>(v, op, op.src)?;
    let mut mask = read::<u32>(v, op, op.third)?;
    let mut r = 0;
    while mask != 0 {
        let bit = mask & mask.wrapping_neg();
        r |= if a & 1 != 0 { bit } else { 0 };
        a >>= 1;
        mask ^= bit;
    }
    set_reg(v, op.dst, r)
}

/// PEXT.
pub(super) fn pext(v: &mut Vcpu, op: &Op) -> Flow<()> {
    vex(v)?;
    let a = read::<u32>(v, op, op.src)?;
    let mut mask = read::<u32>(v, op, op.third)?;
    let (mut r, mut at) = (0, 0);
    while mask != 0 {
        let bit = mask & mask.wrapping_neg();
        r |= ((a & bit != 0) as u32) << at;
        at += 1;
        mask ^= bit;
    }
    set_reg(v, op.dst, r)
}

fn shift_by(v: &mut Vcpu, op: &Op, f: fn(u32, u32) -> u32) -> Flow<()> {
    vex(v)?;
    let a = read::<u32>(v, op, op.src)?;
    let n = read::<u32>(v, op, op.third)? & 31;
    set_reg(v, op.dst, f(a, n))
}

/// RORX.
pub(super) fn rorx(v: &mut Vcpu, op: &Op) -> Flow<()> {
    shift_by(v, op, u32::rotate_right)
}

/// SARX.
pub(super) fn sarx(v: &mut Vcpu, op: &Op) -> Flow<()> {
    shift_by(v, op, |a, n| (a as i32 >> n) as u32)
}

/// SHLX.
pub(super) fn shlx(v: &mut Vcpu, op: &Op) -> Flow<()> {
    shift_by(v, op, |a, n| a << n)
}

/// SHRX.
pub(super) fn shrx(v: &mut Vcpu, op: &Op) -> Flow<()> {
    shift_by(v, op, |a, n| a >> n)
}

/// ADCX and ADOX: an addition whose only flag, in and out, is CF or OF.
fn add_with(v: &mut Vcpu, op: &Op, flag: u32) -> Flow<()> {
    let b = read::<u32>(v, op, op.src)?;
    let a = v.state.gpr[op.dst as usize & 7];
    let sum = a as u64 + b as u64 + (v.state.eflags & flag != 0) as u64;
    put(&mut v.state.eflags, flag, if sum >> 32 != 0 { flag } else { 0 });
    set_reg(v, op.dst, sum as u32)
}

/// ADCX.
pub(super) fn adcx(v: &mut Vcpu, op: &Op) -> Flow<()> {
    add_with(v, op, CF)
}

/// ADOX.
pub(super) fn adox(v: &mut Vcpu, op: &Op) -> Flow<()> {
    add_with(v, op, OF)
}
