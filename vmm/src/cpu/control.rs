//! Control registers (SDM vol. 3, §2.5; vol. 2, MOV to and from control registers, LMSW, CLTS, XSETBV).

use super::{Feature, Flow, Stop, Vcpu, cr0, cr4};
use crate::mmu::{Flush, PHYSICAL_BITS};

/// Bits of CR0 that exist; writes to the others are ignored.
const CR0_BITS: u32 =
    cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
/// Bits of CR4 that every model has; setting one that the model lacks is #GP(0).
const CR4_BITS: u32 =
    cr4::TSD | cr4::DE | cr4::PSE | cr4::PAE | cr4::MCE | cr4::PGE | cr4::PCE | cr4::OSFXSR | cr4::OSXMMEXCPT;
/// Bits of CR4 that change what page tables mean.
const CR4_PAGING: u32 = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;
/// Reserved bits of a present PDPTE (SDM vol. 3, table 4-8).
const PDPTE_RESERVED: u64 = 0x1e6 | !((1 << PHYSICAL_BITS) - 1);

impl Vcpu {
    /// MOV from CR`n`. #UD for registers that do not exist, #GP(0) unless CPL is 0.
    pub fn read_cr(&mut self, n: u8) -> Flow<u32> {
        let value = match n {
            0 => self.state.cr0,
            2 => self.state.cr2,
            3 => self.state.cr3,
            4 => self.state.cr4,
            _ => return Err(Stop::ud()),
        };
        self.require_cpl0()?;
        Ok(value)
    }

    /// MOV to CR`n`. #UD for registers that do not exist, #GP(0) unless CPL is 0 or for values that are not allowed.
    pub fn write_cr(&mut self, n: u8, value: u32) -> Flow<()> {
        if !matches!(n, 0 | 2..=4) {
            return Err(Stop::ud());
        }
        self.require_cpl0()?;
        match n {
            0 => self.write_cr0(value),
            2 => {
                self.state.cr2 = value;
                Ok(())
            }
            3 => self.write_cr3(value),
            _ => self.write_cr4(value),
        }
    }

    /// LMSW: PE (set only), MP, EM and TS.
    pub fn lmsw(&mut self, value: u16) -> Flow<()> {
        self.require_cpl0()?;
        let loads = cr0::MP | cr0::EM | cr0::TS;
        let value = value as u32;
        self.write_cr0(self.state.cr0 & !loads | value & (loads | cr0::PE))
    }

    /// CLTS.
    pub fn clts(&mut self) -> Flow<()> {
        self.require_cpl0()?;
        self.state.cr0 &= !cr0::TS;
        Ok(())
    }

    /// XSETBV: `value` is EDX:EAX. #UD unless CR4.OSXSAVE, #GP(0) for what XCR0 cannot hold.
    pub fn xsetbv(&mut self, index: u32, value: u64) -> Flow<()> {
        if self.state.cr4 & cr4::OSXSAVE == 0 {
            return Err(Stop::ud());
        }
        self.require_cpl0()?;
        let avx_without_sse = value & 6 == 4;
        if index != 0 || value & 1 == 0 || avx_without_sse || value & !self.model.xcr0_mask() != 0 {
            return Err(Stop::gp(0));
        }
        self.state.xcr0 = value;
        Ok(())
    }

    fn write_cr0(&mut self, value: u32) -> Flow<()> {
        let value = value & CR0_BITS | cr0::ET;
        let old = self.state.cr0;
        let paging_unprotected = value & (cr0::PG | cr0::PE) == cr0::PG;
        if paging_unprotected || value & (cr0::NW | cr0::CD) == cr0::NW {
            return Err(Stop::gp(0));
        }
        let changed = value ^ old;
        if value & cr0::PG != 0 && self.state.cr4 & cr4::PAE != 0 && changed & (cr0::PG | cr0::CD | cr0::NW) != 0 {
            self.state.pdpte = self.read_pdpte(self.state.cr3)?;
        }
        self.state.cr0 = value;
        if changed & (cr0::PG | cr0::PE | cr0::WP) != 0 {
            self.mmu.flush(Flush::All);
        }
        Ok(())
    }

    fn write_cr3(&mut self, value: u32) -> Flow<()> {
        if self.state.paging() && self.state.cr4 & cr4::PAE != 0 {
            self.state.pdpte = self.read_pdpte(value)?;
        }
        self.state.cr3 = value;
        self.mmu.flush(Flush::NonGlobal);
        Ok(())
    }

    fn write_cr4(&mut self, value: u32) -> Flow<()> {
        if value & !self.cr4_bits() != 0 {
            return Err(Stop::gp(0));
        }
        let changed = value ^ self.state.cr4;
        if self.state.paging() && value & cr4::PAE != 0 && changed & CR4_PAGING != 0 {
            self.state.pdpte = self.read_pdpte(self.state.cr3)?;
        }
        self.state.cr4 = value;
        if changed & CR4_PAGING != 0 {
            self.mmu.flush(Flush::All);
        }
        Ok(())
    }

    /// Bits of CR4 that this processor's model allows.
    fn cr4_bits(&self) -> u32 {
        let when = |feature, bit| if self.model.has(feature) { bit } else { 0 };
        CR4_BITS | when(Feature::Umip, cr4::UMIP) | when(Feature::Xsave, cr4::OSXSAVE) | when(Feature::Smep, cr4::SMEP)
    }

    /// The four PDPTEs that `cr3` leads to (SDM vol. 3, §4.4.1). #GP(0) if a present one has reserved bits.
    pub(super) fn read_pdpte(&mut self, cr3: u32) -> Flow<[u64; 4]> {
        let table = cr3 & 0xffff_ffe0;
        let mut pdpte = [0; 4];
        for (i, entry) in pdpte.iter_mut().enumerate() {
            let gpa = table.wrapping_add(8 * i as u32) & self.state.a20_mask;
            *entry = self.mmu.ram.read_u64(gpa as u64).unwrap_or(u64::MAX);
            if *entry & 1 != 0 && *entry & PDPTE_RESERVED != 0 {
                return Err(Stop::gp(0));
            }
        }
        Ok(pdpte)
    }
}
