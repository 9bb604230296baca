//! Gates from ring to ring: SYSENTER and SYSEXIT, INT n and IRET. They change the mode and perhaps the windows, so those
//! of an address space are used only in that.

use super::memory::{Finder, Word};
use crate::cpu::{CpuState, Segment, Vcpu, attr, eflags, reg, seg};
use crate::engine::translate::context::Context;
use crate::engine::translate::mode::HOST_FLAGS;

/// What holds after a change of rings.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Landing {
    /// CPL.
    pub cpl: u64,
    /// CS.
    pub code: Segment,
    /// SS.
    pub stack: Segment,
    /// `Context::quarters`.
    pub quarters: [u64; 4],
    /// `Context::branches`.
    pub branches: u64,
    /// `Context::window`.
    pub window: u64,
}

/// A remembered change of rings. What a field means for one kind of gate only says so.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
pub struct Crossing {
    /// Minus the branch table's address before it. Zero: nothing.
    pub key: u64,
    /// Minus `Context::system_flags` before it (but for SYSENTER).
    pub system_flags: u32,
    /// ESP after it (SYSENTER, INT).
    pub esp: u32,
    /// EIP after it (SYSENTER, INT).
    pub eip: u32,
    /// The vector (INT).
    pub vector: u32,
    /// What of EFLAGS.IF stays (INT).
    pub keeps: u32,
    /// Access rights of ES, DS, FS and GS, which stay as they are (IRET).
    pub rights: [u32; 4],
    /// Host address of the frame that is pushed (INT).
    pub frame: u64,
    /// What decided: descriptors of CS and SS (IRET); those, the IDT's and the TSS's (INT).
    pub decided: [Word; 4],
    /// What holds after it.
    pub landing: Landing,
}

/// The gates of one address space.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Crossings {
    /// SYSENTER.
    pub enter: Crossing,
    /// SYSEXIT.
    pub exit: Crossing,
    /// INT n from ring 3 to ring 0.
    pub interrupt: Crossing,
    /// IRET from ring 0 to ring 3.
    pub back: Crossing,
}

/// Address spaces whose gates are kept while others are current.
const KEPT: usize = 8;

/// Gates of some address spaces, by CR3. Which one makes room goes round.
pub struct Kept {
    /// Emitted code reads them where they are. The last are none.
    spaces: Box<[(Option<u32>, Crossings); KEPT + 1]>,
    next: usize,
}

impl Default for Kept {
    fn default() -> Self {
        Self { spaces: Box::new([(None, Crossings::default()); KEPT + 1]), next: 0 }
    }
}

impl Kept {
    /// Address of the gates of `space`, for `Context::crossings`; those of no space are closed.
    pub fn address(&mut self, space: Option<u32>) -> u64 {
        let place = space.map_or(KEPT, |cr3| self.place(cr3));
        std::ptr::from_ref(&self.spaces[place].1) as u64
    }

    /// The gates of the address space under `cr3`.
    pub fn of(&mut self, cr3: u32) -> &mut Crossings {
        let place = self.place(cr3);
        &mut self.spaces[place].1
    }

    fn place(&mut self, cr3: u32) -> usize {
        if let Some(place) = self.spaces.iter().position(|s| s.0 == Some(cr3)) {
            return place;
        }
        let place = self.next;
        self.next = (place + 1) % KEPT;
        self.spaces[place] = (Some(cr3), Crossings::default());
        place
    }

    /// Forgets everything.
    pub fn forget(&mut self) {
        self.forget_found();
        self.spaces.iter_mut().for_each(|(_, gates)| (gates.enter.key, gates.exit.key) = (0, 0));
    }

    /// Forgets what words of guest memory decided on.
    pub fn forget_found(&mut self) {
        self.spaces.iter_mut().for_each(|(_, gates)| (gates.interrupt.key, gates.back.key) = (0, 0));
    }
}

/// Bytes that an INT from another ring pushes: SS, ESP, EFLAGS, CS, EIP.
pub const FRAME: u32 = 20;
/// Low bits of the type of 32-bit gates, with their S bit (SDM vol. 3, table 3-2).
const INTERRUPT_GATE: u64 = 14;
const TRAP_GATE: u64 = 15;
/// [`Segment::attr`] of TR for a busy 32-bit TSS: its type.
const TSS32_BUSY: u32 = 11;

impl Crossing {
    /// An instruction that was executed in the mode of table `source` with EFLAGS `flags`, and after which `state` and
    /// `context` hold.
    pub fn of(source: u64, flags: u32, state: &CpuState, context: &Context) -> Self {
        Self {
            key: source.wrapping_neg(),
            system_flags: (flags & !(HOST_FLAGS | eflags::IF)).wrapping_neg(),
            esp: state.gpr[reg::ESP],
            eip: state.eip,
            landing: Landing {
                cpl: state.cpl as u64,
                code: state.seg[seg::CS],
                stack: state.seg[seg::SS],
                quarters: context.quarters,
                branches: context.branches,
                window: context.window,
            },
            ..Self::default()
        }
    }

    /// Of an INT with `vector`: the rest, and the physical address of the page that its frame is pushed to. None if it went
    /// another way than through a 32-bit gate to the stack of ring 0.
    pub fn interrupt(self, vcpu: &Vcpu, finder: &mut Finder<'_>, vector: u8) -> Option<(Self, u64)> {
        let s = &vcpu.state;
        let gate = finder.word(s.idtr.base.wrapping_add(8 * vector as u32))?;
        let stack = finder.word(s.tr.base.wrapping_add(4))?;
        let code = finder.descriptor(s.seg[seg::CS])?;
        let data = finder.descriptor(s.seg[seg::SS])?;
        let kind = gate.value >> 40 & 0x1f;
        let wide = matches!(kind, INTERRUPT_GATE | TRAP_GATE) && s.tr.attr & attr::TYPE == TSS32_BUSY;
        let target = (gate.value & 0xffff | gate.value >> 32 & 0xffff_0000) as u32;
        let same = target == s.eip
            && (gate.value >> 16) as u16 & !3 == s.seg[seg::CS].selector & !3
            && stack.value as u32 == s.gpr[reg::ESP].wrapping_add(FRAME)
            && (stack.value >> 32) as u16 == s.seg[seg::SS].selector;
        let stays = self.system_flags.wrapping_neg() & (eflags::NT | eflags::RF) == 0;
        if !wide || !same || !stays || s.cpl != 0 {
            return None;
        }
        let (gpa, frame) = finder.room(s.gpr[reg::ESP], FRAME)?;
        let keeps = if kind == TRAP_GATE { eflags::IF } else { 0 };
        let decided = [gate, stack, code, data];
        Some((Self { vector: vector.into(), keeps, frame, decided, ..self }, gpa & !0xfff))
    }

    /// Of an IRET to ring 3: the rest; `before` are the segment registers before it. None if it changed a data segment or
    /// a flag that decides on the mode.
    pub fn back(self, vcpu: &Vcpu, finder: &mut Finder<'_>, before: &[Segment; 6]) -> Option<Self> {
        let s = &vcpu.state;
        let code = finder.descriptor(s.seg[seg::CS])?;
        let data = finder.descriptor(s.seg[seg::SS])?;
        let others = [seg::ES, seg::DS, seg::FS, seg::GS];
        let kept = others.iter().all(|which| s.seg[*which] == before[*which]);
        let flags = s.eflags & !(HOST_FLAGS | eflags::IF | eflags::RF);
        if !kept || flags != self.system_flags.wrapping_neg() || flags & eflags::NT != 0 {
            return None;
        }
        let rights = others.map(|which| s.seg[which].attr);
        Some(Self { rights, decided: [code, data, Word::default(), Word::default()], ..self })
    }
}
