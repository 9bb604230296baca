//! Emitted blocks with one thing wrong.

use std::mem::offset_of;

use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, Decoder, DecoderOptions, EncodingKind, FlowControl, Instruction,
    InstructionBlock, Mnemonic, OpKind, Register,
};

use super::{CACHE, Emitted};
use crate::engine::translate::context::Context;

/// Ways in which [`spoilt`] spoils an instruction.
pub const WAYS: usize = 29;

/// `block` made of `instructions` instead, laid out anew; branches follow the instructions that they go to. `moved` is
/// the index from which indices are shifted by one insertion (or removal, -1).
fn rebuild(block: &Emitted, instructions: &[Instruction]) -> Option<Emitted> {
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS | BlockEncoderOptions::DONT_FIX_BRANCHES;
    let result = BlockEncoder::encode(64, InstructionBlock::new(instructions, block.start), options).ok()?;
    let offset = |old: u32| {
        // An instruction that is gone leaves its place to the next.
        let ip = block.start + old as u64;
        let index = instructions.iter().position(|i| i.ip() >= ip && i.ip() < block.start + 0x10_0000)?;
        Some(result.new_instruction_offsets[index])
    };
    let mut new = block.clone();
    new.main = offset(block.main)?;
    for o in &mut new.origins {
        o.offset = offset(o.offset)?;
    }
    new.code = result.code_buffer;
    Some(new)
}

/// `block` with `bytes` put in before instruction `at`. What went to that instruction goes to the new one.
pub fn insert(block: &Emitted, instructions: &[Instruction], at: usize, bytes: &[u8]) -> Option<Emitted> {
    let mut new = Decoder::with_ip(64, bytes, 1, DecoderOptions::NONE).decode();
    assert_eq!(new.len(), bytes.len(), "{bytes:02x?} is not one instruction");
    let mut list = instructions.to_vec();
    new.set_ip(list[at].ip());
    // Nothing goes to the old one but from before.
    list[at].set_ip(u64::MAX - 1);
    list.insert(at, new);
    rebuild(block, &list)
}

fn replace(block: &Emitted, instructions: &[Instruction], at: usize, new: Instruction) -> Option<Emitted> {
    let mut list = instructions.to_vec();
    list[at] = new;
    list[at].set_ip(instructions[at].ip());
    rebuild(block, &list)
}

fn remove(block: &Emitted, instructions: &[Instruction], at: usize) -> Option<Emitted> {
    let mut list = instructions.to_vec();
    let ip = list.remove(at).ip();
    // What went to it goes to its successor.
    list.get_mut(at)?.set_ip(ip);
    let mut shifted = block.clone();
    let after = instructions[at + 1].ip() - block.start;
    for o in &mut shifted.origins {
        if o.offset as u64 == after {
            o.offset = (ip - block.start) as u32;
        }
    }
    if shifted.main as u64 == after {
        shifted.main = (ip - block.start) as u32;
    }
    shifted.origins.dedup_by_key(|o| o.offset);
    rebuild(&shifted, &list)
}

/// Every mutant of `block`, which ends in an IRET, whose common code may meet a page that was not tried.
pub fn frames(block: &Emitted) -> Vec<(&'static str, Emitted)> {
    let instructions = block.instructions();
    let mut all = Vec::new();
    for (at, insn) in instructions.iter().enumerate().rev().filter(|(_, i)| i.code() == Code::Mov_r32_rm32).take(2) {
        all.extend(remove(block, &instructions, at).map(|m| ("an end of the frame not read", m)));
        for displacement in [4, 12, 20, 4096] {
            let (_, new) = changed(insn, "", |i| {
                i.set_memory_displacement64(displacement);
                i.set_memory_displ_size(1);
            });
            all.extend(replace(block, &instructions, at, new).map(|m| ("something else read", m)));
        }
        // lea r14, [r14 + 4] after it
        let moved = insert(block, &instructions, at + 1, &[0x4d, 0x8d, 0x76, 0x04]);
        all.extend(moved.map(|m| ("the frame moved", m)));
    }
    all
}

/// Every mutant of `block` that changes one instruction, with what was done to it.
pub fn spoilt(block: &Emitted) -> Vec<(&'static str, Emitted)> {
    let instructions = block.instructions();
    let mut all = Vec::new();
    for (at, insn) in instructions.iter().enumerate() {
        for (name, new) in
            [addresses(insn), stack(insn), tripwire(insn), context(insn), registers(insn), branches(block, insn)]
                .concat()
        {
            all.extend(replace(block, &instructions, at, new).map(|m| (name, m)));
        }
        if let Some(new) = widen(insn, &block.code[(insn.ip() - block.start) as usize..][..insn.len()]) {
            all.extend(replace(block, &instructions, at, new).map(|m| ("operand of 64 bits", m)));
        }
        if needed(insn) && !instructions.get(at + 1).is_some_and(|next| superseded(insn, next)) {
            all.extend(remove(block, &instructions, at).map(|m| ("needed step left out", m)));
        }
        if picked(insn) {
            // mov r9d, eax; mov r8d, eax
            for bytes in [[0x41, 0x89, 0xc1], [0x41, 0x89, 0xc0]] {
                all.extend(insert(block, &instructions, at, &bytes).map(|m| ("picked window clobbered", m)));
            }
        }
    }
    all
}

type Changed = Vec<(&'static str, Instruction)>;

fn changed(insn: &Instruction, name: &'static str, f: impl FnOnce(&mut Instruction)) -> (&'static str, Instruction) {
    let mut new = *insn;
    f(&mut new);
    (name, new)
}

fn has_memory(insn: &Instruction) -> bool {
    let accesses = !matches!(insn.mnemonic(), Mnemonic::Lea | Mnemonic::Nop);
    accesses && (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory)
}

fn picked(insn: &Instruction) -> bool {
    has_memory(insn) && insn.memory_base() == Register::R9 && insn.memory_index() == Register::R8
}

fn addresses(insn: &Instruction) -> Changed {
    let mut all = Vec::new();
    if has_memory(insn) && insn.memory_segment() == Register::GS {
        all.push(changed(insn, "GS prefix dropped", |i| i.set_segment_prefix(Register::None)));
        all.push(changed(insn, "FS for GS", |i| i.set_segment_prefix(Register::FS)));
        all.push(changed(insn, "DS for GS", |i| i.set_segment_prefix(Register::DS)));
        all.push(changed(insn, "67h prefix dropped", |i| {
            i.set_memory_base(wide(i.memory_base()));
            i.set_memory_index(wide(i.memory_index()));
            if i.memory_base() == Register::None && i.memory_index() == Register::None {
                i.set_memory_displ_size(4);
            }
            if i.memory_displ_size() == 4 {
                i.set_memory_displacement64(i.memory_displacement32() as i32 as u64);
                i.set_memory_displ_size(8);
            }
        }));
        all.push(changed(insn, "address from a register of the host's", |i| i.set_memory_base(Register::R15D)));
    }
    if has_memory(insn) && insn.memory_base() == Register::R12 {
        for base in [Register::R13, Register::R15, Register::RAX, Register::RSP] {
            all.push(changed(insn, "another base for the window", |i| i.set_memory_base(base)));
        }
        for index in [Register::R12, Register::R13, Register::R14, Register::R15] {
            all.push(changed(insn, "index of the host's", |i| i.set_memory_index(index)));
        }
        all.push(changed(insn, "GS on the window's base", |i| i.set_segment_prefix(Register::GS)));
        all.push(changed(insn, "67h on the window's base", |i| {
            i.set_memory_base(Register::R12D);
            if i.memory_index() != Register::None {
                i.set_memory_index(wide_to_narrow(i.memory_index()));
            }
        }));
    }
    if picked(insn) {
        for base in [Register::R10, Register::RAX, Register::R15, Register::RSP] {
            all.push(changed(insn, "another base for a picked window", |i| i.set_memory_base(base)));
        }
        all.push(changed(insn, "another index in a picked window", |i| i.set_memory_index(Register::RBX)));
        all.push(changed(insn, "index scaled in a picked window", |i| i.set_memory_index_scale(8)));
        all.push(changed(insn, "displacement in a picked window", |i| {
            i.set_memory_displacement64(8);
            i.set_memory_displ_size(1);
        }));
        all.push(changed(insn, "GS on a picked window", |i| i.set_segment_prefix(Register::GS)));
    }
    all
}

/// Accesses through r14, and where it comes from.
fn stack(insn: &Instruction) -> Changed {
    let mut all = Vec::new();
    if has_memory(insn) && insn.memory_base() == Register::R14 {
        for base in [Register::R13, Register::RAX, Register::RSP, Register::RBP] {
            all.push(changed(insn, "another base for the stack", |i| i.set_memory_base(base)));
        }
        all.push(changed(insn, "stack with an index", |i| i.set_memory_index(Register::RAX)));
        all.push(changed(insn, "GS on the stack", |i| i.set_segment_prefix(Register::GS)));
    }
    if insn.code() == Code::Lea_r64_m && insn.op0_register() == Register::R14 {
        all.push(changed(insn, "ESP moved far", |i| {
            i.set_memory_displacement64(0x0800_0000);
            i.set_memory_displ_size(4);
        }));
        for base in [Register::R13, Register::R15, Register::RAX, Register::RSP] {
            all.push(changed(insn, "ESP from another base", |i| i.set_memory_base(base)));
        }
        if insn.memory_index() != Register::None {
            all.push(changed(insn, "ESP scaled", |i| i.set_memory_index_scale(2)));
            all.push(changed(insn, "ESP of the host's", |i| i.set_memory_index(Register::R15)));
        }
    }
    all
}

/// `block` with instruction `at`, an indirect branch by the chart, going elsewhere.
pub fn off_the_chart(block: &Emitted, instructions: &[Instruction], at: usize, insn: &Instruction) -> Vec<Emitted> {
    let mut all = Vec::new();
    for base in [Register::R12, Register::R13, Register::R14, Register::RAX, Register::RSP] {
        all.push(changed(insn, "", |i| i.set_memory_base(base)));
    }
    for index in [Register::R9, Register::RAX, Register::None] {
        all.push(changed(insn, "", |i| i.set_memory_index(index)));
    }
    all.push(changed(insn, "", |i| i.set_memory_index_scale(4)));
    all.push(changed(insn, "", |i| i.set_memory_displacement64(i.memory_displacement64() + 8)));
    all.push(changed(insn, "", |i| i.set_segment_prefix(Register::GS)));
    all.into_iter().filter_map(|(_, new)| replace(block, instructions, at, new)).collect()
}

fn tripwire(insn: &Instruction) -> Changed {
    if insn.code() != Code::Movzx_r32_rm16 || insn.memory_index() != Register::R13 {
        return Vec::new();
    }
    let mut all = vec![
        changed(insn, "tripwire scaled", |i| i.set_memory_index_scale(2)),
        changed(insn, "displacement to the tripwire", |i| {
            i.set_memory_displacement64(4u64.wrapping_neg());
            i.set_memory_displ_size(1);
        }),
    ];
    for base in [Register::R11, Register::R14, Register::R15, Register::RSP, Register::None] {
        all.push(changed(insn, "another difference at the tripwire", |i| i.set_memory_base(base)));
    }
    all
}

fn wide_to_narrow(r: Register) -> Register {
    Register::EAX + r.number() as u32
}

fn wide(r: Register) -> Register {
    if r.is_gpr() { r.full_register() } else { r }
}

/// Other fields of the context, and what lies around it.
fn context(insn: &Instruction) -> Changed {
    if !has_memory(insn) || insn.memory_base() != Register::R15 {
        return Vec::new();
    }
    let offsets =
        [offset_of!(Context, host_rsp), offset_of!(Context, target), offset_of!(Context, window), size_of::<Context>()];
    let mut all = Vec::new();
    for displacement in offsets.into_iter().map(|o| o as u64).chain([4u64.wrapping_neg()]) {
        all.push(changed(insn, "another field of the context", |i| {
            i.set_memory_displacement64(displacement);
            i.set_memory_displ_size(8);
        }));
    }
    all
}

/// Results that go to registers of the host's.
fn registers(insn: &Instruction) -> Changed {
    let to = insn.op0_register();
    if insn.op_count() == 0 || insn.op0_kind() != OpKind::Register || !(to.is_gpr32() || to.is_gpr64()) {
        return Vec::new();
    }
    let hosts = match to.is_gpr32() {
        true => [Register::ESP, Register::R12D, Register::R13D, Register::R15D],
        false => [Register::RSP, Register::R12, Register::R13, Register::R15],
    };
    hosts.map(|r| changed(insn, "a register of the host's written", |i| i.set_op0_register(r))).to_vec()
}

fn branches(block: &Emitted, insn: &Instruction) -> Changed {
    if insn.op_count() == 0 || insn.op0_kind() != OpKind::NearBranch64 {
        return Vec::new();
    }
    let end = block.start + block.code.len() as u64;
    let target = insn.near_branch_target();
    let mut wild =
        vec![end, end + 0x1234, block.start - 1, CACHE, block.trampolines.enter + 1, block.trampolines.exit + 1];
    if insn.is_jcc_short_or_near() {
        wild.push(block.trampolines.exit);
    }
    // Into the middle of the instruction that it goes to.
    if block.instructions().iter().any(|i| i.ip() == target && i.len() > 1) {
        wild.push(target + 1);
    }
    wild.into_iter().map(|to| changed(insn, "wild branch", |i| i.set_near_branch64(to))).collect()
}

/// With REX.W, if that makes another instruction of it.
fn widen(insn: &Instruction, bytes: &[u8]) -> Option<Instruction> {
    let copy = insn.mnemonic() == Mnemonic::Mov && insn.op0_kind() == insn.op1_kind();
    if insn.encoding() != EncodingKind::Legacy || insn.flow_control() != FlowControl::Next || copy {
        return None;
    }
    let prefix = |b: &&u8| matches!(**b, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    let at = bytes.iter().take_while(prefix).count();
    let mut wider = bytes.to_vec();
    match bytes[at] {
        rex @ 0x40..0x50 => wider[at] = rex | 8,
        _ => wider.insert(at, 0x48),
    }
    let new = Decoder::with_ip(64, &wider, insn.ip(), DecoderOptions::NONE).decode();
    (new.len() == wider.len() && new.code() != insn.code() && !new.is_ip_rel_memory_operand()).then_some(new)
}

/// True if `next` writes r14 in any case, which `insn` does too.
fn superseded(insn: &Instruction, next: &Instruction) -> bool {
    insn.op0_register() == Register::R14 && next.op0_kind() == OpKind::Register && next.op0_register() == Register::R14D
}

/// True for steps of our own that a later one relies on.
fn needed(insn: &Instruction) -> bool {
    match insn.code() {
        Code::VEX_Pext_r32_r32_rm32 => insn.op2_register() == Register::R13D,
        Code::VEX_Shrx_r32_rm32_r32 => insn.op2_register() == Register::R13D,
        Code::Mov_r64_rm64 | Code::Mov_rm32_imm32 => {
            has_memory(insn)
                && insn.memory_base() == Register::R15
                && insn.memory_displacement64() != offset_of!(Context, fp_absent) as u64
        }
        Code::Mov_rm64_r64 => insn.op0_register() == Register::R8 || insn.op1_register() == Register::R8,
        // Without having been moved, r14 is no less near.
        Code::Lea_r64_m => insn.op0_register() != Register::R14 || insn.memory_index() == Register::R14,
        Code::Lea_r32_m => insn.op0_register() == Register::R9D,
        // The EIP that IRET goes to.
        Code::Mov_r32_rm32 => insn.op0_register() == Register::R8D && insn.memory_base() == Register::R14,
        Code::Mov_rm32_r32 => {
            insn.op0_register() == insn.op1_register() && matches!(insn.op0_register(), Register::ESI | Register::EDI)
        }
        _ => false,
    }
}
