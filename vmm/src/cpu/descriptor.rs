//! Segment and gate descriptors (SDM vol. 3, §3.4.5 and §5.8), and the tables that hold them.

use super::{Exception, Flow, Segment, Vcpu, attr, vector};
use crate::mmu::Privilege;

/// System descriptor types (SDM vol. 3, table 3-2).
pub(super) mod system {
    pub const TSS16: u32 = 1;
    pub const LDT: u32 = 2;
    pub const TSS16_BUSY: u32 = 3;
    pub const CALL_GATE16: u32 = 4;
    pub const TASK_GATE: u32 = 5;
    pub const INTERRUPT_GATE16: u32 = 6;
    pub const TRAP_GATE16: u32 = 7;
    pub const TSS32: u32 = 9;
    pub const TSS32_BUSY: u32 = 11;
    pub const CALL_GATE32: u32 = 12;
    pub const INTERRUPT_GATE32: u32 = 14;
    pub const TRAP_GATE32: u32 = 15;
    /// Set in the type of a busy TSS.
    pub const BUSY: u32 = 2;
    /// Set in the type of 32-bit TSSs and gates.
    pub const WIDE: u32 = 8;
}

/// True for the four null selectors (SDM vol. 3, §3.4.2).
pub(super) const fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// Requested privilege level.
pub(super) const fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// True if the selector is one of the LDT.
pub(super) const fn is_local(selector: u16) -> bool {
    selector & 4 != 0
}

/// Exception `vector` whose error code names `selector`; `ext` is 1 while an event from outside the program is being
/// delivered (SDM vol. 3, §6.13).
pub(super) const fn selector_fault(vector: u8, selector: u16, ext: u16) -> Exception {
    Exception::with_error(vector, selector & 0xfffc | ext)
}

/// A descriptor as read from its table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    low: u32,
    high: u32,
    /// Linear address that it was read from.
    pub linear: u32,
}

impl Descriptor {
    pub fn new(raw: u64, linear: u32) -> Self {
        Self { low: raw as u32, high: (raw >> 32) as u32, linear }
    }
    /// Access rights in the format of [`Segment::attr`].
    pub fn attr(self) -> u32 {
        self.high >> 8 & 0xf0ff
    }
    /// Linear base address.
    pub fn base(self) -> u32 {
        self.low >> 16 | (self.high & 0xff) << 16 | self.high & 0xff00_0000
    }
    /// Limit in bytes, granularity applied.
    pub fn limit(self) -> u32 {
        let limit = self.low & 0xffff | self.high & 0xf_0000;
        if self.attr() & attr::G != 0 { limit << 12 | 0xfff } else { limit }
    }
    pub fn dpl(self) -> u8 {
        ((self.attr() & attr::DPL) >> attr::DPL_SHIFT) as u8
    }
    pub fn present(self) -> bool {
        self.attr() & attr::P != 0
    }
    /// The system type (see [`system`]); None for code and data.
    pub fn system(self) -> Option<u32> {
        (self.attr() & attr::S == 0).then_some(self.attr() & attr::TYPE)
    }
    pub fn is_code(self) -> bool {
        self.attr() & (attr::S | attr::CODE) == attr::S | attr::CODE
    }
    pub fn is_conforming(self) -> bool {
        self.is_code() && self.attr() & attr::EC != 0
    }
    pub fn is_writable_data(self) -> bool {
        self.attr() & (attr::S | attr::CODE | attr::RW) == attr::S | attr::RW
    }
    /// Data, or code that may be read.
    pub fn is_readable(self) -> bool {
        self.attr() & attr::S != 0 && self.attr() & (attr::CODE | attr::RW) != attr::CODE
    }
    /// An available TSS of either size.
    pub fn is_available_tss(self) -> bool {
        matches!(self.system(), Some(system::TSS16 | system::TSS32))
    }
    /// The register that this descriptor fills when loaded through `selector`.
    pub fn segment(self, selector: u16) -> Segment {
        Segment { base: self.base(), limit: self.limit(), attr: self.attr(), selector, pad: 0 }
    }
    /// Raw upper word, which LAR shows.
    pub fn high(self) -> u32 {
        self.high
    }
    /// Selector that a gate leads to.
    pub fn gate_selector(self) -> u16 {
        (self.low >> 16) as u16
    }
    /// True if a gate (or TSS) is of the 32-bit kind.
    pub fn is_wide(self) -> bool {
        self.attr() & system::WIDE != 0
    }
    /// Offset that a gate leads to.
    pub fn gate_offset(self) -> u32 {
        let low = self.low & 0xffff;
        if self.is_wide() { low | self.high & 0xffff_0000 } else { low }
    }
    /// Parameters that a call gate copies, in units of the gate's size.
    pub fn gate_parameters(self) -> u32 {
        self.high & 0x1f
    }
}

impl Segment {
    /// The register that descriptor `raw` fills when loaded through `selector`.
    pub fn described(raw: u64, selector: u16) -> Self {
        Descriptor::new(raw, 0).segment(selector)
    }
}

impl Vcpu {
    /// The descriptor that `selector` names. None if it is null, lies outside its table, or names a null LDT.
    pub(super) fn descriptor(&mut self, selector: u16) -> Flow<Option<Descriptor>> {
        let (base, limit) = match is_local(selector) {
            true if self.state.ldtr.usable() => (self.state.ldtr.base, self.state.ldtr.limit),
            true => return Ok(None),
            false => (self.state.gdtr.base, self.state.gdtr.limit),
        };
        let offset = (selector & 0xfff8) as u32;
        if is_null(selector) || offset + 7 > limit {
            return Ok(None);
        }
        let linear = base.wrapping_add(offset);
        Ok(Some(Descriptor::new(self.load_system(linear)?, linear)))
    }

    /// As [`Self::descriptor`], with `vector` naming the selector raised where there is none.
    pub(super) fn descriptor_or(&mut self, selector: u16, vector: u8, ext: u16) -> Flow<Descriptor> {
        self.descriptor(selector)?.ok_or_else(|| selector_fault(vector, selector, ext).into())
    }

    /// Sets the accessed bit of a code or data descriptor, in memory and in the copy.
    pub(super) fn mark_accessed(&mut self, d: &mut Descriptor) -> Flow<()> {
        if d.attr() & attr::ACCESSED == 0 {
            d.high |= attr::ACCESSED << 8;
            self.store(d.linear.wrapping_add(5), (d.high >> 8) as u8, Privilege::Supervisor)?;
        }
        Ok(())
    }

    /// Sets or clears the busy bit of the TSS descriptor at `linear`.
    pub(super) fn mark_busy(&mut self, linear: u32, busy: bool) -> Flow<()> {
        let at = linear.wrapping_add(5);
        let byte: u8 = self.load_system(at)?;
        let bit = system::BUSY as u8;
        self.store(at, if busy { byte | bit } else { byte & !bit }, Privilege::Supervisor)
    }

    /// Raises #NP(selector) if the descriptor is not present.
    pub(super) fn require_present(&self, d: Descriptor, selector: u16, ext: u16) -> Flow<()> {
        match d.present() {
            true => Ok(()),
            false => Err(selector_fault(vector::NP, selector, ext).into()),
        }
    }
}
