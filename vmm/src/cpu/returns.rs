//! Far RET and IRET (SDM vol. 2, RET and IRET).

use super::descriptor::{is_local, rpl, selector_fault, system};
use super::segment_load::v8086_segment;
use super::stack::merged_esp;
use super::task::{Switch, SwitchKind};
use super::{CpuState, Flow, Segment, Stop, Vcpu, attr, eflags, reg, seg, vector};

/// EFLAGS bits that IRET loads at any privilege.
const COMMON: u32 = eflags::ARITH | eflags::TF | eflags::DF | eflags::NT;
/// And those that only its 32-bit form holds.
const WIDE: u32 = eflags::RF | eflags::AC | eflags::ID;

impl Vcpu {
    /// Far RET. `size` is the operand size, 2 or 4; `pop` the bytes of parameters to release.
    pub fn far_return(&mut self, size: u8, pop: u16) -> Flow<()> {
        let step = size as u32;
        let eip = self.peek_sized(size, 0)?;
        let selector = self.peek_sized(size, step)? as u16;
        let pop = pop as u32;
        if self.state.real_or_v8086() {
            self.check_code_limit(self.state.seg[seg::CS].limit, eip, 0)?;
            self.release_stack(2 * step + pop);
            self.set_plain_code(selector, eip);
            return Ok(());
        }
        let d = self.return_code(selector)?;
        if rpl(selector) == self.state.cpl {
            self.check_code_limit(d.limit(), eip, 0)?;
            self.release_stack(2 * step + pop);
        } else {
            let (esp, ss) = self.outer_stack(size, 2 * step + pop, rpl(selector))?;
            self.check_code_limit(d.limit(), eip, 0)?;
            self.enter_outer_stack(ss, esp.wrapping_add(pop), rpl(selector));
        }
        self.set_code(d, selector, rpl(selector), eip);
        Ok(())
    }

    /// IRET and IRETD: `size` is the operand size, 2 or 4.
    ///
    /// Ends the blocking of NMIs, even where it faults (SDM vol. 3, §6.7.1).
    pub fn iret(&mut self, size: u8) -> Flow<()> {
        self.state.nmi_blocked = false;
        if !self.state.protected() {
            return self.iret_plain(size, COMMON | eflags::IF | eflags::IOPL | eflags::RF | eflags::AC | eflags::ID);
        }
        if self.state.v8086() {
            if self.state.iopl() < 3 {
                return Err(Stop::gp(0));
            }
            return self.iret_plain(size, COMMON | eflags::IF | WIDE);
        }
        if self.state.eflags & eflags::NT != 0 {
            return self.return_from_task();
        }
        let flags = self.peek_sized(size, 2 * size as u32)?;
        if size == 4 && flags & eflags::VM != 0 && self.state.cpl == 0 {
            return self.return_to_v8086(flags);
        }
        self.iret_protected(size, flags)
    }

    /// IRET in real or virtual-8086 mode, loading the flags in `loads` as far as the operand holds them.
    fn iret_plain(&mut self, size: u8, loads: u32) -> Flow<()> {
        let step = size as u32;
        let eip = self.peek_sized(size, 0)?;
        let selector = self.peek_sized(size, step)? as u16;
        let flags = self.peek_sized(size, 2 * step)?;
        self.check_code_limit(self.state.seg[seg::CS].limit, eip, 0)?;
        self.release_stack(3 * step);
        self.set_plain_code(selector, eip);
        self.load_flags(flags, if size == 2 { loads & 0xffff } else { loads });
        Ok(())
    }

    fn iret_protected(&mut self, size: u8, flags: u32) -> Flow<()> {
        let step = size as u32;
        let eip = self.peek_sized(size, 0)?;
        let selector = self.peek_sized(size, step)? as u16;
        let loads = loadable_flags(&self.state, size);
        let d = self.return_code(selector)?;
        if rpl(selector) == self.state.cpl {
            self.check_code_limit(d.limit(), eip, 0)?;
            self.release_stack(3 * step);
        } else {
            let (esp, ss) = self.outer_stack(size, 3 * step, rpl(selector))?;
            self.check_code_limit(d.limit(), eip, 0)?;
            self.enter_outer_stack(ss, esp, rpl(selector));
        }
        self.set_code(d, selector, rpl(selector), eip);
        self.load_flags(flags, loads);
        Ok(())
    }

    /// IRETD from CPL 0 with VM in the stack's EFLAGS: EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS.
    fn return_to_v8086(&mut self, flags: u32) -> Flow<()> {
        let eip = self.peek::<u32>(0)?;
        let esp = self.peek::<u32>(12)?;
        let mut selectors = [0u16; 6];
        for (skip, which) in [(4, seg::CS), (16, seg::SS), (20, seg::ES), (24, seg::DS), (28, seg::FS), (32, seg::GS)] {
            selectors[which] = self.peek::<u32>(skip)? as u16;
        }
        self.check_code_limit(0xffff, eip, 0)?;
        self.load_flags(flags, eflags::ALL);
        self.state.seg = std::array::from_fn(|which| v8086_segment(which, selectors[which]));
        self.state.gpr[reg::ESP] = esp;
        self.state.eip = eip;
        self.state.cpl = 3;
        Ok(())
    }

    /// IRET with NT set: back to the task that the current TSS names. #TS if that is not a busy TSS of the GDT.
    fn return_from_task(&mut self) -> Flow<()> {
        let tr = self.state.tr;
        let selector: u16 = self.load_system(tr.base)?;
        if is_local(selector) {
            return Err(selector_fault(vector::TS, selector, 0).into());
        }
        let tss = self.descriptor_or(selector, vector::TS, 0)?;
        if !matches!(tss.system(), Some(system::TSS16_BUSY | system::TSS32_BUSY)) {
            return Err(selector_fault(vector::TS, selector, 0).into());
        }
        self.require_present(tss, selector, 0)?;
        let eflags = self.state.eflags & !eflags::NT;
        self.switch_task_now(Switch { selector, tss, kind: SwitchKind::Return, ext: 0, error: None, eflags })
    }

    /// The stack of the outer caller, `skip` bytes up the current one: pointer, and segment checked for `cpl`.
    fn outer_stack(&mut self, size: u8, skip: u32, cpl: u8) -> Flow<(u32, Segment)> {
        let esp = self.peek_sized(size, skip)?;
        let selector = self.peek_sized(size, skip.wrapping_add(size as u32))? as u16;
        Ok((esp, self.stack_segment(selector, cpl, vector::GP, 0)?))
    }

    /// Switches to the outer stack, and empties data segments that the outer privilege may not hold.
    fn enter_outer_stack(&mut self, ss: Segment, esp: u32, cpl: u8) {
        self.state.gpr[reg::ESP] = merged_esp(self.state.gpr[reg::ESP], &ss, esp);
        self.state.seg[seg::SS] = ss;
        for which in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let s = &mut self.state.seg[which];
            let conforming = s.attr & (attr::CODE | attr::EC) == attr::CODE | attr::EC;
            if s.usable() && !conforming && s.dpl() < cpl {
                *s = Segment::null(0);
            }
        }
    }

    /// Loads the flags in `mask`; the others stay.
    fn load_flags(&mut self, value: u32, mask: u32) {
        self.state.eflags = self.state.eflags & !mask | value & mask | eflags::FIXED;
    }
}

/// Flags that IRET in protected mode may change, by CPL and IOPL before it.
fn loadable_flags(state: &CpuState, size: u8) -> u32 {
    let mut mask = COMMON | WIDE;
    if state.cpl <= state.iopl() {
        mask |= eflags::IF;
    }
    if state.cpl == 0 {
        mask |= eflags::IOPL | eflags::VIF | eflags::VIP;
    }
    if size == 2 { mask & 0xffff } else { mask }
}
