//! Debug registers (SDM vol. 3, §17.2). Data breakpoints are met by the memory system, which is told their pages here.

use super::{Exception, Flow, Stop, Vcpu, cr4};

/// Bits of DR6 that read as one, and those that software may write.
const DR6_FIXED: u32 = 0xffff_0ff0;
const DR6_BITS: u32 = 0x0000_e00f;
/// The same of DR7.
const DR7_FIXED: u32 = 0x0000_0400;
const DR7_BITS: u32 = 0xffff_23ff;
/// DR7.GD.
const DR7_GD: u32 = 1 << 13;
/// DR6.BD.
const DR6_BD: u32 = 1 << 13;

/// What a breakpoint waits for: the R/W field of DR7.
const KIND_WRITE: u32 = 1;
const KIND_PORT: u32 = 2;
const KIND_ACCESS: u32 = 3;

/// A breakpoint that is enabled.
#[derive(Clone, Copy, Debug)]
struct Breakpoint {
    index: u32,
    kind: u32,
    /// Aligned to `len`.
    start: u32,
    len: u32,
}

impl Vcpu {
    /// MOV from DR`n`.
    pub fn read_dr(&mut self, n: u8) -> Flow<u32> {
        let n = self.check_dr(n)?;
        Ok(match n {
            0..=3 => self.state.dr[n as usize],
            6 => self.state.dr6,
            _ => self.state.dr7,
        })
    }

    /// MOV to DR`n`. Reserved bits keep their fixed values.
    pub fn write_dr(&mut self, n: u8, value: u32) -> Flow<()> {
        let n = self.check_dr(n)?;
        match n {
            0..=3 => self.state.dr[n as usize] = value,
            6 => self.state.dr6 = DR6_FIXED | value & DR6_BITS,
            _ => self.state.dr7 = DR7_FIXED | value & DR7_BITS,
        }
        if n != 6 {
            self.watch_breakpoints();
        }
        Ok(())
    }

    /// The register that `n` names (4 and 5 are aliases unless CR4.DE), after the checks of privilege and DR7.GD.
    fn check_dr(&mut self, n: u8) -> Flow<u8> {
        let n = match n {
            0..=3 | 6 | 7 => n,
            4 | 5 if self.state.cr4 & cr4::DE == 0 => n + 2,
            _ => return Err(Stop::ud()),
        };
        self.require_cpl0()?;
        if self.state.dr7 & DR7_GD != 0 {
            return Err(Exception::debug(DR6_BD).into());
        }
        Ok(n)
    }

    /// Tells the memory system which pages hold data breakpoints.
    pub(super) fn watch_breakpoints(&mut self) {
        let mut pages = Vec::new();
        for b in self.breakpoints().filter(|b| matches!(b.kind, KIND_WRITE | KIND_ACCESS)) {
            // An aligned range of at most eight bytes lies in one page.
            pages.push(b.start & !0xfff);
        }
        if !pages.is_empty() || self.mmu.is_watching() {
            self.mmu.watch_data(&pages);
        }
    }

    /// Notes I/O breakpoints that an access to `port` hits; the #DB follows the instruction (SDM vol. 3, §17.2.4).
    pub(super) fn note_port_access(&mut self, port: u16, width: u8) {
        if self.state.dr7 & 0xff == 0 || self.state.cr4 & cr4::DE == 0 {
            return;
        }
        let (first, end) = (port as u32, port as u32 + width as u32);
        let hits = self
            .breakpoints()
            .filter(|b| b.kind == KIND_PORT && b.start < end && first < b.start.saturating_add(b.len))
            .fold(0, |hits, b| hits | 1 << b.index);
        self.mmu.pending_debug |= hits;
    }

    fn breakpoints(&self) -> impl Iterator<Item = Breakpoint> + use<> {
        let (dr, dr7) = (self.state.dr, self.state.dr7);
        (0..4).filter(move |i| dr7 >> (2 * i) & 3 != 0).map(move |index| {
            let len = [1, 2, 8, 4][(dr7 >> (18 + 4 * index) & 3) as usize];
            Breakpoint { index, kind: dr7 >> (16 + 4 * index) & 3, start: dr[index as usize] & !(len - 1), len }
        })
    }
}
