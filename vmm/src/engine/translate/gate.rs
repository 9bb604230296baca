//! Gates: instructions that change segments, privilege or window, and whose effect is remembered, so that emitted code
//! goes through them without leaving.
//!
//! What such an instruction does follows from a few words: the translated mode and window (which the address of the
//! branch table stands for), a selector, descriptors and other words of guest memory, some registers. The first time, the
//! interpreter does it by the rules, and what the rules read and what came of it is kept here. The next time, common
//! code compares what it reads now with what was read then, and copies the outcome. Anything else, also a pending
//! interrupt where one could be taken, goes to the interpreter again.
//!
//! Tables of the guest are read, and the frame of an INT is pushed, where they lie in RAM, at the address found by the page
//! walk of that first time ([`memory`]). Like a TLB entry, that may be stale until INVLPG or a CR3 write. Going from ring
//! to ring brings no window up to date, so gates that do ([`crossing`]) are there only while both windows are; each
//! address space has its own. [`Environment`] holds what gates depend on without comparing.

pub mod crossing;
pub mod load;
mod memory;

pub use memory::Word;

use iced_x86::Mnemonic;

use self::crossing::Crossing;
use self::load::{LOADS, Load};
use self::memory::{Finder, Regions};
use super::Translator;
use super::mode::Mode;
use crate::cpu::{Flow, Segment, TableRegister, Vcpu, cr0, seg};
use crate::mmu::Flush;

/// An instruction that a gate may stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// MOV to a segment register.
    Move(u8),
    /// POP to a segment register.
    Pop(u8),
    /// SYSENTER at ring 3.
    Enter,
    /// SYSEXIT at ring 0.
    Exit,
    /// INT with this vector at ring 3.
    Interrupt(u8),
    /// IRETD at ring 0.
    Return,
}

impl Gate {
    /// How many there are: indices are below.
    pub const COUNT: usize = 16;

    /// Its place among all gates.
    pub fn index(self) -> usize {
        match self {
            Self::Move(which) => which as usize,
            Self::Pop(which) => 6 + which as usize,
            Self::Enter => 12,
            Self::Exit => 13,
            Self::Interrupt(_) => 14,
            Self::Return => 15,
        }
    }
}

/// An IRET that stays at ring 0, in the same mode.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Resume {
    /// Minus the branch table's address. Zero: nothing.
    pub key: u64,
    /// The descriptor of CS.
    pub decided: Word,
    /// CS after it.
    pub code: Segment,
}

/// All that is remembered.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Gates {
    /// By segment register.
    pub loads: [[Load; LOADS]; 6],
    /// IRET at ring 0.
    pub resume: Resume,
    /// The descriptor of a null selector.
    pub null: u64,
}

/// What all gates depend on without comparing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// Of windows and branch tables.
    version: u64,
    gdtr: TableRegister,
    idtr: TableRegister,
    tr: Segment,
    sysenter: [u32; 3],
    /// CR0 and CR4 but for TS: TSD and AM decide on the mode at ring 3 alone.
    controls: [u32; 2],
    /// The address space whose gates from ring to ring may be used.
    space: Option<u32>,
}

/// What was looked up for whatever is remembered.
#[derive(Clone, Copy, Debug, Default)]
pub struct LookedUp {
    /// Anything.
    anything: bool,
    /// Something on a page that is not global.
    local: bool,
    /// Where.
    regions: Regions,
    /// Physical address of the page that interrupt frames are pushed to.
    frame: Option<u64>,
}

impl LookedUp {
    fn add(&mut self, found: &Finder<'_>) {
        self.anything = true;
        self.local |= found.local;
        self.regions.add(&found.regions);
    }
}

impl Translator {
    /// Makes the context's gates those that hold now. To be called whenever emitted code is about to run.
    #[inline]
    pub(super) fn check_gates(&mut self, vcpu: &Vcpu) {
        let s = &vcpu.state;
        self.check_joints(s);
        let now = Environment {
            version: self.table_drops + self.shadow.version(),
            gdtr: s.gdtr,
            idtr: s.idtr,
            tr: s.tr,
            sysenter: [s.msr.sysenter_cs, s.msr.sysenter_esp, s.msr.sysenter_eip],
            controls: [s.cr0 & !cr0::TS, s.cr4],
            space: self.settled.then_some(s.cr3),
        };
        if now != self.gates_hold {
            self.change_gates(now);
        }
    }

    #[cold]
    fn change_gates(&mut self, now: Environment) {
        let old = std::mem::replace(&mut self.gates_hold, now);
        if old != (Environment { space: old.space, ..now }) {
            self.forget_gates();
        }
        self.context.crossings = self.gates_kept.address(now.space);
    }

    fn forget_gates(&mut self) {
        self.forget_found();
        self.gates_kept.forget();
    }

    /// Forgets what words of guest memory decided on.
    fn forget_found(&mut self) {
        if !std::mem::take(&mut self.looked_up).anything {
            return;
        }
        let gates = &mut self.context.gates;
        gates.loads.iter_mut().flatten().for_each(|load| load.key = 0);
        gates.resume.key = 0;
        self.gates_kept.forget_found();
    }

    /// The guest has flushed translations: those that words were found by may be among them.
    pub(super) fn flush_gates(&mut self, flush: Flush) {
        let stale = match flush {
            Flush::Page(linear) => self.looked_up.regions.contains(linear),
            Flush::NonGlobal => self.looked_up.local,
            Flush::All => true,
        };
        if stale {
            self.forget_found();
        }
    }

    /// Stores to the frame at `gpa` are to be noticed from now on, so none may be made by a gate.
    pub(super) fn watch_gates(&mut self, gpa: u64) {
        if self.looked_up.frame == Some(gpa & !0xfff) {
            self.forget_found();
        }
    }

    /// Emitted code left through exit site `index` before an instruction that `gate` could stand for.
    pub(super) fn pass(&mut self, vcpu: &mut Vcpu, index: u32, gate: Gate) -> Flow<()> {
        let before = Before {
            source: self.context.branches,
            flags: vcpu.state.eflags,
            seg: vcpu.state.seg,
            events: self.interp.events_taken(),
        };
        self.assist(vcpu, index)?;
        let plainly = self.interp.events_taken() == before.events && !vcpu.mmu.has_notices();
        if plainly && let Some(mode) = Mode::of(vcpu) {
            let version = self.version();
            self.activate(vcpu, mode);
            self.check_gates(vcpu);
            // A window or a table that went may be the one that was left.
            if self.version() == version {
                self.remember(vcpu, gate, &before);
            }
        }
        Ok(())
    }

    /// The instruction that `gate` stands for has just been executed, and the context is set up for what comes next.
    fn remember(&mut self, vcpu: &Vcpu, gate: Gate, before: &Before) -> Option<()> {
        let mut finder = Finder::new(vcpu);
        let c = &mut *self.context;
        match gate {
            Gate::Move(which) | Gate::Pop(which) => {
                let tables = (before.source, c.branches);
                let load = Load::of(vcpu.state.seg[which as usize], tables, &c.gates.null, &mut finder)?;
                c.gates.loads[which as usize][load.place()] = load;
            }
            Gate::Return if vcpu.state.cpl == 0 => {
                let code = vcpu.state.seg[seg::CS];
                let decided = finder.descriptor(code)?;
                // Another mode would be one for this EIP alone.
                let same = c.branches == before.source;
                c.gates.resume = Resume { key: same.then_some(before.source)?.wrapping_neg(), decided, code };
            }
            _ => self.remember_crossing(vcpu, gate, before, &mut finder)?,
        }
        self.looked_up.add(&finder);
        Some(())
    }

    /// As [`Self::remember`], for a gate from ring to ring.
    fn remember_crossing(&mut self, vcpu: &Vcpu, gate: Gate, before: &Before, finder: &mut Finder<'_>) -> Option<()> {
        let space = self.gates_hold.space?;
        let crossing = Crossing::of(before.source, before.flags, &vcpu.state, &self.context);
        match gate {
            Gate::Interrupt(vector) => {
                let (interrupt, frame) = crossing.interrupt(vcpu, finder, vector)?;
                if self.looked_up.frame.is_some_and(|old| old != frame) {
                    // Only one page is watched.
                    self.forget_found();
                }
                self.looked_up.frame = Some(frame);
                self.gates_kept.of(space).interrupt = interrupt;
            }
            Gate::Return => self.gates_kept.of(space).back = crossing.back(vcpu, finder, &before.seg)?,
            Gate::Enter => self.gates_kept.of(space).enter = crossing,
            _ => self.gates_kept.of(space).exit = crossing,
        }
        Some(())
    }

    /// Counts an instruction left to the interpreter.
    pub(super) fn count_assist(&mut self, mnemonic: Mnemonic) {
        if let Some(count) = self.assists.get_mut(mnemonic as usize) {
            *count += 1;
        }
        self.stats.exits_interpret += 1;
    }
}

/// What held before an instruction.
struct Before {
    source: u64,
    flags: u32,
    seg: [Segment; 6],
    events: u64,
}
