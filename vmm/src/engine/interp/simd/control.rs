//! x87 control instructions: those that load, store or initialise the environment (SDM vol. 1, §8.1.10 and §8.3.8).
//!
//! They never run natively: the host would store its own instruction pointer. None changes FIP but by loading it.

use iced_x86::{Code, Instruction, OpKind};

use super::area::{ST, fsw};
use super::operand;
use crate::cpu::{Flow, Vcpu, XsaveArea, reg};
use crate::mmu::Access;

/// Bytes of the eight data registers in an FNSAVE image.
const REGISTERS: usize = 80;

/// Executes a control instruction or WAIT. Availability and pending exceptions are checked already.
pub fn execute(vcpu: &mut Vcpu, insn: &Instruction) -> Flow<()> {
    use Code::*;
    match insn.code() {
        Fninit => vcpu.state.xsave.init_x87(),
        Fnclex => clear_exceptions(&mut vcpu.state.xsave),
        Fldcw_m2byte => {
            let value = load_word(vcpu, insn)?;
            vcpu.state.xsave.set_fcw(value);
        }
        Fnstcw_m2byte => return store_word(vcpu, insn, vcpu.state.xsave.fcw()),
        Fnstsw_m2byte => return store_word(vcpu, insn, vcpu.state.xsave.fsw()),
        Fnstsw_AX => {
            let eax = &mut vcpu.state.gpr[reg::EAX];
            *eax = *eax & !0xffff | vcpu.state.xsave.fsw() as u32;
        }
        Fnstenv_m14byte => return store_environment(vcpu, insn, false, false),
        Fnstenv_m28byte => return store_environment(vcpu, insn, true, false),
        Fnsave_m94byte => return store_environment(vcpu, insn, false, true),
        Fnsave_m108byte => return store_environment(vcpu, insn, true, true),
        Fldenv_m14byte => return load_environment(vcpu, insn, false, false),
        Fldenv_m28byte => return load_environment(vcpu, insn, true, false),
        Frstor_m94byte => return load_environment(vcpu, insn, false, true),
        Frstor_m108byte => return load_environment(vcpu, insn, true, true),
        // WAIT has done its work by checking; FENI, FDISI and FSETPM meant something to older chips only.
        _ => {}
    }
    Ok(())
}

fn clear_exceptions(area: &mut XsaveArea) {
    // Flags, stack fault, ES and B.
    let kept = area.fsw() & !(fsw::EXCEPTIONS | 1 << 6 | fsw::ES | fsw::B);
    area.set_fsw(kept);
}

fn load_word(vcpu: &mut Vcpu, insn: &Instruction) -> Flow<u16> {
    let linear = operand::locate(vcpu, insn, 2, Access::Read, 1)?;
    vcpu.load(linear, vcpu.privilege())
}

fn store_word(vcpu: &mut Vcpu, insn: &Instruction, value: u16) -> Flow<()> {
    debug_assert_eq!(insn.op0_kind(), OpKind::Memory);
    let linear = operand::locate(vcpu, insn, 2, Access::Write, 1)?;
    vcpu.store(linear, value, vcpu.privilege())
}

const fn environment_size(wide: bool) -> usize {
    if wide { 28 } else { 14 }
}

/// FNSTENV, which then masks all exceptions; with `registers` FNSAVE, which then initialises.
fn store_environment(vcpu: &mut Vcpu, insn: &Instruction, wide: bool, registers: bool) -> Flow<()> {
    let length = environment_size(wide);
    let total = length + if registers { REGISTERS } else { 0 };
    let linear = operand::locate(vcpu, insn, total as u32, Access::Write, 1)?;
    let area = &vcpu.state.xsave;
    let mut image = [0; 28 + REGISTERS];
    environment_image(area, wide, vcpu.state.real_or_v8086(), &mut image);
    if registers {
        for i in 0..8 {
            image[length + 10 * i..][..10].copy_from_slice(&area.0[ST + 16 * i..][..10]);
        }
    }
    let who = vcpu.privilege();
    operand::probe_image(vcpu, linear, if wide { 4 } else { 2 }, total as u32, Access::Write, who)?;
    operand::store(vcpu, linear, &image[..total], who)?;
    let area = &mut vcpu.state.xsave;
    match registers {
        true => area.init_x87(),
        false => area.set_fcw(area.fcw() | fsw::EXCEPTIONS),
    }
    Ok(())
}

/// FLDENV; with `registers` FRSTOR.
fn load_environment(vcpu: &mut Vcpu, insn: &Instruction, wide: bool, registers: bool) -> Flow<()> {
    let length = environment_size(wide);
    let total = length + if registers { REGISTERS } else { 0 };
    let linear = operand::locate(vcpu, insn, total as u32, Access::Read, 1)?;
    let mut image = [0; 28 + REGISTERS];
    let who = vcpu.privilege();
    operand::probe_image(vcpu, linear, if wide { 4 } else { 2 }, total as u32, Access::Read, who)?;
    operand::load(vcpu, linear, &mut image[..total], who)?;
    let real = vcpu.state.real_or_v8086();
    let area = &mut vcpu.state.xsave;
    set_environment(area, wide, real, &image);
    if registers {
        for i in 0..8 {
            area.0[ST + 16 * i..][..10].copy_from_slice(&image[length + 10 * i..][..10]);
            area.0[ST + 16 * i + 10..][..6].fill(0);
        }
    }
    Ok(())
}

/// The environment as seven fields of 16 or 32 bits. The 32-bit protected form leaves ones in unused upper halves.
fn environment_image(area: &XsaveArea, wide: bool, real: bool, image: &mut [u8]) {
    let (fip, fdp, fop) = (area.fip(), area.fdp(), area.fop() as u32);
    let fields: [u32; 7] = match (wide, real) {
        (true, false) => [0xffff_0000, 0xffff_0000, 0xffff_0000, fip, fop << 16, fdp, 0xffff_0000],
        (true, true) => [
            0xffff_0000,
            0xffff_0000,
            0xffff_0000,
            0xffff_0000 | fip,
            fip >> 16 << 12 | fop,
            0xffff_0000 | fdp,
            fdp >> 16 << 12,
        ],
        (false, false) => [0, 0, 0, fip, 0, fdp, 0],
        (false, true) => [0, 0, 0, fip, fip >> 16 << 12 | fop, fdp, fdp >> 16 << 12],
    };
    let words = [area.fcw(), area.fsw(), area.tag_word()];
    let size = if wide { 4 } else { 2 };
    for (i, field) in fields.into_iter().enumerate() {
        let value = field | words.get(i).map_or(0, |w| *w as u32);
        image[size * i..][..size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
}

/// The reverse of [`environment_image`]. The registers keep their linear relative to physical register 0.
fn set_environment(area: &mut XsaveArea, wide: bool, real: bool, image: &[u8]) {
    let size = if wide { 4 } else { 2 };
    let field = |i: usize| {
        let mut b = [0; 4];
        b[..size].copy_from_slice(&image[size * i..][..size]);
        u32::from_le_bytes(b)
    };
    let (fip, fdp, fop) = match (wide, real) {
        (true, false) => (field(3), field(5), field(4) >> 16),
        (false, false) => (field(3), field(5), 0),
        (_, true) => {
            let high = |i| field(i) >> 12 << 16;
            (field(3) & 0xffff | high(4), field(5) & 0xffff | high(6), field(4))
        }
    };
    let status = field(1) as u16;
    area.set_top((status >> fsw::TOP_SHIFT) as usize & 7);
    area.set_fsw(status);
    area.set_fcw(field(0) as u16);
    area.set_tag_word(field(2) as u16);
    area.set_fip(fip);
    area.set_fdp(fdp);
    area.set_fop(fop as u16);
}
