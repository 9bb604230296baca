//! Named fields of the XSAVE area (SDM vol. 1, §10.5.1 and §13.4): the guest's x87, MMX, SSE and AVX registers.
//!
//! The data registers are stored relative to the top of the stack, ST(0) first, while tags belong to physical
//! registers. Moving the top therefore rotates the stored registers; [`XsaveArea::set_top`] hides that.

use crate::cpu::XsaveArea;

/// Bits of the x87 status word (SDM vol. 1, §8.1.3).
pub mod fsw {
    /// The six exception flags.
    pub const EXCEPTIONS: u16 = 0x3f;
    /// Exception summary: some exception is flagged and not masked.
    pub const ES: u16 = 1 << 7;
    /// Busy: a copy of ES since the 387.
    pub const B: u16 = 1 << 15;
    /// Where the three bits of TOP start.
    pub const TOP_SHIFT: u16 = 11;
}

/// Bits of the x87 control word that exist; bit 6 is always one.
const FCW_WRITABLE: u16 = 0x1f3f;
const FCW_FIXED: u16 = 0x40;
/// The control word after FNINIT: all exceptions masked, extended precision, round to nearest.
const FCW_INIT: u16 = 0x37f;
/// MXCSR bits that may be set: all of the low sixteen, DAZ included.
pub const MXCSR_MASK: u32 = 0xffff;

const FCW: usize = 0;
const FSW: usize = 2;
const TAGS: usize = 4;
const FOP: usize = 6;
const FIP: usize = 8;
const FDP: usize = 16;
const MXCSR: usize = 24;
/// Offset of ST(0), sixteen bytes a register.
pub const ST: usize = 32;
/// Offset of XMM0.
pub const XMM: usize = 160;
/// End of what 32-bit code can reach of the legacy region: XMM8 would start here.
pub const LEGACY_END: usize = XMM + 8 * 16;
/// Offset of the header.
pub const HEADER: usize = 512;
/// Offset of the upper half of YMM0.
pub const YMM_HIGH: usize = 576;

impl XsaveArea {
    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }
    fn set_u16(&mut self, at: usize, v: u16) {
        self.0[at..at + 2].copy_from_slice(&v.to_le_bytes());
    }
    fn u32_at(&self, at: usize) -> u32 {
        self.u16_at(at) as u32 | (self.u16_at(at + 2) as u32) << 16
    }
    fn set_u32(&mut self, at: usize, v: u32) {
        self.0[at..at + 4].copy_from_slice(&v.to_le_bytes());
    }

    /// The x87 control word.
    pub fn fcw(&self) -> u16 {
        self.u16_at(FCW)
    }
    /// Sets the control word; a pending exception that becomes unmasked (or masked) changes ES.
    pub fn set_fcw(&mut self, v: u16) {
        self.set_u16(FCW, v & FCW_WRITABLE | FCW_FIXED);
        self.set_fsw(self.fsw());
    }
    /// The x87 status word.
    pub fn fsw(&self) -> u16 {
        self.u16_at(FSW)
    }
    /// Sets the status word, but for ES and B, which follow from the flags and the masks. The registers do not move.
    pub fn set_fsw(&mut self, v: u16) {
        let pending = v & !self.fcw() & fsw::EXCEPTIONS != 0;
        let summary = if pending { fsw::ES | fsw::B } else { 0 };
        self.set_u16(FSW, v & !(fsw::ES | fsw::B) | summary);
    }
    /// An x87 exception is flagged and not masked: the next waiting instruction raises #MF.
    pub fn x87_pending(&self) -> bool {
        self.fsw() & fsw::ES != 0
    }
    /// Index of the physical register that is ST(0).
    pub fn top(&self) -> usize {
        (self.fsw() >> fsw::TOP_SHIFT) as usize & 7
    }
    /// Makes physical register `top` ST(0); every physical register keeps its contents.
    pub fn set_top(&mut self, top: usize) {
        let turn = (top.wrapping_sub(self.top()) & 7) * 16;
        self.0[ST..XMM].rotate_left(turn);
        let v = self.fsw() & !(7 << fsw::TOP_SHIFT) | (top as u16 & 7) << fsw::TOP_SHIFT;
        self.set_u16(FSW, v);
    }
    /// The abridged tags: one bit a physical register, set if it is in use.
    pub fn tags(&self) -> u8 {
        self.0[TAGS]
    }
    /// Sets the abridged tags.
    pub fn set_tags(&mut self, v: u8) {
        self.0[TAGS] = v;
    }

    /// The tag word as FNSTENV stores it: two bits a physical register, from the contents (SDM vol. 1, §8.1.7).
    pub fn tag_word(&self) -> u16 {
        (0..8).fold(0, |word, physical| word | self.full_tag(physical) << (2 * physical))
    }
    fn full_tag(&self, physical: usize) -> u16 {
        if self.tags() >> physical & 1 == 0 {
            return 3;
        }
        let at = ST + 16 * (physical.wrapping_sub(self.top()) & 7);
        let exponent = self.u16_at(at + 8) & 0x7fff;
        let zero = self.0[at..at + 8].iter().all(|b| *b == 0);
        let integer = self.0[at + 7] & 0x80 != 0;
        match exponent {
            0 if zero => 1,
            1..=0x7ffe if integer => 0,
            _ => 2,
        }
    }
    /// Sets the abridged tags from a full tag word: 3 is empty, all else is in use.
    pub fn set_tag_word(&mut self, word: u16) {
        self.set_tags((0..8).fold(0, |tags, i| tags | ((word >> (2 * i) & 3 != 3) as u8) << i));
    }

    /// Opcode of the last x87 instruction that raised an unmasked exception: eleven bits.
    pub fn fop(&self) -> u16 {
        self.u16_at(FOP)
    }
    /// Offset of the last non-control x87 instruction.
    pub fn fip(&self) -> u32 {
        self.u32_at(FIP)
    }
    /// Offset of the operand of the last x87 instruction that raised an unmasked exception.
    pub fn fdp(&self) -> u32 {
        self.u32_at(FDP)
    }
    /// Sets the opcode.
    pub fn set_fop(&mut self, v: u16) {
        self.set_u16(FOP, v & 0x7ff);
    }
    /// Sets the instruction pointer; its selector reads as zero (CPUID.7.0:EBX bit 13).
    pub fn set_fip(&mut self, v: u32) {
        self.set_u32(FIP, v);
        self.set_u32(FIP + 4, 0);
    }
    /// Sets the operand pointer; its selector reads as zero.
    pub fn set_fdp(&mut self, v: u32) {
        self.set_u32(FDP, v);
        self.set_u32(FDP + 4, 0);
    }

    /// FNINIT (SDM vol. 2): control, status, tags and pointers. The data registers stay, though they are empty.
    pub fn init_x87(&mut self) {
        self.set_top(0);
        self.set_u16(FCW, FCW_INIT);
        self.set_u16(FSW, 0);
        self.set_tags(0);
        self.set_fop(0);
        self.set_fip(0);
        self.set_fdp(0);
    }

    /// MXCSR.
    pub fn mxcsr(&self) -> u32 {
        self.u32_at(MXCSR)
    }
    /// Sets MXCSR; the caller has checked for reserved bits.
    pub fn set_mxcsr(&mut self, v: u32) {
        self.set_u32(MXCSR, v & MXCSR_MASK);
    }

    /// The 32 bytes of YMM `i` (its low half is XMM `i`).
    pub fn ymm(&self, i: usize) -> [u8; 32] {
        let mut v = [0; 32];
        v[..16].copy_from_slice(&self.0[XMM + 16 * i..][..16]);
        v[16..].copy_from_slice(&self.0[YMM_HIGH + 16 * i..][..16]);
        v
    }
    /// Sets YMM `i`.
    pub fn set_ymm(&mut self, i: usize, v: &[u8; 32]) {
        self.0[XMM + 16 * i..][..16].copy_from_slice(&v[..16]);
        self.0[YMM_HIGH + 16 * i..][..16].copy_from_slice(&v[16..]);
    }
    /// The eight bytes of MM `i`, which is the significand of physical x87 register `i`.
    pub fn mm(&self, i: usize) -> [u8; 8] {
        let at = ST + 16 * (i.wrapping_sub(self.top()) & 7);
        std::array::from_fn(|b| self.0[at + b])
    }
    /// What every MMX instruction but EMMS does to the x87 state: TOP becomes 0 and all registers valid.
    pub fn enter_mmx(&mut self) {
        self.set_top(0);
        self.set_tags(0xff);
    }
}
