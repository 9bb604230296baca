//! Gates: instructions that change segments, privilege or window, and whose effect is remembered, so that emitted code
//! goes through them without leaving.
//!
//! What such an instruction does follows from a few words: the translated mode and window (which the address of the
//! branch table stands for), a selector, the eight bytes of its descriptor, some registers. The first time, the
//! interpreter does it by the rules, and what the rules read and what came of it is kept here. The next time, common
//! code compares what it reads now with what was read then, and copies the outcome. Anything else, also a pending
//! interrupt where one could be taken, goes to the interpreter again.
//!
//! A descriptor is read where the guest's table lies in RAM, at the address found by the page walk of that first time. Like
//! a TLB entry, that may be stale until INVLPG or a CR3 write. Going through SYSENTER or SYSEXIT brings no window up to
//! date, so those gates are there only while both windows are; each address space has its own. [`Environment`] holds
//! what gates depend on without comparing.

use iced_x86::Mnemonic;

use super::Translator;
use super::mode::{HOST_FLAGS, Mode};
use crate::cpu::{CpuState, Flow, Segment, TableRegister, Vcpu, attr, cr0, eflags, reg, seg};
use crate::mmu::{Access, Flush, walk};

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
}

impl Gate {
    /// How many there are: indices are below.
    pub const COUNT: usize = 14;

    /// Its place among all gates.
    pub fn index(self) -> usize {
        match self {
            Self::Move(which) => which as usize,
            Self::Pop(which) => 6 + which as usize,
            Self::Enter => 12,
            Self::Exit => 13,
        }
    }
}

/// Remembered loads of one segment register; which one a selector gets is bits 3 to 5 of it.
pub const LOADS: usize = 8;

/// The remembered load of a selector into a segment register.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
pub struct Load {
    /// Minus the sum of the branch table's address before it and the selector shifted left by 48. Zero: nothing.
    pub key: u64,
    /// Host address of the descriptor, or of eight zero bytes for a null selector.
    pub descriptor: u64,
    /// Minus the descriptor.
    pub raw: u64,
    /// What is added to the branch table's address: another mode may hold after it.
    pub change: u64,
    /// The register then.
    pub segment: Segment,
}

/// A remembered SYSENTER or SYSEXIT.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
pub struct Switch {
    /// Minus the branch table's address before it. Zero: nothing.
    pub key: u64,
    /// Minus `Context::system_flags` before it (SYSEXIT).
    pub system_flags: u32,
    /// CPL after it.
    pub cpl: u32,
    /// ESP after it (SYSENTER).
    pub esp: u32,
    /// EIP after it (SYSENTER).
    pub eip: u32,
    /// CS after it.
    pub code: Segment,
    /// SS after it.
    pub stack: Segment,
    /// `Context::window` after it.
    pub window: u64,
    /// `Context::quarters` after it.
    pub quarters: [u64; 4],
    /// `Context::branches` after it.
    pub branches: u64,
}

/// All that is remembered.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Gates {
    /// By segment register.
    pub loads: [[Load; LOADS]; 6],
    /// SYSENTER.
    pub enter: Switch,
    /// SYSEXIT.
    pub exit: Switch,
    /// The descriptor of a null selector.
    pub null: u64,
}

impl Gates {
    fn forget_loads(&mut self) {
        self.loads.iter_mut().flatten().for_each(|load| load.key = 0);
    }
}

/// What all gates depend on without comparing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// Of windows and branch tables.
    version: u64,
    gdtr: TableRegister,
    sysenter: [u32; 3],
    /// CR0 and CR4 but for TS: TSD and AM decide on the mode at ring 3 alone.
    controls: [u32; 2],
    /// The address space that `Gates::enter` and `exit` belong to, if they may be used.
    space: Option<u32>,
    /// A load is remembered.
    loads: bool,
    /// A load is remembered whose descriptor's page is not global.
    local: bool,
}

/// Address spaces whose gates are kept while others are current.
const KEPT: usize = 8;

/// SYSENTER and SYSEXIT of some address spaces, by CR3. Which one makes room goes round.
#[derive(Default)]
pub struct Kept {
    spaces: [(u32, Switch, Switch); KEPT],
    next: usize,
}

impl Kept {
    fn put(&mut self, cr3: u32, enter: Switch, exit: Switch) {
        let place = self.spaces.iter().position(|s| s.0 == cr3).unwrap_or(self.next);
        if place == self.next {
            self.next = (self.next + 1) % KEPT;
        }
        self.spaces[place] = (cr3, enter, exit);
    }

    fn get(&self, cr3: u32) -> (Switch, Switch) {
        let found = self.spaces.iter().find(|s| s.0 == cr3);
        found.map_or_else(Default::default, |s| (s.1, s.2))
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
            sysenter: [s.msr.sysenter_cs, s.msr.sysenter_esp, s.msr.sysenter_eip],
            controls: [s.cr0 & !cr0::TS, s.cr4],
            space: self.settled.then_some(s.cr3),
            ..self.gates_hold
        };
        if now != self.gates_hold {
            self.change_gates(now);
        }
    }

    #[cold]
    fn change_gates(&mut self, now: Environment) {
        let old = std::mem::replace(&mut self.gates_hold, now);
        let gates = &mut self.context.gates;
        if let Some(cr3) = old.space {
            self.gates_kept.put(cr3, gates.enter, gates.exit);
        }
        if old != (Environment { space: old.space, ..now }) {
            self.gates_kept = Kept::default();
            self.forget_loads();
        }
        let gates = &mut self.context.gates;
        (gates.enter, gates.exit) = now.space.map_or_else(Default::default, |cr3| self.gates_kept.get(cr3));
    }

    fn forget_loads(&mut self) {
        if std::mem::take(&mut self.gates_hold.loads) {
            self.context.gates.forget_loads();
            self.gates_hold.local = false;
        }
    }

    /// The guest has flushed translations: those that descriptors were found by may be among them. One INVLPG forgets a
    /// large page whole.
    pub(super) fn flush_gates(&mut self, state: &CpuState, flush: Flush) {
        let table = state.gdtr.base;
        let last = table.wrapping_add(state.gdtr.limit);
        let stale = match flush {
            Flush::Page(linear) => (linear ^ table) >> 22 == 0 || (linear ^ last) >> 22 == 0,
            Flush::NonGlobal => self.gates_hold.local,
            Flush::All => true,
        };
        if stale {
            self.forget_loads();
        }
    }

    /// Emitted code left through exit site `index` before an instruction that `gate` could stand for.
    pub(super) fn pass(&mut self, vcpu: &mut Vcpu, index: u32, gate: Gate) -> Flow<()> {
        let (source, flags, before) = (self.context.branches, vcpu.state.eflags, self.interp.events_taken());
        self.assist(vcpu, index)?;
        let plainly = self.interp.events_taken() == before && !vcpu.mmu.has_notices();
        if plainly && let Some(mode) = Mode::of(vcpu) {
            let version = self.version();
            self.activate(vcpu, mode);
            self.check_gates(vcpu);
            // A window or a table that went may be the one that was left.
            if self.version() == version {
                self.remember(vcpu, gate, source, flags);
            }
        }
        Ok(())
    }

    /// The instruction that `gate` stands for has just been executed in the mode of table `source` with EFLAGS `flags`,
    /// and the context is set up for what comes next.
    fn remember(&mut self, vcpu: &mut Vcpu, gate: Gate, source: u64, flags: u32) {
        let c = &mut *self.context;
        match gate {
            Gate::Move(which) | Gate::Pop(which) => {
                let segment = vcpu.state.seg[which as usize];
                let Some((descriptor, raw, global)) = descriptor(vcpu, &c.gates.null, segment) else { return };
                self.gates_hold.loads = true;
                self.gates_hold.local |= !global;
                let place = &mut c.gates.loads[which as usize][segment.selector as usize >> 3 & (LOADS - 1)];
                *place = Load {
                    key: source.wrapping_add((segment.selector as u64) << 48).wrapping_neg(),
                    descriptor,
                    raw: raw.wrapping_neg(),
                    change: c.branches.wrapping_sub(source),
                    segment,
                };
            }
            Gate::Enter | Gate::Exit if self.settled => {
                let s = &vcpu.state;
                let switch = Switch {
                    key: source.wrapping_neg(),
                    system_flags: (flags & !(HOST_FLAGS | eflags::IF)).wrapping_neg(),
                    cpl: s.cpl as u32,
                    esp: s.gpr[reg::ESP],
                    eip: s.eip,
                    code: s.seg[seg::CS],
                    stack: s.seg[seg::SS],
                    window: c.window,
                    quarters: c.quarters,
                    branches: c.branches,
                };
                match gate {
                    Gate::Enter => c.gates.enter = switch,
                    _ => c.gates.exit = switch,
                }
            }
            Gate::Enter | Gate::Exit => {}
        }
    }

    /// Counts an instruction left to the interpreter.
    pub(super) fn count_assist(&mut self, mnemonic: Mnemonic) {
        if let Some(count) = self.assists.get_mut(mnemonic as usize) {
            *count += 1;
        }
        self.stats.exits_interpret += 1;
    }
}

/// Host address and content of the descriptor that `segment` has just been loaded from, `null` for a null selector's, and
/// whether only INVLPG flushes that. None if it is not to be read from there again: in the LDT, outside RAM, in two pages,
/// not marked accessed, or read through a stale translation.
fn descriptor(vcpu: &Vcpu, null: &u64, segment: Segment) -> Option<(u64, u64, bool)> {
    if !segment.usable() {
        return Some((std::ptr::from_ref(null) as u64, 0, true));
    }
    let linear = vcpu.state.gdtr.base.wrapping_add(segment.selector as u32 & 0xfff8);
    if segment.selector & 4 != 0 || linear & 0xfff > 0xff8 {
        return None;
    }
    let t = walk(&vcpu.mmu.ram, &vcpu.state, linear, Access::Read, false).ok()?;
    let raw = vcpu.mmu.ram.read_u64(t.gpa)?;
    let host = vcpu.mmu.ram.host_address(t.gpa)? as u64;
    let loaded = segment.attr & attr::ACCESSED != 0 && Segment::described(raw, segment.selector) == segment;
    loaded.then_some((host, raw, t.global))
}
