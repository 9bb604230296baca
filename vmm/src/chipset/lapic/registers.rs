//! The local APIC's registers: the memory-mapped page and the x2APIC MSRs share one numbering, 16 bytes a register
//! (SDM vol. 3, tables 11-1 and 11-6).

use super::timer::Mode;
use super::{
    BASE_BSP, BASE_EN, BASE_EXTD, ESR_ILLEGAL_REGISTER, Effect, LVT_LINT0, LVT_MASKED, LVT_TIMER, Lapic, Target,
    Vectors,
};
use crate::chipset::msi::{Delivery, Message};

/// Version 14h, six LVT entries, no suppression of EOI broadcasts.
const VERSION: u32 = 0x0005_0014;

/// Bits of each LVT entry that software may write.
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];

mod register {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const APR: u32 = 0x09;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const RRD: u32 = 0x0c;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SVR: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const ESR: u32 = 0x28;
    pub const ICR_LOW: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_ERROR: u32 = 0x37;
    pub const INITIAL: u32 = 0x38;
    pub const CURRENT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}
use register as r;

impl Lapic {
    /// The register with number `index` (offset / 16, or MSR − 800h); None where there is none.
    fn register(&self, index: u32, now: u64) -> Option<u32> {
        let word = |v: &Vectors, first: u32| v.0[(index - first) as usize & 7];
        Some(match index {
            r::ID if self.x2apic() => self.id,
            r::ID => u32::from(self.xapic_id) << 24,
            r::VERSION => VERSION,
            r::TPR => u32::from(self.tpr),
            r::APR | r::PPR => u32::from(self.priority()),
            r::RRD => 0,
            r::LDR if self.x2apic() => self.x2apic_ldr(),
            r::LDR => self.ldr,
            r::DFR => self.dfr,
            r::SVR => self.svr,
            r::ISR..=0x17 => word(&self.isr, r::ISR),
            r::TMR..=0x1f => word(&self.tmr, r::TMR),
            r::IRR..=0x27 => word(&self.irr, r::IRR),
            r::ESR => self.esr,
            r::ICR_LOW => self.icr as u32,
            r::ICR_HIGH => (self.icr >> 32) as u32,
            r::LVT_TIMER..=r::LVT_ERROR => self.lvt[(index - r::LVT_TIMER) as usize],
            r::INITIAL => self.timer.initial(),
            r::CURRENT => self.timer.current(now),
            r::DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// A load of the 32-bit register at `offset` of the page.
    pub fn mmio_read(&mut self, offset: u64, now: u64) -> u32 {
        match self.register((offset >> 4) as u32, now) {
            Some(value) => value,
            None if offset >> 4 == u64::from(r::EOI) => 0,
            None => {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// A store of the 32-bit register at `offset` of the page.
    pub fn mmio_write(&mut self, offset: u64, value: u32, now: u64) -> Effect {
        match (offset >> 4) as u32 {
            r::ID => self.xapic_id = (value >> 24) as u8,
            r::LDR => self.ldr = value & 0xff00_0000,
            r::DFR => self.dfr = value | 0x0fff_ffff,
            r::ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value) << 32,
            r::ICR_LOW => {
                self.icr = self.icr & !0xffff_ffff | u64::from(value & 0x000c_cfff);
                return self.command();
            }
            index => match self.write_common(index, value, now) {
                Some(effect) => return effect,
                None => self.error(ESR_ILLEGAL_REGISTER),
            },
        }
        Effect::None
    }

    /// The registers that both views write alike; None for those that are not writable.
    fn write_common(&mut self, index: u32, value: u32, now: u64) -> Option<Effect> {
        match index {
            r::TPR => self.tpr = value as u8,
            r::EOI => return Some(self.end_of_interrupt()),
            r::SVR => self.write_svr(value),
            r::ESR => self.esr = std::mem::take(&mut self.esr_pending),
            r::LVT_TIMER..=r::LVT_ERROR => self.write_lvt((index - r::LVT_TIMER) as usize, value),
            r::INITIAL => self.timer.set_initial(value, now),
            r::DIVIDE => self.timer.set_divide(value, now),
            _ => return None,
        }
        Some(Effect::None)
    }

    /// Clearing the enable bit masks the whole LVT (SDM vol. 3, §11.4.7.2).
    fn write_svr(&mut self, value: u32) {
        self.svr = value & 0x3ff;
        if self.svr & 0x100 == 0 {
            self.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
        }
    }

    fn write_lvt(&mut self, index: usize, value: u32) {
        let mut value = value & LVT_WRITABLE[index];
        // While the APIC is disabled by software the mask bits cannot be cleared, but for the virtual wire: firmware may
        // set it up in either order.
        if self.svr & 0x100 == 0 && index != LVT_LINT0 {
            value |= LVT_MASKED;
        }
        self.lvt[index] = value;
        if index == LVT_TIMER {
            self.timer.set_mode(Mode::from_lvt(value));
        }
    }

    /// RDMSR of x2APIC register `index` (MSR − 800h); None means #GP(0).
    pub fn x2apic_read(&self, index: u32, now: u64) -> Option<u64> {
        match index {
            _ if !self.x2apic() => None,
            r::ICR_LOW => Some(self.icr),
            r::ICR_HIGH | r::APR | r::RRD | r::DFR | r::SELF_IPI => None,
            _ => self.register(index, now).map(u64::from),
        }
    }

    /// WRMSR of x2APIC register `index`; None means #GP(0).
    pub fn x2apic_write(&mut self, index: u32, value: u64, now: u64) -> Option<Effect> {
        if !self.x2apic() || (index != r::ICR_LOW && value >> 32 != 0) {
            return None;
        }
        let low = value as u32;
        let reserved = match index {
            r::TPR => !0xff,
            r::EOI | r::ESR => !0,
            r::SVR => !0x3ff,
            r::LVT_TIMER..=r::LVT_ERROR => !(LVT_WRITABLE[(index - r::LVT_TIMER) as usize] | 0x1000),
            r::DIVIDE => !0xb,
            r::SELF_IPI => !0xff,
            r::ICR_LOW => !0x000c_dfff,
            _ => 0,
        };
        if low & reserved != 0 {
            return None;
        }
        match index {
            r::ICR_LOW => {
                self.icr = value & 0xffff_ffff_000c_cfff;
                Some(self.command())
            }
            r::SELF_IPI => {
                let delivery = Delivery::Fixed;
                let message =
                    Message { destination: self.id, logical: false, delivery, vector: low as u8, level: false };
                Some(Effect::Send(Target::Myself, message))
            }
            _ => self.write_common(index, low, now),
        }
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// WRMSR of IA32_APIC_BASE; false means #GP(0). x2APIC is entered from the enabled state only, and left only
    /// through the disabled one (SDM vol. 3, §11.12.5).
    pub fn set_base(&mut self, value: u64) -> bool {
        const ADDRESS: u64 = 0xf_ffff_f000;
        if value & !(ADDRESS | BASE_BSP | BASE_EN | BASE_EXTD) != 0 {
            return false;
        }
        let mode = |v: u64| v & (BASE_EN | BASE_EXTD);
        let legal = match (mode(self.base), mode(value)) {
            (_, BASE_EXTD) => false,
            (old, new) if old == new => true,
            (0, new) => new == BASE_EN,
            (BASE_EN, _) => true,
            (_, new) => new == 0,
        };
        if !legal {
            return false;
        }
        if mode(value) == 0 && self.enabled() {
            self.init();
        }
        self.base = value & !BASE_BSP | self.base & BASE_BSP;
        true
    }
}
