//! The smallest ELF file that Linux loads as a 32-bit program: a text segment and a zeroed one.

use super::layout::{BSS, BSS_BYTES, PAGE, TEXT};

const HEADER: usize = 52;
const PROGRAM_HEADER: usize = 32;
/// File offset of the text, congruent to its address.
const TEXT_AT: usize = PAGE as usize;
const PT_LOAD: u32 = 1;
/// Without one the kernel makes every readable page executable.
const PT_GNU_STACK: u32 = 0x6474_e551;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PF_R: u32 = 4;

/// An executable whose entry point is the first byte of `text`.
pub fn wrap(text: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(TEXT_AT + text.len());
    // EI_CLASS 32 bits, little endian, version 1.
    file.extend_from_slice(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2u16, 3] {
        // ET_EXEC, EM_386.
        file.extend_from_slice(&half.to_le_bytes());
    }
    for word in [1, TEXT, HEADER as u32, 0, 0] {
        // Version, entry, program headers, no section headers, flags.
        file.extend_from_slice(&word.to_le_bytes());
    }
    for half in [HEADER as u16, PROGRAM_HEADER as u16, 3, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    let size = text.len() as u32;
    for segment in [
        [PT_LOAD, TEXT_AT as u32, TEXT, TEXT, size, size, PF_R | PF_X, PAGE],
        [PT_LOAD, 0, BSS, BSS, 0, BSS_BYTES, PF_R | PF_W, PAGE],
        [PT_GNU_STACK, 0, 0, 0, 0, 0, PF_R | PF_W, 16],
    ] {
        for word in segment {
            file.extend_from_slice(&word.to_le_bytes());
        }
    }
    file.resize(TEXT_AT, 0);
    file.extend_from_slice(text);
    file
}
