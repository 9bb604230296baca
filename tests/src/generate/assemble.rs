//! From instructions that name labels to machine code.

use iced_x86::{BlockEncoder, BlockEncoderOptions, Code, Instruction, InstructionBlock, OpKind, Register};

use crate::oracle::layout::{CODE, PAGE};

/// Label `i` while a program is not encoded.
const LABELS: u64 = 0x1000;

/// A program being built.
pub(super) struct Program {
    pub all: Vec<Instruction>,
    /// Instructions whose 32-bit immediate is to be the address of a label: instruction, label.
    pub addresses: Vec<(usize, usize)>,
    pub undefined: u32,
    /// EBX and EBP.
    pub bases: (u32, u32),
}

impl Program {
    pub fn add(&mut self, insn: Instruction) {
        self.all.push(insn);
    }
    pub fn one(&mut self, code: Code, r: Register) {
        self.all.extend(Instruction::with1(code, r).ok());
    }
    pub fn two(&mut self, code: Code, to: Register, value: i32) {
        self.all.extend(Instruction::with2(code, to, value).ok());
    }
    pub fn branch(&mut self, code: Code, label: usize) {
        self.all.extend(Instruction::with_branch(code, LABELS + label as u64).ok());
    }
    /// MOV r32 or PUSH of the address of a label.
    pub fn address(&mut self, to: Option<Register>, label: usize) {
        self.addresses.push((self.all.len(), label));
        let insn = match to {
            Some(r) => Instruction::with2(Code::Mov_r32_imm32, r, 0x1234_5678),
            None => Instruction::with1(Code::Pushd_imm32, 0x1234_5678),
        };
        self.all.extend(insn.ok());
    }
}

/// Machine code for CODE, and where in it addresses are; branches and labels resolved, each label the nearest that
/// there is.
pub(super) fn encode(p: &mut Program) -> Option<(Vec<u8>, Vec<usize>)> {
    p.add(Instruction::with(Code::Int3));
    let last = p.all.len() - 1;
    for (i, insn) in p.all.iter_mut().enumerate() {
        insn.set_ip(LABELS + i as u64);
        if insn.op0_kind() == OpKind::NearBranch32 {
            let label = (insn.near_branch_target().wrapping_sub(LABELS) as usize).min(last);
            insn.set_near_branch32((LABELS + label as u64) as u32);
        }
    }
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let first = BlockEncoder::encode(32, InstructionBlock::new(&p.all, CODE as u64), options).ok()?;
    let offset = |i: usize| first.new_instruction_offsets.get(i.min(last)).copied().filter(|o| *o < PAGE);
    let mut places = Vec::new();
    for (index, label) in &p.addresses {
        p.all.get_mut(*index)?.set_immediate32(CODE + offset(*label)?);
        // The immediate comes last, and INT3 at the very end.
        places.push(offset(index + 1)? as usize - 4);
    }
    let second = BlockEncoder::encode(32, InstructionBlock::new(&p.all, CODE as u64), options).ok()?;
    Some((second.code_buffer, places))
}
