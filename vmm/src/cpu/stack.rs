//! Frames pushed on a stack that is not yet, or need not become, the current one.
//!
//! A far call or an interrupt pushes several values, often on another stack. The processor changes nothing unless all
//! of them fit, so a frame is checked whole, then written whole.

use super::descriptor::{selector_fault, system};
use super::{Exception, Flow, Segment, Vcpu, attr, reg, seg, vector};
use crate::mmu::Privilege;

/// Where a frame goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct TargetStack {
    /// Stack segment.
    pub ss: Segment,
    /// Stack pointer before the first push; only the low half counts if the segment is small.
    pub esp: u32,
    /// On whose behalf the values are stored.
    pub who: Privilege,
    /// Error code of the #SS raised where the frame does not fit.
    pub error: u16,
}

impl TargetStack {
    fn mask(&self) -> u32 {
        if self.ss.big() { u32::MAX } else { 0xffff }
    }

    /// Linear address of `size` bytes at `offset`, or #SS.
    fn linear(&self, offset: u32, size: u32) -> Flow<u32> {
        let s = &self.ss;
        let last = offset.wrapping_add(size - 1);
        let top = if s.big() { u32::MAX } else { 0xffff };
        let inside = match s.attr & attr::EC != 0 {
            true => offset > s.limit && last <= top && last >= offset,
            false => last <= s.limit && (last >= offset || s.limit == u32::MAX),
        };
        if s.usable() && inside {
            return Ok(s.base.wrapping_add(offset));
        }
        Err(Exception::with_error(vector::SS, self.error).into())
    }
}

/// Merges a new stack pointer into the old register: only SP moves on a small stack.
pub(super) fn merged_esp(old: u32, ss: &Segment, value: u32) -> u32 {
    if ss.big() { value } else { old & 0xffff_0000 | value & 0xffff }
}

impl Vcpu {
    /// The current stack, for a frame that stays on it; `ext` is the error code of its #SS.
    pub(super) fn current_stack(&self, ext: u16) -> TargetStack {
        TargetStack { ss: self.state.seg[seg::SS], esp: self.state.gpr[reg::ESP], who: self.privilege(), error: ext }
    }

    /// Pushes `values` in order, `size` bytes each (2 or 4), and returns the stack pointer after them. Either all are
    /// stored or none; registers do not change.
    pub(super) fn push_frame(&mut self, stack: &TargetStack, values: &[u32], size: u8) -> Flow<u32> {
        let step = size as u32;
        let mask = stack.mask();
        let slot = |i: usize| stack.esp.wrapping_sub(step.wrapping_mul(i as u32 + 1)) & mask;
        let mut low = u32::MAX;
        let mut high = 0;
        for i in 0..values.len() {
            let linear = stack.linear(slot(i), step)?;
            low = low.min(linear);
            high = high.max(linear.wrapping_add(step - 1));
        }
        // Within one page the first store faults or none does.
        if (low ^ high) & !0xfff != 0 {
            for i in 0..values.len() {
                self.probe_write(stack.linear(slot(i), step)?, step, stack.who)?;
            }
        }
        for (i, v) in values.iter().enumerate() {
            let linear = stack.linear(slot(i), step)?;
            match size {
                2 => self.store(linear, *v as u16, stack.who)?,
                _ => self.store(linear, *v, stack.who)?,
            }
        }
        Ok(merged_esp(stack.esp, &stack.ss, stack.esp.wrapping_sub(step.wrapping_mul(values.len() as u32))))
    }

    /// The `size`-byte value `skip` bytes above the top of the current stack, zero-extended.
    pub(super) fn peek_sized(&mut self, size: u8, skip: u32) -> Flow<u32> {
        match size {
            2 => self.peek::<u16>(skip).map(u32::from),
            _ => self.peek::<u32>(skip),
        }
    }

    /// The stack for inner privilege `cpl`, from the current TSS (SDM vol. 3, §7.2.1 and the pseudo code of INT).
    /// #TS where TSS or selector is bad, #SS where the segment is not present.
    pub(super) fn inner_stack(&mut self, cpl: u8, ext: u16) -> Flow<TargetStack> {
        let tr = self.state.tr;
        let wide = tr.attr & system::WIDE != 0;
        let offset = if wide { 4 + 8 * cpl as u32 } else { 2 + 4 * cpl as u32 };
        let last = offset + if wide { 5 } else { 3 };
        if !tr.usable() || last > tr.limit {
            return Err(selector_fault(vector::TS, tr.selector, ext).into());
        }
        let at = tr.base.wrapping_add(offset);
        let (esp, selector): (u32, u16) = match wide {
            true => (self.load_system(at)?, self.load_system(at.wrapping_add(4))?),
            false => (self.load_system::<u16>(at)?.into(), self.load_system(at.wrapping_add(2))?),
        };
        let ss = self.stack_segment(selector, cpl, vector::TS, ext)?;
        Ok(TargetStack { ss, esp, who: Privilege::Supervisor, error: selector & 0xfffc | ext })
    }
}
