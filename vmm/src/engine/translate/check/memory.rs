//! What memory emitted code may reach.
//!
//! * GS segment and 32-bit addressing: the window that GS base points at. The offset is cut to 32 bits, and the 4 GiB
//!   after each window hold no mapping, so an access of any width that begins inside faults where it leaves.
//! * `[r14 + displacement]`, r14 the host address of ESP. That is in the window or within twice [`NEAR`] of it: each time
//!   it is moved without being made from ESP anew, an access near it went well before. With a displacement it stays in
//!   the gaps of 4 GiB around the window.
//! * `[r12 + number * scale + displacement]`, r12 the window's base and the number below 2^32: from 2 GiB before the window
//!   to 34 GiB after its start, and a bit-string instruction 256 MiB further. The gaps on both sides are wider ([`GAP`]).
//! * `[window + linear]`, the window picked for that very linear address. A bit-string instruction adds a signed bit
//!   offset of its own, 256 MiB either way at most: that too stays in the window and the gaps around it.
//! * RSI and RDI of string instructions, made from a window and a linear address just before. They move element by
//!   element, so the gap stops them, whatever the count; after one instruction they are cut to 32 bits again.
//! * The tripwire: a difference of two EIPs, below 2^32, after its readable page.
//! * Single fields of the context, and by indirect branches what the chart behind it holds for a guest EIP.

use std::mem::offset_of;

use iced_x86::{Code, Instruction, OpKind, Register};

use super::state::{State, Value, number, scratch, writable};
use crate::cpu::{Segment, eflags};
use crate::engine::translate::chart::CHART;
use crate::engine::translate::context::{Context, NEAR, host};
use crate::engine::translate::gate::crossing::FRAME;
use crate::mmu::GAP;

const OUTSIDE: &str = "memory operand is neither in a window nor an allowed field of the context";

/// Checks the explicit memory operand of a data instruction.
pub fn window_operand(insn: &Instruction, state: &State) -> Result<(), &'static str> {
    if insn.is_vsib() || insn.is_ip_rel_memory_operand() {
        return Err(OUTSIDE);
    }
    match addresses_32_bits(insn) {
        true => gs_operand(insn, state),
        false if insn.memory_base() == Register::R14 => stack_operand(insn, state),
        false if insn.memory_base() == Register::R12 => near_operand(insn, state),
        false => picked_operand(insn, state),
    }
}

/// `[r14 + displacement]`.
fn stack_operand(insn: &Instruction, state: &State) -> Result<(), &'static str> {
    let shape = insn.memory_index() == Register::None && insn.segment_prefix() == Register::None;
    match shape && state.get(host::ESP) == Value::Stack {
        true => Ok(()),
        false => Err(OUTSIDE),
    }
}

/// How far a scaled number below 2^32, a displacement, a bit offset and the widest operand reach, beyond a window or
/// before it.
const REACH: u64 = (8 << 32) + (1 << 31) + (1 << 28) + 64;
const _: () = assert!(REACH <= GAP);

/// `[r12 + number * scale + displacement]`.
fn near_operand(insn: &Instruction, state: &State) -> Result<(), &'static str> {
    let index = insn.memory_index();
    let guest = index == Register::None || (index.is_gpr64() && writable(number(index)) && state.narrow(number(index)));
    match guest && insn.segment_prefix() == Register::None {
        true => Ok(()),
        false => Err(OUTSIDE),
    }
}

/// True for an access through r14 after which, if it went well, r14 is no further than [`NEAR`] from the window.
pub fn anchors(insn: &Instruction) -> bool {
    let moves = [Code::Mov_r32_rm32, Code::Mov_rm32_r32, Code::Mov_rm16_r16, Code::Mov_rm32_imm32];
    moves.contains(&insn.code())
        && (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory)
        && insn.memory_base() == Register::R14
        && is_near(insn.memory_displacement64())
}

/// Notes a load of either end of the frame that IRET finds at r14.
pub fn frame_ends(insn: &Instruction, frame: &mut [bool; 2]) {
    let load = insn.code() == Code::Mov_r32_rm32 && insn.op1_kind() == OpKind::Memory;
    if load && insn.memory_base() == Register::R14 && insn.memory_index() == Register::None {
        let ends = [0, FRAME as u64 - 4];
        frame.iter_mut().zip(ends).for_each(|(read, end)| *read |= insn.memory_displacement64() == end);
    }
}

fn is_near(displacement: u64) -> bool {
    (-(NEAR as i64)..=NEAR as i64).contains(&(displacement as i64))
}

/// `lea r14, …`: on from where it is if that is anchored, or to the window plus something below 2^32. True if that
/// leaves it anchored.
pub fn lea_stack(insn: &Instruction, state: &State) -> Result<bool, &'static str> {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let plain = insn.segment_prefix() == Register::None && is_near(insn.memory_displacement64());
    let moved =
        base == Register::R14 && index == Register::None && state.get(host::ESP) == Value::Stack && state.anchored;
    let made = base == Register::R12
        && index.is_gpr64()
        && insn.memory_index_scale() == 1
        && writable(number(index))
        && state.narrow(number(index));
    match plain && (moved || made) {
        true => Ok(made),
        false => Err("r14 is moved away from the window"),
    }
}

/// True if the effective address is cut to 32 bits (67h).
fn addresses_32_bits(insn: &Instruction) -> bool {
    match (insn.memory_base(), insn.memory_index()) {
        (Register::None, Register::None) => insn.memory_displ_size() == 4,
        (base, index) => [base, index].iter().all(|r| *r == Register::None || r.is_gpr32()),
    }
}

fn gs_operand(insn: &Instruction, state: &State) -> Result<(), &'static str> {
    if insn.memory_segment() != Register::GS {
        return Err(OUTSIDE);
    }
    let guest = |r: Register| r == Register::None || (writable(number(r)) && state.shows_guest(number(r)));
    match guest(insn.memory_base()) && guest(insn.memory_index()) {
        true => Ok(()),
        false => Err("an address is made from a register that may hold something of the host's"),
    }
}

/// `[window + linear]`, in either order.
fn picked_operand(insn: &Instruction, state: &State) -> Result<(), &'static str> {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let shape = base.is_gpr64()
        && index.is_gpr64()
        && insn.memory_index_scale() == 1
        && insn.memory_displacement64() == 0
        && insn.segment_prefix() == Register::None;
    let (base, index) = (number(base), number(index));
    let picked = |window: u8, linear: u8| state.get(window) == Value::Window(linear) && state.narrow(linear);
    match shape && (picked(base, index) || picked(index, base)) {
        true => Ok(()),
        false => Err(OUTSIDE),
    }
}

/// What register `to` holds after `lea to, [window + linear]` or a RIP-relative `lea` into the block at
/// `start..start + length`.
pub fn lea64(insn: &Instruction, state: &State, start: u64, length: usize) -> Result<Value, &'static str> {
    let to = number(insn.op0_register());
    if insn.memory_base() == Register::RIP {
        let offset = insn.ip_rel_memory_address().wrapping_sub(start);
        return match scratch(to) && offset < length as u64 {
            true => Ok(Value::Code(offset as u32)),
            false => Err("an address outside the block is taken"),
        };
    }
    if insn.op0_register() == Register::RAX {
        return time_sum(insn, state);
    }
    let string = matches!(insn.op0_register(), Register::RSI | Register::RDI);
    let linear = [insn.memory_base(), insn.memory_index()].contains(&insn.op0_register());
    match string && linear {
        true => picked_operand(insn, state).map(|()| Value::Pointer),
        false => Err("64-bit address arithmetic"),
    }
}

/// RAX while a time stamp is put together in it: `lea rax, [rax + rdx]`, then `lea rax, [rax + r8]`.
fn time_sum(insn: &Instruction, state: &State) -> Result<Value, &'static str> {
    let plain = insn.memory_base() == Register::RAX
        && insn.memory_index_scale() == 1
        && insn.memory_displacement64() == 0
        && insn.segment_prefix() == Register::None;
    match (insn.memory_index(), state.get(0), state.get(2), state.get(8)) {
        (Register::RDX, Value::Time(0), Value::Time(1), _) if plain => Ok(Value::Time(2)),
        (Register::R8, Value::Time(2), _, Value::TimeOffset) if plain => Ok(Value::Time(3)),
        _ => Err("64-bit address arithmetic"),
    }
}

/// True if the memory operand is `[r15 + displacement]`, with the index register given or none.
fn context_operand(insn: &Instruction, index: Register) -> bool {
    insn.memory_base().number() == host::CONTEXT as usize
        && insn.memory_base().is_gpr64()
        && insn.memory_index() == index
        && insn.segment_prefix() == Register::None
}

/// True for `[r15 + r8*8 + CHART]`.
pub fn on_chart(insn: &Instruction) -> bool {
    context_operand(insn, Register::R8)
        && insn.memory_index_scale() == 8
        && insn.memory_displacement64() == CHART as u64
}

/// True if the memory operand is in the context, rightly or not.
pub fn in_context(insn: &Instruction) -> bool {
    let explicit = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
    explicit && insn.memory_base() == Register::R15
}

/// True if the memory operand names the tripwire, rightly or not.
pub fn in_tripwire(insn: &Instruction) -> bool {
    insn.op1_kind() == OpKind::Memory && [insn.memory_base(), insn.memory_index()].contains(&Register::R13)
}

/// Checks `movzx scratch, word [difference + tripwire]`: two readable bytes and 4 GiB of nothing, whatever the difference.
pub fn tripwire_operand(insn: &Instruction, state: &State) -> Result<(), &'static str> {
    let difference = insn.memory_base();
    let shape = difference.is_gpr64()
        && scratch(number(difference))
        && state.narrow(number(difference))
        && insn.memory_index() == Register::R13
        && insn.memory_index_scale() == 1
        && insn.memory_displacement64() == 0
        && insn.segment_prefix() == Register::None
        && scratch(number(insn.op0_register()));
    if shape { Ok(()) } else { Err(OUTSIDE) }
}

/// What a load from the context leaves in a register.
pub fn context_load(insn: &Instruction, state: &State) -> Result<Value, &'static str> {
    let at = insn.memory_displacement64();
    let wide = match insn.code() {
        Code::Mov_r64_rm64 => true,
        Code::Mov_r32_rm32 | Code::Cmp_r32_rm32 => false,
        _ => return Err(OUTSIDE),
    };
    let to = number(insn.op0_register());
    let index = insn.memory_index();
    if wide && scratch(to) && index.is_gpr64() && context_operand(insn, index) {
        let quarters = at == offset_of!(Context, quarters) as u64 && insn.memory_index_scale() == 8;
        return match state.get(number(index)) {
            Value::Quarter(of) if quarters => Ok(Value::Window(of)),
            _ => Err(OUTSIDE),
        };
    }
    if !context_operand(insn, Register::None) || !writable(to) {
        return Err(OUTSIDE);
    }
    let of_segment = |field: usize| {
        let first = (offset_of!(Context, seg) + field) as u64;
        (0..6).any(|i| at == first + i * size_of::<Segment>() as u64)
    };
    let of_control = [0, 2, 3, 4].iter().any(|n| at == (offset_of!(Context, control) + n * size_of::<u32>()) as u64);
    match wide {
        true if at == offset_of!(Context, fp_absent) as u64 => Ok(Value::FpAbsent),
        // Rust code and the signal handler only ever store 0 or 1 there.
        true if at == offset_of!(Context, pending) as u64 => Ok(Value::Narrow),
        true if at == offset_of!(Context, tsc_offset) as u64 && to == 8 => Ok(Value::TimeOffset),
        true if at == offset_of!(Context, branches) as u64 && scratch(to) => Ok(Value::Branches),
        false if at == offset_of!(Context, tsc_aux) as u64 => Ok(Value::Narrow),
        false if at == offset_of!(Context, interrupts) as u64 => Ok(Value::Narrow),
        false if at == offset_of!(Context, system_flags) as u64 => match insn.code() {
            Code::Cmp_r32_rm32 => Ok(state.get(to)),
            _ => Ok(Value::Narrow),
        },
        false if of_segment(offset_of!(Segment, base)) => Ok(Value::Narrow),
        false if of_segment(offset_of!(Segment, selector)) => Ok(Value::Narrow),
        false if of_control => Ok(Value::Narrow),
        _ => Err(OUTSIDE),
    }
}

/// True if the instruction stores EFLAGS.IF, or what may be it, to the context.
pub fn interrupt_store(insn: &Instruction) -> bool {
    let value = match insn.code() {
        Code::Mov_rm32_imm32 => matches!(insn.immediate32(), 0 | eflags::IF),
        Code::Mov_rm32_r32 => insn.op1_register() == Register::R8D,
        _ => false,
    };
    value
        && context_operand(insn, Register::None)
        && insn.memory_displacement64() == offset_of!(Context, interrupts) as u64
}

/// True if the instruction stores a scratch register to the context's note of a segment base.
pub fn base_store(insn: &Instruction) -> bool {
    insn.code() == Code::Mov_rm32_r32
        && context_operand(insn, Register::None)
        && insn.memory_displacement64() == offset_of!(Context, x87_base) as u64
        && scratch(number(insn.op1_register()))
}

/// The exit site that a store to the context names; stores of anything else are not allowed.
pub fn context_store(insn: &Instruction) -> Result<u32, &'static str> {
    let site = insn.code() == Code::Mov_rm32_imm32
        && context_operand(insn, Register::None)
        && insn.memory_displacement64() == offset_of!(Context, site) as u64;
    if site { Ok(insn.immediate32()) } else { Err(OUTSIDE) }
}

/// Checks the registers of a string instruction and notes that they have moved.
pub fn string_operands(insn: &Instruction, state: &mut State) -> Result<(), &'static str> {
    if insn.segment_prefix() != Register::None {
        return Err("a string instruction through a segment");
    }
    for i in 0..insn.op_count() {
        let register = match insn.op_kind(i) {
            OpKind::MemorySegRSI => Register::RSI,
            OpKind::MemoryESRDI => Register::RDI,
            OpKind::Register => continue,
            _ => return Err(OUTSIDE),
        };
        match state.get(number(register)) {
            Value::Pointer => state.set(number(register), Value::Unknown),
            _ => return Err("a string instruction whose register is not a host address inside a window"),
        }
    }
    Ok(())
}
