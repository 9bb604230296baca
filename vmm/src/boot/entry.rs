//! The processor at the kernel's first instruction: flat 32-bit protected mode, paging off, interrupts off.

use super::{BootError, layout};
use crate::cpu::{CpuState, Segment, TableRegister, attr, cr0, eflags, reg, seg};
use crate::mmu::GuestRam;

/// Selector of the flat code segment; Linux's __BOOT_CS.
const CODE_SELECTOR: u16 = 0x10;
/// Selector of the flat data segment; Linux's __BOOT_DS.
const DATA_SELECTOR: u16 = 0x18;
/// Null, unused, code (execute/read), data (read/write): base 0, limit 4 GiB, accessed.
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Where and with which registers a loaded kernel is entered. Registers not named are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Physical address of the first instruction.
    pub eip: u32,
    /// EAX: the multiboot magic.
    pub eax: u32,
    /// EBX: the multiboot information.
    pub ebx: u32,
    /// ESI: Linux's boot_params.
    pub esi: u32,
}

impl Entry {
    /// Writes the descriptor table that [`Self::apply`] points GDTR at.
    pub(super) fn write_gdt(ram: &GuestRam) -> Result<(), BootError> {
        let bytes: Vec<u8> = DESCRIPTORS.iter().flat_map(|d| d.to_le_bytes()).collect();
        layout::write(ram, "the descriptor table", layout::GDT, &bytes)
    }

    /// Sets a processor that has just been reset to this entry.
    pub fn apply(&self, state: &mut CpuState) {
        let data = Segment {
            base: 0,
            limit: u32::MAX,
            attr: attr::P | attr::S | attr::RW | attr::ACCESSED | attr::DB | attr::G,
            selector: DATA_SELECTOR,
            pad: 0,
        };
        state.seg = [data; 6];
        state.seg[seg::CS] = Segment { attr: data.attr | attr::CODE, selector: CODE_SELECTOR, ..data };
        state.gdtr = TableRegister { base: layout::GDT as u32, limit: size_of_val(&DESCRIPTORS) as u32 - 1 };
        // As firmware leaves it: caches on, native x87 errors.
        state.cr0 = cr0::PE | cr0::ET | cr0::NE;
        state.eflags = eflags::FIXED;
        state.cpl = 0;
        state.gpr = [0; 8];
        state.gpr[reg::EAX] = self.eax;
        state.gpr[reg::EBX] = self.ebx;
        state.gpr[reg::ESI] = self.esi;
        state.eip = self.eip;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_flat_protected_mode() {
        let mut state = CpuState::default();
        Entry { eip: 0x10_0000, esi: 0x9_0000, ..Entry::default() }.apply(&mut state);
        assert!(state.protected() && !state.paging() && state.eflags & eflags::IF == 0);
        assert!(
            state.seg[seg::DS].flat() && state.seg[seg::CS].selector == 0x10 && state.seg[seg::SS].selector == 0x18
        );
        assert_eq!((state.eip, state.gpr[reg::ESI], state.gpr[reg::EBX]), (0x10_0000, 0x9_0000, 0));
        let code = DESCRIPTORS[2] >> 40 & 0xf0ff;
        assert_eq!(code as u32, state.seg[seg::CS].attr, "hidden part and table agree");
    }
}
