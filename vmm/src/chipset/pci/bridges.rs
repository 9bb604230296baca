//! The chips that make the PC: 82441FX host bridge (00:00.0), PIIX4 ISA bridge (00:01.0) and PIIX4 power management
//! (00:01.3), in the state that firmware leaves them in (82441FX and 82371AB data sheets).

use super::ConfigSpace;
use crate::chipset::platform::{PIRQ_IRQS, PM_BASE, pirq};

const HOST: u8 = 0;
const ISA: u8 = 1 << 3;
const PM: u8 = ISA | 3;

/// PIRQ routing registers of the ISA bridge.
const PIRQRC: u8 = 0x60;
/// PMBASE and its enable bit.
const PMBASE: u8 = 0x40;
const PMREGMISC: u8 = 0x80;

/// The three functions.
#[derive(Clone, Debug)]
pub struct Bridges {
    host: ConfigSpace,
    isa: ConfigSpace,
    pm: ConfigSpace,
}

impl Bridges {
    /// The bridges as firmware sets them up.
    pub fn new() -> Self {
        Self { host: host(), isa: isa(), pm: pm() }
    }

    /// The function at `devfn`.
    pub fn get(&self, devfn: u8) -> Option<&ConfigSpace> {
        match devfn {
            HOST => Some(&self.host),
            ISA => Some(&self.isa),
            PM => Some(&self.pm),
            _ => None,
        }
    }

    /// The function at `devfn`, to write.
    pub fn get_mut(&mut self, devfn: u8) -> Option<&mut ConfigSpace> {
        match devfn {
            HOST => Some(&mut self.host),
            ISA => Some(&mut self.isa),
            PM => Some(&mut self.pm),
            _ => None,
        }
    }

    /// The first of the PM block's 64 ports, if they are decoded.
    pub fn pm_window(&self) -> Option<u16> {
        let enabled = self.pm.read(PMREGMISC, 1) & 1 != 0;
        enabled.then(|| self.pm.read(PMBASE, 2) as u16 & 0xffc0)
    }

    /// The IRQ that interrupt `pin` (0 is INTA) of device `device` arrives on, if it is routed. Pins rotate with the
    /// device number, as slots of a PC are wired.
    pub fn route(&self, device: u8, pin: u8) -> Option<u8> {
        let register = self.isa.read(PIRQRC + pirq(device, pin) as u8, 1) as u8;
        (register & 0x80 == 0).then_some(register & 15)
    }
}

fn host() -> ConfigSpace {
    let mut s = ConfigSpace::new(0x8086, 0x1237, 0x06_0000, 2);
    s.set(4, &[0x06, 0x00, 0x80, 0x22]);
    // PAM0 to PAM6 and the rest of the DRAM set-up: kept, without effect, since all of low memory is RAM.
    s.set(0x59, &[0x33; 7]);
    s.allow(0x50, &[0xff; 0x30]);
    s
}

fn isa() -> ConfigSpace {
    let mut s = ConfigSpace::new(0x8086, 0x7110, 0x06_0100, 0);
    s.set(4, &[0x07, 0x00, 0x80, 0x02]);
    // Multi-function device.
    s.set(0x0e, &[0x80]);
    s.set(PIRQRC, &PIRQ_IRQS);
    s.allow(0x4c, &[0xff, 0, 0xff, 0xff]);
    s.allow(PIRQRC, &[0x8f; 4]);
    s.allow(0x64, &[0xff; 0x48]);
    s
}

fn pm() -> ConfigSpace {
    let mut s = ConfigSpace::new(0x8086, 0x7113, 0x06_8000, 3);
    s.set(4, &[0x01, 0x00, 0x80, 0x02]);
    // The SCI is not routed by this register, but drivers read it.
    s.set(0x3c, &[9, 1]);
    s.set(PMBASE, &(u32::from(PM_BASE) | 1).to_le_bytes());
    s.set(PMREGMISC, &[1]);
    s.allow(PMBASE, &[0xc0, 0xff]);
    s.allow(0x44, &[0xff; 0x3c]);
    s.allow(PMREGMISC, &[1]);
    s
}
