//! x87, MMX, SSE, AVX and their state: the part of the interpreter that works on [`crate::cpu::XsaveArea`].
//!
//! An x86 host has the very instructions that its guest asks for, so data instructions are not modelled but run: each
//! becomes a *stub*, the same operation encoded for 64-bit mode, executed on the guest's registers, with its memory
//! operand in a buffer. Everything around it is done here as the manual says: may it execute at all (`rules`), where is
//! its operand and does it fault (`operand`), which exceptions did it raise and what may the guest keep (`run`). The
//! host never takes a fault for the guest: SIMD exceptions are masked and checked after, and a pending x87 exception is
//! raised by us or kept out of sight.
//!
//! Instructions that would show host state, or whose memory accesses depend on data, are executed in Rust: x87 control
//! (`control`), FXSAVE, XSAVE and MXCSR (`state`), masked moves and gathers (`masked`). What may run natively is an
//! allowlist (`classify`); the executable memory and the switch to guest registers are in `native`, the only file here
//! with unsafe code.
//!
//! The processor modelled is one that deprecates FCS and FDS and updates FDP and FOP on unmasked exceptions only: its
//! CPUID.(7,0):EBX has bits 6 and 13 set.

mod area;
mod classify;
mod control;
mod crc;
mod masked;
mod native;
mod operand;
mod rules;
mod run;
mod state;
#[cfg(test)]
mod tests;
mod underflow;

use iced_x86::{Code, Instruction};

use crate::cpu::{Flow, Stop, Vcpu};
use classify::Action;
pub use run::SimdUnit;

/// True if [`execute`] handles instructions of this `Code`.
#[inline]
pub fn is_simd(code: Code) -> bool {
    classify::entry(code).is_some()
}

/// Executes `insn`, whose encoding is `bytes`, on `vcpu`. EIP already points at the next instruction.
pub fn execute(unit: &mut SimdUnit, vcpu: &mut Vcpu, insn: &Instruction, bytes: &[u8]) -> Flow<()> {
    let entry = classify::entry(insn.code()).ok_or_else(Stop::ud)?;
    rules::check(vcpu, entry, insn)?;
    match entry.action {
        Action::Native => unit.run(vcpu, insn, bytes, entry),
        Action::Control => control::execute(vcpu, insn),
        Action::State => state::execute(vcpu, insn),
        Action::Masked => masked::execute(vcpu, insn),
        Action::Crc => crc::execute(vcpu, insn),
        Action::Fence => Ok(()),
    }
}
