//! Hostile kernel and initrd files: valid ones with fields changed, cut short or filled with noise. Loading must end with
//! an entry inside RAM or an error, soon, and write no byte outside RAM (which the loader's own copies check).

use std::fs::File;
use std::io::{Seek, Write};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use vmm::boot::{BootError, Image, Payload};
use vmm::cpu::CpuState;
use vmm::mmu::GuestRam;

use super::values::word;

/// Time that identifying and loading may take.
const WITHIN: Duration = Duration::from_secs(2);
/// Files are up to this long.
const MAX_FILE: usize = 64 << 10;

/// Loads the files of case `number`. The result says whether they were taken; an error is a promise broken.
pub fn case(seed: u64, number: u64) -> Result<&'static str, String> {
    let mut rng = SmallRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ !number);
    let rng = &mut rng;
    let mut kernel = match rng.random_range(0..5) {
        0 | 1 => bzimage(rng),
        2 | 3 => multiboot(rng),
        _ => noise(rng),
    };
    damage(rng, &mut kernel);
    let initrd = rng.random_ratio(1, 2).then(|| noise(rng));
    let line = "x".repeat(match rng.random_range(0..6) {
        0 => rng.random_range(0..40_000),
        _ => rng.random_range(0..100),
    });
    let ram = GuestRam::new([1u64, 2, 16, 64][rng.random_range(0..4)] << 20).map_err(|e| e.to_string())?;
    let start = Instant::now();
    let loaded = load(&kernel, initrd.as_deref(), line, &ram);
    if start.elapsed() > WITHIN {
        return Err(format!("loading took {:?}", start.elapsed()));
    }
    match loaded {
        Ok(state) if u64::from(state.eip) < ram.size() => Ok("loaded"),
        Ok(state) => Err(format!("the entry {:#x} is outside RAM", state.eip)),
        Err(_) => Ok("refused"),
    }
}

fn load(kernel: &[u8], initrd: Option<&[u8]>, line: String, ram: &GuestRam) -> Result<CpuState, BootError> {
    let initrd = initrd.map(|bytes| Image::new("initrd", file(bytes))).transpose()?;
    let payload = Payload::identify(Image::new("kernel", file(kernel))?, initrd, line)?;
    let entry = payload.load(ram)?;
    let mut state = CpuState::default();
    entry.apply(&mut state);
    Ok(state)
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).and_then(|()| file.rewind()).expect("writing a temporary file");
    file
}

fn noise(rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..MAX_FILE)];
    rng.fill(&mut bytes[..]);
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + value.len()) {
        to.copy_from_slice(value);
    }
}

/// A Linux kernel image with a header that is whole.
fn bzimage(rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = vec![0; 0x3000];
    rng.fill(&mut bytes[0x400..]);
    let fields: [(usize, &[u8]); 12] = [
        (0x1f1, &[4]),
        (0x1f4, &(0x3000u32 - 0xa00).div_ceil(16).to_le_bytes()),
        (0x1fe, &[0x55, 0xaa]),
        (0x201, &[0x6a]),
        (0x202, b"HdrS"),
        (0x206, &[0xf, 2]),
        (0x211, &[1]),
        (0x22c, &0x7fff_ffffu32.to_le_bytes()),
        (0x230, &0x20_0000u32.to_le_bytes()),
        (0x234, &[1]),
        (0x238, &0x7ffu32.to_le_bytes()),
        (0x258, &0x10_0000u64.to_le_bytes()),
    ];
    fields.iter().for_each(|(at, value)| put(&mut bytes, *at, value));
    put(&mut bytes, 0x260, &0x8000u32.to_le_bytes());
    // Some of the fields that say sizes and addresses become words that hurt.
    for _ in 0..rng.random_range(0..4) {
        let at = [0x1f1, 0x1f4, 0x201, 0x206, 0x22c, 0x230, 0x234, 0x238, 0x258, 0x25c, 0x260][rng.random_range(0..11)];
        put(&mut bytes, at, &word(rng).to_le_bytes());
    }
    bytes
}

/// A multiboot ELF file, or one with address fields.
fn multiboot(rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = vec![0; 0x3000];
    rng.fill(&mut bytes[0x400..]);
    put(&mut bytes, 0, b"\x7fELF\x01\x01\x01");
    put(&mut bytes, 16, &[2, 0, 3, 0, 1, 0, 0, 0]);
    put(&mut bytes, 24, &0x10_0000u32.to_le_bytes());
    put(&mut bytes, 28, &52u32.to_le_bytes());
    let count = rng.random_range(1..5u16);
    put(&mut bytes, 40, &[52, 0, 32, 0]);
    put(&mut bytes, 44, &count.to_le_bytes());
    for i in 0..count as u32 {
        let home = 0x10_0000 + 0x1000 * i;
        let mut header = [1, 0x400 * (i + 1), home, home, 0x400, 0x800, 7, 0x1000];
        if rng.random_ratio(1, 3) {
            header[rng.random_range(0..6)] = word(rng);
        }
        let raw: Vec<u8> = header.iter().flat_map(|w| w.to_le_bytes()).collect();
        put(&mut bytes, 52 + 32 * i as usize, &raw);
    }
    let flags = if rng.random_ratio(1, 2) { 3u32 } else { 0x1_0003 };
    let header = [0x1bad_b002, flags, 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags)];
    let mut addresses = [0x10_0300, 0x10_0000, 0x10_2000, 0x10_8000, 0x10_0400];
    if rng.random_ratio(1, 2) {
        addresses[rng.random_range(0..5)] = word(rng);
    }
    let raw: Vec<u8> = header.iter().chain(&addresses).flat_map(|w| w.to_le_bytes()).collect();
    put(&mut bytes, 0x300, &raw);
    bytes
}

/// Nothing, cut short, or bytes changed.
fn damage(rng: &mut SmallRng, bytes: &mut Vec<u8>) {
    match rng.random_range(0..4) {
        0 => bytes.truncate(rng.random_range(0..bytes.len() + 1)),
        1 => {
            for _ in 0..rng.random_range(1..6) {
                let at = rng.random_range(0..0x400);
                put(bytes, at, &[rng.random()]);
            }
        }
        _ => {}
    }
}
