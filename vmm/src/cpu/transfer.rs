//! Far JMP and far CALL (SDM vol. 2, JMP and CALL; vol. 3, §5.8): to code segments, through call gates, and to tasks.

use super::descriptor::{Descriptor, is_null, rpl, selector_fault, system};
use super::stack::merged_esp;
use super::task::{Switch, SwitchKind};
use super::{Flow, Stop, Vcpu, reg, seg, vector};

impl Vcpu {
    /// JMP ptr16:16, ptr16:32 or through memory. `size` is the operand size, 2 or 4.
    pub fn far_jump(&mut self, selector: u16, offset: u32, size: u8) -> Flow<()> {
        let offset = truncate(offset, size);
        if self.state.real_or_v8086() {
            self.check_code_limit(self.state.seg[seg::CS].limit, offset, 0)?;
            self.set_plain_code(selector, offset);
            return Ok(());
        }
        let d = self.descriptor_or(selector, vector::GP, 0)?;
        match d.system() {
            None => {
                let d = self.same_privilege_code(d, selector)?;
                self.check_code_limit(d.limit(), offset, 0)?;
                self.set_code(d, selector, self.state.cpl, offset);
                Ok(())
            }
            Some(system::CALL_GATE16 | system::CALL_GATE32) => self.jump_through_gate(d, selector),
            Some(_) => self.transfer_to_task(d, selector, SwitchKind::Jump),
        }
    }

    /// CALL ptr16:16, ptr16:32 or through memory. `size` is the operand size, 2 or 4; EIP is what gets pushed.
    pub fn far_call(&mut self, selector: u16, offset: u32, size: u8) -> Flow<()> {
        let offset = truncate(offset, size);
        let frame = [self.state.seg[seg::CS].selector as u32, self.state.eip];
        if self.state.real_or_v8086() {
            self.check_code_limit(self.state.seg[seg::CS].limit, offset, 0)?;
            let esp = self.push_frame(&self.current_stack(0), &frame, size)?;
            self.state.gpr[reg::ESP] = esp;
            self.set_plain_code(selector, offset);
            return Ok(());
        }
        let d = self.descriptor_or(selector, vector::GP, 0)?;
        match d.system() {
            None => {
                let d = self.same_privilege_code(d, selector)?;
                self.check_code_limit(d.limit(), offset, 0)?;
                self.call_same_privilege(d, selector, offset, size)
            }
            Some(system::CALL_GATE16 | system::CALL_GATE32) => self.call_through_gate(d, selector),
            Some(_) => self.transfer_to_task(d, selector, SwitchKind::Call),
        }
    }

    /// Pushes CS and EIP on the current stack and enters `d` at the current privilege.
    fn call_same_privilege(&mut self, d: Descriptor, selector: u16, offset: u32, size: u8) -> Flow<()> {
        let frame = [self.state.seg[seg::CS].selector as u32, self.state.eip];
        self.state.gpr[reg::ESP] = self.push_frame(&self.current_stack(0), &frame, size)?;
        self.set_code(d, selector, self.state.cpl, offset);
        Ok(())
    }

    /// A code segment that JMP or CALL may enter directly, its accessed bit set.
    fn same_privilege_code(&mut self, mut d: Descriptor, selector: u16) -> Flow<Descriptor> {
        let cpl = self.state.cpl;
        let allowed = match d.is_conforming() {
            true => d.dpl() <= cpl,
            false => d.is_code() && rpl(selector) <= cpl && d.dpl() == cpl,
        };
        if !allowed {
            return Err(selector_fault(vector::GP, selector, 0).into());
        }
        self.require_present(d, selector, 0)?;
        self.mark_accessed(&mut d)?;
        Ok(d)
    }

    /// Checks the call gate itself, then the code segment it names: selector, descriptor with accessed bit set, offset.
    fn gate_target(&mut self, gate: Descriptor, selector: u16) -> Flow<(u16, Descriptor, u32)> {
        self.check_gate(gate, selector)?;
        let target = gate.gate_selector();
        let mut d = self.descriptor_or(target, vector::GP, 0)?;
        if !d.is_code() || d.dpl() > self.state.cpl {
            return Err(selector_fault(vector::GP, target, 0).into());
        }
        self.require_present(d, target, 0)?;
        self.mark_accessed(&mut d)?;
        self.check_code_limit(d.limit(), gate.gate_offset(), 0)?;
        Ok((target, d, gate.gate_offset()))
    }

    /// A gate must be at least as weak as program and selector, and present.
    fn check_gate(&self, gate: Descriptor, selector: u16) -> Flow<()> {
        if gate.dpl() < self.state.cpl.max(rpl(selector)) {
            return Err(selector_fault(vector::GP, selector, 0).into());
        }
        self.require_present(gate, selector, 0)
    }

    fn jump_through_gate(&mut self, gate: Descriptor, selector: u16) -> Flow<()> {
        let (target, d, offset) = self.gate_target(gate, selector)?;
        if !d.is_conforming() && d.dpl() != self.state.cpl {
            return Err(selector_fault(vector::GP, target, 0).into());
        }
        self.set_code(d, target, self.state.cpl, offset);
        Ok(())
    }

    fn call_through_gate(&mut self, gate: Descriptor, selector: u16) -> Flow<()> {
        let (target, d, offset) = self.gate_target(gate, selector)?;
        let size = if gate.is_wide() { 4 } else { 2 };
        if d.is_conforming() || d.dpl() == self.state.cpl {
            return self.call_same_privilege(d, target, offset, size);
        }
        self.call_inner(d, target, offset, size, gate.gate_parameters())
    }

    /// CALL to inner privilege: a new stack from the TSS takes SS:ESP, the parameters and CS:EIP.
    fn call_inner(&mut self, d: Descriptor, target: u16, offset: u32, size: u8, parameters: u32) -> Flow<()> {
        let stack = self.inner_stack(d.dpl(), 0)?;
        let mut frame = Vec::with_capacity(36);
        frame.extend([self.state.seg[seg::SS].selector as u32, self.state.gpr[reg::ESP]]);
        for i in (0..parameters).rev() {
            frame.push(self.peek_sized(size, i * size as u32)?);
        }
        frame.extend([self.state.seg[seg::CS].selector as u32, self.state.eip]);
        let esp = self.push_frame(&stack, &frame, size)?;
        self.state.seg[seg::SS] = stack.ss;
        self.state.gpr[reg::ESP] = esp;
        self.set_code(d, target, d.dpl(), offset);
        Ok(())
    }

    /// JMP or CALL to a TSS or through a task gate.
    fn transfer_to_task(&mut self, d: Descriptor, selector: u16, kind: SwitchKind) -> Flow<()> {
        let (target, tss) = match d.system() {
            Some(system::TASK_GATE) => {
                self.check_gate(d, selector)?;
                let target = d.gate_selector();
                (target, self.global_descriptor(target, vector::GP, 0)?)
            }
            Some(system::TSS16 | system::TSS32) if d.dpl() >= self.state.cpl.max(rpl(selector)) => {
                (selector, self.global_descriptor(selector, vector::GP, 0)?)
            }
            _ => return Err(selector_fault(vector::GP, selector, 0).into()),
        };
        if !tss.is_available_tss() {
            return Err(selector_fault(vector::GP, target, 0).into());
        }
        self.require_present(tss, target, 0)?;
        let eflags = self.state.eflags;
        self.switch_task_now(Switch { selector: target, tss, kind, ext: 0, error: None, eflags })
    }

    /// #GP(ext) if `offset` lies beyond the limit of the code segment that is being entered.
    pub(super) fn check_code_limit(&self, limit: u32, offset: u32, ext: u16) -> Flow<()> {
        if offset <= limit { Ok(()) } else { Err(Stop::gp(ext)) }
    }

    /// Loads CS in real or virtual-8086 mode and jumps.
    pub(super) fn set_plain_code(&mut self, selector: u16, eip: u32) {
        self.state.seg[seg::CS] = self.plain_segment(seg::CS, selector);
        self.state.eip = eip;
    }

    /// Loads CS from a checked descriptor, with `cpl` as privilege and RPL, and jumps.
    pub(super) fn set_code(&mut self, d: Descriptor, selector: u16, cpl: u8, eip: u32) {
        self.state.seg[seg::CS] = d.segment(selector & !3 | cpl as u16);
        self.state.cpl = cpl;
        self.state.eip = eip;
    }

    /// The code segment that a far return names: #GP for what RET and IRET refuse. Its accessed bit is set.
    pub(super) fn return_code(&mut self, selector: u16) -> Flow<Descriptor> {
        let mut d = self.descriptor_or(selector, vector::GP, 0)?;
        let to = rpl(selector);
        let fits = if d.is_conforming() { d.dpl() <= to } else { d.dpl() == to };
        if is_null(selector) || !d.is_code() || to < self.state.cpl || !fits {
            return Err(selector_fault(vector::GP, selector, 0).into());
        }
        self.require_present(d, selector, 0)?;
        self.mark_accessed(&mut d)?;
        Ok(d)
    }

    /// Adds `bytes` to the current stack pointer, SP or ESP.
    pub(super) fn release_stack(&mut self, bytes: u32) {
        let esp = self.state.gpr[reg::ESP];
        self.state.gpr[reg::ESP] = merged_esp(esp, &self.state.seg[seg::SS], esp.wrapping_add(bytes));
    }
}

fn truncate(offset: u32, size: u8) -> u32 {
    if size == 2 { offset & 0xffff } else { offset }
}
