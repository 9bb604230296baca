//! A configuration space as plain data: 256 bytes, which of their bits can be written, and BARs that answer sizing.

use super::{Bar, BarKind};

const COMMAND: u8 = 4;
const COMMAND_IO: u16 = 1;
const COMMAND_MEMORY: u16 = 2;
const BAR0: u8 = 0x10;

/// Configuration space of one function (PCI 3.0, §6.1).
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 256],
    /// Kind and size of each BAR; a 64-bit one leaves the next slot empty.
    bars: [Option<(BarKind, u64)>; 6],
}

impl ConfigSpace {
    /// A type 0 function; `class` is base class, subclass and interface as one 24-bit number.
    pub fn new(vendor: u16, device: u16, class: u32, revision: u8) -> Self {
        let mut space = Self { bytes: [0; 256], writable: [0; 256], bars: [None; 6] };
        space.set(0, &vendor.to_le_bytes());
        space.set(2, &device.to_le_bytes());
        space.set(8, &[revision, class as u8, (class >> 8) as u8, (class >> 16) as u8]);
        space.allow(COMMAND, &[0x47, 0x05]);
        space.allow(0x0c, &[0xff, 0xff]);
        space.allow(0x3c, &[0xff]);
        space
    }

    /// Sets bytes at `at`; what would lie past the end is dropped.
    pub fn set(&mut self, at: u8, bytes: &[u8]) {
        for (slot, b) in self.bytes[usize::from(at)..].iter_mut().zip(bytes) {
            *slot = *b;
        }
    }

    /// Sets which bits at `at` the guest may write.
    pub fn allow(&mut self, at: u8, mask: &[u8]) {
        for (slot, m) in self.writable[usize::from(at)..].iter_mut().zip(mask) {
            *slot = *m;
        }
    }

    /// Gives the function BAR `index` of `size` bytes (rounded up to a power of two, at least 16); 32 bits wide.
    pub fn add_bar(&mut self, index: u8, kind: BarKind, size: u64) {
        let size = size.clamp(16, 1 << 31).next_power_of_two();
        let Some(slot) = self.bars.get_mut(usize::from(index)) else { return };
        *slot = Some((kind, size));
        let at = BAR0 + 4 * index;
        self.set(at, &[if kind == BarKind::Io { 1 } else { 0 }]);
        self.allow(at, &(!(size as u32 - 1)).to_le_bytes());
    }

    /// Reads `width` bytes at `offset`.
    pub fn read(&self, offset: u8, width: u8) -> u32 {
        let byte = |i: u8| u32::from(self.bytes[usize::from(offset.wrapping_add(i))]);
        (0..width.min(4)).fold(0, |value, i| value | byte(i) << (8 * i))
    }

    /// Writes `width` bytes at `offset`, where the bits are writable.
    pub fn write(&mut self, offset: u8, width: u8, value: u32) {
        for (i, b) in value.to_le_bytes().into_iter().enumerate().take(usize::from(width)) {
            let at = usize::from(offset.wrapping_add(i as u8));
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | b & mask;
        }
    }

    /// The regions that the command register lets the function decode.
    pub fn bars(&self) -> Vec<Bar> {
        let command = self.read(COMMAND, 2) as u16;
        let enabled = |kind| command & if kind == BarKind::Io { COMMAND_IO } else { COMMAND_MEMORY } != 0;
        (0u8..6)
            .zip(&self.bars)
            .filter_map(|(index, bar)| {
                let (kind, size) = (*bar)?;
                let base = u64::from(self.read(BAR0 + 4 * index, 4)) & !(size - 1);
                (enabled(kind) && base != 0).then_some(Bar { index, kind, base, size })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_answer_sizing_and_follow_the_command_register() {
        let mut s = ConfigSpace::new(0x1af4, 0x1042, 0x01_8000, 1);
        s.add_bar(0, BarKind::Memory, 0x3000);
        s.add_bar(1, BarKind::Io, 20);
        assert_eq!(s.read(8, 4), 0x0180_0001);
        s.write(0x10, 4, u32::MAX);
        s.write(0x14, 4, u32::MAX);
        assert_eq!((s.read(0x10, 4), s.read(0x14, 4)), (0xffff_c000, 0xffff_ffe1));
        s.write(0x10, 4, 0xe000_0000);
        assert_eq!(s.bars(), []);
        s.write(4, 2, 2);
        assert_eq!(s.bars(), [Bar { index: 0, kind: BarKind::Memory, base: 0xe000_0000, size: 0x4000 }]);
        s.write(0, 4, 0);
        assert_eq!(s.read(0, 4), 0x1042_1af4);
        assert_eq!(s.read(255, 4), 0x421a_f400, "wraps");
    }
}
