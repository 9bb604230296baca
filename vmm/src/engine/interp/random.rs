//! RDRAND and RDSEED: the host's own, which is why the model announces them only where the host has them.
#![allow(unsafe_code)]

use std::arch::x86_64::{_rdrand32_step, _rdseed32_step};

use super::flags::put;
use super::operand::Op;
use super::stack::write_sized;
use crate::cpu::{Flow, Vcpu, eflags};

/// Stores `value`, or zero with CF clear if the host had none; the other arithmetic flags are cleared.
fn deliver(v: &mut Vcpu, op: &Op, value: Option<u32>) -> Flow<()> {
    put(&mut v.state.eflags, eflags::ARITH, value.is_some() as u32);
    write_sized(v, op, op.dst, value.unwrap_or(0))
}

/// RDRAND.
pub(super) fn rdrand(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let mut value = 0;
    // SAFETY: executed only if the processor has the instruction.
    let good = is_x86_feature_detected!("rdrand") && unsafe { _rdrand32_step(&mut value) } == 1;
    deliver(v, op, good.then_some(value))
}

/// RDSEED.
pub(super) fn rdseed(v: &mut Vcpu, op: &Op) -> Flow<()> {
    let mut value = 0;
    // SAFETY: executed only if the processor has the instruction.
    let good = is_x86_feature_detected!("rdseed") && unsafe { _rdseed32_step(&mut value) } == 1;
    deliver(v, op, good.then_some(value))
}
