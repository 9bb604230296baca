//! Descriptor tables, task state segments and page tables, sane or not.

use rand::Rng;
use rand::rngs::SmallRng;

use super::machine::Paging;
use super::values::{place, selector, word};

/// One descriptor: access byte and flags as given.
fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> [u8; 8] {
    let value = limit as u64 & 0xffff
        | (base as u64 & 0xff_ffff) << 16
        | (access as u64) << 40
        | (limit as u64 >> 16 & 0xf) << 48
        | (flags as u64) << 52
        | (base as u64 >> 24) << 56;
    value.to_le_bytes()
}

fn gate(rng: &mut SmallRng, kind: u8, selector: u16, offset: u32) -> [u8; 8] {
    let access = 0x80 | [0x60, 0x60, 0, 0x20][rng.random_range(0..4)] | kind;
    let count = if kind & 7 == 4 { rng.random_range(0..32) } else { 0 };
    let value = offset as u64 & 0xffff
        | (selector as u64) << 16
        | (count as u64) << 32
        | (access as u64) << 40
        | (offset as u64 >> 16) << 48;
    value.to_le_bytes()
}

fn handler_address(index: u32) -> u32 {
    place::HANDLERS + place::HANDLER_SIZE * (index % place::HANDLER_COUNT)
}

fn random_descriptor(rng: &mut SmallRng) -> [u8; 8] {
    match rng.random_range(0..6) {
        0 => rng.random(),
        1 => {
            let (kind, to) = ([4, 5, 6, 7, 12, 14, 15][rng.random_range(0..7)], selector(rng));
            gate(rng, kind, to, handler_address(40))
        }
        2 => {
            let base = place::TSS + 0x80 * rng.random_range(0..16);
            descriptor(base, [0x67, 0x2b, 0x20, 0xffff][rng.random_range(0..4)], 0x80 | rng.random_range(0..12), 0)
        }
        3 => descriptor(word(rng), rng.random::<u32>() & 0xf_ffff, rng.random(), rng.random_range(0..16)),
        _ => descriptor(0, 0xf_ffff, 0x90 | rng.random_range(0..4) << 5 | rng.random_range(0..16), 0xc),
    }
}

pub(super) fn descriptors(rng: &mut SmallRng, count: usize) -> Vec<u8> {
    (0..count).flat_map(|_| random_descriptor(rng)).collect()
}

pub(super) fn gdt(rng: &mut SmallRng, exact: bool) -> Vec<u8> {
    let flat = |dpl: u8, kind: u8, flags| descriptor(0, 0xf_ffff, 0x90 | dpl << 5 | kind, flags);
    let mut table = vec![
        [0; 8],
        flat(0, 0xb, 0xc),
        flat(0, 3, 0xc),
        flat(3, 0xb, 0xc),
        flat(3, 3, 0xc),
        descriptor(place::TSS, 0x2067, 0x8b, 0),
        descriptor(place::LDT, 0x1ff, 0x82, 0),
        flat(0, 0xb, 8),
        flat(0, 3, 8),
        gate(rng, 12, 8, handler_address(40)),
        gate(rng, 5, 11 << 3, 0),
        descriptor(place::TSS + 0x100, 0x67, 0x89, 0),
        flat(1, 0xb, 0xc),
        flat(1, 3, 0xc),
        flat(2, 0xb, 0xc),
        flat(2, 3, 0xc),
        descriptor(place::DATA, 0xffff, 0x93, 4),
        descriptor(place::TSS + 0x200, 0x67, 0x89, 0),
    ];
    while table.len() < 512 {
        table.push(random_descriptor(rng));
    }
    if rng.random_ratio(1, 3) && !exact {
        for _ in 0..rng.random_range(1..12) {
            let (entry, bit) = (rng.random_range(1..18), rng.random_range(0..64));
            table[entry][bit / 8] ^= 1 << (bit % 8);
        }
    }
    table.concat()
}

pub(super) fn idt(rng: &mut SmallRng, exact: bool) -> Vec<u8> {
    let all = (0..256).map(|vector| match rng.random_range(0..24) {
        0 if !exact => random_descriptor(rng),
        1 if !exact => gate(rng, 5, [10 << 3, 11 << 3, 17 << 3, 5 << 3][vector as usize % 4], 0),
        2 if !exact => gate(rng, [6, 7][vector as usize % 2], 8, handler_address(vector)),
        3 => gate(rng, 15, 8, handler_address(vector)),
        4 if !exact => {
            let to = selector(rng) & !3;
            gate(rng, 14, to, handler_address(vector))
        }
        _ => gate(rng, 14, 8, handler_address(vector)),
    });
    all.collect::<Vec<_>>().concat()
}

/// Task state segments, 0x80 bytes apart: stacks for each ring, and tasks that might be switched to.
pub(super) fn tss(rng: &mut SmallRng) -> Vec<u8> {
    let mut all = vec![0; 0x2000];
    for task in 0..16usize {
        let mut put = |at: usize, value: u32| {
            all[task * 0x80 + at..task * 0x80 + at + 4].copy_from_slice(&value.to_le_bytes());
        };
        for ring in 0..3usize {
            put(4 + 8 * ring, place::STACK - 0x2000 - 0x800 * ring as u32);
            put(8 + 8 * ring, [0x10, 0x69, 0x7a][ring]);
        }
        put(0, selector(rng) as u32);
        put(0x1c, if rng.random_ratio(3, 4) { place::DIRECTORIES } else { word(rng) });
        put(0x20, handler_address(rng.random_range(0..64)));
        put(0x24, rng.random::<u32>() & 0x3f_7fd5);
        for register in 0..8 {
            put(0x28 + 4 * register, word(rng));
        }
        for which in 0..6 {
            let sane = if which == 1 { 8 } else { 0x10 };
            put(0x48 + 4 * which, if rng.random_ratio(3, 4) { sane } else { selector(rng) as u32 });
        }
        put(0x60, [0, 0x30][rng.random_range(0..2)]);
        put(0x64, rng.random::<u32>() & 0x0fff_0001);
    }
    let tail = all.len() - 0x1000;
    rng.fill(&mut all[tail..]);
    all
}

/// An entry that means trouble: outside RAM, a device, a table, itself, reserved bits.
fn trouble(rng: &mut SmallRng, own: u32, wide: bool) -> u64 {
    let flags = rng.random_range(0..0x1000u64) | 1;
    let address: u64 = match rng.random_range(0..8) {
        0 => 0xfee0_0000,
        1 => 0xfec0_0000,
        2 => 0xfed0_0000,
        3 => own as u64,
        4 => (place::PDPT + 0x1000 * rng.random_range(0..16)) as u64,
        5 => rng.random::<u32>() as u64,
        6 if wide => rng.random::<u64>() & 0x800f_ffff_ffff_f000,
        _ => 0xc000_0000,
    };
    (address & !0xfff) | flags
}

pub(super) fn paging_tables(rng: &mut SmallRng, paging: Paging, memory: u64, exact: bool) -> Vec<(u64, Vec<u8>)> {
    if paging == Paging::Off {
        return Vec::new();
    }
    let wide = paging == Paging::Pae;
    let (size, count) = if wide { (8, 512u32) } else { (4, 1024) };
    let odds = if exact { 0 } else { [0, 0, 1, 8][rng.random_range(0..4)] };
    let mut all = Vec::new();
    let mut entry_bytes = |at: u32, entries: Vec<u64>| {
        let bytes = entries.iter().flat_map(|e| e.to_le_bytes()[..size].to_vec()).collect();
        all.push((at as u64, bytes));
    };
    if wide {
        let present = |rng: &mut SmallRng| u64::from(exact || rng.random_ratio(7, 8));
        let entries = (0..4).map(|i| (place::DIRECTORIES + 0x1000 * i) as u64 | present(rng)).collect();
        entry_bytes(place::PDPT, entries);
    }
    let flags = |rng: &mut SmallRng| match rng.random_range(0..16) {
        0 if !exact => rng.random_range(0..0x200u64),
        1 => 0x67 & !2,
        2 => 0x67 & !4,
        3 => 0x07,
        4 => 0x167,
        _ => 0x67,
    };
    let per_large = if wide { 21 } else { 22 };
    for directory in 0..place::DIRECTORY_COUNT {
        let own = place::DIRECTORIES + 0x1000 * directory;
        let entries = (0..count).map(|i| {
            // Under PAE the fourth directory is the kernel's half; else entry 768 on is.
            let high = if wide { directory == 3 } else { i >= 768 };
            let slot = if wide || i < 768 { i } else { i - 768 };
            if rng.random_range(0..64) < odds {
                return trouble(rng, own, wide);
            }
            if slot < 4 && (high || directory == 0 || !wide) {
                // The first table maps what the machine needs; the others are aliases and noise.
                let table = if slot == 0 { if high { 1 } else { 0 } } else { rng.random_range(0..place::TABLE_COUNT) };
                return (place::TABLES + 0x1000 * table) as u64 | 0x67;
            }
            match rng.random_range(0..12) {
                0 => (rng.random_range(0..(memory >> per_large).max(2)) << per_large) | flags(rng) | 0x80,
                1 | 2 => (place::TABLES + 0x1000 * rng.random_range(2..place::TABLE_COUNT)) as u64 | flags(rng),
                _ => 0,
            }
        });
        let entries = entries.collect();
        entry_bytes(own, entries);
    }
    for table in 0..place::TABLE_COUNT {
        let own = place::TABLES + 0x1000 * table;
        let entries = (0..count).map(|i| match table {
            0 | 1 if rng.random_range(0..256) >= odds => (i as u64) << 12 | if exact { 0x67 } else { flags(rng) | 1 },
            _ if rng.random_range(0..32) < odds => trouble(rng, own, wide),
            // Aliases of code and data, a run or scattered.
            2 | 3 => ((place::CODE >> 12) as u64 + i as u64 % 16) << 12 | flags(rng),
            _ => rng.random_range(0..memory >> 12) << 12 | flags(rng),
        });
        let entries = entries.collect();
        entry_bytes(own, entries);
    }
    all
}
