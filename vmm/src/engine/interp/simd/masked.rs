//! Instructions whose mask says which elements of memory exist for them: MASKMOV, VMASKMOV, VPMASKMOV and gathers.
//! An element that is masked off is not accessed and cannot fault (SDM vol. 2).

use iced_x86::{Code, Instruction, Register};

use super::operand;
use crate::cpu::{Flow, Stop, Vcpu, eflags, reg};
use crate::mmu::{Access, Privilege};

/// Executes a masked instruction.
pub fn execute(vcpu: &mut Vcpu, insn: &Instruction) -> Flow<()> {
    use Code::*;
    match insn.code() {
        Maskmovq_rDI_mm_mm | Maskmovdqu_rDI_xmm_xmm | VEX_Vmaskmovdqu_rDI_xmm_xmm => byte_store(vcpu, insn),
        code => match Gather::of(code) {
            Some(gather) => gather.execute(vcpu, insn),
            None => masked_move(vcpu, insn),
        },
    }
}

/// Number of a vector register.
fn number(r: Register) -> usize {
    match r {
        r if (Register::XMM0..=Register::XMM7).contains(&r) => r as usize - Register::XMM0 as usize,
        r if (Register::YMM0..=Register::YMM7).contains(&r) => r as usize - Register::YMM0 as usize,
        r => (r as usize).wrapping_sub(Register::MM0 as usize) & 7,
    }
}

fn element(bytes: &[u8], i: usize, size: usize) -> u64 {
    let mut v = [0; 8];
    v[..size].copy_from_slice(&bytes[i * size..][..size]);
    u64::from_le_bytes(v)
}

fn selected(mask: &[u8], i: usize, size: usize) -> bool {
    mask[(i + 1) * size - 1] & 0x80 != 0
}

/// MASKMOVQ and MASKMOVDQU: bytes to DS:EDI, or another segment's.
fn byte_store(vcpu: &mut Vcpu, insn: &Instruction) -> Flow<()> {
    use iced_x86::OpKind::MemorySegDI;
    let mmx = insn.code() == Code::Maskmovq_rDI_mm_mm;
    let (mut data, mut mask) = ([0; 32], [0; 32]);
    if mmx {
        data[..8].copy_from_slice(&vcpu.state.xsave.mm(number(insn.op1_register())));
        mask[..8].copy_from_slice(&vcpu.state.xsave.mm(number(insn.op2_register())));
    } else {
        data = vcpu.state.xsave.ymm(number(insn.op1_register()));
        mask = vcpu.state.xsave.ymm(number(insn.op2_register()));
    }
    let length = if mmx { 8 } else { 16 };
    let offset_mask = if insn.op0_kind() == MemorySegDI { 0xffff } else { u32::MAX };
    let offset = vcpu.state.gpr[reg::EDI] & offset_mask;
    let segment = insn.memory_segment() as usize - Register::ES as usize;
    if mmx {
        vcpu.state.xsave.enter_mmx();
    }
    // Unlike the newer masked stores, these check the whole operand whatever the mask: the upper half first.
    let who = vcpu.privilege();
    for half in (0..length as u32).step_by(8).rev() {
        let linear = vcpu.linear(segment, offset.wrapping_add(half) & offset_mask, 8, Access::Write)?;
        operand::check_alignment(vcpu, linear, 8)?;
        vcpu.probe_write(linear, 8, who)?;
    }
    for i in (0..length).filter(|i| selected(&mask, *i, 1)) {
        let linear = vcpu.linear(segment, offset.wrapping_add(i as u32) & offset_mask, 1, Access::Write)?;
        vcpu.store(linear, data[i], who)?;
    }
    Ok(())
}

/// Stores the selected elements; none if any would fault. Where they span two pages, a fault in the second names
/// the last byte that would have been stored, as the processor does.
fn store_elements(vcpu: &mut Vcpu, segment: usize, offset: u32, data: &[u8], mask: &[u8], size: usize) -> Flow<()> {
    let who = vcpu.privilege();
    let chosen = |i: &usize| selected(mask, *i, size);
    let count = data.len() / size;
    let mut addresses = [0; 16];
    for i in (0..count).filter(chosen) {
        let at = offset.wrapping_add((i * size) as u32);
        addresses[i] = vcpu.linear(segment, at, size as u32, Access::Write)?;
    }
    let (Some(first), Some(last)) = ((0..count).find(chosen), (0..count).rev().find(chosen)) else { return Ok(()) };
    let end = addresses[last].wrapping_add(size as u32 - 1);
    vcpu.probe_write(addresses[first], 1, who)?;
    vcpu.probe_write(end, 1, who)?;
    for i in (0..count).filter(chosen) {
        operand::store(vcpu, addresses[i], &data[i * size..][..size], who)?;
    }
    Ok(())
}

/// VMASKMOVPS/PD and VPMASKMOVD/Q, both directions.
fn masked_move(vcpu: &mut Vcpu, insn: &Instruction) -> Flow<()> {
    use Code::*;
    let size = match insn.code() {
        VEX_Vmaskmovps_xmm_xmm_m128
        | VEX_Vmaskmovps_ymm_ymm_m256
        | VEX_Vmaskmovps_m128_xmm_xmm
        | VEX_Vmaskmovps_m256_ymm_ymm
        | VEX_Vpmaskmovd_xmm_xmm_m128
        | VEX_Vpmaskmovd_ymm_ymm_m256
        | VEX_Vpmaskmovd_m128_xmm_xmm
        | VEX_Vpmaskmovd_m256_ymm_ymm => 4,
        _ => 8,
    };
    let length = insn.memory_size().size().min(32);
    let mask = vcpu.state.xsave.ymm(number(insn.op1_register()));
    let (segment, offset) = operand::effective(vcpu, insn);
    if insn.op0_register() == Register::None {
        let data = vcpu.state.xsave.ymm(number(insn.op2_register()));
        return store_elements(vcpu, segment, offset, &data[..length], &mask[..length], size);
    }
    let mut result = [0; 32];
    let who = vcpu.privilege();
    for i in (0..length / size).filter(|i| selected(&mask, *i, size)) {
        let at = vcpu.linear(segment, offset.wrapping_add((i * size) as u32), size as u32, Access::Read)?;
        operand::load(vcpu, at, &mut result[i * size..][..size], who)?;
    }
    vcpu.state.xsave.set_ymm(number(insn.op0_register()), &result);
    Ok(())
}

/// The shape of a gather: sizes in bytes of index and data elements, and how many there are.
#[derive(Clone, Copy)]
struct Gather {
    index: usize,
    data: usize,
    count: usize,
}

impl Gather {
    fn of(code: Code) -> Option<Self> {
        use Code::*;
        let (index, data, count) = match code {
            VEX_Vpgatherdd_xmm_vm32x_xmm | VEX_Vgatherdps_xmm_vm32x_xmm => (4, 4, 4),
            VEX_Vpgatherdd_ymm_vm32y_ymm | VEX_Vgatherdps_ymm_vm32y_ymm => (4, 4, 8),
            VEX_Vpgatherdq_xmm_vm32x_xmm | VEX_Vgatherdpd_xmm_vm32x_xmm => (4, 8, 2),
            VEX_Vpgatherdq_ymm_vm32x_ymm | VEX_Vgatherdpd_ymm_vm32x_ymm => (4, 8, 4),
            VEX_Vpgatherqd_xmm_vm64x_xmm | VEX_Vgatherqps_xmm_vm64x_xmm => (8, 4, 2),
            VEX_Vpgatherqd_xmm_vm64y_xmm | VEX_Vgatherqps_xmm_vm64y_xmm => (8, 4, 4),
            VEX_Vpgatherqq_xmm_vm64x_xmm | VEX_Vgatherqpd_xmm_vm64x_xmm => (8, 8, 2),
            VEX_Vpgatherqq_ymm_vm64y_ymm | VEX_Vgatherqpd_ymm_vm64y_ymm => (8, 8, 4),
            _ => return None,
        };
        Some(Self { index, data, count })
    }

    /// Element by element from the lowest. A fault leaves what is done done, with its mask cleared, so that the
    /// instruction can be restarted (SDM vol. 2, VGATHERDPS).
    fn execute(self, vcpu: &mut Vcpu, insn: &Instruction) -> Flow<()> {
        let to = number(insn.op0_register());
        let by = number(insn.op2_register());
        let vector = number(insn.memory_index());
        if to == by || to == vector || by == vector {
            return Err(Stop::ud());
        }
        let who = vcpu.privilege();
        let indices = vcpu.state.xsave.ymm(vector);
        let (mut result, mut mask) = (vcpu.state.xsave.ymm(to), vcpu.state.xsave.ymm(by));
        // Every bit of a mask element follows its sign, also where a fault ends the instruction early.
        let wide = insn.memory_index() >= Register::YMM0 || insn.op0_register() >= Register::YMM0;
        for i in 0..if wide { 32 } else { 16 } / self.data {
            let sign = if selected(&mask, i, self.data) { 0xff } else { 0 };
            mask[i * self.data..][..self.data].fill(sign);
        }
        if !wide {
            mask[16..].fill(0);
        }
        for i in 0..self.count {
            if selected(&mask, i, self.data) {
                let place = result.get_mut(i * self.data..(i + 1) * self.data).unwrap_or_default();
                if let Err(stop) = self.load(vcpu, insn, &indices, i, place, who) {
                    vcpu.state.xsave.set_ymm(to, &result);
                    vcpu.state.xsave.set_ymm(by, &mask);
                    return Err(stop);
                }
                // The first element that arrives clears the upper half.
                if !wide {
                    result[16..].fill(0);
                }
            }
            mask[i * self.data..][..self.data].fill(0);
        }
        result[self.count * self.data..].fill(0);
        vcpu.state.xsave.set_ymm(to, &result);
        vcpu.state.xsave.set_ymm(by, &[0; 32]);
        // SDM: RF is cleared when the instruction completes, as by any other.
        vcpu.state.eflags &= !eflags::RF;
        Ok(())
    }

    fn load(
        self,
        vcpu: &mut Vcpu,
        insn: &Instruction,
        indices: &[u8],
        i: usize,
        to: &mut [u8],
        who: Privilege,
    ) -> Flow<()> {
        // Addresses are 32 bits wide, so only the low half of a quadword index counts.
        let index = element(indices, i, self.index) as u32;
        let (segment, base) = operand::effective(vcpu, insn);
        let offset = base.wrapping_add(index.wrapping_mul(insn.memory_index_scale()));
        let at = vcpu.linear(segment, offset, self.data as u32, Access::Read)?;
        operand::load(vcpu, at, to, who)
    }
}
