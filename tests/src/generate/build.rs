//! One instruction of a given `Code` with random operands, and registers set so that its memory operand lies where it
//! should.

use iced_x86::{Code, Instruction, OpCodeOperandKind as Kind, OpKind, Register};
use rand::Rng;
use rand::rngs::SmallRng;

use super::values;
use crate::oracle::Case;
use crate::oracle::layout::{CODE, DATA, PAGE};

pub(super) const GPR: [Register; 8] = [
    Register::EAX,
    Register::ECX,
    Register::EDX,
    Register::EBX,
    Register::ESP,
    Register::EBP,
    Register::ESI,
    Register::EDI,
];
const SEGMENTS: [Register; 6] = [Register::ES, Register::CS, Register::SS, Register::DS, Register::FS, Register::GS];

/// Where an instruction's memory operand comes from.
enum Memory<'a> {
    /// Any form; registers of the case are set to reach a target.
    Free(&'a mut Case),
    /// Absolute, or on EBX or EBP, which hold these values.
    Fixed(u32, u32),
}

/// `code` with random operands; sets registers of `case` that addresses need. None if it cannot be built this time.
pub fn instruction(rng: &mut SmallRng, code: Code, case: &mut Case) -> Option<Instruction> {
    operands(rng, code, &mut Memory::Free(case))
}

/// The same inside a block where EBX is `bx` and EBP is `bp`.
pub fn in_block(rng: &mut SmallRng, code: Code, bx: u32, bp: u32) -> Option<Instruction> {
    operands(rng, code, &mut Memory::Fixed(bx, bp))
}

fn operands(rng: &mut SmallRng, code: Code, memory: &mut Memory<'_>) -> Option<Instruction> {
    let mut insn = Instruction::default();
    insn.set_code(code);
    let op = code.op_code();
    for i in 0..op.op_count() {
        operand(rng, &mut insn, i, op.op_kind(i), memory)?;
    }
    if op.can_use_lock_prefix() && rng.random_ratio(1, 8) {
        insn.set_has_lock_prefix(true);
    }
    if (op.can_use_rep_prefix() || op.can_use_repne_prefix()) && rng.random_ratio(2, 3) {
        match op.can_use_repne_prefix() && rng.random_ratio(1, 2) {
            true => insn.set_has_repne_prefix(true),
            false => insn.set_has_rep_prefix(true),
        }
    }
    Some(insn)
}

fn pick(rng: &mut SmallRng, first: Register, count: u32) -> Register {
    first + rng.random_range(0..count)
}

fn operand(rng: &mut SmallRng, insn: &mut Instruction, i: u32, kind: Kind, memory: &mut Memory<'_>) -> Option<()> {
    use Kind::*;
    let in_memory = rng.random_ratio(1, 2);
    let register = |rng: &mut SmallRng, first| Some(pick(rng, first, 8));
    let register = match kind {
        r8_or_mem | r16_or_mem | r32_or_mem | mm_or_mem | xmm_or_mem | ymm_or_mem if in_memory => Option::None,
        r8_or_mem | r8_reg | r8_opcode => register(rng, Register::AL),
        r16_or_mem | r16_reg | r16_rm | r16_opcode => register(rng, Register::AX),
        r32_or_mem | r32_reg | r32_rm | r32_opcode | r32_vvvv => register(rng, Register::EAX),
        mm_or_mem | mm_reg | mm_rm => register(rng, Register::MM0),
        xmm_or_mem | xmm_reg | xmm_rm | xmm_vvvv | xmm_is4 => register(rng, Register::XMM0),
        ymm_or_mem | ymm_reg | ymm_rm | ymm_vvvv | ymm_is4 => register(rng, Register::YMM0),
        sti_opcode => register(rng, Register::ST0),
        cr_reg => Some([Register::CR0, Register::CR2, Register::CR3, Register::CR4][rng.random_range(0..4)]),
        dr_reg => register(rng, Register::DR0),
        seg_reg => Some(SEGMENTS[rng.random_range(0..6)]),
        st0 => Some(Register::ST0),
        al => Some(Register::AL),
        cl => Some(Register::CL),
        ax => Some(Register::AX),
        dx => Some(Register::DX),
        eax => Some(Register::EAX),
        es => Some(Register::ES),
        cs => Some(Register::CS),
        ss => Some(Register::SS),
        ds => Some(Register::DS),
        fs => Some(Register::FS),
        gs => Some(Register::GS),
        _ => Option::None,
    };
    if let Some(register) = register {
        insn.set_op_kind(i, OpKind::Register);
        insn.set_op_register(i, register);
        return Some(());
    }
    match kind {
        r8_or_mem | r16_or_mem | r32_or_mem | mm_or_mem | xmm_or_mem | ymm_or_mem | mem => {
            address(rng, insn, i, memory)
        }
        mem_vsib32x | mem_vsib64x => vector_address(rng, insn, i, Register::XMM0, memory),
        mem_vsib32y | mem_vsib64y => vector_address(rng, insn, i, Register::YMM0, memory),
        mem_offs => {
            insn.set_op_kind(i, OpKind::Memory);
            insn.set_memory_displ_size(4);
            insn.set_memory_displacement64(values::target(rng) as u64);
        }
        seg_rSI => insn.set_op_kind(i, OpKind::MemorySegESI),
        es_rDI => insn.set_op_kind(i, OpKind::MemoryESEDI),
        seg_rDI => insn.set_op_kind(i, OpKind::MemorySegEDI),
        seg_rBX_al => {
            insn.set_op_kind(i, OpKind::Memory);
            insn.set_memory_base(Register::EBX);
            insn.set_memory_index(Register::AL);
            if let Memory::Free(case) = memory {
                case.gpr[3] = values::target(rng);
            }
        }
        _ => immediate(rng, insn, i, kind)?,
    }
    if insn.op_kind(i) != OpKind::MemoryESEDI && rng.random_ratio(1, 24) {
        insn.set_segment_prefix(SEGMENTS[rng.random_range(0..6)]);
    }
    Some(())
}

fn immediate(rng: &mut SmallRng, insn: &mut Instruction, i: u32, kind: Kind) -> Option<()> {
    use Kind::*;
    let value = values::word(rng);
    match kind {
        // ENTER is the one instruction with two.
        imm8 if i == 1 && insn.op0_kind() == OpKind::Immediate16 => {
            insn.set_op_kind(i, OpKind::Immediate8_2nd);
            insn.set_immediate8_2nd(value as u8 & if rng.random_ratio(3, 4) { 3 } else { 0xff });
        }
        imm8 => {
            insn.set_op_kind(i, OpKind::Immediate8);
            insn.set_immediate8(value as u8);
        }
        imm8_const_1 => {
            insn.set_op_kind(i, OpKind::Immediate8);
            insn.set_immediate8(1);
        }
        imm8sex16 => {
            insn.set_op_kind(i, OpKind::Immediate8to16);
            insn.set_immediate8to16(value as i8 as i16);
        }
        imm8sex32 => {
            insn.set_op_kind(i, OpKind::Immediate8to32);
            insn.set_immediate8to32(value as i8 as i32);
        }
        imm16 => {
            insn.set_op_kind(i, OpKind::Immediate16);
            insn.set_immediate16(if insn.mnemonic() == iced_x86::Mnemonic::Enter {
                value as u16 & 0xff
            } else {
                value as u16
            });
        }
        imm32 => {
            insn.set_op_kind(i, OpKind::Immediate32);
            insn.set_immediate32(value);
        }
        br32_1 => {
            insn.set_op_kind(i, OpKind::NearBranch32);
            insn.set_near_branch32(CODE + 0x120 + rng.random_range(0..0x40));
        }
        br32_4 => {
            insn.set_op_kind(i, OpKind::NearBranch32);
            let far = [0x6000_0000, 0x100, DATA, CODE + PAGE - 1, CODE + PAGE];
            let near = CODE + 0x200 + rng.random_range(0..0xd00);
            insn.set_near_branch32(if rng.random_ratio(1, 6) { far[rng.random_range(0..far.len())] } else { near });
        }
        br16_1 | br16_2 => {
            insn.set_op_kind(i, OpKind::NearBranch16);
            insn.set_near_branch16(0x120 + rng.random_range(0..0x40));
        }
        _ => return Option::None,
    }
    Some(())
}

/// A displacement, in its shortest form if it fits eight bits and chance says so.
fn set_displacement(rng: &mut SmallRng, insn: &mut Instruction, value: u32) {
    insn.set_memory_displacement64(value as u64);
    let short = value as i32 >= -128 && value as i32 <= 127 && insn.memory_base() != Register::None;
    insn.set_memory_displ_size(if short && rng.random_ratio(1, 2) { 1 } else { 4 });
}

fn address(rng: &mut SmallRng, insn: &mut Instruction, i: u32, memory: &mut Memory<'_>) {
    insn.set_op_kind(i, OpKind::Memory);
    let target = values::target(rng);
    match memory {
        Memory::Fixed(bx, bp) => {
            let form = rng.random_range(0..3);
            let (base, value) = [(Register::None, 0), (Register::EBX, *bx), (Register::EBP, *bp)][form];
            insn.set_memory_base(base);
            insn.set_memory_displacement64(target.wrapping_sub(value) as u64);
            insn.set_memory_displ_size(4);
        }
        Memory::Free(case) => free_address(rng, insn, target, case),
    }
}

fn free_address(rng: &mut SmallRng, insn: &mut Instruction, target: u32, case: &mut Case) {
    let base = rng.random_ratio(5, 6).then(|| rng.random_range(0..8usize));
    let index = rng.random_ratio(1, 2).then(|| [0, 1, 2, 3, 5, 6, 7][rng.random_range(0..7usize)]);
    let scale = 1 << rng.random_range(0..4);
    if let Some(base) = base {
        insn.set_memory_base(GPR[base]);
    }
    let mut offset = 0u32;
    if let Some(index) = index {
        insn.set_memory_index(GPR[index]);
        insn.set_memory_index_scale(scale);
        // Bit strings reach far by their register operand; others stay exact.
        offset = case.gpr[index].wrapping_mul(scale);
    }
    match base {
        Some(base) if Some(base) != index => {
            let displacement =
                if rng.random_ratio(1, 2) { rng.random_range(-128..128) } else { values::word(rng) as i32 };
            set_displacement(rng, insn, displacement as u32);
            case.gpr[base] = target.wrapping_sub(offset).wrapping_sub(displacement as u32);
        }
        Some(base) => {
            let sum = offset.wrapping_add(case.gpr[base]);
            set_displacement(rng, insn, target.wrapping_sub(sum));
        }
        None => {
            insn.set_memory_displacement64(target.wrapping_sub(offset) as u64);
            insn.set_memory_displ_size(4);
        }
    }
}

fn vector_address(rng: &mut SmallRng, insn: &mut Instruction, i: u32, first: Register, memory: &mut Memory<'_>) {
    insn.set_op_kind(i, OpKind::Memory);
    let n = rng.random_range(0..8u32);
    insn.set_memory_index(first + n);
    insn.set_memory_index_scale(1 << rng.random_range(0..4));
    insn.set_memory_base(Register::EBX);
    insn.set_memory_displ_size(4);
    if let Memory::Free(case) = memory {
        case.gpr[3] = DATA + rng.random_range(0x700..0x1900);
        // Indices that mostly stay in the data pages, as doublewords or as quadwords.
        let wide = rng.random_ratio(1, 2);
        for (half, at) in [160, 576].into_iter().enumerate() {
            let _ = half;
            for lane in case.xsave[at + 16 * n as usize..][..16].chunks_exact_mut(4).enumerate() {
                let small = rng.random_range(-100..100i32);
                let value = if wide && lane.0 % 2 == 1 { rng.random_range(-1..1) } else { small };
                lane.1.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}
