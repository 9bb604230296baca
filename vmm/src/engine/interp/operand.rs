//! A decoded instruction as the handlers see it, and how operands are fetched and stored.
//!
//! [`Op`] is 32 bytes of plain numbers: registers by index, the pieces of an effective address, the immediate. Handlers
//! are ordinary functions over it, generic in the operand's [`Width`]; values travel as zero-extended `u32`.

use crate::cpu::{Flow, Stop, Vcpu, cr0, eflags, seg, vector};
use crate::mmu::{Access, Datum};

/// Executes one decoded instruction. `state.eip` is already the next instruction's; on `Err` the engine restores the
/// general registers, EIP and EFLAGS.
pub(super) type Handler = fn(&mut Vcpu, &Op) -> Flow<()>;

/// Operand places beyond the register indices 0 to 7.
pub(super) const MEM: u8 = 8;
/// The immediate.
pub(super) const IMM: u8 = 9;
/// No register in an effective address, or no operand.
pub(super) const NONE: u8 = 10;

/// Bits of [`Op::flags`].
pub(super) mod flag {
    /// 16-bit addressing.
    pub const ADDR16: u8 = 1 << 0;
    /// REP or REPE.
    pub const REP: u8 = 1 << 1;
    /// REPNE.
    pub const REPNE: u8 = 1 << 2;
    /// Executed from the full decoded instruction (SIMD and what is named when unsupported), not by `run` alone.
    pub const FULL: u8 = 1 << 3;
    /// The unsupported kind of FULL.
    pub const UNSUPPORTED: u8 = 1 << 4;
}

/// A decoded instruction.
#[derive(Clone, Copy)]
pub(super) struct Op {
    /// What executes it.
    pub run: Handler,
    /// Immediate (sign-extended to 32 bits), branch displacement from the next instruction, or far offset.
    pub imm: u32,
    /// Displacement of the effective address.
    pub disp: u32,
    /// Second immediate: ENTER's level, a far pointer's selector.
    pub imm2: u16,
    /// Index of the full instruction, for [`flag::FULL`].
    pub full: u16,
    /// Length in bytes.
    pub len: u8,
    /// Operand size in bytes.
    pub size: u8,
    /// First operand: register index, [`MEM`], [`IMM`].
    pub dst: u8,
    /// Second operand.
    pub src: u8,
    /// Third operand.
    pub third: u8,
    /// Segment of the memory operand, as an index of [`seg`].
    pub seg: u8,
    /// Base register, or [`NONE`].
    pub base: u8,
    /// Index register, or [`NONE`].
    pub index: u8,
    /// log2 of the index's scale.
    pub scale: u8,
    /// See [`flag`].
    pub flags: u8,
}

impl Op {
    /// True with 16-bit addressing.
    #[inline]
    pub fn addr16(&self) -> bool {
        self.flags & flag::ADDR16 != 0
    }
    /// Mask of an address of this instruction.
    #[inline]
    pub fn addr_mask(&self) -> u32 {
        if self.addr16() { 0xffff } else { u32::MAX }
    }
    /// True with a REP prefix of either kind.
    #[inline]
    pub fn repeated(&self) -> bool {
        self.flags & (flag::REP | flag::REPNE) != 0
    }
    /// Mask of the operand size, as used for EIP.
    #[inline]
    pub fn size_mask(&self) -> u32 {
        if self.size == 2 { 0xffff } else { u32::MAX }
    }
}

/// Operand widths of integer instructions.
pub(super) trait Width: Datum {
    /// Bits.
    const BITS: u32;
    /// All value bits.
    const MASK: u32;
    /// The sign bit.
    const SIGN: u32;
    /// The register of this width with encoding `index`.
    fn get(gpr: &[u32; 8], index: u8) -> u32;
    /// Writes the low bits of `value`; the register's other bits stay.
    fn set(gpr: &mut [u32; 8], index: u8, value: u32);
}

impl Width for u8 {
    const BITS: u32 = 8;
    const MASK: u32 = 0xff;
    const SIGN: u32 = 0x80;
    #[inline(always)]
    fn get(gpr: &[u32; 8], index: u8) -> u32 {
        gpr[index as usize & 3] >> ((index & 4) << 1) & 0xff
    }
    #[inline(always)]
    fn set(gpr: &mut [u32; 8], index: u8, value: u32) {
        let shift = (index & 4) << 1;
        let r = &mut gpr[index as usize & 3];
        *r = (*r & !(0xff << shift)) | (value & 0xff) << shift;
    }
}

impl Width for u16 {
    const BITS: u32 = 16;
    const MASK: u32 = 0xffff;
    const SIGN: u32 = 0x8000;
    #[inline(always)]
    fn get(gpr: &[u32; 8], index: u8) -> u32 {
        gpr[index as usize & 7] & 0xffff
    }
    #[inline(always)]
    fn set(gpr: &mut [u32; 8], index: u8, value: u32) {
        let r = &mut gpr[index as usize & 7];
        *r = (*r & 0xffff_0000) | (value & 0xffff);
    }
}

impl Width for u32 {
    const BITS: u32 = 32;
    const MASK: u32 = u32::MAX;
    const SIGN: u32 = 1 << 31;
    #[inline(always)]
    fn get(gpr: &[u32; 8], index: u8) -> u32 {
        gpr[index as usize & 7]
    }
    #[inline(always)]
    fn set(gpr: &mut [u32; 8], index: u8, value: u32) {
        gpr[index as usize & 7] = value;
    }
}

/// `value` of width `T`, sign-extended.
#[inline(always)]
pub(super) fn sign_extend<T: Width>(value: u32) -> u32 {
    ((value << (32 - T::BITS)) as i32 >> (32 - T::BITS)) as u32
}

/// The effective address: an offset in the segment.
#[inline(always)]
pub(super) fn effective(v: &Vcpu, op: &Op) -> u32 {
    let base = v.state.gpr.get(op.base as usize).copied().unwrap_or(0);
    let index = v.state.gpr.get(op.index as usize).copied().unwrap_or(0);
    base.wrapping_add(index << (op.scale & 3)).wrapping_add(op.disp) & op.addr_mask()
}

/// #AC where alignment is checked: CPL 3 with CR0.AM and EFLAGS.AC (SDM vol. 3, §6.15, interrupt 17). It comes
/// before the page walk.
#[inline(always)]
pub(super) fn check_alignment(v: &Vcpu, linear: u32, size: u32) -> Flow<()> {
    if v.state.eflags & eflags::AC != 0 { alignment_fault(v, linear, size) } else { Ok(()) }
}

#[cold]
fn alignment_fault(v: &Vcpu, linear: u32, size: u32) -> Flow<()> {
    if v.state.cpl != 3 || v.state.cr0 & cr0::AM == 0 || linear & (size - 1) == 0 {
        return Ok(());
    }
    Err(Stop::with_error(vector::AC, 0))
}

/// Loads from `offset` in segment `which`, with every check of an explicit data access.
#[inline]
pub(super) fn load_at<T: Datum>(v: &mut Vcpu, which: usize, offset: u32) -> Flow<T> {
    let linear = v.linear(which, offset, T::SIZE as u32, Access::Read)?;
    check_alignment(v, linear, T::SIZE as u32)?;
    v.load(linear, v.privilege())
}

/// Stores to `offset` in segment `which`, with every check of an explicit data access.
#[inline]
pub(super) fn store_at<T: Datum>(v: &mut Vcpu, which: usize, offset: u32, value: T) -> Flow<()> {
    let linear = v.linear(which, offset, T::SIZE as u32, Access::Write)?;
    check_alignment(v, linear, T::SIZE as u32)?;
    v.store(linear, value, v.privilege())
}

/// Loads the memory operand.
#[inline(never)]
pub(super) fn load_mem<T: Datum>(v: &mut Vcpu, op: &Op) -> Flow<T> {
    load_at(v, op.seg as usize, effective(v, op))
}

/// Stores the memory operand.
#[inline(never)]
pub(super) fn store_mem<T: Datum>(v: &mut Vcpu, op: &Op, value: T) -> Flow<()> {
    store_at(v, op.seg as usize, effective(v, op), value)
}

/// Operand `place`, zero-extended.
#[inline(always)]
pub(super) fn read<T: Width>(v: &mut Vcpu, op: &Op, place: u8) -> Flow<u32> {
    Ok(match place {
        MEM => widen(load_mem::<T>(v, op)?),
        IMM => op.imm & T::MASK,
        r => T::get(&v.state.gpr, r),
    })
}

/// Writes operand `place`.
#[inline(always)]
pub(super) fn write<T: Width>(v: &mut Vcpu, op: &Op, place: u8, value: u32) -> Flow<()> {
    match place {
        MEM => store_mem(v, op, T::truncate(value as u64)),
        r => {
            T::set(&mut v.state.gpr, r, value);
            Ok(())
        }
    }
}

#[inline(always)]
fn widen<T: Width>(value: T) -> u32 {
    let wide: u64 = value.into();
    wide as u32
}

/// Loads for a read-modify-write at `offset`: faults as the write would. Returns the value and its linear address.
#[inline(never)]
pub(super) fn load_update<T: Datum>(v: &mut Vcpu, which: usize, offset: u32) -> Flow<(T, u32)> {
    let linear = v.linear(which, offset, T::SIZE as u32, Access::Write)?;
    check_alignment(v, linear, T::SIZE as u32)?;
    Ok((v.load_for_update(linear, v.privilege())?, linear))
}

/// Replaces the first operand by `f(old)`; `f` also gets and changes EFLAGS.
#[inline(always)]
pub(super) fn update<T: Width>(v: &mut Vcpu, op: &Op, f: impl FnOnce(u32, &mut u32) -> u32) -> Flow<()> {
    if op.dst == MEM {
        let (old, linear) = load_update::<T>(v, op.seg as usize, effective(v, op))?;
        let new = f(widen(old), &mut v.state.eflags);
        return v.store(linear, T::truncate(new as u64), v.privilege());
    }
    let new = f(T::get(&v.state.gpr, op.dst), &mut v.state.eflags);
    T::set(&mut v.state.gpr, op.dst, new);
    Ok(())
}

/// The base of segment-relative address arithmetic for instructions without a data access (INVLPG, CLFLUSH).
pub(super) fn linear_of(v: &Vcpu, op: &Op) -> u32 {
    v.state.seg.get(op.seg as usize).unwrap_or(&v.state.seg[seg::DS]).base.wrapping_add(effective(v, op))
}

/// Writes a 32-bit register.
#[inline]
pub(super) fn set_reg(v: &mut Vcpu, place: u8, value: u32) -> Flow<()> {
    v.state.gpr[place as usize & 7] = value;
    Ok(())
}
