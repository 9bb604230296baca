//! Instructions that are the same on the host: their own bytes again, with the address put differently. An encoder that
//! starts from the decoded operands takes several times as long.
//!
//! Only legacy encodings are taken apart here (SDM vol. 2, §2.1). What is not taken, or names ESP as a register, goes
//! through iced's encoder.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::super::emit::PREFIXES;
use super::Translator;
use super::operand::address;

/// The parts of an instruction that stay as they are.
pub(super) struct Parts<'a> {
    /// Operand-size, lock and repeat prefixes, in their order.
    prefixes: &'a [u8],
    opcode: &'a [u8],
    modrm: Option<u8>,
    /// What follows ModRM, SIB and displacement.
    immediate: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Takes apart the instruction that `bytes` are, keeping its prefixes in `kept`; `simd` says that a repeat prefix is
    /// part of its opcode. None if it needs another encoding, or has a prefix that processors may ignore or not.
    pub(super) fn of(bytes: &'a [u8], simd: bool, kept: &'a mut [u8; PREFIXES]) -> Option<Self> {
        let (mut at, mut count) = (0, 0);
        loop {
            match *bytes.get(at)? {
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
                prefix @ (0x66 | 0xf0 | 0xf2 | 0xf3) => {
                    let repeat = prefix >= 0xf2;
                    if kept[..count].iter().any(|&k| k == prefix || (repeat && k >= 0xf0)) || (repeat && !simd) {
                        return None;
                    }
                    *kept.get_mut(count)? = prefix;
                    count += 1;
                }
                _ => break,
            }
            at += 1;
        }
        let prefixes = &kept[..count];
        let rest = &bytes[at..];
        let (opcode, has_modrm) = opcode(rest)?;
        if opcode[0] != 0x0f && prefixes.iter().any(|&prefix| prefix >= 0xf2) {
            return None;
        }
        let rest = &rest[opcode.len()..];
        Some(match rest.split_first().filter(|_| has_modrm) {
            None if has_modrm => return None,
            None => Self { prefixes, opcode, modrm: None, immediate: rest },
            Some((&modrm, rest)) => {
                let immediate = rest.get(address_length(modrm, rest)..)?;
                Self { prefixes, opcode, modrm: Some(modrm), immediate }
            }
        })
    }
}

/// The opcode that `bytes` begin with, and whether ModRM follows it. None for VEX and EVEX, and for what 64-bit mode
/// encodes otherwise.
fn opcode(bytes: &[u8]) -> Option<(&[u8], bool)> {
    match *bytes {
        [0x0f, 0x38 | 0x3a, _, ..] => Some((&bytes[..3], true)),
        // EMMS and BSWAP. The fourth BSWAP names ESP.
        [0x0f, second, ..] => Some((&bytes[..2], !matches!(second, 0x77 | 0xc8..=0xcf))),
        [first, ..] => {
            let has_modrm = match first {
                0x00..=0x3f => match first & 7 {
                    0..=3 => true,
                    4 | 5 => false,
                    _ => return None,
                },
                0x69 | 0x6b | 0x80 | 0x81 | 0x83..=0x8b | 0x8d => true,
                0xc0 | 0xc1 | 0xc6 | 0xc7 | 0xd0..=0xd3 | 0xd8..=0xdf | 0xf6 | 0xf7 | 0xfe | 0xff => true,
                0x90..=0x99 | 0x9e | 0x9f | 0xa8 | 0xa9 | 0xb0..=0xbf | 0xf5 | 0xf8 | 0xf9 | 0xfc | 0xfd => false,
                _ => return None,
            };
            Some((&bytes[..1], has_modrm))
        }
        [] => None,
    }
}

/// Bytes of SIB and displacement after `modrm`; `rest` begins with them.
fn address_length(modrm: u8, rest: &[u8]) -> usize {
    let sib = rest.first().copied().filter(|_| modrm & 7 == 4 && modrm < 0xc0);
    let displacement = match (modrm >> 6, sib.unwrap_or(modrm) & 7) {
        (0, 5) | (2, _) => 4,
        (1, _) => 1,
        _ => 0,
    };
    sib.map_or(0, |_| 1) + displacement
}

impl Translator<'_> {
    /// Emits `insn`, whose parts are `parts` and which names ESP only in an address.
    pub(super) fn copy(&mut self, insn: &Instruction, parts: &Parts<'_>) -> Option<()> {
        let memory = match parts.modrm {
            Some(modrm) if modrm < 0xc0 => match insn.mnemonic() {
                // Neither accesses what the operand names.
                Mnemonic::Lea | Mnemonic::Nop => Some(address(self.flat_place(insn)).without_window()),
                _ => Some(address(self.place(insn)?)),
            },
            _ => None,
        };
        let start = self.e.position();
        let Some(memory) = memory else {
            self.e.bytes(parts.prefixes);
            self.e.bytes(parts.opcode);
            parts.modrm.into_iter().for_each(|modrm| self.e.bytes(&[modrm]));
            self.e.bytes(parts.immediate);
            return Some(());
        };
        if memory.is_extended() && names_high_byte(insn) {
            return self.move_high_byte(insn, &memory);
        }
        let reg = parts.modrm.unwrap_or(0) >> 3 & 7;
        self.e.with_memory(parts.prefixes, parts.opcode, reg, &memory);
        self.e.bytes(parts.immediate);
        (self.e.position() - start <= 15).then_some(())
    }
}

/// True if an operand is AH, CH, DH or BH, which no instruction with a REX prefix can name.
pub(super) fn names_high_byte(insn: &Instruction) -> bool {
    let high = |r| matches!(r, Register::AH | Register::CH | Register::DH | Register::BH);
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Register && high(insn.op_register(i)))
}
