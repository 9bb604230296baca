//! The x87 instruction pointer and its companions, which the host saves as those of emitted code.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use super::super::Translator;
use super::super::block::Block;
use super::super::link::Registry;
use super::super::mode::SegmentClass;
use crate::cpu::Vcpu;

/// What an XSAVE area says of the last x87 instruction (SDM vol. 1, table 10-2).
#[derive(Clone, Copy)]
pub(super) struct X87Last {
    /// FOP: the low three bits of the first opcode byte, then the second.
    opcode: u16,
    /// FIP and FCS.
    pub(super) instruction: u64,
    /// FDP.
    address: u32,
    /// FSW.ES: an exception is not masked.
    pending: bool,
}

impl X87Last {
    pub(super) fn of(vcpu: &Vcpu) -> Self {
        let area = &vcpu.state.xsave.0;
        let (mut instruction, mut address) = ([0; 8], [0; 4]);
        instruction.copy_from_slice(&area[8..16]);
        address.copy_from_slice(&area[16..20]);
        Self {
            opcode: u16::from_le_bytes([area[6], area[7]]),
            instruction: u64::from_le_bytes(instruction),
            address: u32::from_le_bytes(address),
            pending: area[2] & 0x80 != 0,
        }
    }

    pub(super) fn put(self, vcpu: &mut Vcpu) {
        let area = &mut vcpu.state.xsave.0;
        area[6..8].copy_from_slice(&self.opcode.to_le_bytes());
        area[8..16].copy_from_slice(&self.instruction.to_le_bytes());
        area[16..20].copy_from_slice(&self.address.to_le_bytes());
        area[20..24].fill(0);
    }
}

/// The x87 instruction at `eip`, which `block` translates, and its FOP. The bytes are those that were translated: in RAM
/// the guest may have stored over them since they were executed.
fn guest_instruction(registry: &Registry, block: &Block<'_>, eip: u32) -> Option<(Instruction, u16)> {
    let mut bytes = [0; 15];
    for (i, byte) in bytes.iter_mut().enumerate() {
        let at = eip.wrapping_add(i as u32);
        // Only the only instruction of a block can run over into the second page.
        let page = if (at ^ block.key.eip) & !0xfff == 0 { Some(block.key.gpa & !0xfff) } else { block.second };
        if let Some(frame) = page.and_then(|gpa| registry.frame(gpa)) {
            *byte = frame.bytes[(at & 0xfff) as usize];
        }
    }
    let insn = Decoder::with_ip(32, &bytes, eip as u64, DecoderOptions::NONE).decode();
    Some((insn, x87_opcode(&bytes)?))
}

/// FOP of the x87 instruction that `bytes` start with: all that comes before D8 to DF are prefixes.
fn x87_opcode(bytes: &[u8]) -> Option<u16> {
    let first = bytes.iter().position(|b| b & 0xf8 == 0xd8)?;
    Some((bytes[first] as u16 & 7) << 8 | *bytes.get(first + 1)? as u16)
}

impl Translator {
    /// The x87 instruction pointer was saved as the host's: makes it the guest's. FCS and FDS read as zero, as on
    /// processors that deprecate them. Where the host has saved an opcode or an address since `before`, they are of the
    /// emitted instruction, with registers renamed and segment bases added: the guest's code tells the rest.
    pub(super) fn conceal(&mut self, vcpu: &mut Vcpu, before: X87Last) {
        let last = X87Last::of(vcpu);
        let start = self.cache.start();
        let at = start.wrapping_add((last.instruction as u32).wrapping_sub(start as u32) as u64);
        let block = self.registry.containing(at).map(|id| self.registry.block(id));
        let eip = block.and_then(|b| b.origin(at)).map_or(0, |o| o.eip);
        let mut guest = X87Last { instruction: eip as u64, ..last };
        // FOP is saved only where an exception is not masked; else it stays, or is zero after FNINIT.
        let emitted = block.map(|b| (b.start + b.length as u64).saturating_sub(at).min(15) as usize);
        let emitted = emitted.and_then(|length| x87_opcode(&self.cache.read(at, length)));
        let opcode = (last.opcode != before.opcode || last.pending) && Some(last.opcode) == emitted;
        let address = last.address != before.address && last.address != 0;
        if (opcode || address)
            && let Some((insn, code)) = block.and_then(|b| guest_instruction(&self.registry, &b, eip))
        {
            guest.opcode = if opcode { code } else { last.opcode };
            let mode = block.map(|b| b.key.mode.segment(insn.memory_segment().number() % 6));
            let based = address && mode == Some(SegmentClass::Based);
            guest.address = last.address.wrapping_sub(if based { self.context.x87_base } else { 0 });
        }
        guest.put(vcpu);
    }
}
