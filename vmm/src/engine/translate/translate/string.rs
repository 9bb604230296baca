//! String instructions, repeated or not, on host addresses.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::super::block::Point;
use super::super::mode::SegmentClass;
use super::Translator;
use super::operand::segment_index;

impl Translator<'_> {
    /// String instructions run on host addresses: the low halves of RSI and RDI are the guest's ESI and EDI throughout.
    pub(super) fn string(&mut self, insn: &Instruction) -> Option<()> {
        let (source, destination) = string_operands(insn);
        if source {
            let segment = segment_index(insn.memory_segment())?;
            (self.env.mode.segment(segment) == SegmentClass::Flat).then_some(())?;
        }
        if destination {
            (self.env.mode.segment(crate::cpu::seg::ES) == SegmentClass::Flat).then_some(())?;
            self.e.load_quarter(7);
            self.e.lea_sum(7, 9);
        }
        if source {
            self.e.load_quarter(6);
            self.e.lea_sum(6, 9);
        }
        self.mark(self.eip, Point::Interruptible);
        let mut bytes = Vec::with_capacity(3);
        if insn.has_repe_prefix() || insn.has_rep_prefix() {
            bytes.push(0xf3);
        } else if insn.has_repne_prefix() {
            bytes.push(0xf2);
        }
        if string_width(insn) == 2 {
            bytes.push(0x66);
        }
        bytes.push(string_opcode(insn)?);
        self.e.bytes(&bytes);
        self.mark(self.eip, Point::Inside);
        if source {
            self.e.mov32(6, 6);
        }
        if destination {
            self.e.mov32(7, 7);
        }
        Some(())
    }
}

/// True for a string instruction that stores and is repeated.
pub(super) fn repeats_stores(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let stores = matches!(insn.mnemonic(), Movsb | Movsw | Movsd | Stosb | Stosw | Stosd);
    stores && (insn.has_rep_prefix() || insn.has_repne_prefix())
}

/// Whether a string instruction reads through ESI and whether it uses EDI.
pub(super) fn string_operands(insn: &Instruction) -> (bool, bool) {
    let uses = |kind| (0..insn.op_count()).any(|i| insn.op_kind(i) == kind);
    (uses(OpKind::MemorySegESI), uses(OpKind::MemoryESEDI))
}

pub(super) fn string_width(insn: &Instruction) -> u32 {
    insn.memory_size().size() as u32
}

pub(super) fn string_opcode(insn: &Instruction) -> Option<u8> {
    use Mnemonic::*;
    let base = match insn.mnemonic() {
        Movsb | Movsw | Movsd => 0xa4,
        Cmpsb | Cmpsw | Cmpsd => 0xa6,
        Stosb | Stosw | Stosd => 0xaa,
        Lodsb | Lodsw | Lodsd => 0xac,
        Scasb | Scasw | Scasd => 0xae,
        _ => return None,
    };
    Some(base | (string_width(insn) != 1) as u8)
}
