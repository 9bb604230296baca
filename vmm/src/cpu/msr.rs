//! Model-specific registers (SDM vol. 4, tables 2-2 and following). What the model does not have is #GP(0), as on real
//! processors.

use super::{Feature, Flow, Stop, Vcpu, mtrr};
use crate::mmu::Flush;

const TSC: u32 = 0x10;
/// IA32_APIC_BASE.
pub(super) const APIC_BASE: u32 = 0x1b;
const TSC_ADJUST: u32 = 0x3b;
const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
const BIOS_SIGN_ID: u32 = 0x8b;
const PLATFORM_ID: u32 = 0x17;
const ARCH_CAPABILITIES: u32 = 0x10a;
const FLUSH_CMD: u32 = 0x10b;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MISC_ENABLE: u32 = 0x1a0;
const DEBUGCTL: u32 = 0x1d9;
const PAT: u32 = 0x277;
const MC0_CTL: u32 = 0x400;
const MC0_MISC: u32 = 0x403;
const TSC_DEADLINE: u32 = 0x6e0;
const X2APIC_FIRST: u32 = 0x800;
const X2APIC_LAST: u32 = 0x8ff;
const EFER: u32 = 0xc000_0080;
const TSC_AUX: u32 = 0xc000_0103;

/// EFER.NXE, its only bit without long mode.
const EFER_NXE: u64 = 1 << 11;
/// SPEC_CTRL: IBRS and STIBP.
const SPEC_CTRL_BITS: u64 = 3;
/// MISC_ENABLE bits that software may change: fast strings; the rest is read-only here.
const MISC_ENABLE_BITS: u64 = 1;
/// MISC_ENABLE bits that read as one: no branch trace store, no PEBS.
const MISC_ENABLE_FIXED: u64 = 1 << 11 | 1 << 12;
/// One machine-check bank, no control register.
const MCG_CAP_VALUE: u64 = 1;
/// Revision of the microcode, in the upper half; what updates no errata needs no figure of meaning.
const MICROCODE: u64 = 1 << 32;

impl Vcpu {
    /// RDMSR. #GP(0) unless CPL is 0, and for what does not exist.
    pub fn rdmsr(&mut self, msr: u32) -> Flow<u64> {
        self.require_cpl0()?;
        self.read_msr(msr).ok_or_else(|| {
            tracing::debug!(msr = format_args!("{msr:#x}"), "RDMSR of an absent register");
            Stop::gp(0)
        })
    }

    /// WRMSR. #GP(0) unless CPL is 0, for what does not exist and for values that are not allowed.
    pub fn wrmsr(&mut self, msr: u32, value: u64) -> Flow<()> {
        self.require_cpl0()?;
        self.write_msr(msr, value).ok_or_else(|| {
            tracing::debug!(msr = format_args!("{msr:#x}"), value = format_args!("{value:#x}"), "WRMSR refused");
            Stop::gp(0)
        })
    }

    fn read_msr(&mut self, msr: u32) -> Option<u64> {
        let m = &self.state.msr;
        match msr {
            TSC => Some(self.rdtsc()),
            TSC_ADJUST => self.when(Feature::TscAdjust, m.tsc_adjust),
            TSC_AUX => self.when(Feature::Rdtscp, m.tsc_aux as u64),
            TSC_DEADLINE => self.read_deadline(),
            APIC_BASE => self.bus.apic_msr_read(self.index, msr),
            X2APIC_FIRST..=X2APIC_LAST => self.bus.apic_msr_read(self.index, msr),
            SYSENTER_CS => Some(m.sysenter_cs as u64),
            SYSENTER_ESP => Some(m.sysenter_esp as u64),
            SYSENTER_EIP => Some(m.sysenter_eip as u64),
            EFER => self.when(Feature::Nx, m.efer as u64),
            PAT => Some(m.pat),
            MISC_ENABLE => Some(m.misc_enable | MISC_ENABLE_FIXED),
            DEBUGCTL => Some(m.debugctl),
            PLATFORM_ID => Some(0),
            BIOS_SIGN_ID => Some(MICROCODE),
            SPEC_CTRL => self.when(Feature::SpecCtrl, m.spec_ctrl as u64),
            ARCH_CAPABILITIES => self.when(Feature::ArchCapabilities, self.model.arch_capabilities),
            MCG_CAP => Some(MCG_CAP_VALUE),
            MCG_STATUS => Some(m.mcg_status),
            MC0_CTL..=MC0_MISC => Some(m.mc0[(msr - MC0_CTL) as usize]),
            _ => mtrr::read(m, msr),
        }
    }

    fn when(&self, feature: Feature, value: u64) -> Option<u64> {
        self.model.has(feature).then_some(value)
    }

    /// None refuses the write.
    fn write_msr(&mut self, msr: u32, value: u64) -> Option<()> {
        match msr {
            TSC => self.set_tsc(value),
            TSC_ADJUST if self.model.has(Feature::TscAdjust) => {
                let delta = value.wrapping_sub(self.state.msr.tsc_adjust);
                self.move_tsc(delta);
            }
            TSC_DEADLINE => return self.write_deadline(value),
            APIC_BASE | X2APIC_FIRST..=X2APIC_LAST => {
                return self.bus.apic_msr_write(self.index, msr, value).then_some(());
            }
            EFER => return self.write_efer(value),
            SPEC_CTRL | PRED_CMD | FLUSH_CMD => return self.write_speculation(msr, value),
            // Writing zero before CPUID.1 is how the revision is asked for; there is no update to load.
            BIOS_SIGN_ID => {}
            _ => return self.write_stored(msr, value),
        }
        Some(())
    }

    /// Registers that are no more than storage with reserved bits.
    fn write_stored(&mut self, msr: u32, value: u64) -> Option<()> {
        let has_aux = self.model.has(Feature::Rdtscp);
        let m = &mut self.state.msr;
        let narrow = u32::try_from(value).ok();
        match msr {
            // Registers of 64 bits on processors with long mode; what a 32-bit one has no room for is dropped.
            SYSENTER_CS => m.sysenter_cs = value as u32,
            SYSENTER_ESP => m.sysenter_esp = value as u32,
            SYSENTER_EIP => m.sysenter_eip = value as u32,
            TSC_AUX if has_aux => m.tsc_aux = narrow?,
            PAT => m.pat = value.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7)).then_some(value)?,
            MISC_ENABLE => m.misc_enable = m.misc_enable & !MISC_ENABLE_BITS | value & MISC_ENABLE_BITS,
            // Neither last-branch records nor branch trace nor single-stepping on branches.
            DEBUGCTL => m.debugctl = (value == 0).then_some(0)?,
            MCG_STATUS => m.mcg_status = (value == 0).then_some(0)?,
            MC0_CTL => m.mc0[0] = value,
            // Status, address and misc take only zero (SDM vol. 3, §15.3.2.2).
            0x401..=MC0_MISC => m.mc0[(msr - MC0_CTL) as usize] = (value == 0).then_some(0)?,
            _ => return mtrr::write(m, msr, value),
        }
        Some(())
    }

    fn write_efer(&mut self, value: u64) -> Option<()> {
        if !self.model.has(Feature::Nx) || value & !EFER_NXE != 0 {
            return None;
        }
        if self.state.msr.efer != value as u32 {
            self.state.msr.efer = value as u32;
            self.mmu.flush(Flush::All);
        }
        Some(())
    }

    /// Speculation controls have nothing to act on; their values are checked and, where readable, kept.
    fn write_speculation(&mut self, msr: u32, value: u64) -> Option<()> {
        let (feature, bits) = match msr {
            SPEC_CTRL => (Feature::SpecCtrl, SPEC_CTRL_BITS),
            PRED_CMD => (Feature::SpecCtrl, 1),
            _ => (Feature::FlushL1d, 1),
        };
        if !self.model.has(feature) || value & !bits != 0 {
            return None;
        }
        if msr == SPEC_CTRL {
            self.state.msr.spec_ctrl = value as u32;
        }
        Some(())
    }

    /// WRMSR of the counter moves IA32_TSC_ADJUST by the same amount (SDM vol. 3, §17.17.3).
    fn set_tsc(&mut self, value: u64) {
        let delta = value.wrapping_sub(self.rdtsc());
        self.move_tsc(delta);
    }

    /// Adds `delta` to the guest's counter. A deadline that is armed keeps its guest time.
    fn move_tsc(&mut self, delta: u64) {
        let deadline = self.read_deadline();
        self.state.tsc_offset = self.state.tsc_offset.wrapping_add(delta);
        self.state.msr.tsc_adjust = self.state.msr.tsc_adjust.wrapping_add(delta);
        if let Some(deadline) = deadline.filter(|d| *d != 0) {
            let _ = self.write_deadline(deadline);
        }
    }

    /// IA32_TSC_DEADLINE in guest time; zero is disarmed.
    fn read_deadline(&self) -> Option<u64> {
        let host = self.bus.apic_msr_read(self.index, TSC_DEADLINE)?;
        Some(if host == 0 { 0 } else { host.wrapping_add(self.state.tsc_offset).max(1) })
    }

    fn write_deadline(&mut self, guest: u64) -> Option<()> {
        let host = if guest == 0 { 0 } else { guest.wrapping_sub(self.state.tsc_offset).max(1) };
        self.bus.apic_msr_write(self.index, TSC_DEADLINE, host).then_some(())
    }
}
