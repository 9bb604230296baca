//! Branches: each leads inside the block, to where a live block may be come into, or to the common code that is meant for it.

use iced_x86::{Code, OpKind, Register};

use super::{After, COUNT, Rule, Step};
use crate::engine::translate::check::memory;
use crate::engine::translate::check::state::{State, TARGET, Value, number};
use crate::engine::translate::context::INDEX_ENTRIES;
use crate::engine::translate::gate::Gate;

/// The register that gates take a selector or a vector in.
const NAMED: u8 = 11;

impl Step<'_> {
    /// JMP near, direct.
    pub(super) fn jump(self) -> Rule<After> {
        if !matches!(self.bytes[0], 0xe9 | 0xeb) {
            return Err("a prefix before a branch");
        }
        let (target, t) = (self.insn.near_branch_target(), self.subject.trampolines);
        if target == t.exit {
            return if self.state.site { self.left() } else { Err("an exit that names no site") };
        }
        if let Some(gate) = t.gates.iter().position(|at| *at == target && target != 0) {
            let told = match gate {
                _ if gate == Gate::Enter.index() || gate == Gate::Exit.index() => true,
                _ if gate == Gate::Return.index() => self.state.frame == [true; 2],
                _ => self.state.narrow(NAMED),
            };
            return match self.state.site && self.state.narrow(TARGET) && told {
                true => self.left(),
                false => Err("a gate that is not told everything"),
            };
        }
        if target == t.miss || target == t.branch {
            let named = self.state.narrow(TARGET);
            return if named { self.left() } else { Err("an indirect branch to something that is not a guest EIP") };
        }
        if target == t.load_fp {
            return self.load_fp();
        }
        if (self.subject.linked)(target, self.state.fp) {
            return self.left();
        }
        let offset = self.inside(target)?;
        Ok(After { falls: None, jumps: Some((offset, self.state)) })
    }

    /// Jcc, JECXZ or JRCXZ.
    pub(super) fn jump_if(self) -> Rule<After> {
        let known = match self.bytes {
            [0x70..=0x7f, ..] | [0x0f, 0x80..=0x8f, ..] => true,
            [0xe3, ..] => self.state.narrow(COUNT) || self.state.get(COUNT) == Value::FpAbsent,
            [0x67, 0xe3, ..] => self.state.narrow(COUNT),
            _ => false,
        };
        if !known {
            return Err("a conditional branch that emitted code does not use");
        }
        let target = self.insn.near_branch_target();
        let t = self.subject.trampolines;
        let by_table = (target == t.miss || target == t.branch) && self.state.narrow(TARGET);
        if by_table || (self.subject.linked)(target, self.state.fp) {
            self.state.require_guest_narrow()?;
            return Ok(After { falls: Some(self.state), jumps: None });
        }
        let offset = self.inside(target)?;
        let mut taken = self.state.clone();
        if self.bytes[0] == 0xe3 && taken.get(COUNT) == Value::FpAbsent {
            taken.set(COUNT, Value::Narrow);
            taken.fp = true;
        }
        Ok(After { falls: Some(self.state), jumps: Some((offset, taken)) })
    }

    /// CALL near, direct: leaves the address of the next instruction on the return stack. Execution comes back there with
    /// a guest EIP in r8d, and only by a return: every way out to Rust code empties the return stack.
    pub(super) fn call(self) -> Rule<After> {
        if self.bytes[0] != 0xe8 {
            return Err("a call that emitted code does not use");
        }
        self.state.require_guest_narrow()?;
        let target = self.insn.near_branch_target();
        if (self.subject.linked)(target, self.state.fp) {
            return Ok(After { falls: Some(self.landing()), jumps: None });
        }
        let offset = self.inside(target)?;
        Ok(After { falls: Some(self.landing()), jumps: Some((offset, State::entry())) })
    }

    /// What is known where a call returns to.
    fn landing(&self) -> State {
        let mut landing = State::indirect_entry();
        landing.fp = self.state.fp;
        landing
    }

    /// CALL near through the table.
    pub(super) fn call_indirect(self) -> Rule<After> {
        self.state.require_guest_narrow()?;
        self.through_table(Code::Call_rm64)?;
        Ok(After { falls: Some(self.landing()), jumps: None })
    }

    /// RET near: to the landing of a call, or to the common code for an empty return stack.
    pub(super) fn return_near(self) -> Rule<After> {
        match self.bytes == [0xc3] && self.state.narrow(TARGET) {
            true => self.left(),
            false => Err("a return that says not where to"),
        }
    }

    /// JMP near through the table.
    pub(super) fn jump_indirect(self) -> Rule<After> {
        self.through_table(Code::Jmp_rm64)?;
        self.left()
    }

    /// `[branches + index*8]`, `[branches + constant]`, or the place of the EIP in r8d on the chart.
    fn through_table(&self, code: Code) -> Rule<()> {
        let i = self.insn;
        if i.code() == code && i.op0_kind() == OpKind::Memory && memory::on_chart(i) && self.state.narrow(TARGET) {
            return Ok(());
        }
        let shape = i.code() == code
            && i.op0_kind() == OpKind::Memory
            && i.memory_base().is_gpr64()
            && i.segment_prefix() == Register::None
            && self.state.get(number(i.memory_base())) == Value::Branches
            && self.state.narrow(TARGET);
        let entry = match i.memory_index() {
            Register::None => {
                let at = i.memory_displacement64();
                at < 8 * INDEX_ENTRIES as u64 && at.is_multiple_of(8)
            }
            index => {
                index.is_gpr64()
                    && i.memory_index_scale() == 8
                    && i.memory_displacement64() == 0
                    && self.state.get(number(index)) == Value::Index
            }
        };
        match shape && entry {
            true => Ok(()),
            false => Err("an indirect branch that does not go through the table"),
        }
    }

    /// The common code loads x87, SSE and AVX state and goes on at r9.
    fn load_fp(mut self) -> Rule<After> {
        let Value::Code(offset) = self.state.get(9) else {
            return Err("state is loaded without saying where to go on");
        };
        if !self.state.narrow(0) || !self.state.narrow(2) {
            return Err("a guest register may have a set upper half");
        }
        for clobbered in [COUNT, 10, 11] {
            self.state.set(clobbered, Value::Unknown);
        }
        self.state.fp = true;
        Ok(After { falls: None, jumps: Some((offset, self.state)) })
    }

    /// Execution leaves the block.
    fn left(self) -> Rule<After> {
        self.state.require_guest_narrow()?;
        Ok(After { falls: None, jumps: None })
    }

    /// Offset of `target` in the block.
    fn inside(&self, target: u64) -> Rule<u32> {
        let offset = target.wrapping_sub(self.subject.start);
        match offset < self.subject.code.len() as u64 {
            true => Ok(offset as u32),
            false => Err("a branch out of the block"),
        }
    }
}
