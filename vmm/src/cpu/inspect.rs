//! Instructions that look at descriptors without loading them: LAR, LSL, VERR, VERW (SDM vol. 3, §5.10).

use super::descriptor::{Descriptor, rpl, system};
use super::{Flow, Stop, Vcpu};

impl Vcpu {
    /// LAR: the access rights that `selector` names, masked as the instruction stores them; None clears ZF. #UD in real
    /// and virtual-8086 mode.
    pub fn lar(&mut self, selector: u16) -> Flow<Option<u32>> {
        let d = self.visible(selector)?;
        let known = |d: &Descriptor| match d.system() {
            None => true,
            Some(t) => matches!(
                t,
                system::TSS16
                    | system::LDT
                    | system::TSS16_BUSY
                    | system::CALL_GATE16
                    | system::TASK_GATE
                    | system::TSS32
                    | system::TSS32_BUSY
                    | system::CALL_GATE32
            ),
        };
        Ok(d.filter(known).map(|d| d.high() & 0x00ff_ff00))
    }

    /// LSL: the limit in bytes of the segment that `selector` names; None clears ZF. #UD in real and virtual-8086 mode.
    pub fn lsl(&mut self, selector: u16) -> Flow<Option<u32>> {
        let d = self.visible(selector)?;
        let known = |d: &Descriptor| match d.system() {
            None => true,
            Some(t) => {
                matches!(t, system::TSS16 | system::LDT | system::TSS16_BUSY | system::TSS32 | system::TSS32_BUSY)
            }
        };
        Ok(d.filter(known).map(Descriptor::limit))
    }

    /// VERR: whether the segment could be read at the current privilege. #UD in real and virtual-8086 mode.
    pub fn verr(&mut self, selector: u16) -> Flow<bool> {
        Ok(self.visible(selector)?.is_some_and(Descriptor::is_readable))
    }

    /// VERW: whether the segment could be written at the current privilege. #UD in real and virtual-8086 mode.
    pub fn verw(&mut self, selector: u16) -> Flow<bool> {
        Ok(self.visible(selector)?.is_some_and(Descriptor::is_writable_data))
    }

    /// The descriptor, if the program may know about it: conforming code always, all else by DPL.
    fn visible(&mut self, selector: u16) -> Flow<Option<Descriptor>> {
        if self.state.real_or_v8086() {
            return Err(Stop::ud());
        }
        let weakest = self.state.cpl.max(rpl(selector));
        Ok(self.descriptor(selector)?.filter(|d| d.is_conforming() || d.dpl() >= weakest))
    }
}
