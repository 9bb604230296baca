//! Gates for loads of DS, ES, FS and GS.

use super::memory::{Finder, Word};
use crate::cpu::Segment;

/// Remembered loads of one segment register; which one a selector gets is bits 3 to 5 of it.
pub const LOADS: usize = 8;

/// The remembered load of a selector into a segment register.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
pub struct Load {
    /// Minus the sum of the branch table's address before it and the selector shifted left by 48. Zero: nothing.
    pub key: u64,
    /// Host address of the descriptor, or of eight zero bytes for a null selector.
    pub descriptor: u64,
    /// Minus the descriptor.
    pub raw: u64,
    /// What is added to the branch table's address: another mode may hold after it.
    pub change: u64,
    /// The register then.
    pub segment: Segment,
}

impl Load {
    /// The load of `segment` by which one branch table followed another; `null` are eight zero bytes. None if its
    /// descriptor cannot be compared.
    pub fn of(segment: Segment, tables: (u64, u64), null: &u64, finder: &mut Finder<'_>) -> Option<Self> {
        let word = match segment.usable() {
            true => finder.descriptor(segment)?,
            false => Word { place: std::ptr::from_ref(null) as u64, value: 0 },
        };
        Some(Self {
            key: tables.0.wrapping_add((segment.selector as u64) << 48).wrapping_neg(),
            descriptor: word.place,
            raw: word.value.wrapping_neg(),
            change: tables.1.wrapping_sub(tables.0),
            segment,
        })
    }

    /// Its place among the loads of its register.
    pub fn place(&self) -> usize {
        self.segment.selector as usize >> 3 & (LOADS - 1)
    }
}
