//! Memory operands: effective address, segment, alignment, and copies in the order that makes faults exact.

use iced_x86::{Code, Instruction, Register};

use crate::cpu::{Flow, Stop, Vcpu, cr0, eflags, vector};
use crate::mmu::{Access, Privilege};

/// Index in `CpuState::gpr` of a 16- or 32-bit general register; None for anything else.
pub fn gpr_index(r: Register) -> Option<usize> {
    let full = r.full_register32();
    (Register::EAX..=Register::EDI).contains(&full).then(|| full as usize - Register::EAX as usize)
}

/// True if the instruction's memory operand is formed by 16-bit addressing.
fn is_16bit(insn: &Instruction) -> bool {
    let narrow = |r: Register| (Register::AX..=Register::DI).contains(&r);
    narrow(insn.memory_base()) || narrow(insn.memory_index()) || insn.memory_displ_size() == 2
}

/// Segment register (index in `CpuState::seg`) and offset of the memory operand. Vector indices are left out.
pub fn effective(vcpu: &Vcpu, insn: &Instruction) -> (usize, u32) {
    let value = |r: Register| gpr_index(r).map_or(0, |i| vcpu.state.gpr[i]);
    let index = value(insn.memory_index()).wrapping_mul(insn.memory_index_scale());
    let sum = value(insn.memory_base()).wrapping_add(index).wrapping_add(insn.memory_displacement32());
    let offset = if is_16bit(insn) { sum & 0xffff } else { sum };
    (insn.memory_segment() as usize - Register::ES as usize, offset)
}

/// Linear address of the operand of `size` bytes. Segment checks come first, then alignment to `align` bytes (#GP(0); 1 asks for
/// none) and alignment checking.
pub fn locate(vcpu: &Vcpu, insn: &Instruction, size: u32, access: Access, align: u32) -> Flow<u32> {
    let (segment, offset) = effective(vcpu, insn);
    let linear = vcpu.linear(segment, offset, size, access)?;
    // Half-precision conversions never check.
    if !matches!(insn.code(), Code::VEX_Vcvtph2ps_xmm_xmmm64 | Code::VEX_Vcvtps2ph_xmmm64_xmm_imm8) {
        check_alignment(vcpu, linear, size)?;
    }
    if linear & (align - 1) != 0 { Err(Stop::gp(0)) } else { Ok(linear) }
}

/// #AC(0) for a misaligned access of up to eight bytes (ten count as eight) at CPL 3 with CR0.AM and EFLAGS.AC set
/// (SDM vol. 3, §6.15, interrupt 17).
pub fn check_alignment(vcpu: &Vcpu, linear: u32, size: u32) -> Flow<()> {
    let s = &vcpu.state;
    let natural = match size {
        2 | 4 | 8 => size,
        10 => 8,
        // Environments, FXSAVE and XSAVE images are runs of words or doublewords.
        14 | 94 => 2,
        28 | 108 | 512 | 576 | 832 => 4,
        _ => 1,
    };
    let on = s.cpl == 3 && s.cr0 & cr0::AM != 0 && s.eflags & eflags::AC != 0;
    if on && linear & (natural - 1) != 0 {
        return Err(Stop::with_error(vector::AC, 0));
    }
    Ok(())
}

/// Checks that an image of `total` bytes made of elements of `first` bytes can be accessed, in the order in which the
/// processor tries: the first element, then the last byte.
pub fn probe_image(vcpu: &mut Vcpu, linear: u32, first: u32, total: u32, access: Access, who: Privilege) -> Flow<()> {
    let end = linear.wrapping_add(first - 1);
    vcpu.probe(linear, access, who)?;
    if (linear ^ end) & !0xfff != 0 {
        vcpu.probe(end & !0xfff, access, who)?;
    }
    vcpu.probe(linear.wrapping_add(total - 1), access, who)
}

/// Copies an operand of any size in, in the widest pieces. The first page that faults is the one reported.
pub fn load(vcpu: &mut Vcpu, linear: u32, to: &mut [u8], who: Privilege) -> Flow<()> {
    if vcpu.load_run(linear, to, who) {
        return Ok(());
    }
    let mut at = 0;
    while at < to.len() {
        let address = linear.wrapping_add(at as u32);
        let left = to.len() - at;
        let (value, n): (u64, usize) = match left {
            8.. => (vcpu.load::<u64>(address, who)?, 8),
            4.. => (vcpu.load::<u32>(address, who)? as u64, 4),
            2.. => (vcpu.load::<u16>(address, who)? as u64, 2),
            _ => (vcpu.load::<u8>(address, who)? as u64, 1),
        };
        to[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
        at += n;
    }
    Ok(())
}

/// Copies an operand out. The caller has probed the range for writing if a partial store must not happen.
pub fn store(vcpu: &mut Vcpu, linear: u32, from: &[u8], who: Privilege) -> Flow<()> {
    if vcpu.store_run(linear, from, who) {
        return Ok(());
    }
    let mut at = 0;
    while at < from.len() {
        let address = linear.wrapping_add(at as u32);
        let left = from.len() - at;
        let n = [8, 4, 2, 1].into_iter().find(|n| *n <= left).unwrap_or(1);
        let mut bytes = [0; 8];
        bytes[..n].copy_from_slice(&from[at..at + n]);
        let value = u64::from_le_bytes(bytes);
        match n {
            8 => vcpu.store::<u64>(address, value, who)?,
            4 => vcpu.store::<u32>(address, value as u32, who)?,
            2 => vcpu.store::<u16>(address, value as u16, who)?,
            _ => vcpu.store::<u8>(address, value as u8, who)?,
        }
        at += n;
    }
    Ok(())
}
