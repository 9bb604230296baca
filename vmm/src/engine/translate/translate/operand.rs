//! Operands: guest registers by their host names, and where memory operands are reached.

use std::mem::offset_of;

use iced_x86::{Instruction, Register};

use super::super::context::{Context, NEAR, host};
use super::super::emit::Address;
use super::super::mode::SegmentClass;
use super::Translator;
use crate::cpu::Segment;

/// Where a memory operand is reached.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// GS and 67h prefixes on these.
    Window { base: Register, index: Register, scale: u32, displacement: u32 },
    /// `[r14 + displacement]`: no prefix, so that it costs what the guest's own access to its stack does.
    Stack(i32),
    /// `[r12 + index * scale + displacement]`: see [`super::pointers`].
    Near { index: Register, scale: u32, displacement: i32 },
    /// `[r9 + r8]`, r9 a window and r8 the linear address.
    Picked,
}

impl Place {
    /// The same place where r14 is ESP itself rather than its host address.
    pub(super) fn in_window(self) -> Self {
        match self {
            Self::Stack(displacement) => {
                let (index, displacement) = (Register::None, displacement as u32);
                Self::Window { base: Register::R14D, index, scale: 1, displacement }
            }
            other => other,
        }
    }
}

impl Translator<'_> {
    /// The memory operand's effective address in renamed registers.
    pub(super) fn flat_place(&mut self, insn: &Instruction) -> Place {
        let base = insn.memory_base();
        let mut displacement = insn.memory_displacement32();
        if base == Register::ESP {
            displacement = displacement.wrapping_add(self.delta as u32);
            if insn.memory_index() == Register::None {
                return Place::Stack(displacement as i32);
            }
        }
        Place::Window { base: rename(base), index: insn.memory_index(), scale: insn.memory_index_scale(), displacement }
    }

    /// Where the memory operand of `insn` is reached. May emit address arithmetic in r8 and r9.
    pub(super) fn place(&mut self, insn: &Instruction) -> Option<Place> {
        let segment = segment_index(insn.memory_segment())?;
        let flat = self.flat_place(insn);
        let place = match self.env.mode.segment(segment) {
            SegmentClass::Flat => flat,
            SegmentClass::Based => self.add_base(segment, flat)?,
            SegmentClass::Checked => return None,
        };
        let place = self.finish_place(place)?;
        Some(self.unprefixed(insn, place))
    }

    /// Picks the window at run time where that is needed.
    pub(super) fn finish_place(&mut self, place: Place) -> Option<Place> {
        if !self.picks() {
            return Some(place);
        }
        self.lea_linear(place);
        self.e.load_quarter(8);
        Some(Place::Picked)
    }

    /// True if the instruction picks its window at run time.
    pub(super) fn picks(&self) -> bool {
        self.env.mode.low_kernel() || (!self.env.mode.user() && self.env.dynamic.contains(&self.eip))
    }

    /// r8d = the linear address of `place`.
    pub(super) fn lea_linear(&mut self, place: Place) {
        self.e.with_memory(&[], &[0x8d], 8, &address(place).without_window());
    }

    /// Adds a segment base, kept in r9d, to an address.
    pub(super) fn add_base(&mut self, segment: usize, place: Place) -> Option<Place> {
        let (base, index, displacement) = match place {
            Place::Window { base, index, displacement, .. } => (base, index, displacement),
            Place::Stack(displacement) => (Register::R14D, Register::None, displacement as u32),
            Place::Near { .. } | Place::Picked => return None,
        };
        let offset = base_offset(segment);
        Some(match (base, index) {
            (Register::None, Register::None) => {
                self.e.load_context(false, 9, offset);
                Place::Window { base: Register::R9D, index: Register::None, scale: 1, displacement }
            }
            (base, Register::None) => {
                self.e.load_context(false, 9, offset);
                Place::Window { base, index: Register::R9D, scale: 1, displacement }
            }
            _ => {
                self.lea_linear(place);
                self.e.load_context(false, 9, offset);
                Place::Window { base: Register::R8D, index: Register::R9D, scale: 1, displacement: 0 }
            }
        })
    }

    /// The stack at ESP plus `offset`.
    pub(super) fn stack(&mut self, offset: i32) -> Option<Place> {
        self.finish_place(Place::Stack(self.delta.wrapping_add(offset)))
    }

    /// `mov reg, [place]`.
    pub(super) fn load(&mut self, reg: Register, place: Place) {
        self.e.with_memory(&[], &[0x8b], number(reg), &address(place));
        self.anchor(place);
    }

    /// `movzx reg, word [place]`. Neither this nor the next anchors r14: the checker knows none that does.
    pub(super) fn load_word(&mut self, reg: Register, place: Place) {
        self.e.with_memory(&[], &[0x0f, 0xb7], number(reg), &address(place));
    }

    /// `movzx reg, byte [place]`.
    pub(super) fn load_byte(&mut self, reg: Register, place: Place) {
        self.e.with_memory(&[], &[0x0f, 0xb6], number(reg), &address(place));
    }

    /// `mov [place], reg`, for a register of 32 or 16 bits.
    pub(super) fn store(&mut self, place: Place, reg: Register) {
        let prefixes: &[u8] = if reg.size() == 2 { &[0x66] } else { &[] };
        self.e.with_memory(prefixes, &[0x89], number(reg), &address(place));
        self.anchor(place);
    }

    /// `mov dword [place], value`.
    pub(super) fn store_immediate(&mut self, place: Place, value: u32) {
        self.e.with_memory(&[], &[0xc7], 0, &address(place));
        self.e.bytes(&value.to_le_bytes());
        self.anchor(place);
    }

    /// An access to `place` has been emitted: it may have r14 moved on from there.
    fn anchor(&mut self, place: Place) {
        self.anchored |= matches!(place, Place::Stack(displacement) if (-NEAR..=NEAR).contains(&displacement));
    }
}

/// Host register for a guest register.
pub(super) fn rename(r: Register) -> Register {
    match r {
        Register::ESP => Register::R14D,
        Register::SP => Register::R14W,
        r => r,
    }
}

/// Hardware number of a register other than ESP and SP.
pub(super) fn number(r: Register) -> u8 {
    r.number() as u8
}

/// `place` for the emitter.
pub(super) fn address(place: Place) -> Address {
    let known = |r: Register| (r != Register::None).then(|| number(r));
    match place {
        Place::Window { base, index, scale, displacement } => Address {
            window: true,
            narrow: true,
            base: known(base),
            index: known(index),
            scale: scale.trailing_zeros() as u8,
            displacement,
        },
        Place::Stack(displacement) => Address {
            window: false,
            narrow: false,
            base: Some(host::ESP),
            index: None,
            scale: 0,
            displacement: displacement as u32,
        },
        Place::Near { index, scale, displacement } => Address {
            window: false,
            narrow: false,
            base: Some(host::WINDOW),
            index: known(index),
            scale: scale.trailing_zeros() as u8,
            displacement: displacement as u32,
        },
        Place::Picked => {
            Address { window: false, narrow: false, base: Some(9), index: Some(8), scale: 0, displacement: 0 }
        }
    }
}

pub(super) fn set_memory(insn: &mut Instruction, place: Place) {
    match place {
        Place::Window { base, index, scale, displacement } => {
            insn.set_segment_prefix(Register::GS);
            insn.set_memory_base(base);
            insn.set_memory_index(index);
            insn.set_memory_index_scale(scale);
            insn.set_memory_displacement64(displacement as u64);
            insn.set_memory_displ_size(match (base, index, displacement) {
                (Register::None, _, _) => 4,
                (_, _, 0) => 0,
                _ => 1,
            });
        }
        Place::Stack(displacement) => {
            insn.set_segment_prefix(Register::None);
            insn.set_memory_base(Register::R14);
            insn.set_memory_index(Register::None);
            insn.set_memory_index_scale(1);
            insn.set_memory_displacement64(displacement as i64 as u64);
            insn.set_memory_displ_size((displacement != 0) as u32);
        }
        Place::Near { index, scale, displacement } => {
            insn.set_segment_prefix(Register::None);
            insn.set_memory_base(Register::R12);
            insn.set_memory_index(if index == Register::None { index } else { index.full_register() });
            insn.set_memory_index_scale(scale);
            insn.set_memory_displacement64(displacement as i64 as u64);
            insn.set_memory_displ_size((displacement != 0) as u32);
        }
        Place::Picked => {
            insn.set_segment_prefix(Register::None);
            insn.set_memory_base(Register::R9);
            insn.set_memory_index(Register::R8);
            insn.set_memory_index_scale(1);
            insn.set_memory_displacement64(0);
            insn.set_memory_displ_size(0);
        }
    }
}

/// Index of a segment register, as in `CpuState::seg`.
pub(super) fn segment_index(r: Register) -> Option<usize> {
    r.is_segment_register().then(|| r.number())
}

pub(super) fn selector_offset(r: Register) -> Option<usize> {
    Some(offset_of!(Context, seg) + size_of::<Segment>() * segment_index(r)? + offset_of!(Segment, selector))
}

/// Where the context holds the base of segment register `which`.
pub(super) fn base_offset(which: usize) -> usize {
    offset_of!(Context, seg) + size_of::<Segment>() * which + offset_of!(Segment, base)
}
