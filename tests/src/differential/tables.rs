//! Page tables of both formats.

use super::board::{PRESENT, TABLES, USER, WRITABLE};
use crate::oracle::layout::PAGE;

/// Page tables being built, at [`TABLES`].
pub(super) struct Tables {
    /// Entries of eight bytes, in three levels.
    pub pae: bool,
    /// The tables.
    pub bytes: Vec<u8>,
    /// Next free page.
    pub next: usize,
}

impl Tables {
    fn entry(&self, at: usize) -> u64 {
        let size = if self.pae { 8 } else { 4 };
        let mut b = [0; 8];
        b[..size].copy_from_slice(&self.bytes[at..at + size]);
        u64::from_le_bytes(b)
    }
    /// Sets the entry at offset `at`.
    pub fn set(&mut self, at: usize, value: u64) {
        let size = if self.pae { 8 } else { 4 };
        self.bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
    /// Maps a page with the entry bits `flags`.
    pub fn map(&mut self, linear: u32, physical: u64, flags: u64) {
        let page = PAGE as usize;
        let (directory, at) = match self.pae {
            true => {
                (page * (1 + (linear >> 30) as usize) + 8 * (linear >> 21 & 0x1ff) as usize, 8 * (linear >> 12 & 0x1ff))
            }
            false => (4 * (linear >> 22) as usize, 4 * (linear >> 12 & 0x3ff)),
        };
        if self.entry(directory) == 0 {
            self.set(directory, (TABLES + (self.next * page) as u64) | PRESENT | WRITABLE | USER);
            self.next += 1;
        }
        let table = (self.entry(directory) & 0xf_f000) - TABLES;
        let mask = if self.pae { u64::MAX } else { u32::MAX as u64 };
        self.set(table as usize + at as usize, (physical | flags) & mask);
    }
}
