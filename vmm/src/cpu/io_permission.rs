//! Permission to use I/O ports: IOPL, then the bitmap of the TSS (SDM vol. 1, §19.5).

use super::descriptor::system;
use super::{Flow, Stop, Vcpu, eflags};

/// Offset of the bitmap's base in a 32-bit TSS.
const MAP_BASE: u32 = 0x66;

impl Vcpu {
    /// Checks an access of `width` bytes (1, 2 or 4) to `port`: #GP(0) if it is not allowed. Notes I/O breakpoints.
    pub fn check_io(&mut self, port: u16, width: u8) -> Flow<()> {
        let s = &self.state;
        let trusted = !s.protected() || (s.eflags & eflags::VM == 0 && s.cpl <= s.iopl());
        if !trusted && !self.port_permitted(port, width)? {
            return Err(Stop::gp(0));
        }
        self.note_port_access(port, width);
        Ok(())
    }

    /// True if the TSS's bitmap has a zero for each port. The processor always reads two bytes of it.
    fn port_permitted(&mut self, port: u16, width: u8) -> Flow<bool> {
        let tr = self.state.tr;
        if !tr.usable() || tr.attr & system::WIDE == 0 || tr.limit < MAP_BASE + 1 {
            return Ok(false);
        }
        let map: u16 = self.load_system(tr.base.wrapping_add(MAP_BASE))?;
        let offset = map as u32 + port as u32 / 8;
        if offset + 1 > tr.limit {
            return Ok(false);
        }
        let bits: u16 = self.load_system(tr.base.wrapping_add(offset))?;
        let wanted = ((1u32 << width) - 1) << (port & 7);
        Ok(bits as u32 & wanted == 0)
    }
}
