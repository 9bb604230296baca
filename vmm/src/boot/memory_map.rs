//! The physical memory map as firmware reports it (INT 15h, AX=E820h; ACPI 6.5, §15).

use super::layout;
use crate::mmu::{GuestRam, LOW_RAM_LIMIT};

/// Usable RAM.
pub const RAM: u32 = 1;
/// Not to be touched.
pub const RESERVED: u32 = 2;

/// One entry of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// [`RAM`] or [`RESERVED`].
    pub kind: u32,
}

/// The map of a board with this RAM, in ascending order.
pub fn regions(ram: &GuestRam) -> Vec<Region> {
    let region = |start: u64, end: u64, kind| Region { start, size: end.saturating_sub(start), kind };
    let mut map = vec![
        region(0, layout::EBDA, RAM),
        region(layout::EBDA, 0xa_0000, RESERVED),
        region(layout::TABLES, layout::HIGH_START, RESERVED),
        region(layout::HIGH_START, ram.low_size(), RAM),
        // IOAPIC, HPET, local APIC and the firmware's flash, as every PC reports them.
        region(0xfec0_0000, 0x1_0000_0000, RESERVED),
    ];
    debug_assert!(ram.low_size() <= LOW_RAM_LIMIT);
    if ram.high_size() > 0 {
        map.push(Region { start: 0x1_0000_0000, size: ram.high_size(), kind: RAM });
    }
    map.retain(|r| r.size > 0);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_ascend_and_do_not_overlap() {
        for size in [1u64 << 20, 16 << 20, LOW_RAM_LIMIT, LOW_RAM_LIMIT + (512 << 20)] {
            let ram = GuestRam::new(size).unwrap();
            let map = regions(&ram);
            assert!(map.windows(2).all(|w| w[0].start + w[0].size <= w[1].start), "{map:x?}");
            let usable: u64 = map.iter().filter(|r| r.kind == RAM).map(|r| r.size).sum();
            assert_eq!(usable, size - (1 << 20) + layout::EBDA);
        }
    }
}
