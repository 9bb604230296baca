//! SYSENTER and SYSEXIT (SDM vol. 3, §5.8.7): fixed flat segments, no memory access.

use super::{Flow, Segment, Stop, Vcpu, attr, eflags, reg, seg};

impl Vcpu {
    /// SYSENTER. #GP(0) in real mode or if IA32_SYSENTER_CS names nothing.
    pub fn sysenter(&mut self) -> Flow<()> {
        let base = self.sysenter_selector()?;
        self.state.eflags &= !(eflags::VM | eflags::IF | eflags::RF);
        self.enter_flat(base, 0);
        self.state.gpr[reg::ESP] = self.state.msr.sysenter_esp;
        self.state.eip = self.state.msr.sysenter_eip;
        Ok(())
    }

    /// SYSEXIT: to CPL 3 at EDX with the stack in ECX. #GP(0) unless CPL is 0.
    pub fn sysexit(&mut self) -> Flow<()> {
        let base = self.sysenter_selector()?;
        self.require_cpl0()?;
        self.enter_flat(base.wrapping_add(16), 3);
        self.state.gpr[reg::ESP] = self.state.gpr[reg::ECX];
        self.state.eip = self.state.gpr[reg::EDX];
        Ok(())
    }

    fn sysenter_selector(&self) -> Flow<u16> {
        let selector = self.state.msr.sysenter_cs as u16 & 0xfffc;
        if !self.state.protected() || selector == 0 { Err(Stop::gp(0)) } else { Ok(selector) }
    }

    /// CS from `selector`, SS from the next descriptor's place, both flat.
    fn enter_flat(&mut self, selector: u16, cpl: u8) {
        let rights = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::DB | attr::G;
        let flat = |selector: u16, kind: u32| Segment {
            base: 0,
            limit: u32::MAX,
            attr: rights | kind | (cpl as u32) << attr::DPL_SHIFT,
            selector: selector | cpl as u16,
            pad: 0,
        };
        self.state.seg[seg::CS] = flat(selector, attr::CODE);
        self.state.seg[seg::SS] = flat(selector.wrapping_add(8), 0);
        self.state.cpl = cpl;
    }
}
