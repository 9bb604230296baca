//! What a processor looks at between two instructions (SDM vol. 3, table 6-2): debug traps, NMI, interrupts, instruction
//! breakpoints, HLT, and the machine's own request for its thread.

use std::ops::ControlFlow;

use super::Interpreter;
use crate::cpu::{Exception, Flow, InterruptShadow, Stop, Vcpu, eflags, seg};
use crate::engine::Exit;

/// DR6.BS: single step.
const DR6_BS: u32 = 1 << 14;

/// True if [`Interpreter::boundary`] has something to look at before the next instruction.
#[inline(always)]
pub(super) fn attention(v: &Vcpu) -> bool {
    let s = &v.state;
    v.lines.any()
        | s.halted
        | (s.eflags & (eflags::TF | eflags::RF) != 0)
        | (s.shadow != InterruptShadow::None)
        | (s.dr7 & 0xff != 0)
        | (v.mmu.pending_debug != 0)
}

impl Interpreter {
    /// Services one boundary. The next instruction is executed here too unless an event came first.
    pub(super) fn boundary(&mut self, v: &mut Vcpu) -> ControlFlow<Exit> {
        if v.lines.take_request() {
            return ControlFlow::Break(Exit::Requested);
        }
        let shadow = v.state.shadow;
        if shadow != InterruptShadow::MovSs {
            if v.mmu.pending_debug != 0 {
                let hit = std::mem::take(&mut v.mmu.pending_debug);
                v.state.halted = false;
                return self.conclude(v, Err(Exception::debug(hit).into()));
            }
            if !v.state.nmi_blocked && v.lines.take_nmi() {
                self.interrupts += 1;
                v.state.halted = false;
                let taken = v.nmi();
                return self.conclude(v, taken);
            }
        }
        if shadow == InterruptShadow::None
            && v.state.eflags & eflags::IF != 0
            && v.lines.intr()
            && let Some(vector) = v.bus.acknowledge(v.index)
        {
            self.interrupts += 1;
            v.state.halted = false;
            let taken = v.external_interrupt(vector);
            return self.conclude(v, taken);
        }
        if v.state.halted {
            return ControlFlow::Break(Exit::Halted);
        }
        let done = self.careful(v, false);
        self.conclude(v, done)
    }

    /// Takes NMI and interrupts for an engine that executes instructions itself. Some: the machine is wanted. Debug
    /// traps are not looked at: [`Self::step`] delivers its own.
    pub fn events(&mut self, v: &mut Vcpu) -> Flow<Option<Exit>> {
        if v.lines.take_request() {
            return Ok(Some(Exit::Requested));
        }
        let shadow = v.state.shadow;
        if shadow != InterruptShadow::MovSs && !v.state.nmi_blocked && v.lines.take_nmi() {
            self.interrupts += 1;
            v.state.halted = false;
            return v.nmi().map(|_| None);
        }
        if shadow == InterruptShadow::None
            && v.state.eflags & eflags::IF != 0
            && v.lines.intr()
            && let Some(vector) = v.bus.acknowledge(v.index)
        {
            self.interrupts += 1;
            v.state.halted = false;
            return v.external_interrupt(vector).map(|_| None);
        }
        Ok(v.state.halted.then_some(Exit::Halted))
    }

    /// Executes one instruction with the features that the fast loop leaves out: instruction breakpoints, RF, TF and
    /// the interrupt shadow. A trap that it earns is left in `Mmu::pending_debug`. `fresh` keeps the decode cache out.
    pub(super) fn careful(&mut self, v: &mut Vcpu, fresh: bool) -> Flow<()> {
        let flags = v.state.eflags;
        let pending = v.mmu.pending_debug;
        if flags & eflags::RF == 0 {
            let hit = code_breakpoints(v);
            if hit != 0 {
                return Err(Exception::debug(hit).into());
            }
        }
        let shadow = std::mem::take(&mut v.state.shadow);
        v.state.eflags &= !eflags::RF;
        let done = if fresh || flags & eflags::TF != 0 { self.fetched(v) } else { self.one(v) };
        if let Err(stop) = done {
            v.state.eflags |= flags & eflags::RF;
            v.state.shadow = shadow;
            v.mmu.pending_debug = pending;
            return Err(stop);
        }
        if flags & eflags::TF != 0 && v.state.shadow != InterruptShadow::MovSs && !self.software_interrupt {
            v.mmu.pending_debug |= DR6_BS;
        }
        Ok(())
    }

    /// Ends a boundary or an instruction: exceptions are delivered, everything else leaves the engine.
    pub(super) fn conclude(&mut self, v: &mut Vcpu, done: Flow<()>) -> ControlFlow<Exit> {
        match done {
            Ok(()) => ControlFlow::Continue(()),
            Err(stop) => match self.deliver(v, stop) {
                Ok(()) => ControlFlow::Continue(()),
                Err(Stop::Unsupported(what)) => ControlFlow::Break(Exit::Unsupported(what)),
                Err(_) => ControlFlow::Break(Exit::Shutdown),
            },
        }
    }

    /// Delivers the exception in `stop`; other stops come back.
    #[cold]
    pub(super) fn deliver(&mut self, v: &mut Vcpu, stop: Stop) -> Flow<()> {
        match stop {
            Stop::Exception(e) => {
                self.exceptions += 1;
                v.state.shadow = InterruptShadow::None;
                v.raise(e)
            }
            other => Err(other),
        }
    }
}

/// DR6 bits of the enabled instruction breakpoints at CS:EIP.
fn code_breakpoints(v: &Vcpu) -> u32 {
    let s = &v.state;
    if s.dr7 & 0xff == 0 {
        return 0;
    }
    let linear = s.seg[seg::CS].base.wrapping_add(s.eip);
    (0..4)
        .filter(|i| s.dr7 >> (2 * i) & 3 != 0 && s.dr7 >> (16 + 4 * i) & 3 == 0 && s.dr[*i as usize] == linear)
        .fold(0, |hit, i| hit | 1 << i)
}
