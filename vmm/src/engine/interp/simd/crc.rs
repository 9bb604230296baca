//! CRC32 (SDM vol. 2): the Castagnoli polynomial over 1, 2 or 4 bytes. Done here because AH to DH have no encoding
//! beside the registers that a stub needs.

use iced_x86::{Code, Instruction, OpKind, Register};

use super::operand::{self, gpr_index};
use crate::cpu::{Flow, Stop, Vcpu};
use crate::mmu::Access;

/// The polynomial, bit-reversed.
const CASTAGNOLI: u32 = 0x82f6_3b78;

/// Executes CRC32.
pub fn execute(vcpu: &mut Vcpu, insn: &Instruction) -> Flow<()> {
    let size = match insn.code() {
        Code::Crc32_r32_rm8 => 1,
        Code::Crc32_r32_rm16 => 2,
        _ => 4,
    };
    let mut data = [0; 4];
    if insn.op1_kind() == OpKind::Register {
        data = register(vcpu, insn.op1_register()).to_le_bytes();
    } else {
        let linear = operand::locate(vcpu, insn, size, Access::Read, 1)?;
        operand::load(vcpu, linear, &mut data[..size as usize], vcpu.privilege())?;
    }
    let to = gpr_index(insn.op0_register()).ok_or_else(Stop::ud)?;
    let crc = data[..size as usize].iter().fold(vcpu.state.gpr[to], |crc, byte| step(crc, *byte));
    vcpu.state.gpr[to] = crc;
    Ok(())
}

fn step(crc: u32, byte: u8) -> u32 {
    (0..8).fold(crc ^ byte as u32, |crc, _| crc >> 1 ^ if crc & 1 != 0 { CASTAGNOLI } else { 0 })
}

fn register(vcpu: &Vcpu, r: Register) -> u32 {
    match r {
        Register::AL | Register::CL | Register::DL | Register::BL => vcpu.state.gpr[r as usize - Register::AL as usize],
        Register::AH | Register::CH | Register::DH | Register::BH => {
            vcpu.state.gpr[r as usize - Register::AH as usize] >> 8
        }
        _ => gpr_index(r).map_or(0, |i| vcpu.state.gpr[i]),
    }
}
