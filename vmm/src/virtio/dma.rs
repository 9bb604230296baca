//! Writing guest RAM on a device's behalf.
//!
//! An engine may hold translations of the bytes that are overwritten, and our own stores do not fault as the guest's
//! do. So everything that writes guest RAM for a device runs on the processor's thread while no engine does, and notes
//! here which frames with code it wrote: the machine has the engine look at them before the next guest instruction.
//! That is exact: no instruction can run between the store and the look.

use std::collections::BTreeSet;

use super::memory::{self, Shared};
use super::region::Region;
use crate::mmu::{FRAME_SIZE, GuestRam};

/// Guest RAM as a device sees it, with the code frames written so far.
pub struct Dma<'a> {
    ram: &'a GuestRam,
    code: BTreeSet<u64>,
}

impl<'a> Dma<'a> {
    /// Nothing is written yet.
    pub fn new(ram: &'a GuestRam) -> Self {
        Self { ram, code: BTreeSet::new() }
    }

    /// For reading.
    pub fn ram(&self) -> &'a GuestRam {
        self.ram
    }

    /// The frames (addresses) that hold code and were written: each must be invalidated before the guest goes on.
    pub fn into_code_frames(self) -> Vec<u64> {
        self.code.into_iter().collect()
    }

    /// Stores `bytes` at `gpa`. None, with RAM untouched, if any would lie outside RAM.
    pub fn write(&mut self, gpa: u64, bytes: &[u8]) -> Option<()> {
        Shared::write(self.ram, gpa, bytes)?;
        self.note(gpa, bytes.len());
        Some(())
    }

    /// Stores a ring index: whoever loads it sees what was written before.
    pub fn store_u16(&mut self, gpa: u64, value: u16) -> Option<()> {
        self.ram.store_u16(gpa, value)?;
        self.note(gpa, 2);
        Some(())
    }

    /// Copies `length` bytes at `offset` of the bounce region to `gpa`. None, with RAM untouched, if any lies outside.
    pub fn copy_from(&mut self, region: &Region, offset: u64, gpa: u64, length: usize) -> Option<()> {
        memory::copy((region, offset), (self.ram, gpa), length)?;
        self.note(gpa, length);
        Some(())
    }

    /// Notes that a device which maps guest RAM itself has written `length` bytes at `gpa`, which are in RAM.
    pub fn wrote(&mut self, gpa: u64, length: usize) {
        self.note(gpa, length);
    }

    fn note(&mut self, gpa: u64, length: usize) {
        let first = gpa & !(FRAME_SIZE as u64 - 1);
        for frame in (first..gpa + length as u64).step_by(FRAME_SIZE) {
            if self.ram.is_code(frame) {
                self.code.insert(frame);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_frames_that_are_written_are_noted_once() {
        let ram = GuestRam::new(1 << 20).unwrap();
        ram.mark_code(0x2000);
        ram.mark_code(0x5000);
        let mut dma = Dma::new(&ram);
        assert_eq!(dma.write(0x1000, &[1; 0x1001]), Some(()), "reaches one byte into the frame");
        assert_eq!(dma.write(0x2ffe, &[1; 2]), Some(()));
        assert_eq!(dma.write(0x4fff, &[1]), Some(()), "ends right before one");
        assert_eq!(dma.store_u16(0x6000, 1), Some(()));
        assert_eq!(dma.write((1 << 20) - 1, &[1, 2]), None);
        dma.wrote(0x4ff0, 0x10);
        dma.wrote(0x3000, 0x2001);
        assert_eq!(dma.into_code_frames(), [0x2000, 0x5000]);
    }
}
