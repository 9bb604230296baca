//! Hardware task switches (SDM vol. 3, §7.3).
//!
//! Up to the commit point everything that can fault is probed, and a fault belongs to the old task. After it the new
//! task's registers are current, and a fault is one of its first instruction.

use super::descriptor::{Descriptor, is_null, rpl, selector_fault, system};
use super::segment_load::v8086_segment;
use super::tss::{Layout, TaskImage};
use super::{Exception, Flow, Segment, Stop, Vcpu, cr0, cr4, eflags, reg, seg, vector};
use crate::mmu::{Flush, Privilege};

/// DR7's local enable bits L0 to L3 and LE, which every switch clears.
const DR7_LOCAL: u32 = 0x155;
/// Bit 15 of DR6: a task with the T flag set was entered.
const DR6_BT: u32 = 1 << 15;

/// How the new task relates to the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SwitchKind {
    /// JMP: the old task ends being busy.
    Jump,
    /// CALL, interrupt or exception: the new task is nested in the old one.
    Call,
    /// IRET with NT set.
    Return,
}

/// A task switch whose target's kind, privilege and presence have been checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Switch {
    pub selector: u16,
    pub tss: Descriptor,
    pub kind: SwitchKind,
    /// Bit 0 of error codes.
    pub ext: u16,
    /// Error code to push on the new task's stack.
    pub error: Option<u16>,
    /// EFLAGS to save in the old task.
    pub eflags: u32,
}

impl Vcpu {
    /// Switches tasks on behalf of an instruction; an exception in the new task is delivered there.
    pub(super) fn switch_task_now(&mut self, switch: Switch) -> Flow<()> {
        match self.switch_task(switch)? {
            None => Ok(()),
            Some(e) => self.raise(e),
        }
    }

    /// Switches tasks. An error means that the old task still runs, unchanged; `Some` is an exception in the new one.
    pub(super) fn switch_task(&mut self, switch: Switch) -> Flow<Option<Exception>> {
        let layout = Layout::of(switch.tss.attr());
        let old = self.state.tr;
        self.probe_switch(&switch, layout, &old)?;
        let image = self.load_task(layout, switch.tss.base())?;
        let pdpte = self.pdpte_of_task(&image)?;
        self.leave_task(&switch, &old)?;
        self.enter_task(&switch, &image, pdpte);
        let finish = self.finish_task(&switch, layout, &image);
        match finish {
            Err(Stop::Exception(e)) => Ok(Some(e)),
            Err(stop) => Err(stop),
            Ok(()) if image.trap => Ok(Some(Exception::debug(DR6_BT))),
            Ok(()) => Ok(None),
        }
    }

    /// Raises what writing the old TSS, the new TSS's back link and the busy bits would raise.
    fn probe_switch(&mut self, switch: &Switch, layout: Layout, old: &Segment) -> Flow<()> {
        if switch.tss.limit() < layout.least_limit() {
            return Err(selector_fault(vector::TS, switch.selector, switch.ext).into());
        }
        let old_layout = Layout::of(old.attr);
        if !old.usable() || old.limit < old_layout.least_limit() {
            return Err(selector_fault(vector::TS, old.selector, switch.ext).into());
        }
        let (offset, len) = old_layout.saved_part();
        self.probe_write(old.base.wrapping_add(offset), len, Privilege::Supervisor)?;
        self.probe_write(switch.tss.linear.wrapping_add(5), 1, Privilege::Supervisor)?;
        match switch.kind {
            SwitchKind::Call => self.probe_write(switch.tss.base(), 2, Privilege::Supervisor),
            _ => self.probe_write(self.own_descriptor(old).wrapping_add(5), 1, Privilege::Supervisor),
        }
    }

    /// Where the descriptor of the running task lies.
    fn own_descriptor(&self, tr: &Segment) -> u32 {
        self.state.gdtr.base.wrapping_add((tr.selector & 0xfff8) as u32)
    }

    /// The PDPTE registers that the task's CR3 leads to, if it brings one and paging needs them. #GP(0) for reserved
    /// bits.
    fn pdpte_of_task(&mut self, image: &TaskImage) -> Flow<Option<[u64; 4]>> {
        match image.cr3 {
            Some(cr3) if self.state.paging() && self.state.cr4 & cr4::PAE != 0 => Ok(Some(self.read_pdpte(cr3)?)),
            _ => Ok(None),
        }
    }

    /// Saves the old task and moves the busy bits. Nothing here faults: all was probed.
    fn leave_task(&mut self, switch: &Switch, old: &Segment) -> Flow<()> {
        self.save_task(old, switch.eflags)?;
        if switch.kind == SwitchKind::Call {
            self.store(switch.tss.base(), old.selector, Privilege::Supervisor)?;
        } else {
            self.mark_busy(self.own_descriptor(old), false)?;
        }
        if switch.kind != SwitchKind::Return {
            self.mark_busy(switch.tss.linear, true)?;
        }
        Ok(())
    }

    /// The commit point: the new task's registers become current, its segments not yet valid.
    fn enter_task(&mut self, switch: &Switch, image: &TaskImage, pdpte: Option<[u64; 4]>) {
        let s = &mut self.state;
        s.tr = switch.tss.segment(switch.selector);
        s.tr.attr |= system::BUSY;
        s.cr0 |= cr0::TS;
        s.eip = image.eip;
        s.gpr = image.gpr;
        s.eflags = image.eflags & eflags::ALL | eflags::FIXED;
        if switch.kind == SwitchKind::Call {
            s.eflags |= eflags::NT;
        }
        s.ldtr = Segment::null(image.ldt);
        s.seg = image.selectors.map(Segment::null);
        s.cpl = if s.v8086() { 3 } else { rpl(image.selectors[seg::CS]) };
        if let (Some(cr3), true) = (image.cr3, s.paging()) {
            s.cr3 = cr3;
            s.pdpte = pdpte.unwrap_or(s.pdpte);
            self.mmu.flush(Flush::NonGlobal);
        }
        self.state.dr7 &= !DR7_LOCAL;
        self.watch_breakpoints();
    }

    /// Loads LDTR and segment registers, pushes the error code, checks EIP: all in the new task.
    fn finish_task(&mut self, switch: &Switch, layout: Layout, image: &TaskImage) -> Flow<()> {
        self.state.ldtr = self.local_table(image.ldt, vector::TS, vector::TS, switch.ext)?;
        if self.state.v8086() {
            self.state.seg = std::array::from_fn(|which| v8086_segment(which, image.selectors[which]));
        } else {
            self.load_task_segments(image, switch.ext)?;
        }
        if let Some(code) = switch.error {
            let stack = self.current_stack(switch.ext);
            self.state.gpr[reg::ESP] = self.push_frame(&stack, &[code as u32], layout.size())?;
        }
        self.check_code_limit(self.state.seg[seg::CS].limit, image.eip, switch.ext)
    }

    fn load_task_segments(&mut self, image: &TaskImage, ext: u16) -> Flow<()> {
        let cs = image.selectors[seg::CS];
        let mut d = self.descriptor_or(cs, vector::TS, ext)?;
        let fits = if d.is_conforming() { d.dpl() <= rpl(cs) } else { d.dpl() == rpl(cs) };
        if is_null(cs) || !d.is_code() || !fits {
            return Err(selector_fault(vector::TS, cs, ext).into());
        }
        self.require_present(d, cs, ext)?;
        self.mark_accessed(&mut d)?;
        self.state.seg[seg::CS] = d.segment(cs);
        self.state.seg[seg::SS] = self.stack_segment(image.selectors[seg::SS], rpl(cs), vector::TS, ext)?;
        for which in [seg::DS, seg::ES, seg::FS, seg::GS] {
            self.state.seg[which] = self.data_segment(image.selectors[which], vector::TS, ext)?;
        }
        Ok(())
    }
}
