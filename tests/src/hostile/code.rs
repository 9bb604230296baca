//! Code that a hostile guest may run: the instructions that touch the processor's own state, ordinary ones, branches to
//! anywhere, and noise.

use rand::Rng;
use rand::rngs::SmallRng;

use super::values::{place, selector, tame, word};
use crate::generate::Generator;

/// Writes code from a generator of ordinary instructions and from templates.
pub struct Writer {
    ordinary: Generator,
}

/// What may be written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Taste {
    /// Anything at all.
    Wild,
    /// Only what both engines must agree on to the last bit, and mostly what goes on for a while.
    Exact,
}

impl Writer {
    /// A writer whose choices follow from `seed`. `exact` leaves out instructions that leave flags undefined.
    pub fn new(seed: u64, taste: Taste) -> Self {
        let flags = |code: iced_x86::Code| {
            let mut insn = iced_x86::Instruction::new();
            insn.set_code(code);
            insn.rflags_undefined()
        };
        Self { ordinary: Generator::new(seed, |code, _| taste == Taste::Wild || flags(code) == 0) }
    }

    /// `length` bytes or a few more.
    pub fn code(&mut self, rng: &mut SmallRng, length: usize, taste: Taste) -> Vec<u8> {
        let mut out = Vec::with_capacity(length + 32);
        while out.len() < length {
            match (rng.random_range(0..16), taste) {
                (0..=4, _) => self.ordinary(rng, &mut out, taste),
                (5 | 6, _) => data(rng, &mut out),
                (7 | 8, _) => branch(rng, &mut out, taste),
                (9, _) => string(rng, &mut out),
                (10, Taste::Wild) => noise(rng, &mut out),
                (11 | 12, Taste::Exact) => data(rng, &mut out),
                (13, Taste::Exact) if rng.random_ratio(1, 6) => out.push(0xf4),
                (_, Taste::Exact) => self.ordinary(rng, &mut out, taste),
                _ => system(rng, &mut out),
            }
        }
        out
    }

    fn ordinary(&mut self, rng: &mut SmallRng, out: &mut Vec<u8>, taste: Taste) {
        let generated = match rng.random_ratio(1, 8) && taste == Taste::Wild {
            true => self.ordinary.damaged(),
            false => self.ordinary.single(),
        };
        if taste == Taste::Wild || generated.undefined == 0 {
            out.extend(generated.case.code);
        }
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
}

fn put32(out: &mut Vec<u8>, bytes: &[u8], value: u32) {
    put(out, bytes);
    put(out, &value.to_le_bytes());
}

/// A general register, mostly not ESP.
fn register(rng: &mut SmallRng) -> u8 {
    match rng.random_range(0..8) {
        4 if rng.random_ratio(3, 4) => 6,
        r => r,
    }
}

/// Moves between registers and memory, pushes and pops, loads of addresses.
fn data(rng: &mut SmallRng, out: &mut Vec<u8>) {
    let r = register(rng);
    match rng.random_range(0..10) {
        0 => put32(out, &[0xb8 + r], word(rng)),
        1 | 2 => put32(out, &[0xb8 + r], tame(rng)),
        3 => put32(out, &[0xa1 + 2 * rng.random_range(0..2)], tame(rng)),
        4 => put32(out, &[0x89, r << 3 | 5], tame(rng)),
        5 => put32(out, &[0x01, r << 3 | 5], tame(rng)),
        6 => put(out, &[0x50 + r]),
        7 => put(out, &[0x58 + r]),
        8 => put(out, &[0x8b, 0x40 | r << 3 | 5, rng.random()]),
        // A store to code: mov byte [imm32], imm8.
        _ => {
            put32(out, &[0xc6, 0x05], place::CODE + rng.random_range(0..place::CODE_PAGES * 0x1000));
            out.push(rng.random());
        }
    }
}

fn branch(rng: &mut SmallRng, out: &mut Vec<u8>, taste: Taste) {
    let near = |rng: &mut SmallRng| rng.random_range(-0x3000i32..0x3000) as u32;
    match rng.random_range(0..12) {
        0 => put(out, &[0xeb, rng.random()]),
        1..=3 => put(out, &[0x70 | rng.random_range(0..16), rng.random_range(0..60)]),
        4 => put(out, &[0x70 | rng.random_range(0..16), rng.random()]),
        5 => put32(out, &[0xe9], near(rng)),
        6 => put32(out, &[0xe8], near(rng)),
        7 => put32(out, &[0x0f, 0x80 | rng.random_range(0..16)], near(rng)),
        // A short loop with a count: mov ecx, n; …; loop.
        8 => {
            put32(out, &[0xb9], rng.random_range(1..64));
            put(out, &[0x40, 0x8d, 0x76, 4, 0xe2, 0xfa]);
        }
        9 => put(out, &[0xc3]),
        // push target; ret.
        10 => {
            put32(out, &[0x68], place::CODE + rng.random_range(0..place::CODE_PAGES * 0x1000));
            out.push(0xc3);
        }
        _ if taste == Taste::Exact => put(out, &[0xe3, rng.random_range(0..20)]),
        _ => {
            put32(out, &[0xb8], word(rng));
            put(out, &[0xff, [0xe0, 0xd0, 0x20, 0x10][rng.random_range(0..4)]]);
        }
    }
}

/// String instructions with counts from none to all there are.
fn string(rng: &mut SmallRng, out: &mut Vec<u8>) {
    if rng.random_ratio(1, 6) {
        out.push([0xfc, 0xfd][rng.random_range(0..2)]);
    }
    let huge = rng.random_ratio(1, 5);
    put32(out, &[0xb9], if huge { word(rng) } else { rng.random_range(0..0x800) });
    for r in [0xbe, 0xbf] {
        put32(out, &[r], if huge { word(rng) } else { tame(rng) });
    }
    if rng.random_ratio(1, 8) {
        out.push(0x67);
    }
    if rng.random_ratio(1, 6) {
        out.push(0x66);
    }
    out.push([0xf2, 0xf3, 0xf3, 0x90][rng.random_range(0..4)]);
    out.push([0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf][rng.random_range(0..10)]);
}

fn noise(rng: &mut SmallRng, out: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..8) {
        out.push(rng.random());
    }
}

/// Instructions that change or show the processor's state.
fn system(rng: &mut SmallRng, out: &mut Vec<u8>) {
    let r = register(rng);
    match rng.random_range(0..34) {
        // CR3 and CR0, CR4 with bits flipped.
        0 | 1 => {
            let directory = place::DIRECTORIES + 0x1000 * rng.random_range(0..place::DIRECTORY_COUNT);
            put32(out, &[0xb8], if rng.random_ratio(1, 3) { word(rng) } else { directory });
            put(out, &[0x0f, 0x22, 0xd8]);
        }
        2 => put(out, &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8]),
        3 | 4 => {
            let bit = [0, 1, 2, 3, 5, 16, 18, 29, 30, 31][rng.random_range(0..10)];
            put32(out, &[0x0f, 0x20, 0xc0, 0x35], 1 << bit);
            put(out, &[0x0f, 0x22, 0xc0]);
        }
        5 | 6 => {
            let bit = rng.random_range(0..22);
            put32(out, &[0x0f, 0x20, 0xe0, 0x35], 1 << bit);
            put(out, &[0x0f, 0x22, 0xe0]);
        }
        7 => put(out, &[0x0f, [0x20, 0x22, 0x21, 0x23][rng.random_range(0..4)], 0xc0 | rng.random_range(0..64)]),
        8 => put32(out, &[0x0f, 0x01, rng.random_range(0..8) << 3 | 5], word(rng)),
        9 => put(out, &[0x0f, rng.random_range(0..2), 0xc0 | rng.random_range(0..8) << 3 | r]),
        10 => put32(out, &[0x0f, 0x01, 0x3d], word(rng)),
        11 => {
            put32(out, &[0xb8], selector(rng).into());
            put(out, &[0x8e, 0xc0 | rng.random_range(0..6) << 3]);
        }
        12 => {
            put32(out, &[0x9a + 0x50 * rng.random_range(0..2)], word(rng));
            put(out, &selector(rng).to_le_bytes());
        }
        13 => put(out, &[0xcd, rng.random()]),
        14 => out.push([0xcc, 0xce, 0xf1, 0xcf, 0xcb, 0x9b][rng.random_range(0..6)]),
        15 => out.push([0xfa, 0xfb, 0xf4, 0x9c, 0x9d, 0xfb][rng.random_range(0..6)]),
        // Flags from a word: TF, NT, AC, IOPL and VM among them.
        16 => {
            put32(out, &[0x68], rng.random::<u32>() & 0x3f_7fd5);
            out.push(0x9d);
        }
        // A whole return frame from words.
        17 => {
            for _ in 0..4 {
                put32(out, &[0x68], word(rng));
            }
            put32(out, &[0x68], selector(rng).into());
            put32(out, &[0x68], rng.random::<u32>() & 0x3f_7fd5);
            put32(out, &[0x68], selector(rng).into());
            put32(out, &[0x68], place::CODE + rng.random_range(0..place::CODE_PAGES * 0x1000));
            out.push([0xcf, 0xcb, 0xca][rng.random_range(0..3)]);
        }
        // IN and OUT at every port.
        18 | 19 => {
            put32(out, &[0xba], port(rng));
            put(out, &[[0xec, 0xed, 0xee, 0xef][rng.random_range(0..4)]]);
        }
        20 => put(out, &[[0xe4, 0xe5, 0xe6, 0xe7][rng.random_range(0..4)], rng.random()]),
        21 => {
            put32(out, &[0xba], port(rng));
            put32(out, &[0xb9], word(rng));
            put(out, &[0xf3, 0x6c + rng.random_range(0..4)]);
        }
        22 | 23 => {
            put32(out, &[0xb9], msr(rng));
            put(out, &[0x0f, [0x30, 0x32][rng.random_range(0..2)]]);
        }
        24 => put(out, &[0x0f, [0xa2, 0x31, 0x33, 0x05, 0x34, 0x35, 0x06, 0x08, 0x09, 0x0b][rng.random_range(0..10)]]),
        25 => put(out, &[0x0f, 0x01, rng.random_range(0xc0..=0xff)]),
        // FXSAVE, FXRSTOR, XSAVE, XRSTOR, LDMXCSR, CLFLUSH, …
        26 => put32(out, &[0x0f, [0xae, 0xc7][rng.random_range(0..2)], rng.random_range(0..8) << 3 | 5], tame(rng)),
        27 => {
            put32(out, &[[0xd9, 0xdd, 0xdb, 0xdf][rng.random_range(0..4)], rng.random_range(0..8) << 3 | 5], tame(rng))
        }
        28 => put(out, &[0x0f, 0xa0 | rng.random_range(0..2) << 3 | rng.random_range(0..2)]),
        29 => put(out, &[0xc8, rng.random(), rng.random(), rng.random_range(0..40)]),
        30 => put32(out, &[0xc5 - rng.random_range(0..2), r << 3 | 5], tame(rng)),
        31 => put32(out, &[0xbc], word(rng)),
        32 => put32(out, &[0x62, r << 3 | 5], tame(rng)),
        _ => put(out, &[0x0f, rng.random_range(2..4), 0xc0 | r << 3 | register(rng)]),
    }
}

fn port(rng: &mut SmallRng) -> u32 {
    const KNOWN: [u32; 30] = [
        0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x64, 0x61, 0x70, 0x71, 0x92, 0x3f8, 0x3f9, 0x3fa, 0x3fb,
        0x3fc, 0x3fd, 0xcf8, 0xcfc, 0xcf9, 0x510, 0x511, 0x514, 0x600, 0x604, 0x608, 0xf4,
    ];
    match rng.random_range(0..4) {
        0 => rng.random_range(0..0x1_0000),
        1 => rng.random_range(0..0x700),
        _ => KNOWN[rng.random_range(0..KNOWN.len())] + rng.random_range(0..2),
    }
}

fn msr(rng: &mut SmallRng) -> u32 {
    const KNOWN: [u32; 14] =
        [0x10, 0x1b, 0x174, 0x175, 0x176, 0x1a0, 0x277, 0x2ff, 0x6e0, 0xc000_0080, 0xc000_0103, 0x48, 0x1d9, 0x3b];
    match rng.random_range(0..4) {
        0 => rng.random_range(0x200..0x270),
        1 => rng.random_range(0x800..0x840),
        2 => rng.random(),
        _ => KNOWN[rng.random_range(0..KNOWN.len())],
    }
}

/// What exception handlers may do: end, return, step over, go on elsewhere.
pub fn handler(rng: &mut SmallRng, has_error: bool, ends: bool) -> Vec<u8> {
    let mut out = Vec::new();
    if has_error && rng.random_ratio(7, 8) {
        put(&mut out, &[0x83, 0xc4, 4]);
    }
    match rng.random_range(0..8) {
        0 if ends => out.push(0xf4),
        1 => out.push(0xcf),
        // Go on in a random place of the code.
        2 | 3 => {
            put32(&mut out, &[0xc7, 0x04, 0x24], place::CODE + rng.random_range(0..place::CODE_PAGES * 0x1000));
            out.push(0xcf);
        }
        // Step over one or more bytes of what faulted.
        _ => put(&mut out, &[0x83, 0x04, 0x24, rng.random_range(1..6), 0xcf]),
    }
    out
}
