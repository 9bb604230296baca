//! Numbers that hurt: addresses at edges, of tables and of devices, counts that run past everything.

use rand::Rng;
use rand::rngs::SmallRng;

/// Where the parts of a hostile machine lie in its RAM.
pub mod place {
    #![allow(missing_docs)]
    pub const GDT: u32 = 0x1000;
    pub const IDT: u32 = 0x2000;
    pub const TSS: u32 = 0x3000;
    pub const LDT: u32 = 0x5000;
    pub const PDPT: u32 = 0xf000;
    /// Under PAE four directories; else the first is the directory, and the others are further address spaces.
    pub const DIRECTORIES: u32 = 0x1_0000;
    pub const DIRECTORY_COUNT: u32 = 4;
    pub const TABLES: u32 = 0x1_4000;
    pub const TABLE_COUNT: u32 = 12;
    pub const TABLES_END: u32 = TABLES + TABLE_COUNT * 0x1000;
    pub const STACK: u32 = 0x8_0000;
    pub const DATA: u32 = 0x9_0000;
    pub const CODE: u32 = 0x10_0000;
    pub const CODE_PAGES: u32 = 16;
    pub const HANDLERS: u32 = CODE + CODE_PAGES * 0x1000;
    pub const HANDLER_SIZE: u32 = 32;
    pub const HANDLER_COUNT: u32 = 64;
}

const EDGES: [u32; 26] = [
    0,
    1,
    2,
    0xfff,
    0xffe,
    0x1000,
    0xffff,
    0xffff_ffff,
    0xffff_fffe,
    0xffff_fffc,
    0xffff_f000,
    0xbfff_fffe,
    0xbfff_fffd,
    0xc000_0000,
    0xc010_0000,
    0x8000_0000,
    0x7fff_ffff,
    0xfee0_0000,
    0xfee0_0300,
    0xfec0_0000,
    0xfec0_0010,
    0xfed0_0000,
    0xfed0_00f0,
    0x00ff_fffe,
    0x0100_0000,
    0x0030_0000,
];

/// A word that an address, a count or an operand may be.
pub fn word(rng: &mut SmallRng) -> u32 {
    match rng.random_range(0..10) {
        0 | 1 => EDGES[rng.random_range(0..EDGES.len())],
        2 => EDGES[rng.random_range(0..EDGES.len())].wrapping_add(rng.random_range(0..64)).wrapping_sub(32),
        3 => rng.random(),
        4 => rng.random_range(0..64),
        5 => place::CODE + rng.random_range(0..place::CODE_PAGES * 0x1000),
        6 => place::GDT + rng.random_range(0..0x5000),
        7 => place::PDPT + rng.random_range(0..place::TABLES_END - place::PDPT),
        8 => place::DATA + rng.random_range(0..0x1_0000),
        _ => place::STACK.wrapping_sub(rng.random_range(0..0x100)),
    }
}

/// A word that mostly points at memory a machine may spoil without ending at once.
pub fn tame(rng: &mut SmallRng) -> u32 {
    let high = if rng.random_ratio(1, 4) { 0xc000_0000 } else { 0 };
    high + place::DATA + rng.random_range(0..0xf000)
}

/// A selector: mostly one of the table's first entries.
pub fn selector(rng: &mut SmallRng) -> u16 {
    match rng.random_range(0..8) {
        0 => rng.random(),
        1 => rng.random_range(0..4),
        _ => rng.random_range(0..24) << 3 | rng.random_range(0..8) & if rng.random_ratio(1, 4) { 7 } else { 3 },
    }
}
