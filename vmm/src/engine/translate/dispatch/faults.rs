//! Host faults in emitted code: pages to map, stores to code, devices, and places that are come to for another EIP.

use super::super::block::Point;
use super::super::fault::TRAP_PAGE_FAULT;
use super::super::{MAX_LEARNT, Translator};
use crate::cpu::{Flow, InterruptShadow, Vcpu, reg};
use crate::mmu::{KERNEL_SPLIT, Resolution, Rights, peek};

/// Faults of one instruction into devices after which it is interpreted without trying.
const DEVICE_FAULTS: u32 = 4;

/// Times that a block or the code after a call is come to for another EIP before it expects that.
const TRIPS: u32 = 3;

/// Host page-fault error bit: the access was a write.
const ERROR_WRITE: u64 = 2;

/// A guest page fault that is being handled, and what was to be accessed.
#[derive(Clone, Copy)]
pub struct Awaited {
    pub(super) eip: u32,
    pub(super) cr3: u32,
    pub(super) cpl: u8,
    pub(super) rights: Rights,
    pub(super) linear: u32,
    pub(super) write: bool,
}

impl Translator {
    /// The code at `fault_rip` was come to for another EIP than its own, or found its source changed. Where the former
    /// happens often, it is translated so that it costs less.
    pub(super) fn tripped(&mut self) {
        self.stats.exits_tripped += 1;
        let at = self.context.fault_rip;
        let Some(id) = self.registry.containing(at) else { panic!("tripped at {at:#x}, which no block holds") };
        let block = self.registry.block(id);
        let origin = block.origin(at);
        if self.registry.is_mixed(block.key.gpa & !0xfff) && origin.is_some_and(|o| o.point == Point::Start) {
            // Its source is not what it was. r8d is the block's own EIP: the new source is translated next.
            self.stats.stale += 1;
            self.registry.invalidate(&mut self.cache, id);
            return self.purge();
        }
        let eip = origin.map_or(block.key.eip, |o| o.eip);
        let place = block.key.gpa & !0xfff | (eip & 0xfff) as u64;
        if self.trips.len() + self.varied.len() > MAX_LEARNT {
            self.trips.clear();
            self.varied.clear();
        }
        let count = self.trips.entry(place).or_default();
        *count += 1;
        if *count >= TRIPS {
            self.trips.remove(&place);
            self.varied.insert(place);
            self.stats.learnt_varied += 1;
            self.registry.invalidate(&mut self.cache, id);
            self.purge();
        }
    }

    /// A host fault left emitted code. Some if `context` is set up to try again: what kind of place it happened at.
    pub(super) fn fault(&mut self, vcpu: &mut Vcpu) -> Flow<Option<Point>> {
        self.stats.exits_fault += 1;
        let at = self.context.fault_rip;
        let id = self.registry.containing(at);
        let origin = id.and_then(|id| self.registry.block(id).origin(at));
        let (Some(id), Some(origin)) = (id, origin) else {
            panic!(
                "host trap {} at {at:#x}, address {:#x}, belongs to no guest instruction",
                self.context.fault_trap, self.context.fault_address
            );
        };
        self.save(vcpu);
        vcpu.state.eip = origin.eip;
        vcpu.state.gpr[reg::ESP] = vcpu.state.gpr[reg::ESP].wrapping_add(origin.esp_delta as u32);
        let restart = self.registry.block(id).restart(at);
        let shadowed = restart.is_some_and(|r| r.point == Point::Shadowed);
        if shadowed {
            // Whatever is pending, or becomes so before this instruction runs again, waits for it.
            vcpu.state.shadow = InterruptShadow::Sti;
        }
        if self.context.fault_trap == TRAP_PAGE_FAULT && self.returns.is_guard(self.context.fault_address) {
            return Ok(None);
        }
        let located = self.shadow.locate(self.context.fault_address);
        let Some((window, linear)) = located.filter(|_| self.context.fault_trap == TRAP_PAGE_FAULT) else {
            if self.context.fault_trap == TRAP_PAGE_FAULT {
                self.learn_wrapping(id, origin.eip);
            }
            return self.interpret(vcpu).map(|_| None);
        };
        let write = self.context.fault_error & ERROR_WRITE != 0;
        let evicted = self.shadow.stats.windows_evicted;
        let resolution = self.shadow.resolve(&vcpu.state, window, linear, write);
        if self.shadow.stats.windows_evicted != evicted {
            // One of the windows in use may be gone.
            self.active = None;
        }
        match resolution {
            Resolution::Mapped if self.note_fault(vcpu, id, linear) => Ok(None),
            Resolution::Mapped if self.active.is_none() || shadowed => Ok(None),
            Resolution::Mapped => {
                let block = self.registry.block(id);
                let Some(restart) = restart else { return Ok(None) };
                self.context.target = block.start + restart.offset as u64;
                if block.fp {
                    // Leaving saved the state that the rest of the block takes to be loaded.
                    self.context.resume = std::mem::replace(&mut self.context.target, self.trampolines.resume_fp);
                }
                self.context.gpr[reg::ESP] = vcpu.state.gpr[reg::ESP].wrapping_sub(restart.esp_delta as u32);
                Ok(Some(origin.point))
            }
            Resolution::CodeWrite => {
                self.stats.code_stores += 1;
                self.interpret(vcpu).map(|_| None)
            }
            Resolution::Interpret => {
                self.learn(vcpu, id, origin.eip, window, linear);
                let (cpl, rights) = (vcpu.state.cpl, self.shadow.rights(window));
                self.note_fault(vcpu, id, linear);
                self.interpret(vcpu)?;
                self.awaited = rights
                    .filter(|_| vcpu.state.cr2 == linear && vcpu.state.cpl == 0)
                    .map(|rights| Awaited { eip: origin.eip, cr3: vcpu.state.cr3, cpl, rights, linear, write });
                Ok(None)
            }
        }
    }

    /// The instruction at `eip` of block `id` reached into the gaps around its window.
    fn learn_wrapping(&mut self, id: u32, eip: u32) {
        let place = self.registry.block(id).key.gpa & !0xfff | (eip & 0xfff) as u64;
        if self.wrapping.len() >= MAX_LEARNT {
            self.wrapping.clear();
        }
        if self.wrapping.insert(place) {
            self.stats.learnt_wrapping += 1;
            self.registry.invalidate(&mut self.cache, id);
            self.purge();
        }
    }

    /// Remembers what the instruction at `eip` does, if that calls for other code.
    pub(super) fn learn(&mut self, vcpu: &mut Vcpu, id: u32, eip: u32, window: usize, linear: u32) {
        let user = vcpu.state.cpl == 3;
        // Only a look: the access may be about to fault, and then accessed bits stay as they are.
        let Some(t) = peek(&vcpu.mmu.ram, &vcpu.state, linear, user) else { return };
        if self.dynamic.len() + self.device_faults.len() > MAX_LEARNT {
            self.dynamic.clear();
            self.device_faults.clear();
            self.interpreted.clear();
        }
        let rights = self.shadow.rights(window);
        if vcpu.mmu.ram.offset_of(t.gpa).is_none() {
            let count = self.device_faults.entry(eip).or_default();
            *count += 1;
            if *count >= DEVICE_FAULTS {
                // Another block may hold the instruction too: each is made anew when it comes here.
                self.stats.learnt_interpreted += self.interpreted.insert(eip) as u64;
                self.registry.invalidate(&mut self.cache, id);
                self.purge();
            }
        } else if rights == Some(Rights::Kernel) && linear < KERNEL_SPLIT {
            self.stats.learnt_dynamic += self.dynamic.insert(eip) as u64;
            self.registry.invalidate(&mut self.cache, id);
            self.purge();
        } else if !user && matches!(rights, Some(Rights::User(_))) && !t.user {
            // A supervisor page in the lower part: this address space needs a window of its own for the supervisor.
            self.shadow.window(&vcpu.state, Rights::Low(vcpu.state.cr3));
            self.active = None;
        }
    }
}
