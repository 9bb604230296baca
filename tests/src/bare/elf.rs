//! The image: a 32-bit ELF file with one segment, which starts with the multiboot header.

use super::at;

const PAGE: u32 = 0x1000;
/// Covers the tables and stacks, so that a loader puts nothing of its own there.
const MEMORY: u32 = 0x30_0000;

/// Wraps code that was assembled for [`at::IMAGE`]; the run-time begins with the multiboot header's room.
pub fn image(code: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(code.len() + PAGE as usize);
    file.extend_from_slice(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
    half(&mut file, &[2, 3]);
    words(&mut file, &[1, at::IMAGE + super::runtime::HEADER, 52, 0, 0]);
    half(&mut file, &[52, 32, 1, 0, 0, 0]);
    let size = code.len() as u32;
    words(&mut file, &[1, PAGE, at::IMAGE, at::IMAGE, size, MEMORY.max(size), 7, PAGE]);
    file.resize(PAGE as usize, 0);
    file.extend_from_slice(code);
    file
}

fn half(file: &mut Vec<u8>, values: &[u16]) {
    values.iter().for_each(|value| file.extend_from_slice(&value.to_le_bytes()));
}

fn words(file: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|value| file.extend_from_slice(&value.to_le_bytes()));
}
