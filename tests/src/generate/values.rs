//! Values that make instructions interesting: edges as often as noise.

use rand::rngs::SmallRng;
use rand::{Rng, RngCore};

use crate::oracle::layout::{DATA, DATA_BYTES, DATA_END, PAGE, READ_ONLY, XSAVE_BYTES};

const EDGES: [u32; 14] =
    [0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff];

/// A general register's value.
pub fn word(rng: &mut SmallRng) -> u32 {
    match rng.random_range(0..4) {
        0 => EDGES[rng.random_range(0..EDGES.len())],
        1 => rng.random_range(0..64),
        _ => rng.next_u32(),
    }
}

/// Single-precision bits: special values, small integers or noise.
fn single(rng: &mut SmallRng) -> u32 {
    let special = [
        0,
        0x8000_0000,
        0x3f80_0000,
        0xbf80_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0x7f80_0001,
        0xffc1_2345,
        1,
        0x807f_ffff,
        0x0080_0000,
        0x7f7f_ffff,
        0x4f00_0000,
        0xcf00_0000,
    ];
    match rng.random_range(0..4) {
        0 => special[rng.random_range(0..special.len())],
        1 => (rng.random_range(-1000..1000) as f32 / 8.0).to_bits(),
        2 => rng.random_range(0x3000_0000..0x5000_0000) | (rng.next_u32() & 0x8000_0000),
        _ => rng.next_u32(),
    }
}

/// Double-precision bits.
fn double(rng: &mut SmallRng) -> u64 {
    match rng.random_range(0..4) {
        0 | 1 => (f32::from_bits(single(rng)) as f64).to_bits(),
        2 => [1, 0x000f_ffff_ffff_ffff, 0x0010_0000_0000_0000, 0x7fef_ffff_ffff_ffff, 0x7ff0_0000_0000_0001]
            [rng.random_range(0..5)],
        _ => rng.next_u64(),
    }
}

/// Fills `to` (a multiple of eight bytes) with lanes of one kind.
pub fn lanes(rng: &mut SmallRng, to: &mut [u8]) {
    let kind = rng.random_range(0..6);
    for lane in to.chunks_exact_mut(8) {
        let value = match kind {
            0 | 1 => single(rng) as u64 | (single(rng) as u64) << 32,
            2 | 3 => double(rng),
            4 => word(rng) as u64 | (word(rng) as u64) << 32,
            _ => rng.next_u64(),
        };
        lane.copy_from_slice(&value.to_le_bytes());
    }
}

/// An 80-bit value: finite, special, or one of the encodings that no instruction makes.
fn extended(rng: &mut SmallRng, to: &mut [u8]) {
    let (exponent, fraction): (u16, u64) = match rng.random_range(0..8) {
        0 => (0, 0),
        1 => (0x7fff, 1 << 63),
        2 => (0x7fff, rng.next_u64() | 1 << 63),
        3 => (0, rng.next_u64()),
        4 => (rng.random_range(0..0x8000), rng.next_u64()),
        5 => (0x3fff + rng.random_range(0..70), (rng.random_range(0..1000u64) << 53) | 1 << 63),
        _ => (rng.random_range(0x3fc0..0x4040), rng.next_u64() | 1 << 63),
    };
    let sign = rng.random_range(0..2u16) << 15;
    to[..8].copy_from_slice(&fraction.to_le_bytes());
    to[8..10].copy_from_slice(&(exponent | sign).to_le_bytes());
}

/// A whole XSAVE area. Most have exceptions masked, some do not, a few have an x87 exception pending.
pub fn xsave(rng: &mut SmallRng) -> Vec<u8> {
    let mut area = vec![0; XSAVE_BYTES as usize];
    let control: u16 = if rng.random_ratio(4, 5) { 0x7f } else { 0x40 | rng.random_range(0..0x40) };
    let control =
        control | [0x300, 0x200, 0][[0, 0, 0, 1, 2][rng.random_range(0..5)]] | rng.random_range(0..4u16) << 10;
    let flags: u16 = if rng.random_ratio(1, 4) { rng.random_range(0..0x80) } else { 0 };
    let flags = if rng.random_ratio(9, 10) { flags & (control | 0x40) } else { flags };
    let pending = if flags & !control & 0x3f != 0 { 0x8080 } else { 0 };
    let status = flags | pending | (rng.next_u32() as u16 & 0x7f00);
    area[0..2].copy_from_slice(&control.to_le_bytes());
    area[2..4].copy_from_slice(&status.to_le_bytes());
    area[4] = [0xff, 0, rng.next_u32() as u8, 0x80, 0xf0][rng.random_range(0..5)];
    area[6..8].copy_from_slice(&rng.random_range(0..0x800u16).to_le_bytes());
    area[8..12].copy_from_slice(&rng.next_u32().to_le_bytes());
    area[16..20].copy_from_slice(&rng.next_u32().to_le_bytes());
    let masks = if rng.random_ratio(4, 5) { 0x1f80 } else { rng.random_range(0..0x40) << 7 };
    let sticky = if rng.random_ratio(1, 4) { rng.random_range(0..0x40) } else { 0 };
    let modes = if rng.random_ratio(1, 4) { rng.next_u32() & 0xe040 } else { 0 };
    area[24..28].copy_from_slice(&(masks | sticky | modes).to_le_bytes());
    for i in 0..8 {
        extended(rng, &mut area[32 + 16 * i..]);
        lanes(rng, &mut area[160 + 16 * i..][..16]);
        lanes(rng, &mut area[576 + 16 * i..][..16]);
    }
    area[512] = 7;
    area
}

/// What the writable data pages hold: lanes of every kind.
pub fn image(rng: &mut SmallRng) -> Vec<u8> {
    let mut image = vec![0; DATA_BYTES];
    for run in image.chunks_exact_mut(64) {
        match rng.random_range(0..4) {
            0 => (0..4).for_each(|i| extended(rng, &mut run[16 * i..])),
            _ => lanes(rng, run),
        }
    }
    image
}

/// An address for a memory operand: mostly inside, often on an edge.
pub fn target(rng: &mut SmallRng) -> u32 {
    let near =
        |rng: &mut SmallRng, edge: u32| edge.wrapping_sub(rng.random_range(0..66)).wrapping_add(rng.random_range(0..4));
    match rng.random_range(0..40) {
        0 => near(rng, DATA + PAGE),
        1 => near(rng, READ_ONLY),
        2 => near(rng, DATA_END),
        3 => READ_ONLY + rng.random_range(0..PAGE - 64),
        4 => DATA.wrapping_sub(rng.random_range(0..64)),
        5 => [0x6000_0000, 0, 0xffff_fff8, 0xc000_0000, 0x7000_0000][rng.random_range(0..5)],
        6..=12 => DATA + rng.random_range(0..2 * PAGE - 600),
        _ => (DATA + rng.random_range(0..2 * PAGE - 600)) & !0x3f,
    }
}
