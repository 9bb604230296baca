//! Loading segment registers, LDTR and TR (SDM vol. 2, MOV, LLDT, LTR; vol. 3, §5.6).

use super::descriptor::{Descriptor, is_local, is_null, rpl, selector_fault, system};
use super::{Flow, Segment, Stop, Vcpu, attr, seg, vector};

/// Access rights of every segment in virtual-8086 mode: present, DPL 3, read/write data, accessed.
const V8086_ATTR: u32 = attr::P | attr::DPL | attr::S | attr::RW | attr::ACCESSED;

impl Vcpu {
    /// MOV, POP, LDS…: loads segment register `which` (not CS) in the current mode.
    ///
    /// #GP, #NP or #SS with the selector; #PF from the table; #UD for CS. Sets the descriptor's accessed bit.
    pub fn load_segment(&mut self, which: usize, selector: u16) -> Flow<()> {
        if which == seg::CS {
            return Err(Stop::ud());
        }
        let segment = if self.state.real_or_v8086() {
            self.plain_segment(which, selector)
        } else if which == seg::SS {
            self.stack_segment(selector, self.state.cpl, vector::GP, 0)?
        } else {
            self.data_segment(selector, vector::GP, 0)?
        };
        self.state.seg[which] = segment;
        Ok(())
    }

    /// What a segment register holds after a load in real or virtual-8086 mode. In real mode limit and size stay as they
    /// were, so that "unreal" programs keep their 4 GiB segments.
    pub(super) fn plain_segment(&self, which: usize, selector: u16) -> Segment {
        if self.state.v8086() {
            return v8086_segment(which, selector);
        }
        let old = self.state.seg[which];
        let size = old.attr & (attr::DB | attr::G);
        let real = Segment::real(selector);
        let code = if which == seg::CS { attr::CODE } else { 0 };
        match old.usable() {
            true => Segment { limit: old.limit, attr: real.attr | code | size, ..real },
            false => Segment { attr: real.attr | code, ..real },
        }
    }

    /// Checks a stack segment for privilege `cpl`. `vector` is #GP for loads by the program and #TS where the selector
    /// comes from a TSS.
    pub(super) fn stack_segment(&mut self, selector: u16, cpl: u8, vector: u8, ext: u16) -> Flow<Segment> {
        let mut d = self.descriptor_or(selector, vector, ext)?;
        if rpl(selector) != cpl || d.dpl() != cpl || !d.is_writable_data() {
            return Err(selector_fault(vector, selector, ext).into());
        }
        if !d.present() {
            return Err(selector_fault(vector::SS, selector, ext).into());
        }
        self.mark_accessed(&mut d)?;
        Ok(d.segment(selector))
    }

    /// Checks a selector for DS, ES, FS or GS at the current privilege.
    pub(super) fn data_segment(&mut self, selector: u16, vector: u8, ext: u16) -> Flow<Segment> {
        if is_null(selector) {
            return Ok(Segment::null(selector));
        }
        let mut d = self.descriptor_or(selector, vector, ext)?;
        let weakest = self.state.cpl.max(rpl(selector));
        if !d.is_readable() || !(d.is_conforming() || d.dpl() >= weakest) {
            return Err(selector_fault(vector, selector, ext).into());
        }
        self.require_present(d, selector, ext)?;
        self.mark_accessed(&mut d)?;
        Ok(d.segment(selector))
    }

    /// LLDT. #UD outside protected mode, #GP(0) unless CPL is 0.
    pub fn load_ldtr(&mut self, selector: u16) -> Flow<()> {
        self.require_system_privilege()?;
        self.state.ldtr = self.local_table(selector, vector::GP, vector::NP, 0)?;
        Ok(())
    }

    /// Checks an LDT selector: `bad` is raised for a selector that names no LDT, `absent` for one not present.
    pub(super) fn local_table(&mut self, selector: u16, bad: u8, absent: u8, ext: u16) -> Flow<Segment> {
        if is_null(selector) {
            return Ok(Segment::null(selector));
        }
        let d = self.global_descriptor(selector, bad, ext)?;
        if d.system() != Some(system::LDT) {
            return Err(selector_fault(bad, selector, ext).into());
        }
        if !d.present() {
            return Err(selector_fault(absent, selector, ext).into());
        }
        Ok(d.segment(selector))
    }

    /// LTR. #UD outside protected mode, #GP(0) unless CPL is 0.
    pub fn load_tr(&mut self, selector: u16) -> Flow<()> {
        self.require_system_privilege()?;
        let d = self.global_descriptor(selector, vector::GP, 0)?;
        if !d.is_available_tss() {
            return Err(selector_fault(vector::GP, selector, 0).into());
        }
        self.require_present(d, selector, 0)?;
        self.mark_busy(d.linear, true)?;
        let mut tr = d.segment(selector);
        tr.attr |= system::BUSY;
        self.state.tr = tr;
        Ok(())
    }

    /// The descriptor in the GDT; `vector` where the selector is null, local or outside it.
    pub(super) fn global_descriptor(&mut self, selector: u16, vector: u8, ext: u16) -> Flow<Descriptor> {
        if is_local(selector) {
            return Err(selector_fault(vector, selector, ext).into());
        }
        self.descriptor_or(selector, vector, ext)
    }

    fn require_system_privilege(&self) -> Flow<()> {
        if self.state.real_or_v8086() {
            return Err(Stop::ud());
        }
        self.require_cpl0()
    }

    /// #GP(0) unless CPL is 0 (real mode included).
    #[inline]
    pub(super) fn require_cpl0(&self) -> Flow<()> {
        if self.state.cpl == 0 { Ok(()) } else { Err(Stop::gp(0)) }
    }
}

/// A segment of virtual-8086 mode (SDM vol. 3, §21.2.1).
pub(super) fn v8086_segment(which: usize, selector: u16) -> Segment {
    let code = if which == seg::CS { attr::CODE } else { 0 };
    Segment { attr: V8086_ATTR | code, ..Segment::real(selector) }
}
