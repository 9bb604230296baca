//! Delivery of interrupts and exceptions through the IDT or the real-mode vector table (SDM vol. 3, §6.10 to §6.13 and
//! §20.1.4; vol. 2, INT n).
//!
//! One event, one attempt: what happens when delivery itself faults is decided in `raise`.

use super::descriptor::{Descriptor, selector_fault, system};
use super::stack::TargetStack;
use super::task::{Switch, SwitchKind};
use super::{Exception, Flow, InterruptShadow, Segment, Stop, Vcpu, eflags, reg, seg, vector};

/// Bit 1 of an error code: the index names an IDT entry.
const IDT: u16 = 2;

/// Something to deliver.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub vector: u8,
    /// Bit 0 of error codes raised meanwhile: 1 unless the program itself asked for the event.
    pub ext: u16,
    /// INT n, INT3 and INTO obey the gate's DPL.
    pub software: bool,
    /// Error code to push, if the event has one.
    pub error: Option<u16>,
    /// EFLAGS as pushed.
    pub eflags: u32,
}

impl Event {
    /// An event from outside the program: an interrupt, or an exception without error code.
    pub fn hardware(vector: u8, eflags: u32) -> Self {
        Self { vector, ext: 1, software: false, error: None, eflags }
    }

    fn idt_fault(&self, vector: u8) -> Stop {
        Exception::with_error(vector, (self.vector as u16) << 3 | IDT | self.ext).into()
    }
}

impl Vcpu {
    /// Delivers `event`. An error means that nothing changed. `Some` is an exception in a new task, after a task gate
    /// has switched to it.
    pub(super) fn deliver(&mut self, event: &Event) -> Flow<Option<Exception>> {
        if !self.state.protected() {
            self.deliver_real(event)?;
            self.delivered();
            return Ok(None);
        }
        let gate = self.gate(event)?;
        if gate.system() == Some(system::TASK_GATE) {
            let outcome = self.deliver_to_task(event, gate)?;
            self.delivered();
            return Ok(outcome);
        }
        self.deliver_to_handler(event, gate)?;
        self.delivered();
        Ok(None)
    }

    fn delivered(&mut self) {
        self.state.shadow = InterruptShadow::None;
        self.state.halted = false;
    }

    /// Real mode: four bytes a vector; FLAGS, CS and IP are pushed; there are no error codes.
    fn deliver_real(&mut self, event: &Event) -> Flow<()> {
        let at = event.vector as u32 * 4;
        if at + 3 > self.state.idtr.limit {
            return Err(event.idt_fault(vector::GP));
        }
        let entry: u32 = self.load_system(self.state.idtr.base.wrapping_add(at))?;
        let frame = [event.eflags, self.state.seg[seg::CS].selector as u32, self.state.eip];
        self.check_code_limit(self.state.seg[seg::CS].limit, entry & 0xffff, event.ext)?;
        self.state.gpr[reg::ESP] = self.push_frame(&self.current_stack(event.ext), &frame, 2)?;
        self.state.eflags &= !(eflags::IF | eflags::TF | eflags::AC | eflags::RF);
        self.set_plain_code((entry >> 16) as u16, entry & 0xffff);
        Ok(())
    }

    /// The gate of the event's vector, checked for kind, privilege and presence.
    fn gate(&mut self, event: &Event) -> Flow<Descriptor> {
        let at = event.vector as u32 * 8;
        if at + 7 > self.state.idtr.limit {
            return Err(event.idt_fault(vector::GP));
        }
        let linear = self.state.idtr.base.wrapping_add(at);
        let gate = Descriptor::new(self.load_system(linear)?, linear);
        let usable = matches!(
            gate.system(),
            Some(
                system::TASK_GATE
                    | system::INTERRUPT_GATE16
                    | system::TRAP_GATE16
                    | system::INTERRUPT_GATE32
                    | system::TRAP_GATE32
            )
        );
        if !usable || (event.software && gate.dpl() < self.state.cpl) {
            return Err(event.idt_fault(vector::GP));
        }
        if !gate.present() {
            return Err(event.idt_fault(vector::NP));
        }
        Ok(gate)
    }

    fn deliver_to_task(&mut self, event: &Event, gate: Descriptor) -> Flow<Option<Exception>> {
        let selector = gate.gate_selector();
        let tss = self.global_descriptor(selector, vector::GP, event.ext)?;
        if !tss.is_available_tss() {
            return Err(selector_fault(vector::GP, selector, event.ext).into());
        }
        self.require_present(tss, selector, event.ext)?;
        let (ext, error, eflags) = (event.ext, event.error, event.eflags);
        self.switch_task(Switch { selector, tss, kind: SwitchKind::Call, ext, error, eflags })
    }

    /// Enters the handler of an interrupt or trap gate.
    fn deliver_to_handler(&mut self, event: &Event, gate: Descriptor) -> Flow<()> {
        let selector = gate.gate_selector();
        let d = self.handler_code(selector, event.ext)?;
        self.check_code_limit(d.limit(), gate.gate_offset(), event.ext)?;
        let inner = !d.is_conforming() && d.dpl() < self.state.cpl;
        let stack = match inner {
            true => self.inner_stack(d.dpl(), event.ext)?,
            false => self.current_stack(event.ext),
        };
        let esp = self.push_event_frame(event, &stack, inner, if gate.is_wide() { 4 } else { 2 })?;
        let mut cleared = eflags::TF | eflags::NT | eflags::VM | eflags::RF;
        if matches!(gate.system(), Some(system::INTERRUPT_GATE16 | system::INTERRUPT_GATE32)) {
            cleared |= eflags::IF;
        }
        if self.state.v8086() {
            for which in [seg::ES, seg::DS, seg::FS, seg::GS] {
                self.state.seg[which] = Segment::null(0);
            }
        }
        self.state.seg[seg::SS] = stack.ss;
        self.state.gpr[reg::ESP] = esp;
        self.state.eflags &= !cleared;
        let cpl = if inner { d.dpl() } else { self.state.cpl };
        self.set_code(d, selector, cpl, gate.gate_offset());
        Ok(())
    }

    /// The handler's code segment, its accessed bit set. From virtual-8086 mode it must be nonconforming with DPL 0.
    fn handler_code(&mut self, selector: u16, ext: u16) -> Flow<Descriptor> {
        let mut d = self.descriptor_or(selector, vector::GP, ext)?;
        let from_v8086 = self.state.v8086();
        if !d.is_code() || d.dpl() > self.state.cpl {
            return Err(selector_fault(vector::GP, selector, ext).into());
        }
        self.require_present(d, selector, ext)?;
        if from_v8086 && (d.is_conforming() || d.dpl() != 0) {
            return Err(selector_fault(vector::GP, selector, ext).into());
        }
        self.mark_accessed(&mut d)?;
        Ok(d)
    }

    /// Pushes the frame of figure 6-4 (or, from virtual-8086 mode, figure 21-4) and returns the new stack pointer.
    fn push_event_frame(&mut self, event: &Event, stack: &TargetStack, inner: bool, size: u8) -> Flow<u32> {
        let s = &self.state;
        let selector = |which: usize| s.seg[which].selector as u32;
        let mut frame = [0u32; 10];
        let mut n = 0;
        let mut add = |values: &[u32]| {
            frame[n..n + values.len()].copy_from_slice(values);
            n += values.len();
        };
        if s.v8086() {
            add(&[selector(seg::GS), selector(seg::FS), selector(seg::DS), selector(seg::ES)]);
        }
        if inner {
            add(&[selector(seg::SS), s.gpr[reg::ESP]]);
        }
        add(&[event.eflags, selector(seg::CS), s.eip]);
        if let Some(code) = event.error {
            add(&[code as u32]);
        }
        self.push_frame(stack, &frame[..n], size)
    }
}
